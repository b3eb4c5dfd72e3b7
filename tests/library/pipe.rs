//! The pipe on real sockets of the loopback interface: its connections must behave like direct ones.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::silent::Silent;
use crate::loopback::{Random, patient, random_bytes, settings, wait_until};
use bwmon::pipe::{Pipe, PipeSettings};
use bwmon::traffic::source::Source;
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, send, setsockopt,
    socket,
};

/// A pipe, and the listener in this test that it forwards to.
fn pipe_to(change: impl FnOnce(&mut PipeSettings)) -> (Pipe, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = settings(listener.local_addr().unwrap());
    change(&mut settings);
    (Pipe::bind(settings).unwrap(), listener)
}

fn connect(pipe: &Pipe) -> TcpStream {
    patient(TcpStream::connect(pipe.local_address()).unwrap())
}

fn accept(listener: &TcpListener) -> TcpStream {
    patient(listener.accept().unwrap().0)
}

/// Closes `stream` with a reset.
fn reset(stream: TcpStream) {
    setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn read_exact(mut stream: &TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads until the reset; returns the bytes before it.
fn read_to_reset(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    bytes
}

fn delivered(pipe: &mut Pipe) -> (u64, u64) {
    let readings = pipe.read(Instant::now()).unwrap();
    (readings[0].bytes_in, readings[0].bytes_out)
}

fn wait_for_count(pipe: &mut Pipe, expected: (u64, u64)) {
    wait_until(&format!("a count of {expected:?}"), || delivered(pipe) == expected);
}

/// Waits for a line that the pipe reports, and returns it.
fn report(pipe: &mut Pipe) -> String {
    let mut lines = Vec::new();
    wait_until("a report", || {
        lines.extend(pipe.notes().into_iter().filter(|line| !line.contains(": listening on ")));
        !lines.is_empty()
    });
    lines.remove(0)
}

#[test]
fn bytes_are_forwarded_and_counted_both_ways() {
    let (mut pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    (&client).write_all(b"question").unwrap();
    assert_eq!(read_exact(&target, 8), b"question");
    wait_for_count(&mut pipe, (8, 0));
    (&target).write_all(b"the answer").unwrap();
    assert_eq!(read_exact(&client, 10), b"the answer");
    wait_for_count(&mut pipe, (8, 10));
    assert_eq!(pipe.connections(), 1);

    let name = format!("pipe-0:127.0.0.1:{}", listener.local_addr().unwrap().port());
    assert_eq!(pipe.read(Instant::now()).unwrap()[0].subject.label(), name.as_bytes());
    let (address, target) = (pipe.local_address(), listener.local_addr().unwrap());
    assert_eq!(pipe.notes(), [format!("{name}: listening on {address}, forwarding to {target}")]);
}

#[test]
fn the_bytes_of_ended_connections_stay_in_the_totals() {
    let (mut pipe, listener) = pipe_to(|_| {});
    for round in 1..=5 {
        let client = connect(&pipe);
        let target = accept(&listener);
        (&client).write_all(&[0; 1000]).unwrap();
        drop(client);
        assert_eq!(read_to_end(&target).len(), 1000);
        drop(target);
        wait_for_count(&mut pipe, (1000 * round, 0));
        wait_until("the end of the connection", || pipe.connections() == 0);
    }
}

#[test]
fn a_client_that_has_shut_down_its_sending_side_still_gets_the_answer() {
    let (pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    (&client).write_all(b"all of it").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&target), b"all of it");
    let answer = random_bytes(1, 3_000_000);
    let sent = answer.clone();
    let writer = thread::spawn(move || (&target).write_all(&sent).unwrap());
    assert!(read_to_end(&client) == answer);
    writer.join().unwrap();
    wait_until("the end of the connection", || pipe.connections() == 0);
}

#[test]
fn a_target_that_has_shut_down_its_sending_side_still_gets_the_question() {
    let (pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    (&target).write_all(b"220 ready").unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&client), b"220 ready");
    (&client).write_all(b"late").unwrap();
    drop(client);
    assert_eq!(read_to_end(&target), b"late");
    wait_until("the end of the connection", || pipe.connections() == 0);
}

#[test]
fn a_connection_without_bytes_is_forwarded() {
    let (pipe, listener) = pipe_to(|_| {});
    drop(connect(&pipe));
    assert_eq!(read_to_end(&accept(&listener)), b"");
}

#[test]
fn a_reset_is_forwarded_after_the_bytes_before_it() {
    let (mut pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    (&client).write_all(b"last words").unwrap();
    reset(client);
    assert_eq!(read_to_reset(&target), b"last words");
    assert!(report(&mut pipe).contains("lost the client 127.0.0.1:"));

    // Repeated, since the reset may come before the pipe has noticed that the target has accepted.
    for _ in 0..50 {
        let client = connect(&pipe);
        let target = accept(&listener);
        (&target).write_all(b"so long").unwrap();
        reset(target);
        assert_eq!(read_to_reset(&client), b"so long");
    }
    wait_until("the end of the connections", || pipe.connections() == 0);
}

#[test]
fn a_reset_of_a_half_closed_connection_is_forwarded() {
    let (pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&target), b"");
    reset(client);
    // The client no longer reads; the pipe resets the target as soon as it notices.
    wait_until("the end of the connection", || pipe.connections() == 0);
    wait_until("the reset", || (&target).write_all(b"x").is_err());
}

#[test]
fn a_refused_connection_is_reset_and_the_next_one_works() {
    // Bound but not listening: the kernel gives the port to no other socket, and refuses connections to it.
    let reserved = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(reserved.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let port = getsockname::<SockaddrIn>(reserved.as_raw_fd()).unwrap().port();
    let mut pipe = Pipe::bind(settings(([127, 0, 0, 1], port).into())).unwrap();

    assert_eq!(read_to_reset(&connect(&pipe)), b"");
    let expected = format!("cannot connect to 127.0.0.1:{port}: Connection refused");
    assert!(report(&mut pipe).contains(&expected));

    listen(&reserved, Backlog::new(5).unwrap()).unwrap();
    let listener = TcpListener::from(reserved);
    let client = connect(&pipe);
    let target = accept(&listener);
    (&client).write_all(b"now").unwrap();
    assert_eq!(read_exact(&target, 3), b"now");
}

#[test]
fn the_pipe_tries_every_address_of_a_name() {
    let (pipe, listener) = pipe_to(|settings| settings.target_host = "localhost".into());
    for _ in 0..3 {
        let client = connect(&pipe);
        (&client).write_all(b"hello").unwrap();
        assert_eq!(read_exact(&accept(&listener), 5), b"hello");
    }
}

#[test]
fn a_name_without_an_address_causes_one_report_and_resets() {
    // Longer than any name may be, so the C library asks no name server.
    let (mut pipe, _listener) = pipe_to(|settings| settings.target_host = "x".repeat(300));
    assert_eq!(read_to_reset(&connect(&pipe)), b"");
    assert!(report(&mut pipe).contains("cannot resolve the target: "));
    assert_eq!(read_to_reset(&connect(&pipe)), b"");
}

#[test]
fn the_pipe_gives_up_a_target_that_does_not_answer() {
    let silent = Silent::on(([127, 0, 0, 1], 0).into());
    let address = silent.address;
    let settings = PipeSettings { connect_timeout: Duration::from_millis(50), ..settings(address) };
    let mut pipe = Pipe::bind(settings).unwrap();
    assert_eq!(read_to_reset(&connect(&pipe)), b"");
    assert!(report(&mut pipe).contains(&format!("cannot connect to {address}: timed out")));
}

#[test]
fn a_client_that_resets_while_the_target_does_not_answer_frees_its_place_at_once() {
    let silent = Silent::on(([127, 0, 0, 1], 0).into());
    let settings = PipeSettings { connect_timeout: Duration::from_secs(3600), ..settings(silent.address) };
    let pipe = Pipe::bind(settings).unwrap();
    let client = connect(&pipe);
    wait_until("the connection", || pipe.connections() == 1);
    reset(client);
    wait_until("its end", || pipe.connections() == 0);
}

#[test]
fn a_pipe_does_not_connect_to_itself() {
    // A port that was free a moment ago. Another process may have taken it since.
    let mut pipe = loop {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        if let Ok(pipe) = Pipe::bind(PipeSettings { port: address.port(), ..settings(address) }) {
            break pipe;
        }
    };
    assert_eq!(read_to_reset(&connect(&pipe)), b"");
    let said = report(&mut pipe);
    assert!(
        said.contains("cannot connect to 127.0.0.1:") && said.ends_with(": the pipe listens there itself"),
        "{said}"
    );
}

#[test]
fn a_slow_reader_delays_no_other_connection_and_loses_no_bytes() {
    let (mut pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    client.set_nonblocking(true).unwrap();
    let bytes = random_bytes(2, 64 << 20);
    let mut sent = 0;
    // Until the client cannot send and the pipe no longer delivers.
    let mut before = None;
    loop {
        match (&client).write(&bytes[sent..]) {
            Ok(length) => sent += length,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                let now = Some(delivered(&mut pipe).0);
                if now == before {
                    break;
                }
                before = now;
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
    assert!(sent < bytes.len(), "no back-pressure");

    let other = connect(&pipe);
    let other_target = accept(&listener);
    (&other).write_all(b"quick").unwrap();
    assert_eq!(read_exact(&other_target, 5), b"quick");

    client.set_nonblocking(false).unwrap();
    let rest = bytes[sent..].to_vec();
    let writer = thread::spawn(move || (&client).write_all(&rest).unwrap());
    assert!(read_to_end(&target) == bytes);
    writer.join().unwrap();
    wait_for_count(&mut pipe, (bytes.len() as u64 + 5, 0));
}

#[test]
fn the_last_bytes_of_a_fast_source_arrive_although_it_pauses() {
    let (mut pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    let block = vec![7; 1 << 20];
    // Fast for long enough that the pipe sets SO_RCVLOWAT, and then a few more bytes.
    let (blocks, rest) = (200, 10_001);
    for _ in 0..3 {
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..blocks {
                    (&client).write_all(&block).unwrap();
                }
                (&client).write_all(&block[..rest]).unwrap();
            });
            let mut buffer = vec![0; 1 << 20];
            for _ in 0..blocks {
                (&target).read_exact(&mut buffer).unwrap();
            }
            (&target).read_exact(&mut buffer[..rest]).unwrap();
        });
        (&target).write_all(b"go on").unwrap();
        assert_eq!(read_exact(&client, 5), b"go on");
    }
    // The last bytes and the end of a fast stream arrive too.
    (&client).write_all(&block[..rest]).unwrap();
    drop(client);
    assert_eq!(read_to_end(&target).len(), rest);
    wait_for_count(&mut pipe, (3 * (blocks * block.len() + rest) as u64 + rest as u64, 15));
}

#[test]
fn urgent_bytes_stay_in_their_place_in_the_stream() {
    let (pipe, listener) = pipe_to(|_| {});
    for size in [10, 300_000] {
        let client = connect(&pipe);
        let target = accept(&listener);
        let bytes = random_bytes(3, size);
        let writer = thread::spawn({
            let bytes = bytes.clone();
            move || {
                for part in bytes.chunks(size / 3) {
                    (&client).write_all(part).unwrap();
                    assert_eq!(send(client.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap(), 1);
                }
            }
        });
        let expected: Vec<u8> = bytes.chunks(size / 3).flat_map(|part| [part, b"!"].concat()).collect();
        // Of several urgent bytes the receiver's kernel knows only the last; the pipe forwards all as ordinary bytes.
        assert!(read_to_end(&target) == expected, "{size} bytes");
        writer.join().unwrap();
    }
}

#[test]
fn a_limited_pipe_delivers_all_bytes_of_all_connections() {
    let (mut pipe, listener) = pipe_to(|settings| settings.limit_bytes_per_s = NonZeroU64::new(20 << 20));
    let clients: Vec<_> = (0..20)
        .map(|seed| {
            let client = connect(&pipe);
            let target = accept(&listener);
            let bytes = random_bytes(seed, 100_000);
            let writer = thread::spawn({
                let bytes = bytes.clone();
                move || (&client).write_all(&bytes).unwrap()
            });
            (writer, thread::spawn(move || assert!(read_to_end(&target) == bytes)))
        })
        .collect();
    for (writer, reader) in clients {
        writer.join().unwrap();
        reader.join().unwrap();
    }
    wait_for_count(&mut pipe, (2_000_000, 0));
}

#[test]
fn the_limit_holds_for_the_bytes_of_clients_that_reset() {
    const LIMIT_BYTES_PER_S: u64 = 10_000;
    let start = Instant::now();
    let (mut pipe, listener) = pipe_to(|settings| settings.limit_bytes_per_s = NonZeroU64::new(LIMIT_BYTES_PER_S));
    let clients: Vec<_> = (0..20).map(|_| (connect(&pipe), accept(&listener))).collect();
    let _targets: Vec<TcpStream> = clients
        .into_iter()
        .map(|(client, target)| {
            (&client).write_all(&[7; 50_000]).unwrap();
            reset(client);
            target
        })
        .collect();
    while start.elapsed() < Duration::from_secs(1) {
        let delivered = delivered(&mut pipe).0;
        let most = 1000 + (LIMIT_BYTES_PER_S as f64 * start.elapsed().as_secs_f64()) as u64;
        assert!(delivered <= most, "{delivered} bytes, not {most}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_limited_pipe_forwards_what_came_before_a_reset() {
    let (pipe, listener) = pipe_to(|settings| settings.limit_bytes_per_s = NonZeroU64::new(100_000));
    let client = connect(&pipe);
    let target = accept(&listener);
    let bytes = random_bytes(4, 50_000);
    (&client).write_all(&bytes).unwrap();
    reset(client);
    assert!(read_to_reset(&target) == bytes);
    wait_until("the end of the connection", || pipe.connections() == 0);
}

#[test]
fn a_connection_that_waits_for_its_turn_within_the_limit_is_not_idle() {
    let (pipe, listener) = pipe_to(|settings| {
        // A turn is 64 bytes, so each connection has one in two and a half seconds.
        settings.limit_bytes_per_s = NonZeroU64::new(50);
        settings.idle_timeout = Some(Duration::from_secs(1));
    });
    let connections = [(); 2].map(|()| {
        let client = connect(&pipe);
        (&client).write_all(&[7; 128]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        (client, accept(&listener))
    });
    for (_client, target) in &connections {
        assert_eq!(read_to_end(target).len(), 128);
    }
}

/// How often each thread of a pipe went to sleep.
fn sleeps(pipe: &Pipe) -> Vec<u64> {
    let name = format!("Name:\tpipe-{}\n", pipe.local_address().port());
    let mut threads: Vec<_> =
        fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path().join("status")).collect();
    threads.sort();
    let statuses = threads.iter().map(|status| fs::read_to_string(status).unwrap_or_default());
    let count = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    };
    statuses.filter(|status| status.starts_with(&name)).map(count).collect()
}

#[test]
fn a_fast_transfer_that_is_blocked_wakes_nobody() {
    let (mut pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    let writer = thread::spawn(move || while (&client).write_all(&[7; 1 << 20]).is_ok() {});
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..200 {
        (&target).read_exact(&mut buffer).unwrap();
    }
    // The target stops reading, so all buffers fill.
    let mut before = None;
    wait_until("the blocked transfer", || {
        thread::sleep(Duration::from_millis(50));
        let now = Some(delivered(&mut pipe).0);
        std::mem::replace(&mut before, now) == now
    });
    let before: u64 = sleeps(&pipe).iter().sum();
    thread::sleep(Duration::from_millis(500));
    let wakeups = sleeps(&pipe).iter().sum::<u64>() - before;
    assert!(wakeups < 25, "{wakeups} in half a second");
    drop((target, pipe));
    writer.join().unwrap();
}

#[test]
fn a_connection_beyond_max_connections_waits_until_another_ends() {
    let (mut pipe, listener) = pipe_to(|settings| settings.max_connections = NonZeroUsize::new(2));
    let first = connect(&pipe);
    let first_target = accept(&listener);
    let _second = connect(&pipe);
    let _second_target = accept(&listener);
    assert!(report(&mut pipe).contains("2 connections are open, others have to wait"));
    let third = connect(&pipe);
    (&third).write_all(b"me too").unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    listener.set_nonblocking(false).unwrap();
    drop((first, first_target));
    assert_eq!(read_exact(&accept(&listener), 6), b"me too");
}

#[test]
fn all_threads_together_keep_to_max_connections() {
    const MOST: usize = 3;
    let (pipe, listener) = pipe_to(|settings| {
        settings.threads = NonZeroUsize::new(4);
        settings.max_connections = NonZeroUsize::new(MOST);
    });
    let mut clients: Vec<Option<TcpStream>> = (0..20).map(|_| Some(connect(&pipe))).collect();
    for (number, client) in clients.iter().enumerate() {
        { client.as_ref().unwrap() }.write_all(&[number as u8]).unwrap();
    }
    let accept_next = || {
        let target = accept(&listener);
        (usize::from(read_exact(&target, 1)[0]), target)
    };
    let mut open: Vec<_> = (0..MOST).map(|_| accept_next()).collect();
    for _ in MOST..clients.len() {
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        listener.set_nonblocking(false).unwrap();
        assert_eq!(pipe.connections(), MOST);
        // The end of one gives its place to another one, whichever thread had it.
        let (number, target) = open.remove(0);
        drop((clients[number].take(), target));
        open.push(accept_next());
    }
}

#[test]
fn clients_that_come_one_by_one_reach_every_thread() {
    let (pipe, listener) = pipe_to(|settings| settings.threads = NonZeroUsize::new(4));
    // The threads sleep when their epoll has nothing to report.
    wait_until("the start of four threads", || sleeps(&pipe).len() == 4);
    let before = sleeps(&pipe);
    let connections: Vec<_> = (0..40).map(|_| (connect(&pipe), accept(&listener))).collect();
    wait_until("a connection in each thread", || {
        for (client, target) in &connections {
            { client }.write_all(b"x").unwrap();
            read_exact(target, 1);
        }
        sleeps(&pipe).iter().zip(&before).all(|(now, before)| *now >= before + 100)
    });
}

#[test]
fn all_threads_together_keep_to_the_limit() {
    const LIMIT: u64 = 2 << 20;
    let (mut pipe, listener) = pipe_to(|settings| {
        settings.threads = NonZeroUsize::new(4);
        settings.limit_bytes_per_s = NonZeroU64::new(LIMIT);
    });
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            let (client, target) = (connect(&pipe), accept(&listener));
            scope.spawn(move || (&client).write_all(&vec![1; 1 << 18]).unwrap());
            scope.spawn(move || assert_eq!(read_to_end(&target).len(), 1 << 18));
        }
    });
    // What the bucket holds at most is worth 60 ms.
    let most = LIMIT as f64 * (start.elapsed().as_secs_f64() + 0.06);
    wait_for_count(&mut pipe, (2 << 20, 0));
    assert!((2 << 20) as f64 <= most, "{most}");
}

#[test]
fn the_idle_timeout_closes_an_idle_connection() {
    let (mut pipe, listener) = pipe_to(|settings| settings.idle_timeout = Some(Duration::from_millis(100)));
    let client = connect(&pipe);
    let target = accept(&listener);
    assert_eq!(read_to_reset(&client), b"");
    assert_eq!(read_to_reset(&target), b"");
    assert!(report(&mut pipe).contains("closed the idle connection of 127.0.0.1:"));
}

#[test]
fn a_pipe_that_stops_accepting_lets_open_connections_finish() {
    let (mut pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    pipe.stop_accepting();
    assert_eq!(TcpStream::connect(pipe.local_address()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    (&client).write_all(b"still here").unwrap();
    assert_eq!(read_exact(&target, 10), b"still here");
    assert!(!pipe.is_finished());
    drop((client, target));
    wait_until("the end of the pipe", || pipe.is_finished());
    assert_eq!(delivered(&mut pipe), (10, 0));
    // On a finished pipe these do nothing.
    pipe.stop_accepting();
    pipe.close();
}

#[test]
fn a_dropped_pipe_resets_open_connections() {
    let (pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    drop(pipe);
    assert_eq!(read_to_reset(&client), b"");
    assert_eq!(read_to_reset(&target), b"");
}

#[test]
fn the_error_about_a_port_in_use_names_the_address() {
    let (pipe, listener) = pipe_to(|_| {});
    let taken = pipe.local_address();
    let error =
        Pipe::bind(PipeSettings { port: taken.port(), ..settings(listener.local_addr().unwrap()) }).unwrap_err();
    assert_eq!(format!("{error:#}"), format!("cannot listen on {taken}: Address already in use (os error 98)"));
}

#[test]
fn by_default_a_pipe_listens_on_all_addresses() {
    let (pipe, listener) = pipe_to(|settings| settings.bind = None);
    // Every address of 127.0.0.0/8 is this host's.
    for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 1, 2, 3)] {
        let client = patient(TcpStream::connect((address, pipe.local_address().port())).unwrap());
        (&client).write_all(b"hello").unwrap();
        assert_eq!(read_exact(&accept(&listener), 5), b"hello", "{address}");
    }
}

/// Sends `length` bytes each way at once and checks them as they arrive.
fn both_ways(length: u64) {
    let (mut pipe, listener) = pipe_to(|_| {});
    let client = connect(&pipe);
    let target = accept(&listener);
    thread::scope(|scope| {
        for (seed, from, to) in [(11, &client, &target), (12, &target, &client)] {
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut left = length;
                while left > 0 {
                    let block = random_bytes(random.next(), left.min(1 << 20) as usize);
                    (&*from).write_all(&block).unwrap();
                    left -= block.len() as u64;
                }
                from.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut left = length;
                while left > 0 {
                    let block = random_bytes(random.next(), left.min(1 << 20) as usize);
                    assert!(read_exact(to, block.len()) == block, "differs with {left} bytes to go");
                    left -= block.len() as u64;
                }
                assert_eq!(read_to_end(to), b"");
            });
        }
    });
    wait_for_count(&mut pipe, (length, length));
}

#[test]
fn bulk_both_ways_at_once_arrives_unchanged() {
    both_ways(48 << 20);
}

#[test]
#[ignore = "takes a while without optimisation: cargo test --release -- --ignored"]
fn a_gigabyte_both_ways_at_once_arrives_unchanged() {
    both_ways(1 << 30);
}
