//! Counters from the sockets themselves: the TCP payload in struct tcp_info, in every network namespace that this user
//! may enter, and the final counters of each socket that the kernel destroys.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::advice::Notes;
use super::counters::{CounterSource, FlowSink};
use crate::kernel::flow::Flow;
use crate::kernel::namespace::Namespaces;
use crate::kernel::process::Processes;

/// How long one tick reads sockets. The next one goes on with the other namespaces.
const LONGEST_READ: Duration = Duration::from_millis(300);

/// The TCP sockets of all known network namespaces.
#[derive(Debug)]
pub(super) struct Sockets {
    namespaces: Namespaces,
    processes: Processes,
    /// The place among the other namespaces at which the next tick begins.
    begin_at: usize,
    ticks_with_lost_events: u64,
    notes: Notes,
}

impl Sockets {
    /// Subscribes to the kernel's events about destroyed sockets.
    ///
    /// # Errors
    /// Where sock_diag is refused.
    pub fn open() -> Result<Self> {
        Ok(Self {
            namespaces: Namespaces::with_destroy_events(Path::new("/proc"))?,
            processes: Processes::new("/proc"),
            begin_at: 0,
            ticks_with_lost_events: 0,
            notes: Notes::default(),
        })
    }
}

impl CounterSource for Sockets {
    fn name(&self) -> &'static str {
        "sockets"
    }

    fn read(&mut self, into: &mut dyn FlowSink) -> Result<()> {
        let mut ended = Vec::new();
        let mut lost = false;
        let deadline = Instant::now() + LONGEST_READ;
        // Our own first, and then from where the last tick was out of time.
        let others = self.namespaces.others();
        let order = (0..others).map(|at| 1 + (self.begin_at + at) % others.max(1));
        let mut complete = true;
        for (read, at) in std::iter::once(0).chain(order).enumerate() {
            let Some(namespace) = self.namespaces.get_mut(at) else { continue };
            let zone = namespace.id;
            if Instant::now() >= deadline {
                (self.begin_at, complete) = (self.begin_at + read - 1, false);
                break;
            }
            match namespace.diag.dump_flows(deadline, |flow| into.row(&Flow { zone, ..*flow })) {
                Err(Errno::ETIME) => complete = false,
                // A namespace other than our own may end while we read it.
                Err(error) if zone == 0 => {
                    return Err(error).context("cannot read the kernel's sockets (sock_diag)");
                }
                Ok(()) | Err(_) => {}
            }
            lost |= namespace.diag.destroyed(|flow| ended.push(Flow { zone, ..*flow })) == Err(Errno::ENOBUFS);
        }
        ended.iter().for_each(|flow| into.ended(flow));
        if !complete {
            into.table_continues();
            self.notes.once("time", || {
                "there are more sockets and network namespaces than a second can read: some are read later".into()
            });
        }
        if lost {
            self.ticks_with_lost_events += 1;
            self.notes
                .once("lost", || "sockets end faster than they can be read: the last bytes of some are missing".into());
        }
        Ok(())
    }

    fn notes(&mut self) -> Vec<String> {
        self.notes.take()
    }

    fn is_last_resort(&self) -> bool {
        true
    }

    fn scan_namespaces(&mut self) {
        self.namespaces.scan(&self.processes);
    }

    fn ticks_with_lost_events(&self) -> u64 {
        self.ticks_with_lost_events
    }
}
