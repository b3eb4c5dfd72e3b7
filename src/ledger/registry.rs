//! The processes that own flows, each at an index to which the flows refer.

use std::collections::HashMap;

use crate::attribution::{Identity, ProcessLookup};

/// A process that owns flows.
#[derive(Debug)]
pub(super) struct OwningProcess {
    pub identity: Identity,
    /// Whether it has ended; its pid may be another process's now.
    gone: bool,
    /// The last tick at which its identity was read.
    read: u32,
    mark: Mark,
}

/// Which flows refer to a process; set anew at each tick.
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
}

impl Registry {
    pub fn get(&self, at: u32) -> Option<&OwningProcess> {
        self.processes.get(at as usize)?.as_ref()
    }

    /// The index of the process that runs under `pid`; `None` where none does any more.
    pub fn index(&mut self, pid: u32, tick: u32, identify: &mut dyn FnMut(u32) -> Option<Identity>) -> Option<u32> {
        if let Some(&at) = self.by_pid.get(&pid)
            && !self.check(at, tick, identify)
        {
            self.mark(at, true);
            return Some(at);
        }
        let process = Some(OwningProcess { identity: identify(pid)?, gone: false, read: tick, mark: Mark::Open });
        let at = match self.free.pop() {
            Some(at) => {
                self.processes[at as usize] = process;
                at
            }
            None => {
                self.processes.push(process);
                u32::try_from(self.processes.len() - 1).ok()?
            }
        };
        self.by_pid.insert(pid, at);
        Some(at)
    }

    /// Whether the process has ended.
    pub fn is_gone(&mut self, at: u32, tick: u32, processes: &mut dyn ProcessLookup) -> bool {
        self.check(at, tick, &mut |pid| processes.identify(pid))
    }

    /// Reads the identity of a process once a tick, since a command line can change (exec, setproctitle) and the kernel
    /// reuses pids. Returns whether the process has ended.
    fn check(&mut self, at: u32, tick: u32, identify: &mut dyn FnMut(u32) -> Option<Identity>) -> bool {
        let Some(Some(process)) = self.processes.get_mut(at as usize) else { return true };
        if process.gone || process.read == tick {
            return process.gone;
        }
        process.read = tick;
        match identify(process.identity.pid) {
            Some(identity) if identity.start_time == process.identity.start_time => {
                process.identity = identity.or_earlier(Some(&process.identity));
            }
            _ => {
                process.gone = true;
                self.by_pid.remove(&process.identity.pid);
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

    pub fn with_open_flows(&self) -> impl Iterator<Item = &OwningProcess> {
        self.processes.iter().flatten().filter(|process| process.mark == Mark::Open)
    }

    /// Drops the processes to which no flow refers.
    pub fn forget_unmarked(&mut self) {
        for (at, slot) in (0..).zip(&mut self.processes) {
            if let Some(process) = slot
                && process.mark == Mark::None
            {
                if !process.gone {
                    self.by_pid.remove(&process.identity.pid);
                }
                *slot = None;
                self.free.push(at);
            }
        }
    }
}
