//! A program that runs beside the test, which reads its lines and sends it signals.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A test fails if it waits for longer than this. A busy machine is slow.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Repeats `attempt` until it returns something; `what` names that in the message of a failure.
pub fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + DEADLINE;
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(Instant::now() < give_up, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The port in the line in which a pipe says where it listens.
pub fn listening_port(line: &str) -> u16 {
    let address = line.split_once(": listening on ").and_then(|(_, rest)| rest.split_once(", forwarding to "));
    address.and_then(|(address, _)| address.rsplit(':').next()).and_then(|port| port.parse().ok()).expect(line)
}

/// Waits until the program handles signals.
pub fn wait_until_it_runs(child: &mut Child) {
    let terminate = 1u64 << (Signal::SIGTERM as u32 - 1);
    let pid = child.id();
    wait_for("the program to block signals", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap_or("0").trim();
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        (u64::from_str_radix(mask, 16).unwrap() & terminate != 0).then_some(())
    });
}

/// A running program. It is killed if the test ends first.
pub struct Running {
    pub child: Child,
    pub stdout: Lines,
    pub stderr: Lines,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::piped())
    }

    /// Starts it with this stdout; if that is not a pipe to us, there are no lines.
    pub fn start_with(command: &mut Command, stdout: impl Into<Stdio>) -> Self {
        let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().map_or_else(|| Lines::of(std::io::empty()), Lines::of);
        let stderr = Lines::of(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// The next line on stdout.
    pub fn line(&self) -> String {
        let line = self.stdout.0.recv_timeout(DEADLINE);
        line.unwrap_or_else(|error| panic!("no line on stdout: {error}; on stderr: {:#?}", self.stderr.so_far()))
    }

    pub fn signal(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end. Returns its status, and the rest of stdout and stderr.
    pub fn end(mut self) -> (ExitStatus, Vec<String>, Vec<String>) {
        let status = wait_for("the program's end", || self.child.try_wait().unwrap());
        (status, self.stdout.0.iter().collect(), self.stderr.0.iter().collect())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines that a thread reads as they come, so that the program never waits for its reader.
pub struct Lines(Receiver<String>);

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self(receiver)
    }

    /// The lines that have come since the last call.
    pub fn so_far(&self) -> Vec<String> {
        self.0.try_iter().collect()
    }

    /// The next line.
    pub fn line(&self) -> String {
        self.0.recv_timeout(DEADLINE).expect("a line")
    }
}
