//! The program runpipe, started as its users start it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::program::listening_port;

const RUNPIPE: &str = env!("CARGO_BIN_EXE_runpipe");
const PATIENCE: Duration = Duration::from_secs(60);

fn run(arguments: &[&str]) -> Output {
    Command::new(RUNPIPE).args(arguments).env_remove("COLUMNS").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A running runpipe, and the listener in this test that it forwards to.
struct RunningPipe {
    child: Child,
    port: u16,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
    listener: TcpListener,
}

impl RunningPipe {
    fn start(mut command: Command) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap().port().to_string();
        command.args(["0", "127.0.0.1", &target, "--bind=127.0.0.1"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let port = listening_port(&line);
        Self { child, port, stdout, stderr, listener }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn accept(&self) -> TcpStream {
        let stream = self.listener.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
    }

    /// Reads lines of the display until one is `expected`.
    fn wait_for(&mut self, expected: &str) {
        let mut line = String::new();
        while line.trim_end() != expected {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "no {expected:?} before the end");
        }
    }

    /// Waits until the program exits, with exit code 0.
    fn end(mut self) {
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

/// Sends one byte from the client to the target, and one back.
fn exchange(client: &TcpStream, target: &TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    (&mut &*client).write_all(b"?")?;
    (&mut &*target).read_exact(&mut byte)?;
    (&mut &*target).write_all(b"!")?;
    (&mut &*client).read_exact(&mut byte)
}

#[test]
fn wrong_usage_is_an_error_and_exit_code_2() {
    let wrong: [&[&str]; 14] = [
        &[],
        &["2222"],
        &["2297", "127.0.0.1", "1", "extra"],
        &["abc", "localhost"],
        &["2299", "localhost", "http"],
        &["22.5", "localhost"],
        &["0x16", "localhost"],
        &["2293L", "localhost"],
        &["2_293", "localhost"],
        &["", "localhost"],
        &["2299", "localhost", ""],
        &["70000", "localhost"],
        &["-1", "localhost"],
        &["2299", "localhost", "99999"],
    ];
    for arguments in wrong {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        assert!(text(&output.stderr).starts_with("error: "), "{arguments:?}");
    }
}

#[test]
fn a_wrong_argument_has_a_message_that_says_what_would_be_right() {
    for (arguments, expected) in [
        (&["abc", "h"][..], "'<PORT>': 'abc' is not a whole number"),
        (&["70000", "h"], "'<PORT>': port 70000 is not within 0 to 65535"),
        (&["99", "h", "0"], "'[REMOTE-PORT]': nothing can connect to port 0; the ports are 1 to 65535"),
        (&["99", ""], "'<REMOTE-HOST>': this names no host; for this host, write localhost"),
        (&["99", "h", "--limit=x"], "'--limit <KB_PER_S>': not a whole number"),
        (&["99", "h", "--limit", "-1"], "'--limit <KB_PER_S>': not between 0 and 4294967295"),
        (&["99", "h", "--threads=0"], "'--threads <N>': not between 1 and 256"),
        (&["99", "h", "--max-connections=0"], "'--max-connections <N>': not between 1 and 4294967295"),
        (&["99", "h", "--connect-timeout=1.5"], "'--connect-timeout <S>': not a whole number"),
        (&["99", "h", "--idle-timeout=0"], "'--idle-timeout <S>': not between 1 and 4294967295"),
        (&["99", "h", "--bind=localhost"], "'--bind <ADDRESS>': not an address such as 127.0.0.1 or ::1"),
        (&["0", "h"], "error: PORT 0 is a free port of this host; name the REMOTE-PORT to forward to"),
    ] {
        let output = run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(said.lines().next().is_some_and(|line| line.ends_with(expected)), "{arguments:?}: {said}");
    }
}

#[test]
fn runpipe_reads_ports_as_the_original_does() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().port();
    for port in [format!(" {taken} "), format!("+{taken}"), format!("0{taken}")] {
        let output = run(&["--bind=127.0.0.1", &port, "localhost"]);
        let expected = format!("runpipe: cannot listen on 127.0.0.1:{taken}: Address already in use (os error 98)\n");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), expected.as_str()));
    }
}

#[test]
fn help_is_on_stdout_with_exit_code_0() {
    let output = run(&["--help"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    assert!(text(&output.stdout).contains("Usage: runpipe [OPTIONS] <PORT> <REMOTE-HOST> [REMOTE-PORT]"));
}

#[test]
fn runpipe_shows_totals_until_it_is_interrupted() {
    let mut runpipe = RunningPipe::start(Command::new(RUNPIPE));
    let (client, target) = (runpipe.connect(), runpipe.accept());
    (&client).write_all(&[b'x'; 1500]).unwrap();
    (&target).write_all(&[b'y'; 20]).unwrap();
    let target_port = runpipe.listener.local_addr().unwrap().port();
    runpipe.wait_for(&format!("      1500 /         20 -- pipe-0:127.0.0.1:{target_port}"));
    let mut bytes = vec![0; 1500];
    (&target).read_exact(&mut bytes).unwrap();
    drop((client, target));
    runpipe.interrupt();
    runpipe.wait_for("Waiting for threads to finish...");
    runpipe.end();
}

#[test]
fn the_first_interrupt_lets_open_connections_finish() {
    let mut runpipe = RunningPipe::start(Command::new(RUNPIPE));
    let (client, target) = (runpipe.connect(), runpipe.accept());
    runpipe.interrupt();
    runpipe.wait_for("Waiting for threads to finish...");
    assert!(TcpStream::connect(("127.0.0.1", runpipe.port)).is_err());
    exchange(&client, &target).unwrap();
    drop((client, target));
    runpipe.end();
}

#[test]
fn the_second_interrupt_resets_open_connections() {
    let mut runpipe = RunningPipe::start(Command::new(RUNPIPE));
    let (client, target) = (runpipe.connect(), runpipe.accept());
    runpipe.interrupt();
    runpipe.wait_for("Waiting for threads to finish...");
    runpipe.interrupt();
    assert!((&client).read(&mut [0]).is_err());
    assert!((&target).read(&mut [0]).is_err());
    runpipe.end();
}

#[test]
fn with_too_few_descriptors_runpipe_serves_open_connections_and_accepts_others_later() {
    let mut limited = Command::new("sh");
    // Several threads would connect to the target in another order.
    limited.args(["-c", "ulimit -n 40 && exec \"$0\" \"$@\"", RUNPIPE, "--threads=1"]);
    let mut runpipe = RunningPipe::start(limited);
    // Each connection takes two descriptors, and the program itself needs some: there is room for about 15.
    let clients: Vec<TcpStream> = (0..30).map(|_| runpipe.connect()).collect();
    let mut line = String::new();
    runpipe.stderr.read_line(&mut line).unwrap();
    assert!(line.contains("cannot accept connections for the moment"), "{line}");

    let mut waiting = clients.into_iter();
    for client in waiting.by_ref().take(10) {
        // runpipe serves it although others wait; when it ends there is room for one of them.
        exchange(&client, &runpipe.accept()).unwrap();
    }
    for client in waiting {
        exchange(&client, &runpipe.accept()).unwrap();
    }
    // All have ended, so there are enough descriptors again.
    exchange(&runpipe.connect(), &runpipe.accept()).unwrap();
    runpipe.interrupt();
    runpipe.wait_for("Waiting for threads to finish...");
    runpipe.end();
}

/// The scheduling policies of the threads that forward (the 41st field of proc_pid_stat(5)).
fn policies(pipe: &RunningPipe) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", pipe.child.id())).unwrap();
    let stats = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap());
    stats
        .filter(|stat| stat.contains("(pipe-"))
        .map(|stat| stat.rsplit_once(')').unwrap().1.split_whitespace().nth(41 - 3).unwrap().to_owned())
        .collect()
}

/// Writes to the clients in turn until the pipe's only thread is a batch, and then waits until it is none any more. Their
/// targets read whatever comes.
fn assert_batch(pipe: &RunningPipe, clients: Vec<TcpStream>, targets: Vec<TcpStream>) {
    const NORMAL: &str = "0";
    const BATCH: &str = "3";
    assert_eq!(policies(pipe), [NORMAL]);
    let readers = targets.into_iter().map(|mut target| {
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while target.read(&mut buffer).unwrap() > 0 {}
        })
    });
    let readers: Vec<_> = readers.collect();
    let block = vec![0; 1 << 20];
    let start = Instant::now();
    while policies(pipe) != [BATCH] {
        for mut client in &clients {
            client.write_all(&block).unwrap();
        }
        assert!(start.elapsed() < PATIENCE, "not within a minute");
    }
    while policies(pipe) != [NORMAL] {
        assert!(start.elapsed() < PATIENCE, "not within a minute");
    }
    drop(clients);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

#[test]
fn a_thread_is_a_batch_as_long_as_it_moves_many_bytes() {
    let mut command = Command::new(RUNPIPE);
    command.arg("--threads=1");
    let pipe = RunningPipe::start(command);
    let (client, target) = (pipe.connect(), pipe.accept());
    assert_batch(&pipe, vec![client], vec![target]);
}

#[test]
fn a_thread_is_a_batch_also_where_each_of_many_connections_moves_few_of_them() {
    let mut command = Command::new(RUNPIPE);
    command.arg("--threads=1");
    let pipe = RunningPipe::start(command);
    let (clients, targets) = (0..64).map(|_| (pipe.connect(), pipe.accept())).unzip();
    assert_batch(&pipe, clients, targets);
}

#[test]
fn a_pipe_has_one_thread_on_one_cpu_and_two_on_two() {
    let affinity = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpus: Vec<String> =
        (0..CpuSet::count()).filter(|cpu| affinity.is_set(*cpu).unwrap()).map(|cpu| cpu.to_string()).collect();
    for threads in 1..=std::thread::available_parallelism().unwrap().get().min(2) {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &cpus[..threads].join(","), RUNPIPE]);
        let pipe = RunningPipe::start(command);
        let start = Instant::now();
        // A thread that has just started has no name yet.
        while policies(&pipe).len() != threads {
            assert!(start.elapsed() < PATIENCE, "{} threads on {threads} CPUs", policies(&pipe).len());
        }
    }
}
