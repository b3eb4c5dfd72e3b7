//! Counters from the sockets themselves: the TCP payload that tcp_info has, in every network namespace that this user may
//! enter, and the last counters of each socket that the kernel destroys.

use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::advice::Notes;
use super::counters::{CounterSource, FlowSink};
use crate::kernel::flow::Flow;
use crate::kernel::namespace::Namespaces;
use crate::kernel::process::Processes;

/// The sockets of all known network namespaces.
#[derive(Debug)]
pub(super) struct Sockets {
    namespaces: Namespaces,
    processes: Processes,
    ticks_with_lost_events: u64,
    notes: Notes,
}

impl Sockets {
    /// Subscribes to the sockets that are destroyed.
    ///
    /// # Errors
    /// Where sock_diag is refused.
    pub fn open() -> Result<Self> {
        Ok(Self {
            namespaces: Namespaces::with_destroy_events(Path::new("/proc"))?,
            processes: Processes::new("/proc"),
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
        for namespace in self.namespaces.iter_mut() {
            let zone = namespace.id;
            let dumped = namespace.diag.dump_flows(|flow| into.row(&Flow { zone, ..*flow }));
            // Another namespace may end while it is read.
            if zone == 0 {
                dumped.context("cannot read the kernel's sockets (sock_diag)")?;
            }
            lost |= namespace.diag.destroyed(|flow| ended.push(Flow { zone, ..*flow })) == Err(Errno::ENOBUFS);
        }
        ended.iter().for_each(|flow| into.ended(flow));
        if lost {
            self.ticks_with_lost_events += 1;
            self.notes.once("lost", || {
                "more sockets end at once than can be read: the last bytes of some are missing".into()
            });
        }
        Ok(())
    }

    fn notes(&mut self) -> Vec<String> {
        self.notes.take()
    }

    fn scan_namespaces(&mut self) {
        self.namespaces.scan(&self.processes);
    }

    fn ticks_with_lost_events(&self) -> u64 {
        self.ticks_with_lost_events
    }
}
