//! Quotas: which application has moved more bytes in a day, week or month than it should.
//!
//! ```text
//! rows of one tick ──▶ Quotas::tick: the bytes of each application since the period began ──▶ QuotaNotification
//! history: the bytes before the program started ──▶ Quotas::load
//! ```
//! The sums, and what the user was told of, outlive the program in its history. So each period, and each start of the program,
//! begins with a question to the history; until it is answered, bytes are added up and nobody is told.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::{NumberedRule, Rule};
use crate::calendar::Cycle;
use crate::output::QuotaNotification;
use crate::python2::pattern::MatchBudget;
use crate::traffic::rates::Row;
use crate::traffic::subject::Subject;

/// The CPU time that matching the names of new applications may take in a tick.
const MATCHING_PER_TICK: Duration = Duration::from_millis(50);
/// The most names of which a section knows the bytes; beyond that, the smaller half is forgotten.
const MOST_NAMES: usize = 20_000;
/// The most applications of which a section remembers whether its filter matches, beyond those of a tick.
const MOST_GONE: usize = 2000;

/// How much each application of a rule may move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// The bytes in and out together.
    pub bytes: u64,
    /// In this time.
    pub cycle: Cycle,
    /// The percentage of the bytes at which the user is warned; `None` for no warning.
    pub warn_percent: Option<u8>,
}

impl Quota {
    /// The bytes at which the user is warned.
    fn warn_bytes(&self) -> Option<u64> {
        self.warn_percent.map(|percent| (u128::from(self.bytes) * u128::from(percent) / 100) as u64)
    }
}

/// Compares what applications have moved with the quotas of a notification file.
#[derive(Debug)]
pub struct Quotas {
    watched: Vec<WatchedQuota>,
    matching: MatchBudget,
    to_remember: Vec<Told>,
}

/// That the user was told that `name` has used `bytes` of a quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The section of the quota.
    pub section: String,
    /// The [`recorded_name`](Subject::recorded_name) of the application.
    pub name: String,
    /// When the period of the quota began.
    pub period_start: i64,
    /// The part of the quota.
    pub bytes: u64,
}

/// The quota of one rule.
#[derive(Debug)]
struct WatchedQuota {
    number: u64,
    rule: Arc<Rule>,
    quota: Quota,
    /// When its period began, in seconds since 1970.
    start: i64,
    known: Known,
    /// Whether the filter matches.
    applications: HashMap<Arc<Subject>, Filtered>,
    /// The bytes of each name since the period began, or since the history was asked.
    used: HashMap<String, u64>,
    told: HashSet<(String, u64)>,
}

/// What is known of the time before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// The history has to be asked.
    Nothing,
    /// It was asked.
    Asked,
    All,
}

#[derive(Debug)]
enum Filtered {
    /// It is not known yet whether the filter matches: these bytes wait.
    Waiting(u64),
    No,
    /// The name by which the history knows the application.
    Yes(String),
}

impl Quotas {
    /// Without rules yet: [`Notifier::set_quotas`](super::Notifier::set_quotas) gives them.
    pub fn new() -> Self {
        Self { watched: Vec::new(), matching: MatchBudget::new(MATCHING_PER_TICK), to_remember: Vec::new() }
    }

    /// From now on, watches the quotas of other rules. One whose rule stays keeps what it knows.
    pub(super) fn replace<'a>(&mut self, rules: impl Iterator<Item = &'a NumberedRule>) {
        let mut before = std::mem::take(&mut self.watched);
        for NumberedRule { number, rule } in rules {
            let Some(quota) = &rule.quota else { continue };
            let earlier = before.iter().position(|old| {
                old.number == *number
                    && old.quota.cycle == quota.cycle
                    && old.rule.process_filter == rule.process_filter
            });
            let Some(earlier) = earlier else {
                self.watched.push(WatchedQuota {
                    number: *number,
                    rule: Arc::clone(rule),
                    quota: quota.clone(),
                    start: i64::MIN,
                    known: Known::Nothing,
                    applications: HashMap::new(),
                    used: HashMap::new(),
                    told: HashSet::new(),
                });
                continue;
            };
            let earlier = before.swap_remove(earlier);
            if earlier.rule.section != rule.section {
                // What was told under the old name is not told again after a restart.
                let told = |(name, bytes): &(String, u64)| Told {
                    section: rule.section.clone(),
                    name: name.clone(),
                    period_start: earlier.start,
                    bytes: *bytes,
                };
                self.to_remember.extend(earlier.told.iter().map(told));
            }
            self.watched.push(WatchedQuota { rule: Arc::clone(rule), quota: quota.clone(), ..earlier });
        }
    }

    /// Takes the bytes that each application has moved since the last call. Returns a notification for each quota of which too
    /// much is used, until it is [confirmed](Self::confirm).
    pub fn tick(&mut self, now: i64, zone: &TimeZone, rows: &[Row]) -> Vec<QuotaNotification> {
        // A rule that takes too long to match is named by the thresholds, which match the same.
        let _ = self.matching.begin_tick();
        let mut found = Vec::new();
        for watched in &mut self.watched {
            let start = watched.quota.cycle.start(now, zone);
            if start != watched.start {
                (watched.start, watched.known) = (start, Known::Nothing);
                watched.used.clear();
                watched.told.clear();
            }
            watched.add(rows, &mut self.matching);
            if watched.known == Known::All {
                found.extend(rows.iter().filter_map(|row| watched.exceeded(&row.subject)));
            }
        }
        found
    }

    /// The sections for which the history has to be asked, each with the time since which it needs the bytes of each name; for
    /// [`asked`](Self::asked), the number of the rule.
    pub fn unasked(&self) -> Vec<(u64, String, i64)> {
        let unasked =
            self.watched.iter().filter(|watched| watched.known == Known::Nothing && watched.start != i64::MIN);
        unasked.map(|watched| (watched.number, watched.rule.section.clone(), watched.start)).collect()
    }

    /// The history will answer with all bytes up to the last tick.
    pub fn asked(&mut self, number: u64) {
        for watched in self.watched.iter_mut().filter(|watched| watched.number == number) {
            watched.known = Known::Asked;
            watched.used.clear();
            for filtered in watched.applications.values_mut() {
                if let Filtered::Waiting(bytes) = filtered {
                    *bytes = 0;
                }
            }
        }
    }

    /// Takes what the history knows of a section since a time.
    pub fn load(&mut self, section: &str, since: i64, bytes: &HashMap<String, u64>, told: &[(String, u64)]) {
        let watched = self
            .watched
            .iter_mut()
            .find(|watched| watched.known == Known::Asked && watched.start == since && watched.rule.section == section);
        let Some(watched) = watched else { return };
        watched.known = Known::All;
        for (name, &bytes) in bytes {
            let used = watched.used.entry(name.clone()).or_default();
            *used = used.saturating_add(bytes);
        }
        watched.told.extend(told.iter().cloned());
    }

    /// The user was told: this is not repeated in this period.
    pub fn confirm(&mut self, notification: &QuotaNotification) {
        let Some(watched) = self.watched.iter_mut().find(|watched| watched.number == notification.rule) else { return };
        let name = notification.application.recorded_name();
        // Who is told of the limit needs no warning.
        let warning = watched.quota.warn_bytes();
        let reached = [warning, notification.exceeded.then_some(watched.quota.bytes)];
        for bytes in reached.into_iter().flatten() {
            if watched.told.insert((name.clone(), bytes)) {
                let (section, name) = (watched.rule.section.clone(), name.clone());
                self.to_remember.push(Told { section, name, period_start: watched.start, bytes });
            }
        }
    }

    /// What the history has to remember, until `remember` returns false.
    pub fn remember(&mut self, mut remember: impl FnMut(&Told) -> bool) {
        let remembered = self.to_remember.iter().take_while(|told| remember(told)).count();
        self.to_remember.drain(..remembered);
    }
}

impl Default for Quotas {
    fn default() -> Self {
        Self::new()
    }
}

impl WatchedQuota {
    fn add(&mut self, rows: &[Row], matching: &mut MatchBudget) {
        for row in rows {
            let mut bytes = row.moved_in.saturating_add(row.moved_out);
            let filtered = self.applications.get_mut(&row.subject);
            if bytes == 0 && !matches!(filtered, Some(Filtered::Waiting(1..))) {
                continue;
            }
            let filtered = match filtered {
                Some(filtered) => filtered,
                None => self.applications.entry(Arc::clone(&row.subject)).or_insert(Filtered::Waiting(0)),
            };
            if let Filtered::Waiting(waiting) = filtered {
                bytes = bytes.saturating_add(*waiting);
                let filter = &self.rule.process_filter;
                *filtered = match matching.decide(|budget| budget.matches(filter, &row.subject.label())) {
                    None => Filtered::Waiting(bytes),
                    Some(false) => Filtered::No,
                    Some(true) => Filtered::Yes(row.subject.recorded_name()),
                };
            }
            if let Filtered::Yes(name) = filtered {
                match self.used.get_mut(name) {
                    Some(used) => *used = used.saturating_add(bytes),
                    None => drop(self.used.insert(name.clone(), bytes)),
                }
            }
        }
        if self.applications.len() > rows.len() + MOST_GONE {
            let present: HashSet<&Arc<Subject>> = rows.iter().map(|row| &row.subject).collect();
            self.applications.retain(|subject, _| present.contains(subject));
        }
        if self.used.len() > MOST_NAMES {
            let mut bytes: Vec<u64> = self.used.values().copied().collect();
            let (_, &mut median, _) = bytes.select_nth_unstable(MOST_NAMES / 2);
            self.used.retain(|_, used| *used > median);
        }
    }

    /// The notification of an application that has used more than the user knows.
    fn exceeded(&self, subject: &Arc<Subject>) -> Option<QuotaNotification> {
        let Filtered::Yes(name) = self.applications.get(subject)? else { return None };
        let used = *self.used.get(name)?;
        let is_news = |bytes: &u64| used >= *bytes && !self.told.contains(&(name.clone(), *bytes));
        let limit = Some(self.quota.bytes).filter(is_news);
        let warning = self.quota.warn_bytes().filter(|_| used < self.quota.bytes).filter(is_news);
        limit.or(warning)?;
        Some(QuotaNotification {
            rule: self.number,
            application: Arc::clone(subject),
            used_bytes: used,
            quota_bytes: self.quota.bytes,
            period: self.quota.cycle.period,
            period_start: self.start,
            exceeded: limit.is_some(),
            command_failure: None,
        })
    }
}
