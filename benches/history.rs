//! The history of a year on a host with 300 applications that all move bytes in each minute: its size, and the time of a write, of a
//! report and of a tick.
//!
//! The file gets the rows that are left after a year: a batch for each day of the year, for each hour of the last month, and for
//! each minute of the last day.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bwmon::calendar::Period;
use bwmon::history::report::{Query, Report};
use bwmon::history::{History, HistorySettings, Kept, Moved};
use bwmon::traffic::subject::Subject;
use jiff::tz::TimeZone;

const APPLICATIONS: usize = 300;
/// 2026-11-26 12:00 UTC.
const NOW: u64 = 1_795_694_400;
const DAY: u64 = 86_400;

fn main() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("history");
    let settings = HistorySettings {
        file: file.clone(),
        remotes: false,
        kept: Kept::default(),
        zone: TimeZone::UTC,
        interval_s: 60,
    };
    let mut history = History::open(settings).expect("a history");
    let name = |n: usize| Arc::new(Subject::Named(format!("application number {n}").into_bytes().into()));
    let groups: Vec<Arc<Subject>> = (0..APPLICATIONS).map(name).collect();
    let record = |history: &mut History, second: u64| {
        let moved =
            groups.iter().zip(1..).map(|(group, n)| Moved { group, uid: Some(33), bytes: [n * second % 99_991, n] });
        let start = Instant::now();
        history.record(SystemTime::UNIX_EPOCH + Duration::from_secs(second), moved, &|_| {});
        start.elapsed()
    };
    let days = (0..334).map(|day| NOW - 365 * DAY + day * DAY);
    let hours = (0..30 * 24).map(|hour| NOW - 31 * DAY + hour * 3600);
    let minutes = (0..1440).map(|minute| NOW - DAY + minute * 60);
    let (mut ticks, mut writes) = (Vec::new(), Vec::new());
    for second in days.chain(hours).chain(minutes) {
        ticks.push(record(&mut history, second));
        let start = Instant::now();
        while !history.ask_for_sums("", NOW as i64) {}
        while history.sums().is_empty() {
            std::thread::sleep(Duration::from_micros(50));
        }
        writes.push(start.elapsed());
    }
    for note in history.finish() {
        println!("{note}");
    }
    let size = file.metadata().expect("the file").len();
    println!("size of the file: {:.1} MiB", size as f64 / f64::from(1 << 20));
    println!("a write of {APPLICATIONS} applications: {}", times(writes));
    println!("the part of a tick: {}", times(ticks));
    for (period, since) in
        [(Period::Hour, 1), (Period::Day, 1), (Period::Day, 30), (Period::Day, 365), (Period::Month, 365)]
    {
        let start = Instant::now();
        let query = Query {
            file: file.clone(),
            period,
            since: Some((NOW - since * DAY) as i64),
            until: None,
            top: Some(10),
            now: NOW as i64,
            zone: TimeZone::UTC,
        };
        let lines = Report::read(&query, &|_| true).expect("a report").text(false).lines().count();
        println!("a report of each {} of {since} days ({lines} lines): {:?}", period.name(), start.elapsed());
    }
}

fn times(mut times: Vec<Duration>) -> String {
    times.sort();
    let nth = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("{:?} (median), {:?} (99 of 100), {:?} (longest)", nth(0.5), nth(0.99), nth(1.0))
}
