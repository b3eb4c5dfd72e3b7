//! The processes that own flows, each at an index that the flows refer to.

use std::collections::HashMap;

use crate::process::Identity;

#[derive(Debug)]
pub(super) struct Process {
    pub identity: Identity,
    /// Whether it is no longer there, or its pid another's.
    pub gone: bool,
    /// The last tick at which its identity was read.
    read: u32,
    /// Found anew at each tick: whether any flow refers to it, and whether any open one does.
    pub referred: bool,
    pub open: bool,
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

    pub fn get_mut(&mut self, at: u32) -> Option<&mut Process> {
        self.processes.get_mut(at as usize)?.as_mut()
    }

    /// The index of what runs under `pid`; `None` where nothing does any more.
    pub fn index(&mut self, pid: u32, tick: u32, identify: &mut dyn FnMut(u32) -> Option<Identity>) -> Option<u32> {
        if let Some(&at) = self.by_pid.get(&pid)
            && !self.is_gone(at, tick, identify)
        {
            return Some(at);
        }
        let process = Some(Process { identity: identify(pid)?, gone: false, read: tick, referred: true, open: true });
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

    /// Whether the process is no longer there. Reads its identity once a tick: a command line can change (exec, a title
    /// written over it), and a pid can become another's.
    pub fn is_gone(&mut self, at: u32, tick: u32, identify: &mut dyn FnMut(u32) -> Option<Identity>) -> bool {
        let Some(process) = self.get_mut(at) else { return true };
        if process.gone || process.read == tick {
            return process.gone;
        }
        process.read = tick;
        match identify(process.identity.pid) {
            Some(identity) if identity.start_time == process.identity.start_time => {
                // An ending process has lost its command line already, and what it was called is still true.
                if !identity.nameless {
                    process.identity = identity;
                }
                false
            }
            _ => {
                process.gone = true;
                let pid = process.identity.pid;
                self.by_pid.remove(&pid);
                true
            }
        }
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Process> {
        self.processes.iter_mut().flatten()
    }

    /// Forgets the processes that no flow refers to.
    pub fn forget_unreferred(&mut self) {
        for (at, slot) in self.processes.iter_mut().enumerate() {
            if let Some(process) = slot
                && !process.referred
            {
                if !process.gone {
                    self.by_pid.remove(&process.identity.pid);
                }
                *slot = None;
                self.free.extend(u32::try_from(at));
            }
        }
    }
}
