//! Whose end of a connection this is: from a tuple to a socket, from the socket to the process that holds it.
//!
//! This file has the words: what is asked, what is answered, and what a process must be able to say of itself.
//! [`per_event`] answers one question at once, [`per_tick`] all that is left with one walk over the processes.

pub mod per_event;
pub mod per_tick;
pub mod process_cache;
mod socket;
pub mod watcher;

use std::fmt;

use crate::kernel::flow::Tuple;
use crate::kernel::process::{Handle, Identity};

/// Why bytes are nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Neither end is on this host.
    Forwarded,
    /// No socket has the tuple any more: its process was gone before it could be found.
    Gone,
    /// The kernel has a socket, but no process holds it.
    NoProcess,
    /// The socket's process is another user's, whose descriptors this user may not see.
    NotPermitted,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forwarded => "no local socket: forwarded",
            Self::Gone => "process gone before the look-up",
            Self::NoProcess => "socket without process",
            Self::NotPermitted => "no permission to see the process",
        })
    }
}

/// What to find an owner by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The tuple whose source the end is.
    Tuple(Tuple),
    /// The same, of a TCP connection that is closed, by a process that is perhaps another than the one that is known.
    Closer(Tuple),
    /// The inode of its socket.
    Inode(u32),
}

/// Who is at one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This process holds the socket.
    Held {
        /// Its process id.
        pid: u32,
        /// Where it holds it; `None` where that was not looked at.
        handle: Option<Handle>,
        /// Whether the socket is this connection's own. A listener's, which answers while there is no other, may
        /// hand the connection on to another process.
        connected: bool,
    },
    /// This process had the socket last, and has closed it.
    Closed {
        /// Its process id.
        pid: u32,
        /// Whether it is known what that is, and that it may have been given a connection of another process.
        inherited: bool,
    },
    /// The address is not on this host.
    Elsewhere,
    /// Nobody, for this reason.
    Nobody(Reason),
}

/// What processes are like at the moment.
pub trait Processes {
    /// What runs under `pid`, or did a moment ago; `None` where nothing does.
    fn identify(&mut self, pid: u32) -> Option<Identity>;

    /// Whether `pid` still has the socket where it was found.
    fn holds(&mut self, pid: u32, handle: Handle) -> bool;

    /// Whether the process that started at `start_time` still runs under `pid` and has any socket open.
    fn has_sockets(&mut self, pid: u32, start_time: u64) -> bool;

    /// Who had the TCP socket at the source of a tuple last and has closed it, where that is known.
    fn closer(&mut self, tuple: &Tuple) -> Option<Answer>;
}

/// What was found at an end at the moment its flow began.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// Which process is there, and how it has the socket.
    pub answer: Answer,
    /// That process as it was then: by the next tick it may be gone.
    pub identity: Identity,
}
