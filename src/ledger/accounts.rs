//! The bytes that each subject has moved, and how long they are remembered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::selection::{Selection, selects};
use crate::attribution::Identity;
use crate::python2::pattern::{MatchBudget, Pattern};
use crate::traffic::source::Reading;
use crate::traffic::subject::Subject;

/// How long a subject without open flows and without sockets is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// The most processes of a subject that are remembered as possible holders of a socket.
const HOLDERS: usize = 16;

/// The CPU time that matching new command lines may take in a tick.
const MATCHING_PER_TICK: Duration = Duration::from_millis(200);

/// The bytes that one subject has moved.
#[derive(Debug)]
struct Account {
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
    /// Pid and start time of its processes that last had traffic or an open flow, the most recent last.
    holders: Vec<(u32, u64)>,
}

impl Account {
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
    matching: MatchBudget,
}

impl Accounts {
    pub fn new(selections: Vec<Selection>) -> Self {
        Self { selections, accounts: HashMap::new(), matching: MatchBudget::new(MATCHING_PER_TICK) }
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
            account.add(other, false);
            account.add(local, true);
        }
    }

    /// Adds the bytes in and out that `process` moved.
    pub fn credit(&mut self, process: &Identity, bytes: (u64, u64), local: bool, now: Instant) {
        self.account(process, now).add(bytes, local);
    }

    /// Keeps the account of `process`, which has an open flow.
    pub fn keep(&mut self, process: &Identity, now: Instant) {
        self.account(process, now);
    }

    /// The account of a process that has traffic or an open flow at `now`.
    fn account(&mut self, process: &Identity, now: Instant) -> &mut Account {
        let account = self.accounts.entry(Arc::clone(&process.subject)).or_insert_with(|| Account {
            bytes_in: 0,
            bytes_out: 0,
            waiting: Some(Default::default()),
            counts: false,
            counts_local: false,
            alive: now,
            holders: Vec::new(),
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
        self.accounts.retain(|subject, _| !silent.contains(subject));
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
            accounts.match_waiting();
            let text =
                |reading: &Reading| (String::from_utf8_lossy(&reading.subject.label()).into_owned(), reading.bytes_in);
            accounts.readings().iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(shown(None), [("curl x ".to_owned(), 100)]);
        assert_eq!(shown(Some("wget")), [("wget y ".to_owned(), 7)]);
        assert_eq!(shown(Some("curl")), [("curl x ".to_owned(), 200)]);
    }

    #[test]
    fn a_subject_is_forgotten_with_the_last_one_of_its_label() {
        let (start, minute) = (Instant::now(), MEMORY + Duration::from_secs(1));
        let mut accounts = Accounts::new(vec![Selection::default()]);
        accounts.credit(&process(1, "nginx ", "/a"), (1, 0), false, start);
        accounts.credit(&process(2, "nginx ", "/b"), (2, 0), false, start);
        accounts.credit(&process(3, "curl ", "/a"), (4, 0), false, start);
        accounts.match_waiting();
        accounts.forget(start + minute, |pid, _| pid == 2);
        assert_eq!(accounts.readings().iter().map(|reading| reading.bytes_in).sum::<u64>(), 1 + 2);
        accounts.forget(start + 2 * minute, |_, _| false);
        assert_eq!(accounts.readings(), []);
    }

    #[test]
    fn the_bytes_of_command_lines_that_take_too_long_to_match_wait() {
        let exclude = vec![Pattern::new(b"(?=x)(?=(a+)+b)|(?=(a|aa)+c)").unwrap()];
        let filter = Filter::new(Vec::new(), exclude);
        let now = Instant::now();
        let mut accounts = Accounts::new(vec![Selection { filter, ignore_local: true }]);
        let mut ticks = 0;
        loop {
            accounts.begin_tick();
            for n in 0..8 {
                accounts.credit(&process(n, &format!("{}{n}", "a".repeat(4000)), "/"), (1, 0), false, now);
                accounts.credit(&process(n, &format!("{}{n}", "a".repeat(4000)), "/"), (100, 0), true, now);
            }
            accounts.credit(&process(9, "short", "/"), (1, 0), false, now);
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
