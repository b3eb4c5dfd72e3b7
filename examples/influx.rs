//! An output of one's own: `sudo target/debug/examples/influx` writes what each program has moved in each second as lines for
//! InfluxDB, until its reader is gone or a signal ends it.
//!
//! ```text
//! bwmon,program=nginx in=48211i,out=90210133i 1795694400000000000
//! ```
//! bwmon's own loop runs it: the loop reads the source once a second and gives each [`Frame`] to the [`Output`].

use std::io::{self, Write};
use std::time::UNIX_EPOCH;

use anyhow::Result;
use bwmon::grouping::{Aggregator, GroupBy, Grouping};
use bwmon::ledger::Selection;
use bwmon::monitor::{Monitor, MonitorSettings};
use bwmon::output::{Announcement, Frame, Output};
use bwmon::privileges::{Needs, Opening};
use bwmon::program::one_source::OneSource;
use bwmon::program::{Schedule, Signals, run};

/// Writes to stdout, as fast as its reader takes it; the outputs of bwmon leave out what nobody reads.
struct LineProtocol;

impl Output for LineProtocol {
    fn show(&mut self, frame: &Frame) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let at_ns = frame.at.wall_clock.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        for row in frame.rows.iter().filter(|row| row.has_moved()) {
            let program = escaped(&row.subject.recorded_name());
            writeln!(out, "bwmon,program={program} in={}i,out={}i {at_ns}", row.moved_in, row.moved_out)?;
        }
        out.flush()?;
        self.tell(frame)
    }

    fn tell(&mut self, frame: &Frame) -> io::Result<()> {
        frame.notes.iter().for_each(|note| eprintln!("{note}"));
        Ok(())
    }

    fn announce(&mut self, announcements: &[Announcement]) -> io::Result<()> {
        for announcement in announcements {
            if let Announcement::Note(note) = announcement {
                eprintln!("{note}");
            }
        }
        Ok(())
    }
}

/// A tag's value: blanks, commas and equals signs have a backslash before them.
fn escaped(name: &str) -> String {
    let mut escaped = String::new();
    for c in name.chars() {
        if matches!(c, ' ' | ',' | '=') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

fn main() -> Result<()> {
    // Before the first thread starts.
    let signals = Signals::take()?;
    let opening = Opening::begin(Needs::of_monitor(true))?;
    let settings = MonitorSettings { selections: vec![Selection::default()], ..MonitorSettings::default() };
    let monitor = Monitor::of_this_host(settings)?;
    // Root's other rights are given up here, before the loop begins.
    let working = opening.end(Needs::of_monitor(monitor.may_open_sources()))?;
    let grouping = Grouping { applications: Vec::new(), group_by: GroupBy::Program };
    let mut program = OneSource::new(Aggregator::new(grouping, vec![monitor]));
    run(&mut program, &mut LineProtocol, Schedule::default(), signals, working)
}
