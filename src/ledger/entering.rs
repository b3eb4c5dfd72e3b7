//! The first step of a tick: flows enter the books.

use super::add_unowned;
use super::attributing::{AttributingTick, EndRef};
use super::entry::{End, FlowEntry, FlowKey, Side};
use super::{Answer, Attribution, Ledger, ProcessLookup, Query, Reason};
use crate::kernel::flow::{Counters, Flow, Tuple};

/// A tick in which flows enter.
#[derive(Debug)]
pub struct OpenTick<'l> {
    ledger: &'l mut Ledger,
}

impl<'l> OpenTick<'l> {
    pub(super) fn new(ledger: &'l mut Ledger) -> Self {
        Self { ledger }
    }

    /// Enters a flow that began since the last tick.
    pub fn opened(&mut self, flow: &Flow) {
        self.ledger.enter(flow, Counters::default());
    }

    /// Enters the owners at the sources of a flow's original and reply tuple, as far as they were found when it began.
    pub fn attributed(&mut self, flow: &Flow, found: [Option<Attribution>; 2]) {
        let ledger = &mut *self.ledger;
        let Some(index) = ledger.flows.get_index_of(&FlowKey::of(flow)) else { return };
        for (side, attribution) in Side::BOTH.into_iter().zip(found) {
            let entry = &ledger.flows[index];
            if let Some(Attribution { answer, identity }) = attribution
                && !entry.over
                && (entry.is_unclear(side) || matches!(answer, Answer::Held { handle: Some(_), connected: true, .. }))
            {
                // As of the tick before: the process may have been read before it started its program, so that this tick
                // reads it again, if it still lives.
                let end = EndRef { flow: index as u32, side };
                ledger.set_owner(end, answer, ledger.tick - 1, &mut |_| Some(identity.clone()));
            }
        }
    }

    /// Enters a flow that ended since the last tick, with its last counters.
    pub fn ended(&mut self, flow: &Flow, processes: &mut dyn ProcessLookup) {
        let ledger = &mut *self.ledger;
        let Some(counters) = flow.counters else { return };
        // A flow that is not in the books was closed when the table no longer had it.
        if flow.socket.is_none() && !ledger.flows.contains_key(&FlowKey::of(flow)) {
            return;
        }
        let index = ledger.enter(flow, ledger.base(counters));
        ledger.flows[index as usize].end_now();
        ledger.any_over = true;
        for side in Side::BOTH {
            if let Some((key, entry)) = ledger.flows.get_index(index as usize)
                && entry.may_be_handed_over(side)
                && let Query::Tuple(tuple) | Query::Closed(tuple) = entry.query(key, side)
                && let Some(answer) = processes.closed_by(&tuple)
            {
                let end = EndRef { flow: index, side };
                ledger.set_owner(end, answer, ledger.tick, &mut |pid| processes.identify(pid));
            }
        }
        // At once, since the next flow with the same tuple may come in the same tick.
        if let Some(moved) = ledger.flows[index as usize].count(counters) {
            ledger.credit_owners(index, moved);
        }
    }

    /// Enters one row of the table. The same row twice in a tick counts once.
    pub fn row(&mut self, flow: &Flow) {
        let ledger = &mut *self.ledger;
        let Some(counters) = flow.counters else { return };
        let index = ledger.enter(flow, ledger.base(counters));
        let entry = &mut ledger.flows[index as usize];
        for side in Side::BOTH {
            if let End::Owned { process, .. } = entry.end(side) {
                ledger.processes.mark(process, entry.open);
            }
        }
        match entry.has_moved(counters) {
            Some(false) => {}
            Some(true) => ledger.moved.push((index, counters)),
            // Counters that went down are another flow's: a source without ids cannot tell it from the one before.
            None => {
                ledger.replace_reused(index as usize, flow);
                ledger.moved.push((index, counters));
                ledger.query(FlowKey::of(flow));
            }
        }
    }

    /// The original tuples of all flows that are not over; `None` if there are more than `most`, or if a tuple alone does
    /// not identify a flow.
    pub fn tuples(&self, most: usize) -> Option<Vec<Tuple>> {
        let flows = &self.ledger.flows;
        if flows.len() > most || flows.keys().any(|key| !key.is_tuple()) {
            return None;
        }
        Some(flows.iter().filter(|(_, entry)| !entry.over).map(|(key, _)| key.tuple()).collect())
    }

    /// Ends this step: all flows of the tick have entered.
    pub fn attribute(self) -> AttributingTick<'l> {
        AttributingTick::new(self.ledger)
    }
}

impl Ledger {
    /// The counters from which on a flow counts that is met now with these.
    fn base(&self, counters: Counters) -> Counters {
        if self.tick == 1 && !self.lookback { counters } else { Counters::default() }
    }

    /// The index of a flow. A flow that is new enters, and its owners are looked up.
    fn enter(&mut self, flow: &Flow, base: Counters) -> u32 {
        let key = FlowKey::of(flow);
        let next = self.row_before + 1;
        let known = match self.flows.get_index(next) {
            Some((after, _)) if *after == key => Some(next),
            _ => self.flows.get_index_of(&key),
        };
        let known = known.and_then(|index| self.flows.get_index_mut(index).map(|(_, entry)| (index, entry)));
        self.met += usize::from(known.as_ref().is_none_or(|(_, entry)| entry.seen != self.tick));
        let (index, query) = match known {
            // The same tuple again, in the same place of the kernel's memory, from which the id is made.
            Some((index, entry)) if entry.over => {
                self.replace_reused(index, flow);
                (index, true)
            }
            Some((index, entry)) => (index, entry.renew(flow, self.tick)),
            None => {
                let mut entry = FlowEntry::new(flow, base, self.tick);
                // A flow that was closing before the first tick has no socket, and may be older than the process that
                // listens there now.
                let too_late = self.tick == 1 && !flow.open;
                if too_late {
                    Side::BOTH.into_iter().for_each(|side| entry.set_end(side, End::Nobody(Reason::Gone)));
                }
                (self.flows.insert_full(key, entry).0, !too_late)
            }
        };
        if query {
            self.query(key);
        }
        self.row_before = index;
        // 4 billion flows do not fit into any memory.
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// Puts a flow in the place of another with the same key. The earlier one stays in the books under another key until
    /// this tick has looked up its owners.
    fn replace_reused(&mut self, index: usize, flow: &Flow) {
        let mut before =
            std::mem::replace(&mut self.flows[index], FlowEntry::new(flow, Counters::default(), self.tick));
        if Side::BOTH.into_iter().any(|side| before.is_unclear(side)) {
            before.end_now();
            self.any_over = true;
            self.replaced = self.replaced.wrapping_add(1);
            let key = FlowKey::of_predecessor(flow, self.replaced);
            self.flows.insert(key, before);
            self.query(key);
        } else {
            add_unowned(&mut self.unowned, &before);
        }
    }
}
