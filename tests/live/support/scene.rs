//! A monitor on one of two hosts, their traffic, and the bytes that it should show.

use std::fs::read_to_string;
use std::io::{Read, Write};
use std::net::TcpStream;

use bwmon::monitor::advice::ENABLE_COMMANDS;

use super::monitor::{Figures, Monitor};
use super::netns::{Namespace, address};
use super::role::{start_role, told};
use super::truth::{Bytes, Truth};
use crate::common::program::{Running, wait_for};

/// The bytes that a client sends, and those of the answer.
pub const REQUEST: usize = 20_000;
pub const ANSWER: usize = 200_000;

/// Answers a client as often as it asks, until it closes the connection.
pub fn serve(stream: &mut (impl Read + Write)) {
    while serve_once(stream) {}
}

/// Answers a client once. Returns whether it asked.
pub fn serve_once(stream: &mut (impl Read + Write)) -> bool {
    if stream.read_exact(&mut [0; REQUEST]).is_err() {
        return false;
    }
    stream.write_all(&[7; ANSWER]).unwrap();
    true
}

/// Asks a server, and reads its answer.
pub fn ask(stream: &mut (impl Read + Write)) {
    stream.write_all(&[7; REQUEST]).unwrap();
    stream.read_exact(&mut vec![0; ANSWER]).unwrap();
}

/// A monitor on a host where conntrack counts.
pub struct Scene<'a> {
    pub host: &'a Namespace,
    pub remote: &'a Namespace,
    pub truth: Truth<'a>,
    pub monitor: Monitor,
}

impl<'a> Scene<'a> {
    pub fn new(host: &'a Namespace, remote: &'a Namespace, arguments: &[&str]) -> Self {
        host.shell(ENABLE_COMMANDS);
        let monitor = Monitor::start(&[&["--source=conntrack"], arguments].concat());
        // From then on it gets an event when a connection begins.
        let threads = format!("/proc/{}/task", monitor.program.child.id());
        wait_for("the program to watch", || {
            let mut threads = std::fs::read_dir(&threads).unwrap().filter_map(Result::ok);
            threads.find(|thread| read_to_string(thread.path().join("comm")).is_ok_and(|name| name == "watcher\n"))
        });
        Self { host, remote, truth: Truth::new(host), monitor }
    }

    /// Starts a server on the host. The truth counts its flows as `name`.
    pub fn server(&self, name: &str, command_line: &str, role: &str) -> (Running, u16) {
        let server = start_role(self.host, command_line, role);
        let port = told(&server);
        self.truth.count(name, "tcp", port);
        (server, port)
    }

    /// Connects from the remote host. The end there has no owner: a monitor looks only into the namespaces of processes, and
    /// no process is in that one.
    pub fn connect(&self, port: u16) -> TcpStream {
        let [host_v4, _] = address(1);
        self.remote.run(|| TcpStream::connect(format!("{host_v4}:{port}")).unwrap())
    }

    /// The bytes that the server of `name` has received and sent.
    pub fn bytes(&self, name: &str) -> Bytes {
        self.truth.bytes()[name]
    }

    /// Waits until exactly all bytes of the flow `name` are shown, and each of these command lines has its share of them, with
    /// an error of at most one in a hundred.
    pub fn wait_for_shares(&mut self, name: &str, shares: impl Fn(Bytes) -> Vec<(&'static str, Bytes)>) {
        let truth = &self.truth;
        self.monitor.wait_until(|figures| {
            let all = truth.bytes()[name];
            let shares = shares(all);
            let shown = |name: &str| figures.get(name).copied().unwrap_or_default();
            let sum = shares.iter().map(|(name, _)| shown(name)).fold((0, 0), add);
            let near = |shown: u64, share: u64, all: u64| shown.abs_diff(share) * 100 <= all;
            let fine = |&(name, share): &(&str, Bytes)| {
                let shown = shown(name);
                near(shown.0, share.0, all.0) && near(shown.1, share.1, all.1)
            };
            if sum == all && shares.iter().all(fine) { Ok(()) } else { Err(format!("{shares:?} of {all:?}")) }
        });
    }

    /// Waits until this command line has all bytes of the flow `name`.
    pub fn wait_for_all(&mut self, name: &str, command_line: &str) {
        let truth = &self.truth;
        self.monitor.wait_for(|| Figures::from([(command_line.into(), truth.bytes()[name])]));
    }
}

pub fn add(a: Bytes, b: Bytes) -> Bytes {
    (a.0 + b.0, a.1 + b.1)
}

pub fn less(a: Bytes, b: Bytes) -> Bytes {
    (a.0 - b.0, a.1 - b.1)
}
