//! The owners of connections: from a tuple to a socket, and from the socket to the process that holds it.
//!
//! ```text
//! Query ──▶ the kernel's record (BPF): tuple → pid ────────────────────────────────┐
//!   └─────▶ sock_diag: tuple → inode ──▶ /proc/PID/fd: inode → pid ────────────────┴─▶ Answer, Identity
//! ```
//! A connection has two ends; the source of its original tuple is one, the source of its reply tuple the other. The
//! owner of an end is the process whose socket is there.
//!
//! Two lookups find owners: `per_event` for one connection as soon as the kernel announces it, in the thread of the
//! `watcher`; [`per_tick`] once a second for all that are left, with one walk over the processes. Each has a `view` of
//! the host: its network namespaces, its processes with a `process_cache`, and the kernel's records. `socket` finds the
//! socket of a tuple.
//!
//! Where to read on: this file has the types of queries and answers; then `per_tick`, the simpler lookup.

mod history;
mod holders;
pub(crate) mod per_event;
pub mod per_tick;
pub(crate) mod process_cache;
mod socket;
mod view;
pub(crate) mod watcher;

use std::sync::Arc;

use crate::kernel::flow::Tuple;
use crate::kernel::process::{Handle, Process, Unreadable};
use crate::traffic::subject::{Reason, Subject};

/// How to find the owner of one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// By the tuple whose source the end is.
    Tuple(Tuple),
    /// By the tuple of a TCP connection that is closed: which process closed it, if it was not the owner.
    Closed(Tuple),
    /// By the inode of its socket.
    Inode(u32),
    /// By the cookie of its socket, which has this tuple.
    Socket {
        /// The number that the kernel gives to no other socket.
        cookie: u64,
        /// The tuple whose source the end is. Its destination is unspecified for a socket that is not connected.
        tuple: Tuple,
        /// Whether the socket is still open, so that the kernel can list it.
        open: bool,
    },
}

/// The owner of one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This process holds the socket.
    Held {
        /// Its process id.
        pid: u32,
        /// Where it holds the socket; `None` if no descriptor was read.
        handle: Option<Handle>,
        /// Whether the socket is this connection's own. If the connection has none, the lookup finds the listener,
        /// which may hand the connection over to another process.
        connected: bool,
    },
    /// This process was the last to have the socket, and has closed it.
    Closed {
        /// Its process id.
        pid: u32,
        /// Whether the process is known and may have inherited the socket from the process that started it.
        inherited: bool,
    },
    /// The address is not on this host.
    Elsewhere,
    /// No process, for this reason.
    Unowned(Reason),
}

/// A process, and the subject that its bytes are credited to. A pid alone does not identify a process: the kernel
/// reuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// When the process started, in clock ticks since boot.
    pub start_time: u64,
    /// The subject that its bytes are credited to.
    pub subject: Arc<Subject>,
    /// Whether it has no command line: a kernel thread, or a process that is exiting.
    pub nameless: bool,
}

impl From<Process> for Identity {
    fn from(process: Process) -> Self {
        let Process { pid, start_time, command_line, nameless, uid, cgroup, executable } = process;
        let (command_line, executable) = (command_line.into(), executable.map(Vec::into_boxed_slice));
        let subject = Subject::Processes { command_line, executable, uid, cgroup, nameless };
        Self { pid, start_time, subject: Arc::new(subject), nameless }
    }
}

impl Identity {
    /// Whether this is the process of the `earlier` identity, and has its sockets. An ordinary user's process that runs as
    /// another user by now has started a program of that user (a set-user-id file, execve(2)), and counts as a new one: the
    /// sockets that it had may be those of its children.
    pub(crate) fn is_same_process(&self, earlier: &Self) -> bool {
        let (uid, before) = (self.subject.uid(), earlier.subject.uid());
        let is_of_another = before.is_some_and(|before| before != 0) && uid.is_some() && uid != before;
        self.start_time == earlier.start_time && !is_of_another
    }

    /// This identity; or the `earlier` one, if it is the same process and has lost its command line since, as an
    /// exiting process does.
    pub(crate) fn or_earlier(self, earlier: Option<&Self>) -> Self {
        match earlier {
            Some(earlier) if self.nameless && self.start_time == earlier.start_time => earlier.clone(),
            _ => self,
        }
    }
}

/// The owner of an end when the connection began: it may be gone by the next tick.
#[derive(Debug, Clone)]
pub struct Attribution {
    /// The process, and how it holds the socket.
    pub answer: Answer,
    /// The identity of the process at that time.
    pub identity: Identity,
}

/// Answers the ledger's questions about processes during a tick.
pub trait ProcessLookup {
    /// The process that runs under `pid`, or did a moment ago; `None` if there is none.
    ///
    /// # Errors
    /// Where that cannot be found out now.
    fn identify(&mut self, pid: u32) -> Result<Option<Identity>, Unreadable>;

    /// The program that ran under `pid` at a time of CLOCK_MONOTONIC in ns, if another one has started there since.
    fn replaced_program(&mut self, pid: u32, at: u64) -> Option<Identity>;

    /// Whether `pid` still has the socket where it was found.
    fn holds(&mut self, pid: u32, handle: Handle) -> bool;

    /// Whether the process that started at `start_time` still runs under `pid` and has any socket open.
    fn has_sockets(&mut self, pid: u32, start_time: u64) -> bool;

    /// The answer for a socket that process `pid` has closed.
    fn closer(&mut self, pid: u32) -> Answer;

    /// The process that had the TCP socket at the source of a tuple last and has closed it, where that is known.
    fn closed_by(&mut self, tuple: &Tuple) -> Option<Answer>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exiting_process_keeps_its_earlier_command_line() {
        let identity = |command_line: &[u8], start_time, nameless| {
            let command_line = command_line.to_vec();
            Identity::from(Process {
                pid: 7,
                start_time,
                command_line,
                nameless,
                uid: None,
                cgroup: None,
                executable: None,
            })
        };
        let earlier = identity(b"curl ", 5, false);
        assert_eq!(identity(b"[curl]", 5, true).or_earlier(Some(&earlier)), earlier);
        // Another process under the same pid, and one that has run another program.
        let other = identity(b"[sh]", 6, true);
        assert_eq!(other.clone().or_earlier(Some(&earlier)), other);
        let exec = identity(b"wget ", 5, false);
        assert_eq!(exec.clone().or_earlier(Some(&earlier)), exec);
    }
}
