//! The ledger: the bytes of each flow, the processes that own its two ends, and the bytes of each subject.
//!
//! ```text
//! Ledger::open ──▶ OpenTick          takes flows: opened, attributed, row, ended
//!                     │ attribute
//!                     ▼
//!                  AttributingTick   gives out queries, takes answers, hands flows over to new processes
//!                     │ close
//!                     ▼
//!                  Ledger            has credited the owners' accounts, and dropped the flows that are over
//! ```
//! Each step of a tick is a type that the next step consumes, so the steps cannot be taken in another order. Nothing
//! here reads the kernel or a clock.
//!
//! Where to read on: `entering` and `attributing` are the two steps; `entry` is one flow, `registry` the processes that
//! own flows, `accounts` the bytes of the subjects; [`selection`] decides what counts at all.

mod accounts;
mod attributing;
mod entering;
mod entry;
mod registry;
pub mod selection;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;

use accounts::Accounts;
pub use attributing::{AttributingTick, EndRef};
pub use entering::OpenTick;
use entry::{EndOwner, FlowEntry, FlowKey, Side};
use registry::Registry;
pub use selection::Selection;

use crate::attribution::{Answer, Attribution, ProcessLookup, Query};
use crate::kernel::flow::Counters;
use crate::python2::pattern::Pattern;
use crate::traffic::source::Reading;
use crate::traffic::subject::{Reason, Subject};

/// A scheduled lookup of a flow's owners.
#[derive(Debug, Clone, Copy)]
struct PendingQuery {
    key: FlowKey,
    /// The tick at which it is due.
    due: u32,
    tries: u8,
}

/// How far a flow has moved in a tick.
#[derive(Debug, Clone, Copy)]
enum Movement {
    /// Up to these counters.
    To(Counters),
    /// By these bytes.
    By(Counters),
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
    /// The index of the last row: most rows come in the same order at each tick.
    last_row: usize,
    /// The number of flows that this tick has seen.
    seen_this_tick: usize,
    /// The tick that began to read the table as this one has it, and whether the next one goes on.
    table_began: u32,
    table_continues: bool,
    /// Whether any flow is over.
    any_over: bool,
    /// The number of flows that another with the same key has replaced.
    replaced: u32,
    /// The flows whose counters changed in this tick, by their index.
    moved: Vec<(u32, Movement)>,
    /// The number of flows that are sockets; they stay until they are closed, whether anything moves or not.
    sockets: usize,
    /// The sockets that processes closed in this tick, with those processes.
    closed: Vec<(u64, u32)>,
    /// Whether more were closed in this tick than could be recorded.
    closers_lost: bool,
    /// The sockets that are closed, with the tick at which they are forgotten.
    closing: VecDeque<(u32, FlowKey)>,
    /// The index at which the search for forgotten sockets goes on.
    swept: usize,
    pending: Vec<PendingQuery>,
    processes: Registry,
    accounts: Accounts,
    /// The bytes of flows that are over and had no owner.
    unowned: BTreeMap<Reason, (u64, u64)>,
}

impl Ledger {
    /// A ledger that counts what any of `selections` selects, each byte once. With `lookback`, a flow that is older
    /// than the first tick counts from its own beginning, otherwise from the first tick.
    pub fn new(selections: Vec<Selection>, lookback: bool, now: Instant) -> Self {
        Self {
            lookback,
            tick: 0,
            now,
            flows: IndexMap::new(),
            last_row: 0,
            seen_this_tick: 0,
            table_began: 0,
            table_continues: false,
            any_over: false,
            replaced: 0,
            moved: Vec::new(),
            sockets: 0,
            closed: Vec::new(),
            closers_lost: false,
            closing: VecDeque::new(),
            swept: 0,
            pending: Vec::new(),
            processes: Registry::default(),
            accounts: Accounts::new(selections),
            unowned: BTreeMap::new(),
        }
    }

    /// From now on, counts what any of these selects.
    pub fn select(&mut self, selections: Vec<Selection>) {
        self.accounts.select(selections);
    }

    /// Closes all flows: another source of counters follows, whose flows count from their first tick on. What was counted
    /// stays.
    pub fn restart(&mut self) {
        for (_, entry) in std::mem::take(&mut self.flows) {
            add_unowned(&mut self.unowned, &entry);
        }
        self.pending.clear();
        self.closing.clear();
        self.processes = Registry::default();
        (self.tick, self.lookback, self.sockets, self.swept) = (0, false, 0, 0);
        self.table_continues = false;
    }

    /// Begins the next tick, which is at `now`.
    pub fn open(&mut self, now: Instant) -> OpenTick<'_> {
        self.tick += 1;
        self.now = now;
        self.seen_this_tick = 0;
        if !std::mem::take(&mut self.table_continues) {
            self.table_began = self.tick;
        }
        self.processes.unmark();
        OpenTick::new(self)
    }

    /// The patterns that exceeded their limit of work on some command line.
    pub fn patterns_over_limit(&self) -> impl Iterator<Item = &Pattern> {
        self.accounts.patterns_over_limit()
    }

    /// The bytes that each selected subject has moved.
    pub fn readings(&self) -> Vec<Reading> {
        self.accounts.readings()
    }

    /// The bytes without an owner, by reason: of the flows that are over and of those that go on.
    pub fn unowned(&self) -> Vec<Reading> {
        let mut unowned = self.unowned.clone();
        for entry in self.flows.values() {
            add_unowned(&mut unowned, entry);
        }
        let reading = |(reason, (bytes_in, bytes_out))| {
            let subject = Arc::new(Subject::Unowned(reason));
            Reading { subject, bytes_in, bytes_out }
        };
        unowned.into_iter().map(reading).collect()
    }

    /// Schedules a lookup of the flow's owners for this tick.
    fn schedule_lookup(&mut self, key: FlowKey) {
        self.pending.push(PendingQuery { key, due: self.tick, tries: 0 });
    }

    /// Credits the processes at the ends of a flow with the bytes that it moved.
    fn credit_owners(&mut self, flow: u32, moved: Counters) {
        let entry = &self.flows[flow as usize];
        for side in Side::BOTH {
            if let EndOwner::Owned { process, .. } = entry.owner(side)
                && let Some(process) = self.processes.get(process)
            {
                self.accounts.credit(&process.identity, side.in_and_out(moved), entry.local, self.now);
            }
        }
    }
}

/// Adds the bytes of a flow's ends that have no owner.
fn add_unowned(unowned: &mut BTreeMap<Reason, (u64, u64)>, entry: &FlowEntry) {
    for (reason, (bytes_in, bytes_out)) in entry.unowned() {
        let sum = unowned.entry(reason).or_default();
        *sum = (sum.0 + bytes_in, sum.1 + bytes_out);
    }
}
