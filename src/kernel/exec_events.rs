//! Programs as they start: the kernel's process events, for execve(2) alone.
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
//! ```
//! See include/uapi/linux/cn_proc.h and drivers/connector/cn_proc.c.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result};

use crate::kernel::inside;
use crate::kernel::netlink::{self, Message, Netlink, protocol, u32_at};

/// CN_IDX_PROC and CN_VAL_PROC; the first is the multicast group too.
const PROCESSES: u32 = 1;
/// PROC_CN_MCAST_LISTEN.
const LISTEN: u32 = 1;
/// PROC_EVENT_EXEC.
const EXEC: u32 = 2;
/// The size of struct cn_msg.
const HEADER: usize = 20;
/// The offset of the process id, which follows `what`, `cpu`, the time and the thread's id.
const TO_PROCESS: usize = HEADER + 20;

/// Room for some 10,000 events.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A subscription to the programs that start on the host.
#[derive(Debug)]
pub struct ExecEvents {
    socket: Netlink,
}

impl ExecEvents {
    /// Subscribes.
    ///
    /// # Errors
    /// Where this user may not enter the initial network namespace or subscribe there.
    pub fn subscribe() -> Result<Self> {
        // kthreadd (pid 2) never leaves the initial namespace; init (pid 1) may run in another, or be hidden from root.
        inside::run_in(Path::new("/proc/2/ns/net"), || {
            Self::subscribe_here().context("cannot subscribe to process events")
        })
    }

    /// Subscribes in the network namespace of the calling thread.
    fn subscribe_here() -> nix::Result<Self> {
        let socket = Netlink::open(protocol::CONNECTOR, PROCESSES)?;
        socket.set_receive_buffer(RECEIVE_BUFFER);
        // The second word asks for one kind of event. Linux before 6.6 sends all kinds and ignores a message of two
        // words.
        for words in [&[LISTEN][..], &[LISTEN, EXEC]] {
            let mut message = Vec::new();
            for number in [PROCESSES, PROCESSES, 0, 0, 4 * words.len() as u32] {
                message.extend(number.to_ne_bytes());
            }
            words.iter().for_each(|word| message.extend(word.to_ne_bytes()));
            socket.send(netlink::DONE, 0, &message)?;
        }
        Ok(Self { socket })
    }

    /// Calls `visit` with the pid of each process that called execve(2) since the last call, in the initial pid
    /// namespace.
    ///
    /// # Errors
    /// ENOBUFS: the kernel dropped events, since the socket's buffer was full.
    pub(crate) fn read(&mut self, mut visit: impl FnMut(u32)) -> nix::Result<()> {
        self.socket.events(usize::MAX, |message| {
            if let Some(pid) = parse(&message) {
                visit(pid);
            }
        })?;
        Ok(())
    }
}

impl AsFd for ExecEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The process id of an exec event; `None` for any other message.
fn parse(message: &Message<'_>) -> Option<u32> {
    let is_exec = u32_at(message.payload, 0)? == PROCESSES && u32_at(message.payload, HEADER)? == EXEC;
    if is_exec { u32_at(message.payload, TO_PROCESS) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: u32) -> Vec<u8> {
        // The header, with the length as the lower half of its last word; what, cpu and time; thread and process.
        let words = [PROCESSES, PROCESSES, 7, 0, 40, what, 1, 0, 0, 4712, 4711];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn pid(payload: &[u8]) -> Option<u32> {
        parse(&Message { kind: netlink::DONE, flags: 0, sequence: 0, payload })
    }

    #[test]
    fn an_exec_event_has_a_process_and_other_messages_have_none() {
        assert_eq!(pid(&event(EXEC)), Some(4711));
        // A fork, and the kernel's reply to a subscription.
        assert_eq!(pid(&event(1)), None);
        assert_eq!(pid(&event(0)), None);
    }

    #[test]
    fn a_truncated_event_has_no_process() {
        let event = event(EXEC);
        for length in 0..event.len() {
            assert_eq!(pid(&event[..length]), None);
        }
    }
}
