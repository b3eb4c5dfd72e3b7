//! The five command lines that received most, after ten seconds: the library without the programs.
//!
//! `sudo cargo run --release --example top`

use std::time::{Duration, Instant};

use bwmon::ledger::Selection;
use bwmon::monitor::{Monitor, MonitorSettings};
use bwmon::traffic::source::Source;

fn main() -> anyhow::Result<()> {
    let mut monitor = Monitor::of_this_host(MonitorSettings {
        selections: vec![Selection::default()],
        ..MonitorSettings::default()
    })?;
    // The first reading is where counting begins; a reading a second sees most.
    let mut readings = monitor.read(Instant::now())?;
    for _ in 0..10 {
        std::thread::sleep(Duration::from_secs(1));
        readings = monitor.read(Instant::now())?;
    }
    for note in monitor.notes() {
        eprintln!("{note}");
    }
    readings.sort_by_key(|reading| std::cmp::Reverse(reading.bytes_in));
    for reading in readings.iter().take(5) {
        println!("{:>12} {}", reading.bytes_in, bwmon::printable::printable(&reading.subject.label(), 80));
    }
    Ok(())
}
