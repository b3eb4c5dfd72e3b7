//! Notifications: which application exceeds which limit, and when it is back.
//!
//! An application's rate is averaged over the interval of each section whose filter matches its name. Seconds without
//! traffic count as zero, also those before it appeared and after it went, so that an average over five minutes takes
//! more than one busy second to exceed its limit.
//!
//! ```text
//! 2012-11-22 10:37:01: Web exceeding 'out' bandwidth limit      49.00:      50.00 kB/s (102.04 %)
//! ```

mod average;
mod command;
mod rule;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::grouping::forgotten_until;
use crate::printable::printable;
use crate::traffic::rates::Rate;

use average::Average;
pub use command::Commands;
pub use rule::{Interval, Rule};

/// A tick that comes a little early must not miss its notification.
const TICK_TOLERANCE: Duration = Duration::from_millis(500);

/// How many applications that are gone are remembered for as long as their intervals last: their averages go on if they
/// come back. In an interval of a day, a host can start a million command lines.
const GONE_KEPT: usize = 1000;

/// Bytes in what limits and messages call a kB.
const KB: f64 = 1024.0;

/// The direction of traffic, as seen from the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What it receives.
    In,
    /// What it sends.
    Out,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "in",
            Self::Out => "out",
        })
    }
}

/// An application's average is above its limit, or back from there.
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    /// Which of the notifier's sections it comes from.
    pub rule: usize,
    /// The application's name.
    pub application: Arc<[u8]>,
    /// Which of its rates it is about.
    pub direction: Direction,
    /// The limit, in kB (1024 bytes) per second.
    pub threshold_kb_per_s: i64,
    /// The average, in the same unit.
    pub value_kb_per_s: f64,
    /// Whether it is back under the limit.
    pub recovered: bool,
}

impl Notification {
    /// The message; `local_time` as in `2012-11-22 10:37:01`. There is none for an application that is back.
    pub fn message(&self, local_time: &str) -> Option<String> {
        if self.recovered {
            return None;
        }
        let Self { direction, value_kb_per_s: value, .. } = self;
        let name = printable(&self.application, 50);
        let limit = self.threshold_kb_per_s as f64;
        let percent = value / limit * 100.0;
        Some(format!(
            "{local_time}: {name} exceeding '{direction}' bandwidth limit {limit:10.2}: {value:10.2} kB/s ({percent:3.2} %)"
        ))
    }
}

/// Compares applications with the limits of a notification file.
#[derive(Debug)]
pub struct Notifier {
    rules: Vec<Rule>,
    applications: HashMap<Arc<[u8]>, Application>,
    started: Option<Instant>,
    last: Option<Instant>,
    /// Counts the ticks, to tell which applications the latest one had.
    round: u64,
}

#[derive(Debug)]
struct Application {
    /// One for each rule whose filter matches.
    watches: Vec<Watch>,
    round: u64,
}

#[derive(Debug)]
struct Watch {
    rule: usize,
    average: Average,
    /// When it was last notified that the limit is exceeded, in and out; `None` as long as it is not.
    notified: [Option<Instant>; 2],
}

impl Notifier {
    /// A notifier that has seen nothing yet.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules, applications: HashMap::new(), started: None, last: None, round: 0 }
    }

    /// The sections, in file order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Watches by other sections from now on. One that has a namesake in both with the same filter and interval goes on
    /// with its averages and with what was notified.
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
            let mut before = std::mem::take(&mut application.watches);
            *application = Application { round: application.round, ..Application::new(name, &self.rules) };
            for watch in &mut application.watches {
                if let Some(at) = before.iter().position(|old| known[watch.rule] == Some(old.rule)) {
                    *watch = Watch { rule: watch.rule, ..before.swap_remove(at) };
                }
            }
        }
    }

    /// What the user should know and was not told yet, one line each.
    pub fn notes(&self) -> Vec<String> {
        self.rules.iter().filter_map(|rule| rule.process_filter.limit_message_once()).collect()
    }

    /// Takes the rates from the call before to this one, and says which limits are exceeded and which no longer are, in
    /// the order of the names and then of the sections.
    ///
    /// The first call only starts the clock: its rates, if any, are of a time that is not known.
    pub fn tick(&mut self, now: Instant, rates: &[Rate]) -> Vec<Notification> {
        self.round += 1;
        let started = *self.started.get_or_insert(now);
        let Some(last) = self.last.replace(now).filter(|&last| last < now) else { return Vec::new() };
        let tick = Tick { now, last, started };
        let mut found = Vec::new();
        for rate in rates {
            let new = |name: &Arc<[u8]>| Application::new(name, &self.rules);
            let application = self.applications.entry(Arc::clone(&rate.name)).or_insert_with_key(new);
            application.round = self.round;
            application.advance(&rate.name, tick.bytes(rate), &self.rules, &tick, &mut found);
        }
        self.applications.retain(|name, application| {
            if application.round == self.round {
                return true;
            }
            application.advance(name, [0, 0], &self.rules, &tick, &mut found);
            application.watches.iter().any(|watch| !watch.is_idle())
        });
        self.forget();
        found.sort_by(|a, b| (&a.application, a.rule).cmp(&(&b.application, b.rule)));
        found
    }

    /// Forgets of the applications that are gone, and exceed nothing, those that went first, if they are too many.
    fn forget(&mut self) {
        let round = self.round;
        let gone = |application: &Application| application.round != round && !application.exceeds();
        let rounds = self.applications.values().filter(|application| gone(application));
        let oldest = forgotten_until(rounds.map(|application| application.round).collect(), GONE_KEPT);
        self.applications.retain(|_, application| !gone(application) || application.round > oldest);
    }
}

/// The time between two looks at the rates.
struct Tick {
    now: Instant,
    last: Instant,
    started: Instant,
}

impl Tick {
    /// The whole bytes, in and out, that the rate was made of: sums of them stay exact.
    fn bytes(&self, rate: &Rate) -> [u64; 2] {
        let seconds = self.now.duration_since(self.last).as_secs_f64();
        [rate.in_bytes_per_s, rate.out_bytes_per_s].map(|per_s| (per_s * seconds).round() as u64)
    }
}

impl Application {
    fn new(name: &[u8], rules: &[Rule]) -> Self {
        let matching = (0..).zip(rules).filter(|(_, rule)| rule.process_filter.matches_command_line(name));
        let watch = |(rule, settings): (usize, &Rule)| Watch {
            rule,
            average: Average::over(settings.interval),
            notified: [None, None],
        };
        Self { watches: matching.map(watch).collect(), round: 0 }
    }

    /// Whether any of its averages is above its limit.
    fn exceeds(&self) -> bool {
        self.watches.iter().any(Watch::exceeds)
    }

    fn advance(
        &mut self,
        name: &Arc<[u8]>,
        bytes: [u64; 2],
        rules: &[Rule],
        tick: &Tick,
        found: &mut Vec<Notification>,
    ) {
        for Watch { rule, average, notified } in &mut self.watches {
            let settings = &rules[*rule];
            average.add(tick.last, tick.now, bytes);
            let averages = average.bytes_per_s(tick.started, tick.now);
            let thresholds = [settings.in_threshold_kb_per_s, settings.out_threshold_kb_per_s];
            for (i, direction) in [Direction::In, Direction::Out].into_iter().enumerate() {
                let Some(threshold_kb_per_s) = thresholds[i] else { continue };
                let value_kb_per_s = averages[i] / KB;
                let exceeded = value_kb_per_s > threshold_kb_per_s as f64;
                let is_news = match notified[i] {
                    Some(before) if exceeded => tick.now.duration_since(before) + TICK_TOLERANCE >= settings.repeat,
                    before => exceeded != before.is_some(),
                };
                if !is_news {
                    continue;
                }
                notified[i] = exceeded.then_some(tick.now);
                found.push(Notification {
                    rule: *rule,
                    application: Arc::clone(name),
                    direction,
                    threshold_kb_per_s,
                    value_kb_per_s,
                    recovered: !exceeded,
                });
            }
        }
    }
}

impl Watch {
    /// Whether nothing would be different if it were forgotten. An average over the whole run is never empty again, and
    /// a host can start a million command lines in one: there only those above their limit are kept.
    fn is_idle(&self) -> bool {
        self.average.is_empty() || (self.average.is_over_the_whole_run() && !self.exceeds())
    }

    fn exceeds(&self) -> bool {
        self.notified != [None, None]
    }
}

#[cfg(test)]
mod tests;
