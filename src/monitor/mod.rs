//! Traffic per process: the kernel's counters, joined with the owners of the connections.
//!
//! ```text
//! CounterSource::read ──▶ flows: tuples and bytes ──▶ ledger
//!                                                       │ ends without a known owner
//!                                        TickLookup ◀───┤
//!                                             └────────▶│ processes
//!                                                       ▼
//!                                     bytes per subject: Vec<Reading>
//! ```
//! A tick is one call of [`Monitor::read`].
//!
//! Where to read on: [`counters`] has the interface of a source and the choice between the two, `conntrack` and
//! `sockets`; [`advice`] has the messages to the user.

pub mod advice;
mod conntrack;
pub mod counters;
mod packets;
mod sockets;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::attribution::per_tick::TickLookup;
use crate::attribution::process_cache::KnownProcess;
use crate::attribution::{Attribution, ProcessLookup};
use crate::kernel::bpf::packet_counters::{ClosedSocket, RemoteEndBytes, SocketBytes};
use crate::kernel::flow::{Counters, Flow, Tuple};
use crate::kernel::process::raise_descriptor_limit;
use crate::kernel::process_events::ProcessEvent;
use crate::ledger::{AttributingTick, EndRef, Keep, Ledger, OpenTick, Selection};
use crate::traffic::detail::VisitDetail;
use crate::traffic::source::{Facts, Reading, Source};
use advice::Notes;
pub use counters::CountersFrom;
use counters::{CounterSource, FlowSink};

/// A flow without a known address causes a scan for network namespaces, but not sooner than this after the last scan: a
/// scan costs a readlink(2) per process.
const SCAN_ON_DEMAND: Duration = Duration::from_secs(2);
/// The time after which namespaces are scanned in any case: to close our sockets in those that have ended, and because
/// a process may have moved to a new one.
const SCAN_ANYWAY: Duration = Duration::from_secs(10);

/// Every this many ticks the monitor looks whether another source counts by now, or the present one has stopped.
const REOPEN_EVERY: u32 = 5;

/// What to monitor.
#[derive(Debug, Default)]
pub struct MonitorSettings {
    /// Which traffic counts: all that any of these selects; none if there is no selection.
    pub selections: Vec<Selection>,
    /// Whether connections that are older than the monitor count from their own beginning.
    pub lookback: bool,
    /// Where the counters come from.
    pub counters_from: CountersFrom,
    /// What is kept beside the bytes of those that run.
    pub keep: Keep,
}

/// A source of readings: counts per process.
#[derive(Debug)]
pub struct Monitor {
    counters: Box<dyn CounterSource>,
    lookup: TickLookup,
    ledger: Ledger,
    notes: Notes,
    /// What the sources are chosen by; `None` where there is nothing to choose.
    wanted: Option<CountersFrom>,
    /// The number of ticks so far.
    ticks: u32,
}

impl Monitor {
    /// A monitor of this host.
    ///
    /// # Errors
    /// Where the counters that [`MonitorSettings::counters_from`] asks for cannot be read.
    pub fn of_this_host(settings: MonitorSettings) -> Result<Self> {
        let mut notes = Notes::default();
        // If that is refused, what runs out of descriptors later says so.
        let _ = raise_descriptor_limit();
        let counters = counters::open(settings.counters_from, settings.keep.remotes, &mut notes)?;
        let lookup = TickLookup::of_this_host(counters.tcp_owners());
        let wanted = Some(settings.counters_from);
        Ok(Self { wanted, ..Self::new(counters, lookup, settings, notes) })
    }

    /// A monitor of the files below `proc_root`, with the conntrack table in `net/nf_conntrack`.
    pub fn from_files(proc_root: &Path, settings: MonitorSettings) -> Self {
        Self::new(counters::from_file(proc_root), TickLookup::from_files(proc_root), settings, Notes::default())
    }

    fn new(counters: Box<dyn CounterSource>, lookup: TickLookup, settings: MonitorSettings, notes: Notes) -> Self {
        let mut ledger = Ledger::keeping(settings.keep, settings.selections, settings.lookback, Instant::now());
        ledger.set_own_addresses(lookup.own_addresses());
        Self { counters, lookup, ledger, notes, wanted: None, ticks: 0 }
    }

    /// Whether another source of counters may take the place of the present one, or this one runs conntrack(8).
    pub fn may_open_sources(&self) -> bool {
        !self.counters.stays()
    }

    /// From now on, counts what any of these selects.
    pub fn select(&mut self, selections: Vec<Selection>) {
        self.ledger.select(selections);
    }
}

impl Source for Monitor {
    fn read(&mut self, now: Instant) -> Result<Vec<Reading>> {
        self.ticks += 1;
        if self.ticks.is_multiple_of(REOPEN_EVERY)
            && let Some(wanted) = self.wanted
            && let Some(counters) = counters::reopen(wanted, &mut *self.counters, &mut self.notes)
        {
            self.lookup = TickLookup::of_this_host(counters.tcp_owners());
            self.counters = counters;
            self.ledger.restart();
        }
        self.lookup.begin_tick();
        let mut tick = self.ledger.open(now);
        self.counters.read(&mut TickSink { tick: &mut tick, lookup: &mut self.lookup })?;
        let mut search =
            OwnerSearch { tick: tick.attribute(), lookup: &mut self.lookup, counters: &mut *self.counters };
        search.find_owners(now);
        search.tick.close(&mut self.lookup);
        if self.lookup.some_unreadable() {
            self.notes.once("not permitted", || advice::ONLY_OWN_PROCESSES.to_owned());
        }
        if self.lookup.has_been_out_of_descriptors() {
            self.notes.once("descriptors", || advice::OUT_OF_DESCRIPTORS.to_owned());
        }
        if let Some(&pid) = self.lookup.take_given_up().first() {
            self.notes.once("given up", || advice::on_given_up(pid));
        }
        let left_out = self.lookup.namespaces_left_out();
        if left_out > 0 {
            self.notes.once("namespaces", || advice::namespaces_left_out(left_out));
        }
        self.notes.extend(self.counters.notes());
        self.notes.extend(self.ledger.notes());
        Ok(self.ledger.readings())
    }

    fn each_detail(&self, visit: &mut VisitDetail<'_>) {
        self.ledger.each_detail(visit);
    }

    fn unowned(&self) -> Vec<Reading> {
        self.ledger.unowned()
    }

    fn notes(&mut self) -> Vec<String> {
        self.notes.take()
    }

    fn facts(&self) -> Facts {
        Facts { counters: Some(self.counters.name()), ticks_with_lost_events: self.counters.ticks_with_lost_events() }
    }
}

/// Passes on what a source reads: flows to the ledger, started programs to the lookup.
struct TickSink<'a, 'l> {
    tick: &'a mut OpenTick<'l>,
    lookup: &'a mut TickLookup,
}

impl FlowSink for TickSink<'_, '_> {
    fn program_started(&mut self, process: KnownProcess, at: u64) {
        self.lookup.add_program(process, at);
    }

    fn process_event(&mut self, event: ProcessEvent) {
        self.lookup.add_process_event(event);
    }

    fn lost_process_events(&mut self) {
        self.lookup.lost_process_events();
    }

    fn opened(&mut self, flow: &Flow) {
        self.tick.opened(flow);
    }

    fn attributed(&mut self, flow: &Flow, found: [Option<Attribution>; 2]) {
        self.tick.attributed(flow, found);
    }

    fn row(&mut self, flow: &Flow) {
        self.tick.row(flow);
    }

    fn table_continues(&mut self) {
        self.tick.table_continues();
    }

    fn ended(&mut self, flow: &Flow) {
        self.tick.ended(flow, self.lookup);
    }

    fn existing_socket(&mut self, flow: &Flow) {
        self.tick.existing_socket(flow);
    }

    fn closed(&mut self, socket: ClosedSocket) {
        self.tick.closed(socket);
    }

    fn socket(&mut self, socket: &SocketBytes) {
        self.tick.socket(socket, self.lookup);
    }

    fn remote_end(&mut self, end: &RemoteEndBytes) {
        self.tick.remote_end(end);
    }

    fn without_owner(&mut self, bytes: Counters) {
        self.tick.without_owner(bytes);
    }

    fn tuples(&self, most: usize) -> Option<Vec<Tuple>> {
        self.tick.tuples(most)
    }
}

/// The search for owners in one tick.
struct OwnerSearch<'a, 'l> {
    tick: AttributingTick<'l>,
    lookup: &'a mut TickLookup,
    counters: &'a mut dyn CounterSource,
}

impl OwnerSearch<'_, '_> {
    fn find_owners(&mut self, now: Instant) {
        let sockets_of_new = self.lookup.sockets_of_new_processes();
        self.scan_namespaces(now, SCAN_ANYWAY);
        self.lookup.read_ahead(self.tick.moving_processes());
        self.tick.hand_over(&sockets_of_new, self.lookup);
        let due = self.tick.due(self.lookup);
        self.look_up(&due);
        // Their addresses may be those of a container that started after the last scan.
        let unroutable = self.tick.unroutable(&due);
        if !unroutable.is_empty() && self.scan_namespaces(now, SCAN_ON_DEMAND) {
            self.look_up(&unroutable);
        }
    }

    /// Scans the network namespaces, unless the last scan was less than `interval` ago. Returns whether it has scanned.
    fn scan_namespaces(&mut self, now: Instant, interval: Duration) -> bool {
        let scanned = self.lookup.scan_namespaces(now, interval);
        if scanned {
            self.tick.set_own_addresses(self.lookup.own_addresses());
            self.tick.namespace_appeared(&mut |tuple| self.lookup.is_local_address(tuple));
            self.counters.scan_namespaces();
        }
        scanned
    }

    fn look_up(&mut self, ends: &[EndRef]) {
        let likely_owners = self.tick.likely_owners(ends);
        let answers = self.lookup.resolve(ends.iter().map(|&end| self.tick.query(end)), likely_owners);
        for (&end, answer) in ends.iter().zip(answers) {
            self.tick.resolved(end, answer, &mut |pid| self.lookup.identify(pid));
        }
    }
}
