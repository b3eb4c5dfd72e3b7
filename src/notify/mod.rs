//! Notifications: which application exceeds which threshold, and when it is back.
//!
//! ```text
//! rows of one tick ──▶ Notifier::tick: per application and matching rule a moving average ──▶ Notification
//!                                                                          Commands::start ◀──┘
//! ```
//! An application's rate is averaged over the interval of each rule whose filter matches its name. Seconds without
//! traffic count as zero, also those before the application appeared and after it went, so that an average over five
//! minutes takes more than one busy second to exceed its threshold.
//!
//! Read on in `rule` for what a section of the file asks for, in `average` for the moving average, in `command` for how
//! commands run.

mod average;
mod command;
mod rule;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::output::{Direction, Notification};
use crate::traffic::rates::{BYTES_PER_KB, Row};
use crate::traffic::rounds::forget_until;
use crate::traffic::subject::Subject;

use average::Average;
pub use command::Commands;
pub use rule::{Interval, Rule};

/// A tick that comes a little early must not miss its notification.
const TICK_TOLERANCE: Duration = Duration::from_millis(500);

/// How many applications that have gone are remembered for as long as their intervals last: their averages go on if they
/// come back. In an interval of a day, a host can start a million command lines.
const GONE_KEPT: usize = 1000;

/// Compares applications with the thresholds of a notification file.
#[derive(Debug)]
pub struct Notifier {
    rules: Vec<Rule>,
    applications: HashMap<Arc<Subject>, Watched>,
    started: Option<Instant>,
    last: Option<Instant>,
    /// The number of ticks so far, to tell which applications the latest one had.
    round: u64,
}

/// An application, with the rules whose filters match its name.
#[derive(Debug)]
struct Watched {
    rules: Vec<AppliedRule>,
    round: u64,
}

/// One rule's view of one application.
#[derive(Debug)]
struct AppliedRule {
    /// The rule's index.
    rule: usize,
    average: Average,
    /// When the last notification was, in and out; `None` as long as the threshold is not exceeded.
    notified: [Option<Instant>; 2],
}

impl Notifier {
    /// A notifier that has seen nothing yet.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules, applications: HashMap::new(), started: None, last: None, round: 0 }
    }

    /// The rules, in file order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Applies other rules from now on. A rule that has a namesake with the same filter and interval among the earlier ones
    /// keeps its averages, and is not notified again of what it has already notified.
    pub fn replace(&mut self, rules: Vec<Rule>) {
        let known: Vec<Option<usize>> = rules
            .iter()
            .map(|new| {
                self.rules.iter().position(|old| {
                    (&old.section, old.process_filter.to_string(), old.interval)
                        == (&new.section, new.process_filter.to_string(), new.interval)
                })
            })
            .collect();
        self.rules = rules;
        for (name, application) in &mut self.applications {
            let mut before = std::mem::take(&mut application.rules);
            *application = Watched { round: application.round, ..Watched::new(name, &self.rules) };
            for applied in &mut application.rules {
                if let Some(at) = before.iter().position(|old| known[applied.rule] == Some(old.rule)) {
                    *applied = AppliedRule { rule: applied.rule, ..before.swap_remove(at) };
                }
            }
        }
    }

    /// The messages for the user since the call before, one line each.
    pub fn notes(&self) -> Vec<String> {
        self.rules.iter().filter_map(|rule| rule.process_filter.limit_message_once()).collect()
    }

    /// Takes what each application has moved since the call before, and gives the thresholds that are exceeded and those
    /// that no longer are, in the order of the names and then of the rules.
    ///
    /// The first call only starts the clock.
    pub fn tick(&mut self, now: Instant, rows: &[Row]) -> Vec<Notification> {
        self.round += 1;
        let started = *self.started.get_or_insert(now);
        let Some(last) = self.last.replace(now).filter(|&last| last < now) else { return Vec::new() };
        let tick = Tick { now, last, started };
        let mut found = Vec::new();
        for row in rows {
            let new = |subject: &Arc<Subject>| Watched::new(subject, &self.rules);
            let application = self.applications.entry(Arc::clone(&row.subject)).or_insert_with_key(new);
            application.round = self.round;
            application.advance(&row.subject, [row.moved_in, row.moved_out], &self.rules, &tick, &mut found);
        }
        self.applications.retain(|subject, application| {
            if application.round == self.round {
                return true;
            }
            application.advance(subject, [0, 0], &self.rules, &tick, &mut found);
            application.rules.iter().any(|applied| !applied.is_idle())
        });
        self.forget();
        found.sort_by(|a, b| (a.application.label(), a.rule).cmp(&(b.application.label(), b.rule)));
        found
    }

    /// Forgets applications that have gone and exceed nothing, those that went first, if they are too many.
    fn forget(&mut self) {
        let round = self.round;
        let gone = |application: &Watched| application.round != round && !application.exceeds();
        let rounds = self.applications.values().filter(|application| gone(application));
        let oldest = forget_until(rounds.map(|application| application.round).collect(), GONE_KEPT);
        self.applications.retain(|_, application| !gone(application) || application.round > oldest);
    }
}

/// The time between two calls of [`Notifier::tick`].
struct Tick {
    now: Instant,
    last: Instant,
    started: Instant,
}

impl Watched {
    fn new(subject: &Subject, rules: &[Rule]) -> Self {
        let label = subject.label();
        let matching = (0..).zip(rules).filter(|(_, rule)| rule.process_filter.matches_command_line(&label));
        let apply = |(index, rule): (usize, &Rule)| AppliedRule {
            rule: index,
            average: Average::over(rule.interval),
            notified: [None, None],
        };
        Self { rules: matching.map(apply).collect(), round: 0 }
    }

    /// Whether any of its averages exceeds its threshold.
    fn exceeds(&self) -> bool {
        self.rules.iter().any(AppliedRule::exceeds)
    }

    fn advance(
        &mut self,
        subject: &Arc<Subject>,
        bytes: [u64; 2],
        rules: &[Rule],
        tick: &Tick,
        found: &mut Vec<Notification>,
    ) {
        for AppliedRule { rule: index, average, notified } in &mut self.rules {
            let rule = &rules[*index];
            average.add(tick.last, tick.now, bytes);
            let averages = average.bytes_per_s(tick.started, tick.now);
            let thresholds = [rule.in_threshold_kb_per_s, rule.out_threshold_kb_per_s];
            for (i, direction) in [Direction::In, Direction::Out].into_iter().enumerate() {
                let Some(threshold_kb_per_s) = thresholds[i] else { continue };
                let value_kb_per_s = averages[i] / BYTES_PER_KB as f64;
                let exceeded = value_kb_per_s > threshold_kb_per_s as f64;
                let is_news = match notified[i] {
                    Some(before) if exceeded => tick.now.duration_since(before) + TICK_TOLERANCE >= rule.repeat,
                    before => exceeded != before.is_some(),
                };
                if !is_news {
                    continue;
                }
                notified[i] = exceeded.then_some(tick.now);
                found.push(Notification {
                    rule: *index,
                    application: Arc::clone(subject),
                    direction,
                    threshold_kb_per_s,
                    value_kb_per_s,
                    recovered: !exceeded,
                    command_failure: None,
                });
            }
        }
    }
}

impl AppliedRule {
    /// Whether forgetting it would change nothing. An average over the whole run is never empty again, and a host can
    /// start a million command lines in one run: of those only the ones that exceed their threshold are kept.
    fn is_idle(&self) -> bool {
        self.average.is_empty() || (self.average.is_over_the_whole_run() && !self.exceeds())
    }

    fn exceeds(&self) -> bool {
        self.notified != [None, None]
    }
}

#[cfg(test)]
mod tests;
