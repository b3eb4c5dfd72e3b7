//! The look-up of a tick: answers many queries at once, with one walk over all processes.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::process_cache::KnownProcess;
use super::socket::{Found, find_all};
use super::view::{HostView, Noted};
use super::{Answer, Identity, ProcessLookup, Query};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::flow::Tuple;
use crate::kernel::namespace::Namespaces;
use crate::kernel::proc_net::{ListedSocket, SocketTable};
use crate::kernel::process::{Handle, Processes};
use crate::traffic::subject::Reason;

/// Descriptors of new processes that are read per tick: 2 µs each.
const NEW_PROCESS_BUDGET: u32 = 20_000;

/// Finds the owners that no event has told.
#[derive(Debug)]
pub struct TickLookup {
    view: HostView,
    /// When the network namespaces were last scanned.
    scanned: Option<Instant>,
    /// The pids at the last search for new processes, in ascending order.
    known_pids: Vec<u32>,
}

impl TickLookup {
    /// Looks sockets up through sock_diag, or where that is refused in the tables of /proc/net. `tcp_owners` are the
    /// kernel's notes about TCP connections, where it makes any.
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
        Self { view, scanned: None, known_pids: Vec::new() }
    }

    /// Begins a tick: processes are read again from now on.
    pub fn begin_tick(&mut self) {
        self.view.cache.begin_tick();
    }

    /// Adds a process that has started a program, and may end before a query leads to it.
    pub fn add_process(&mut self, process: KnownProcess) {
        self.view.cache.insert(process);
    }

    /// Whether any process had descriptors that this user may not read.
    pub fn some_unreadable(&self) -> bool {
        self.view.processes.some_unreadable()
    }

    /// Looks for network namespaces that came or went, unless that was done less than `interval` ago. Returns whether it
    /// did.
    pub fn scan_namespaces(&mut self, now: Instant, interval: Duration) -> bool {
        let Some(namespaces) = &self.view.namespaces else { return false };
        let recently = self.scanned.is_some_and(|at| now.saturating_duration_since(at) < interval);
        // Our sockets keep a namespace alive that has lost its last process, so close them at once.
        if recently && !namespaces.may_have_ended(&self.view.processes) {
            return false;
        }
        self.scanned = Some(now);
        self.view.scan_namespaces();
        true
    }

    /// Whether any known network namespace has the address of a tuple's source.
    pub fn is_local_address(&mut self, tuple: &Tuple) -> bool {
        let namespaces = self.view.namespaces.as_mut();
        namespaces.is_some_and(|namespaces| namespaces.with_address(tuple.source.address()).is_some())
    }

    /// The answers to queries, in their order.
    ///
    /// A socket that several processes hold belongs to the youngest of them: the child that was forked to serve it, not
    /// the parent that keeps a copy. The `likely_owners` are searched before all other processes.
    pub fn resolve(&mut self, queries: impl Iterator<Item = Query>, likely_owners: Vec<u32>) -> Vec<Answer> {
        let mut tuples = Vec::new();
        let mut found: Vec<Found> = queries
            .map(|query| match query {
                Query::Inode(inode) => Found::Socket { inode, connected: true },
                Query::Closed(tuple) => Found::Closed(self.closed_by(&tuple).unwrap_or(Answer::Nobody(Reason::Gone))),
                Query::Tuple(tuple) => match self.closed_by(&tuple) {
                    Some(closed_by) => Found::Closed(closed_by),
                    None => {
                        tuples.push(tuple);
                        Found::NoSocket
                    }
                },
            })
            .collect();
        if !tuples.is_empty() {
            let of_tuples = match &mut self.view.namespaces {
                Some(namespaces) => find_all(namespaces, &tuples),
                None => {
                    let table = SocketTable::read(self.view.processes.root());
                    tuples.iter().map(|tuple| find_listed(&table, tuple)).collect()
                }
            };
            let unfound = found.iter_mut().filter(|found| **found == Found::NoSocket);
            unfound.zip(of_tuples).for_each(|(found, of_tuple)| *found = of_tuple);
        }
        let holders = self.holders(&found, likely_owners);
        let some_unreadable = self.some_unreadable();
        found.into_iter().map(|found| found.answer(|inode| holders.of(inode), some_unreadable)).collect()
    }

    /// One walk over the processes, the likely owners and then the youngest first, for the holders of all sockets in
    /// `found`.
    fn holders(&mut self, found: &[Found], likely_owners: Vec<u32>) -> Holders {
        let mut inodes: Vec<u32> = found
            .iter()
            .filter_map(|found| match found {
                Found::Socket { inode, .. } if *inode != 0 => Some(*inode),
                _ => None,
            })
            .collect();
        inodes.sort_unstable();
        inodes.dedup();
        let mut left = inodes.len();
        if left == 0 {
            return Holders::default();
        }
        let mut holders = Holders { holders: vec![None; inodes.len()], inodes };
        let mut search = |processes: &mut Processes, pid| {
            processes.each_socket(pid, &mut u32::MAX.clone(), |handle| {
                if let Some(holder @ None) = holders.slot(handle.inode) {
                    *holder = Some((pid, handle));
                    left -= 1;
                }
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            left == 0
        };
        let processes = &mut self.view.processes;
        if !likely_owners.into_iter().any(|pid| search(processes, pid)) {
            processes.youngest_first().into_iter().any(|pid| search(processes, pid));
        }
        holders
    }

    /// The sockets of the processes that have appeared since the call before, by inode: they may have inherited them.
    ///
    /// The first call only remembers which processes there are. If a new process is in a network namespace that is new,
    /// the next [scan](TickLookup::scan_namespaces) is due at once.
    pub fn sockets_of_new_processes(&mut self) -> HashMap<u32, (u32, Handle)> {
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

/// Which process holds which socket.
#[derive(Default)]
struct Holders {
    /// In ascending order.
    inodes: Vec<u32>,
    /// In the same order.
    holders: Vec<Option<(u32, Handle)>>,
}

impl Holders {
    fn slot(&mut self, inode: u32) -> Option<&mut Option<(u32, Handle)>> {
        let at = self.inodes.binary_search(&inode).ok()?;
        self.holders.get_mut(at)
    }

    fn of(&self, inode: u32) -> Option<(u32, Handle)> {
        let at = self.inodes.binary_search(&inode).ok()?;
        *self.holders.get(at)?
    }
}

impl ProcessLookup for TickLookup {
    fn identify(&mut self, pid: u32) -> Option<Identity> {
        self.view.identify(pid)
    }

    fn holds(&mut self, pid: u32, handle: Handle) -> bool {
        self.view.processes.holds(pid, handle)
    }

    fn has_sockets(&mut self, pid: u32, start_time: u64) -> bool {
        self.view.processes.has_sockets(pid, start_time)
    }

    fn closed_by(&mut self, tuple: &Tuple) -> Option<Answer> {
        let pid = self.view.notes(tuple)?.closed_by(tuple)?;
        match self.view.noted(tuple, pid)? {
            Noted::OtherNamespace => None,
            Noted::Ended => Some(Answer::Closed { pid, inherited: false }),
            // A socket with FD_CLOEXEC is closed as a program starts. An exiting process has no command line any more.
            Noted::Process(process) => {
                let inherited = process.may_inherit && !process.identity.nameless;
                Some(Answer::Closed { pid, inherited })
            }
        }
    }
}
