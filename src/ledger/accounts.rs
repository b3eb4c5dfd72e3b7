//! What each command line has moved, and how long that is remembered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::selection::{Selection, taken};
use crate::kernel::process::Identity;
use crate::python2::pattern::Pattern;
use crate::traffic::source::Reading;

/// How long a command line is remembered that has neither open flows nor sockets.
const MEMORY: Duration = Duration::from_secs(60);
/// Of so many processes with one command line it is remembered that they may hold a socket.
const HOLDERS: usize = 16;

#[derive(Debug)]
struct Account {
    bytes_in: u64,
    bytes_out: u64,
    /// Whether it counts at all, and whether connections with two local ends count too.
    counts: bool,
    counts_local: bool,
    /// When it last had traffic or an open flow.
    alive: Instant,
    /// The processes that were last alive, the latest last.
    holders: Vec<(u32, u64)>,
}

#[derive(Debug)]
pub(super) struct Accounts {
    selections: Vec<Selection>,
    accounts: HashMap<Arc<[u8]>, Account>,
}

impl Accounts {
    pub fn new(selections: Vec<Selection>) -> Self {
        Self { selections, accounts: HashMap::new() }
    }

    /// Counts what any of these takes from now on.
    pub fn select(&mut self, selections: Vec<Selection>) {
        self.selections = selections;
        for (name, account) in &mut self.accounts {
            (account.counts, account.counts_local) = taken(&self.selections, name);
        }
    }

    /// Adds what `process` moved.
    pub fn credit(&mut self, process: &Identity, (bytes_in, bytes_out): (u64, u64), local: bool, now: Instant) {
        let account = self.account(process, now);
        if if local { account.counts_local } else { account.counts } {
            account.bytes_in += bytes_in;
            account.bytes_out += bytes_out;
        }
    }

    /// Notes that `process` has an open flow.
    pub fn keep(&mut self, process: &Identity, now: Instant) {
        self.account(process, now);
    }

    /// The account of a process that is alive at `now`.
    fn account(&mut self, process: &Identity, now: Instant) -> &mut Account {
        let account = self.accounts.entry(Arc::clone(&process.name)).or_insert_with(|| {
            let (counts, counts_local) = taken(&self.selections, &process.name);
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

    /// Forgets the command lines that were silent for a minute and whose processes hold no socket any more.
    ///
    /// `holds_a_socket` is asked of a pid and its process' start time.
    pub fn forget(&mut self, now: Instant, mut holds_a_socket: impl FnMut(u32, u64) -> bool) {
        self.accounts.retain(|_, account| {
            if now.saturating_duration_since(account.alive) <= MEMORY {
                return true;
            }
            // As long as it listens or has an idle connection it stays; the next look is in another minute.
            account.alive = now;
            account.holders.iter().any(|&(pid, start_time)| holds_a_socket(pid, start_time))
        });
    }

    pub fn patterns_that_exceeded_limit(&self) -> impl Iterator<Item = &Pattern> {
        self.selections.iter().flat_map(|selection| selection.filter.exceeded_limit())
    }

    /// Every command line that counts.
    pub fn readings(&self) -> Vec<Reading> {
        let counted = self.accounts.iter().filter(|(_, account)| account.counts);
        let reading = |(name, account): (&Arc<[u8]>, &Account)| Reading {
            name: Arc::clone(name),
            bytes_in: account.bytes_in,
            bytes_out: account.bytes_out,
        };
        counted.map(reading).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::selection::Filter;
    use crate::python2::pattern::Pattern;

    #[test]
    fn what_is_selected_later_counts_from_then_on() {
        let only = |pattern: &str| {
            let include = vec![Pattern::new(pattern.as_bytes()).unwrap()];
            vec![Selection { filter: Filter::new(include, Vec::new()), ignore_local: false }]
        };
        let process = |pid, name: &str| Identity { pid, start_time: 1, name: name.as_bytes().into(), nameless: false };
        let now = Instant::now();
        let mut accounts = Accounts::new(only("curl"));
        let mut shown = |select: Option<&str>| {
            select.into_iter().for_each(|pattern| accounts.select(only(pattern)));
            accounts.credit(&process(1, "curl x "), (100, 10), false, now);
            accounts.credit(&process(2, "wget y "), (7, 0), false, now);
            let readings = accounts.readings();
            let text = |reading: &Reading| (String::from_utf8_lossy(&reading.name).into_owned(), reading.bytes_in);
            readings.iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(shown(None), [("curl x ".to_owned(), 100)]);
        assert_eq!(shown(Some("wget")), [("wget y ".to_owned(), 7)]);
        assert_eq!(shown(Some("curl")), [("curl x ".to_owned(), 200)]);
    }
}
