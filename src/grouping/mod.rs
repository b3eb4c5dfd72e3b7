//! Groups of subjects, with one total each: applications, single command lines, programs, users, units or containers.
//!
//! A subject belongs to the first application of the file that has a pattern matching its label or another property. If
//! there is none, it belongs to the group of those that share the property by which the rest is [grouped](GroupBy).
//! Pipes are grouped by their names in the same way.
//!
//! ```text
//! /usr/lib/firefox/firefox -P work   →   Browsers   (an application of the file with firefox=firefox)
//! /usr/bin/python3 sync.py           →   python3    (automatic grouping, see [`key`])
//! ```
//! [`Aggregator`] is itself a [`Source`]: it reads other sources and returns one reading per group.

pub mod key;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::python2::pattern::{MatchBudget, Pattern};
use crate::traffic::detail::{Detail, Remotes, VisitDetail};
use crate::traffic::rates::moved;
use crate::traffic::rounds::forget_until;
use crate::traffic::source::{Facts, Reading, Source, VisitMoved, VisitRemotes};
use crate::traffic::subject::Subject;
use crate::workload::names::Names;

/// The most programs without a process whose totals automatic grouping remembers. On a host that keeps starting new
/// programs, it forgets those that have been silent the longest.
const SILENT_PROGRAMS_KEPT: usize = 1000;

/// The CPU time that matching new command lines may take in a tick: enough for 2,000 with 1,000 patterns.
const MATCHING_PER_TICK: Duration = Duration::from_millis(200);

/// An application: its name, and the patterns that its command lines match.
#[derive(Debug)]
pub struct Application {
    /// The name that the output shows.
    pub name: String,
    /// A subject of which this property matches any of these belongs to the application.
    pub patterns: Vec<(GroupBy, Pattern)>,
}

/// A property of processes by which they are grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, clap::ValueEnum)]
pub enum GroupBy {
    /// The command line.
    #[default]
    Command,
    /// The program that the command line names.
    Program,
    /// The user that the process runs as.
    User,
    /// The systemd unit.
    Unit,
    /// The container.
    Container,
}

impl GroupBy {
    /// Its name, as an argument and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Program => "program",
            Self::User => "user",
            Self::Unit => "unit",
            Self::Container => "container",
        }
    }

    /// What a row is for, and several of them.
    pub(crate) fn nouns(self) -> (&'static str, &'static str) {
        match self {
            Self::Command => ("process", "processes"),
            Self::Program => ("program", "programs"),
            Self::User => ("user", "users"),
            Self::Unit => ("unit", "units"),
            Self::Container => ("container", "containers"),
        }
    }

    /// The group of the processes that have no such property.
    fn without(self) -> &'static [u8] {
        match self {
            Self::Unit => b"(no unit)",
            Self::Container => b"(no container)",
            Self::Command | Self::Program | Self::User => b"(user unknown)",
        }
    }
}

/// The rules by which subjects become groups.
#[derive(Debug, Default)]
pub struct Grouping {
    /// The applications of the file; the first that matches wins.
    pub applications: Vec<Application>,
    /// What groups a subject that matches none of them.
    pub group_by: GroupBy,
}

impl Grouping {
    /// Whether any rule needs the names of containers.
    fn needs_container_names(&self) -> bool {
        let of_applications = self.applications.iter().flat_map(|application| &application.patterns);
        self.group_by == GroupBy::Container || of_applications.into_iter().any(|(by, _)| *by == GroupBy::Container)
    }

    /// The group of a subject, and what kind of group that is; `None` if that cannot be found out in this tick.
    fn group(&self, subject: &Subject, matching: &mut MatchBudget, names: &mut Names) -> Option<(Subject, GroupKind)> {
        if let Subject::Processes { cgroup: Some(cgroup), .. } = subject
            && self.needs_container_names()
            && names.is_looked_up(cgroup)
        {
            return None;
        }
        let application = matching.decide(|budget| {
            for application in &self.applications {
                for (by, pattern) in &application.patterns {
                    if let Some(property) = key::property(*by, subject, names)
                        && budget.matches(pattern, &property)?
                    {
                        return Some(Some(application));
                    }
                }
            }
            Some(None)
        })?;
        let (name, kind) = match (application, self.group_by) {
            (Some(application), _) => (application.name.as_bytes().into(), GroupKind::Application),
            (None, GroupBy::Command) => (subject.name().into(), GroupKind::CommandLine),
            (None, GroupBy::Program) => (key::program(&subject.name()).into(), GroupKind::Program),
            (None, by) => match (key::property(by, subject, names), subject) {
                (Some(property), _) => (property.into(), GroupKind::Program),
                (None, Subject::Processes { .. }) => (by.without().into(), GroupKind::Program),
                // A pipe, or what is not told apart.
                (None, _) => (subject.name().into(), GroupKind::CommandLine),
            },
        };
        Some((Subject::Named(name), kind))
    }
}

/// The kind of a group, which decides how long its total is kept. If groups of two kinds have one name, they are one
/// group of the kind that is kept longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum GroupKind {
    /// A command line or pipe by itself: kept as long as its source knows it.
    CommandLine,
    /// A program, user, unit or container: kept until too many others were active later.
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
    matching: MatchBudget,
    names: Names,
    notes: Vec<String>,
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
    /// The bytes in and out that the last tick added to the group.
    moved: [u64; 2],
    /// `None` as long as its group is not known: its bytes wait.
    group: Option<Arc<Subject>>,
    /// Whether the group is to be found out, or found out again.
    is_pending: bool,
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
        let mut aggregator = Self {
            grouping,
            members: Vec::new(),
            groups: HashMap::new(),
            round: 0,
            matching: MatchBudget::new(MATCHING_PER_TICK),
            names: Names::new(),
            notes: Vec::new(),
        };
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
        let names = grouping.applications.iter().map(|application| application.name.as_bytes().into());
        let applications: HashSet<Subject> = names.map(Subject::Named).collect();
        self.grouping = grouping;
        for (name, group) in &mut self.groups {
            let is_application = applications.contains(&**name);
            group.kind = if is_application { GroupKind::Application } else { GroupKind::CommandLine };
        }
        for reading in self.members.iter_mut().flat_map(|member| member.before.values_mut()) {
            reading.is_pending = true;
        }
        self.find_groups();
        let readings = self.members.iter().flat_map(|member| member.before.values());
        let used: HashSet<&Arc<Subject>> = readings.filter_map(|reading| reading.group.as_ref()).collect();
        self.groups.retain(|name, group| group.kind == GroupKind::Application || used.contains(name));
    }

    /// Finds the groups of the subjects whose groups are to be found out, as many as there is time for.
    fn find_groups(&mut self) {
        let readings = self.members.iter_mut().flat_map(|member| &mut member.before);
        let mut pending: Vec<_> = readings.filter(|(_, reading)| reading.is_pending).collect();
        // The shortest first: where time is short, long command lines are what takes it.
        pending.sort_by_cached_key(|(subject, _)| subject.label().len());
        for (subject, reading) in pending {
            let Some((name, kind)) = self.grouping.group(subject, &mut self.matching, &mut self.names) else {
                continue;
            };
            let name = Arc::new(name);
            let group = self.groups.entry(Arc::clone(&name)).or_insert(Group::new(kind));
            group.kind = group.kind.max(kind);
            (reading.group, reading.is_pending) = (Some(name), false);
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
        self.notes.extend(self.matching.begin_tick());
        self.names.refresh();
        let mut readings = Vec::with_capacity(self.members.len());
        for member in &mut self.members {
            let of_member = member.source.read(now)?;
            for reading in &of_member {
                let known = member.before.entry(Arc::clone(&reading.subject)).or_insert(GroupedReading {
                    bytes_in: 0,
                    bytes_out: 0,
                    moved: [0, 0],
                    group: None,
                    is_pending: true,
                    round: 0,
                });
                (known.round, known.moved) = (self.round, [0, 0]);
            }
            readings.push(of_member);
        }
        self.find_groups();
        for (member, readings) in self.members.iter_mut().zip(readings) {
            for Reading { subject, bytes_in, bytes_out } in readings {
                let Some(known) = member.before.get_mut(&subject) else { continue };
                let Some(group) = known.group.as_ref().and_then(|name| self.groups.get_mut(name)) else { continue };
                known.moved = [moved(bytes_in, known.bytes_in), moved(bytes_out, known.bytes_out)];
                group.bytes_in += known.moved[0];
                group.bytes_out += known.moved[1];
                group.round = self.round;
                (known.bytes_in, known.bytes_out) = (bytes_in, bytes_out);
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

    fn each_detail(&self, visit: &mut VisitDetail<'_>) {
        let mut groups: HashMap<&Arc<Subject>, (Detail, Option<Remotes>)> = HashMap::new();
        for member in &self.members {
            member.source.each_detail(&mut |subject, detail, remotes| {
                if let Some(group) = member.before.get(subject).and_then(|reading| reading.group.as_ref()) {
                    let (of_all, of_group) = groups.entry(group).or_default();
                    of_all.add(&detail);
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

    fn unowned(&self) -> Vec<Reading> {
        let mut sums: BTreeMap<Arc<Subject>, (u64, u64)> = BTreeMap::new();
        for Reading { subject, bytes_in, bytes_out } in self.members.iter().flat_map(|member| member.source.unowned()) {
            let sum = sums.entry(subject).or_default();
            *sum = (sum.0 + bytes_in, sum.1 + bytes_out);
        }
        let reading = |(subject, (bytes_in, bytes_out))| Reading { subject, bytes_in, bytes_out };
        sums.into_iter().map(reading).collect()
    }

    fn each_moved(&self, visit: &mut VisitMoved<'_>) -> bool {
        for (subject, reading) in self.members.iter().flat_map(|member| &member.before) {
            if let Some(group) = reading.group.as_ref().filter(|_| reading.moved != [0, 0]) {
                visit(subject, group, reading.moved);
            }
        }
        true
    }

    fn each_remotes(&self, visit: &mut VisitRemotes<'_>) {
        for member in &self.members {
            member.source.each_detail(&mut |subject, _, remotes| {
                let group = member.before.get(subject).and_then(|reading| reading.group.as_ref());
                if let (Some(group), Some(remotes)) = (group, remotes) {
                    visit(subject, group, remotes);
                }
            });
        }
    }

    fn notes(&mut self) -> Vec<String> {
        let patterns = self.grouping.applications.iter().flat_map(|application| &application.patterns);
        let patterns = patterns.map(|(_, pattern)| pattern);
        let sources = self.members.iter_mut().flat_map(|member| member.source.notes());
        let ours = std::mem::take(&mut self.notes);
        sources.chain(ours).chain(patterns.filter_map(Pattern::limit_message_once)).collect()
    }

    fn last_notes(&mut self) -> Vec<String> {
        let mut notes = self.notes();
        notes.extend(self.members.iter_mut().flat_map(|member| member.source.last_notes()));
        notes
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
