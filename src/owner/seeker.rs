//! One owner at once, with as little work as it can: for connections that last a few milliseconds.
//!
//! The holder of a socket is looked for where it most likely is. First at the descriptors where sockets were found last:
//! a process that opens and closes connections uses the same few numbers again, as the kernel gives out the lowest free
//! one. Then at the same numbers of the youngest processes, which are those that were started to make this connection;
//! then at all of theirs, and of the processes that were found last; then everywhere, the youngest first. None of that is
//! needed where the kernel [notes who connects](crate::connects).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Answer, Found, find, find_listener};
use crate::connects::Connects;
use crate::flow::{Flow, Protocol, Tuple};
use crate::ledger::Sighting;
use crate::namespace::Namespaces;
use crate::process::{Handle, Identity, Processes};

/// As many descriptors are remembered: one per thread of a busy client or server.
const HOT: usize = 16;
/// As many of their numbers are tried with the youngest processes: mostly 3, the first after the standard ones.
const NUMBERS: usize = 3;
/// As many of the last pids are tried; threads have some of them.
const YOUNGEST: u32 = 24;
/// As many processes are remembered that had sockets.
const RECENT: usize = 16;
/// As many descriptors of one process are looked at, of those that are tried by guess.
const GLANCE: u32 = 256;
/// So many programs are looked at in a tick as they start: 20 µs each.
const STARTED_PER_TICK: u32 = 4000;
/// As many connections to servers are remembered, and for so long: at the latest the second tick after sees who has one.
const ACCEPTED: usize = 64;
const ACCEPTED_FOR: Duration = Duration::from_secs(2);

/// A process as it was at a tick.
#[derive(Debug)]
struct Met {
    identity: Identity,
    /// Its network namespace, where that was asked for.
    namespace: Option<u32>,
}

/// A connection to a server, which may hand it on to a program that it starts.
#[derive(Debug)]
struct Accepted {
    flow: Flow,
    /// Whether the server is at the source of the reply, and not of the original tuple.
    at_reply: bool,
    /// The process that has the connection as far as is known.
    pid: u32,
    since: Instant,
}

impl Accepted {
    fn tuple(&self) -> &Tuple {
        if self.at_reply { &self.flow.reply } else { &self.flow.original }
    }
}

/// Finds owners one by one.
#[derive(Debug)]
pub struct Seeker {
    namespaces: Namespaces,
    processes: Processes,
    /// Where the kernel allows it.
    connects: Option<Connects>,
    hot: VecDeque<(u32, u32)>,
    recent: VecDeque<u32>,
    /// The processes that were met since the tick began, and in the tick before.
    met: HashMap<u32, Met>,
    met_before: HashMap<u32, Met>,
    /// The listeners that were met since then, by the inodes of their sockets.
    listeners: HashMap<u32, (u32, Handle)>,
    /// The connections that were found last at who accepts them, the latest first.
    accepted: VecDeque<Accepted>,
    /// How many programs that started since the tick began were looked at.
    started: u32,
    /// What is left of the work that may be done before the next tick, in descriptors.
    budget: u32,
}

impl Seeker {
    /// A seeker among the processes and sockets of this host.
    ///
    /// # Errors
    /// Where sock_diag is refused.
    pub fn of_this_host() -> anyhow::Result<Self> {
        let processes = Processes::new("/proc");
        Ok(Self {
            namespaces: Namespaces::new(processes.root())?,
            processes,
            connects: Connects::note().ok(),
            hot: VecDeque::new(),
            recent: VecDeque::new(),
            met: HashMap::new(),
            met_before: HashMap::new(),
            listeners: HashMap::new(),
            accepted: VecDeque::new(),
            started: 0,
            budget: 0,
        })
    }

    /// Begins a tick: `budget` descriptors may be looked at in it, beyond those where the owner is most likely found. What
    /// a process was called is read again from now on, and what addresses there are.
    pub fn begin(&mut self, budget: u32) {
        self.budget = budget;
        self.met_before = std::mem::take(&mut self.met);
        self.listeners.clear();
        self.started = 0;
        self.namespaces.refresh();
    }

    /// Looks for the network namespaces of the host's processes.
    pub fn scan_namespaces(&mut self) {
        self.namespaces.scan(&self.processes);
    }

    /// Who is at the sources of the original and of the reply tuple, as far as the kernel noted it: a microsecond.
    pub fn glance(&mut self, flow: &Flow) -> [Option<Sighting>; 2] {
        [self.connected(&flow.original), self.connected(&flow.reply)]
    }

    /// Who is at those of these ends that are not `known`; `None` where it takes more than the budget to say, or where
    /// something more urgent `waits` before it is found.
    pub fn sight(&mut self, flow: &Flow, known: [bool; 2], waits: &dyn Fn() -> bool) -> [Option<Sighting>; 2] {
        let mut found = [None, None];
        for at_reply in [false, true] {
            if known[usize::from(at_reply)] {
                continue;
            }
            let sighting = self.sight_end(if at_reply { &flow.reply } else { &flow.original }, waits);
            if let Some(Sighting { answer: Answer::Held { pid, .. }, .. }) = sighting
                && flow.original.protocol == Protocol::Tcp
            {
                self.accepted.truncate(ACCEPTED - 1);
                self.accepted.push_front(Accepted { flow: *flow, at_reply, pid, since: Instant::now() });
            }
            found[usize::from(at_reply)] = sighting;
        }
        found
    }

    /// Takes in that `pid` has started a program: what it is called now is known from here on, even if it is gone when it
    /// is asked for.
    pub fn started(&mut self, pid: u32) {
        self.met.remove(&pid);
        self.met_before.remove(&pid);
        if self.started == STARTED_PER_TICK {
            return;
        }
        self.started += 1;
        self.meet_at_home(pid);
    }

    /// Calls `visit` with the connections that `pid`, which has started a program, has from a server: the process that
    /// started it, or itself before.
    pub fn handed_on(&mut self, pid: u32, mut visit: impl FnMut(&Flow, [Option<Sighting>; 2])) {
        while self.accepted.back().is_some_and(|accepted| accepted.since.elapsed() > ACCEPTED_FOR) {
            self.accepted.pop_back();
        }
        if self.accepted.is_empty() {
            return;
        }
        let Some(parent) = self.processes.parent(pid) else { return };
        let mut accepted = std::mem::take(&mut self.accepted);
        let mut candidates = accepted.iter_mut().filter(|accepted| [parent, pid].contains(&accepted.pid)).peekable();
        let sockets = if candidates.peek().is_some() { self.sockets(pid) } else { Vec::new() };
        for accepted in candidates.take_while(|_| !sockets.is_empty()) {
            if let Found::Socket { inode, connected: true } = find(&mut self.namespaces, accepted.tuple())
                && let Some(&handle) = sockets.iter().find(|handle| handle.inode == inode)
                && let Some(sighting) = self.held((pid, handle), true)
                // One that is ending has lost its command line: the server's says more.
                && sighting.identity.as_ref().is_some_and(|identity| !identity.nameless)
            {
                accepted.pid = pid;
                let [at_original, at_reply] =
                    if accepted.at_reply { [None, Some(sighting)] } else { [Some(sighting), None] };
                visit(&accepted.flow, [at_original, at_reply]);
            }
        }
        self.accepted = accepted;
    }

    /// The first sockets of a process, as far as the budget goes.
    fn sockets(&mut self, pid: u32) -> Vec<Handle> {
        let mut sockets = Vec::new();
        let glance = GLANCE.min(self.budget);
        let mut left = glance;
        self.processes.each_socket(pid, &mut left, |handle| {
            sockets.push(handle);
            ControlFlow::Continue(())
        });
        self.budget -= glance - left;
        sockets
    }

    fn sight_end(&mut self, tuple: &Tuple, waits: &dyn Fn() -> bool) -> Option<Sighting> {
        match find(&mut self.namespaces, tuple) {
            Found::Elsewhere => Some(Sighting { answer: Answer::Elsewhere, identity: None }),
            Found::Socket { inode, connected: false } if inode != 0 => {
                let holder = match self.listeners.get(&inode) {
                    Some(&holder) => holder,
                    None => {
                        let holder = self.hot_holder(inode).or_else(|| self.search(inode, waits))?;
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
                // Whoever listens is known mostly, and where the connection went is seen at the tick, if it lives so long.
                if connected
                    && let Some(listener) = find_listener(&mut self.namespaces, tuple)
                    && let Some(holder) = self.hot_holder(listener)
                {
                    return self.held(holder, false);
                }
                let holder = self.search(inode, waits)?;
                self.held(holder, connected)
            }
            // The tick looks once more.
            Found::NoSocket | Found::Socket { .. } => None,
        }
    }

    fn held(&mut self, (pid, handle): (u32, Handle), connected: bool) -> Option<Sighting> {
        let identity = self.identify(pid)?;
        let answer = Answer::Held { pid, handle: Some(handle), connected };
        Some(Sighting { answer, identity: Some(identity) })
    }

    /// The process that made this connection, if the kernel noted it.
    fn connected(&mut self, tuple: &Tuple) -> Option<Sighting> {
        let pid = self.connects.as_ref().filter(|_| tuple.protocol == Protocol::Tcp)?.process(tuple)?;
        let home = self.namespaces.of_address(tuple.source.address())?.id;
        let met = self.meet_at_home(pid)?;
        // Equal tuples in two namespaces share one note.
        if met.namespace != Some(home) {
            return None;
        }
        let answer = Answer::Held { pid, handle: None, connected: true };
        Some(Sighting { answer, identity: Some(met.identity.clone()) })
    }

    fn identify(&mut self, pid: u32) -> Option<Identity> {
        self.meet(pid).map(|met| met.identity.clone())
    }

    /// The same, with the network namespace.
    fn meet_at_home(&mut self, pid: u32) -> Option<&Met> {
        if self.meet(pid)?.namespace.is_none() {
            let namespace = self.namespaces.id_of(&self.processes, pid);
            self.met.get_mut(&pid)?.namespace = namespace;
        }
        self.met.get(&pid)
    }

    /// What runs under `pid`, which is looked at once a tick. What has ended meanwhile is as it was in the tick before.
    fn meet(&mut self, pid: u32) -> Option<&Met> {
        match self.met.entry(pid) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(place) => {
                let before = self.met_before.remove(&pid);
                let met = match (self.processes.identify(pid), before) {
                    (None, before) => before?,
                    // One that is ending has lost its command line already.
                    (Some(now), Some(before)) if now.nameless && now.start_time == before.identity.start_time => before,
                    (Some(identity), _) => Met { identity, namespace: None },
                };
                Some(place.insert(met))
            }
        }
    }

    /// The holder of a socket, if it is at one of the descriptors where sockets were found last.
    fn hot_holder(&mut self, inode: u32) -> Option<(u32, Handle)> {
        let at = self.hot.iter().position(|&(pid, fd)| self.processes.holds(pid, Handle { inode, fd }))?;
        let (pid, fd) = self.hot.remove(at)?;
        self.hot.push_front((pid, fd));
        Some((pid, Handle { inode, fd }))
    }

    /// The holder of a socket, if the budget is enough to find it and nothing more urgent waits.
    fn search(&mut self, inode: u32, waits: &dyn Fn() -> bool) -> Option<(u32, Handle)> {
        let mut budget = std::mem::take(&mut self.budget);
        let found = self.search_within(inode, &mut budget, waits);
        self.budget = budget;
        let (pid, handle) = found?;
        // A number among the youngest may be a thread's, which ends before its process does.
        let pid = self.processes.leader(pid)?;
        self.hot.truncate(HOT - 1);
        self.hot.push_front((pid, handle.fd));
        self.recent.retain(|known| *known != pid);
        self.recent.truncate(RECENT - 1);
        self.recent.push_front(pid);
        Some((pid, handle))
    }

    fn search_within(&mut self, inode: u32, budget: &mut u32, waits: &dyn Fn() -> bool) -> Option<(u32, Handle)> {
        let newest = self.processes.newest_pid().unwrap_or_default();
        let youngest = || (newest.saturating_sub(YOUNGEST)..=newest).rev();
        for fd in self.hot_numbers() {
            *budget = budget.checked_sub(YOUNGEST)?;
            let handle = Handle { inode, fd };
            if let Some(pid) = youngest().find(|&pid| self.processes.holds(pid, handle)) {
                return Some((pid, handle));
            }
        }
        for pid in youngest().chain(self.recent.clone()) {
            let glance = GLANCE.min(*budget);
            let mut left = glance;
            let found = self.look(pid, inode, &mut left);
            *budget -= glance - left;
            if let Some(handle) = found {
                return Some((pid, handle));
            }
        }
        for pid in self.processes.youngest_first() {
            // The tick looks everywhere too. Meanwhile others come and go.
            if *budget == 0 || waits() {
                return None;
            }
            if let Some(handle) = self.look(pid, inode, budget) {
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

    /// Looks for a socket among the descriptors of one process.
    fn look(&mut self, pid: u32, inode: u32, budget: &mut u32) -> Option<Handle> {
        let mut found = None;
        self.processes.each_socket(pid, budget, |handle| {
            if handle.inode == inode {
                found = Some(handle);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
    }
}
