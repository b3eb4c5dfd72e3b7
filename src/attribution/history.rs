//! What processes ran in this tick and the one before: programs by the time at which they started, and who made whom.
//!
//! A process may run several programs in one tick, and a socket belongs to the program that made it. A child may end before
//! anyone reads it; unless it has started a program of its own, it ran that of its parent.

use std::collections::HashMap;

use super::Identity;
use crate::kernel::process_events::ProcessEvent;

/// A time of CLOCK_MONOTONIC, in ns.
type Time = u64;

/// What happened in one tick.
#[derive(Debug, Default)]
struct Tick {
    /// By pid: when each program started, and what it is.
    programs: HashMap<u32, Vec<(Time, Identity)>>,
    /// By pid: when it started its latest program, whether anyone has read what that is or not.
    executed: HashMap<u32, Time>,
    /// By the pid of a new process: the older process whose program it had then, and when it got it.
    inherited: HashMap<u32, (u32, Time)>,
}

/// The last two ticks.
#[derive(Debug, Default)]
pub(super) struct History {
    now: Tick,
    before: Tick,
}

impl History {
    pub fn begin_tick(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    pub fn add_program(&mut self, identity: Identity, at: Time) {
        self.now.programs.entry(identity.pid).or_default().push((at, identity));
    }

    pub fn add_event(&mut self, event: ProcessEvent) {
        match event {
            ProcessEvent::Exec { pid, at } => {
                self.now.executed.insert(pid, at);
            }
            ProcessEvent::Fork { parent, child, at } => {
                let inherited = self.inherited(parent).unwrap_or((parent, at));
                self.now.inherited.insert(child, inherited);
            }
        }
    }

    /// Forgets what children inherited: they may have started programs since, of which nothing is known.
    pub fn forget_children(&mut self) {
        self.now.inherited.clear();
        self.before.inherited.clear();
    }

    /// The program that ran under `pid` at the time `at`, if another one has started there since.
    pub fn replaced_program(&self, pid: u32, at: Time) -> Option<&Identity> {
        let programs = || self.ticks().filter_map(|tick| tick.programs.get(&pid)).flatten();
        let (_, ran) = programs().rfind(|(started, _)| *started <= at)?;
        programs().any(|(started, _)| *started > at).then_some(ran)
    }

    /// The older process whose program a process has that was made in these ticks, and when it got it; `None` if it has
    /// started a program of its own since.
    pub fn inherited(&self, pid: u32) -> Option<(u32, Time)> {
        let (from, at) = self.now.inherited.get(&pid).or_else(|| self.before.inherited.get(&pid)).copied()?;
        (!self.has_executed(pid, at)).then_some((from, at))
    }

    /// Whether a process has started a program after the time `at`, in these ticks.
    pub fn has_executed(&self, pid: u32, at: Time) -> bool {
        self.ticks().filter_map(|tick| tick.executed.get(&pid)).any(|&executed| executed > at)
    }

    fn ticks(&self) -> impl DoubleEndedIterator<Item = &Tick> {
        [&self.before, &self.now].into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::process::Process;

    fn identity(pid: u32, command_line: &[u8]) -> Identity {
        let command_line = command_line.to_vec();
        Identity::from(Process {
            pid,
            start_time: 1,
            command_line,
            nameless: false,
            uid: None,
            cgroup: None,
            executable: None,
        })
    }

    #[test]
    fn a_socket_belongs_to_the_program_that_ran_when_it_was_made() {
        let mut history = History::default();
        history.add_program(identity(7, b"first "), 10);
        history.begin_tick();
        history.add_program(identity(7, b"second "), 20);
        let ran = |at| history.replaced_program(7, at).map(|identity| identity.subject.label().into_owned());
        assert_eq!(ran(15), Some(b"first ".to_vec()));
        // The latest one still runs, and nothing is known of those before the first.
        assert_eq!(ran(25), None);
        assert_eq!(ran(5), None);
        assert_eq!(history.replaced_program(8, 15), None);
    }

    fn fork(parent: u32, child: u32, at: Time) -> ProcessEvent {
        ProcessEvent::Fork { parent, child, at }
    }

    #[test]
    fn a_child_has_the_program_of_the_process_that_was_there_before() {
        let mut history = History::default();
        history.add_event(fork(1, 2, 10));
        history.begin_tick();
        history.add_event(fork(2, 3, 20));
        assert_eq!(history.inherited(3), Some((1, 10)));
        assert_eq!(history.inherited(1), None);
        history.begin_tick();
        history.begin_tick();
        assert_eq!(history.inherited(3), None);
    }

    #[test]
    fn a_program_that_nobody_read_is_not_that_of_the_parent() {
        let mut history = History::default();
        // 2 starts a program between its two children, in whatever order the events come.
        for event in [fork(1, 2, 10), fork(2, 3, 20), ProcessEvent::Exec { pid: 2, at: 30 }, fork(2, 4, 40)] {
            history.add_event(event);
        }
        assert_eq!(history.inherited(2), None);
        assert_eq!(history.inherited(3), Some((1, 10)));
        assert_eq!(history.inherited(4), Some((2, 40)));
        history.forget_children();
        assert_eq!(history.inherited(3), None);
    }
}
