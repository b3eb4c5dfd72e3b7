//! Processes as they were when they were last looked at, which is once a tick: what has ended meanwhile is still known.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::kernel::namespace::Namespaces;
use crate::kernel::process::{Identity, Processes};

/// A process as it was at a tick.
#[derive(Debug, Clone)]
pub struct Cached {
    /// What ran there.
    pub identity: Identity,
    /// Its network namespace, as [`Namespaces::id_of`] has it, where that was asked for.
    pub namespace: Option<u32>,
    /// Whether it may have begun with sockets of the process that started it; false if it is known to have had none.
    pub may_inherit: bool,
}

/// The processes that were met since the tick began, and in the tick before.
#[derive(Debug, Default)]
pub struct ProcessCache {
    now: HashMap<u32, Cached>,
    before: HashMap<u32, Cached>,
}

impl ProcessCache {
    /// Begins a tick: each process is looked at again from now on.
    pub fn begin_tick(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    /// Takes in what is known of a process already.
    pub fn insert(&mut self, process: Cached) {
        self.now.insert(process.identity.pid, process);
    }

    /// Forgets what ran under `pid`: another program does now.
    pub fn remove(&mut self, pid: u32) {
        self.now.remove(&pid);
        self.before.remove(&pid);
    }

    /// What runs under `pid`, or did when it was last looked at.
    pub fn get(&mut self, pid: u32, processes: &Processes) -> Option<&mut Cached> {
        match self.now.entry(pid) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(place) => {
                let before = self.before.remove(&pid);
                let process = match (processes.identify(pid), before) {
                    (None, before) => before?,
                    // One that is ending has lost its command line already.
                    (Some(now), Some(before)) if now.nameless && now.start_time == before.identity.start_time => before,
                    (Some(identity), before) => {
                        let same = before.filter(|before| before.identity.start_time == identity.start_time);
                        Cached { identity, namespace: None, may_inherit: same.is_none_or(|same| same.may_inherit) }
                    }
                };
                Some(place.insert(process))
            }
        }
    }

    /// What is known of `pid` without a look at it now.
    pub fn known(&self, pid: u32) -> Option<&Identity> {
        self.now.get(&pid).or_else(|| self.before.get(&pid)).map(|process| &process.identity)
    }

    /// What runs under it, with its network namespace.
    pub fn get_with_namespace(
        &mut self,
        pid: u32,
        processes: &Processes,
        namespaces: &Namespaces,
    ) -> Option<&mut Cached> {
        let process = self.get(pid, processes)?;
        if process.namespace.is_none() {
            process.namespace = namespaces.id_of(processes, pid);
        }
        Some(process)
    }
}
