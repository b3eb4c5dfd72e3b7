//! Programs as they start: the kernel's process events connector.
//!
//! A server that starts a program for each connection (inetd, socket activation) hands the connection to a process that
//! may be gone a few milliseconds later, and nobody connects anything meanwhile that would be an event. The kernel tells
//! of each execve(2) to whoever listens in the initial network namespace, so that the program is looked at while it runs.
//! It needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN) in the initial namespaces and CONFIG_PROC_EVENTS; without it the
//! connections of such programs that end within a tick are the server's.
//!
//! ```text
//! cn_msg { idx: u32, val: u32, seq: u32, ack: u32, len: u16, flags: u16 }                       20 bytes
//! proc_event { what: u32, cpu: u32, timestamp_ns: u64, exec { process_pid: u32, process_tgid: u32 } }
//! ```
//! See include/uapi/linux/cn_proc.h and drivers/connector/cn_proc.c.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::kernel::netlink::{Message, Netlink, protocol, u32_at};

/// CN_IDX_PROC and CN_VAL_PROC; the first is the multicast group too.
const PROCESSES: u32 = 1;
/// PROC_CN_MCAST_LISTEN.
const LISTEN: u32 = 1;
/// PROC_EVENT_EXEC.
const EXEC: u32 = 2;
/// The size of struct cn_msg, and where an event has the process id: behind `what`, `cpu`, the time and the thread's id.
const HEADER: usize = 20;
const TO_PROCESS: usize = HEADER + 20;

/// Room for some 10,000 events.
const BUFFER: usize = 4 << 20;

/// A subscription to the programs that start on the host.
#[derive(Debug)]
pub struct ExecEvents {
    socket: Netlink,
}

impl ExecEvents {
    /// Subscribes.
    ///
    /// # Errors
    /// Where this user may not enter the initial network namespace or listen there.
    pub fn subscribe() -> Result<Self> {
        // Of kthreadd, which is in it for good; init may be shielded from root, or in one of its own.
        let initial = File::open("/proc/2/ns/net").context("cannot open the initial network namespace")?;
        // setns(2) moves one thread; this one comes back by ending.
        let entered = std::thread::Builder::new().spawn(move || {
            setns(initial.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the initial network namespace")?;
            Self::here().context("cannot subscribe to process events")
        });
        let thread = entered.context("cannot start a thread")?;
        thread.join().map_err(|_| anyhow!("a thread in a network namespace failed"))?
    }

    fn here() -> nix::Result<Self> {
        let socket = Netlink::open(protocol::CONNECTOR, PROCESSES)?;
        socket.set_receive_buffer(BUFFER);
        // Linux before 6.6 knows all events or none, and passes over a second word.
        for words in [&[LISTEN][..], &[LISTEN, EXEC]] {
            let mut message = Vec::new();
            for number in [PROCESSES, PROCESSES, 0, 0, 4 * words.len() as u32] {
                message.extend(number.to_ne_bytes());
            }
            words.iter().for_each(|word| message.extend(word.to_ne_bytes()));
            socket.send(crate::kernel::netlink::DONE, 0, &message)?;
        }
        Ok(Self { socket })
    }

    /// Calls `visit` with the pid of each process that has started a program since the call before, as the initial pid
    /// namespace has it.
    ///
    /// # Errors
    /// ENOBUFS: some were lost.
    pub fn read(&mut self, mut visit: impl FnMut(u32)) -> nix::Result<()> {
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

/// The process of an exec event.
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
        parse(&Message { kind: crate::kernel::netlink::DONE, flags: 0, sequence: 0, payload })
    }

    #[test]
    fn an_exec_event_tells_the_process_and_others_nothing() {
        assert_eq!(pid(&event(EXEC)), Some(4711));
        // A fork, and the answer to a subscription.
        assert_eq!(pid(&event(1)), None);
        assert_eq!(pid(&event(0)), None);
    }

    #[test]
    fn an_event_that_is_cut_short_is_none() {
        let event = event(EXEC);
        for length in 0..event.len() {
            assert_eq!(pid(&event[..length]), None);
        }
    }
}
