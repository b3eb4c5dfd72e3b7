//! The bytes that each subject has moved, and how long they are remembered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::selection::{Selection, selects};
use crate::attribution::Identity;
use crate::python2::pattern::Pattern;
use crate::traffic::source::Reading;
use crate::traffic::subject::Subject;
use crate::workload::Workload;

/// How long a subject without open flows and without sockets is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// The most processes of a subject that are remembered as possible holders of a socket.
const HOLDERS: usize = 16;

/// The most subjects of one user that are told apart, and the most bytes of their names: beyond that, whatever a user starts is one
/// subject.
const MOST_OF_USER: usize = 4096;
const LONGEST_OF_USER: usize = 8 << 20;

/// The same for all users together: root in a container can be each of four billion users.
const MOST_OF_ALL: usize = 65_536;
const LONGEST_OF_ALL: usize = 64 << 20;

/// The bytes that one subject has moved.
#[derive(Debug)]
struct Account {
    bytes_in: u64,
    bytes_out: u64,
    /// Whether any selection selects it.
    counts: bool,
    /// Whether its connections with two local ends count, too.
    counts_local: bool,
    /// When it last had traffic or an open flow, or its processes were last checked for sockets.
    alive: Instant,
    /// Pid and start time of its processes that last had traffic or an open flow, the most recent last.
    holders: Vec<(u32, u64)>,
}

#[derive(Debug)]
pub(super) struct Accounts {
    selections: Vec<Selection>,
    accounts: HashMap<Arc<Subject>, Account>,
    /// The number of the subjects of each user, and the bytes of their names.
    of_users: HashMap<Option<u32>, (usize, usize)>,
    /// The sums of these.
    of_all: (usize, usize),
}

impl Accounts {
    pub fn new(selections: Vec<Selection>) -> Self {
        Self { selections, accounts: HashMap::new(), of_users: HashMap::new(), of_all: (0, 0) }
    }

    /// From now on, counts what any of these selects.
    pub fn select(&mut self, selections: Vec<Selection>) {
        self.selections = selections;
        for (subject, account) in &mut self.accounts {
            (account.counts, account.counts_local) = selects(&self.selections, &subject.label());
        }
    }

    /// Adds the bytes in and out that `process` moved.
    pub fn credit(&mut self, process: &Identity, (bytes_in, bytes_out): (u64, u64), local: bool, now: Instant) {
        let account = self.account(process, now);
        if if local { account.counts_local } else { account.counts } {
            account.bytes_in += bytes_in;
            account.bytes_out += bytes_out;
        }
    }

    /// Keeps the account of `process`, which has an open flow.
    pub fn keep(&mut self, process: &Identity, now: Instant) {
        self.account(process, now);
    }

    /// The account of a process that has traffic or an open flow at `now`.
    fn account(&mut self, process: &Identity, now: Instant) -> &mut Account {
        let mut subject = Arc::clone(&process.subject);
        if !self.accounts.contains_key(&subject) {
            let (user, length) = (answerable(&subject), subject.label().len());
            let has_room = |of: (usize, usize), most, longest| of.0 < most && of.1 + length < longest;
            let of_user = self.of_users.get(&user).copied();
            if has_room(self.of_all, MOST_OF_ALL, LONGEST_OF_ALL)
                && has_room(of_user.unwrap_or_default(), MOST_OF_USER, LONGEST_OF_USER)
            {
                for sum in [self.of_users.entry(user).or_default(), &mut self.of_all] {
                    *sum = (sum.0 + 1, sum.1 + length);
                }
            } else {
                // A user of whom there is nothing yet has no line of his own either.
                subject = Arc::new(Subject::Others { user: of_user.and(user) });
            }
        }
        let account = self.accounts.entry(subject).or_insert_with_key(|subject| {
            let (counts, counts_local) = selects(&self.selections, &subject.label());
            Account { bytes_in: 0, bytes_out: 0, counts, counts_local, alive: now, holders: Vec::new() }
        });
        account.alive = now;
        let holder = (process.pid, process.start_time);
        if account.holders.last() != Some(&holder) {
            account.holders.retain(|known| *known != holder);
            if account.holders.len() == HOLDERS {
                account.holders.remove(0);
            }
            account.holders.push(holder);
        }
        account
    }

    /// Forgets the subjects that were silent for a minute and whose processes no longer hold any socket, unless another
    /// subject with the same label stays: the two share a line, and a total on the screen must not shrink.
    ///
    /// `holds_a_socket` takes a pid and the start time of its process.
    pub fn forget(&mut self, now: Instant, mut holds_a_socket: impl FnMut(u32, u64) -> bool) {
        let mut silent: HashSet<Arc<Subject>> = HashSet::new();
        for (subject, account) in &mut self.accounts {
            if now.saturating_duration_since(account.alive) <= MEMORY {
                continue;
            }
            // A subject that listens or has an idle connection stays, and is checked again in another minute.
            account.alive = now;
            if !account.holders.iter().any(|&(pid, start_time)| holds_a_socket(pid, start_time)) {
                silent.insert(Arc::clone(subject));
            }
        }
        if silent.is_empty() {
            return;
        }
        let others = self.accounts.keys().filter(|subject| !silent.contains(*subject));
        let kept_labels: HashSet<Vec<u8>> = others.map(|subject| subject.label().into_owned()).collect();
        silent.retain(|subject| !kept_labels.contains(&*subject.label()));
        for subject in silent {
            self.accounts.remove(&subject);
            if !matches!(*subject, Subject::Others { .. })
                && let Some(of_user) = self.of_users.get_mut(&answerable(&subject))
            {
                for sum in [of_user, &mut self.of_all] {
                    *sum = (sum.0.saturating_sub(1), sum.1.saturating_sub(subject.label().len()));
                }
            }
        }
        self.of_users.retain(|_, (number, _)| *number > 0);
    }

    /// The patterns that exceeded their limit of work on some command line.
    pub fn patterns_over_limit(&self) -> impl Iterator<Item = &Pattern> {
        self.selections.iter().flat_map(|selection| selection.filter.patterns_over_limit())
    }

    /// The totals of every subject that counts.
    pub fn readings(&self) -> Vec<Reading> {
        let counted = self.accounts.iter().filter(|(_, account)| account.counts);
        let reading = |(subject, account): (&Arc<Subject>, &Account)| Reading {
            subject: Arc::clone(subject),
            bytes_in: account.bytes_in,
            bytes_out: account.bytes_out,
        };
        counted.map(reading).collect()
    }
}

/// The user who can start as many processes of this kind as he likes: that of the session or service manager where there is one,
/// since a user may have many others (subuid(5)).
fn answerable(subject: &Subject) -> Option<u32> {
    match subject {
        Subject::Processes { uid, cgroup, .. } => {
            let of_session = cgroup.as_deref().and_then(|path| Workload::of_path(path).user);
            of_session.or(*uid)
        }
        _ => subject.uid(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::selection::Filter;
    use super::*;
    use crate::kernel::process::Process;

    fn process(pid: u32, command_line: &str, cgroup: &str) -> Identity {
        let (command_line, cgroup) = (command_line.as_bytes().to_vec(), Some(cgroup.as_bytes().to_vec()));
        Identity::from(Process { pid, start_time: 1, command_line, nameless: false, uid: Some(0), cgroup })
    }

    #[test]
    fn a_new_selection_counts_from_then_on() {
        let only = |pattern: &str| {
            let include = vec![Pattern::new(pattern.as_bytes()).unwrap()];
            vec![Selection { filter: Filter::new(include, Vec::new()), ignore_local: false }]
        };
        let now = Instant::now();
        let mut accounts = Accounts::new(only("curl"));
        let mut shown = |select: Option<&str>| {
            select.into_iter().for_each(|pattern| accounts.select(only(pattern)));
            accounts.credit(&process(1, "curl x ", "/"), (100, 10), false, now);
            accounts.credit(&process(2, "wget y ", "/"), (7, 0), false, now);
            let text =
                |reading: &Reading| (String::from_utf8_lossy(&reading.subject.label()).into_owned(), reading.bytes_in);
            accounts.readings().iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(shown(None), [("curl x ".to_owned(), 100)]);
        assert_eq!(shown(Some("wget")), [("wget y ".to_owned(), 7)]);
        assert_eq!(shown(Some("curl")), [("curl x ".to_owned(), 200)]);
    }

    #[test]
    fn a_user_with_ever_new_processes_has_a_bounded_number_of_subjects() {
        let now = Instant::now();
        let mut accounts = Accounts::new(vec![Selection::default()]);
        let mut credit = |pid: u32, cgroup: &str| {
            let command_line = format!("title {pid}").into_bytes();
            let cgroup = Some(cgroup.as_bytes().to_vec());
            // A user has many others of his own.
            let uid = Some(100_000 + pid);
            let process = Process { pid, start_time: 1, command_line, nameless: false, uid, cgroup };
            accounts.credit(&process.into(), (1, 0), false, now);
        };
        (0..5000).for_each(|pid| credit(pid, "/user.slice/user-1000.slice/session-1.scope"));
        credit(5001, "/user.slice/user-1001.slice/session-2.scope");
        let label = |reading: &Reading| String::from_utf8(reading.subject.label().into_owned()).unwrap();
        let readings: HashMap<_, _> =
            accounts.readings().iter().map(|reading| (label(reading), reading.bytes_in)).collect();
        assert_eq!(readings.len(), MOST_OF_USER + 2);
        assert_eq!(readings["(other processes of user 1000)"], 5000 - MOST_OF_USER as u64);
        assert_eq!(readings["title 5001"], 1);
        // As they are forgotten, there is room again.
        accounts.forget(now + MEMORY + Duration::from_secs(1), |_, _| false);
        assert_eq!((accounts.readings().len(), accounts.of_users.len(), accounts.of_all), (0, 0, (0, 0)));
    }

    #[test]
    fn a_container_whose_root_is_ever_new_users_has_a_bounded_number_of_subjects() {
        let mut accounts = Accounts::new(vec![Selection::default()]);
        for uid in 0..70_000 {
            let (command_line, cgroup) = (b"program ".to_vec(), Some(b"/docker/web".to_vec()));
            let process = Process { pid: uid, start_time: 1, command_line, nameless: false, uid: Some(uid), cgroup };
            accounts.credit(&process.into(), (1, 0), false, Instant::now());
        }
        let readings = accounts.readings();
        assert_eq!(readings.len(), MOST_OF_ALL + 1);
        let others = readings.iter().find(|reading| *reading.subject == Subject::Others { user: None });
        assert_eq!(others.map(|others| others.bytes_in), Some(70_000 - MOST_OF_ALL as u64));
    }

    #[test]
    fn a_subject_is_forgotten_with_the_last_one_of_its_label() {
        let (start, minute) = (Instant::now(), MEMORY + Duration::from_secs(1));
        let mut accounts = Accounts::new(vec![Selection::default()]);
        accounts.credit(&process(1, "nginx ", "/a"), (1, 0), false, start);
        accounts.credit(&process(2, "nginx ", "/b"), (2, 0), false, start);
        accounts.credit(&process(3, "curl ", "/a"), (4, 0), false, start);
        accounts.forget(start + minute, |pid, _| pid == 2);
        assert_eq!(accounts.readings().iter().map(|reading| reading.bytes_in).sum::<u64>(), 1 + 2);
        accounts.forget(start + 2 * minute, |_, _| false);
        assert_eq!(accounts.readings(), []);
    }
}
