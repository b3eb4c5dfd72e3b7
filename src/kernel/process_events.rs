//! Processes and programs as they start: the kernel's process events, for fork(2) and execve(2).
//!
//! A server that starts a program for each connection (inetd, socket activation) hands the connection to a process that
//! may exit a few milliseconds later, and no connect(2) marks that moment. The process events connector reports each
//! execve(2) to the sockets that subscribe in the initial network namespace, so that we can look at the program while
//! it runs. It needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN) in the initial namespaces and CONFIG_PROC_EVENTS. Without it,
//! the connections of such programs that end within a tick are credited to the server.
//!
//! ```text
//! cn_msg { idx: u32, val: u32, seq: u32, ack: u32, len: u16, flags: u16 }                       20 bytes
//! proc_event { what: u32, cpu: u32, timestamp_ns: u64, exec { process_pid: u32, process_tgid: u32 } }
//!                                                     or fork { parent_pid, parent_tgid, child_pid, child_tgid: u32 }
//! ```
//! See include/uapi/linux/cn_proc.h and drivers/connector/cn_proc.c.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result};

use crate::kernel::inside;
use crate::kernel::netlink::{self, Message, Netlink, protocol, u32_at, u64_at};

/// CN_IDX_PROC and CN_VAL_PROC; the first is the multicast group too.
const PROCESSES: u32 = 1;
/// PROC_CN_MCAST_LISTEN.
const LISTEN: u32 = 1;
/// PROC_EVENT_FORK and PROC_EVENT_EXEC.
const FORK: u32 = 1;
const EXEC: u32 = 2;
/// The size of struct cn_msg.
const HEADER: usize = 20;
/// The offset of the time, which follows `what` and `cpu`.
const TO_TIME: usize = HEADER + 8;
/// The offset of what the kind of event has: EXEC a thread's id and its process id, FORK those of the parent and those of
/// the child.
const TO_IDS: usize = HEADER + 16;

/// Room for some 10,000 events.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What a process has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEvent {
    /// It started a program.
    Exec {
        /// The process id, in the initial pid namespace.
        pid: u32,
        /// When it did, in ns of CLOCK_MONOTONIC.
        at: u64,
    },
    /// It made a child.
    Fork {
        /// The process id of the parent.
        parent: u32,
        /// The process id of the child.
        child: u32,
        /// When it did, in ns of CLOCK_MONOTONIC.
        at: u64,
    },
}

/// A subscription to what the processes of the host do.
#[derive(Debug)]
pub struct ProcessEvents {
    socket: Netlink,
}

impl ProcessEvents {
    /// Subscribes to each process that starts a program.
    ///
    /// # Errors
    /// Where this user may not enter the initial network namespace or subscribe there.
    pub fn of_programs() -> Result<Self> {
        Self::subscribe(EXEC)
    }

    /// Subscribes to each process that starts a program or makes a child.
    ///
    /// # Errors
    /// As for [`of_programs`](Self::of_programs).
    pub fn of_all() -> Result<Self> {
        Self::subscribe(EXEC | FORK)
    }

    fn subscribe(kinds: u32) -> Result<Self> {
        // kthreadd (pid 2) never leaves the initial namespace; init (pid 1) may run in another, or be hidden from root.
        inside::run_in(Path::new("/proc/2/ns/net"), move || {
            Self::subscribe_here(kinds).context("cannot subscribe to process events")
        })
    }

    /// Subscribes in the network namespace of the calling thread.
    fn subscribe_here(kinds: u32) -> nix::Result<Self> {
        let socket = Netlink::open(protocol::CONNECTOR, PROCESSES)?;
        socket.set_receive_buffer(RECEIVE_BUFFER);
        // The second word asks for some kinds of events. Linux before 6.6 sends all kinds and ignores a message of two
        // words.
        for words in [&[LISTEN][..], &[LISTEN, kinds]] {
            let mut message = Vec::new();
            for number in [PROCESSES, PROCESSES, 0, 0, 4 * words.len() as u32] {
                message.extend(number.to_ne_bytes());
            }
            words.iter().for_each(|word| message.extend(word.to_ne_bytes()));
            socket.send(netlink::DONE, 0, &message)?;
        }
        Ok(Self { socket })
    }

    /// Calls `visit` with each event since the last call, `most` of them at most; on Linux before 6.6 also with those that
    /// were not subscribed to. Returns how many it read, of all kinds.
    ///
    /// # Errors
    /// ENOBUFS: the kernel dropped events, since the socket's buffer was full. The next call goes on reading.
    pub(crate) fn read(&mut self, most: usize, mut visit: impl FnMut(ProcessEvent)) -> nix::Result<usize> {
        self.socket.events(most, |message| {
            if let Some(event) = parse(&message) {
                visit(event);
            }
        })
    }
}

impl AsFd for ProcessEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The event in a message; `None` for any other message, and for a new thread.
pub(crate) fn parse(message: &Message<'_>) -> Option<ProcessEvent> {
    let payload = message.payload;
    if u32_at(payload, 0)? != PROCESSES {
        return None;
    }
    let id = |n: usize| u32_at(payload, TO_IDS + 4 * n);
    let at = u64_at(payload, TO_TIME)?;
    match u32_at(payload, HEADER)? {
        EXEC => Some(ProcessEvent::Exec { pid: id(1)?, at }),
        FORK if id(2)? == id(3)? => Some(ProcessEvent::Fork { parent: id(1)?, child: id(3)?, at }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header, with the length as the lower half of its last word; what, cpu and time; the ids.
    fn event(what: u32, ids: &[u32]) -> Vec<u8> {
        let words = [PROCESSES, PROCESSES, 7, 0, 40, what, 1];
        let time = 5_000_000_007_u64.to_ne_bytes();
        let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        [bytes(&words), time.to_vec(), bytes(ids)].concat()
    }

    fn parsed(payload: &[u8]) -> Option<ProcessEvent> {
        parse(&Message { kind: netlink::DONE, flags: 0, sequence: 0, payload })
    }

    #[test]
    fn an_exec_has_the_process_and_the_time() {
        let expected = ProcessEvent::Exec { pid: 4711, at: 5_000_000_007 };
        assert_eq!(parsed(&event(EXEC, &[4712, 4711])), Some(expected));
    }

    #[test]
    fn a_fork_has_parent_and_child_and_a_new_thread_is_none() {
        let expected = ProcessEvent::Fork { parent: 4711, child: 4800, at: 5_000_000_007 };
        assert_eq!(parsed(&event(FORK, &[4712, 4711, 4800, 4800])), Some(expected));
        assert_eq!(parsed(&event(FORK, &[4712, 4711, 4801, 4711])), None);
        // The answer to a subscription.
        assert_eq!(parsed(&event(0, &[0, 0, 0, 0])), None);
    }

    #[test]
    fn a_truncated_event_is_ignored() {
        for event in [event(EXEC, &[4712, 4711]), event(FORK, &[4712, 4711, 4800, 4800])] {
            for length in 0..event.len() {
                assert_eq!(parsed(&event[..length]), None);
            }
        }
    }
}
