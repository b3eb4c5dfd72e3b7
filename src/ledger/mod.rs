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

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;

use accounts::Accounts;
pub use accounts::Keep;
pub use attributing::{AttributingTick, EndRef};
pub use entering::OpenTick;
use entry::{EndOwner, FlowEntry, FlowKey, Side};
use registry::Registry;
pub use selection::Selection;

use crate::attribution::{Answer, Attribution, ProcessLookup, Query};
use crate::kernel::bpf::packet_counters::ClosedSocket;
use crate::kernel::flow::{Counters, Endpoint, Tuple};
use crate::python2::pattern::Pattern;
use crate::traffic::detail::{Exchanged, VisitDetail};
use crate::traffic::source::Reading;
use crate::traffic::subject::{Reason, Subject};

/// A scheduled lookup of a flow's owners.
#[derive(Debug, Clone, Copy)]
struct PendingQuery {
    key: FlowKey,
    /// The tick at which it is due.
    due: u32,
    tries: u8,
    /// How often the search did not get to it.
    postponed: u8,
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
    /// The last counters of the flows that have ended since a tick left the table unfinished, while one has: the kernel may
    /// have made the next rows before that.
    ended_since_pause: Option<HashMap<FlowKey, Counters>>,
    /// Whether any flow is over.
    any_over: bool,
    /// The number of flows that another with the same key has replaced.
    replaced: u32,
    /// The flows whose counters changed in this tick, by their index.
    moved: Vec<(u32, Movement)>,
    /// What sockets without a peer have exchanged with remote ends in this tick: a part of what they have moved.
    exchanged: HashMap<FlowKey, Vec<Exchanged>>,
    /// The number of flows that are sockets; they stay until they are closed, whether anything moves or not.
    sockets: usize,
    /// The sockets that processes closed in this tick.
    closed: Vec<ClosedSocket>,
    /// The closed sockets whose connections may go on, with the tick at which they count as over.
    lingering: VecDeque<(u32, FlowKey)>,
    /// Whether more were closed in this tick than could be recorded.
    closers_lost: bool,
    /// The sockets that are closed, by the tick at which they are forgotten.
    closing: BTreeMap<u32, Vec<FlowKey>>,
    /// The index at which the search for forgotten sockets goes on.
    swept: usize,
    pending: Vec<PendingQuery>,
    processes: Registry,
    accounts: Accounts,
    /// The bytes of flows that are over and had no owner.
    unowned: BTreeMap<Reason, (u64, u64)>,
    own_addresses: OwnAddresses,
    notes: Vec<String>,
}

/// The addresses of this host, each with its network namespace.
#[derive(Debug, Default)]
struct OwnAddresses(HashSet<(u32, IpAddr)>);

impl OwnAddresses {
    /// Whether both ends of a tuple in this network namespace are this host itself: packets from one of its addresses to
    /// another never leave it.
    fn has_both(&self, namespace: u32, tuple: &Tuple) -> bool {
        let is_own = |end: Endpoint| end.is_local() || self.0.contains(&(namespace, end.address()));
        is_own(tuple.source) && is_own(tuple.destination)
    }

    /// Whether both ends of a flow are this host itself.
    fn has_both_ends(&self, key: &FlowKey, entry: &FlowEntry) -> bool {
        match key {
            // The kernel says which packets of a socket pass the loopback interface.
            FlowKey::Socket { .. } => entry.local,
            // We read the conntrack table of our own namespace.
            FlowKey::Row { original, zone, .. } => self.has_both(if entry.is_socket() { *zone } else { 0 }, original),
        }
    }
}

impl Ledger {
    /// A ledger that counts what any of `selections` selects, each byte once. With `lookback`, a flow that is older
    /// than the first tick counts from its own beginning, otherwise from the first tick.
    pub fn new(selections: Vec<Selection>, lookback: bool, now: Instant) -> Self {
        Self::keeping(Keep::default(), selections, lookback, now)
    }

    /// Like [`new`](Self::new), with accounts that have more than bytes.
    pub fn keeping(keep: Keep, selections: Vec<Selection>, lookback: bool, now: Instant) -> Self {
        Self {
            lookback,
            tick: 0,
            now,
            flows: IndexMap::new(),
            last_row: 0,
            seen_this_tick: 0,
            table_began: 0,
            table_continues: false,
            ended_since_pause: None,
            any_over: false,
            replaced: 0,
            moved: Vec::new(),
            exchanged: HashMap::new(),
            sockets: 0,
            closed: Vec::new(),
            lingering: VecDeque::new(),
            closers_lost: false,
            closing: BTreeMap::new(),
            swept: 0,
            pending: Vec::new(),
            processes: Registry::default(),
            accounts: Accounts::new(selections, keep),
            unowned: BTreeMap::new(),
            own_addresses: OwnAddresses::default(),
            notes: Vec::new(),
        }
    }

    /// From now on, counts what any of these selects.
    pub fn select(&mut self, selections: Vec<Selection>) {
        self.accounts.select(selections);
    }

    /// From now on, these are the addresses of this host, each with the number of its network namespace: connections
    /// between two of them are local. The number is that of [`Flow::zone`](crate::kernel::flow::Flow::zone) for sockets.
    pub fn set_own_addresses(&mut self, addresses: impl Iterator<Item = (u32, IpAddr)>) {
        self.own_addresses = OwnAddresses(addresses.collect());
    }

    /// Closes all flows: another source of counters follows, whose flows count from their first tick on. What was counted
    /// stays.
    pub fn restart(&mut self) {
        for (_, entry) in std::mem::take(&mut self.flows) {
            add_unowned(&mut self.unowned, &entry);
        }
        self.pending.clear();
        self.lingering.clear();
        self.closing.clear();
        self.processes = Registry::default();
        (self.tick, self.lookback, self.sockets, self.swept) = (0, false, 0, 0);
        self.table_continues = false;
        self.ended_since_pause = None;
    }

    /// Begins the next tick, which is at `now`.
    pub fn open(&mut self, now: Instant) -> OpenTick<'_> {
        self.tick += 1;
        self.now = now;
        self.seen_this_tick = 0;
        if !std::mem::take(&mut self.table_continues) {
            self.table_began = self.tick;
            self.ended_since_pause = None;
        }
        self.processes.unmark();
        self.notes.extend(self.accounts.begin_tick());
        OpenTick::new(self)
    }

    /// The messages for the user since the last call, one line each.
    pub fn notes(&mut self) -> Vec<String> {
        let mut notes = std::mem::take(&mut self.notes);
        notes.extend(self.accounts.patterns_over_limit().filter_map(Pattern::limit_message_once));
        notes
    }

    /// The bytes that each selected subject has moved.
    pub fn readings(&self) -> Vec<Reading> {
        self.accounts.readings()
    }

    /// Calls `visit` with what is known of each selected subject, and its remote ends if they are counted.
    pub fn each_detail(&self, visit: &mut VisitDetail<'_>) {
        let mut connections = vec![0; self.processes.len()];
        for (key, entry) in self.flows.iter().filter(|(_, entry)| entry.open) {
            for side in Side::BOTH {
                if let Some(process) = entry.process_with_remote(key, side)
                    && !self.is_counted_as_sibling(key, process)
                {
                    connections[process as usize] += 1;
                }
            }
        }
        let mut of_subjects = HashMap::new();
        for (at, connections) in (0..).zip(connections) {
            if let Some(process) = self.processes.get(at) {
                *of_subjects.entry(&process.identity.subject).or_default() += connections;
            }
        }
        self.accounts.each_detail(&of_subjects, visit);
    }

    /// Whether this flow has the loopback packets of a socket of `process` whose other packets are the open flow that counts as the
    /// connection.
    fn is_counted_as_sibling(&self, key: &FlowKey, process: u32) -> bool {
        let &FlowKey::Socket { cookie, loopback: true } = key else { return false };
        let sibling = FlowKey::Socket { cookie, loopback: false };
        let entry = self.flows.get(&sibling).filter(|entry| entry.open);
        entry.and_then(|entry| entry.process_with_remote(&sibling, Side::Original)) == Some(process)
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
        self.schedule_lookup_in(0, key);
    }

    /// Schedules a lookup of the owners of a flow in `ticks`.
    fn schedule_lookup_in(&mut self, ticks: u32, key: FlowKey) {
        self.pending.push(PendingQuery { key, due: self.tick + ticks, tries: 0, postponed: 0 });
    }

    /// Credits the processes at the ends of a flow with the bytes that it moved.
    fn credit_owners(&mut self, flow: u32, moved: Counters) {
        let Some((key, entry)) = self.flows.get_index(flow as usize) else { return };
        for side in Side::BOTH {
            if let EndOwner::Owned { process, .. } = entry.owner(side)
                && let Some(process) = self.processes.get(process)
            {
                let remote = self.accounts.count_remotes().then(|| entry.remote(key, side)).flatten();
                let is_local = self.own_addresses.has_both_ends(key, entry);
                self.accounts.credit(&process.identity, side.in_and_out(moved), remote, is_local, self.now);
            }
        }
    }

    /// Tells the remote ends of sockets without a peer apart, whose owners have been credited with the bytes.
    fn tell_remotes_apart(&mut self) {
        for (key, ends) in std::mem::take(&mut self.exchanged) {
            if let Some(entry) = self.flows.get(&key)
                && let Some(process) = entry.owner(Side::Original).process()
                && let Some(process) = self.processes.get(process)
            {
                self.accounts.tell_remotes_apart(&process.identity, &ends, entry.local, self.now);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::flow::Protocol;

    #[test]
    fn an_address_is_the_hosts_own_only_in_its_namespace() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let own = [(0, "10.0.0.1"), (0, "10.0.0.2"), (0, "fd00::1"), (7, "10.0.0.9")];
        let own = OwnAddresses(own.map(|(namespace, text)| (namespace, address(text))).into());
        let has_both = |namespace, source, destination| {
            let [source, destination] = [source, destination].map(|text| Endpoint::new(address(text), 1));
            own.has_both(namespace, &Tuple { protocol: Protocol::Tcp, source, destination })
        };
        assert!(has_both(0, "10.0.0.1", "10.0.0.2") && has_both(0, "fd00::1", "fd00::1"));
        assert!(has_both(0, "127.0.0.1", "10.0.0.1") && has_both(7, "10.0.0.9", "127.0.1.1"));
        assert!(!has_both(0, "10.0.0.1", "10.0.0.9") && !has_both(7, "10.0.0.1", "10.0.0.9"));
    }
}
