//! The CPU time that counting packets adds to each of them, and what connection tracking adds instead.
//!
//! Each measurement stands between two without either, since the speed of a machine changes from one second to the next.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::Ours;
use crate::namespace::Namespace;
use crate::table::{self, median, number};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    ours: Ours,
    /// Number of rounds, of which the medians and the quartiles are shown
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// For how many milliseconds packets are exchanged at a time
    #[arg(long, default_value_t = 150)]
    milliseconds: u64,
}

/// A title, the protocol and the kind of the [role](crate::roles) `packets`.
const LOADS: [[&str; 3]; 3] = [
    ["TCP, a round trip of 64 bytes", "tcp", "trips"],
    ["UDP, a round trip of 64 bytes", "udp", "trips"],
    ["UDP, a datagram in a flood", "udp", "flood"],
];
const COUNTED_BY: [&str; 2] = ["packets", "conntrack"];
/// How often each load is measured at a time; the one that took the least CPU time is taken.
const TIMES: usize = 3;
/// The time for the programs to be loaded.
const SETTLE: Duration = Duration::from_millis(600);

/// What a packet costs.
#[derive(Clone, Copy)]
struct Cost {
    per_s: f64,
    cpu_us: f64,
}

/// The change that one way of counting makes, in percent.
#[derive(Clone, Copy)]
struct Change {
    cpu_percent: f64,
    kept_percent: f64,
}

pub fn run(options: &Options) -> Result<()> {
    let namespace = Namespace::new()?;
    let measure = || -> Result<Vec<Cost>> { LOADS.iter().map(|load| best(&namespace, load, options)).collect() };
    // By load and way of counting.
    let mut changes = LOADS.map(|_| COUNTED_BY.map(|_| Vec::new()));
    let mut before = measure()?;
    for _ in 0..options.rounds {
        for (way, counted_by) in COUNTED_BY.iter().enumerate() {
            let counted = match *counted_by {
                "packets" => {
                    let mut command = Command::new(&options.ours.runmonitor);
                    let runmonitor = namespace.start(command.arg("--source=packets"))?;
                    sleep(SETTLE);
                    let counted = measure()?;
                    runmonitor.interrupt()?;
                    counted
                }
                _ => {
                    namespace.track()?;
                    let counted = measure()?;
                    namespace.track_no_more()?;
                    counted
                }
            };
            let after = measure()?;
            for (load, changes) in changes.iter_mut().enumerate() {
                let of_both = |value: fn(&Cost) -> f64| (value(&before[load]) + value(&after[load])) / 2.0;
                changes[way].push(Change {
                    cpu_percent: 100.0 * counted[load].cpu_us / of_both(|cost| cost.cpu_us) - 100.0,
                    kept_percent: 100.0 * counted[load].per_s / of_both(|cost| cost.per_s),
                });
            }
            before = after;
        }
    }
    show(&changes);
    Ok(())
}

/// The cheapest of some measurements of one load.
fn best(namespace: &Namespace, [_, protocol, kind]: &[&str; 3], options: &Options) -> Result<Cost> {
    let role = format!("packets {protocol} {kind} {}", options.milliseconds);
    let measure = |_| -> Result<Cost> {
        let printed = namespace.play("packets", &role)?.finish()?;
        let (per_s, cpu_us) = printed.trim().split_once(' ').with_context(|| format!("no cost: {printed}"))?;
        Ok(Cost { per_s: per_s.parse()?, cpu_us: cpu_us.parse()? })
    };
    let all: Vec<Cost> = (0..TIMES).map(measure).collect::<Result<_>>()?;
    all.into_iter().min_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us)).context("nothing was measured")
}

fn show(changes: &[[Vec<Change>; 2]; 3]) {
    let mut rows = Vec::new();
    for ([title, ..], changes) in LOADS.iter().zip(changes) {
        for (counted_by, changes) in COUNTED_BY.iter().zip(changes) {
            let mut added: Vec<f64> = changes.iter().map(|change| change.cpu_percent).collect();
            added.sort_by(f64::total_cmp);
            let quartile = |share: usize| added.get(added.len() * share / 4).copied().unwrap_or(f64::NAN);
            rows.push([
                (*title).to_owned(),
                (*counted_by).to_owned(),
                number(median(added.iter().copied()), 1),
                format!("{} to {}", number(quartile(1), 1), number(quartile(3), 1)),
                number(median(changes.iter().map(|change| change.kept_percent)), 1),
            ]);
        }
    }
    table::print(["load", "counted by", "CPU time added, %", "quartiles", "throughput kept, %"], &rows);
}
