//! runmonitor on a connection of this host with itself, and on a terminal.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::program::{DEADLINE, wait_for};

/// The program, counting what the sockets count: that needs neither root nor firewall rules.
pub fn runmonitor(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runmonitor"));
    command.arg("--source=sockets").args(arguments).stdin(Stdio::null()).env_remove("TERM").env_remove("COLUMNS");
    command
}

/// A process that has received something over loopback: with it the program has a line to show.
pub struct Traffic {
    /// The only word of its command line, which no other process has.
    pub name: String,
    process: Child,
    client: TcpStream,
}

impl Traffic {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self::named(&format!("traffic-{}-{}-", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// With this as its only word.
    pub fn named(name: &str) -> Self {
        let name = name.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = OwnedFd::from(listener.accept().unwrap().0);
        let mut cat = Command::new("cat");
        let process = cat.arg0(&name).stdin(Stdio::from(server)).stdout(Stdio::null()).spawn().unwrap();
        client.write_all(&[7; 5000]).unwrap();
        Self { name, process, client }
    }

    /// The same, and it goes on to receive something for as long as it lives.
    pub fn flowing() -> Self {
        let traffic = Self::new();
        let mut client = traffic.client.try_clone().unwrap();
        std::thread::spawn(move || {
            while client.write_all(&[7; 1000]).is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        traffic
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether it is one of the original's lines: bytes in and out in ten columns each or more, and a name.
pub fn is_figure(line: &str) -> bool {
    let number = |column: &str| column.len() >= 10 && column.trim_start().parse::<u64>().is_ok();
    let Some((figures, _name)) = line.split_once(" -- ") else { return false };
    figures.split_once(" / ").is_some_and(|(bytes_in, bytes_out)| number(bytes_in) && number(bytes_out))
}

/// The views on a terminal, without the sequences that move the cursor and change how text looks; first what comes before them.
pub fn views(shown: &str) -> Vec<String> {
    let plain = |view: &str| {
        let mut pieces = view.split("\x1b[");
        let first = pieces.next().unwrap_or_default().to_owned();
        let after = |piece: &str| piece.split_once(|c: char| c.is_ascii_alphabetic()).unwrap_or_default().1.to_owned();
        first + &pieces.map(after).collect::<String>()
    };
    shown.split("\x1b[?2026h\x1b[H").map(plain).collect()
}

/// The exit code of a program that is about to end.
pub fn exit_code(child: &mut Child) -> Option<i32> {
    wait_for("the program's end", || child.try_wait().unwrap()).code()
}

/// Runs the program on a terminal of type `term` until it has shown one process at two ticks, and then sends it `signal`.
/// Returns all output on the terminal.
pub fn on_a_terminal(term: &str, arguments: &[&str], signal: Signal) -> String {
    let traffic = Traffic::new();
    // Unlike openpty(3), this leaves neither end open in the processes that other tests start meanwhile.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let mut slave = OpenOptions::new();
    let slave =
        slave.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(ptsname_r(&master).unwrap()).unwrap();
    let mut command = runmonitor(arguments);
    let (stdout, stderr) = (slave.try_clone().unwrap(), slave);
    let mut child = command.env("TERM", term).stdout(stdout).stderr(stderr).spawn().unwrap();
    // The command holds the slave, which is to close with the program.
    drop(command);
    let mut terminal = File::from(OwnedFd::from(master));
    let give_up = Instant::now() + DEADLINE;
    let mut shown = Vec::new();
    let mut signalled = false;
    let mut buffer = [0; 4096];
    // read(2) fails with EIO when no process has the slave open any more.
    while let Ok(length @ 1..) = terminal.read(&mut buffer) {
        shown.extend(&buffer[..length]);
        let text = String::from_utf8_lossy(&shown);
        if !signalled && text.matches(&traffic.name).count() >= 2 {
            kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
            signalled = true;
        }
        if Instant::now() >= give_up {
            child.kill().unwrap();
            panic!("{} is not shown twice, or the program does not end: {text:?}", traffic.name);
        }
    }
    assert_eq!(exit_code(&mut child), Some(0));
    String::from_utf8(shown).unwrap()
}
