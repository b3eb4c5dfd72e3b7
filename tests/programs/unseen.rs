//! Nothing that the outputs of a program do, and no signal that was ignored before, decides over its work.

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::program::{DEADLINE, Running, listening_port, wait_for, wait_until_it_runs};
use crate::common::runmonitor::{Traffic, runmonitor};

const RUNPIPE: &str = env!("CARGO_BIN_EXE_runpipe");

/// A pipe that takes nothing more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// runpipe from `port` of 127.0.0.1 to a listener of the test.
fn runpipe(port: u16, target: &TcpListener) -> Command {
    let mut command = Command::new(RUNPIPE);
    let target_port = target.local_addr().unwrap().port();
    command.args([&port.to_string(), "127.0.0.1", &target_port.to_string(), "--bind=127.0.0.1"]);
    command
}

/// runaggregator with one pipe of `port` to a listener of the test.
fn runaggregator(directory: &TempDir, port: u16, target: &TcpListener) -> Command {
    let target_port = target.local_addr().unwrap().port();
    let text = format!("[P]\ntype=pipe\nport={port}\nnewhost=127.0.0.1\nnewport={target_port}\n");
    fs::write(directory.path().join("m.cfg"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
    command.current_dir(directory.path()).arg("--monitor-config=m.cfg");
    command
}

/// Sends so many bytes through a new connection, and back.
fn exchange(port: u16, target: &TcpListener, bytes: usize) {
    let mut client = wait_for("the port", || TcpStream::connect(("127.0.0.1", port)).ok());
    let mut server = target.accept().unwrap().0;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    let mut received = vec![0; bytes];
    client.write_all(&vec![1; bytes]).unwrap();
    server.read_exact(&mut received).unwrap();
    server.write_all(&received).unwrap();
    client.read_exact(&mut received).unwrap();
}

/// Waits until a thread of the program is inside write(2) on a full pipe.
fn wait_until_it_writes(child: &mut Child) {
    let tasks = format!("/proc/{}/task", child.id());
    wait_for("a write to a full pipe", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        let mut threads = fs::read_dir(&tasks).unwrap().filter_map(Result::ok);
        threads.find(|thread| {
            fs::read_to_string(thread.path().join("wchan")).is_ok_and(|function| function.contains("pipe_write"))
        })
    });
}

fn end(mut child: Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    let status = wait_for("the end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{signal}");
}

/// Starts a program with stdout and stderr on a full pipe.
fn start_unread(command: &mut Command) -> (Child, PipeReader) {
    let (reader, writer) = full_pipe();
    let stderr = writer.try_clone().unwrap();
    (command.stdin(Stdio::null()).stdout(writer).stderr(stderr).spawn().unwrap(), reader)
}

#[test]
fn runpipe_forwards_and_ends_while_nobody_reads_its_outputs() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let (target, port) = (TcpListener::bind("127.0.0.1:0").unwrap(), free_port());
        let (mut child, _reader) = start_unread(&mut runpipe(port, &target));
        exchange(port, &target, 10);
        wait_until_it_writes(&mut child);
        exchange(port, &target, 10);
        end(child, signal);
    }
}

#[test]
fn runaggregator_forwards_notifies_and_ends_while_nobody_reads_its_outputs() {
    let directory = TempDir::new().unwrap();
    let (target, port) = (TcpListener::bind("127.0.0.1:0").unwrap(), free_port());
    let rule = "[N]\nprocess_filter=.\nin_threshold=1\nnotification_command=sh -c 'echo x >> notified'\n";
    fs::write(directory.path().join("n.cfg"), rule).unwrap();
    let mut command = runaggregator(&directory, port, &target);
    let (mut child, _reader) = start_unread(command.arg("--notification-config=n.cfg"));
    // Its first message is already one too many.
    exchange(port, &target, 100_000);
    wait_until_it_writes(&mut child);
    let notified = || fs::read_to_string(directory.path().join("notified")).unwrap_or_default().len();
    wait_for("two more notifications", || {
        static BEFORE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
        exchange(port, &target, 100_000);
        (notified() >= BEFORE.get_or_init(notified) + 4).then_some(())
    });
    end(child, Signal::SIGTERM);
}

#[test]
fn runmonitor_ends_while_nobody_reads_its_outputs() {
    let _traffic = Traffic::new();
    let (mut child, _reader) = start_unread(&mut runmonitor(&[]));
    wait_until_it_writes(&mut child);
    end(child, Signal::SIGTERM);
}

#[test]
fn figures_that_nobody_reads_are_dropped_and_both_is_told() {
    for non_blocking in [false, true] {
        let (target, (mut reader, writer)) = (TcpListener::bind("127.0.0.1:0").unwrap(), full_pipe());
        if non_blocking {
            fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        }
        let mut program = Running::start_with(&mut runpipe(0, &target), writer);
        let port = listening_port(&program.stderr.line());
        exchange(port, &target, 10);
        assert_eq!(program.stderr.line(), "nobody reads stdout; figures are dropped");
        exchange(port, &target, 10);
        let lines = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        let said = program.stderr.line();
        assert!(said.starts_with("stdout takes figures again; ") && said.ends_with(" tables were dropped"), "{said}");
        program.signal(Signal::SIGTERM);
        assert_eq!(program.end().0.code(), Some(0));
        // No line was cut.
        let text = lines.join().unwrap();
        let is_figure = |line: &str| line.starts_with("        10 /") || line.starts_with("        20 /");
        assert!(text.trim_start_matches('.').lines().all(is_figure), "{text}");
    }
}

#[test]
fn a_program_that_does_more_than_show_goes_on_without_a_reader() {
    let directory = TempDir::new().unwrap();
    for is_aggregator in [false, true] {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut command = if is_aggregator { runaggregator(&directory, 0, &target) } else { runpipe(0, &target) };
        let (reader, writer) = std::io::pipe().unwrap();
        let mut program = Running::start_with(&mut command, writer);
        // The command holds its own copy of the descriptor.
        drop(command);
        let port = listening_port(&program.stderr.line());
        drop(reader);
        assert_eq!(program.stderr.line(), "the reader of stdout is gone; all but the figures goes on");
        exchange(port, &target, 10);
        program.signal(Signal::SIGTERM);
        assert_eq!(program.end().0.code(), Some(0));
    }
}

#[test]
fn on_a_full_disk_runpipe_goes_on() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut program = Running::start_with(&mut runpipe(0, &target), full);
    let port = listening_port(&program.stderr.line());
    exchange(port, &target, 10);
    assert_eq!(program.stderr.line(), "cannot write to stdout: No space left on device; figures are dropped");
    exchange(port, &target, 10);
    program.signal(Signal::SIGTERM);
    assert_eq!(program.end().0.code(), Some(0));
}

/// The signals of a line of /proc/PID/status, as bits from SIGHUP on.
fn signals(child: &Child, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let mask = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap()
}

#[test]
fn a_signal_that_was_ignored_before_stays_ignored() {
    let (target, directory) = (TcpListener::bind("127.0.0.1:0").unwrap(), TempDir::new().unwrap());
    for program in [runpipe(0, &target), runaggregator(&directory, 0, &target), runmonitor(&[])] {
        // As nohup(1) and a shell's & do.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\""]).arg(program.get_program());
        command.args(program.get_args()).current_dir(directory.path());
        let mut program = Running::start(&mut command);
        wait_until_it_runs(&mut program.child);
        let of = |signal: Signal| 1u64 << (signal as u32 - 1);
        let ignored = of(Signal::SIGHUP) | of(Signal::SIGINT);
        assert_eq!(signals(&program.child, "SigIgn:") & ignored, ignored);
        // For a moment, all are blocked: while a thread starts.
        wait_for("only SIGTERM to be blocked", || {
            let blocked = signals(&program.child, "SigBlk:") & (ignored | of(Signal::SIGTERM));
            (blocked == of(Signal::SIGTERM)).then_some(())
        });
        // Signals wait in the order of their numbers, so these come first.
        program.signal(Signal::SIGHUP);
        program.signal(Signal::SIGINT);
        program.signal(Signal::SIGTERM);
        let (status, shown, said) = program.end();
        assert_eq!(status.code(), Some(0));
        assert!(!shown.iter().any(|line| line.contains("wait") || line.contains("Wait")), "{shown:?}");
        assert!(!said.iter().any(|line| line.contains("again")), "{said:?}");
    }
}

#[test]
fn what_was_pending_is_told_at_the_end() {
    // Bound but not listening: the kernel refuses connections to it.
    let reserved = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&reserved);
    nix::sys::socket::bind(fd, &nix::sys::socket::SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let target_port = nix::sys::socket::getsockname::<nix::sys::socket::SockaddrIn>(fd).unwrap().port();
    let mut command = Command::new(RUNPIPE);
    command.args(["0", "127.0.0.1", &target_port.to_string(), "--bind=127.0.0.1"]);
    let mut program = Running::start(&mut command);
    let port = listening_port(&program.stderr.line());
    for _ in 0..3 {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(client.read(&mut [0]).is_err());
    }
    program.signal(Signal::SIGINT);
    let (_, shown, said) = program.end();
    assert_eq!(shown, ["Waiting for threads to finish..."]);
    let failure =
        format!("pipe-0:127.0.0.1:{target_port}: cannot connect to 127.0.0.1:{target_port}: Connection refused");
    assert!(said[0].starts_with(&failure), "{said:?}");
    assert!(said[1].starts_with(&failure) && said[1].ends_with(" (and 2 more like it)"), "{said:?}");
    assert_eq!(said.len(), 2);
}

#[test]
fn a_program_that_has_nothing_to_show_says_so_once_on_stderr() {
    let (target, directory) = (TcpListener::bind("127.0.0.1:0").unwrap(), TempDir::new().unwrap());
    for command in [&mut runaggregator(&directory, 0, &target), &mut runmonitor(&["--include=^no such process$"])] {
        let mut program = Running::start(command);
        wait_for("the message", || {
            program.stderr.so_far().into_iter().find(|line| line.starts_with("nothing to show yet: "))
        });
        program.signal(Signal::SIGTERM);
        let (_, shown, said) = program.end();
        assert_eq!(shown, [""; 0]);
        assert!(!said.iter().any(|line| line.starts_with("nothing")), "{said:?}");
    }
}

/// As a shell that limits the descriptors starts it.
fn with_descriptors(most: u32, program: &Command) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")]).arg(program.get_program());
    command.args(program.get_args()).arg0("sh");
    command
}

#[test]
fn the_connections_of_runpipe_leave_descriptors_to_the_rest_of_the_program() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let program = Running::start(&mut with_descriptors(80, &runpipe(0, &target)));
    let port = listening_port(&program.stderr.line());
    let _clients: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert!(program.stderr.line().contains("cannot accept connections for the moment"));
    // An eighth is left, but for the client that was the last and one that may be open for a moment.
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", program.child.id())).unwrap().count();
    wait_for("descriptors to be left", || (descriptors() <= 72).then_some(()));
}

#[test]
fn two_programs_that_forward_to_each_other_reset_their_client_and_keep_nothing() {
    let ports = [free_port(), free_port()];
    let programs = [(ports[0], ports[1]), (ports[1], ports[0])].map(|(port, target)| {
        let mut command = Command::new(RUNPIPE);
        command.args([&port.to_string(), "127.0.0.1", &target.to_string(), "--bind=127.0.0.1"]);
        let program = Running::start(&mut with_descriptors(1000, &command));
        assert_eq!(listening_port(&program.stderr.line()), port);
        program
    });
    let mut client = TcpStream::connect(("127.0.0.1", ports[0])).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    for program in &programs {
        let descriptors = format!("/proc/{}/fd", program.child.id());
        // The program's own, and at most 32 spare kernel pipes.
        wait_for("the end of all connections", || (fs::read_dir(&descriptors).unwrap().count() < 15).then_some(()));
    }
    let said = wait_for("a message", || {
        programs.iter().flat_map(|program| program.stderr.so_far()).find(|line| line.contains("cannot connect"))
    });
    assert!(said.contains("it came through 64 pipes of this host, which forward in a circle"), "{said}");
}

#[test]
fn after_sigterm_open_connections_have_some_seconds() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut program = Running::start(&mut runpipe(0, &target));
    let port = listening_port(&program.stderr.line());
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _server = target.accept().unwrap().0;
    program.signal(Signal::SIGTERM);
    assert_eq!(program.stderr.line(), "open connections: 1; they are reset in 5 seconds");
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!((&client).read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(program.end().0.code(), Some(0));
}
