//! The books: which flow has carried how much, who owns its ends, and what each command line has moved.
//!
//! A tick goes through them in one order: it [begins](Ledger::begin), flows that came and went are entered
//! ([`Ledger::opened`], [`Ledger::found`], [`Ledger::ended`]), then the rows of the table ([`Ledger::row`]); whoever is not
//! known yet is asked for ([`Ledger::questions`], [`Ledger::answer`]), what moved is [credited](Ledger::credit), what is
//! over is [closed](Ledger::close). Nothing here reads the kernel or a clock.

mod accounts;
mod entry;
mod registry;
pub mod selection;

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use indexmap::IndexMap;

use accounts::Accounts;
use entry::{End, Entry, Hold, Key, Side};
use registry::Registry;
pub use selection::Selection;

use crate::attribution::{Answer, Processes, Question, Reason, Sighting};
use crate::kernel::flow::{Counters, Flow, Tuple};
use crate::kernel::process::{Handle, Identity};
use crate::python2::pattern::Pattern;
use crate::traffic::source::Reading;

/// How often a flow without owner is asked about again: after 1, 2, 4 … ticks.
const TRIES: u8 = 6;
/// For so many ticks a flow may be missing from the table and go on when it is back: what the kernel moves from one hash
/// chain to another while it is read may show in neither.
const GRACE: u32 = 1;
/// So many ends of new flows are looked for in a tick, but for the first; the rest waits for the next.
const ASKED_PER_TICK: usize = 10_000;
/// So many sockets with traffic are looked at in a tick, whether their process still holds them: 2 µs each.
const VERIFIED_PER_TICK: usize = 256;

/// An end of a flow that is asked about. Good for the tick it was asked in.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    flow: u32,
    side: Side,
}

/// A flow to ask about, and when.
#[derive(Debug, Clone, Copy)]
struct Inquiry {
    key: Key,
    due: u32,
    tries: u8,
}

/// The books of one monitor.
#[derive(Debug)]
pub struct Ledger {
    /// Whether what flows carried before the first tick counts too.
    lookback: bool,
    ignored: Option<Tuple>,
    tick: u32,
    now: Instant,
    flows: IndexMap<Key, Entry>,
    /// The index of the row before: rows mostly come in the order in which they came first.
    row_before: usize,
    /// How many of the flows were met in this tick, and whether any of all is over.
    met: usize,
    any_over: bool,
    /// How many flows were succeeded by another with the same key.
    succeeded: u32,
    /// The flows whose counters changed in this tick, by their index, and the new counters.
    moved: Vec<(u32, Counters)>,
    inquiries: Vec<Inquiry>,
    processes: Registry,
    accounts: Accounts,
    unowned: BTreeMap<Reason, Counters>,
}

impl Ledger {
    /// Books that count what any of `selections` takes, each byte once. With `lookback` a flow that is older than the
    /// first tick counts from its own beginning, otherwise from then on.
    pub fn new(selections: Vec<Selection>, lookback: bool, now: Instant) -> Self {
        Self {
            lookback,
            ignored: None,
            tick: 0,
            now,
            flows: IndexMap::new(),
            row_before: 0,
            met: 0,
            any_over: false,
            succeeded: 0,
            moved: Vec::new(),
            inquiries: Vec::new(),
            processes: Registry::default(),
            accounts: Accounts::new(selections),
            unowned: BTreeMap::new(),
        }
    }

    /// Counts what any of these takes from now on.
    pub fn select(&mut self, selections: Vec<Selection>) {
        self.accounts.select(selections);
    }

    /// Leaves the flow with this original tuple out of the books.
    pub fn ignore(&mut self, original: Option<Tuple>) {
        self.ignored = original;
    }

    /// Begins the next tick, which is at `now`.
    pub fn begin(&mut self, now: Instant) {
        self.tick += 1;
        self.now = now;
        self.met = 0;
        self.processes.unmark();
    }

    /// Enters a flow that began since the last tick.
    pub fn opened(&mut self, flow: &Flow) {
        if Some(flow.original) != self.ignored {
            self.enter(flow, Counters::default());
        }
    }

    /// Enters what was found at the sources of a flow's original and reply tuple, where it was looked for.
    pub fn found(&mut self, flow: &Flow, found: [Option<Sighting>; 2]) {
        let Some(index) = self.flows.get_index_of(&Key::of(flow)) else { return };
        for (side, sighting) in Side::BOTH.into_iter().zip(found) {
            let entry = &self.flows[index];
            if let Some(Sighting { answer, identity }) = sighting
                && !entry.over
                && (entry.is_unclear(side) || matches!(answer, Answer::Held { handle: Some(_), connected: true, .. }))
            {
                // Called so before it started its program, perhaps: it is looked at again at this tick, if it lives.
                let asked = Asked { flow: index as u32, side };
                self.settle_end(asked, answer, self.tick - 1, &mut |_| Some(identity.clone()));
            }
        }
    }

    /// Enters a flow that ended since the last tick, with its last figures.
    pub fn ended(&mut self, flow: &Flow, processes: &mut dyn Processes) {
        let Some(counters) = flow.counters else { return };
        // One that is not in the books was closed already, because the table had it no more.
        let unknown = flow.socket.is_none() && !self.flows.contains_key(&Key::of(flow));
        if unknown || Some(flow.original) == self.ignored {
            return;
        }
        let index = self.enter(flow, self.base(counters));
        let entry = &mut self.flows[index as usize];
        entry.end_now();
        self.any_over = true;
        for side in Side::BOTH {
            if let Some((key, entry)) = self.flows.get_index(index as usize)
                && entry.may_change_hands(side)
                && let Question::Tuple(tuple) | Question::Closer(tuple) = entry.question(key, side)
                && let Some(answer) = processes.closer(&tuple)
            {
                self.answer(Asked { flow: index, side }, answer, &mut |pid| processes.identify(pid));
            }
        }
        let entry = &mut self.flows[index as usize];
        // At once, since the next flow with the same tuple may come in the same tick.
        if let Some(moved) = entry.count(counters) {
            credit_owners(entry, moved, &self.processes, &mut self.accounts, self.now);
        }
    }

    /// The original tuples of all flows that are not over; `None` if there are more than `most`, or if a tuple alone does not
    /// say which flow is meant.
    pub fn tuples(&self, most: usize) -> Option<Vec<Tuple>> {
        if self.flows.len() > most || self.flows.keys().any(|key| !key.is_tuple()) {
            return None;
        }
        Some(self.flows.iter().filter(|(_, entry)| !entry.over).map(|(key, _)| key.tuple()).collect())
    }

    /// Enters one row of the table. The same row twice in a tick counts once.
    pub fn row(&mut self, flow: &Flow) {
        let Some(counters) = flow.counters else { return };
        if Some(flow.original) == self.ignored {
            return;
        }
        let index = self.enter(flow, self.base(counters));
        let entry = &mut self.flows[index as usize];
        for side in Side::BOTH {
            if let End::Owned { process, .. } = entry.end(side) {
                self.processes.mark(process, entry.open);
            }
        }
        match entry.has_moved(counters) {
            Some(false) => {}
            Some(true) => self.moved.push((index, counters)),
            // Counters that went down count another flow, which a source without ids cannot tell from the one before.
            None => {
                self.succeed(index as usize, flow);
                self.moved.push((index, counters));
                self.inquire(Key::of(flow));
            }
        }
    }

    /// The counters from which on a flow counts that is met now with these.
    fn base(&self, counters: Counters) -> Counters {
        if self.tick == 1 && !self.lookback { counters } else { Counters::default() }
    }

    /// The index of a flow, which is entered and asked about if it is new.
    fn enter(&mut self, flow: &Flow, base: Counters) -> u32 {
        let key = Key::of(flow);
        let next = self.row_before + 1;
        let known = match self.flows.get_index(next) {
            Some((after, _)) if *after == key => Some(next),
            _ => self.flows.get_index_of(&key),
        };
        let known = known.and_then(|index| self.flows.get_index_mut(index).map(|(_, entry)| (index, entry)));
        self.met += usize::from(known.as_ref().is_none_or(|(_, entry)| entry.seen != self.tick));
        let (index, ask) = match known {
            // The same tuple again, in the place in the kernel's memory that the id is made from.
            Some((index, entry)) if entry.over => {
                self.succeed(index, flow);
                (index, true)
            }
            Some((index, entry)) => (index, entry.renew(flow, self.tick)),
            None => {
                let mut entry = Entry::new(flow, base, self.tick);
                // What was closing before the first tick has no socket, and may be older than whoever listens there now.
                let past = self.tick == 1 && !flow.open;
                if past {
                    Side::BOTH.into_iter().for_each(|side| entry.set_end(side, End::Nobody(Reason::Gone)));
                }
                (self.flows.insert_full(key, entry).0, !past)
            }
        };
        if ask {
            self.inquire(key);
        }
        self.row_before = index;
        // 4 billion flows do not fit into any memory.
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// Puts a flow in the place of another with the same key, which stays in the books under another one until this tick
    /// has asked for its owners.
    fn succeed(&mut self, index: usize, flow: &Flow) {
        let mut before = std::mem::replace(&mut self.flows[index], Entry::new(flow, Counters::default(), self.tick));
        if Side::BOTH.into_iter().any(|side| before.is_unclear(side)) {
            before.end_now();
            self.any_over = true;
            self.succeeded = self.succeeded.wrapping_add(1);
            let key = Key::of_predecessor(flow, self.succeeded);
            self.flows.insert(key, before);
            self.inquire(key);
        } else {
            settle(&mut self.unowned, &before);
        }
    }

    fn inquire(&mut self, key: Key) {
        self.inquiries.push(Inquiry { key, due: self.tick, tries: 0 });
    }

    /// What is to be found out in this tick: who is at the ends of new flows, again at those of flows that nobody owned
    /// so far, and at those that have traffic though their process is gone or has the socket no more.
    pub fn questions(&mut self, processes: &mut dyn Processes) -> Vec<Asked> {
        let tick = self.tick;
        let most = if tick == 1 { usize::MAX } else { ASKED_PER_TICK };
        let mut asked = Vec::new();
        let mut looked_for = 0;
        let mut later = Vec::new();
        for inquiry in self.inquiries.extract_if(.., |inquiry| inquiry.due <= tick) {
            let Some((index, key, entry)) = self.flows.get_full(&inquiry.key) else { continue };
            if entry.is_past(inquiry.tries) {
                continue;
            }
            let unclear = Side::BOTH.into_iter().filter(|side| entry.is_unclear(*side));
            let to_look_for = unclear.clone().filter(|&side| !matches!(entry.question(key, side), Question::Closer(_)));
            let (known, to_look_for) = (asked.len(), to_look_for.count());
            if to_look_for > 0 && looked_for >= most {
                later.push(inquiry);
                continue;
            }
            looked_for += to_look_for;
            asked.extend(unclear.map(|side| Asked { flow: index as u32, side }));
            if asked.len() > known && inquiry.tries < TRIES {
                later.push(Inquiry { due: tick + (1 << inquiry.tries), tries: inquiry.tries + 1, ..inquiry });
            }
        }
        self.inquiries.append(&mut later);
        let mut verified = 0;
        for &(flow, _) in &self.moved {
            let entry = &self.flows[flow as usize];
            for side in Side::BOTH {
                let End::Owned { process, hold } = entry.end(side) else { continue };
                let mut left = self.processes.is_gone(process, tick, processes) && hold != Hold::Closed;
                left |= !entry.open && matches!(hold, Hold::Here(_));
                if let (false, Hold::Here(handle), Some(process)) = (left, hold, self.processes.get(process))
                    && entry.open
                    && verified < VERIFIED_PER_TICK
                {
                    verified += 1;
                    left = !processes.holds(process.identity.pid, handle);
                }
                if left {
                    asked.push(Asked { flow, side });
                }
            }
        }
        asked
    }

    /// The processes that own what is asked about: where the answers most likely are.
    pub fn suspects(&self, asked: &[Asked]) -> Vec<u32> {
        let owner = |asked: &Asked| match self.flows[asked.flow as usize].end(asked.side) {
            End::Owned { process, .. } => self.processes.get(process).map(|process| process.identity.pid),
            _ => None,
        };
        let mut pids: Vec<u32> = asked.iter().filter_map(owner).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// How to find out what was asked.
    pub fn question(&self, asked: Asked) -> Question {
        match self.flows.get_index(asked.flow as usize) {
            Some((key, entry)) => entry.question(key, asked.side),
            None => Question::Inode(0),
        }
    }

    /// Enters what was found out. `identify` says what runs under a pid now.
    pub fn answer(&mut self, asked: Asked, answer: Answer, identify: &mut dyn FnMut(u32) -> Option<Identity>) {
        self.settle_end(asked, answer, self.tick, identify);
    }

    /// Enters who is at an end, identified as of `tick`.
    fn settle_end(
        &mut self,
        asked: Asked,
        answer: Answer,
        tick: u32,
        identify: &mut dyn FnMut(u32) -> Option<Identity>,
    ) {
        let Some((key, entry)) = self.flows.get_index_mut(asked.flow as usize) else { return };
        let found = match answer {
            Answer::Elsewhere => End::Elsewhere,
            Answer::Nobody(reason) => End::Nobody(reason),
            // It is closed, but by nobody that says more than who had it before.
            Answer::Closed { inherited: false, .. } if matches!(entry.end(asked.side), End::Owned { .. }) => {
                End::Nobody(Reason::Gone)
            }
            Answer::Held { pid, .. } | Answer::Closed { pid, .. } => match self.processes.index(pid, tick, identify) {
                Some(process) => End::Owned { process, hold: Hold::of(key, answer) },
                None => End::Nobody(Reason::Gone),
            },
        };
        match (entry.end(asked.side), found) {
            (End::Owned { process, .. }, End::Unknown | End::Nobody(_) | End::Elsewhere)
            // The connection's own socket is closed, and was handed on by whoever still listens there.
            | (End::Owned { process, hold: Hold::Here(_) | Hold::Closed }, End::Owned { hold: Hold::Listening(_), .. }) => {
                entry.set_end(asked.side, End::Owned { process, hold: Hold::Closed });
            }
            (before, End::Owned { process, .. }) => {
                entry.set_end(asked.side, found);
                if !matches!(before, End::Owned { .. })
                    && let Some(process) = self.processes.get(process)
                {
                    let carried = asked.side.in_and_out(entry.carried());
                    self.accounts.credit(&process.identity, carried, entry.local, self.now);
                }
            }
            (_, _) => entry.set_end(asked.side, found),
        }
    }

    /// Of these ends those whose flow is at home nowhere: neither address is one of this host's.
    pub fn strays(&self, asked: &[Asked]) -> Vec<Asked> {
        let stray = |asked: &&Asked| {
            let entry = &self.flows[asked.flow as usize];
            !entry.is_owned() && entry.end(asked.side) == End::Elsewhere
        };
        asked.iter().filter(stray).copied().collect()
    }

    /// Has the ends asked about again that were not on this host, where the source of a tuple now `is_home`: a container's
    /// address, perhaps, that was not known when its first connection began.
    pub fn came_home(&mut self, is_home: &mut dyn FnMut(&Tuple) -> bool) {
        for (&key, entry) in &mut self.flows {
            for side in Side::BOTH {
                if entry.is_elsewhere(side)
                    && let Question::Tuple(tuple) | Question::Closer(tuple) = entry.question(&key, side)
                    && is_home(&tuple)
                {
                    entry.set_end(side, End::Unknown);
                    self.inquiries.push(Inquiry { key, due: self.tick, tries: 0 });
                }
            }
        }
    }

    /// Gives flows to processes that were born since their owners were found and hold the same sockets: a child that
    /// was forked to serve a connection. `heirs` are their pids by the sockets' inodes.
    pub fn inherit(&mut self, heirs: &HashMap<u32, (u32, Handle)>, identify: &mut dyn FnMut(u32) -> Option<Identity>) {
        if heirs.is_empty() {
            return;
        }
        for flow in 0..self.flows.len() {
            for side in Side::BOTH {
                if let End::Owned { hold, .. } = self.flows[flow].end(side)
                    && let Some(held) = hold.handle()
                    && let Some(&(pid, handle)) = heirs.get(&held.inode)
                {
                    let connected = matches!(hold, Hold::Here(_));
                    let answer = Answer::Held { pid, handle: Some(handle), connected };
                    self.answer(Asked { flow: flow as u32, side }, answer, identify);
                }
            }
        }
    }

    /// Credits what moved in this tick to the owners.
    pub fn credit(&mut self) {
        for (index, counters) in self.moved.drain(..) {
            let entry = &mut self.flows[index as usize];
            // Behind what was credited is only a row that was shown twice.
            if let Some(moved) = entry.count(counters) {
                credit_owners(entry, moved, &self.processes, &mut self.accounts, self.now);
            }
        }
    }

    /// Closes the flows that are over or that the table has no more, and forgets who has nothing any more.
    pub fn close(&mut self, now: &mut dyn Processes) {
        let (tick, processes, unowned) = (self.tick, &mut self.processes, &mut self.unowned);
        // Mostly all are there, and need not be looked at once more.
        if std::mem::take(&mut self.any_over) || self.met != self.flows.len() {
            self.flows.retain(|_, entry| {
                if entry.over || tick - entry.seen > GRACE {
                    settle(unowned, entry);
                    return false;
                }
                for side in Side::BOTH {
                    if let End::Owned { process, .. } = entry.end(side) {
                        processes.mark(process, entry.open && entry.seen == tick);
                    }
                }
                true
            });
        }
        for process in self.processes.with_open_flows() {
            self.accounts.keep(&process.identity, self.now);
        }
        self.processes.forget_unmarked();
        self.accounts.forget(self.now, |pid, start_time| now.has_sockets(pid, start_time));
    }

    /// The patterns that found some command line too much work.
    pub fn patterns_that_exceeded_limit(&self) -> impl Iterator<Item = &Pattern> {
        self.accounts.patterns_that_exceeded_limit()
    }

    /// What each command line has moved.
    pub fn readings(&self) -> Vec<Reading> {
        self.accounts.readings()
    }

    /// What nobody owns, by the reason: of the flows that are over and of those that go on.
    pub fn unowned(&self) -> BTreeMap<Reason, Counters> {
        let mut unowned = self.unowned.clone();
        for entry in self.flows.values() {
            settle(&mut unowned, entry);
        }
        unowned
    }
}

/// Credits what a flow moved to the processes at its ends.
fn credit_owners(entry: &Entry, moved: Counters, processes: &Registry, accounts: &mut Accounts, now: Instant) {
    for side in Side::BOTH {
        if let End::Owned { process, .. } = entry.end(side)
            && let Some(process) = processes.get(process)
        {
            accounts.credit(&process.identity, side.in_and_out(moved), entry.local, now);
        }
    }
}

/// Adds what a flow carried, if nobody owns it.
fn settle(unowned: &mut BTreeMap<Reason, Counters>, entry: &Entry) {
    let carried = entry.carried();
    if !entry.is_owned() && carried != Counters::default() {
        let sum = unowned.entry(entry.reason()).or_default();
        sum.original += carried.original;
        sum.reply += carried.reply;
    }
}
