//! The first step of a tick: enters the flows.

use std::collections::HashMap;

use super::add_unowned;
use super::attributing::{AttributingTick, EndRef};
use super::entry::{EndOwner, FlowEntry, FlowKey, Side};
use super::{Answer, Attribution, Ledger, Movement, ProcessLookup, Query, Reason};
use crate::kernel::bpf::packet_counters::{ClosedSocket, RemoteEndBytes, SocketBytes};
use crate::kernel::flow::{Counters, Flow, Tuple};
use crate::traffic::detail::Remote;

/// A tick in its first step.
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
        if let Some(ended) = &mut self.ledger.ended_since_pause {
            ended.remove(&FlowKey::of(flow));
        }
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
                // Entered as read in the last tick, so that this tick reads the process again if it still lives: it may
                // have been read before it started its program.
                let end = EndRef { flow: index as u32, side };
                ledger.set_owner(end, answer, ledger.tick - 1, &mut |_| Ok(Some(identity.clone())));
            }
        }
    }

    /// Enters a flow that ended since the last tick, with its last counters.
    pub fn ended(&mut self, flow: &Flow, processes: &mut dyn ProcessLookup) {
        let ledger = &mut *self.ledger;
        let Some(counters) = flow.counters else { return };
        // A flow that is not in the ledger was dropped when the table no longer had it.
        if flow.socket.is_none() && !ledger.flows.contains_key(&FlowKey::of(flow)) {
            return;
        }
        if let Some(ended) = &mut ledger.ended_since_pause {
            ended.insert(FlowKey::of(flow), counters);
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
        // Credited at once, since another flow with the same tuple may follow in the same tick.
        if let Some(moved) = ledger.flows[index as usize].count(counters) {
            ledger.credit_owners(index, moved);
        }
    }

    /// Enters one row of the table. A row that comes twice in a tick counts once.
    pub fn row(&mut self, flow: &Flow) {
        let ledger = &mut *self.ledger;
        let Some(counters) = flow.counters else { return };
        // A row that is older than the end of its flow adds nothing.
        if let Some(ended) = &ledger.ended_since_pause
            && ended.get(&FlowKey::of(flow)).is_some_and(|last| last.since(counters).is_some())
        {
            return;
        }
        let index = ledger.enter(flow, ledger.base(counters));
        let entry = &mut ledger.flows[index as usize];
        for side in Side::BOTH {
            if let EndOwner::Owned { process, .. } = entry.owner(side) {
                ledger.processes.mark(process, entry.open);
            }
        }
        match entry.has_moved(counters) {
            Some(false) => {}
            Some(true) => ledger.moved.push((index, Movement::To(counters))),
            // Counters that went down are another flow's: a source without ids cannot tell it from the one before.
            None => {
                ledger.replace_reused(index as usize, flow);
                ledger.moved.push((index, Movement::To(counters)));
                ledger.schedule_lookup(FlowKey::of(flow));
            }
        }
    }

    /// Takes note that the rows of this tick are not the whole table: the next tick has those that follow.
    pub fn table_continues(&mut self) {
        self.ledger.table_continues = true;
        self.ledger.ended_since_pause = Some(HashMap::new());
    }

    /// Enters a socket that is older than the monitor: a flow with its inode, and what it carried so far, if that is known.
    pub fn existing_socket(&mut self, flow: &Flow) {
        let ledger = &mut *self.ledger;
        let key = FlowKey::Socket { cookie: flow.id, loopback: false };
        let mut entry = FlowEntry::of_socket(
            Some(flow.original),
            flow.socket.unwrap_or_default(),
            false,
            ledger.own_addresses.has_both(flow.zone, &flow.original),
            ledger.tick,
        );
        let before = flow.counters.unwrap_or_default();
        entry.start_from(if ledger.lookback { Counters::default() } else { before }, before);
        if ledger.flows.insert(key, entry).is_none() {
            ledger.sockets += 1;
        }
        ledger.schedule_lookup(key);
    }

    /// Enters that a process has closed a socket.
    pub fn closed(&mut self, socket: ClosedSocket) {
        self.ledger.closed.push(socket);
    }

    /// Enters what a socket has moved.
    pub fn socket(&mut self, socket: &SocketBytes, processes: &mut dyn ProcessLookup) {
        let ledger = &mut *self.ledger;
        let moved = Counters { original: socket.bytes_out, reply: socket.bytes_in };
        if moved == Counters::default() {
            return;
        }
        let key = FlowKey::Socket { cookie: socket.cookie, loopback: socket.loopback };
        let (index, is_new) = match ledger.flows.get_full_mut(&key) {
            Some((index, _, entry)) => {
                entry.seen = ledger.tick;
                entry.know(socket.tuple);
                (index, false)
            }
            // The socket is closed, and was forgotten or never known: nothing else will come to be known of it.
            None if socket.time_wait => {
                ledger.add_without_owner(Reason::Gone, moved);
                return;
            }
            None => {
                // Its other packets may have told more.
                let sibling = FlowKey::Socket { cookie: socket.cookie, loopback: !socket.loopback };
                let known = ledger.flows.get(&sibling).and_then(FlowEntry::socket);
                let (tuple, inode) = known.unwrap_or_default();
                let entry = FlowEntry::of_socket(
                    socket.tuple.or(tuple),
                    inode,
                    socket.maker.is_some(),
                    socket.loopback,
                    ledger.tick,
                );
                ledger.sockets += 1;
                (ledger.flows.insert_full(key, entry).0, true)
            }
        };
        // 4 billion flows do not fit into any memory.
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        ledger.moved.push((index, Movement::By(moved)));
        if is_new {
            if let Some((pid, at)) = socket.maker {
                let end = EndRef { flow: index, side: Side::Original };
                match processes.replaced_program(pid, at) {
                    Some(program) => ledger.set_replaced_owner(end, program),
                    None => {
                        let answer = Answer::Held { pid, handle: None, connected: true };
                        ledger.set_owner(end, answer, ledger.tick, &mut |pid| processes.identify(pid));
                    }
                }
            }
            // Most sockets are closed before it matters where their makers hold them.
            let wait = u32::from(ledger.flows[index as usize].is_owned());
            ledger.schedule_lookup_in(wait, key);
        }
    }

    /// Enters with whom a socket without a peer has exchanged a part of what it has moved in this tick.
    pub fn remote_end(&mut self, end: &RemoteEndBytes) {
        let key = FlowKey::Socket { cookie: end.cookie, loopback: end.loopback };
        let remote = Remote { address: end.remote.address(), port: end.remote.port, protocol: end.protocol.number() };
        self.ledger.exchanged.entry(key).or_default().push((remote, (end.bytes_in, end.bytes_out)));
    }

    /// Enters bytes of which no socket is known.
    pub fn without_owner(&mut self, bytes: Counters) {
        self.ledger.add_without_owner(Reason::TooMany, bytes);
    }

    /// The original tuples of all flows that are not over; `None` if there are more than `most`, or if a tuple alone does
    /// not identify a flow.
    pub fn tuples(&self, most: usize) -> Option<Vec<Tuple>> {
        let flows = &self.ledger.flows;
        if flows.len() > most || flows.keys().any(|key| key.tuple().is_none()) {
            return None;
        }
        Some(flows.iter().filter(|(_, entry)| !entry.over).filter_map(|(key, _)| key.tuple()).collect())
    }

    /// Ends this step: all flows of the tick have been entered.
    pub fn attribute(self) -> AttributingTick<'l> {
        AttributingTick::new(self.ledger)
    }
}

impl Ledger {
    /// The base of a flow that has these counters when this tick first sees it: its bytes count from there on.
    fn base(&self, counters: Counters) -> Counters {
        if self.tick == 1 && !self.lookback { counters } else { Counters::default() }
    }

    fn add_without_owner(&mut self, reason: Reason, bytes: Counters) {
        let sum = self.unowned.entry(reason).or_default();
        *sum = (sum.0 + bytes.reply, sum.1 + bytes.original);
    }

    /// The index of a flow. Adds a flow that is new, and schedules a lookup of its owners.
    fn enter(&mut self, flow: &Flow, base: Counters) -> u32 {
        let key = FlowKey::of(flow);
        let next = self.last_row + 1;
        let known = match self.flows.get_index(next) {
            Some((after, _)) if *after == key => Some(next),
            _ => self.flows.get_index_of(&key),
        };
        let known = known.and_then(|index| self.flows.get_index_mut(index).map(|(_, entry)| (index, entry)));
        self.seen_this_tick += usize::from(known.as_ref().is_none_or(|(_, entry)| entry.seen != self.tick));
        let (index, look_up) = match known {
            // The same tuple and the same id again: the kernel makes the id from the entry's address, which it reuses.
            Some((index, entry)) if entry.over => {
                self.replace_reused(index, flow);
                (index, true)
            }
            Some((index, entry)) => (index, entry.update(flow, self.tick)),
            None => {
                let mut entry = FlowEntry::new(flow, base, self.tick);
                // A flow that was closing before the first tick no longer has a socket, and may be older than the
                // process that listens there now.
                let too_late = self.tick == 1 && !flow.open;
                if too_late {
                    Side::BOTH.into_iter().for_each(|side| entry.set_owner(side, EndOwner::Unowned(Reason::Gone)));
                }
                (self.flows.insert_full(key, entry).0, !too_late)
            }
        };
        if look_up {
            self.schedule_lookup(key);
        }
        self.last_row = index;
        // Four billion flows fit into no memory.
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// Puts a flow in the place of another with the same key. The earlier one stays under another key until this tick
    /// has looked up its owners.
    fn replace_reused(&mut self, index: usize, flow: &Flow) {
        let mut before =
            std::mem::replace(&mut self.flows[index], FlowEntry::new(flow, Counters::default(), self.tick));
        if Side::BOTH.into_iter().any(|side| before.is_unclear(side)) {
            before.end_now();
            self.any_over = true;
            self.replaced = self.replaced.wrapping_add(1);
            let key = FlowKey::of_predecessor(flow, self.replaced);
            self.flows.insert(key, before);
            self.schedule_lookup(key);
        } else {
            add_unowned(&mut self.unowned, &before);
        }
    }
}
