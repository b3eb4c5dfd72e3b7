//! The bytes that each subject has moved, and how long they are remembered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::selection::{Selection, selects};
use crate::attribution::Identity;
use crate::python2::pattern::{MatchBudget, Pattern};
use crate::traffic::detail::{Detail, Exchanged, MOST_PROCESSES, ProcessId, Remote, Remotes, VisitDetail};
use crate::traffic::source::Reading;
use crate::traffic::subject::Subject;

/// How long a subject without open flows and without sockets is remembered.
const MEMORY: Duration = Duration::from_secs(60);

/// The most subjects of one user that are told apart, and the most bytes of their names: beyond that, whatever a user starts is one
/// subject.
const MOST_OF_USER: usize = 4096;
const LONGEST_OF_USER: usize = 8 << 20;

/// The same for all users together: root in a container can be each of four billion users.
const MOST_OF_ALL: usize = 65_536;
const LONGEST_OF_ALL: usize = 64 << 20;

/// The most remote ends that the subjects of one user have together.
const MOST_REMOTES_OF_USER: usize = 16_384;

/// The CPU time that matching new command lines may take in a tick.
const MATCHING_PER_TICK: Duration = Duration::from_millis(200);

/// The bytes that one subject has moved.
#[derive(Debug)]
struct Account {
    /// The user who is answerable for it.
    user: Option<u32>,
    bytes_in: u64,
    bytes_out: u64,
    /// What it has moved since its command line waits to be matched, in and out; of connections with two local ends apart.
    waiting: Option<[(u64, u64); 2]>,
    /// Whether any selection selects it.
    counts: bool,
    /// Whether its connections with two local ends count, too.
    counts_local: bool,
    /// When it last had traffic or an open flow, or its processes were last checked for sockets.
    alive: Instant,
    /// Its processes that last had traffic or an open flow, the most recent last.
    holders: Vec<ProcessId>,
    remotes: Remotes,
}

/// How much accounts have beside bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Whether the bytes of each remote end are counted.
    pub remotes: bool,
    /// Whether the totals of subjects that have ended stay.
    pub ended: bool,
}

impl Account {
    /// Whether the remote ends of its bytes count, if any do.
    fn counts_remotes(&self, local: bool) -> bool {
        self.waiting.is_some() || if local { self.counts_local } else { self.counts }
    }

    fn add(&mut self, (bytes_in, bytes_out): (u64, u64), local: bool) {
        if let Some(waiting) = &mut self.waiting {
            let sum = &mut waiting[usize::from(local)];
            *sum = (sum.0 + bytes_in, sum.1 + bytes_out);
        } else if if local { self.counts_local } else { self.counts } {
            self.bytes_in += bytes_in;
            self.bytes_out += bytes_out;
        }
    }
}

#[derive(Debug)]
pub(super) struct Accounts {
    selections: Vec<Selection>,
    accounts: HashMap<Arc<Subject>, Account>,
    keep: Keep,
    of_users: HashMap<Option<u32>, OfUser>,
    of_all: OfUser,
    matching: MatchBudget,
}

/// What the subjects of one user take, or those of all.
#[derive(Debug, Default)]
struct OfUser {
    subjects: usize,
    /// The bytes of their names.
    names: usize,
    /// The remote ends that are told apart.
    remotes: usize,
}

impl OfUser {
    fn has_room(&self, length: usize, most: usize, longest: usize) -> bool {
        self.subjects < most && self.names + length < longest
    }

    fn add(&mut self, length: usize) {
        self.subjects += 1;
        self.names += length;
    }

    fn remove(&mut self, length: usize) {
        self.subjects = self.subjects.saturating_sub(1);
        self.names = self.names.saturating_sub(length);
    }
}

impl Accounts {
    pub fn new(selections: Vec<Selection>, keep: Keep) -> Self {
        let matching = MatchBudget::new(MATCHING_PER_TICK);
        let (of_users, of_all) = (HashMap::new(), OfUser::default());
        Self { selections, accounts: HashMap::new(), keep, of_users, of_all, matching }
    }

    /// Whether the bytes of each remote end are counted.
    pub fn count_remotes(&self) -> bool {
        self.keep.remotes
    }

    /// Begins a tick. Returns a note for the user if there was not enough time to match all command lines in the last one.
    pub fn begin_tick(&mut self) -> Option<String> {
        self.matching.begin_tick()
    }

    /// From now on, counts what any of these selects.
    pub fn select(&mut self, selections: Vec<Selection>) {
        self.selections = selections;
        for account in self.accounts.values_mut() {
            account.waiting.get_or_insert_default();
        }
        self.match_waiting();
    }

    /// Matches the command lines that wait, as many as there is time for.
    pub fn match_waiting(&mut self) {
        let mut waiting: Vec<_> = self.accounts.iter_mut().filter(|(_, account)| account.waiting.is_some()).collect();
        // The shortest first: where time is short, long command lines are what takes it.
        waiting.sort_by_cached_key(|(subject, _)| subject.label().len());
        for (subject, account) in waiting {
            let Some(counts) = selects(&self.selections, &subject.label(), &mut self.matching) else { continue };
            (account.counts, account.counts_local) = counts;
            let [other, local] = account.waiting.take().unwrap_or_default();
            if !account.counts {
                // If it is selected again, it begins anew: its line is new, too.
                (account.bytes_in, account.bytes_out) = (0, 0);
                if let Some(of_user) = self.of_users.get_mut(&account.user) {
                    of_user.remotes = of_user.remotes.saturating_sub(account.remotes.len());
                }
                account.remotes = Remotes::default();
            }
            account.add(other, false);
            account.add(local, true);
        }
    }

    /// Adds the bytes in and out that `process` exchanged with `remote`, if that is known.
    pub fn credit(&mut self, process: &Identity, bytes: (u64, u64), remote: Option<Remote>, local: bool, now: Instant) {
        let count_remotes = self.keep.remotes;
        let (account, of_users) = self.account(process, now);
        account.add(bytes, local);
        if count_remotes && account.counts_remotes(local) {
            let of_user = of_users.entry(account.user).or_default();
            let before = account.remotes.len();
            let remote = remote.filter(|remote| of_user.remotes < MOST_REMOTES_OF_USER || account.remotes.has(remote));
            account.remotes.add(remote, bytes);
            of_user.remotes = (of_user.remotes + account.remotes.len()).saturating_sub(before);
        }
    }

    /// Tells apart the remote ends of bytes, in and out, that `process` was credited with while they were not known.
    pub fn tell_remotes_apart(&mut self, process: &Identity, ends: &[Exchanged], local: bool, now: Instant) {
        let (account, of_users) = self.account(process, now);
        if account.counts_remotes(local) {
            let of_user = of_users.entry(account.user).or_default();
            for (remote, bytes) in ends {
                let before = account.remotes.len();
                if of_user.remotes < MOST_REMOTES_OF_USER || account.remotes.has(remote) {
                    account.remotes.tell_apart(*remote, *bytes);
                }
                of_user.remotes = (of_user.remotes + account.remotes.len()).saturating_sub(before);
            }
        }
    }

    /// Keeps the account of `process`, which has an open flow.
    pub fn keep(&mut self, process: &Identity, now: Instant) {
        self.account(process, now);
    }

    /// The account of a process that has traffic or an open flow at `now`.
    fn account(&mut self, process: &Identity, now: Instant) -> (&mut Account, &mut HashMap<Option<u32>, OfUser>) {
        let mut subject = Arc::clone(&process.subject);
        let mut user = None;
        if !self.accounts.contains_key(&subject) {
            let length = subject.label().len();
            user = answerable(&subject);
            let is_known = self.of_users.contains_key(&user);
            if self.of_all.has_room(length, MOST_OF_ALL, LONGEST_OF_ALL)
                && self
                    .of_users
                    .get(&user)
                    .is_none_or(|of_user| of_user.has_room(length, MOST_OF_USER, LONGEST_OF_USER))
            {
                self.of_users.entry(user).or_default().add(length);
                self.of_all.add(length);
            } else {
                // A user of whom there is nothing yet has no line of his own either.
                user = user.filter(|_| is_known);
                subject = Arc::new(Subject::Others { user });
            }
        }
        let account = self.accounts.entry(subject).or_insert_with(|| Account {
            user,
            bytes_in: 0,
            bytes_out: 0,
            waiting: Some(Default::default()),
            counts: false,
            counts_local: false,
            alive: now,
            holders: Vec::new(),
            remotes: Remotes::default(),
        });
        account.alive = now;
        let holder = (process.pid, process.start_time);
        if account.holders.last() != Some(&holder) {
            account.holders.retain(|known| *known != holder);
            if account.holders.len() == MOST_PROCESSES {
                account.holders.remove(0);
            }
            account.holders.push(holder);
        }
        (account, &mut self.of_users)
    }

    /// Forgets the subjects that were silent for a minute and whose processes no longer hold any socket, unless another
    /// subject with the same label stays: the two share a line, and a total on the screen must not shrink.
    ///
    /// `holds_a_socket` takes a pid and the start time of its process.
    pub fn forget(&mut self, now: Instant, mut holds_a_socket: impl FnMut(u32, u64) -> bool) {
        if self.keep.ended {
            return;
        }
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
            if let Some(account) = self.accounts.remove(&subject)
                && let Some(of_user) = self.of_users.get_mut(&account.user)
            {
                of_user.remotes = of_user.remotes.saturating_sub(account.remotes.len());
                if !matches!(*subject, Subject::Others { .. }) {
                    of_user.remove(subject.label().len());
                    self.of_all.remove(subject.label().len());
                }
            }
        }
        self.of_users.retain(|_, of_user| of_user.subjects > 0 || of_user.remotes > 0);
    }

    /// Calls `visit` with what is known of each subject that counts. `connections` has the number of open connections of those that
    /// have any.
    pub fn each_detail(&self, connections: &HashMap<&Arc<Subject>, u64>, visit: &mut VisitDetail<'_>) {
        for (subject, account) in self.accounts.iter().filter(|(_, account)| account.counts) {
            let connections = connections.get(subject).copied().unwrap_or_default();
            let detail = Detail { processes: account.holders.clone(), connections, ..Detail::default() };
            visit(subject, detail, self.keep.remotes.then_some(&account.remotes));
        }
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
            let of_session = cgroup.as_ref().and_then(|cgroup| cgroup.workload().user);
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
    use crate::workload::cgroup::Cgroup;

    fn process(pid: u32, command_line: &str, cgroup: &str) -> Identity {
        let (command_line, cgroup) =
            (command_line.as_bytes().to_vec(), Cgroup::parse(format!("0::{cgroup}").as_bytes(), b""));
        Identity::from(Process {
            pid,
            start_time: 1,
            command_line,
            nameless: false,
            uid: Some(0),
            cgroup,
            executable: None,
        })
    }

    #[test]
    fn a_new_selection_counts_from_then_on() {
        let only = |pattern: &str| {
            let include = vec![Pattern::new(pattern.as_bytes()).unwrap()];
            vec![Selection { filter: Filter::new(include, Vec::new()), ignore_local: false }]
        };
        let now = Instant::now();
        let mut accounts = Accounts::new(only("curl"), Keep::default());
        let mut shown = |select: Option<&str>| {
            select.into_iter().for_each(|pattern| accounts.select(only(pattern)));
            accounts.credit(&process(1, "curl x ", "/"), (100, 10), None, false, now);
            accounts.credit(&process(2, "wget y ", "/"), (7, 0), None, false, now);
            accounts.match_waiting();
            let text =
                |reading: &Reading| (String::from_utf8_lossy(&reading.subject.label()).into_owned(), reading.bytes_in);
            accounts.readings().iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(shown(None), [("curl x ".to_owned(), 100)]);
        assert_eq!(shown(Some("wget")), [("wget y ".to_owned(), 7)]);
        // What it had before was shown before.
        assert_eq!(shown(Some("curl")), [("curl x ".to_owned(), 100)]);
    }

    #[test]
    fn a_user_with_ever_new_processes_has_a_bounded_number_of_subjects() {
        let now = Instant::now();
        let mut accounts = Accounts::new(vec![Selection::default()], Keep::default());
        let mut credit = |pid: u32, cgroup: &str| {
            let command_line = format!("title {pid}").into_bytes();
            let cgroup = Cgroup::parse(format!("0::{cgroup}").as_bytes(), b"");
            // A user has many others of his own.
            let uid = Some(100_000 + pid);
            let process = Process { pid, start_time: 1, command_line, nameless: false, uid, cgroup, executable: None };
            accounts.credit(&process.into(), (1, 0), None, false, now);
        };
        (0..5000).for_each(|pid| credit(pid, "/user.slice/user-1000.slice/session-1.scope"));
        credit(5001, "/user.slice/user-1001.slice/session-2.scope");
        accounts.match_waiting();
        let label = |reading: &Reading| String::from_utf8(reading.subject.label().into_owned()).unwrap();
        let readings: HashMap<_, _> =
            accounts.readings().iter().map(|reading| (label(reading), reading.bytes_in)).collect();
        assert_eq!(readings.len(), MOST_OF_USER + 2);
        assert_eq!(readings["(other processes of user 1000)"], 5000 - MOST_OF_USER as u64);
        assert_eq!(readings["title 5001"], 1);
        // As they are forgotten, there is room again.
        accounts.forget(now + MEMORY + Duration::from_secs(1), |_, _| false);
        assert_eq!((accounts.readings().len(), accounts.of_users.len(), accounts.of_all.subjects), (0, 0, 0));
    }

    #[test]
    fn a_container_whose_root_is_ever_new_users_has_a_bounded_number_of_subjects() {
        let mut accounts = Accounts::new(vec![Selection::default()], Keep::default());
        for user in 0..70_000 {
            let (command_line, cgroup) = (b"program ".to_vec(), Cgroup::parse(b"0::/docker/web", b""));
            let (uid, executable) = (Some(user), None);
            let process = Process { pid: user, start_time: 1, command_line, nameless: false, uid, cgroup, executable };
            accounts.credit(&process.into(), (1, 0), None, false, Instant::now());
        }
        accounts.match_waiting();
        let readings = accounts.readings();
        assert_eq!(readings.len(), MOST_OF_ALL + 1);
        let others = readings.iter().find(|reading| *reading.subject == Subject::Others { user: None });
        assert_eq!(others.map(|others| others.bytes_in), Some(70_000 - MOST_OF_ALL as u64));
    }

    #[test]
    fn a_subject_is_forgotten_with_the_last_one_of_its_label() {
        let (start, minute) = (Instant::now(), MEMORY + Duration::from_secs(1));
        let mut accounts = Accounts::new(vec![Selection::default()], Keep::default());
        accounts.credit(&process(1, "nginx ", "/a"), (1, 0), None, false, start);
        accounts.credit(&process(2, "nginx ", "/b"), (2, 0), None, false, start);
        accounts.credit(&process(3, "curl ", "/a"), (4, 0), None, false, start);
        accounts.match_waiting();
        accounts.forget(start + minute, |pid, _| pid == 2);
        assert_eq!(accounts.readings().iter().map(|reading| reading.bytes_in).sum::<u64>(), 1 + 2);
        accounts.forget(start + 2 * minute, |_, _| false);
        assert_eq!(accounts.readings(), []);
    }

    #[test]
    fn the_totals_of_what_has_ended_stay_if_they_are_to_be_kept() {
        let now = Instant::now();
        let mut accounts = Accounts::new(vec![Selection::default()], Keep { ended: true, ..Keep::default() });
        accounts.credit(&process(1, "curl ", "/"), (4, 0), None, false, now);
        accounts.match_waiting();
        accounts.forget(now + 2 * MEMORY, |_, _| false);
        assert_eq!(accounts.readings().iter().map(|reading| reading.bytes_in).sum::<u64>(), 4);
    }

    #[test]
    fn the_bytes_of_command_lines_that_take_too_long_to_match_wait() {
        let exclude = vec![Pattern::new(b"(?=x)(?=(a+)+b)|(?=(a|aa)+c)").unwrap()];
        let filter = Filter::new(Vec::new(), exclude);
        let now = Instant::now();
        let mut accounts = Accounts::new(vec![Selection { filter, ignore_local: true }], Keep::default());
        let mut ticks = 0;
        loop {
            accounts.begin_tick();
            for n in 0..8 {
                accounts.credit(&process(n, &format!("{}{n}", "a".repeat(4000)), "/"), (1, 0), None, false, now);
                accounts.credit(&process(n, &format!("{}{n}", "a".repeat(4000)), "/"), (100, 0), None, true, now);
            }
            accounts.credit(&process(9, "short", "/"), (1, 0), None, false, now);
            accounts.match_waiting();
            ticks += 1;
            let readings = accounts.readings();
            // The short one comes first, and the others have lost nothing when their turn comes.
            assert!(readings.iter().any(|reading| *reading.subject.label() == *b"short"));
            assert!(readings.iter().all(|reading| reading.bytes_in == ticks));
            if readings.len() == 9 {
                break;
            }
            assert!(ticks < 9);
        }
        assert!(accounts.begin_tick().is_some_and(|note| note.contains(" take too long: ")) || ticks > 1);
    }
}
