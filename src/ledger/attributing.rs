//! The second step of a tick: enters the owners of flows, then credits the bytes that moved and drops the flows that
//! are over.

use std::collections::HashMap;
use std::net::IpAddr;

use super::entry::{EndOwner, FlowEntry, FlowKey, Side, SocketState};
use super::{Answer, Ledger, Movement, PendingQuery, ProcessLookup, Query, Reason, add_unowned};
use crate::attribution::Identity;
use crate::kernel::bpf::packet_counters::ClosedSocket;
use crate::kernel::flow::{Protocol, Tuple};
use crate::kernel::process::{Handle, Unreadable};

/// How many times the owners of an unowned flow are looked up again: after 1, 2, 4 … ticks.
const TRIES: u8 = 6;
/// How often an end to which the search did not get is searched for in each tick, before it waits for 2, 4 … ticks in between, and
/// the longest time as a power of 2.
const EACH_TICK: u8 = 8;
const LONGEST_WAIT: u8 = 5;
/// For this many ticks a flow may be missing from the table without being over: an entry that the kernel moves from one
/// hash chain to another during a dump may show in neither.
const GRACE: u32 = 1;
/// The most ends of new flows that one tick looks up, except the first tick; the others wait for the next.
const LOOKED_UP_PER_TICK: usize = 10_000;
/// The most sockets with traffic for which one tick checks whether their process still holds them: 2 µs each.
const CHECKED_PER_TICK: usize = 128;

/// How many ticks a closed TCP socket is kept: the kernel still sends for it what is not acknowledged.
const CLOSED_KEPT: u32 = 5;
/// The same for other sockets, whose last bytes come in the next tick at the latest.
const CLOSED_KEPT_WITHOUT_CONNECTION: u32 = 2;
/// How many ticks more, if the other side has not closed: 60 s in FIN_WAIT2 (tcp_fin_timeout in tcp(7)), and 60 s in TIME_WAIT.
const LINGERING_KEPT: u32 = 120;
/// The most sockets that are kept for so long, the latest ones: some 6 MB.
const MOST_LINGERING: usize = 32_768;
/// From this number on, more sockets may have been closed in a tick than the kernel's programs have recorded.
const MANY_CLOSED: usize = 60_000;
/// A process with more sockets than this may have made them to fill our memory.
const MANY_SOCKETS: u32 = 1000;
/// The most processes that one tick looks at to forget their sockets, 20 µs each.
const LOOKED_AT_PER_TICK: usize = 1000;

/// Sockets whose process is looked at per tick, if they are silent.
const SWEPT_PER_TICK: usize = 64;
/// The number of ticks after which a socket counts as silent.
const SILENT: u32 = 120;

/// One end of a flow. Valid in the tick that gave it.
#[derive(Debug, Clone, Copy)]
pub struct EndRef {
    pub(super) flow: u32,
    pub(super) side: Side,
}

/// A tick in its second step.
#[derive(Debug)]
pub struct AttributingTick<'l> {
    ledger: &'l mut Ledger,
}

impl<'l> AttributingTick<'l> {
    pub(super) fn new(ledger: &'l mut Ledger) -> Self {
        Self { ledger }
    }

    /// From now on, these are the addresses of this host, as for [`Ledger::set_own_addresses`].
    pub fn set_own_addresses(&mut self, addresses: impl Iterator<Item = (u32, IpAddr)>) {
        self.ledger.set_own_addresses(addresses);
    }

    /// Schedules another lookup of the ends that were not on this host but are there now according to `is_local`, which
    /// takes a tuple and decides on its source: the address may be that of a container that was not known when its
    /// first connection began.
    pub fn namespace_appeared(&mut self, is_local: &mut dyn FnMut(&Tuple) -> bool) {
        let ledger = &mut *self.ledger;
        for (&key, entry) in &mut ledger.flows {
            for side in Side::BOTH {
                if entry.is_elsewhere(side)
                    && let Query::Tuple(tuple) | Query::Closed(tuple) = entry.query(&key, side)
                    && is_local(&tuple)
                {
                    entry.set_owner(side, EndOwner::Unknown);
                    ledger.pending.push(PendingQuery { key, due: ledger.tick, tries: 0, postponed: 0 });
                }
            }
        }
    }

    /// Hands flows over to new processes that hold the sockets of earlier owners, such as a child that was forked to
    /// serve a connection. `sockets_of_new` has, by inode, each socket of a new process and that process's pid.
    pub fn hand_over(&mut self, sockets_of_new: &HashMap<u32, (u32, Handle)>, processes: &mut dyn ProcessLookup) {
        if sockets_of_new.is_empty() {
            return;
        }
        for flow in 0..self.ledger.flows.len() {
            for side in Side::BOTH {
                let entry = &self.ledger.flows[flow];
                if let EndOwner::Owned { socket, process } = entry.owner(side)
                    && let Some(held) = socket.handle()
                    && let Some(&(pid, handle)) = sockets_of_new.get(&held.inode)
                {
                    // A child has a copy of every socket of its parent. The process that made one keeps it until it
                    // closes it; one that it accepted it may have forked the child for.
                    let keeps = entry.is_made()
                        && self
                            .ledger
                            .processes
                            .get(process)
                            .is_some_and(|owner| processes.holds(owner.identity.pid, held));
                    if !keeps {
                        let connected = matches!(socket, SocketState::Own(_));
                        let answer = Answer::Held { pid, handle: Some(handle), connected };
                        self.resolved(EndRef { flow: flow as u32, side }, answer, &mut |pid| processes.identify(pid));
                    }
                }
            }
        }
    }

    /// The ends whose owners this tick looks up: those of new flows, those without an owner whose next try is due, and
    /// those with traffic whose process has ended or no longer has the socket.
    pub fn due(&mut self, processes: &mut dyn ProcessLookup) -> Vec<EndRef> {
        let ledger = &mut *self.ledger;
        let tick = ledger.tick;
        ledger.enter_closers(processes);
        let most = if tick == 1 { usize::MAX } else { LOOKED_UP_PER_TICK };
        let mut due = Vec::new();
        let mut looked_up = 0;
        // Those that this tick does not get to come before those that it looks up in vain, which would keep them out for ever.
        let (mut later, mut again) = (Vec::new(), Vec::new());
        for pending in ledger.pending.extract_if(.., |pending| pending.due <= tick) {
            let Some((index, key, entry)) = ledger.flows.get_full(&pending.key) else { continue };
            // If it moves something after its maker's end, it is looked up below.
            if let (true, EndOwner::Owned { process, .. }) = (entry.is_made(), entry.owner(Side::Original))
                && ledger.processes.is_gone(process, tick, processes)
            {
                continue;
            }
            let postponed = Side::BOTH.iter().any(|side| entry.owner(*side) == EndOwner::Unowned(Reason::NotSearched));
            // An end that was postponed and is no longer has been searched for since.
            let tries = pending.tries + u8::from(pending.postponed > 0);
            if entry.is_final(tries) && !postponed {
                continue;
            }
            let unclear = Side::BOTH.into_iter().filter(|side| entry.is_unclear(*side));
            // A record of the kernel costs next to nothing to read.
            let costly = unclear.clone().filter(|&side| !matches!(entry.query(key, side), Query::Closed(_))).count();
            if costly > 0 && looked_up >= most {
                later.push(pending);
                continue;
            }
            looked_up += costly;
            let before = due.len();
            due.extend(unclear.map(|side| EndRef { flow: index as u32, side }));
            if postponed {
                // Where one tick cannot search all descriptors, it never learns that a socket has no holder.
                let wait = 1 << pending.postponed.saturating_sub(EACH_TICK).min(LONGEST_WAIT);
                again.push(PendingQuery {
                    due: tick + wait,
                    postponed: pending.postponed.saturating_add(1),
                    ..pending
                });
            } else if due.len() > before && pending.tries < TRIES {
                again.push(PendingQuery { due: tick + (1 << pending.tries), tries: pending.tries + 1, ..pending });
            }
        }
        ledger.pending.append(&mut later);
        ledger.pending.append(&mut again);
        let mut checked = 0;
        for &(flow, _) in &ledger.moved {
            let entry = &ledger.flows[flow as usize];
            for side in Side::BOTH {
                let EndOwner::Owned { process, socket } = entry.owner(side) else { continue };
                let mut lost = ledger.processes.is_gone(process, tick, processes) && socket != SocketState::Closed;
                if entry.is_made() && ledger.processes.has_just_ended(process, tick) {
                    // A child with a copy of the socket may use it from now on; until now its maker has moved the bytes.
                    continue;
                }
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

    /// The pids of the known owners of the flows that moved, whose identities this tick reads again.
    pub fn moving_processes(&self) -> Vec<u32> {
        let processes = &self.ledger.processes;
        let mut moving = vec![false; processes.len()];
        for &(flow, _) in &self.ledger.moved {
            let owners = Side::BOTH.map(|side| self.ledger.flows[flow as usize].owner(side).process());
            owners.into_iter().flatten().for_each(|owner| moving[owner as usize] = true);
        }
        let pid = |(at, _)| Some(processes.get(at)?.identity.pid);
        (0..).zip(moving).filter(|(_, moving)| *moving).filter_map(pid).collect()
    }

    /// The pids of the known owners of these ends: most likely they still hold the sockets.
    pub fn likely_owners(&self, ends: &[EndRef]) -> Vec<u32> {
        let owner = |end: &EndRef| {
            let process = self.ledger.flows[end.flow as usize].owner(end.side).process()?;
            let process = self.ledger.processes.get(process)?;
            (!process.is_gone()).then_some(process.identity.pid)
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

    /// Enters the answer to a query. `identify` returns the process that runs under a pid.
    pub fn resolved(
        &mut self,
        end: EndRef,
        answer: Answer,
        identify: &mut dyn FnMut(u32) -> Result<Option<Identity>, Unreadable>,
    ) {
        self.ledger.set_owner(end, answer, self.ledger.tick, identify);
    }

    /// The ends among these whose flow has no known address on this host.
    pub fn unroutable(&self, ends: &[EndRef]) -> Vec<EndRef> {
        let unroutable = |end: &&EndRef| {
            let entry = &self.ledger.flows[end.flow as usize];
            !entry.is_owned() && entry.owner(end.side) == EndOwner::Elsewhere
        };
        ends.iter().filter(unroutable).copied().collect()
    }

    /// Ends the tick: credits the owners with the bytes that moved, drops the flows that are over or missing from the
    /// table, and the processes that own no flow.
    pub fn close(self, processes: &mut dyn ProcessLookup) {
        let ledger = self.ledger;
        let mut moved = std::mem::take(&mut ledger.moved);
        for (flow, movement) in moved.drain(..) {
            let entry = &mut ledger.flows[flow as usize];
            let bytes = match movement {
                // Counters below those that were credited are a row that the dump showed twice.
                Movement::To(counters) => entry.count(counters),
                Movement::By(bytes) => {
                    entry.add(bytes);
                    Some(bytes)
                }
            };
            if let Some(bytes) = bytes {
                ledger.credit_owners(flow, bytes);
            }
        }
        ledger.moved = moved;
        ledger.tell_remotes_apart();
        let (table_began, owners, unowned) = (ledger.table_began, &mut ledger.processes, &mut ledger.unowned);
        let continues = ledger.table_continues;
        // Mostly all flows were met, and need no second look.
        if std::mem::take(&mut ledger.any_over) || ledger.seen_this_tick + ledger.sockets != ledger.flows.len() {
            ledger.flows.retain(|key, entry| {
                if key.is_socket() {
                    return true;
                }
                if entry.over || (!continues && entry.seen + GRACE < table_began) {
                    add_unowned(unowned, entry);
                    return false;
                }
                for side in Side::BOTH {
                    if let EndOwner::Owned { process, .. } = entry.owner(side) {
                        owners.mark(process, entry.open && (continues || entry.seen >= table_began));
                    }
                }
                true
            });
        }
        if ledger.closers_lost {
            ledger.forget_silent(processes);
        }
        ledger.sweep(processes);
        ledger.forget_closed();
        for process in ledger.processes.with_open_flows() {
            ledger.accounts.keep(&process.identity, ledger.now);
        }
        ledger.accounts.match_waiting();
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
        identify: &mut dyn FnMut(u32) -> Result<Option<Identity>, Unreadable>,
    ) {
        let Some((key, entry)) = self.flows.get_index(end.flow as usize) else { return };
        let found = match answer {
            Answer::Elsewhere => EndOwner::Elsewhere,
            Answer::Unowned(reason) => EndOwner::Unowned(reason),
            // This end already has an owner: a process that only closed the connection does not replace it.
            Answer::Closed { inherited: false, .. } if matches!(entry.owner(end.side), EndOwner::Owned { .. }) => {
                EndOwner::Unowned(Reason::Gone)
            }
            // A process that was sent the socket of another user, or inherited it as a set-user-id program, has not moved its
            // bytes.
            Answer::Held { pid, .. } | Answer::Closed { pid, .. }
                if let Some(before) = entry.owner(end.side).process()
                    && !self.processes.may_have_started(before, identify(pid).ok().flatten()) =>
            {
                EndOwner::Unowned(Reason::Gone)
            }
            Answer::Held { pid, .. } | Answer::Closed { pid, .. } => match self.processes.index(pid, tick, identify) {
                Some(process) => EndOwner::Owned { process, socket: SocketState::of(key, answer) },
                None => EndOwner::Unowned(Reason::Gone),
            },
        };
        self.replace_owner(end, found);
    }

    /// Enters a program as the owner of an end that its process has replaced by another program since, and closed the
    /// socket with that.
    pub(super) fn set_replaced_owner(&mut self, end: EndRef, program: Identity) {
        if let Some(process) = self.processes.index_of_replaced(program, self.tick) {
            self.replace_owner(end, EndOwner::Owned { process, socket: SocketState::Closed });
        }
    }

    fn replace_owner(&mut self, end: EndRef, found: EndOwner) {
        let Some((key, entry)) = self.flows.get_index_mut(end.flow as usize) else { return };
        let before = entry.owner(end.side);
        match (before, found) {
            (EndOwner::Owned { process, .. }, EndOwner::Unknown | EndOwner::Unowned(_) | EndOwner::Elsewhere)
            // The connection's own socket is closed. The listener that was found now had handed it over.
            | (
                EndOwner::Owned { process, socket: SocketState::Own(_) | SocketState::Closed },
                EndOwner::Owned { socket: SocketState::Listening(_), .. },
            ) => entry.set_owner(end.side, EndOwner::Owned { process, socket: SocketState::Closed }),
            (_, EndOwner::Owned { process, .. }) => {
                entry.set_owner(end.side, found);
                if !matches!(before, EndOwner::Owned { .. })
                    && let Some(process) = self.processes.get(process)
                {
                    let carried = end.side.in_and_out(entry.carried());
                    let remote = entry.remote(key, end.side);
                    let is_local = self.own_addresses.has_both_ends(key, entry);
                    self.accounts.credit(&process.identity, carried, remote, is_local, self.now);
                }
            }
            (_, _) => entry.set_owner(end.side, found),
        }
        let (before, owner) = (before.process(), entry.owner(end.side).process());
        if key.is_socket() && before != owner {
            owner.into_iter().for_each(|process| self.processes.add_socket(process));
            before.into_iter().for_each(|process| self.processes.remove_socket(process));
        }
    }

    /// Enters the processes that closed sockets in this tick.
    fn enter_closers(&mut self, processes: &mut dyn ProcessLookup) {
        self.closers_lost = self.closed.len() >= MANY_CLOSED;
        for ClosedSocket { cookie, pid, lingers } in std::mem::take(&mut self.closed) {
            for loopback in [false, true] {
                let key = FlowKey::Socket { cookie, loopback };
                let Some((index, _, entry)) = self.flows.get_full_mut(&key) else { continue };
                entry.open = false;
                if lingers {
                    self.lingering.push_back((self.tick + LINGERING_KEPT, key));
                } else {
                    self.closing.entry(self.tick + kept(entry)).or_default().push(key);
                }
                if let (true, EndOwner::Owned { process, .. }) = (entry.is_made(), entry.owner(Side::Original)) {
                    // A child that closes its copy last has not moved what its parent's socket moved. There is nothing to find any more.
                    entry.set_owner(Side::Original, EndOwner::Owned { process, socket: SocketState::Closed });
                } else if entry.may_be_handed_over(Side::Original) {
                    let end = EndRef { flow: index as u32, side: Side::Original };
                    self.set_owner(end, processes.closer(pid), self.tick, &mut |pid| processes.identify(pid));
                }
            }
        }
    }

    /// Forgets the sockets that may have been closed without record: those that were silent for some ticks, of processes that
    /// have many or have ended. One that is still open comes back when it moves something, and its owner is looked up.
    fn forget_silent(&mut self, processes: &mut dyn ProcessLookup) {
        let (tick, registry, unowned) = (self.tick, &mut self.processes, &mut self.unowned);
        let mut forgotten = 0;
        let mut looked_at = HashMap::new();
        self.flows.retain(|key, entry| {
            if !key.is_socket() || !entry.open || tick - entry.seen < kept(entry) {
                return true;
            }
            if let Some(owner) = entry.owner(Side::Original).process() {
                let left = looked_at.len() < LOOKED_AT_PER_TICK;
                let may_go = looked_at.entry(owner).or_insert_with(|| {
                    registry.get(owner).is_none_or(|process| process.sockets() > MANY_SOCKETS)
                        || (left && registry.is_gone(owner, tick, processes))
                });
                if !*may_go {
                    return true;
                }
                registry.remove_socket(owner);
            }
            add_unowned(unowned, entry);
            forgotten += 1;
            false
        });
        self.sockets -= forgotten;
    }

    /// Looks at some sockets that were silent for long: if nobody holds them any more, their end was missed.
    fn sweep(&mut self, processes: &mut dyn ProcessLookup) {
        for _ in 0..SWEPT_PER_TICK.min(self.sockets) {
            self.swept = (self.swept + 1) % self.flows.len();
            let Some((&key, entry)) = self.flows.get_index_mut(self.swept) else { return };
            if !key.is_socket() || !entry.open || self.tick.saturating_sub(entry.seen) < SILENT {
                continue;
            }
            let gone = match entry.owner(Side::Original) {
                EndOwner::Owned { process, .. } => self.processes.is_gone(process, self.tick, processes),
                _ => true,
            };
            if gone {
                entry.open = false;
                self.closing.entry(self.tick).or_default().push(key);
            }
        }
    }

    /// Forgets the sockets that were closed some ticks ago, unless they still move something.
    fn forget_closed(&mut self) {
        while let Some(&(due, key)) = self.lingering.front()
            && (due <= self.tick || self.lingering.len() > MOST_LINGERING)
        {
            self.lingering.pop_front();
            self.closing.entry(self.tick + CLOSED_KEPT).or_default().push(key);
        }
        let later = self.closing.split_off(&(self.tick + 1));
        for key in std::mem::replace(&mut self.closing, later).into_values().flatten() {
            let Some(entry) = self.flows.get(&key) else { continue };
            let kept = kept(entry);
            if self.tick - entry.seen < kept {
                self.closing.entry(self.tick + kept).or_default().push(key);
                continue;
            }
            add_unowned(&mut self.unowned, entry);
            if let Some(process) = entry.owner(Side::Original).process() {
                self.processes.remove_socket(process);
            }
            self.flows.swap_remove(&key);
            self.sockets -= 1;
        }
    }
}

/// How many ticks a closed socket is kept after its last bytes.
fn kept(entry: &FlowEntry) -> u32 {
    match entry.socket() {
        Some((Some(tuple), _)) if tuple.protocol != Protocol::Tcp => CLOSED_KEPT_WITHOUT_CONNECTION,
        _ => CLOSED_KEPT,
    }
}
