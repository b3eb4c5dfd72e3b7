//! Counters from the connection tracking table, and its events between two readings.
//!
//! If events announce every flow and the flows are few, this source requests them one by one: a dump of the whole table
//! walks all of its hash chains, most of which are empty.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::advice::{self, Notes};
use super::counters::{CounterSource, FlowSink};
use crate::attribution::watcher::{Observation, Watcher};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::conntrack::probe::{Probe, Tracking, probe};
use crate::kernel::conntrack::{Malformed, Table};
use crate::kernel::flow::{Flow, Protocol, Tuple};

/// The whole table is read at least once in this many ticks, in case an event was lost without notice.
const WHOLE_TABLE_EVERY: u32 = 10;
/// Scanning this many hash chains costs as much as requesting one flow: 30 ns beside 4 µs.
const CHAINS_PER_FLOW: usize = 128;

/// The protocols whose sockets can be found by a tuple: TCP, UDP and SCTP.
const HAVE_OWNERS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Other(132)];

/// How long a tick reads the table: some 150,000 flows. The next one goes on with the rest.
const LONGEST_DUMP: Duration = Duration::from_millis(300);

/// Tuples of our own probes that are remembered: two for each probe.
const PROBES_KEPT: usize = 24;

/// The table, and the thread that follows its events where the kernel allows it.
#[derive(Debug)]
pub(super) struct Conntrack {
    table: Table,
    /// The same table, for probes.
    probed_table: Table,
    /// What the last probe found, and whether nothing else than conntrack is to be used.
    probe: Probe,
    required: bool,
    watcher: Option<Watcher>,
    /// The flows of the last [probes](probe); they are our own and do not count.
    probed: Vec<Tuple>,
    /// Up to this number, flows are requested one by one.
    max_requested: usize,
    /// Whether the last tick read a part of the table, and this one goes on.
    unfinished: bool,
    /// The number of ticks since the whole table was read.
    ticks_without_dump: u32,
    ticks_with_lost_events: u64,
    notes: Notes,
}

impl Conntrack {
    /// Opens the table of this host, and finds out whether it counts.
    ///
    /// # Errors
    /// Where this user may not read it; the message has the error of each way to read it.
    pub fn open(required: bool) -> Result<Self> {
        let (table, mut probed_table) = (Table::open(Path::new("/proc"))?, Table::open(Path::new("/proc"))?);
        let probe = probe(&mut probed_table)?;
        let probed = probe.sent.clone();
        Ok(Self { probed, required, max_requested: max_requested(), ..Self::new(table, probed_table, probe) })
    }

    /// The table in a file, as text, without events.
    pub fn from_file(path: PathBuf) -> Self {
        Self::new(
            Table::File(path.clone()),
            Table::File(path),
            Probe { ipv4: Tracking::Counts, ipv6: Tracking::Counts, sent: Vec::new() },
        )
    }

    fn new(table: Table, probed_table: Table, probe: Probe) -> Self {
        Self {
            table,
            probed_table,
            probe,
            required: false,
            watcher: None,
            probed: Vec::new(),
            max_requested: 0,
            unfinished: false,
            ticks_without_dump: WHOLE_TABLE_EVERY,
            ticks_with_lost_events: 0,
            notes: Notes::default(),
        }
    }

    /// What the last probe found.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// Follows the events from now on. If this user may not subscribe, it has the table alone, and finds fewer owners.
    pub fn watch(self) -> Self {
        Self { watcher: Watcher::start().ok(), ..self }
    }

    /// Requests the known flows, or dumps the whole table. `lost`: events were lost, so some flows may be unknown.
    fn read_table(&mut self, lost: bool, into: &mut dyn FlowSink) -> Result<Malformed> {
        let all_known =
            self.watcher.is_some() && !lost && !self.unfinished && self.ticks_without_dump < WHOLE_TABLE_EVERY;
        let requested = if all_known { into.tuples(self.max_requested) } else { None };
        self.ticks_without_dump = if requested.is_some() { self.ticks_without_dump + 1 } else { 1 };
        let (table, probed) = (&mut self.table, &self.probed);
        let mut others = false;
        let mut enter = |flow: &Flow| {
            if !probed.contains(&flow.original) {
                others |= !HAVE_OWNERS.contains(&flow.original.protocol);
                into.row(flow);
            }
        };
        if let Some(tuples) = requested {
            return table.get(&tuples, &mut enter);
        }
        let mut dump = || table.dump(Instant::now() + LONGEST_DUMP, &mut enter);
        let dump = match &self.watcher {
            Some(watcher) => watcher.run_apart(dump)?,
            None => dump()?,
        };
        if others {
            self.notes.once("protocols", || advice::CONNTRACK_HAS_NO_SOCKET.to_owned());
        }
        self.unfinished = !dump.complete;
        if self.unfinished {
            into.table_continues();
        }
        Ok(dump.malformed)
    }

    /// Enters the watcher's observations since the last call.
    fn enter_observations(&self, into: &mut dyn FlowSink) {
        for observation in self.watcher.as_ref().map(Watcher::take).unwrap_or_default() {
            match observation {
                Observation::ProgramStarted(process, at) => into.program_started(*process, at),
                Observation::Opened(flow) if !self.probed.contains(&flow.original) => into.opened(&flow),
                Observation::Attributed(flow, found) => into.attributed(&flow, found),
                Observation::Ended(flow) if !self.probed.contains(&flow.original) => into.ended(&flow),
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
        if let Some(watcher) = &mut self.watcher {
            self.notes.extend(watcher.begin_tick().map(advice::on_restart));
        }
        self.enter_observations(into);
        let lost = self.watcher.as_ref().is_some_and(Watcher::has_lost);
        let malformed = self.read_table(lost, into)?;
        // Again, for the owners of connections that began during the dump and that it may already have shown.
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
                "connections come and go faster than they can be followed: some short ones are missing".into()
            });
        }
        Ok(())
    }

    fn notes(&mut self) -> Vec<String> {
        self.notes.take()
    }

    fn still_counts(&mut self) -> bool {
        self.max_requested = max_requested();
        let Ok(probe) = probe(&mut self.probed_table) else { return true };
        self.probed.extend(&probe.sent);
        // Those of the last minute; the kernel forgets a datagram after half of that.
        self.probed.drain(..self.probed.len().saturating_sub(PROBES_KEPT));
        if (probe.ipv4, probe.ipv6) != (self.probe.ipv4, self.probe.ipv6) {
            if self.required || probe.counts() {
                self.notes.extend(advice::on_change(&probe, self.required));
            }
            self.probe = probe;
        }
        self.probe.counts() || self.required
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

/// The number of flows that cost as much to request one by one as a dump of the table; 0 if there are no events.
fn max_requested() -> usize {
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
