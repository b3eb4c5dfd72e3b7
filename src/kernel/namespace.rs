//! Network namespaces: our own, and those of the host's containers (network_namespaces(7)).
//!
//! Each has its own sockets and addresses, so we query a socket in the namespace that has its address. The host's
//! connection tracking table also has the tuples of its containers, as far as the host routes for them.
//!
//! ```text
//! /proc/4711/ns/net -> net:[4026531840]
//! ```

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::socket::SockaddrStorage;

use crate::kernel::inside;
use crate::kernel::process::Processes;
use crate::kernel::sock_diag::SockDiag;

/// How the sock_diag socket of a namespace is opened.
type OpenSockDiag = fn() -> nix::Result<SockDiag>;

/// A network namespace whose sockets we can query.
#[derive(Debug)]
pub struct Namespace {
    /// The inode of its file in nsfs, which is unique on the host; 0 for our own.
    pub id: u32,
    /// Queries its sockets. While this is open the kernel keeps the namespace, so drop it when the last process has
    /// left.
    pub diag: SockDiag,
    addresses: HashSet<IpAddr>,
    /// The oldest process that the last scan found in it. While that process is there, the namespace is in use.
    oldest: u32,
}

impl Namespace {
    /// The namespace of the calling thread.
    fn here(id: u32, open: OpenSockDiag) -> Result<Self> {
        let diag = open().context("cannot query the kernel's sockets (sock_diag)")?;
        Ok(Self { id, diag, addresses: addresses(), oldest: std::process::id() })
    }

    /// The namespace of process `pid`.
    ///
    /// # Errors
    /// Where it cannot be entered (setns(2) needs CAP_SYS_ADMIN) or is gone.
    fn of_process(processes: &Processes, pid: u32, id: u32, open: OpenSockDiag) -> Result<Self> {
        inside::run_in(&link(processes.root(), pid), move || Self::here(id, open))
    }

    /// Whether the namespace has `address`: packets to it end there.
    pub fn has_address(&self, address: IpAddr) -> bool {
        match address {
            // A namespace's own conntrack table tracks its loopback connections, and we read only our own table.
            IpAddr::V4(v4) if v4.is_loopback() => self.id == 0,
            IpAddr::V6(v6) if v6.is_loopback() => self.id == 0,
            _ => self.addresses.contains(&address),
        }
    }
}

/// The network namespaces of this host's processes.
#[derive(Debug)]
pub struct Namespaces {
    /// Our own first.
    all: Vec<Namespace>,
    /// The inode of our own.
    own_inode: u32,
    /// The inodes of those found since the last scan began, including those that we could not enter.
    found: HashSet<u32>,
    open: OpenSockDiag,
}

impl Namespaces {
    /// Our own namespace; [`Namespaces::scan`] finds the others.
    ///
    /// # Errors
    /// Where the kernel refuses sock_diag.
    pub fn new(proc_root: &Path) -> Result<Self> {
        Self::opened_by(proc_root, SockDiag::open)
    }

    /// Like [`new`](Self::new), but the [`Namespace::diag`] of each namespace also receives the TCP sockets that the
    /// kernel [destroys](SockDiag::destroyed).
    ///
    /// # Errors
    /// Where the kernel refuses sock_diag.
    pub fn with_destroy_events(proc_root: &Path) -> Result<Self> {
        Self::opened_by(proc_root, SockDiag::with_destroy_events)
    }

    fn opened_by(proc_root: &Path, open: OpenSockDiag) -> Result<Self> {
        let own_inode = inode(&proc_root.join("self/ns/net")).unwrap_or_default();
        Ok(Self { all: vec![Namespace::here(0, open)?], own_inode, found: HashSet::from([own_inode]), open })
    }

    /// All of them, our own first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Namespace> {
        self.all.iter_mut()
    }

    /// The namespace that has `address`: our own, if several have it.
    pub fn with_address(&mut self, address: IpAddr) -> Option<&mut Namespace> {
        self.all.iter_mut().find(|namespace| namespace.has_address(address))
    }

    /// Reads the addresses of our own namespace again.
    pub fn refresh(&mut self) {
        self.all[0].addresses = addresses();
    }

    /// Looks up the namespaces of all processes. Enters each of them, to find new ones and the current addresses of
    /// known ones, and drops those without processes. Leaves out new ones that cannot be entered.
    pub fn scan(&mut self, processes: &Processes) {
        let pids = processes.youngest_first();
        if pids.is_empty() {
            // Not even this process is there: /proc could not be read, and what was known holds on.
            return;
        }
        let mut known = self.all.split_off(1);
        self.found = HashSet::from([self.own_inode]);
        for pid in pids {
            let Some(id) = inode(&link(processes.root(), pid)) else { continue };
            if self.found.insert(id) {
                let before = known.iter().position(|namespace| namespace.id == id).map(|at| known.swap_remove(at));
                self.all.extend(match (Namespace::of_process(processes, pid, id, self.open), before) {
                    // Keeps its sock_diag socket, which may hold events to be read.
                    (Ok(entered), Some(before)) => Some(Namespace { addresses: entered.addresses, ..before }),
                    (Ok(entered), None) => Some(entered),
                    // For want of a descriptor, or since the process has just ended.
                    (Err(_), before) => before,
                });
            }
            if let Some(namespace) = self.all.iter_mut().find(|namespace| namespace.id == id) {
                namespace.oldest = pid;
            }
        }
    }

    /// Adds the namespace of process `pid`, unless it was found before. Returns whether it has added one.
    pub fn enter(&mut self, processes: &Processes, pid: u32) -> bool {
        let Some(id) = inode(&link(processes.root(), pid)).filter(|id| self.found.insert(*id)) else {
            return false;
        };
        let entered = Namespace::of_process(processes, pid, id, self.open);
        let entered = entered.map(|entered| self.all.push(Namespace { oldest: pid, ..entered }));
        entered.is_ok()
    }

    /// Whether a namespace other than our own may have lost its last process.
    pub fn may_have_ended(&self, processes: &Processes) -> bool {
        self.all[1..].iter().any(|namespace| self.id_of(processes, namespace.oldest) != Some(namespace.id))
    }

    /// The [`Namespace::id`] of the namespace of process `pid`.
    pub fn id_of(&self, processes: &Processes, pid: u32) -> Option<u32> {
        let id = inode(&link(processes.root(), pid))?;
        Some(if id == self.own_inode { 0 } else { id })
    }

    /// Whether process `pid` is in a namespace that was not found before.
    pub fn is_new(&self, processes: &Processes, pid: u32) -> bool {
        inode(&link(processes.root(), pid)).is_some_and(|id| !self.found.contains(&id))
    }
}

/// The link to the network namespace of process `pid`.
fn link(proc_root: &Path, pid: u32) -> PathBuf {
    proc_root.join(pid.to_string()).join("ns/net")
}

/// The inode of the network namespace to which `link` leads; `None` where the link cannot be read.
fn inode(link: &Path) -> Option<u32> {
    parse_link(std::fs::read_link(link).ok()?.to_str()?)
}

/// The inode in `net:[4026531840]`.
fn parse_link(target: &str) -> Option<u32> {
    target.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The addresses of the calling thread's namespace; none where the kernel does not list them.
pub fn addresses() -> HashSet<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return HashSet::new() };
    interfaces.filter_map(|interface| ip_address(&interface.address?)).collect()
}

fn ip_address(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(v4.ip().into());
    }
    address.as_sockaddr_in6().map(|v6| v6.ip().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inode_stands_in_the_link_of_a_network_namespace() {
        assert_eq!(parse_link("net:[4026531840]"), Some(4_026_531_840));
        assert_eq!(parse_link("pid:[4026531836]"), None);
        assert_eq!(parse_link("net:[4026531840"), None);
    }

    #[test]
    fn a_namespace_is_dropped_only_when_no_process_is_in_it() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: u32, namespace: &str| {
            let directory = proc.path().join(pid.to_string()).join("ns");
            std::fs::create_dir_all(&directory).unwrap();
            std::os::unix::fs::symlink(namespace, directory.join("net")).unwrap();
        };
        let mut namespaces = Namespaces::new(Path::new("/proc")).unwrap();
        namespaces.all.push(Namespace::here(123, SockDiag::open).unwrap());
        let known = |namespaces: &Namespaces| namespaces.all.iter().any(|namespace| namespace.id == 123);
        // It cannot be entered now, as without a free descriptor.
        process(7, "net:[123]");
        namespaces.scan(&Processes::new(proc.path()));
        assert!(known(&namespaces));
        // /proc cannot be read.
        namespaces.scan(&Processes::new(proc.path().join("missing")));
        assert!(known(&namespaces));
        std::fs::remove_dir_all(proc.path().join("7")).unwrap();
        process(8, "net:[124]");
        namespaces.scan(&Processes::new(proc.path()));
        assert!(!known(&namespaces));
    }
}
