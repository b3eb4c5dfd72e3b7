//! Network namespaces: the one this program runs in, and those of the host's containers (network_namespaces(7)).
//!
//! Each has its own sockets and addresses, so a question about a socket is asked where its address is at home. The
//! connection tracking table of the host knows the tuples of its containers too, as far as it routes for them.

use std::collections::HashSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::SockaddrStorage;

use crate::kernel::process::Processes;
use crate::kernel::sock_diag::SockDiag;

/// How the sockets for questions are opened.
type Open = fn() -> nix::Result<SockDiag>;

/// A network namespace in which sockets can be asked for.
#[derive(Debug)]
pub struct Namespace {
    /// The inode of its file in nsfs, which tells it from all others; 0 for the one this program runs in.
    pub id: u32,
    /// The questions to its kernel side. Held open, it keeps the namespace alive: drop it when its processes are gone.
    pub diag: SockDiag,
    addresses: HashSet<IpAddr>,
    /// The oldest process in it when it was last looked for: as long as it is there, the namespace is in use.
    oldest: u32,
}

impl Namespace {
    /// The namespace of the calling thread.
    fn here(id: u32, open: Open) -> Result<Self> {
        let diag = open().context("cannot ask the kernel for sockets (sock_diag)")?;
        Ok(Self { id, diag, addresses: addresses(), oldest: std::process::id() })
    }

    /// The namespace of process `pid`.
    ///
    /// # Errors
    /// Where it cannot be entered (setns(2): needs CAP_SYS_ADMIN), or is gone.
    fn of_process(processes: &Processes, pid: u32, id: u32, open: Open) -> Result<Self> {
        let file = File::open(link(processes.root(), pid)).context("cannot open a network namespace")?;
        // setns(2) moves one thread; this one comes back by ending.
        let entered = std::thread::Builder::new().spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
            Self::here(id, open)
        });
        let thread = entered.context("cannot start a thread")?;
        thread.join().map_err(|_| anyhow!("a thread in a network namespace failed"))?
    }

    /// Whether packets to `address` end here.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            // Loopback connections are tracked by their own namespace's table, and only the own one's is read.
            IpAddr::V4(v4) if v4.is_loopback() => self.id == 0,
            IpAddr::V6(v6) if v6.is_loopback() => self.id == 0,
            _ => self.addresses.contains(&address),
        }
    }

    /// Reads its addresses again.
    fn refresh_home(&mut self) {
        self.addresses = addresses();
    }
}

/// The namespaces in which this host's processes are.
#[derive(Debug)]
pub struct Namespaces {
    /// The own one first.
    all: Vec<Namespace>,
    home_id: u32,
    /// Those that were met at the last scan, the ones that could not be entered too.
    met: HashSet<u32>,
    open: Open,
}

impl Namespaces {
    /// The own namespace; the others are found by [`Namespaces::scan`].
    ///
    /// # Errors
    /// Where sock_diag is refused.
    pub fn new(proc_root: &Path) -> Result<Self> {
        Self::opened_by(proc_root, SockDiag::open)
    }

    /// The same, with sockets that also [tell what ends](SockDiag::destroyed).
    ///
    /// # Errors
    /// Where sock_diag is refused.
    pub fn with_destroy_events(proc_root: &Path) -> Result<Self> {
        Self::opened_by(proc_root, SockDiag::with_destroy_events)
    }

    fn opened_by(proc_root: &Path, open: Open) -> Result<Self> {
        let home_id = parse_link(&proc_root.join("self/ns/net")).unwrap_or_default();
        Ok(Self { all: vec![Namespace::here(0, open)?], home_id, met: HashSet::from([home_id]), open })
    }

    /// All of them, the own one first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Namespace> {
        self.all.iter_mut()
    }

    /// The one in which `address` is at home: the own one if it is there.
    pub fn with_address(&mut self, address: IpAddr) -> Option<&mut Namespace> {
        self.all.iter_mut().find(|namespace| namespace.has(address))
    }

    /// Reads the own namespace's addresses again.
    pub fn refresh(&mut self) {
        self.all[0].refresh_home();
    }

    /// Looks for the namespaces of all processes: enters each, to find new ones and the addresses of known ones, and
    /// lets go of those without processes. One that cannot be entered is left out.
    pub fn scan(&mut self, processes: &Processes) {
        let mut known = self.all.split_off(1);
        self.met = HashSet::from([self.home_id]);
        for pid in processes.youngest_first() {
            let Some(id) = parse_link(&link(processes.root(), pid)) else { continue };
            if self.met.insert(id)
                && let Ok(entered) = Namespace::of_process(processes, pid, id, self.open)
            {
                self.all.push(match known.iter().position(|namespace| namespace.id == id) {
                    // What it is subscribed to goes on.
                    Some(at) => Namespace { addresses: entered.addresses, ..known.swap_remove(at) },
                    None => entered,
                });
            }
            if let Some(namespace) = self.all.iter_mut().find(|namespace| namespace.id == id) {
                namespace.oldest = pid;
            }
        }
    }

    /// Enters the namespace of process `pid`, unless it was met before. Says whether it did.
    pub fn enter(&mut self, processes: &Processes, pid: u32) -> bool {
        let Some(id) = parse_link(&link(processes.root(), pid)).filter(|id| self.met.insert(*id)) else {
            return false;
        };
        let entered = Namespace::of_process(processes, pid, id, self.open);
        let entered = entered.map(|entered| self.all.push(Namespace { oldest: pid, ..entered }));
        entered.is_ok()
    }

    /// Whether a namespace other than the own one may have lost its last process.
    pub fn may_have_ended(&self, processes: &Processes) -> bool {
        self.all[1..].iter().any(|namespace| self.id_of(processes, namespace.oldest) != Some(namespace.id))
    }

    /// The namespace of process `pid`, as [`Namespace::id`] has it.
    pub fn id_of(&self, processes: &Processes, pid: u32) -> Option<u32> {
        let id = parse_link(&link(processes.root(), pid))?;
        Some(if id == self.home_id { 0 } else { id })
    }

    /// Whether process `pid` is in a namespace that no scan has met.
    pub fn is_new(&self, processes: &Processes, pid: u32) -> bool {
        parse_link(&link(processes.root(), pid)).is_some_and(|id| !self.met.contains(&id))
    }
}

fn link(proc_root: &Path, pid: u32) -> std::path::PathBuf {
    proc_root.join(pid.to_string()).join("ns/net")
}

/// The number in a link such as `net:[4026531840]`.
fn parse_link(path: &Path) -> Option<u32> {
    let target = std::fs::read_link(path).ok()?;
    target.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The addresses of the calling thread's namespace.
fn addresses() -> HashSet<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return HashSet::new() };
    interfaces.filter_map(|interface| ip_address(&interface.address?)).collect()
}

fn ip_address(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(v4.ip().into());
    }
    address.as_sockaddr_in6().map(|v6| v6.ip().into())
}
