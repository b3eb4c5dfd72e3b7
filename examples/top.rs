//! The command lines that move the most bytes, once a second: `sudo target/debug/examples/top [SECONDS]`.
//!
//! A [`Monitor`] has the totals, and [`Rates`] takes the differences.

use std::cmp::Reverse;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bwmon::ledger::Selection;
use bwmon::monitor::{Monitor, MonitorSettings};
use bwmon::traffic::rates::Rates;
use bwmon::traffic::source::Source;

/// How many command lines are shown.
const SHOWN: usize = 5;

fn main() -> Result<()> {
    let seconds = match std::env::args().nth(1) {
        Some(word) => word.parse().with_context(|| format!("SECONDS is a number, not {word}"))?,
        None => u64::MAX,
    };
    // One selection without patterns selects everything.
    let settings = MonitorSettings { selections: vec![Selection::default()], ..MonitorSettings::default() };
    let mut monitor = Monitor::of_this_host(settings)?;
    let mut rates = Rates::new();
    for second in 0..=seconds {
        if second > 0 {
            sleep(Duration::from_secs(1));
        }
        let now = Instant::now();
        let (interval, mut rows) = rates.rows(now, monitor.read(now)?);
        for note in monitor.notes() {
            eprintln!("{note}");
        }
        // The first reading has nothing to compare with.
        let Some(interval) = interval else { continue };
        rows.sort_by_key(|row| Reverse(row.moved_in + row.moved_out));
        println!("{:>12} {:>12}", "in B/s", "out B/s");
        for row in rows.iter().filter(|row| row.has_moved()).take(SHOWN) {
            let per_s = |bytes: u64| bytes as f64 / interval.as_secs_f64();
            println!("{:12.0} {:12.0} {}", per_s(row.moved_in), per_s(row.moved_out), row.subject.recorded_name());
        }
    }
    Ok(())
}
