//! One owner at once, with as little work as it can: for connections that last a few milliseconds.
//!
//! The holder of a socket is looked for where it most likely is. First at the descriptors where sockets were found last:
//! a process that opens and closes connections uses the same few numbers again, as the kernel gives out the lowest free
//! one. Then at the same numbers of the youngest processes, which are those that were started to make this connection;
//! then at all of theirs, and of the processes that were found last; then everywhere, the youngest first. None of that is
//! needed where the kernel [notes who connects](crate::kernel::bpf::tcp_owners).

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::process_cache::{Cached, ProcessCache};
use super::socket::{Found, find, find_listener};
use super::{Answer, Sighting};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::flow::{Flow, Protocol, Tuple};
use crate::kernel::namespace::Namespaces;
use crate::kernel::process::{Handle, Identity, Processes};

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

/// Finds owners one by one.
#[derive(Debug)]
pub struct Seeker {
    namespaces: Namespaces,
    processes: Processes,
    /// Where the kernel allows it.
    connects: Option<Arc<TcpOwners>>,
    hot: VecDeque<(u32, u32)>,
    recent: VecDeque<u32>,
    met: ProcessCache,
    /// The listeners that were met since then, by the inodes of their sockets.
    listeners: HashMap<u32, (u32, Handle)>,
    /// How many programs that started since the tick began were looked at.
    started: u32,
    /// What is left of the work that may be done before the next tick, in descriptors.
    budget: u32,
}

impl Seeker {
    /// A seeker among the processes and sockets of this host, which makes use of what the kernel notes.
    ///
    /// # Errors
    /// Where sock_diag is refused.
    pub fn of_this_host(connects: Option<Arc<TcpOwners>>) -> anyhow::Result<Self> {
        let processes = Processes::new("/proc");
        Ok(Self {
            namespaces: Namespaces::new(processes.root())?,
            processes,
            connects,
            hot: VecDeque::new(),
            recent: VecDeque::new(),
            met: ProcessCache::default(),
            listeners: HashMap::new(),
            started: 0,
            budget: 0,
        })
    }

    /// Begins a tick: `budget` descriptors may be looked at in it, beyond those where the owner is most likely found. What
    /// a process was called is read again from now on, and what addresses there are.
    pub fn begin(&mut self, budget: u32) {
        self.budget = budget;
        self.met.begin_tick();
        self.listeners.clear();
        self.started = 0;
        self.namespaces.refresh();
    }

    /// Looks for the network namespaces of the host's processes.
    pub fn scan_namespaces(&mut self) {
        self.namespaces.scan(&self.processes);
    }

    /// Who is at the source of the original tuple, if the kernel noted who connected it: a microsecond.
    pub fn glance(&mut self, flow: &Flow) -> Option<Sighting> {
        self.connected(&flow.original)
    }

    /// Who is at the sources of the reply and, unless that is `known`, of the original tuple; `None` where it takes more than
    /// the budget to say, or where something more urgent `waits` before it is found: who connects may be gone in a moment,
    /// and mostly whoever accepts stays.
    pub fn sight(&mut self, flow: &Flow, known: bool, waits: &dyn Fn() -> bool) -> [Option<Sighting>; 2] {
        let at_original = if known { None } else { self.sight_end(&flow.original, true, waits) };
        [at_original, self.sight_end(&flow.reply, false, waits)]
    }

    /// Looks at `pid`, which has started a program: what it is called now is known from here on, even if it is gone when it
    /// is asked for, and whether it has sockets to begin with.
    pub fn started(&mut self, pid: u32) -> Option<Cached> {
        self.met.remove(pid);
        if self.started == STARTED_PER_TICK {
            return None;
        }
        self.started += 1;
        let process = self.met.get_with_namespace(pid, &self.processes, &self.namespaces)?;
        process.may_inherit = false;
        self.processes.each_socket(pid, &mut GLANCE.clone(), |_| {
            process.may_inherit = true;
            ControlFlow::Break(())
        });
        Some(process.clone())
    }

    fn sight_end(&mut self, tuple: &Tuple, urgent: bool, waits: &dyn Fn() -> bool) -> Option<Sighting> {
        match find(&mut self.namespaces, tuple) {
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
                // Whoever listens is known mostly, and where the connection went is seen at the tick, if it lives so long.
                if connected
                    && let Some(listener) = find_listener(&mut self.namespaces, tuple)
                    && let Some(holder) = self.hot_holder(listener)
                {
                    return self.held(holder, false);
                }
                let holder = self.search(inode, urgent, waits)?;
                self.held(holder, connected)
            }
            // The tick looks once more.
            Found::Elsewhere | Found::NoSocket | Found::Socket { .. } | Found::Closed(_) => None,
        }
    }

    fn held(&mut self, (pid, handle): (u32, Handle), connected: bool) -> Option<Sighting> {
        let identity = self.identify(pid)?;
        let answer = Answer::Held { pid, handle: Some(handle), connected };
        Some(Sighting { answer, identity })
    }

    /// The process that made this connection, if the kernel noted it.
    fn connected(&mut self, tuple: &Tuple) -> Option<Sighting> {
        let pid = self.connects.as_ref().filter(|_| tuple.protocol == Protocol::Tcp)?.owner(tuple)?;
        let address = tuple.source.address();
        // A container that has just begun may be gone when the namespaces are looked for.
        if self.namespaces.with_address(address).is_none() && !self.namespaces.enter(&self.processes, pid) {
            return None;
        }
        let home = self.namespaces.with_address(address)?.id;
        let process = self.met.get_with_namespace(pid, &self.processes, &self.namespaces)?;
        // Equal tuples in two namespaces share one note.
        if process.namespace != Some(home) {
            return None;
        }
        let answer = Answer::Held { pid, handle: None, connected: true };
        Some(Sighting { answer, identity: process.identity.clone() })
    }

    fn identify(&mut self, pid: u32) -> Option<Identity> {
        self.met.get(pid, &self.processes).map(|process| process.identity.clone())
    }

    /// The holder of a socket, if it is at one of the descriptors where sockets were found last.
    fn hot_holder(&mut self, inode: u32) -> Option<(u32, Handle)> {
        let at = self.hot.iter().position(|&(pid, fd)| self.processes.holds(pid, Handle { inode, fd }))?;
        let (pid, fd) = self.hot.remove(at)?;
        self.hot.push_front((pid, fd));
        Some((pid, Handle { inode, fd }))
    }

    /// The holder of a socket, if the budget is enough to find it and nothing more urgent waits. What is `urgent` itself is
    /// looked for where it most likely is in any case.
    fn search(&mut self, inode: u32, urgent: bool, waits: &dyn Fn() -> bool) -> Option<(u32, Handle)> {
        let mut budget = std::mem::take(&mut self.budget);
        let found = self.search_within(inode, &mut budget, urgent, waits);
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

    fn search_within(
        &mut self,
        inode: u32,
        budget: &mut u32,
        urgent: bool,
        waits: &dyn Fn() -> bool,
    ) -> Option<(u32, Handle)> {
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
            if !urgent && waits() {
                return None;
            }
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;
    use crate::kernel::flow::Endpoint;

    #[test]
    fn who_accepts_is_not_looked_for_while_something_waits() {
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

        let mut seeker = match Seeker::of_this_host(None) {
            Ok(seeker) => seeker,
            Err(error) => return eprintln!("who_accepts_is_not_looked_for… is skipped: {error:#}"),
        };
        seeker.begin(u32::MAX);
        assert!(seeker.sight(&flow, true, &|| true)[1].is_none());
        let found = seeker.sight(&flow, true, &|| false)[1].take();
        assert_eq!(found.unwrap().identity.pid, std::process::id());
    }
}
