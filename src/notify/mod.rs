//! Notifications: which application exceeds a threshold, and when it no longer does.
//!
//! ```text
//! rows of one tick ──▶ Notifier::tick: per application and matching rule a moving average ──▶ Notification
//!                                                                          Commands::queue ◀──┘
//! ```
//! An application's rate is averaged over the interval of each rule whose filter matches its name. Seconds without
//! traffic count as zero, also those before the application appeared and after it went, so that an average over five
//! minutes takes more than one busy second to exceed its threshold.
//!
//! Where to read on: `rule` is one section of the file, `average` the moving average, `quota` adds up days and months, `command`
//! runs the commands, `account` is whose they are.

mod account;
mod average;
mod command;
mod quota;
mod rule;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::output::{Direction, Notification};
use crate::python2::pattern::MatchBudget;
use crate::traffic::rates::{BYTES_PER_KB, Row};
use crate::traffic::rounds::forget_until;
use crate::traffic::subject::Subject;

pub use account::Account;
use average::Average;
pub use command::Commands;
pub use quota::{Quota, Quotas, Told};
pub use rule::{Interval, Rule};

/// A tick that is early by less than this counts as on time, so that it does not miss its notification.
const TICK_TOLERANCE: Duration = Duration::from_millis(500);

/// The most applications that are remembered after they have gone, each for as long as its intervals last: if it comes
/// back, its averages go on. In an interval of a day, a host can start a million command lines.
const GONE_KEPT: usize = 1000;

/// The CPU time that matching the names of new applications may take in a tick.
const MATCHING_PER_TICK: Duration = Duration::from_millis(100);

/// Compares applications with the thresholds of a notification file.
#[derive(Debug)]
pub struct Notifier {
    /// In file order.
    rules: Vec<NumberedRule>,
    /// The rules of an earlier configuration whose recoveries the next tick reports, or the last one did.
    retired: Vec<NumberedRule>,
    /// The recoveries that the next tick reports.
    recovered: Vec<Notification>,
    /// The number of the next new rule.
    next: u64,
    applications: HashMap<Arc<Subject>, WatchedApplication>,
    started: Option<Instant>,
    last: Option<Instant>,
    /// The number of ticks so far, to tell which applications the latest one had.
    round: u64,
    matching: MatchBudget,
    notes: Vec<String>,
}

/// A rule, and the number by which it is known from one configuration to the next.
#[derive(Debug, Clone)]
struct NumberedRule {
    number: u64,
    rule: Arc<Rule>,
}

/// An application, with the rules whose filters match its name.
#[derive(Debug)]
struct WatchedApplication {
    /// In file order. Those that are still to be matched are in `unmatched`.
    rules: Vec<AppliedRule>,
    /// The rules with which its name still has to be compared, the next one last; with what an earlier version of the rule
    /// knew.
    unmatched: Vec<(usize, Option<AppliedRule>)>,
    round: u64,
}

/// One rule's view of one application.
#[derive(Debug)]
struct AppliedRule {
    /// The rule's index.
    rule: usize,
    average: Average,
    /// In and out; `None` as long as the threshold is not exceeded.
    notified: [Option<Notified>; 2],
}

/// The last notification.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Notified {
    at: Instant,
    /// The threshold that was exceeded: a later configuration may have another, or none.
    threshold_kb_per_s: i64,
}

impl Notifier {
    /// Whether there is anything to notify of.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// A notifier without any traffic yet.
    pub fn new(rules: Vec<Rule>) -> Self {
        let rules = (0..).zip(rules).map(|(number, rule)| NumberedRule { number, rule: Arc::new(rule) });
        let rules: Vec<_> = rules.collect();
        Self {
            next: rules.len() as u64,
            rules,
            retired: Vec::new(),
            recovered: Vec::new(),
            applications: HashMap::new(),
            started: None,
            last: None,
            round: 0,
            matching: MatchBudget::new(MATCHING_PER_TICK),
            notes: Vec::new(),
        }
    }

    /// The rule with this number.
    pub fn rule(&self, number: u64) -> Option<&Arc<Rule>> {
        let mut all = self.rules.iter().chain(&self.retired);
        all.find(|numbered| numbered.number == number).map(|numbered| &numbered.rule)
    }

    /// From now on, applies other rules. A rule that has changed keeps its averages and does not repeat its
    /// notifications; the next tick reports the recovery of what a rule has notified that is no longer there.
    pub fn replace(&mut self, rules: Vec<Rule>) {
        let earlier = successors(&self.rules, &rules);
        let old = std::mem::take(&mut self.rules);
        for (rule, earlier) in rules.into_iter().zip(&earlier) {
            let number = earlier.map_or(self.next, |earlier| old[earlier].number);
            self.next += u64::from(earlier.is_none());
            self.rules.push(NumberedRule { number, rule: Arc::new(rule) });
        }
        let (Some(started), Some(last)) = (self.started, self.last) else { return };
        for (subject, application) in &mut self.applications {
            let mut applied: HashMap<usize, AppliedRule> =
                application.rules.drain(..).map(|applied| (applied.rule, applied)).collect();
            let mut unmatched: HashMap<usize, Option<AppliedRule>> = application.unmatched.drain(..).collect();
            for (rule, earlier) in (0..).zip(&earlier) {
                let new = &self.rules[rule].rule;
                let is_same_filter = earlier.is_some_and(|at| old[at].rule.process_filter == new.process_filter);
                let known = earlier.and_then(|at| applied.remove(&at).map(|known| AppliedRule { rule, ..known }));
                let known = known.map(|mut known| {
                    known.average.change(new.interval, started, last);
                    known
                });
                let pending = earlier.and_then(|at| unmatched.remove(&at));
                match (known, pending) {
                    (Some(known), _) if is_same_filter => application.rules.push(known),
                    (None, None) if is_same_filter => {}
                    (known, pending) => application.unmatched.push((rule, known.or(pending.flatten()))),
                }
            }
            application.unmatched.reverse();
            let dropped = applied.into_values().chain(unmatched.into_values().flatten());
            for dropped in dropped {
                let number = old[dropped.rule].number;
                self.recovered.extend(dropped.recoveries(number, subject, started, last));
            }
        }
        let is_retired = |rule: &NumberedRule| {
            self.recovered.iter().any(|notification| notification.rule == rule.number)
                && !self.rules.iter().any(|new| new.number == rule.number)
        };
        let retired: Vec<NumberedRule> = old.into_iter().chain(self.retired.drain(..)).filter(is_retired).collect();
        self.retired = retired;
    }

    /// Gives `quotas` the rules, by their numbers here.
    pub fn set_quotas(&self, quotas: &mut Quotas) {
        quotas.replace(self.rules.iter());
    }

    /// The messages for the user since the last call, one line each.
    pub fn notes(&mut self) -> Vec<String> {
        let mut notes = std::mem::take(&mut self.notes);
        notes.extend(self.rules.iter().filter_map(|numbered| numbered.rule.process_filter.limit_message_once()));
        notes
    }

    /// Takes back that this notification of the last tick was given: its command cannot be run now.
    pub fn try_again(&mut self, notification: &Notification) {
        let Some(index) = self.rules.iter().position(|numbered| numbered.number == notification.rule) else { return };
        let application = self.applications.get_mut(&notification.application);
        let applied = application.and_then(|it| it.rules.iter_mut().find(|applied| applied.rule == index));
        if let (Some(applied), Some(at)) = (applied, self.last) {
            let threshold_kb_per_s = notification.threshold_kb_per_s;
            applied.notified[notification.direction as usize] =
                notification.recovered.then_some(Notified { at, threshold_kb_per_s });
        }
    }

    /// Takes the bytes that each application has moved since the last call. Returns a notification for each threshold
    /// that is exceeded or no longer is, in the order of the names and then of the rules.
    ///
    /// The first call only starts the clock.
    pub fn tick(&mut self, now: Instant, rows: &[Row]) -> Vec<Notification> {
        self.round += 1;
        self.notes.extend(self.matching.begin_tick());
        let started = *self.started.get_or_insert(now);
        let Some(last) = self.last.replace(now).filter(|&last| last < now) else { return Vec::new() };
        let tick = Tick { now, last, started };
        let mut found = Vec::new();
        let mut unmatched = Vec::new();
        for row in rows {
            let new = || WatchedApplication::new(self.rules.len());
            let application = self.applications.entry(Arc::clone(&row.subject)).or_insert_with(new);
            application.round = self.round;
            if !application.unmatched.is_empty() {
                unmatched.push(&row.subject);
            }
        }
        // The shortest first: where time is short, long names are what takes it.
        unmatched.sort_by_key(|subject| subject.label().len());
        for subject in unmatched {
            if let Some(application) = self.applications.get_mut(subject) {
                found.extend(application.compare(subject, &self.rules, &tick, &mut self.matching));
            }
        }
        for row in rows {
            let Some(application) = self.applications.get_mut(&row.subject) else { continue };
            application.advance(&row.subject, [row.moved_in, row.moved_out], &self.rules, &tick, &mut found);
        }
        self.applications.retain(|subject, application| {
            if application.round == self.round {
                return true;
            }
            found.extend(application.compare(subject, &self.rules, &tick, &mut self.matching));
            application.advance(subject, [0, 0], &self.rules, &tick, &mut found);
            let is_known = application.unmatched.iter().any(|(_, known)| known.is_some());
            is_known || application.rules.iter().any(|applied| !applied.is_idle())
        });
        self.forget();
        if self.recovered.is_empty() {
            self.retired.clear();
        }
        found.append(&mut self.recovered);
        let place = |number: u64| self.rules.iter().position(|numbered| numbered.number == number);
        found.sort_by_cached_key(|it| (it.application.label().into_owned(), place(it.rule), it.rule));
        found
    }

    /// If too many applications have gone, forgets those that went first, unless they exceed a threshold.
    fn forget(&mut self) {
        let round = self.round;
        let gone = |application: &WatchedApplication| application.round != round && !application.exceeds();
        let rounds = self.applications.values().filter(|application| gone(application));
        let oldest = forget_until(rounds.map(|application| application.round).collect(), GONE_KEPT);
        self.applications.retain(|_, application| !gone(application) || application.round > oldest);
    }
}

/// For each of the `new` rules, the index of the old one that it continues: the one most like it, each at most once. The
/// section's name tells more than what the section says, which an editor changes more often.
fn successors(old: &[NumberedRule], new: &[Rule]) -> Vec<Option<usize>> {
    let alike: [fn(&Rule, &Rule) -> bool; 4] = [
        |a, b| a == b,
        |a, b| a.section == b.section && a.process_filter == b.process_filter,
        |a, b| a.section == b.section,
        // Another name for the same rule.
        |a, b| {
            let limits = |rule: &Rule| (rule.in_threshold_kb_per_s, rule.out_threshold_kb_per_s);
            a.process_filter == b.process_filter && limits(a) == limits(b)
        },
    ];
    let mut successors = vec![None; new.len()];
    let mut free: Vec<usize> = (0..old.len()).collect();
    for is_alike in alike {
        for (new, successor) in new.iter().zip(&mut successors) {
            if successor.is_none()
                && let Some(at) = free.iter().position(|&old_at| is_alike(&old[old_at].rule, new))
            {
                *successor = Some(free.remove(at));
            }
        }
    }
    successors
}

/// The time between two calls of [`Notifier::tick`].
struct Tick {
    now: Instant,
    last: Instant,
    started: Instant,
}

impl WatchedApplication {
    fn new(rules: usize) -> Self {
        Self { rules: Vec::new(), unmatched: (0..rules).rev().map(|rule| (rule, None)).collect(), round: 0 }
    }

    /// Compares its name with the rules that are left. Returns the recoveries of a rule whose filter no longer matches.
    fn compare(
        &mut self,
        subject: &Arc<Subject>,
        rules: &[NumberedRule],
        tick: &Tick,
        matching: &mut MatchBudget,
    ) -> Vec<Notification> {
        let mut recoveries = Vec::new();
        let mut is_new = false;
        while let Some((index, _)) = self.unmatched.last() {
            let NumberedRule { number, rule } = &rules[*index];
            let decided = matching.decide(|budget| budget.matches(&rule.process_filter, &subject.label()));
            let Some(matches) = decided else { break };
            let Some((index, known)) = self.unmatched.pop() else { break };
            if matches {
                let new = || AppliedRule { rule: index, average: Average::over(rule.interval), notified: [None, None] };
                self.rules.push(known.unwrap_or_else(new));
                is_new = true;
            } else if let Some(known) = known {
                recoveries.extend(known.recoveries(*number, subject, tick.started, tick.last));
            }
        }
        if is_new {
            self.rules.sort_by_key(|applied| applied.rule);
        }
        recoveries
    }

    /// Whether any of its averages exceeds its threshold.
    fn exceeds(&self) -> bool {
        self.rules.iter().any(AppliedRule::exceeds)
    }

    fn advance(
        &mut self,
        subject: &Arc<Subject>,
        bytes: [u64; 2],
        rules: &[NumberedRule],
        tick: &Tick,
        found: &mut Vec<Notification>,
    ) {
        for AppliedRule { rule: index, average, notified } in &mut self.rules {
            let NumberedRule { number, rule } = &rules[*index];
            average.add(tick.last, tick.now, bytes);
            let averages = average.bytes_per_s(tick.started, tick.now);
            let thresholds = [rule.in_threshold_kb_per_s, rule.out_threshold_kb_per_s];
            for (i, direction) in [Direction::In, Direction::Out].into_iter().enumerate() {
                let value_kb_per_s = averages[i] / BYTES_PER_KB as f64;
                let exceeded = thresholds[i].filter(|&threshold| value_kb_per_s > threshold as f64);
                let (threshold_kb_per_s, is_news) = match (exceeded, notified[i]) {
                    (Some(threshold), Some(before)) => {
                        (threshold, tick.now.duration_since(before.at) + TICK_TOLERANCE >= rule.repeat)
                    }
                    (Some(threshold), None) => (threshold, true),
                    (None, Some(before)) => (thresholds[i].unwrap_or(before.threshold_kb_per_s), true),
                    (None, None) => continue,
                };
                if !is_news {
                    continue;
                }
                notified[i] = exceeded.map(|threshold_kb_per_s| Notified { at: tick.now, threshold_kb_per_s });
                found.push(Notification {
                    rule: *number,
                    application: Arc::clone(subject),
                    direction,
                    threshold_kb_per_s,
                    value_kb_per_s,
                    recovered: exceeded.is_none(),
                    command_failure: None,
                });
            }
        }
    }
}

impl AppliedRule {
    /// Whether it can be forgotten: its average is empty. An average over the whole run is never empty again, but a
    /// host can start a million command lines in one run, so of those only the ones above their threshold are kept.
    fn is_idle(&self) -> bool {
        self.average.is_empty() || (self.average.is_over_the_whole_run() && !self.exceeds())
    }

    fn exceeds(&self) -> bool {
        self.notified != [None, None]
    }

    /// The recoveries of what it has notified, for a rule that no longer applies.
    fn recoveries(&self, rule: u64, subject: &Arc<Subject>, started: Instant, now: Instant) -> Vec<Notification> {
        let averages = self.average.bytes_per_s(started, now);
        let recovery = |(i, direction): (usize, Direction)| {
            let Notified { threshold_kb_per_s, .. } = self.notified[i]?;
            Some(Notification {
                rule,
                application: Arc::clone(subject),
                direction,
                threshold_kb_per_s,
                value_kb_per_s: averages[i] / BYTES_PER_KB as f64,
                recovered: true,
                command_failure: None,
            })
        };
        [Direction::In, Direction::Out].into_iter().enumerate().filter_map(recovery).collect()
    }
}

#[cfg(test)]
mod tests;
