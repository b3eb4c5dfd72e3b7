//! The books: how much each flow has carried, who owns its ends, and what each subject has moved.
//!
//! ```text
//! Ledger::open ──▶ OpenTick          flows enter: opened, attributed, row, ended
//!                     │ attribute
//!                     ▼
//!                  AttributingTick   queries go out, answers come in, sockets change hands
//!                     │ close
//!                     ▼
//!                  Ledger            what moved is credited to the owners' accounts, what is over is forgotten
//! ```
//! Each step of a tick is a type that the next one consumes, so the steps cannot be taken in another order. Nothing here
//! reads the kernel or a clock.
//!
//! Read on in `entering` and `attributing` for the two steps, in `entry` for one flow, in `registry` for the processes
//! that own flows, in `accounts` for what subjects have moved, in [`selection`] for what counts at all.

mod accounts;
mod attributing;
mod entering;
mod entry;
mod registry;
pub mod selection;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;

use accounts::Accounts;
pub use attributing::{AttributingTick, EndRef};
pub use entering::OpenTick;
use entry::{End, FlowEntry, FlowKey, Side};
use registry::Registry;
pub use selection::Selection;

use crate::attribution::{Answer, Attribution, ProcessLookup, Query};
use crate::kernel::flow::Counters;
use crate::python2::pattern::Pattern;
use crate::traffic::source::Reading;
use crate::traffic::subject::{Reason, Subject};

/// A flow whose owners are to be looked up, and when.
#[derive(Debug, Clone, Copy)]
struct PendingQuery {
    key: FlowKey,
    /// The tick from which on it is due.
    due: u32,
    tries: u8,
}

/// The books of one monitor.
#[derive(Debug)]
pub struct Ledger {
    /// Whether the bytes that flows carried before the first tick count, too.
    lookback: bool,
    /// The number of the tick, from 1.
    tick: u32,
    now: Instant,
    flows: IndexMap<FlowKey, FlowEntry>,
    /// The index of the row before: rows mostly come in the order in which they came first.
    row_before: usize,
    /// The number of flows that were met in this tick.
    met: usize,
    /// Whether any flow is over.
    any_over: bool,
    /// The number of flows that were replaced by another with the same key.
    replaced: u32,
    /// The flows whose counters changed in this tick, by their index, and the new counters.
    moved: Vec<(u32, Counters)>,
    pending: Vec<PendingQuery>,
    processes: Registry,
    accounts: Accounts,
    /// What flows carried that are over and had no owner.
    unowned: BTreeMap<Reason, Counters>,
}

impl Ledger {
    /// Books that count what any of `selections` selects, each byte once. With `lookback` a flow that is older than the
    /// first tick counts from its own beginning, otherwise from then on.
    pub fn new(selections: Vec<Selection>, lookback: bool, now: Instant) -> Self {
        Self {
            lookback,
            tick: 0,
            now,
            flows: IndexMap::new(),
            row_before: 0,
            met: 0,
            any_over: false,
            replaced: 0,
            moved: Vec::new(),
            pending: Vec::new(),
            processes: Registry::default(),
            accounts: Accounts::new(selections),
            unowned: BTreeMap::new(),
        }
    }

    /// Counts what any of these selects from now on.
    pub fn select(&mut self, selections: Vec<Selection>) {
        self.accounts.select(selections);
    }

    /// Begins the next tick, which is at `now`.
    pub fn open(&mut self, now: Instant) -> OpenTick<'_> {
        self.tick += 1;
        self.now = now;
        self.met = 0;
        self.processes.unmark();
        OpenTick::new(self)
    }

    /// The patterns that exceeded their limit on some command line.
    pub fn patterns_over_limit(&self) -> impl Iterator<Item = &Pattern> {
        self.accounts.patterns_over_limit()
    }

    /// What each selected subject has moved.
    pub fn readings(&self) -> Vec<Reading> {
        self.accounts.readings()
    }

    /// What has no owner, by the reason: of the flows that are over and of those that go on.
    pub fn unowned(&self) -> Vec<Reading> {
        let mut unowned = self.unowned.clone();
        for entry in self.flows.values() {
            add_unowned(&mut unowned, entry);
        }
        let reading = |(reason, counters)| {
            let (bytes_in, bytes_out) = Side::Original.in_and_out(counters);
            Reading { subject: Arc::new(Subject::Unowned(reason)), bytes_in, bytes_out }
        };
        unowned.into_iter().map(reading).collect()
    }

    /// Schedules a look-up of the flow's owners for this tick.
    fn query(&mut self, key: FlowKey) {
        self.pending.push(PendingQuery { key, due: self.tick, tries: 0 });
    }

    /// Credits what a flow moved to the processes at its ends.
    fn credit_owners(&mut self, flow: u32, moved: Counters) {
        let entry = &self.flows[flow as usize];
        for side in Side::BOTH {
            if let End::Owned { process, .. } = entry.end(side)
                && let Some(process) = self.processes.get(process)
            {
                self.accounts.credit(&process.identity, side.in_and_out(moved), entry.local, self.now);
            }
        }
    }
}

/// Adds what a flow carried, if it has no owner.
fn add_unowned(unowned: &mut BTreeMap<Reason, Counters>, entry: &FlowEntry) {
    let carried = entry.carried();
    if !entry.is_owned() && carried != Counters::default() {
        let sum = unowned.entry(entry.reason()).or_default();
        sum.original += carried.original;
        sum.reply += carried.reply;
    }
}
