//! What each subject has moved, and how long that is remembered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::selection::{Selection, selects};
use crate::attribution::Identity;
use crate::python2::pattern::Pattern;
use crate::traffic::source::Reading;
use crate::traffic::subject::Subject;

/// How long a subject is remembered that has neither open flows nor sockets.
const MEMORY: Duration = Duration::from_secs(60);
/// The number of processes per subject that are remembered as possible holders of a socket.
const HOLDERS: usize = 16;

/// What one subject has moved.
#[derive(Debug)]
struct Account {
    bytes_in: u64,
    bytes_out: u64,
    /// Whether it counts at all.
    counts: bool,
    /// Whether connections with two local ends count, too.
    counts_local: bool,
    /// When it last had traffic or an open flow.
    alive: Instant,
    /// Pid and start time of the processes that were last alive, the latest last.
    holders: Vec<(u32, u64)>,
}

#[derive(Debug)]
pub(super) struct Accounts {
    selections: Vec<Selection>,
    accounts: HashMap<Arc<Subject>, Account>,
}

impl Accounts {
    pub fn new(selections: Vec<Selection>) -> Self {
        Self { selections, accounts: HashMap::new() }
    }

    /// Counts what any of these selects from now on.
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

    /// The account of a process that is alive at `now`.
    fn account(&mut self, process: &Identity, now: Instant) -> &mut Account {
        let account = self.accounts.entry(Arc::clone(&process.subject)).or_insert_with_key(|subject| {
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
    /// subject with the same label stays: the two share a line, and a total that is shown does not shrink.
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

    /// The patterns that exceeded their limit on some command line.
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
        accounts.forget(start + minute, |pid, _| pid == 2);
        assert_eq!(accounts.readings().iter().map(|reading| reading.bytes_in).sum::<u64>(), 1 + 2);
        accounts.forget(start + 2 * minute, |_, _| false);
        assert_eq!(accounts.readings(), []);
    }
}
