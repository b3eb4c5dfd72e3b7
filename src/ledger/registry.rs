//! The processes that own flows. Flows refer to them by index.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::attribution::{Identity, ProcessLookup};
use crate::kernel::process::Unreadable;
use crate::traffic::subject::Subject;

/// A process that owns flows.
#[derive(Debug)]
pub(super) struct OwningProcess {
    pub identity: Identity,
    /// Whether it has ended; another process may have its pid now.
    gone: bool,
    /// The last tick at which it was seen alive.
    alive: u32,
    /// The tick at which it was found to have ended, if it was read before.
    ended: Option<u32>,
    mark: Mark,
    /// The number of sockets that refer to it, whether they move anything in this tick or not.
    sockets: u32,
}

impl OwningProcess {
    /// Whether it has ended, as far as is known.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// The number of sockets that refer to it.
    pub fn sockets(&self) -> u32 {
        self.sockets
    }
}

/// Which flows refer to a process. Each tick marks all processes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    None,
    Closing,
    Open,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    processes: Vec<Option<OwningProcess>>,
    free: Vec<u32>,
    by_pid: HashMap<u32, u32>,
    /// The programs that processes ran before the ones that they run now.
    replaced: HashMap<(u32, Arc<Subject>), u32>,
}

impl Registry {
    pub fn get(&self, at: u32) -> Option<&OwningProcess> {
        self.processes.get(at as usize)?.as_ref()
    }

    /// A number that is above every index.
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// Whether the process at index `parent` may have started `child`, which then has its sockets: they run as the same
    /// user, or the parent as root. A child that is not known any more may be its own.
    pub fn may_have_started(&self, parent: u32, child: Option<Identity>) -> bool {
        let (Some(parent), Some(child)) = (self.get(parent), child) else { return true };
        let (parent, child) = (parent.identity.subject.uid(), child.subject.uid());
        parent == child || parent == Some(0)
    }

    /// The index of the process that runs under `pid`, or did until this tick; `None` if there is none.
    pub fn index(
        &mut self,
        pid: u32,
        tick: u32,
        identify: &mut dyn FnMut(u32) -> Result<Option<Identity>, Unreadable>,
    ) -> Option<u32> {
        if let Some(&at) = self.by_pid.get(&pid)
            && !self.has_ended(at, tick, identify)
        {
            self.mark(at, true);
            return Some(at);
        }
        let Some(identity) = identify(pid).ok()? else {
            // No other process has its pid yet, so that what the kernel recorded since the last tick is about this one.
            let just_ended = |at: &u32| self.get(*at).is_some_and(|process| process.ended == Some(tick));
            let at = self.by_pid.get(&pid).copied().filter(just_ended)?;
            self.mark(at, true);
            return Some(at);
        };
        let at = self.insert(identity, false, tick)?;
        self.by_pid.insert(pid, at);
        Some(at)
    }

    /// The index of a program that a process ran before the one that it runs now.
    pub fn index_of_replaced(&mut self, identity: Identity, tick: u32) -> Option<u32> {
        let key = (identity.pid, Arc::clone(&identity.subject));
        if let Some(&at) = self.replaced.get(&key) {
            self.mark(at, true);
            return Some(at);
        }
        let at = self.insert(identity, true, tick)?;
        self.replaced.insert(key, at);
        Some(at)
    }

    fn insert(&mut self, identity: Identity, gone: bool, tick: u32) -> Option<u32> {
        let process = Some(OwningProcess { identity, gone, alive: tick, ended: None, mark: Mark::Open, sockets: 0 });
        if let Some(at) = self.free.pop() {
            self.processes[at as usize] = process;
            return Some(at);
        }
        self.processes.push(process);
        u32::try_from(self.processes.len() - 1).ok()
    }

    /// Whether the process has ended.
    pub fn is_gone(&mut self, at: u32, tick: u32, processes: &mut dyn ProcessLookup) -> bool {
        self.has_ended(at, tick, &mut |pid| processes.identify(pid))
    }

    /// Whether the process has ended since the last tick, in which it was seen alive.
    pub fn has_just_ended(&self, at: u32, tick: u32) -> bool {
        self.get(at).is_some_and(|process| process.gone && process.alive + 1 == tick)
    }

    /// Whether the process has ended. Reads its identity again once a tick, since a command line can change (exec,
    /// setproctitle) and the kernel reuses pids.
    fn has_ended(
        &mut self,
        at: u32,
        tick: u32,
        identify: &mut dyn FnMut(u32) -> Result<Option<Identity>, Unreadable>,
    ) -> bool {
        let Some(Some(process)) = self.processes.get_mut(at as usize) else { return true };
        if process.gone || process.alive == tick {
            return process.gone;
        }
        match identify(process.identity.pid) {
            // It may have ended or not: the next tick finds out.
            Err(Unreadable) => {}
            Ok(Some(identity)) if identity.is_same_process(&process.identity) => {
                process.alive = tick;
                process.identity = identity.or_earlier(Some(&process.identity));
            }
            _ => {
                process.gone = true;
                process.ended = Some(tick);
            }
        }
        process.gone
    }

    /// Clears all marks.
    pub fn unmark(&mut self) {
        self.processes.iter_mut().flatten().for_each(|process| process.mark = Mark::None);
    }

    /// Marks a process to which a flow refers.
    pub fn mark(&mut self, at: u32, open: bool) {
        if let Some(Some(process)) = self.processes.get_mut(at as usize) {
            process.mark = process.mark.max(if open { Mark::Open } else { Mark::Closing });
        }
    }

    /// Adds a socket that refers to a process, from now on until it is removed.
    pub fn add_socket(&mut self, at: u32) {
        if let Some(Some(process)) = self.processes.get_mut(at as usize) {
            process.sockets += 1;
        }
    }

    /// Removes one.
    pub fn remove_socket(&mut self, at: u32) {
        if let Some(Some(process)) = self.processes.get_mut(at as usize) {
            process.sockets = process.sockets.saturating_sub(1);
        }
    }

    pub fn with_open_flows(&self) -> impl Iterator<Item = &OwningProcess> {
        self.processes.iter().flatten().filter(|process| process.mark == Mark::Open || process.sockets > 0)
    }

    /// Drops the processes to which no flow refers.
    pub fn forget_unmarked(&mut self) {
        for (at, slot) in (0..).zip(&mut self.processes) {
            if let Some(process) = slot
                && process.mark == Mark::None
                && process.sockets == 0
            {
                let Identity { pid, subject, .. } = &process.identity;
                if self.by_pid.get(pid) == Some(&at) {
                    self.by_pid.remove(pid);
                }
                if process.gone
                    && let Entry::Occupied(replaced) = self.replaced.entry((*pid, Arc::clone(subject)))
                    && *replaced.get() == at
                {
                    replaced.remove();
                }
                *slot = None;
                self.free.push(at);
            }
        }
    }
}
