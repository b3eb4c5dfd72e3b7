//! The processes that own flows, each at an index that the flows refer to.

use std::collections::HashMap;

use crate::attribution::Processes;
use crate::kernel::process::Identity;

#[derive(Debug)]
pub(super) struct Process {
    pub identity: Identity,
    /// Whether it is no longer there, or its pid another's.
    gone: bool,
    /// The last tick at which its identity was read.
    read: u32,
    mark: Mark,
}

/// Which flows refer to a process; found anew at each tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    None,
    Closing,
    Open,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    processes: Vec<Option<Process>>,
    free: Vec<u32>,
    by_pid: HashMap<u32, u32>,
}

impl Registry {
    pub fn get(&self, at: u32) -> Option<&Process> {
        self.processes.get(at as usize)?.as_ref()
    }

    /// The index of what runs under `pid`; `None` where nothing does any more.
    pub fn index(&mut self, pid: u32, tick: u32, identify: &mut dyn FnMut(u32) -> Option<Identity>) -> Option<u32> {
        if let Some(&at) = self.by_pid.get(&pid)
            && !self.check(at, tick, identify)
        {
            self.mark(at, true);
            return Some(at);
        }
        let process = Some(Process { identity: identify(pid)?, gone: false, read: tick, mark: Mark::Open });
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

    /// Whether the process is no longer there.
    pub fn is_gone(&mut self, at: u32, tick: u32, now: &mut dyn Processes) -> bool {
        self.check(at, tick, &mut |pid| now.identify(pid))
    }

    /// Reads the identity of a process once a tick, since a command line can change (exec, a title written over it) and a
    /// pid can become another's. Says whether the process is gone.
    fn check(&mut self, at: u32, tick: u32, identify: &mut dyn FnMut(u32) -> Option<Identity>) -> bool {
        let Some(Some(process)) = self.processes.get_mut(at as usize) else { return true };
        if process.gone || process.read == tick {
            return process.gone;
        }
        process.read = tick;
        match identify(process.identity.pid) {
            Some(identity) if identity.start_time == process.identity.start_time => {
                // One that is ending has lost its command line already, and what it was called is still true.
                if !identity.nameless {
                    process.identity = identity;
                }
            }
            _ => {
                process.gone = true;
                self.by_pid.remove(&process.identity.pid);
            }
        }
        process.gone
    }

    /// Forgets all marks.
    pub fn unmark(&mut self) {
        self.processes.iter_mut().flatten().for_each(|process| process.mark = Mark::None);
    }

    /// Marks a process that a flow refers to.
    pub fn mark(&mut self, at: u32, open: bool) {
        if let Some(Some(process)) = self.processes.get_mut(at as usize) {
            process.mark = process.mark.max(if open { Mark::Open } else { Mark::Closing });
        }
    }

    pub fn with_open_flows(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().flatten().filter(|process| process.mark == Mark::Open)
    }

    /// Forgets the processes that no flow refers to.
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
