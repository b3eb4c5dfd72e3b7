//! The second step of a tick: the owners of flows are found, then what moved is credited and what is over is closed.

use std::collections::HashMap;

use super::entry::{End, Side, SocketState};
use super::{Answer, Ledger, PendingQuery, ProcessLookup, Query, Reason, add_unowned};
use crate::attribution::Identity;
use crate::kernel::flow::Tuple;
use crate::kernel::process::Handle;

/// How often a flow without owner is looked up again: after 1, 2, 4 … ticks.
const TRIES: u8 = 6;
/// How many ticks a flow may be missing from the table and still go on when it is back: an entry that the kernel moves
/// from one hash chain to another during a dump may show in neither.
const GRACE: u32 = 1;
/// Ends of new flows that are looked up per tick, except the first; the others wait for the next.
const LOOKED_UP_PER_TICK: usize = 10_000;
/// Sockets with traffic that are checked per tick, whether their process still holds them: 2 µs each.
const CHECKED_PER_TICK: usize = 256;

/// One end of a flow. Valid in the tick that gave it.
#[derive(Debug, Clone, Copy)]
pub struct EndRef {
    pub(super) flow: u32,
    pub(super) side: Side,
}

/// A tick in which owners are found.
#[derive(Debug)]
pub struct AttributingTick<'l> {
    ledger: &'l mut Ledger,
}

impl<'l> AttributingTick<'l> {
    pub(super) fn new(ledger: &'l mut Ledger) -> Self {
        Self { ledger }
    }

    /// Queries the ends again that were not on this host, where `is_local` now has the source of a tuple: the address may be
    /// a container's that was not known when its first connection began.
    pub fn namespace_appeared(&mut self, is_local: &mut dyn FnMut(&Tuple) -> bool) {
        let ledger = &mut *self.ledger;
        for (&key, entry) in &mut ledger.flows {
            for side in Side::BOTH {
                if entry.is_elsewhere(side)
                    && let Query::Tuple(tuple) | Query::Closed(tuple) = entry.query(&key, side)
                    && is_local(&tuple)
                {
                    entry.set_end(side, End::Unknown);
                    ledger.pending.push(PendingQuery { key, due: ledger.tick, tries: 0 });
                }
            }
        }
    }

    /// Gives flows to processes that have appeared since their owners were found and hold the same sockets: a child that
    /// was forked to serve a connection. `sockets_of_new` are the new pids by the inodes of their sockets.
    pub fn hand_over(
        &mut self,
        sockets_of_new: &HashMap<u32, (u32, Handle)>,
        identify: &mut dyn FnMut(u32) -> Option<Identity>,
    ) {
        if sockets_of_new.is_empty() {
            return;
        }
        for flow in 0..self.ledger.flows.len() {
            for side in Side::BOTH {
                if let End::Owned { socket, .. } = self.ledger.flows[flow].end(side)
                    && let Some(held) = socket.handle()
                    && let Some(&(pid, handle)) = sockets_of_new.get(&held.inode)
                {
                    let connected = matches!(socket, SocketState::Own(_));
                    let answer = Answer::Held { pid, handle: Some(handle), connected };
                    self.resolved(EndRef { flow: flow as u32, side }, answer, identify);
                }
            }
        }
    }

    /// The ends whose owners this tick looks up: those of new flows, again those of flows that had no owner so far, and
    /// those with traffic whose process has ended or no longer has the socket.
    pub fn due(&mut self, processes: &mut dyn ProcessLookup) -> Vec<EndRef> {
        let ledger = &mut *self.ledger;
        let tick = ledger.tick;
        let most = if tick == 1 { usize::MAX } else { LOOKED_UP_PER_TICK };
        let mut due = Vec::new();
        let mut looked_up = 0;
        let mut later = Vec::new();
        for pending in ledger.pending.extract_if(.., |pending| pending.due <= tick) {
            let Some((index, key, entry)) = ledger.flows.get_full(&pending.key) else { continue };
            if entry.is_final(pending.tries) {
                continue;
            }
            let unclear = Side::BOTH.into_iter().filter(|side| entry.is_unclear(*side));
            // What the kernel noted costs next to nothing to read.
            let costly = unclear.clone().filter(|&side| !matches!(entry.query(key, side), Query::Closed(_))).count();
            if costly > 0 && looked_up >= most {
                later.push(pending);
                continue;
            }
            looked_up += costly;
            let before = due.len();
            due.extend(unclear.map(|side| EndRef { flow: index as u32, side }));
            if due.len() > before && pending.tries < TRIES {
                later.push(PendingQuery { due: tick + (1 << pending.tries), tries: pending.tries + 1, ..pending });
            }
        }
        ledger.pending.append(&mut later);
        let mut checked = 0;
        for &(flow, _) in &ledger.moved {
            let entry = &ledger.flows[flow as usize];
            for side in Side::BOTH {
                let End::Owned { process, socket } = entry.end(side) else { continue };
                let mut lost = ledger.processes.is_gone(process, tick, processes) && socket != SocketState::Closed;
                lost |= !entry.open && matches!(socket, SocketState::Own(_));
                if let (false, SocketState::Own(handle), Some(process)) = (lost, socket, ledger.processes.get(process))
                    && entry.open
                    && checked < CHECKED_PER_TICK
                {
                    checked += 1;
                    lost = !processes.holds(process.identity.pid, handle);
                }
                if lost {
                    due.push(EndRef { flow, side });
                }
            }
        }
        due
    }

    /// The processes that own these ends so far: they most likely still do.
    pub fn likely_owners(&self, ends: &[EndRef]) -> Vec<u32> {
        let owner = |end: &EndRef| match self.ledger.flows[end.flow as usize].end(end.side) {
            End::Owned { process, .. } => self.ledger.processes.get(process).map(|process| process.identity.pid),
            _ => None,
        };
        let mut pids: Vec<u32> = ends.iter().filter_map(owner).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// How to find the owner of an end.
    pub fn query(&self, end: EndRef) -> Query {
        match self.ledger.flows.get_index(end.flow as usize) {
            Some((key, entry)) => entry.query(key, end.side),
            None => Query::Inode(0),
        }
    }

    /// Enters the answer to a query. `identify` gives the process that runs under a pid.
    pub fn resolved(&mut self, end: EndRef, answer: Answer, identify: &mut dyn FnMut(u32) -> Option<Identity>) {
        self.ledger.set_owner(end, answer, self.ledger.tick, identify);
    }

    /// Those of these ends whose flow has no address on this host.
    pub fn unroutable(&self, ends: &[EndRef]) -> Vec<EndRef> {
        let unroutable = |end: &&EndRef| {
            let entry = &self.ledger.flows[end.flow as usize];
            !entry.is_owned() && entry.end(end.side) == End::Elsewhere
        };
        ends.iter().filter(unroutable).copied().collect()
    }

    /// Ends the tick: credits what moved to the owners, closes the flows that are over or missing from the table, and drops
    /// processes that own no flow.
    pub fn close(self, processes: &mut dyn ProcessLookup) {
        let ledger = self.ledger;
        let mut moved = std::mem::take(&mut ledger.moved);
        for (flow, counters) in moved.drain(..) {
            // Counters below those that were credited are a row that the dump showed twice.
            if let Some(bytes) = ledger.flows[flow as usize].count(counters) {
                ledger.credit_owners(flow, bytes);
            }
        }
        ledger.moved = moved;
        let (tick, owners, unowned) = (ledger.tick, &mut ledger.processes, &mut ledger.unowned);
        // Mostly all flows were met, and need no second look.
        if std::mem::take(&mut ledger.any_over) || ledger.met != ledger.flows.len() {
            ledger.flows.retain(|_, entry| {
                if entry.over || tick - entry.seen > GRACE {
                    add_unowned(unowned, entry);
                    return false;
                }
                for side in Side::BOTH {
                    if let End::Owned { process, .. } = entry.end(side) {
                        owners.mark(process, entry.open && entry.seen == tick);
                    }
                }
                true
            });
        }
        for process in ledger.processes.with_open_flows() {
            ledger.accounts.keep(&process.identity, ledger.now);
        }
        ledger.processes.forget_unmarked();
        ledger.accounts.forget(ledger.now, |pid, start_time| processes.has_sockets(pid, start_time));
    }
}

impl Ledger {
    /// Enters the owner of an end, whose process was read at `tick`.
    pub(super) fn set_owner(
        &mut self,
        end: EndRef,
        answer: Answer,
        tick: u32,
        identify: &mut dyn FnMut(u32) -> Option<Identity>,
    ) {
        let Some((key, entry)) = self.flows.get_index_mut(end.flow as usize) else { return };
        let found = match answer {
            Answer::Elsewhere => End::Elsewhere,
            Answer::Nobody(reason) => End::Nobody(reason),
            // The process that closed the connection says no more about its bytes than the owner that is known.
            Answer::Closed { inherited: false, .. } if matches!(entry.end(end.side), End::Owned { .. }) => {
                End::Nobody(Reason::Gone)
            }
            Answer::Held { pid, .. } | Answer::Closed { pid, .. } => match self.processes.index(pid, tick, identify) {
                Some(process) => End::Owned { process, socket: SocketState::of(key, answer) },
                None => End::Nobody(Reason::Gone),
            },
        };
        match (entry.end(end.side), found) {
            (End::Owned { process, .. }, End::Unknown | End::Nobody(_) | End::Elsewhere)
            // The connection's own socket is closed. The listener that is found now handed it over earlier.
            | (
                End::Owned { process, socket: SocketState::Own(_) | SocketState::Closed },
                End::Owned { socket: SocketState::Listening(_), .. },
            ) => entry.set_end(end.side, End::Owned { process, socket: SocketState::Closed }),
            (before, End::Owned { process, .. }) => {
                entry.set_end(end.side, found);
                if !matches!(before, End::Owned { .. })
                    && let Some(process) = self.processes.get(process)
                {
                    let carried = end.side.in_and_out(entry.carried());
                    self.accounts.credit(&process.identity, carried, entry.local, self.now);
                }
            }
            (_, _) => entry.set_end(end.side, found),
        }
    }
}
