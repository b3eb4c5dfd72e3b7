//! What processes ran in this tick and the one before: programs by the time at which they started, and who made whom.
//!
//! A process may run several programs in one tick, and a socket belongs to the program that made it. A child may end before
//! anyone reads it, and ran what its parent ran.

use std::collections::{HashMap, HashSet};

use super::Identity;

/// Parents that are followed from a child, at most.
const MOST_ANCESTORS: usize = 4;

/// What happened in one tick.
#[derive(Debug, Default)]
struct Tick {
    /// By pid: the time of CLOCK_MONOTONIC in ns at which each program started, and what it is.
    programs: HashMap<u32, Vec<(u64, Identity)>>,
    /// The parents of new processes, by the pids of these.
    parents: HashMap<u32, u32>,
    /// The pids whose program ended before anyone read what it is.
    unread: HashSet<u32>,
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

    pub fn add_program(&mut self, identity: Identity, at: u64) {
        self.now.programs.entry(identity.pid).or_default().push((at, identity));
    }

    pub fn add_child(&mut self, parent: u32, child: u32) {
        self.now.parents.insert(child, parent);
    }

    /// Adds a process that has started a program of which nothing was read.
    pub fn add_unread_program(&mut self, pid: u32) {
        self.now.unread.insert(pid);
    }

    /// The program that ran under `pid` at the time `at`, if another one has started there since.
    pub fn replaced_program(&self, pid: u32, at: u64) -> Option<&Identity> {
        let programs = || [&self.before, &self.now].into_iter().filter_map(|tick| tick.programs.get(&pid)).flatten();
        let (_, ran) = programs().rfind(|(started, _)| *started <= at)?;
        programs().any(|(started, _)| *started > at).then_some(ran)
    }

    /// The ancestors whose program a process runs that was made in these ticks, its parent first: none if it has started
    /// a program of its own.
    pub fn ancestors(&self, pid: u32) -> impl Iterator<Item = u32> {
        let parent = |child: &u32| self.now.parents.get(child).or_else(|| self.before.parents.get(child)).copied();
        let same_program = |pid: &u32| !self.now.unread.contains(pid) && !self.before.unread.contains(pid);
        let next = move |child: &u32| same_program(child).then(|| parent(child)).flatten();
        std::iter::successors(next(&pid), next).take(MOST_ANCESTORS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::process::Process;

    fn identity(pid: u32, command_line: &[u8]) -> Identity {
        let command_line = command_line.to_vec();
        Identity::from(Process { pid, start_time: 1, command_line, nameless: false, uid: None, cgroup: None })
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

    #[test]
    fn a_child_of_these_ticks_has_ancestors() {
        let mut history = History::default();
        history.add_child(1, 2);
        history.begin_tick();
        history.add_child(2, 3);
        assert_eq!(history.ancestors(3).collect::<Vec<_>>(), [2, 1]);
        // Nobody has read what 2 runs; it is not the program of 1.
        history.add_unread_program(2);
        assert_eq!(history.ancestors(3).collect::<Vec<_>>(), [2]);
        assert_eq!(history.ancestors(2).count(), 0);
        history.begin_tick();
        history.begin_tick();
        history.add_child(2, 3);
        history.add_child(1, 2);
        // A circle, after the kernel has given out the pids again.
        history.add_child(3, 1);
        assert_eq!(history.ancestors(3).count(), MOST_ANCESTORS);
    }
}
