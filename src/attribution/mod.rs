//! Whose end of a connection this is: from a tuple to a socket, from the socket to the process that holds it.
//!
//! ```text
//! Query ──▶ note of the kernel (BPF): tuple → pid ─────────────────────────────────┐
//!   └─────▶ sock_diag: tuple → inode ──▶ /proc/PID/fd: inode → pid ────────────────┴─▶ Answer, Identity
//! ```
//! This file has the words: what is asked, what is answered, and what is known of a process. Two look-ups answer:
//! `per_event` one connection as soon as the kernel announces it, in the thread of the `watcher`; [`per_tick`] all that is
//! left once a second, with one walk over the processes. Both see the host through a `view`: its network namespaces, its
//! processes with a `process_cache`, and what the kernel noted. `socket` asks for one socket.

pub(crate) mod per_event;
pub mod per_tick;
pub(crate) mod process_cache;
mod socket;
mod view;
pub(crate) mod watcher;

use std::sync::Arc;

use crate::kernel::flow::Tuple;
use crate::kernel::process::{Handle, Process};
use crate::traffic::subject::{Reason, Subject};

/// How to find the owner of one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// By the tuple whose source the end is.
    Tuple(Tuple),
    /// The same, of a TCP connection that is closed: by which process, if another one than its owner closed it.
    Closed(Tuple),
    /// By the inode of its socket.
    Inode(u32),
}

/// Which process is at one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This process holds the socket.
    Held {
        /// Its process id.
        pid: u32,
        /// Where it holds the socket; `None` where no descriptor was looked at.
        handle: Option<Handle>,
        /// Whether the socket is this connection's own. A listener, which is found while there is no other socket, may
        /// hand the connection on to another process.
        connected: bool,
    },
    /// This process had the socket last, and has closed it.
    Closed {
        /// Its process id.
        pid: u32,
        /// Whether the process is known and may have inherited the socket from the process that started it.
        inherited: bool,
    },
    /// The address is not on this host.
    Elsewhere,
    /// No process, for this reason.
    Nobody(Reason),
}

/// A process, and what its bytes are credited to. A pid alone does not identify a process: the kernel reuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// When the process started, in clock ticks since boot.
    pub start_time: u64,
    /// What its bytes are credited to.
    pub subject: Arc<Subject>,
    /// Whether it has no command line: a kernel thread, or a process that is exiting.
    pub nameless: bool,
}

impl From<Process> for Identity {
    fn from(process: Process) -> Self {
        let Process { pid, start_time, command_line, nameless, uid, cgroup } = process;
        let subject =
            Subject::Processes { command_line: command_line.into(), uid, cgroup: cgroup.map(Vec::into_boxed_slice) };
        Self { pid, start_time, subject: Arc::new(subject), nameless }
    }
}

impl Identity {
    /// This identity, or the `earlier` one of the same process where this one has lost its command line: an exiting process
    /// has none, and the earlier one is still true.
    pub(crate) fn or_earlier(self, earlier: Option<&Self>) -> Self {
        match earlier {
            Some(earlier) if self.nameless && self.start_time == earlier.start_time => earlier.clone(),
            _ => self,
        }
    }
}

/// The process at an end as it was when the connection began: by the next tick it may be gone.
#[derive(Debug, Clone)]
pub struct Attribution {
    /// Which process is there, and how it holds the socket.
    pub answer: Answer,
    /// That process at that time.
    pub identity: Identity,
}

/// What the books need to know of processes while a tick lasts.
pub trait ProcessLookup {
    /// The process that runs under `pid`, or did a moment ago; `None` where none does.
    fn identify(&mut self, pid: u32) -> Option<Identity>;

    /// Whether `pid` still has the socket where it was found.
    fn holds(&mut self, pid: u32, handle: Handle) -> bool;

    /// Whether the process that started at `start_time` still runs under `pid` and has any socket open.
    fn has_sockets(&mut self, pid: u32, start_time: u64) -> bool;

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
            Identity::from(Process { pid: 7, start_time, command_line, nameless, uid: None, cgroup: None })
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
