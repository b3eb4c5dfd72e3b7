//! Whose end of a connection this is: from a tuple to a socket, from the socket to the process that holds it.
//!
//! [`Owners`] answers many questions at once, with one walk over all processes; a [`Seeker`](super::per_event::Seeker) answers one at once,
//! with as little work as it can.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::process_cache::{Cached, ProcessCache};
use super::socket::{Found, find_all};
use super::{Answer, Processes as _, Question, Reason};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::flow::{Protocol, Tuple};
use crate::kernel::namespace::Namespaces;
use crate::kernel::proc_net::{ListedSocket, SocketTable};
use crate::kernel::process::{Handle, Identity, Processes};

/// As many descriptors of new-born processes are looked at in a tick: 2 µs each.
const NEWBORN_BUDGET: u32 = 20_000;

/// Finds owners.
#[derive(Debug)]
pub struct Owners {
    sockets: Sockets,
    processes: Processes,
    /// Where the kernel allows it.
    connects: Option<Arc<TcpOwners>>,
    /// What closed connections.
    closers: ProcessCache,
    /// When the network namespaces were last looked for.
    scanned: Option<Instant>,
    /// The pids at the last look for new-born ones, in ascending order.
    known: Vec<u32>,
}

/// The two ways to find a socket.
#[derive(Debug)]
enum Sockets {
    /// sock_diag, in every network namespace.
    Kernel(Namespaces),
    /// The tables in /proc/net, in the own one.
    Files,
}

impl Owners {
    /// Owners on this host: through sock_diag, or where that is refused through the tables in /proc/net.
    pub fn of_this_host() -> Self {
        let processes = Processes::new("/proc");
        let sockets = Namespaces::new(processes.root()).map_or(Sockets::Files, Sockets::Kernel);
        Self::new(sockets, processes)
    }

    /// Owners as the files below `proc_root` have them.
    pub fn from_files(proc_root: impl AsRef<Path>) -> Self {
        let processes = Processes::new(proc_root.as_ref());
        Self::new(Sockets::Files, processes)
    }

    fn new(sockets: Sockets, processes: Processes) -> Self {
        let closers = ProcessCache::default();
        Self { sockets, processes, connects: None, closers, scanned: None, known: Vec::new() }
    }

    /// Makes use of what the kernel notes of connections.
    pub fn note(&mut self, connects: Option<Arc<TcpOwners>>) {
        self.connects = connects;
    }

    /// Begins a tick: what closes connections is looked at anew.
    pub fn begin_tick(&mut self) {
        self.closers.begin_tick();
    }

    /// Takes in what a process has started, which may have ended before it is asked for.
    pub fn started(&mut self, process: Cached) {
        self.closers.insert(process);
    }

    /// The processes, for questions about one.
    pub fn processes(&mut self) -> &mut Processes {
        &mut self.processes
    }

    /// The network namespaces, where sock_diag is there to ask them.
    pub fn namespaces(&mut self) -> Option<&mut Namespaces> {
        match &mut self.sockets {
            Sockets::Kernel(namespaces) => Some(namespaces),
            Sockets::Files => None,
        }
    }

    /// Has every network namespace tell of the TCP sockets that end in it.
    ///
    /// # Errors
    /// Where sock_diag is refused.
    pub fn subscribe_to_endings(&mut self) -> Result<()> {
        self.sockets = Sockets::Kernel(Namespaces::with_destroy_events(self.processes.root())?);
        Ok(())
    }

    /// Looks for network namespaces that came or went, unless it did so less than `interval` ago. Says whether it did.
    pub fn scan_namespaces(&mut self, now: Instant, interval: Duration) -> bool {
        let Sockets::Kernel(namespaces) = &mut self.sockets else { return false };
        let recently = self.scanned.is_some_and(|at| now.saturating_duration_since(at) < interval);
        // An empty one is let go of at once: until then it is there only for this program.
        if recently && !namespaces.may_have_ended(&self.processes) {
            return false;
        }
        self.scanned = Some(now);
        namespaces.scan(&self.processes);
        true
    }

    /// Whether the source of a tuple is on this host, as far as its namespaces are known.
    pub fn is_home(&mut self, tuple: &Tuple) -> bool {
        match &mut self.sockets {
            Sockets::Kernel(namespaces) => namespaces.with_address(tuple.source.address()).is_some(),
            Sockets::Files => false,
        }
    }

    /// The answers to questions, in their order.
    ///
    /// A socket that several processes hold belongs to the youngest of them: the child that was forked to serve it, not
    /// the parent that keeps a copy. The `suspects` are looked at before all others.
    pub fn answer(&mut self, questions: impl Iterator<Item = Question>, suspects: Vec<u32>) -> Vec<Answer> {
        let mut tuples = Vec::new();
        let mut found: Vec<Found> = questions
            .map(|question| match question {
                Question::Inode(inode) => Found::Socket { inode, connected: true },
                Question::Closer(tuple) => Found::Closed(self.closer(&tuple).unwrap_or(Answer::Nobody(Reason::Gone))),
                Question::Tuple(tuple) => match self.closer(&tuple) {
                    Some(closer) => Found::Closed(closer),
                    None => {
                        tuples.push(tuple);
                        Found::NoSocket
                    }
                },
            })
            .collect();
        if !tuples.is_empty() {
            let of_tuples = match &mut self.sockets {
                Sockets::Kernel(namespaces) => find_all(namespaces, &tuples),
                Sockets::Files => {
                    let table = SocketTable::read(self.processes.root());
                    tuples.iter().map(|tuple| find_listed(&table, tuple)).collect()
                }
            };
            let unfound = found.iter_mut().filter(|found| **found == Found::NoSocket);
            unfound.zip(of_tuples).for_each(|(found, of_tuple)| *found = of_tuple);
        }
        let holders = self.holders(&found, suspects);
        let some_unreadable = self.processes.some_unreadable();
        found.into_iter().map(|found| found.answer(|inode| holders.of(inode), some_unreadable)).collect()
    }

    /// One walk over the processes, the suspects and then the youngest first, for the holders of all sockets in `found`.
    fn holders(&mut self, found: &[Found], suspects: Vec<u32>) -> Holders {
        let mut inodes: Vec<u32> = found
            .iter()
            .filter_map(|found| match found {
                Found::Socket { inode, .. } if *inode != 0 => Some(*inode),
                _ => None,
            })
            .collect();
        inodes.sort_unstable();
        inodes.dedup();
        let wanted = inodes.len();
        let mut left = wanted;
        let mut holders = Holders { holders: vec![None; inodes.len()], inodes };
        let mut look = |processes: &mut Processes, pid| {
            processes.each_socket(pid, &mut u32::MAX.clone(), |handle| {
                if let Some(holder @ None) = holders.slot(handle.inode) {
                    *holder = Some((pid, handle));
                    left -= 1;
                }
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            left == 0
        };
        if wanted > 0 && !suspects.into_iter().any(|pid| look(&mut self.processes, pid)) {
            self.processes.youngest_first().into_iter().any(|pid| look(&mut self.processes, pid));
        }
        holders
    }

    /// The sockets of the processes that were born since the call before, by inode: who may have inherited them.
    ///
    /// The first call only looks who is there. A network namespace that is new with one of them is entered at the next
    /// [scan](Owners::scan_namespaces).
    pub fn newborn(&mut self) -> HashMap<u32, (u32, Handle)> {
        let youngest_first = self.processes.youngest_first();
        let mut sorted = youngest_first.clone();
        sorted.sort_unstable();
        let known = std::mem::replace(&mut self.known, sorted);
        let mut heirs = HashMap::new();
        if known.is_empty() {
            return heirs;
        }
        let mut budget = NEWBORN_BUDGET;
        for pid in youngest_first.into_iter().filter(|pid| known.binary_search(pid).is_err()) {
            self.processes.each_socket(pid, &mut budget, |handle| {
                heirs.entry(handle.inode).or_insert((pid, handle));
                ControlFlow::Continue(())
            });
            if let Sockets::Kernel(namespaces) = &self.sockets
                && namespaces.is_new(&self.processes, pid)
            {
                self.scanned = None;
            }
        }
        heirs
    }
}

/// The socket at the source of a tuple, as the tables in /proc/net list it.
fn find_listed(table: &SocketTable, tuple: &Tuple) -> Found {
    match table.find(tuple) {
        Some(ListedSocket { inode, connected }) => Found::Socket { inode, connected },
        None if table.may_have_address(tuple.source.address()) => Found::NoSocket,
        None => Found::Elsewhere,
    }
}

/// Who holds which socket.
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

impl super::Processes for Owners {
    fn identify(&mut self, pid: u32) -> Option<Identity> {
        match (self.processes.identify(pid), self.closers.known(pid)) {
            (None, known) => known.cloned(),
            // One that is ending has lost its command line already.
            (Some(now), Some(known)) if now.nameless && now.start_time == known.start_time => Some(known.clone()),
            (now, _) => now,
        }
    }

    fn holds(&mut self, pid: u32, handle: Handle) -> bool {
        self.processes.holds(pid, handle)
    }

    fn has_sockets(&mut self, pid: u32, start_time: u64) -> bool {
        self.processes.has_sockets(pid, start_time)
    }

    fn closer(&mut self, tuple: &Tuple) -> Option<Answer> {
        let pid = self.connects.as_ref().filter(|_| tuple.protocol == Protocol::Tcp)?.closed_by(tuple)?;
        let Sockets::Kernel(namespaces) = &mut self.sockets else { return None };
        let home = namespaces.with_address(tuple.source.address())?.id;
        let process = self.closers.get_with_namespace(pid, &self.processes, namespaces);
        // Equal tuples in two namespaces share one note.
        if process.as_ref().is_some_and(|process| process.namespace != Some(home)) {
            return None;
        }
        // What a program is not to have of its parent's is closed as it starts. What is ending has no name any more.
        let inherited = process.is_some_and(|process| process.may_inherit && !process.identity.nameless);
        Some(Answer::Closed { pid, inherited })
    }
}
