//! The lookup at a tick: answers many queries at once, with one walk over all processes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::holders::HolderSearch;
use super::process_cache::KnownProcess;
use super::socket::{Found, find_all, find_by_cookie, find_unusual};
use super::view::{HostView, Recorded};
use super::{Answer, Identity, ProcessLookup, Query};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::flow::Tuple;
use crate::kernel::namespace::Namespaces;
use crate::kernel::proc_net::{ListedSocket, SocketTable};
use crate::kernel::process::{Handle, Processes, Unreadable};
use crate::kernel::process_events::ProcessEvent;
use crate::traffic::subject::Reason;

/// The most descriptors of new processes that are read per tick: 2 µs each.
const NEW_PROCESS_BUDGET: u32 = 20_000;

/// The most descriptors that one tick reads to see whether silent processes have sockets.
const OF_SILENT: u32 = 20_000;

/// How long one tick asks the kernel for sockets.
const LONGEST_QUERIES: Duration = Duration::from_millis(200);
/// Every this many ticks that look up tuples, sockets that a request does not find are searched for among all.
const UNUSUAL_EVERY: u32 = 20;

/// Finds the owners that were not found at an event.
#[derive(Debug)]
pub struct TickLookup {
    view: HostView,
    /// When the network namespaces were last scanned.
    scanned: Option<Instant>,
    /// The pids at the last search for new processes, in ascending order.
    known_pids: Vec<u32>,
    holder_search: HolderSearch,
    /// The number of descriptors that this tick may still read to see whether silent processes have sockets.
    left_for_silent: u32,
    /// The number of ticks until unusual sockets are searched for.
    ticks_to_unusual: u32,
}

impl TickLookup {
    /// Looks sockets up through sock_diag or, if the kernel refuses that, in the tables of /proc/net. `tcp_owners` has
    /// the kernel's records, if it makes any.
    pub fn of_this_host(tcp_owners: Option<Arc<TcpOwners>>) -> Self {
        let processes = Processes::new("/proc");
        let namespaces = Namespaces::new(processes.root()).ok();
        Self::new(HostView::new(namespaces, processes, tcp_owners))
    }

    /// Looks sockets up in the files below `proc_root`.
    pub fn from_files(proc_root: impl AsRef<Path>) -> Self {
        Self::new(HostView::new(None, Processes::new(proc_root.as_ref()), None))
    }

    fn new(view: HostView) -> Self {
        Self {
            view,
            scanned: None,
            known_pids: Vec::new(),
            holder_search: HolderSearch::default(),
            left_for_silent: OF_SILENT,
            ticks_to_unusual: 0,
        }
    }

    /// Begins a tick: processes that were read before are read again when they are next needed.
    pub fn begin_tick(&mut self) {
        self.view.cache.begin_tick();
        self.view.history.begin_tick();
        self.view.processes.begin_tick();
        self.left_for_silent = OF_SILENT;
    }

    /// Reads the command lines of the processes that the ledger asks for next, all at once.
    pub(crate) fn read_ahead(&self, pids: Vec<u32>) {
        self.view.processes.read_ahead(pids);
    }

    /// Whether any process could not be read for want of a descriptor or of memory, since the last call.
    pub(crate) fn has_been_out_of_descriptors(&self) -> bool {
        self.view.processes.has_been_out_of_descriptors()
    }

    /// The processes whose command lines could not be read in time, since the last call.
    pub(crate) fn take_given_up(&self) -> Vec<u32> {
        self.view.processes.take_given_up()
    }

    /// Adds a process that has started a program at a time of CLOCK_MONOTONIC in ns, and may end before a query leads to
    /// it.
    pub(crate) fn add_program(&mut self, process: KnownProcess, at: u64) {
        self.view.history.add_program(process.identity.clone(), at);
        self.view.cache.insert(process);
    }

    /// Adds what a process has done, which may end before it is read.
    pub(crate) fn add_process_event(&mut self, event: ProcessEvent) {
        self.view.history.add_event(event);
    }

    /// Takes note that such events are missing.
    pub(crate) fn lost_process_events(&mut self) {
        self.view.history.forget_children();
    }

    /// Whether any process had descriptors that this user may not read.
    pub(crate) fn some_unreadable(&self) -> bool {
        self.view.processes.some_unreadable()
    }

    /// The number of network namespaces that the last scan has left out, since there are too many.
    pub(crate) fn namespaces_left_out(&self) -> usize {
        self.view.namespaces.as_ref().map_or(0, Namespaces::left_out)
    }

    /// Looks for network namespaces that have appeared or ended, unless it did so less than `interval` ago. Returns
    /// whether it has scanned.
    pub(crate) fn scan_namespaces(&mut self, now: Instant, interval: Duration) -> bool {
        let Some(namespaces) = &self.view.namespaces else { return false };
        let recently = self.scanned.is_some_and(|at| now.saturating_duration_since(at) < interval);
        // Our sockets keep a namespace alive after its last process has ended, so close them at once.
        if recently && !namespaces.may_have_ended() {
            return false;
        }
        self.scanned = Some(now);
        self.view.scan_namespaces();
        true
    }

    /// The addresses of this host in the network namespaces that are known, each with the number of its namespace.
    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        self.view.namespaces.iter().flat_map(Namespaces::addresses)
    }

    /// Whether any known network namespace has the address of a tuple's source.
    pub(crate) fn is_local_address(&mut self, tuple: &Tuple) -> bool {
        let namespaces = self.view.namespaces.as_mut();
        namespaces.is_some_and(|namespaces| namespaces.with_address(tuple.source.address()).next().is_some())
    }

    /// The answers to queries, in their order.
    ///
    /// A socket that several processes hold belongs to the youngest of them: the child that was forked to serve it, not
    /// the parent that keeps a copy. The `likely_owners` are searched before all other processes.
    pub fn resolve(&mut self, queries: impl Iterator<Item = Query>, likely_owners: Vec<u32>) -> Vec<Answer> {
        // What is left to the socket look-ups, with the places of the queries.
        let (mut of_tuples, mut tuples) = (Vec::new(), Vec::new());
        let (mut of_sockets, mut sockets) = (Vec::new(), Vec::new());
        let mut found = Vec::new();
        for (at, query) in queries.enumerate() {
            found.push(match query {
                Query::Inode(inode) => Found::Socket { inode, connected: true },
                Query::Closed(tuple) => Found::Closed(self.closed_by(&tuple).unwrap_or(Answer::Unowned(Reason::Gone))),
                Query::Tuple(tuple) => match self.closed_by(&tuple) {
                    Some(closed_by) => Found::Closed(closed_by),
                    None => {
                        of_tuples.push(at);
                        tuples.push(tuple);
                        Found::NoSocket
                    }
                },
                Query::Socket { cookie, tuple, open } => {
                    of_sockets.push(at);
                    sockets.push((cookie, tuple, open));
                    Found::NoSocket
                }
            });
        }
        if let Some(namespaces) = &mut self.view.namespaces {
            let deadline = Instant::now() + LONGEST_QUERIES;
            let mut by_tuple = find_all(namespaces, &tuples, deadline);
            self.ticks_to_unusual = self.ticks_to_unusual.saturating_sub(1);
            if self.ticks_to_unusual == 0 {
                self.ticks_to_unusual = UNUSUAL_EVERY;
                find_unusual(namespaces, &tuples, &mut by_tuple, deadline);
            }
            of_tuples.into_iter().zip(by_tuple).for_each(|(at, socket)| found[at] = socket);
            let by_cookie = find_by_cookie(namespaces, &sockets, deadline);
            of_sockets.into_iter().zip(by_cookie).for_each(|(at, socket)| found[at] = socket);
        } else if !tuples.is_empty() {
            let table = SocketTable::read(self.view.processes.root());
            of_tuples.into_iter().zip(&tuples).for_each(|(at, tuple)| found[at] = find_listed(&table, tuple));
        }
        let inode = |found: &Found| match found {
            Found::Socket { inode: inode @ 1.., .. } => Some(*inode),
            _ => None,
        };
        let inodes = found.iter().filter_map(inode).collect();
        let holders = self.holder_search.holders(inodes, likely_owners, &mut self.view.processes);
        // What a socket without holder is taken for.
        let unheld = |inode| match (self.some_unreadable(), holders.has_none(inode)) {
            (true, _) => Reason::NotPermitted,
            (false, true) if !self.view.processes.is_out_of_descriptors() => Reason::NoProcess,
            (false, _) => Reason::NotSearched,
        };
        let holder = |inode| holders.of(inode).ok_or_else(|| unheld(inode));
        found.into_iter().map(|found| found.answer(holder)).collect()
    }

    /// The sockets of the processes that have appeared since the last call, by inode: they may have inherited them.
    ///
    /// The first call only remembers which processes there are. If a new process is in a new network namespace, the
    /// next [scan](TickLookup::scan_namespaces) is due at once.
    pub(crate) fn sockets_of_new_processes(&mut self) -> HashMap<u32, (u32, Handle)> {
        let youngest_first = self.view.processes.youngest_first();
        let mut sorted = youngest_first.clone();
        sorted.sort_unstable();
        let known = std::mem::replace(&mut self.known_pids, sorted);
        let mut sockets = HashMap::new();
        if known.is_empty() {
            return sockets;
        }
        let mut budget = NEW_PROCESS_BUDGET;
        for pid in youngest_first.into_iter().filter(|pid| known.binary_search(pid).is_err()) {
            self.view.processes.each_socket(pid, &mut budget, |handle| {
                sockets.entry(handle.inode).or_insert((pid, handle));
                ControlFlow::Continue(())
            });
            if let Some(namespaces) = &self.view.namespaces
                && namespaces.is_new(&self.view.processes, pid)
            {
                self.scanned = None;
            }
        }
        sockets
    }
}

/// The socket at the source of a tuple, as the tables of /proc/net list it.
fn find_listed(table: &SocketTable, tuple: &Tuple) -> Found {
    match table.find(tuple) {
        Some(ListedSocket { inode, connected }) => Found::Socket { inode, connected },
        None if table.may_have_address(tuple.source.address()) => Found::NoSocket,
        None => Found::Elsewhere,
    }
}

impl ProcessLookup for TickLookup {
    fn identify(&mut self, pid: u32) -> Result<Option<Identity>, Unreadable> {
        self.view.identify(pid)
    }

    fn replaced_program(&mut self, pid: u32, at: u64) -> Option<Identity> {
        self.view.history.replaced_program(pid, at).cloned()
    }

    fn holds(&mut self, pid: u32, handle: Handle) -> bool {
        self.view.processes.holds(pid, handle)
    }

    fn has_sockets(&mut self, pid: u32, start_time: u64) -> bool {
        self.view.processes.has_sockets(pid, start_time, &mut self.left_for_silent)
    }

    fn closer(&mut self, pid: u32) -> Answer {
        let process = self.view.cache.get(pid, &self.view.processes);
        let inherited = process.is_some_and(|process| process.may_inherit && !process.identity.nameless);
        Answer::Closed { pid, inherited }
    }

    fn closed_by(&mut self, tuple: &Tuple) -> Option<Answer> {
        let pid = self.view.records(tuple)?.closed_by(tuple)?;
        match self.view.recorded(tuple, pid)? {
            Recorded::OtherNamespace => None,
            Recorded::Ended => Some(Answer::Closed { pid, inherited: false }),
            // A process that closed the socket by calling execve(2) (FD_CLOEXEC) has not inherited it. An exiting
            // process no longer has a command line.
            Recorded::Process(process) => {
                let inherited = process.may_inherit && !process.identity.nameless;
                Some(Answer::Closed { pid, inherited })
            }
        }
    }
}
