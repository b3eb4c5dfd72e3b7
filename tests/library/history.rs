//! The history under kills, slow disks and questions: nothing counts twice, and only the minute that was open is lost.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bwmon::history::{History, HistorySettings, Kept, Moved, Sums};
use bwmon::traffic::subject::Subject;
use jiff::tz::TimeZone;
use rusqlite::{Connection, OpenFlags};

use crate::common::program::wait_for;

/// 2026-11-26 12:00 UTC.
const NOON: u64 = 1_795_694_400;
const KILLS: usize = 100;

fn settings(file: &Path) -> HistorySettings {
    let kept = Kept { minutes: 1_000_000, ..Kept::default() };
    HistorySettings { file: file.to_owned(), remotes: false, kept, zone: TimeZone::UTC, interval_s: 60 }
}

fn named(name: &str) -> Arc<Subject> {
    Arc::new(Subject::Named(name.as_bytes().into()))
}

/// Records that `name` has moved `bytes` in the second before this one.
fn record(history: &mut History, second: u64, name: &str, bytes: u64) {
    let group = named(name);
    let moved = Moved { group: &group, uid: None, bytes: [bytes, 2 * bytes] };
    history.record(SystemTime::UNIX_EPOCH + Duration::from_secs(second), [moved].into_iter(), &|_| {});
}

/// Waits until all that was recorded is in the file.
fn sums(history: &mut History, section: &str, since: u64) -> Sums {
    wait_for("the queue to take a question", || history.ask_for_sums(section, since as i64).then_some(()));
    wait_for("an answer", || history.sums().pop())
}

/// The received bytes in each period of a table.
fn rows(file: &Path, table: &str) -> BTreeMap<u64, u64> {
    let file = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut query = file.prepare(&format!("SELECT start, sum(bytes_in) FROM {table} GROUP BY start")).unwrap();
    let rows = query.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64))).unwrap();
    rows.map(|row| row.unwrap()).collect()
}

/// The program that the next test kills: it records seconds as fast as it can, and writes down before each one in which minute
/// how many bytes have moved.
#[test]
#[ignore = "the next test starts it"]
fn a_program_that_is_killed() {
    let Some(file) = std::env::var_os("BWMON_TEST_HISTORY") else { return };
    let mut second: u64 = std::env::var("BWMON_TEST_SECOND").unwrap().parse().unwrap();
    let mut history = History::open(settings(Path::new(&file))).unwrap();
    let log = fs::File::options().append(true).create(true).open(Path::new(&file).with_extension("log"));
    let mut log = log.unwrap();
    record(&mut history, second, "web", 0);
    loop {
        let (minute, bytes) = (second / 60 * 60, second * 7919 % 1000 + 1);
        second += 1;
        log.write_all(format!("{minute} {bytes}\n").as_bytes()).unwrap();
        record(&mut history, second, "web", bytes);
        if second.is_multiple_of(60) {
            // No minute begins before the last one is in the file: the disk is as fast as it has to be.
            sums(&mut history, "", second);
        }
    }
}

#[test]
fn a_hundred_kills_lose_the_open_minute_at_most_and_count_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let (file, log) = (directory.path().join("h"), directory.path().join("h.log"));
    let mut truth: BTreeMap<u64, u64> = BTreeMap::new();
    let mut second = NOON;
    let (mut lost, mut random) = (0, 12345_u64);
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "history::a_program_that_is_killed", "--ignored"])
            .env("BWMON_TEST_HISTORY", &file)
            .env("BWMON_TEST_SECOND", second.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the program to record", || fs::metadata(&log).is_ok_and(|log| log.len() > 0).then_some(()));
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros(random >> 33 & 0x7fff));
        child.kill().unwrap();
        child.wait().unwrap();

        let mut recorded: BTreeMap<u64, u64> = BTreeMap::new();
        for line in fs::read_to_string(&log).unwrap().lines() {
            let (minute, bytes) = line.split_once(' ').unwrap();
            *recorded.entry(minute.parse().unwrap()).or_default() += bytes.parse::<u64>().unwrap();
            second += 1;
        }
        fs::remove_file(&log).unwrap();
        let (&last, _) = recorded.last_key_value().unwrap();
        for (minute, bytes) in recorded {
            let before = truth.get(&minute).copied().unwrap_or_default();
            let in_file = rows(&file, "minute").get(&minute).copied().unwrap_or_default();
            assert!(in_file == before + bytes || (minute == last && in_file == before), "kill {kill}, minute {minute}");
            lost += usize::from(in_file == before);
            truth.insert(minute, in_file);
        }
        truth.retain(|_, bytes| *bytes > 0);
        assert_eq!(rows(&file, "minute"), truth, "kill {kill}");
        for table in ["hour", "day", "month"] {
            let sum: u64 = rows(&file, table).values().sum();
            assert_eq!(sum, truth.values().sum::<u64>(), "kill {kill}: {table}");
        }
    }
    // Both have happened: minutes that were lost, and whole ones.
    assert!(lost > 0 && truth.len() > KILLS / 4, "{lost} lost, {} whole", truth.len());
}

#[test]
fn the_end_of_the_program_writes_the_open_minute() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("h");
    for run in 0..2 {
        let mut history = History::open(settings(&file)).unwrap();
        for second in 0..4 {
            record(&mut history, NOON + run * 10 + second, "web", 10);
        }
        assert_eq!(history.finish(), [""; 0]);
    }
    // The first tick of each run has nothing to compare with.
    assert_eq!(rows(&file, "minute"), [(NOON, 60)].into());
}

#[test]
fn bytes_count_for_the_minute_in_which_they_moved_whatever_the_clock_does() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("h");
    let mut history = History::open(settings(&file)).unwrap();
    // Forward into the next minute, an hour back, and forward by a day.
    for (second, bytes) in [(59, 0), (61, 1), (62, 2), (62 + 86_400, 4), (62 + 82_800, 8), (63 + 82_800, 16)] {
        record(&mut history, NOON + second, "web", bytes);
    }
    history.finish();
    let expected = [(NOON, 1), (NOON + 60, 2 + 4), (NOON + 86_460, 8), (NOON + 82_860, 16)];
    assert_eq!(rows(&file, "minute"), expected.into());
}

#[test]
fn a_disk_that_stands_still_stops_nothing_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("h");
    let mut history = History::open(settings(&file)).unwrap();
    // Another program holds the lock of the database.
    let other = Connection::open(&file).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let started = std::time::Instant::now();
    let minutes = 500;
    for minute in 0..=minutes {
        record(&mut history, NOON + minute * 60, "web", 1);
    }
    // Less than the thread waits for the lock once.
    assert!(started.elapsed() < Duration::from_secs(5));
    other.execute_batch("ROLLBACK").unwrap();
    sums(&mut history, "", NOON);
    let rows = rows(&file, "minute");
    assert_eq!(rows.values().sum::<u64>(), minutes);
    assert!((64..=70).contains(&rows.len()), "{}", rows.len());
}

#[test]
fn a_question_is_answered_with_all_that_was_recorded_before() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("h");
    let mut history = History::open(settings(&file)).unwrap();
    record(&mut history, NOON - 86_400, "web", 0);
    record(&mut history, NOON - 86_399, "web", 1000);
    record(&mut history, NOON, "web", 1000);
    record(&mut history, NOON + 1, "web", 10);
    record(&mut history, NOON + 2, "mail\nx", 5);
    wait_for("the queue", || history.remember_told("A", "web", NOON as i64, 7).then_some(()));
    let Sums { section, since, bytes, told } = sums(&mut history, "A", NOON - 43_200);
    assert_eq!((&*section, since), ("A", NOON as i64 - 43_200));
    assert_eq!(bytes, [("web".to_owned(), 30), ("mail\\nx".to_owned(), 15)].into());
    assert_eq!(told, []);
    assert_eq!(sums(&mut history, "A", NOON).told, [("web".to_owned(), 7)]);
    assert_eq!(sums(&mut history, "B", NOON).told, []);
}

#[test]
fn the_recipes_of_the_document_work() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("h");
    let mut history = History::open(settings(&file)).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    record(&mut history, now, "Web", 0);
    record(&mut history, now, "Web", 5 << 20);
    history.finish();
    let document = include_str!("../../docs/history.md");
    let recipes = document.split_once("```sql\n").and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    let connection = Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let recipes: Vec<&str> = recipes.split_inclusive(";\n").filter(|recipe| !recipe.trim().is_empty()).collect();
    assert_eq!(recipes.len(), 5);
    for recipe in recipes {
        let mut query = connection.prepare(recipe).unwrap();
        let columns = query.column_count();
        let mut rows = query.query([]).unwrap();
        let row = rows.next().unwrap().unwrap_or_else(|| panic!("no row: {recipe}"));
        assert!((0..columns).any(|column| row.get::<_, i64>(column).is_ok_and(|sum| sum >= 5)), "{recipe}");
        assert!(rows.next().unwrap().is_none(), "{recipe}");
    }
}
