//! Groups of subjects, with one total each: applications, programs and single command lines.
//!
//! A subject belongs to the first application of the file that has a pattern matching its label. If there is none, it
//! belongs with automatic grouping to the program that its command line names, and without it is a group of its own.
//! Pipes are grouped by their names in the same way.
//!
//! ```text
//! /usr/lib/firefox/firefox -P work   →   Browsers   (an application of the file with firefox=firefox)
//! /usr/bin/python3 sync.py           →   python3    (automatic grouping, see [`key`])
//! ```
//! [`Aggregator`] is itself a [`Source`]: it reads other sources and returns one reading per group.

pub mod key;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use crate::python2::pattern::Pattern;
use crate::traffic::rates::moved;
use crate::traffic::rounds::forget_until;
use crate::traffic::detail::{Detail, Remotes};
use crate::traffic::source::{Facts, Reading, Source};
use crate::traffic::subject::Subject;

/// The most programs without a process whose totals automatic grouping remembers. On a host that keeps starting new
/// programs, it forgets those that have been silent the longest.
const SILENT_PROGRAMS_KEPT: usize = 1000;

/// An application: its name, and the patterns that its command lines match.
#[derive(Debug)]
pub struct Application {
    /// The name that the output shows.
    pub name: String,
    /// A command line that matches any of these belongs to the application.
    pub patterns: Vec<Pattern>,
}

/// The rules by which command lines become applications.
#[derive(Debug, Default)]
pub struct Grouping {
    /// The applications of the file; the first that matches wins.
    pub applications: Vec<Application>,
    /// Whether a command line that matches none of them is grouped by program.
    pub auto_group: bool,
}

impl Grouping {
    /// The group of a subject, and what kind of group that is.
    fn group(&self, subject: &Subject) -> (Subject, GroupKind) {
        let label = subject.label();
        let matches = |application: &&Application| application.patterns.iter().any(|p| p.matches_command_line(&label));
        let (name, kind) = if let Some(application) = self.applications.iter().find(matches) {
            (application.name.as_bytes().into(), GroupKind::Application)
        } else if self.auto_group {
            (key::program(&subject.name()).into(), GroupKind::Program)
        } else {
            (subject.name().into(), GroupKind::CommandLine)
        };
        (Subject::Named(name), kind)
    }
}

/// The kind of a group, which decides how long its total is kept. If groups of two kinds have one name, they are one
/// group of the kind that is kept longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum GroupKind {
    /// A command line or pipe by itself: kept as long as its source knows it.
    CommandLine,
    /// A program that automatic grouping found: kept until too many others were active later.
    Program,
    /// An application of the file: kept for the whole run, since the file bounds their number.
    Application,
}

/// Reads several sources, and adds up the readings of each group.
///
/// The total of an application includes command lines that their source has forgotten, so it does not fall when
/// processes end.
pub struct Aggregator<S> {
    grouping: Grouping,
    members: Vec<Member<S>>,
    groups: HashMap<Arc<Subject>, Group>,
    /// The number of ticks so far, to tell which subjects the latest one had.
    round: u64,
}

/// A source, and its previous reading.
struct Member<S> {
    source: S,
    before: HashMap<Arc<Subject>, GroupedReading>,
}

/// A subject's totals, and the group to which they were added.
struct GroupedReading {
    bytes_in: u64,
    bytes_out: u64,
    group: Arc<Subject>,
    round: u64,
}

#[derive(Clone, Copy)]
struct Group {
    kind: GroupKind,
    bytes_in: u64,
    bytes_out: u64,
    /// The last tick that read one of its command lines.
    round: u64,
}

impl Group {
    fn new(kind: GroupKind) -> Self {
        Self { kind, bytes_in: 0, bytes_out: 0, round: 0 }
    }
}

impl<S: Source> Aggregator<S> {
    /// An aggregator over `sources`, no two of which count the same bytes.
    pub fn new(grouping: Grouping, sources: Vec<S>) -> Self {
        let mut aggregator = Self { grouping, members: Vec::new(), groups: HashMap::new(), round: 0 };
        sources.into_iter().for_each(|source| aggregator.add(source));
        aggregator
    }

    /// From now on, reads this source, too.
    pub fn add(&mut self, source: S) {
        self.members.push(Member { source, before: HashMap::new() });
    }

    /// Drops the sources for which `keep` is false. The applications keep the bytes that they counted.
    pub fn retain(&mut self, mut keep: impl FnMut(&S) -> bool) {
        self.members.retain(|member| keep(&member.source));
    }

    /// The sources.
    pub fn sources(&mut self) -> impl Iterator<Item = &mut S> {
        self.members.iter_mut().map(|member| &mut member.source)
    }

    /// From now on, groups by other rules. Applications that are in the old and the new ones keep their totals. A
    /// command line that moves to another group counts there only from now on.
    pub fn regroup(&mut self, grouping: Grouping) {
        self.grouping = grouping;
        let before = std::mem::take(&mut self.groups);
        let known = |name: &Subject, kind| Group { kind, ..before.get(name).copied().unwrap_or(Group::new(kind)) };
        for (subject, reading) in self.members.iter_mut().flat_map(|member| &mut member.before) {
            let (name, kind) = self.grouping.group(subject);
            let name = Arc::new(name);
            let group = self.groups.entry(Arc::clone(&name)).or_insert_with(|| known(&name, kind));
            group.kind = group.kind.max(kind);
            reading.group = name;
        }
        for application in &self.grouping.applications {
            let name = Arc::new(Subject::Named(application.name.as_bytes().into()));
            if before.contains_key(&name) {
                self.groups.entry(Arc::clone(&name)).or_insert_with(|| known(&name, GroupKind::Application));
            }
        }
    }

    fn forget(&mut self) {
        let round = self.round;
        for member in &mut self.members {
            member.before.retain(|_, reading| reading.round == round);
        }
        self.groups.retain(|_, group| group.kind != GroupKind::CommandLine || group.round == round);
        let silent = |group: &Group| group.kind == GroupKind::Program && group.round != round;
        let rounds = self.groups.values().filter(|group| silent(group)).map(|group| group.round).collect();
        let oldest = forget_until(rounds, SILENT_PROGRAMS_KEPT);
        self.groups.retain(|_, group| !silent(group) || group.round > oldest);
    }
}

impl<S: Source> Source for Aggregator<S> {
    fn read(&mut self, now: Instant) -> Result<Vec<Reading>> {
        self.round += 1;
        for member in &mut self.members {
            for Reading { subject, bytes_in, bytes_out } in member.source.read(now)? {
                let known = member.before.entry(subject).or_insert_with_key(|subject| {
                    let (name, kind) = self.grouping.group(subject);
                    let name = Arc::new(name);
                    let group = self.groups.entry(Arc::clone(&name)).or_insert(Group::new(kind));
                    group.kind = group.kind.max(kind);
                    GroupedReading { bytes_in: 0, bytes_out: 0, group: name, round: 0 }
                });
                if let Some(group) = self.groups.get_mut(&known.group) {
                    group.bytes_in += moved(bytes_in, known.bytes_in);
                    group.bytes_out += moved(bytes_out, known.bytes_out);
                    group.round = self.round;
                }
                (known.bytes_in, known.bytes_out, known.round) = (bytes_in, bytes_out, self.round);
            }
        }
        self.forget();
        let reading = |(name, group): (&Arc<Subject>, &Group)| Reading {
            subject: Arc::clone(name),
            bytes_in: group.bytes_in,
            bytes_out: group.bytes_out,
        };
        Ok(self.groups.iter().map(reading).collect())
    }

    fn each_detail(&self, visit: &mut dyn FnMut(&Arc<Subject>, Detail, Option<&Remotes>)) {
        let mut groups: HashMap<&Arc<Subject>, (Detail, Option<Remotes>)> = HashMap::new();
        for member in &self.members {
            member.source.each_detail(&mut |subject, detail, remotes| {
                if let Some(reading) = member.before.get(subject) {
                    let (group, of_group) = groups.entry(&reading.group).or_default();
                    group.add(&detail);
                    if let Some(remotes) = remotes {
                        of_group.get_or_insert_default().extend(remotes);
                    }
                }
            });
        }
        for (group, (detail, remotes)) in groups {
            visit(group, detail, remotes.as_ref());
        }
    }

    fn notes(&mut self) -> Vec<String> {
        let patterns = self.grouping.applications.iter().flat_map(|application| &application.patterns);
        let sources = self.members.iter_mut().flat_map(|member| member.source.notes());
        sources.chain(patterns.filter_map(Pattern::limit_message_once)).collect()
    }

    fn facts(&self) -> Facts {
        let facts = self.members.iter().map(|member| member.source.facts());
        facts.fold(Facts::default(), |all, facts| Facts {
            counters: all.counters.or(facts.counters),
            ticks_with_lost_events: all.ticks_with_lost_events + facts.ticks_with_lost_events,
        })
    }
}

#[cfg(test)]
mod tests;
