//! The books: which flow has carried how much, who owns its ends, and what each command line has moved.
//!
//! A tick goes through them in one order: it [begins](Ledger::begin), rows are entered ([`Ledger::row`]), whoever is not
//! known yet is asked for ([`Ledger::questions`], [`Ledger::answer`]), what moved is [credited](Ledger::credit), what is
//! over is [closed](Ledger::close). Nothing here reads the kernel or a clock.

mod account;
mod entry;
mod registry;

use std::collections::BTreeMap;
use std::time::Instant;

use indexmap::IndexMap;

use account::Accounts;
pub use account::Selection;
use entry::{End, Entry, Key, Side};
use registry::Registry;

use crate::flow::{Counters, Flow, Tuple};
use crate::owner::{Answer, Question, Reason};
use crate::process::Identity;
use crate::source::Reading;

/// How often a flow without owner is asked about again: after 1, 2, 4 … ticks.
const TRIES: u8 = 6;
/// For so many ticks a flow may be missing from the table and go on when it is back: the kernel shows what it moves
/// from one hash chain to another in neither now and then.
const GRACE: u32 = 1;

/// A question, and the end of a flow that its answer is about: for [`Ledger::answer`].
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// What to find out.
    pub question: Question,
    key: Key,
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
    /// The flows whose counters changed in this tick, by their index, and the new counters.
    moved: Vec<(usize, Counters)>,
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
            moved: Vec::new(),
            inquiries: Vec::new(),
            processes: Registry::default(),
            accounts: Accounts::new(selections),
            unowned: BTreeMap::new(),
        }
    }

    /// Leaves the flow with this original tuple out of the books.
    pub fn ignore(&mut self, original: Option<Tuple>) {
        self.ignored = original;
    }

    /// Begins the next tick, which is at `now`.
    pub fn begin(&mut self, now: Instant) {
        self.tick += 1;
        self.now = now;
    }

    /// Enters one row of the table. The same row twice in a tick counts once.
    pub fn row(&mut self, flow: &Flow) {
        let Some(counters) = flow.counters else { return };
        if Some(flow.original) == self.ignored {
            return;
        }
        let key = Key { original: flow.original, zone: flow.zone };
        let (index, ask) = match self.flows.get_full_mut(&key) {
            Some((index, _, entry)) if entry.is(flow, counters) => (index, entry.renew(flow, self.tick)),
            // Another flow with the same tuple: another id, or counters that went down.
            Some((index, _, entry)) => {
                settle(&mut self.unowned, entry);
                *entry = Entry::new(flow, Counters::default(), self.tick);
                (index, true)
            }
            None => {
                let base = if self.tick == 1 && !self.lookback { counters } else { Counters::default() };
                (self.flows.insert_full(key, Entry::new(flow, base, self.tick)).0, true)
            }
        };
        if ask {
            self.inquiries.push(Inquiry { key, due: self.tick, tries: 0 });
        }
        if self.flows[index].has_moved(counters) {
            self.moved.push((index, counters));
        }
    }

    /// What is to be found out in this tick: who is at the ends of new flows, again at those of flows that nobody owned
    /// so far, and at those that have traffic though their process is gone.
    ///
    /// `identify` says what runs under a pid now; it is asked once for each process that has traffic.
    pub fn questions(&mut self, identify: &mut dyn FnMut(u32) -> Option<Identity>) -> Vec<Asked> {
        let tick = self.tick;
        let mut asked = Vec::new();
        let mut later = Vec::new();
        for inquiry in self.inquiries.extract_if(.., |inquiry| inquiry.due <= tick) {
            let key = inquiry.key;
            let Some(entry) = self.flows.get(&key) else { continue };
            let known = asked.len();
            for side in Side::BOTH {
                if entry.is_unclear(entry.end(side))
                    && let Some(question) = entry.question(&key, side)
                {
                    asked.push(Asked { question, key, side });
                }
            }
            if asked.len() > known && inquiry.tries < TRIES {
                later.push(Inquiry { due: tick + (1 << inquiry.tries), tries: inquiry.tries + 1, key });
            }
        }
        self.inquiries.append(&mut later);
        for &(index, _) in &self.moved {
            let Some((&key, entry)) = self.flows.get_index(index) else { continue };
            for side in Side::BOTH {
                if let End::Owned { at, .. } = entry.end(side)
                    && self.processes.is_gone(at, tick, identify)
                    && let Some(question) = entry.question(&key, side)
                {
                    asked.push(Asked { question, key, side });
                }
            }
        }
        asked
    }

    /// Enters what was found out. `identify` says what runs under a pid now.
    pub fn answer(&mut self, asked: &Asked, answer: Answer, identify: &mut dyn FnMut(u32) -> Option<Identity>) {
        let found = match answer {
            Answer::Elsewhere => End::Elsewhere,
            Answer::Nobody(reason) => End::Nobody(reason),
            Answer::Held { pid, connected } => match self.processes.index(pid, self.tick, identify) {
                Some(at) => End::Owned { at, sure: Entry::is_sure(&asked.key, connected) },
                None => End::Nobody(Reason::NoProcess),
            },
        };
        let Some(entry) = self.flows.get_mut(&asked.key) else { return };
        match (entry.end(asked.side), found) {
            // The last bytes of a socket that was closed belong to its last owner.
            (End::Owned { at, .. }, End::Unknown | End::Nobody(_) | End::Elsewhere) => {
                entry.set_end(asked.side, End::Owned { at, sure: true });
            }
            (before, End::Owned { at, .. }) => {
                entry.set_end(asked.side, found);
                if !matches!(before, End::Owned { .. }) {
                    let carried = asked.side.in_and_out(entry.carried());
                    if let Some(process) = self.processes.get(at) {
                        self.accounts.credit(&process.identity, carried, entry.local, self.now);
                    }
                }
            }
            (_, _) => entry.set_end(asked.side, found),
        }
    }

    /// Of these questions those whose flow is at home nowhere: neither address is one of this host's.
    pub fn strays(&self, asked: &[Asked]) -> Vec<Asked> {
        let stray = |asked: &&Asked| {
            let entry = self.flows.get(&asked.key);
            entry.is_some_and(|entry| !entry.is_owned() && entry.end(asked.side) == End::Elsewhere)
        };
        asked.iter().filter(stray).copied().collect()
    }

    /// Credits what moved in this tick to the owners.
    pub fn credit(&mut self) {
        for (index, counters) in self.moved.drain(..) {
            let Some((_, entry)) = self.flows.get_index_mut(index) else { continue };
            // Behind what was credited is only a row that the kernel showed twice.
            let Some(moved) = entry.count(counters) else { continue };
            for side in Side::BOTH {
                if let End::Owned { at, .. } = entry.end(side)
                    && let Some(process) = self.processes.get(at)
                {
                    self.accounts.credit(&process.identity, side.in_and_out(moved), entry.local, self.now);
                }
            }
        }
    }

    /// Closes the flows that the table has no more, and forgets who has nothing any more.
    ///
    /// `holds_a_socket` says whether a process, given by pid and start time, is there and has a socket open.
    pub fn close(&mut self, holds_a_socket: impl FnMut(u32, u64) -> bool) {
        let (tick, processes, unowned) = (self.tick, &mut self.processes, &mut self.unowned);
        for process in processes.iter_mut() {
            (process.referred, process.open) = (false, false);
        }
        self.flows.retain(|_, entry| {
            if tick - entry.seen > GRACE {
                settle(unowned, entry);
                return false;
            }
            for side in Side::BOTH {
                if let End::Owned { at, .. } = entry.end(side)
                    && let Some(process) = processes.get_mut(at)
                {
                    process.referred = true;
                    process.open |= entry.open && entry.seen == tick;
                }
            }
            true
        });
        for process in self.processes.iter_mut().filter(|process| process.open) {
            self.accounts.keep(&process.identity, self.now);
        }
        self.processes.forget_unreferred();
        self.accounts.forget(self.now, holds_a_socket);
    }

    /// What each command line has moved.
    pub fn readings(&self) -> Vec<Reading> {
        self.accounts.readings()
    }

    /// What nobody owns, by the reason: the flows that are over and those that go on.
    pub fn unowned(&self) -> BTreeMap<Reason, Counters> {
        let mut unowned = self.unowned.clone();
        for entry in self.flows.values() {
            settle(&mut unowned, entry);
        }
        unowned
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
