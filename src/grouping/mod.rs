//! From command lines to applications: whose total each of them belongs to.
//!
//! A command line belongs to the first application of the file with a matching pattern; with automatic grouping else to
//! the program that it names; else it is an application of its own. Pipes are grouped by their names in the same way.
//!
//! ```text
//! /usr/lib/firefox/firefox -P work   →   Browsers   (an application of the file with firefox=firefox)
//! /usr/bin/python3 sync.py           →   python3    (automatic grouping)
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use crate::python2::pattern::Pattern;
use crate::python2::shlex;
use crate::traffic::rates::moved;
use crate::traffic::source::{Reading, Source};

/// How many programs without a process automatic grouping remembers the totals of. On a host that starts ever new
/// programs, the ones silent for longest are forgotten.
const SILENT_PROGRAMS_KEPT: usize = 1000;

/// A section: an application's name and what its processes look like. The keys are for the reader only.
#[derive(Debug)]
pub struct Application {
    /// The section's name, under which the traffic is shown.
    pub name: String,
    /// A command line that one of them matches belongs to the application.
    pub patterns: Vec<Pattern>,
}

/// The rules by which command lines become applications.
#[derive(Debug, Default)]
pub struct Grouping {
    /// The applications of the file; the first that matches counts.
    pub applications: Vec<Application>,
    /// Whether what matches none of them is grouped by program.
    pub auto_group: bool,
}

impl Grouping {
    fn group(&self, name: &Arc<[u8]>) -> (Arc<[u8]>, Kind) {
        let matches = |application: &&Application| application.patterns.iter().any(|p| p.matches_command_line(name));
        if let Some(application) = self.applications.iter().find(matches) {
            (Arc::from(application.name.as_bytes()), Kind::Application)
        } else if self.auto_group {
            (Arc::from(program(name)), Kind::Program)
        } else {
            (Arc::clone(name), Kind::CommandLine)
        }
    }
}

/// What a group stands for, which decides how long its total is kept. Of two that share a name the longer one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A command line or pipe by itself: as long as its source knows it.
    CommandLine,
    /// What automatic grouping found: until too many others were heard of later.
    Program,
    /// An application of the file: for good, as there are only so many.
    Application,
}

/// The program that a command line names: its first word, as a shell splits, without the directories.
///
/// Where that word's quotes are not closed it is the first word by blanks, and where there is none, or nothing is left
/// of it, the whole command line: a process may have written anything over its own.
pub fn program(command_line: &[u8]) -> Vec<u8> {
    let word = match shlex::first_word(command_line) {
        Ok(word) => word,
        Err(_) => command_line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()).map(<[u8]>::to_vec),
    };
    let word = word.unwrap_or_default();
    let base = word.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    if base.is_empty() { command_line.to_vec() } else { base.to_vec() }
}

/// Reads several sources and adds up what belongs to one application.
///
/// An application's total keeps what its command lines had when their source forgot them, so that processes may come
/// and go.
pub struct Aggregator<S> {
    grouping: Grouping,
    members: Vec<Member<S>>,
    groups: HashMap<Arc<[u8]>, Group>,
    /// Counts the readings, to tell what the latest one had.
    round: u64,
}

/// A source, and what it said of each name last time.
struct Member<S> {
    source: S,
    names: HashMap<Arc<[u8]>, Seen>,
}

struct Seen {
    bytes_in: u64,
    bytes_out: u64,
    group: Arc<[u8]>,
    round: u64,
}

#[derive(Clone, Copy)]
struct Group {
    kind: Kind,
    bytes_in: u64,
    bytes_out: u64,
    /// When one of its command lines was last read.
    round: u64,
}

impl Group {
    fn new(kind: Kind) -> Self {
        Self { kind, bytes_in: 0, bytes_out: 0, round: 0 }
    }
}

impl<S: Source> Aggregator<S> {
    /// An aggregator over `sources`, which count different bytes.
    pub fn new(grouping: Grouping, sources: Vec<S>) -> Self {
        let mut aggregator = Self { grouping, members: Vec::new(), groups: HashMap::new(), round: 0 };
        sources.into_iter().for_each(|source| aggregator.add(source));
        aggregator
    }

    /// Reads this source too from now on.
    pub fn add(&mut self, source: S) {
        self.members.push(Member { source, names: HashMap::new() });
    }

    /// Lets go of the sources that are not to be kept. What they counted stays with the applications.
    pub fn retain(&mut self, mut keep: impl FnMut(&S) -> bool) {
        self.members.retain(|member| keep(&member.source));
    }

    /// The sources.
    pub fn sources(&mut self) -> impl Iterator<Item = &mut S> {
        self.members.iter_mut().map(|member| &mut member.source)
    }

    /// Groups by other rules from now on. Applications that are in both keep their totals; what has moved to another one
    /// counts there from now on.
    pub fn regroup(&mut self, grouping: Grouping) {
        self.grouping = grouping;
        let before = std::mem::take(&mut self.groups);
        let known = |name: &[u8], kind| Group { kind, ..before.get(name).copied().unwrap_or(Group::new(kind)) };
        for (name, seen) in self.members.iter_mut().flat_map(|member| &mut member.names) {
            let (name, kind) = self.grouping.group(name);
            let group = self.groups.entry(Arc::clone(&name)).or_insert_with(|| known(&name, kind));
            group.kind = group.kind.max(kind);
            seen.group = name;
        }
        for application in &self.grouping.applications {
            let name = application.name.as_bytes();
            if before.contains_key(name) {
                self.groups.entry(Arc::from(name)).or_insert_with(|| known(name, Kind::Application));
            }
        }
    }

    fn forget(&mut self) {
        let round = self.round;
        for member in &mut self.members {
            member.names.retain(|_, seen| seen.round == round);
        }
        self.groups.retain(|_, group| group.kind != Kind::CommandLine || group.round == round);
        let silent = |group: &Group| group.kind == Kind::Program && group.round != round;
        let rounds = self.groups.values().filter(|group| silent(group)).map(|group| group.round).collect();
        let oldest = forgotten_until(rounds, SILENT_PROGRAMS_KEPT);
        self.groups.retain(|_, group| !silent(group) || group.round > oldest);
    }
}

/// Of what was last heard of in these rounds so many are kept, the latest: all that was not heard of since the round that
/// this gives is to be forgotten. Rounds begin with 1.
pub(crate) fn forgotten_until(mut rounds: Vec<u64>, kept: usize) -> u64 {
    if rounds.len() <= kept {
        return 0;
    }
    let (_, &mut latest, _) = rounds.select_nth_unstable_by(kept, |a, b| b.cmp(a));
    latest
}

impl<S: Source> Source for Aggregator<S> {
    fn read(&mut self, now: Instant) -> Result<Vec<Reading>> {
        self.round += 1;
        for member in &mut self.members {
            for Reading { name, bytes_in, bytes_out } in member.source.read(now)? {
                let seen = member.names.entry(name).or_insert_with_key(|name| {
                    let (group, kind) = self.grouping.group(name);
                    let known = self.groups.entry(Arc::clone(&group)).or_insert(Group::new(kind));
                    known.kind = known.kind.max(kind);
                    Seen { bytes_in: 0, bytes_out: 0, group, round: 0 }
                });
                if let Some(group) = self.groups.get_mut(&seen.group) {
                    group.bytes_in += moved(bytes_in, seen.bytes_in);
                    group.bytes_out += moved(bytes_out, seen.bytes_out);
                    group.round = self.round;
                }
                (seen.bytes_in, seen.bytes_out, seen.round) = (bytes_in, bytes_out, self.round);
            }
        }
        self.forget();
        let reading = |(name, group): (&Arc<[u8]>, &Group)| Reading {
            name: Arc::clone(name),
            bytes_in: group.bytes_in,
            bytes_out: group.bytes_out,
        };
        Ok(self.groups.iter().map(reading).collect())
    }

    fn notes(&mut self) -> Vec<String> {
        let patterns = self.grouping.applications.iter().flat_map(|application| &application.patterns);
        let sources = self.members.iter_mut().flat_map(|member| member.source.notes());
        sources.chain(patterns.filter_map(Pattern::limit_message_once)).collect()
    }
}

#[cfg(test)]
mod tests;
