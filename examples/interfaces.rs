//! A source of one's own: `target/debug/examples/interfaces [FILE]` shows the bytes of each network interface, or of the
//! applications of a configuration file whose patterns match their names.
//!
//! Whatever implements [`Source`] can stand in an [`Aggregator`], beside or instead of monitors and pipes.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bwmon::config::{Diagnostics, applications};
use bwmon::grouping::{Aggregator, Grouping};
use bwmon::traffic::source::{Reading, Source};
use bwmon::traffic::subject::Subject;

/// The counters of the interfaces, in /proc/net/dev (proc_net(5)).
struct Interfaces;

impl Source for Interfaces {
    fn read(&mut self, _now: Instant) -> Result<Vec<Reading>> {
        let path = "/proc/self/net/dev";
        let table = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        Ok(table.lines().filter_map(reading).collect())
    }
}

/// `  eth0: 7384610   81 0 0 0 0 0 0 193852   77 0 0 0 0 0 0`: the first number is received, the ninth sent.
fn reading(line: &str) -> Option<Reading> {
    let (name, counters) = line.split_once(':')?;
    let mut counters = counters.split_ascii_whitespace();
    let bytes_in = counters.next()?.parse().ok()?;
    let bytes_out = counters.nth(7)?.parse().ok()?;
    let subject = Arc::new(Subject::Named(name.trim().as_bytes().into()));
    Some(Reading { subject, bytes_in, bytes_out })
}

fn main() -> Result<()> {
    let mut diagnostics = Diagnostics::default();
    let mut grouping = Grouping::default();
    if let Some(file) = std::env::args().nth(1) {
        let text = std::fs::read(&file).with_context(|| format!("cannot read {file}"))?;
        grouping.applications = applications(&file, &text, &mut diagnostics);
    }
    let has_errors = diagnostics.has_errors();
    diagnostics.sorted().iter().for_each(|diagnostic| eprintln!("{diagnostic}"));
    ensure!(!has_errors, "the file has errors");
    let mut aggregator = Aggregator::new(grouping, vec![Interfaces]);
    for reading in aggregator.read(Instant::now())? {
        println!("{:>14} {:>14} {}", reading.bytes_in, reading.bytes_out, reading.subject.recorded_name());
    }
    Ok(())
}
