//! The host as a lookup sees it. Each of the two lookups has a view of its own, since they run in different threads.

use std::sync::Arc;

use super::Identity;
use super::history::History;
use super::process_cache::{KnownProcess, ProcessCache};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::flow::{Protocol, Tuple};
use crate::kernel::namespace::Namespaces;
use crate::kernel::process::{Processes, Unreadable};

/// Network namespaces, processes, and the kernel's records of TCP connections.
#[derive(Debug)]
pub(super) struct HostView {
    /// `None` if the kernel refuses sock_diag.
    pub namespaces: Option<Namespaces>,
    pub processes: Processes,
    pub cache: ProcessCache,
    pub history: History,
    /// `None` if the kernel refuses the BPF program.
    pub tcp_owners: Option<Arc<TcpOwners>>,
}

/// The process that a record of the kernel names.
pub(super) enum Recorded<'a> {
    Process(&'a KnownProcess),
    /// It has ended, and was never read.
    Ended,
    /// The record may be about an equal tuple in another network namespace: equal tuples share one record.
    OtherNamespace,
}

impl HostView {
    pub fn new(namespaces: Option<Namespaces>, processes: Processes, tcp_owners: Option<Arc<TcpOwners>>) -> Self {
        Self { namespaces, processes, cache: ProcessCache::default(), history: History::default(), tcp_owners }
    }

    /// The kernel's records, if it makes any for the protocol of this tuple.
    pub fn records(&self, tuple: &Tuple) -> Option<&TcpOwners> {
        self.tcp_owners.as_deref().filter(|_| tuple.protocol == Protocol::Tcp)
    }

    /// The process `pid` that the record about `tuple` names; `None` if no known namespace has the address of its
    /// source.
    pub fn recorded(&mut self, tuple: &Tuple, pid: u32) -> Option<Recorded<'_>> {
        let namespaces = self.namespaces.as_mut()?;
        let mut with_address = namespaces.with_address(tuple.source.address()).map(|namespace| namespace.id);
        let (namespace, several) = (with_address.next()?, with_address.next().is_some());
        drop(with_address);
        Some(match self.cache.get_with_namespace(pid, &self.processes, namespaces) {
            None => Recorded::Ended,
            Some(process) if process.namespace == Some(namespace) && !several => Recorded::Process(process),
            Some(_) => Recorded::OtherNamespace,
        })
    }

    /// The process that runs under `pid`, or did a moment ago.
    pub fn identify(&self, pid: u32) -> Result<Option<Identity>, Unreadable> {
        let known = self.cache.known(pid);
        Ok(match self.processes.read(pid)?.map(Identity::from) {
            Some(now) => Some(now.or_earlier(known)),
            None => known.cloned().or_else(|| self.identify_by_parent(pid)),
        })
    }

    /// The process under `pid` that has ended before anyone read it, if it ran the program of its parent.
    fn identify_by_parent(&self, pid: u32) -> Option<Identity> {
        let (parent, at) = self.history.inherited(pid)?;
        let program = match self.history.replaced_program(parent, at) {
            Some(replaced) => replaced.clone(),
            None if self.history.has_executed(parent, at) => return None,
            None => match self.cache.known(parent) {
                Some(known) => known.clone(),
                None => self.processes.read(parent).ok()??.into(),
            },
        };
        // No process starts at 0: this one is known by its parent alone.
        Some(Identity { pid, start_time: 0, ..program })
    }

    /// Looks for network namespaces that processes have entered or left.
    pub fn scan_namespaces(&mut self) {
        if let Some(namespaces) = &mut self.namespaces {
            namespaces.scan(&self.processes);
        }
    }
}
