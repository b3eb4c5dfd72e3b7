//! The look-up of an event: finds one owner at once with as little work as it can, for connections that last a few
//! milliseconds.
//!
//! It searches for the holder of a socket where that most likely is. First at the descriptors where sockets were found
//! last: a process that opens and closes connections uses the same few numbers again, since the kernel gives out the
//! lowest free one. Then at the same numbers of the youngest processes, which may have been started to make this
//! connection; then at all descriptors of those, and of the processes where sockets were found last; then everywhere, the
//! youngest first. None of this is needed where the kernel [notes who connects](crate::kernel::bpf::tcp_owners).

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::process_cache::KnownProcess;
use super::socket::{Found, find, find_listener};
use super::view::{HostView, Noted};
use super::{Answer, Attribution};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::flow::{Flow, Tuple};
use crate::kernel::namespace::Namespaces;
use crate::kernel::process::{Handle, Processes};

/// Descriptors remembered: one per thread of a busy client or server.
const HOT: usize = 16;
/// Descriptor numbers of those that are tried with the youngest processes: mostly 3, the first after the standard ones.
const NUMBERS: usize = 3;
/// The number of most recent pids that are tried; some of them are threads.
const YOUNGEST: u32 = 24;
/// Processes remembered that had sockets.
const RECENT: usize = 16;
/// Descriptors read of a process that is only likely to be the holder.
const LIKELY_HOLDER_BUDGET: u32 = 256;
/// Programs that are read per tick as they start: 20 µs each.
const STARTED_PER_TICK: u32 = 4000;

/// Finds owners one by one.
#[derive(Debug)]
pub struct EventLookup {
    view: HostView,
    /// Process and descriptor number, the most recent first.
    hot: VecDeque<(u32, u32)>,
    recent: VecDeque<u32>,
    /// The holders of the listeners that were found since the tick began, by the inodes of their sockets.
    listeners: HashMap<u32, (u32, Handle)>,
    /// The number of programs that were read since the tick began, as they started.
    started: u32,
    /// The number of descriptors that may still be read before the next tick.
    budget: u32,
}

impl EventLookup {
    /// Looks up the processes and sockets of this host. `tcp_owners` are the kernel's notes about TCP connections, where it
    /// makes any.
    ///
    /// # Errors
    /// Where sock_diag is refused.
    pub fn of_this_host(tcp_owners: Option<Arc<TcpOwners>>) -> anyhow::Result<Self> {
        let processes = Processes::new("/proc");
        let namespaces = Namespaces::new(processes.root())?;
        Ok(Self {
            view: HostView::new(Some(namespaces), processes, tcp_owners),
            hot: VecDeque::new(),
            recent: VecDeque::new(),
            listeners: HashMap::new(),
            started: 0,
            budget: 0,
        })
    }

    /// Begins a tick, in which it may read `budget` descriptors beyond those where the owner most likely is. From now on
    /// it reads again what processes are called and which addresses this host has.
    pub fn begin_tick(&mut self, budget: u32) {
        self.budget = budget;
        self.view.cache.begin_tick();
        self.listeners.clear();
        self.started = 0;
        if let Some(namespaces) = &mut self.view.namespaces {
            namespaces.refresh();
        }
    }

    /// Looks for the network namespaces of the host's processes.
    pub fn scan_namespaces(&mut self) {
        self.view.scan_namespaces();
    }

    /// The process that made this connection, if the kernel noted it: costs a microsecond.
    pub fn owner_from_bpf(&mut self, flow: &Flow) -> Option<Attribution> {
        let tuple = &flow.original;
        let pid = self.view.notes(tuple)?.owner(tuple)?;
        let namespaces = self.view.namespaces.as_mut()?;
        // A container that has just begun may be gone when the namespaces are scanned.
        if namespaces.with_address(tuple.source.address()).is_none() && !namespaces.enter(&self.view.processes, pid) {
            return None;
        }
        let Noted::Process(process) = self.view.noted(tuple, pid)? else { return None };
        let answer = Answer::Held { pid, handle: None, connected: true };
        Some(Attribution { answer, identity: process.identity.clone() })
    }

    /// The owners at the sources of the original tuple, unless that one is `known`, and of the reply tuple; `None` where
    /// the budget is not enough, or where something more urgent `waits` before the owner is found: a connecting process
    /// may exit at once, an accepting one usually stays.
    pub fn look_up(&mut self, flow: &Flow, known: bool, waits: &dyn Fn() -> bool) -> [Option<Attribution>; 2] {
        let at_original = if known { None } else { self.look_up_end(&flow.original, true, waits) };
        [at_original, self.look_up_end(&flow.reply, false, waits)]
    }

    /// Reads process `pid`, which has started a program: its name is known from here on even if it ends before a query
    /// leads to it, and so is whether it had sockets when it began.
    pub fn program_started(&mut self, pid: u32) -> Option<KnownProcess> {
        let HostView { namespaces, processes, cache, .. } = &mut self.view;
        cache.remove(pid);
        if self.started == STARTED_PER_TICK {
            return None;
        }
        self.started += 1;
        let process = cache.get_with_namespace(pid, processes, namespaces.as_ref()?)?;
        process.may_inherit = false;
        processes.each_socket(pid, &mut LIKELY_HOLDER_BUDGET.clone(), |_| {
            process.may_inherit = true;
            ControlFlow::Break(())
        });
        Some(process.clone())
    }

    fn look_up_end(&mut self, tuple: &Tuple, urgent: bool, waits: &dyn Fn() -> bool) -> Option<Attribution> {
        let namespaces = self.view.namespaces.as_mut()?;
        match find(namespaces, tuple) {
            Found::Socket { inode, connected: false } if inode != 0 => {
                let holder = match self.listeners.get(&inode) {
                    Some(&holder) => holder,
                    None => {
                        let holder = self.hot_holder(inode).or_else(|| self.search(inode, urgent, waits))?;
                        self.listeners.insert(inode, holder);
                        holder
                    }
                };
                self.held(holder, false)
            }
            Found::Socket { inode, connected } if inode != 0 => {
                if let Some(holder) = self.hot_holder(inode) {
                    return self.held(holder, connected);
                }
                // The holder of the listener is mostly known already. If the connection lives until the tick, the tick
                // finds the process that it went to.
                if connected
                    && let Some(listener) = find_listener(self.view.namespaces.as_mut()?, tuple)
                    && let Some(holder) = self.hot_holder(listener)
                {
                    return self.held(holder, false);
                }
                let holder = self.search(inode, urgent, waits)?;
                self.held(holder, connected)
            }
            // The tick tries once more.
            Found::Elsewhere | Found::NoSocket | Found::Socket { .. } | Found::Closed(_) => None,
        }
    }

    fn held(&mut self, (pid, handle): (u32, Handle), connected: bool) -> Option<Attribution> {
        let identity = self.view.cache.get(pid, &self.view.processes)?.identity.clone();
        let answer = Answer::Held { pid, handle: Some(handle), connected };
        Some(Attribution { answer, identity })
    }

    /// The holder of a socket, if it is at one of the descriptors where sockets were found last.
    fn hot_holder(&mut self, inode: u32) -> Option<(u32, Handle)> {
        let processes = &self.view.processes;
        let at = self.hot.iter().position(|&(pid, fd)| processes.holds(pid, Handle { inode, fd }))?;
        let (pid, fd) = self.hot.remove(at)?;
        self.hot.push_front((pid, fd));
        Some((pid, Handle { inode, fd }))
    }

    /// The holder of a socket, if the budget is enough to find it and nothing more urgent waits. Where an `urgent` one most
    /// likely is, it searches in any case.
    fn search(&mut self, inode: u32, urgent: bool, waits: &dyn Fn() -> bool) -> Option<(u32, Handle)> {
        let mut budget = std::mem::take(&mut self.budget);
        let found = self.search_within(inode, &mut budget, urgent, waits);
        self.budget = budget;
        let (pid, handle) = found?;
        // One of the youngest ids may be a thread's, which ends before its process does.
        let pid = self.view.processes.leader(pid)?;
        self.hot.truncate(HOT - 1);
        self.hot.push_front((pid, handle.fd));
        self.recent.retain(|known| *known != pid);
        self.recent.truncate(RECENT - 1);
        self.recent.push_front(pid);
        Some((pid, handle))
    }

    fn search_within(
        &mut self,
        inode: u32,
        budget: &mut u32,
        urgent: bool,
        waits: &dyn Fn() -> bool,
    ) -> Option<(u32, Handle)> {
        let newest = self.view.processes.newest_pid().unwrap_or_default();
        let youngest = || (newest.saturating_sub(YOUNGEST)..=newest).rev();
        for fd in self.hot_numbers() {
            *budget = budget.checked_sub(YOUNGEST)?;
            let handle = Handle { inode, fd };
            if let Some(pid) = youngest().find(|&pid| self.view.processes.holds(pid, handle)) {
                return Some((pid, handle));
            }
        }
        for pid in youngest().chain(self.recent.clone()) {
            if !urgent && waits() {
                return None;
            }
            let most = LIKELY_HOLDER_BUDGET.min(*budget);
            let mut left = most;
            let found = self.search_process(pid, inode, &mut left);
            *budget -= most - left;
            if let Some(handle) = found {
                return Some((pid, handle));
            }
        }
        for pid in self.view.processes.youngest_first() {
            // The tick searches everywhere too. Meanwhile other connections come and go.
            if *budget == 0 || waits() {
                return None;
            }
            if let Some(handle) = self.search_process(pid, inode, budget) {
                return Some((pid, handle));
            }
        }
        None
    }

    /// The numbers of the descriptors where sockets were found last.
    fn hot_numbers(&self) -> Vec<u32> {
        let mut numbers = Vec::with_capacity(NUMBERS);
        for &(_, fd) in &self.hot {
            if numbers.len() < NUMBERS && !numbers.contains(&fd) {
                numbers.push(fd);
            }
        }
        numbers
    }

    /// Searches the descriptors of one process for a socket.
    fn search_process(&mut self, pid: u32, inode: u32, budget: &mut u32) -> Option<Handle> {
        let mut found = None;
        self.view.processes.each_socket(pid, budget, |handle| {
            if handle.inode == inode {
                found = Some(handle);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;
    use crate::kernel::flow::{Endpoint, Protocol};

    #[test]
    fn the_accepting_process_is_not_searched_for_while_an_event_waits() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _accepted = listener.accept().unwrap();
        let end = |address: std::net::SocketAddr| Endpoint::new(address.ip(), address.port());
        let original = Tuple {
            protocol: Protocol::Tcp,
            source: end(client.local_addr().unwrap()),
            destination: end(client.peer_addr().unwrap()),
        };
        let reply = original.reversed();
        let flow = Flow { original, reply, zone: 0, id: 0, counters: None, open: true, socket: None };

        let mut lookup = EventLookup::of_this_host(None).unwrap();
        lookup.begin_tick(u32::MAX);
        assert!(lookup.look_up(&flow, true, &|| true)[1].is_none());
        let found = lookup.look_up(&flow, true, &|| false)[1].take();
        assert_eq!(found.unwrap().identity.pid, std::process::id());
    }
}
