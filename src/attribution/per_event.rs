//! The lookup at an event: finds one owner at once, with as little work as possible, for connections that last a few
//! milliseconds.
//!
//! The kernel may have [recorded](crate::kernel::bpf::tcp_owners) the process that connected. All other owners hold a
//! socket, for which this searches in the most likely places first:
//!
//! 1. the descriptors at which it found sockets last: a process that opens and closes connections uses the same few
//!    numbers again, since the kernel gives out the lowest free one;
//! 2. the same numbers in the youngest processes, which may have been started to make this connection;
//! 3. all descriptors of those, and of the processes in which it found sockets last;
//! 4. all other processes, the youngest first.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::process_cache::KnownProcess;
use super::socket::{Found, find, find_listener};
use super::view::{HostView, Recorded};
use super::{Answer, Attribution};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::command_line::Reading;
use crate::kernel::flow::{Flow, Tuple};
use crate::kernel::namespace::Namespaces;
use crate::kernel::process::{Handle, Processes};

/// The most descriptors that are remembered because sockets were found there: one per thread of a busy client or
/// server.
const HOT: usize = 16;
/// The most of their numbers that are tried in the youngest processes. Usually the number is 3, the first after stderr.
const HOT_NUMBERS: usize = 3;
/// The number of most recent pids that are tried; some of them are threads.
const YOUNGEST: u32 = 24;
/// The most processes that are remembered because they had sockets.
const RECENT: usize = 16;
/// The most descriptors that are read of a process that is only likely to be the holder.
const LIKELY_HOLDER_BUDGET: u32 = 256;
/// The most programs that are read per tick as they start, 20 µs each, and the most descriptors that are read of all of them,
/// 1.5 µs each: this thread runs before all ordinary ones.
const STARTED_PER_TICK: u32 = 4000;
const OF_STARTED: u32 = 40_000;

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
    /// The number of descriptors of such programs that may still be read before the next tick.
    left_of_started: u32,
    /// The number of descriptors that may still be read before the next tick.
    budget: u32,
}

impl EventLookup {
    /// Looks up the processes and sockets of this host. `tcp_owners` has the kernel's records, if it makes any.
    /// `reading` tells which process keeps this thread waiting.
    ///
    /// # Errors
    /// Where sock_diag is refused.
    pub fn of_this_host(tcp_owners: Option<Arc<TcpOwners>>, reading: Reading) -> anyhow::Result<Self> {
        let processes = Processes::read_by_this_thread("/proc", reading);
        let namespaces = Namespaces::new(processes.root())?;
        Ok(Self {
            view: HostView::new(Some(namespaces), processes, tcp_owners),
            hot: VecDeque::new(),
            recent: VecDeque::new(),
            listeners: HashMap::new(),
            started: 0,
            left_of_started: OF_STARTED,
            budget: 0,
        })
    }

    /// Begins a tick, in which it may read `budget` descriptors beyond the most likely ones. Processes and the
    /// addresses of this host that it has read before are read again when they are next needed.
    pub fn begin_tick(&mut self, budget: u32) {
        self.budget = budget;
        self.view.cache.begin_tick();
        self.listeners.clear();
        (self.started, self.left_of_started) = (0, OF_STARTED);
        if let Some(namespaces) = &mut self.view.namespaces {
            namespaces.refresh();
        }
    }

    /// Looks for the network namespaces of the host's processes.
    pub fn scan_namespaces(&mut self) {
        self.view.scan_namespaces();
    }

    /// The process that made this connection, if the kernel recorded it: costs a microsecond.
    pub fn owner_from_bpf(&mut self, flow: &Flow) -> Option<Attribution> {
        let tuple = &flow.original;
        let pid = self.view.records(tuple)?.owner(tuple)?;
        let namespaces = self.view.namespaces.as_mut()?;
        // A container that has just started may be gone by the next scan of the namespaces.
        if namespaces.with_address(tuple.source.address()).next().is_none()
            && !namespaces.enter(&self.view.processes, pid)
        {
            return None;
        }
        let Recorded::Process(process) = self.view.recorded(tuple, pid)? else { return None };
        let answer = Answer::Held { pid, handle: None, connected: true };
        Some(Attribution { answer, identity: process.identity.clone() })
    }

    /// The owner at the source of the original tuple, unless that one is `known`, and the owner at the source of the
    /// reply tuple. `None` if the budget runs out, or if `event_waits` before the owner is found: the process that
    /// connected may exit at once, while the one that accepts usually stays.
    pub fn look_up(&mut self, flow: &Flow, known: bool, event_waits: &dyn Fn() -> bool) -> [Option<Attribution>; 2] {
        let at_original = if known { None } else { self.look_up_end(&flow.original, true, event_waits) };
        [at_original, self.look_up_end(&flow.reply, false, event_waits)]
    }

    /// Reads process `pid`, which has started a program: its command line, and whether it began with sockets, are then
    /// known even if it ends before a query leads to it.
    pub fn program_started(&mut self, pid: u32) -> Option<KnownProcess> {
        let HostView { namespaces, processes, cache, tcp_owners, .. } = &mut self.view;
        cache.remove(pid);
        if self.started == STARTED_PER_TICK {
            return None;
        }
        self.started += 1;
        // The namespace tells records about equal tuples apart, where there are such records.
        let process = match (namespaces, tcp_owners) {
            (Some(namespaces), Some(_)) => cache.get_with_namespace(pid, processes, namespaces)?,
            _ => cache.get(pid, processes)?,
        };
        let most = LIKELY_HOLDER_BUDGET.min(self.left_of_started);
        let mut left = most;
        let mut found = false;
        processes.each_socket(pid, &mut left, |_| {
            found = true;
            ControlFlow::Break(())
        });
        self.left_of_started -= most - left;
        process.may_inherit = found || left == 0;
        Some(process.clone())
    }

    fn look_up_end(&mut self, tuple: &Tuple, urgent: bool, event_waits: &dyn Fn() -> bool) -> Option<Attribution> {
        let namespaces = self.view.namespaces.as_mut()?;
        match find(namespaces, tuple) {
            Found::Socket { inode, connected: false } if inode != 0 => {
                let holder = match self.listeners.get(&inode) {
                    Some(&holder) => holder,
                    None => {
                        let holder = self.hot_holder(inode).or_else(|| self.search(inode, urgent, event_waits))?;
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
                // The holder of the listener is usually known already. If the connection lives until the tick, the tick
                // finds the process that accepted it.
                if connected
                    && let Some(listener) = find_listener(self.view.namespaces.as_mut()?, tuple)
                    && let Some(holder) = self.hot_holder(listener)
                {
                    return self.held(holder, false);
                }
                let holder = self.search(inode, urgent, event_waits)?;
                self.held(holder, connected)
            }
            // The next tick tries again.
            _ => None,
        }
    }

    fn held(&mut self, (pid, handle): (u32, Handle), connected: bool) -> Option<Attribution> {
        let identity = self.view.cache.get(pid, &self.view.processes)?.identity.clone();
        let answer = Answer::Held { pid, handle: Some(handle), connected };
        Some(Attribution { answer, identity })
    }

    /// The holder of a socket, if it has the socket at one of the descriptors where sockets were found last.
    fn hot_holder(&mut self, inode: u32) -> Option<(u32, Handle)> {
        let processes = &self.view.processes;
        let at = self.hot.iter().position(|&(pid, fd)| processes.holds(pid, Handle { inode, fd }))?;
        let (pid, fd) = self.hot.remove(at)?;
        self.hot.push_front((pid, fd));
        Some((pid, Handle { inode, fd }))
    }

    /// The holder of a socket, unless the budget runs out or an event waits. An `urgent` search does not give way to
    /// events until it has tried the most likely processes.
    fn search(&mut self, inode: u32, urgent: bool, event_waits: &dyn Fn() -> bool) -> Option<(u32, Handle)> {
        let mut budget = std::mem::take(&mut self.budget);
        let found = self.search_within(inode, &mut budget, urgent, event_waits);
        self.budget = budget;
        let (pid, handle) = found?;
        // One of the youngest ids may be that of a thread, which may end before its process does.
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
        event_waits: &dyn Fn() -> bool,
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
            if !urgent && event_waits() {
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
            // The next tick searches all processes, too; until then, other connections come and go.
            if *budget == 0 || event_waits() {
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
        let mut numbers = Vec::with_capacity(HOT_NUMBERS);
        for &(_, fd) in &self.hot {
            if numbers.len() < HOT_NUMBERS && !numbers.contains(&fd) {
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

        let mut lookup = EventLookup::of_this_host(None, Reading::default()).unwrap();
        lookup.begin_tick(u32::MAX);
        assert!(lookup.look_up(&flow, true, &|| true)[1].is_none());
        // A child of another test has a copy of the socket until it starts its program, and may end meanwhile.
        let holders = std::iter::repeat_with(|| lookup.look_up(&flow, true, &|| false)[1].take());
        assert!(holders.take(100).flatten().any(|found| found.identity.pid == std::process::id()));
    }
}
