//! The names that people know: of users, and of containers. Nobody waits for a file: a thread of its own reads those of containers.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::cgroup::Cgroup;
use super::container_names::{ContainerFiles, ContainerName};
use super::users::Users;
use crate::privileges::{Duty, keep_for};

/// The most containers whose names are known at a time.
const MOST_CONTAINERS: usize = 4096;
/// The most that wait for the thread.
const QUEUED: usize = 64;
/// How many ticks a container without a name is asked for again: its engine may not have written the file yet.
const TRIES: u8 = 4;
/// The most ticks for which bytes wait for the name of their container: its file may be on a file system that does not answer.
const MOST_TICKS_TO_WAIT: u64 = 10;

/// The names of a host.
#[derive(Debug)]
pub struct Names {
    users: Users,
    containers: HashMap<Cgroup, Known>,
    /// The thread that reads files, once there is a container.
    thread: Option<(SyncSender<Cgroup>, Receiver<Answer>)>,
    tick: u64,
}

type Answer = (Cgroup, Option<ContainerName>);

/// What is known of a container.
#[derive(Debug, Default)]
struct Known {
    name: Option<ContainerName>,
    tries: u8,
    /// The first tick that asked for it.
    first_asked: u64,
    /// The last tick that asked for it.
    asked: u64,
    /// Whether the thread has it.
    waits: bool,
}

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}

impl Names {
    /// Those of this host.
    pub fn new() -> Self {
        Self { users: Users::new("/"), containers: HashMap::new(), thread: None, tick: 0 }
    }

    /// The same, for a thread that may give up the right to read the files: another one begins at once to do that.
    pub(crate) fn read_by_another_thread() -> Self {
        Self { thread: start(), ..Self::new() }
    }

    /// Takes what the thread has found, and reads /etc/passwd again if it has changed. Call it once a tick.
    pub fn refresh(&mut self) {
        self.tick += 1;
        // Without the file, users have numbers.
        let _ = self.users.refresh();
        let Some((_, answers)) = &self.thread else { return };
        for (cgroup, name) in answers.try_iter() {
            if let Some(known) = self.containers.get_mut(&cgroup) {
                known.waits = false;
                known.name = name;
            }
        }
    }

    /// The name of a user, or the number if there is none.
    pub fn user(&self, uid: u32) -> String {
        match self.users.name(uid) {
            Some(name) => String::from_utf8_lossy(&name).into_owned(),
            None => uid.to_string(),
        }
    }

    /// The name of the container that a cgroup tells, by [`container_label`](super::Workload::container_label): that of the engine's
    /// files as soon as they have been read.
    pub fn container(&mut self, cgroup: &Cgroup) -> Option<Vec<u8>> {
        let workload = cgroup.workload();
        workload.container.as_ref()?;
        workload.container_label(self.container_name(cgroup))
    }

    /// Whether the name of the container that a cgroup tells may be known soon: a thread looks it up, or is about to.
    pub(crate) fn is_looked_up(&mut self, cgroup: &Cgroup) -> bool {
        if cgroup.workload().container.is_none() || self.container_name(cgroup).is_some() {
            return false;
        }
        let (tick, has_thread) = (self.tick, self.thread.is_some());
        self.containers.get(cgroup).is_some_and(|known| {
            (known.waits || has_thread && known.tries < TRIES) && tick - known.first_asked < MOST_TICKS_TO_WAIT
        })
    }

    /// What the engine's files call the container that a cgroup tells, as soon as they have been read.
    pub(crate) fn container_name(&mut self, cgroup: &Cgroup) -> Option<&ContainerName> {
        if !self.containers.contains_key(cgroup) && self.containers.len() >= MOST_CONTAINERS {
            let tick = self.tick;
            self.containers.retain(|_, known| known.asked + 1 >= tick);
            if self.containers.len() >= MOST_CONTAINERS {
                return None;
            }
        }
        if !self.containers.contains_key(cgroup) {
            self.containers.insert(cgroup.clone(), Known { first_asked: self.tick, ..Known::default() });
        }
        let known = self.containers.get_mut(cgroup)?;
        let first = std::mem::replace(&mut known.asked, self.tick) != self.tick;
        if known.name.is_none() && known.tries < TRIES && first && !known.waits {
            if self.thread.is_none() {
                self.thread = start();
            }
            if let Some((requests, _)) = &self.thread
                && requests.try_send(cgroup.clone()).is_ok()
            {
                known.tries += 1;
                known.waits = true;
            }
        }
        known.name.as_ref()
    }
}

/// Starts the thread. It ends when the other side has dropped its ends.
fn start() -> Option<(SyncSender<Cgroup>, Receiver<Answer>)> {
    let (requests, to_look_up) = sync_channel::<Cgroup>(QUEUED);
    let (answer, answers) = sync_channel(QUEUED);
    let files = ContainerFiles::new("/").ok()?;
    let look_up = move || {
        keep_for(Duty::ReadingContainerFiles);
        let mut users = Users::new("/");
        for cgroup in to_look_up {
            let _ = users.refresh();
            // A file that cannot be read has no name.
            let name = files.look_up(&cgroup.workload(), &users).unwrap_or_default();
            if answer.send((cgroup, name)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("container names".into()).spawn(look_up).ok()?;
    Some((requests, answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_name_waits_in_turn_and_not_for_ever() {
        let cgroup = |n: u32| Cgroup::parse(format!("0::/docker/{n:064x}").as_bytes(), b"").unwrap();
        // A thread that waits for a file for ever.
        let (requests, _to_look_up) = sync_channel(QUEUED);
        let (_answer, answers) = sync_channel(QUEUED);
        let mut names = Names { thread: Some((requests, answers)), ..Names::new() };
        let mut waiting = || {
            names.refresh();
            (0..2 * QUEUED as u32).filter(|&n| names.is_looked_up(&cgroup(n))).count()
        };
        for _ in 0..MOST_TICKS_TO_WAIT {
            assert_eq!(waiting(), 2 * QUEUED);
        }
        assert_eq!(waiting(), 0);
    }
}
