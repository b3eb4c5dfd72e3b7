//! The pipe on a host with other addresses than those of the loopback interface, and with a name server of the test.

use std::fs;
use std::io::{PipeReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bwmon::pipe::{Pipe, PipeSettings};
use bwmon::traffic::source::Source;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::program::{DEADLINE, Running, listening_port, wait_for};
use crate::common::silent::Silent;
use crate::support::harness::{Outcome, needs_command};
use crate::support::name_server::NameServer;
use crate::support::netns::{Namespace, address};

pub fn a_pipe_does_not_connect_to_itself_by_any_address_of_the_host() {
    let [[v4, v6], [secondary, _]] = [address(1), address(2)];
    Namespace::here().shell(&format!(
        "ip addr add {v4}/30 dev lo; ip addr add {secondary}/30 dev lo; ip addr add {v6}/126 dev lo nodad"
    ));
    for own in [&v4, &secondary, &v6] {
        // Its port is only known when it listens.
        let mut pipe = Pipe::bind(PipeSettings::new(0, "127.0.0.1", 1)).unwrap();
        let port = pipe.local_address().port();
        pipe.reconfigure(PipeSettings::new(0, own, port));
        let mut client = TcpStream::connect((own.parse::<IpAddr>().unwrap(), port)).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        assert!(client.read(&mut [0]).is_err());
        wait_for("a message", || {
            pipe.notes().into_iter().find(|line| line.ends_with(": the pipe listens there itself"))
        });
        wait_for("the end", || (pipe.connections() == 0).then_some(()));
    }
}

/// The next connection, which a pipe must not delay for ever.
fn accept(target: &TcpListener) -> TcpStream {
    target.set_nonblocking(true).unwrap();
    let stream = wait_for("a connection", || target.accept().ok()).0;
    stream.set_nonblocking(false).unwrap();
    stream
}

const RUNPIPE: &str = env!("CARGO_BIN_EXE_runpipe");

pub fn while_the_name_server_is_silent_the_pipe_uses_the_addresses_that_it_knows() -> Outcome {
    needs_command("unshare", &["--version"])?;
    let names = NameServer::start(true, &[Ipv4Addr::LOCALHOST]);
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let target_port = target.local_addr().unwrap().port().to_string();
    let mut command = names.run(RUNPIPE, &["0", "target.test", &target_port, "--connect-timeout=2"]);
    let program = Running::start(&mut command);
    let port = listening_port(&program.stderr.line());
    let exchange = || {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.write_all(b"hello").unwrap();
        let mut server = accept(&target);
        server.read_exact(&mut [0; 5]).unwrap();
        server.write_all(b"hello").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
    };
    exchange();
    names.answers.store(false, Ordering::Relaxed);
    let questions = names.questions.load(Ordering::Relaxed);
    // Connections until the name is looked up again, and some after that.
    wait_for("a question without an answer", || {
        exchange();
        (names.questions.load(Ordering::Relaxed) > questions).then_some(())
    });
    for _ in 0..30 {
        exchange();
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

pub fn while_an_address_does_not_answer_the_next_is_tried_and_what_worked_comes_first() -> Outcome {
    needs_command("unshare", &["--version"])?;
    // Of addresses of one kind, the C library keeps the order.
    let addresses = [1, 2, 5].map(|host| {
        let [v4, _] = address(host);
        Namespace::here().shell(&format!("ip addr add {v4}/32 dev lo"));
        v4.parse::<Ipv4Addr>().unwrap()
    });
    let names = NameServer::start(true, &addresses);
    let target = TcpListener::bind((addresses[2], 0)).unwrap();
    let port = target.local_addr().unwrap().port();
    let silent = [0, 1].map(|index| Silent::on((addresses[index], port).into()));
    let unanswered = || silent.iter().map(|silent| unanswered(silent.address)).sum::<usize>();
    assert_eq!(unanswered(), 0);
    let mut command = names.run(RUNPIPE, &["0", "target.test", &port.to_string(), "--connect-timeout=3600"]);
    let program = Running::start(&mut command);
    let port = listening_port(&program.stderr.line());
    for round in 0..3 {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut server = accept(&target);
        // The first one that accepts is the target, and the next connection tries no other.
        assert!(round == 0 || unanswered() == 0);
        wait_for("the end of the other attempts", || (unanswered() == 0).then_some(()));
        client.write_all(b"hello").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
    }
    Ok(())
}

/// The connections to an address that it has not answered.
fn unanswered(address: SocketAddr) -> usize {
    let lines = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let IpAddr::V4(ip) = address.ip() else { unreachable!() };
    let remote = format!(" {:08X}:{:04X} 02 ", u32::from_ne_bytes(ip.octets()), address.port());
    lines.lines().filter(|line| line.contains(&remote)).count()
}

pub fn signals_end_runpipe_while_its_outputs_and_its_name_server_are_silent() -> Outcome {
    needs_command("unshare", &["--version"])?;
    let names = NameServer::start(false, &[]);
    let (_reader, mut writer): (PipeReader, _) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = names.run(RUNPIPE, &[&port.to_string(), "target.test", "1"]);
    let stderr = writer.try_clone().unwrap();
    let mut child = command.stdin(Stdio::null()).stdout(writer).stderr(stderr).spawn().unwrap();
    let _client = wait_for("the port", || TcpStream::connect(("127.0.0.1", port)).ok());
    wait_for("a question", || (names.questions.load(Ordering::Relaxed) > 0).then_some(()));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGHUP).unwrap();
    let status = wait_for("the end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    Ok(())
}
