//! Processes as they were when last read, once a tick: a process that has ended since then is still known.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::Identity;
use crate::kernel::namespace::Namespaces;
use crate::kernel::process::Processes;

/// A process as it was when last read.
#[derive(Debug, Clone)]
pub struct KnownProcess {
    /// The process.
    pub identity: Identity,
    /// The [id](Namespaces::id_of) of its network namespace, if that was read.
    pub namespace: Option<u32>,
    /// Whether it may have begun with sockets of the process that started it; false if it began without any.
    pub may_inherit: bool,
}

/// The processes that were read in this tick and in the last one.
#[derive(Debug, Default)]
pub(super) struct ProcessCache {
    now: HashMap<u32, KnownProcess>,
    before: HashMap<u32, KnownProcess>,
}

impl ProcessCache {
    /// Begins a tick: a process that was read before is read again when it is next needed.
    pub fn begin_tick(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    /// Adds a process that was read elsewhere.
    pub fn insert(&mut self, process: KnownProcess) {
        self.now.insert(process.identity.pid, process);
    }

    /// Forgets the process under `pid`, which has started another program.
    pub fn remove(&mut self, pid: u32) {
        self.now.remove(&pid);
        self.before.remove(&pid);
    }

    /// The process that runs under `pid`, or did when it was last read.
    pub fn get(&mut self, pid: u32, processes: &Processes) -> Option<&mut KnownProcess> {
        match self.now.entry(pid) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(place) => {
                let before = self.before.remove(&pid);
                let process = match (processes.read(pid).ok().flatten().map(Identity::from), before) {
                    (None, before) => before?,
                    (Some(now), None) => KnownProcess { identity: now, namespace: None, may_inherit: true },
                    (Some(now), Some(before)) => {
                        let same = now.start_time == before.identity.start_time;
                        let exiting = same && now.nameless;
                        KnownProcess {
                            identity: now.or_earlier(Some(&before.identity)),
                            // A process may have moved to another namespace, unless it is exiting.
                            namespace: before.namespace.filter(|_| exiting),
                            may_inherit: !same || before.may_inherit,
                        }
                    }
                };
                Some(place.insert(process))
            }
        }
    }

    /// The process under `pid` as it was last read, without reading it now.
    pub fn known(&self, pid: u32) -> Option<&Identity> {
        self.now.get(&pid).or_else(|| self.before.get(&pid)).map(|process| &process.identity)
    }

    /// As [`get`](Self::get), with the network namespace of the process.
    pub fn get_with_namespace(
        &mut self,
        pid: u32,
        processes: &Processes,
        namespaces: &Namespaces,
    ) -> Option<&mut KnownProcess> {
        let process = self.get(pid, processes)?;
        if process.namespace.is_none() {
            process.namespace = namespaces.id_of(processes, pid);
        }
        Some(process)
    }
}
