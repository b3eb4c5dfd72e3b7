//! A pipe whose settings change while it runs, and its limits for one client.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::loopback::{PATIENCE, patient, settings, wait_until};
use bwmon::pipe::{Pipe, PipeSettings};
use bwmon::traffic::source::Source;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};

fn listener() -> (TcpListener, PipeSettings) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = settings(listener.local_addr().unwrap());
    (listener, settings)
}

fn client_of(pipe: &Pipe) -> TcpStream {
    patient(TcpStream::connect(pipe.local_address()).unwrap())
}

fn accept(listener: &TcpListener) -> TcpStream {
    patient(listener.accept().unwrap().0)
}

fn send(mut from: &TcpStream, mut to: &TcpStream, bytes: &[u8]) {
    from.write_all(bytes).unwrap();
    let mut received = vec![0; bytes.len()];
    to.read_exact(&mut received).unwrap();
    assert!(received == bytes);
}

fn is_reset(mut client: &TcpStream) {
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// The labels of a pipe's readings, and the bytes in.
fn readings(pipe: &mut Pipe) -> Vec<(String, u64)> {
    let readings = pipe.read(Instant::now()).unwrap().into_iter();
    readings.map(|reading| (String::from_utf8(reading.subject.label().into()).unwrap(), reading.bytes_in)).collect()
}

#[test]
fn another_target_is_for_new_connections_and_has_figures_of_its_own() {
    let ((first, settings), (second, other)) = (listener(), listener());
    let names = [settings.name(), other.name()];
    let mut pipe = Pipe::bind(settings.clone()).unwrap();
    let client = client_of(&pipe);
    let target = accept(&first);
    send(&client, &target, b"one");

    pipe.reconfigure(other);
    let new_client = client_of(&pipe);
    let new_target = accept(&second);
    send(&client, &target, b"two");
    send(&new_client, &new_target, b"other");
    wait_until("the figures", || readings(&mut pipe) == [(names[1].clone(), 5), (names[0].clone(), 6)]);

    // The first target again: its figures go on.
    pipe.reconfigure(settings);
    let newest_client = client_of(&pipe);
    send(&newest_client, &accept(&first), b"three");
    wait_until("the figures", || readings(&mut pipe) == [(names[0].clone(), 11), (names[1].clone(), 5)]);

    // The figures of a target without connections end, after a last reading.
    drop((new_client, new_target));
    wait_until("the end of the other target", || readings(&mut pipe) == [(names[0].clone(), 11)]);
}

#[test]
fn another_limit_is_for_open_connections_too() {
    let (target, slow) = listener();
    let slow = PipeSettings { limit_bytes_per_s: NonZeroU64::new(1), ..slow };
    let mut pipe = Pipe::bind(slow.clone()).unwrap();
    let client = client_of(&pipe);
    let server = accept(&target);
    (&client).write_all(&[7; 1000]).unwrap();
    pipe.reconfigure(PipeSettings { limit_bytes_per_s: None, ..slow });
    let mut received = [0; 1000];
    (&server).read_exact(&mut received).unwrap();
}

#[test]
fn another_idle_timeout_is_for_open_connections_too() {
    let (target, settings) = listener();
    let mut pipe = Pipe::bind(settings.clone()).unwrap();
    let client = client_of(&pipe);
    let server = accept(&target);
    pipe.reconfigure(PipeSettings { idle_timeout: Some(Duration::from_millis(100)), ..settings });
    is_reset(&client);
    is_reset(&server);
}

#[test]
fn with_more_room_the_clients_that_wait_get_in() {
    let (target, settings) = listener();
    let full = PipeSettings { max_connections: NonZeroUsize::new(1), ..settings.clone() };
    let mut pipe = Pipe::bind(full).unwrap();
    let first = client_of(&pipe);
    send(&first, &accept(&target), b"first");
    let second = client_of(&pipe);
    pipe.reconfigure(PipeSettings { max_connections: NonZeroUsize::new(2), ..settings });
    send(&second, &accept(&target), b"second");
}

#[test]
fn a_hundred_changes_are_for_the_clients_that_come_after_them_and_refuse_none() {
    let targets = [listener(), listener()];
    let settings = targets.each_ref().map(|(_, settings)| settings.clone());
    for (number, (target, _)) in targets.into_iter().enumerate() {
        thread::spawn(move || {
            for stream in target.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    (&stream).write_all(&[number as u8])?;
                    std::io::copy(&mut &stream, &mut &stream)
                });
            }
        });
    }
    let target_of = |mut client: &TcpStream| {
        let mut number = [0];
        client.read_exact(&mut number).unwrap();
        send(client, client, &[7; 1000]);
        usize::from(number[0])
    };
    let mut pipe = Pipe::bind(settings[0].clone()).unwrap();
    let (address, is_over) = (pipe.local_address(), AtomicBool::new(false));
    let mut elsewhere = Vec::new();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    target_of(&patient(TcpStream::connect(address).unwrap()));
                }
            });
        }
        for round in 1..=100 {
            let next = round % 2;
            let limit_bytes_per_s = NonZeroU64::new(10_000_000 + round as u64);
            pipe.reconfigure(PipeSettings { limit_bytes_per_s, ..settings[next].clone() });
            if target_of(&client_of(&pipe)) != next {
                elsewhere.push(round);
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(elsewhere.is_empty(), "the clients of {elsewhere:?} had the target before");
    wait_until("the end of all connections", || pipe.connections() == 0);
}

#[test]
fn another_number_of_threads_is_for_the_next_start() {
    let (target, settings) = listener();
    let threads = |count| PipeSettings { threads: NonZeroUsize::new(count), ..settings.clone() };
    let mut pipe = Pipe::bind(threads(2)).unwrap();
    pipe.notes();
    pipe.reconfigure(threads(3));
    let name = pipe.settings().name();
    assert_eq!(pipe.notes(), [format!("{name}: goes on with 2 threads; another number holds from the next start on")]);
    send(&client_of(&pipe), &accept(&target), b"as before");
}

/// A connection to the pipe from an address of our choice.
fn client_from(ip: Ipv4Addr, pipe: &Pipe) -> TcpStream {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((ip, 0)))).unwrap();
    connect(socket.as_raw_fd(), &SockaddrStorage::from(pipe.local_address())).unwrap();
    patient(TcpStream::from(socket))
}

#[test]
fn a_client_has_its_own_number_of_connections() {
    let (target, settings) = listener();
    let settings = PipeSettings { max_per_client: NonZeroUsize::new(2), ..settings };
    let mut pipe = Pipe::bind(settings).unwrap();
    let clients = [(); 2].map(|()| (client_of(&pipe), accept(&target)));
    is_reset(&client_of(&pipe));
    let said = pipe.notes().pop().unwrap();
    assert!(
        said.contains("refused the client 127.0.0.1:") && said.ends_with("2 of its connections are open"),
        "{said}"
    );
    let other = client_from(Ipv4Addr::new(127, 0, 0, 2), &pipe);
    send(&other, &accept(&target), b"another client");
    drop(clients);
    wait_until("the end of the first two", || pipe.connections() == 1);
    send(&client_of(&pipe), &accept(&target), b"again");
}

#[test]
fn pipes_that_forward_in_a_circle_reset_the_client_and_keep_nothing() {
    let (_target, settings) = listener();
    let mut first = Pipe::bind(settings).unwrap();
    let second = Pipe::bind(crate::loopback::settings(first.local_address())).unwrap();
    let to_second = crate::loopback::settings(second.local_address());
    first.reconfigure(to_second);
    is_reset(&client_of(&first));
    wait_until("the end of all connections", || first.connections() + second.connections() == 0);
    let mut pipes = [first, second];
    let start = Instant::now();
    loop {
        let said: Vec<String> = pipes.iter_mut().flat_map(Pipe::notes).collect();
        if said.iter().any(|line| line.ends_with("it came through 64 pipes of this host, which forward in a circle")) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{said:?}");
    }
}
