//! Counters from the connection tracking table, and what its events tell between two readings of it.
//!
//! Where events tell of every flow and the flows are few, they are requested one by one: a dump of the whole table walks
//! all of its hash chains, most of which are empty.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use super::advice::Notes;
use super::counters::{CounterSource, FlowSink};
use crate::attribution::watcher::{Observation, Watcher};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::conntrack::probe::{Tracking, probe};
use crate::kernel::conntrack::{Malformed, Table};
use crate::kernel::flow::{Flow, Tuple};

/// At least every this many ticks the whole table is read, in case an event was lost without notice.
const WHOLE_TABLE_EVERY: u32 = 10;
/// Scanning this many hash chains costs as much as requesting one flow: 30 ns beside 4 µs.
const CHAINS_PER_FLOW: usize = 128;

/// The table, and the thread that follows its events where the kernel allows it.
#[derive(Debug)]
pub(super) struct Conntrack {
    table: Table,
    tracking: Tracking,
    watcher: Option<Watcher>,
    /// The flow by which the table was probed; it is our own and does not count.
    probed: Option<Tuple>,
    /// At or below this number, flows are requested one by one.
    few: usize,
    /// The number of ticks since the whole table was read.
    ticks_without_dump: u32,
    ticks_with_lost_events: u64,
    notes: Notes,
}

impl Conntrack {
    /// Opens the table of this host, and finds out whether it counts.
    ///
    /// # Errors
    /// Where this user may not read it, with the answer that each way to read it gave.
    pub fn open() -> Result<(Self, Tracking)> {
        let mut table = Table::open(Path::new("/proc"))?;
        let (tracking, probed) = probe(&mut table)?;
        Ok((Self { probed, few: few_flows(), ..Self::new(table, tracking) }, tracking))
    }

    /// The table in a file, as text, without events.
    pub fn from_file(path: PathBuf) -> Self {
        Self::new(Table::File(path), Tracking::Counts)
    }

    fn new(table: Table, tracking: Tracking) -> Self {
        Self {
            table,
            tracking,
            watcher: None,
            probed: None,
            few: 0,
            ticks_without_dump: WHOLE_TABLE_EVERY,
            ticks_with_lost_events: 0,
            notes: Notes::default(),
        }
    }

    /// Whether the kernel tracked and counted when the table was opened.
    pub fn counts(&self) -> bool {
        self.tracking == Tracking::Counts
    }

    /// Follows the events from now on. A user who may not subscribe has the table alone, and owners are found less often.
    pub fn watch(self) -> Self {
        Self { watcher: Watcher::start().ok(), ..self }
    }

    /// Reads the flows that are known, or the whole table.
    fn read_table(&mut self, lost: bool, into: &mut dyn FlowSink) -> Result<Malformed> {
        let complete = self.watcher.is_some() && !lost && self.ticks_without_dump < WHOLE_TABLE_EVERY;
        let few = if complete { into.tuples(self.few) } else { None };
        self.ticks_without_dump = if few.is_some() { self.ticks_without_dump + 1 } else { 1 };
        let (table, probed) = (&mut self.table, self.probed);
        let mut enter = |flow: &Flow| {
            if Some(flow.original) != probed {
                into.row(flow);
            }
        };
        match (&self.watcher, few) {
            (_, Some(tuples)) => table.get(&tuples, &mut enter),
            (Some(watcher), None) => watcher.on_another_cpu(|| table.dump(&mut enter)),
            (None, None) => table.dump(&mut enter),
        }
    }

    /// Enters what the watcher has observed since the call before.
    fn enter_observations(&self, into: &mut dyn FlowSink) {
        for observation in self.watcher.as_ref().map(Watcher::take).unwrap_or_default() {
            match observation {
                Observation::ProgramStarted(process) => into.program_started(*process),
                Observation::Opened(flow) if Some(flow.original) != self.probed => into.opened(&flow),
                Observation::Attributed(flow, found) => into.attributed(&flow, found),
                Observation::Ended(flow) if Some(flow.original) != self.probed => into.ended(&flow),
                Observation::Opened(_) | Observation::Ended(_) => {}
            }
        }
    }
}

impl CounterSource for Conntrack {
    fn name(&self) -> &'static str {
        "conntrack"
    }

    fn read(&mut self, into: &mut dyn FlowSink) -> Result<()> {
        if let Some(watcher) = &self.watcher {
            watcher.begin_tick();
        }
        self.enter_observations(into);
        let lost = self.watcher.as_ref().is_some_and(Watcher::has_lost);
        let malformed = self.read_table(lost, into)?;
        // Once more, for the owners of the connections that began meanwhile: the table has them already.
        self.enter_observations(into);
        if malformed.lines > 0 {
            self.notes.once("malformed", || {
                let Malformed { lines, first } = malformed;
                format!("{lines} lines of the conntrack table cannot be read and are left out, the first: {first}")
            });
        }
        if lost {
            self.ticks_with_lost_events += 1;
            self.notes.once("lost", || {
                "more connections come and go than can be followed: short ones are missing in part".into()
            });
        }
        Ok(())
    }

    fn notes(&mut self) -> Vec<String> {
        self.notes.take()
    }

    fn scan_namespaces(&mut self) {
        if let Some(watcher) = &self.watcher {
            watcher.scan_namespaces();
        }
    }

    fn ticks_with_lost_events(&self) -> u64 {
        self.ticks_with_lost_events
    }

    fn tcp_owners(&self) -> Option<Arc<TcpOwners>> {
        self.watcher.as_ref().and_then(Watcher::tcp_owners)
    }
}

/// The number of flows that cost as much to request one by one as a dump of the table; 0 where there are no events.
fn few_flows() -> usize {
    let setting = |name: &str| -> Option<usize> {
        let text = std::fs::read_to_string(Path::new("/proc/sys/net/netfilter").join(name)).ok()?;
        text.trim().parse().ok()
    };
    // A kernel without this file sends events.
    if setting("nf_conntrack_events") == Some(0) {
        return 0;
    }
    setting("nf_conntrack_buckets").unwrap_or_default() / CHAINS_PER_FLOW
}
