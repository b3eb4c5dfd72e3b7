//! The host as a look-up sees it. Each of the two look-ups has a view of its own, since they run in different threads.

use std::sync::Arc;

use super::Identity;
use super::process_cache::{KnownProcess, ProcessCache};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::flow::{Protocol, Tuple};
use crate::kernel::namespace::Namespaces;
use crate::kernel::process::Processes;

/// Network namespaces, processes, and what the kernel noted of TCP connections.
#[derive(Debug)]
pub(super) struct HostView {
    /// Where sock_diag can be asked.
    pub namespaces: Option<Namespaces>,
    pub processes: Processes,
    pub cache: ProcessCache,
    /// Where the kernel lets us attach the program.
    tcp_owners: Option<Arc<TcpOwners>>,
}

/// The process that a note names.
pub(super) enum Noted<'a> {
    Process(&'a KnownProcess),
    /// It has ended, and was never read.
    Ended,
    /// The note is about an equal tuple in another network namespace: equal tuples share one note.
    OtherNamespace,
}

impl HostView {
    pub fn new(namespaces: Option<Namespaces>, processes: Processes, tcp_owners: Option<Arc<TcpOwners>>) -> Self {
        Self { namespaces, processes, cache: ProcessCache::default(), tcp_owners }
    }

    /// The kernel's notes, where it makes any about this tuple's protocol.
    pub fn notes(&self, tuple: &Tuple) -> Option<&TcpOwners> {
        self.tcp_owners.as_deref().filter(|_| tuple.protocol == Protocol::Tcp)
    }

    /// The process `pid` that a note about `tuple` names; `None` where no known namespace has the address of its source.
    pub fn noted(&mut self, tuple: &Tuple, pid: u32) -> Option<Noted<'_>> {
        let namespaces = self.namespaces.as_mut()?;
        let namespace = namespaces.with_address(tuple.source.address())?.id;
        Some(match self.cache.get_with_namespace(pid, &self.processes, namespaces) {
            None => Noted::Ended,
            Some(process) if process.namespace == Some(namespace) => Noted::Process(process),
            Some(_) => Noted::OtherNamespace,
        })
    }

    /// The process that runs under `pid`, or did a moment ago.
    pub fn identify(&self, pid: u32) -> Option<Identity> {
        let known = self.cache.known(pid);
        match self.processes.read(pid).map(Identity::from) {
            Some(now) => Some(now.or_earlier(known)),
            None => known.cloned(),
        }
    }

    /// Looks for network namespaces that processes have entered or left.
    pub fn scan_namespaces(&mut self) {
        if let Some(namespaces) = &mut self.namespaces {
            namespaces.scan(&self.processes);
        }
    }
}
