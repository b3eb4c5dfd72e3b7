use std::path::Path;

use rusqlite::Connection;

use super::chart::Chart;
use super::report::{Query, Report};
use super::schema::{beside, open_to_read};
use super::store::{Minute, Who};
use super::*;
use crate::calendar::Period;

const NOON: i64 = 1_795_694_400; // 2026-11-26 12:00 UTC

fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

fn open(path: &Path, run: &str) -> Result<Store> {
    Store::open(path, run.to_owned(), Kept::default(), berlin())
}

fn who(name: &str) -> Who {
    Who { kind: "group", name: name.to_owned(), uid: Some(33), remote: None }
}

/// A minute in which `name` moved `bytes` in.
fn minute(batch: u64, at: i64, name: &str, bytes: u64) -> Minute {
    Minute { at, batch, rows: vec![(who(name), [bytes, 0])] }
}

fn write(store: &mut Store, minute: &Minute) -> Result<bool> {
    store.write(minute, |uid| format!("user {uid}"))
}

/// When each period of a table began, and its bytes in and out.
fn rows(path: &Path, table: &str) -> Vec<(i64, i64)> {
    let file = open_to_read(path).unwrap();
    let sql = format!("SELECT start, sum(bytes_in + bytes_out) FROM {table} GROUP BY start");
    let mut rows = file.prepare(&sql).unwrap();
    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(|row| row.unwrap()).collect()
}

fn query(path: &Path, period: Period, since: i64) -> Query {
    Query { file: path.to_owned(), period, since: Some(since), until: None, top: Some(2), now: NOON, zone: berlin() }
}

#[test]
fn a_minute_counts_in_its_hour_day_and_month() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut store = open(&path, "a").unwrap();
    write(&mut store, &minute(1, NOON + 59, "web", 5)).unwrap();
    write(&mut store, &minute(2, NOON + 60, "web", 7)).unwrap();
    // A restart in the middle of a minute goes on with its row.
    drop(store);
    let mut store = open(&path, "b").unwrap();
    write(&mut store, &minute(1, NOON + 119, "web", 11)).unwrap();
    assert_eq!(rows(&path, "minute"), [(NOON, 5), (NOON + 60, 18)]);
    assert_eq!(rows(&path, "hour"), [(NOON, 23)]);
    assert_eq!(rows(&path, "day"), [(NOON - 13 * 3600, 23)]);
    // November began in Berlin at 23:00 UTC.
    assert_eq!(rows(&path, "month"), [(1_793_487_600, 23)]);
}

#[test]
fn a_batch_that_was_written_is_not_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut store = open(&path, "a").unwrap();
    for batch in [1, 1, 2, 1, 2] {
        write(&mut store, &minute(batch, NOON, "web", 10)).unwrap();
    }
    assert_eq!(rows(&path, "day"), [(NOON - 13 * 3600, 20)]);
}

#[test]
fn the_hour_that_comes_twice_is_two_hours_of_one_day() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut store = open(&path, "a").unwrap();
    let two_summer = 1_792_888_200; // 2026-10-25 00:30 UTC, 02:30 CEST
    write(&mut store, &minute(1, two_summer, "web", 1)).unwrap();
    write(&mut store, &minute(2, two_summer + 3600, "web", 2)).unwrap();
    assert_eq!(rows(&path, "hour"), [(two_summer - 1800, 1), (two_summer + 1800, 2)]);
    assert_eq!(rows(&path, "day").len(), 1);
    let text = Report::read(&query(&path, Period::Hour, two_summer), &|_| true).unwrap().text(false);
    assert!(text.contains("2026-10-25 02:00 CEST\n") && text.contains("2026-10-25 02:00 CET\n"), "{text}");
}

#[test]
fn a_clock_that_goes_back_adds_to_earlier_rows_and_one_that_was_wrong_costs_no_history() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let kept = Kept { minutes: 3, ..Kept::default() };
    let mut store = Store::open(&path, "a".to_owned(), kept, berlin()).unwrap();
    // Only the batches 1, 61, 121 … look for rows to drop.
    let mut batch = 1;
    let mut write = |at| {
        write(&mut store, &minute(batch, at, "web", 1)).unwrap();
        batch += 60;
    };
    let future = NOON + 70 * 365 * 86_400;
    [NOON, NOON + 60, NOON, future, NOON + 120].into_iter().for_each(&mut write);
    assert_eq!(rows(&path, "minute"), [(NOON, 2), (NOON + 60, 1), (NOON + 120, 1)]);
    // The longer periods have room for it.
    assert_eq!(rows(&path, "day").iter().map(|row| row.1).collect::<Vec<_>>(), [4, 1]);
}

#[test]
fn what_is_kept_is_bounded_and_its_sums_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let kept = Kept { minutes: 60, hours: 5, days: 731, most_bytes: 600_000 };
    let mut store = Store::open(&path, "a".to_owned(), kept, berlin()).unwrap();
    let mut total = 0;
    for n in 0..200 {
        // Ever new names, 400 bytes each.
        let rows = (0..50).map(|name| (who(&format!("{n} {name} {}", "x".repeat(400))), [name + 1, 0]));
        store
            .write(&Minute { at: NOON + n * 60, batch: n as u64 + 1, rows: rows.collect() }, |_| String::new())
            .unwrap();
        total += 50 * 51 / 2;
    }
    let size = path.metadata().unwrap().len();
    assert!(size < 1_500_000, "{size}");
    assert_eq!(rows(&path, "month").iter().map(|row| row.1).sum::<i64>(), total);
    assert_eq!(rows(&path, "day").iter().map(|row| row.1).sum::<i64>(), total);
    let largest = Report::read(&query(&path, Period::Month, NOON), &|_| true).unwrap();
    assert!(largest.csv().contains("others,(others)"), "{}", largest.csv());
}

#[test]
fn a_full_disk_loses_nothing_that_it_takes_later() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut store = open(&path, "a").unwrap();
    store.connection().execute_batch("PRAGMA max_page_count = 1").unwrap();
    let rows_of_many = (0..2000).map(|n| (who(&n.to_string()), [1, 0])).collect();
    let many = Minute { at: NOON, batch: 1, rows: rows_of_many };
    let error = store.write(&many, |_| String::new()).unwrap_err();
    assert_eq!(error.to_string(), "the disk is full");
    assert_eq!(rows(&path, "day"), []);
    store.connection().execute_batch("PRAGMA max_page_count = 4294967294").unwrap();
    store.write(&many, |_| String::new()).unwrap();
    assert_eq!(rows(&path, "day"), [(NOON - 13 * 3600, 2000)]);
}

#[test]
fn a_file_that_is_gone_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut store = open(&path, "a").unwrap();
    assert!(!write(&mut store, &minute(1, NOON, "web", 1)).unwrap());
    for file in [path.clone(), beside(&path, "-wal"), beside(&path, "-shm")] {
        std::fs::remove_file(file).unwrap();
    }
    assert!(write(&mut store, &minute(2, NOON, "web", 2)).unwrap());
    assert_eq!(rows(&path, "minute"), [(NOON, 2)]);
}

#[test]
fn two_writers_are_one_too_many() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let first = open(&path, "a").unwrap();
    let error = format!("{:#}", open(&path, "b").unwrap_err());
    let expected = format!(
        "cannot keep the history in {}: the process {} writes it already, and two would count everything twice; give each a file of its own",
        path.display(),
        std::process::id()
    );
    assert_eq!(error, expected);
    drop(first);
    open(&path, "b").unwrap();
}

#[test]
fn what_is_no_history_is_left_alone_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("text"), "no database at all, but long enough to be taken for one by mistake; ".repeat(20))
        .unwrap();
    let sqlite = |name: &str, sql: &str| Connection::open(path(name)).unwrap().execute_batch(sql).unwrap();
    sqlite("other", "CREATE TABLE t (x)");
    drop(open(&path("later"), "a").unwrap());
    sqlite("later", "PRAGMA user_version = 2");
    let before = |name: &str| std::fs::read(path(name)).unwrap();
    for (name, expected) in [
        ("", "it is a directory; name a file"),
        ("text", "it is no SQLite file"),
        ("other", "it is the database of another program"),
        ("later", "it has the format 2 of a later bwmon; this one knows format 1"),
    ] {
        let content = (!name.is_empty()).then(|| before(name));
        for (what, error) in
            [("read", open_to_read(&path(name)).err()), ("keep", schema::open_to_write(&path(name)).err())]
        {
            let error = format!("{:#}", error.unwrap());
            assert!(
                error.starts_with(&format!("cannot {what} the history in ")) && error.ends_with(expected),
                "{error}"
            );
        }
        assert_eq!((!name.is_empty()).then(|| before(name)), content, "{name} has changed");
    }
    let error = format!("{:#}", open_to_read(&path("missing")).unwrap_err());
    assert!(error.ends_with("missing: there is no such file"), "{error}");
    let error = format!("{:#}", open(&path("no/such"), "a").unwrap_err());
    assert!(error.contains("No such file or directory"), "{error}");
}

#[test]
fn a_damaged_file_is_an_error_and_no_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut store = open(&path, "a").unwrap();
    for batch in 1..50 {
        write(&mut store, &minute(batch, NOON + 60 * batch as i64, &batch.to_string(), 1)).unwrap();
    }
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    for at in (100..whole.len()).step_by(1009) {
        let mut damaged = whole.clone();
        damaged[at..].iter_mut().take(64).for_each(|byte| *byte ^= 0xa5);
        std::fs::write(&path, &damaged).unwrap();
        // It may still be read, in part; or it is an error.
        let _ = Report::read(&query(&path, Period::Hour, NOON), &|_| true)
            .map(|report| (report.text(false), report.csv(), report.json()));
        if let Ok(mut store) = open(&path, "b") {
            let _ = write(&mut store, &minute(1, NOON, "web", 1));
        }
    }
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = format!("{:#}", Report::read(&query(&path, Period::Hour, NOON), &|_| true).unwrap_err());
    assert!(error.contains("the file is damaged; move it away"), "{error}");
}

#[test]
fn a_report_has_the_largest_and_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut store = open(&path, "a").unwrap();
    let remote = |name: &str, remote: &str| Who { remote: Some(remote.to_owned()), ..who(name) };
    let rows = vec![
        (remote("web", "10.0.0.1"), [3 << 20, 1 << 20]),
        (remote("web", "10.0.0.2"), [1 << 20, 0]),
        (who("mail"), [0, 2 << 20]),
        (who("dns"), [1 << 20, 0]),
        (Who::others(), [0, 2 << 20]),
    ];
    store.write(&Minute { at: NOON, batch: 1, rows }, |uid| format!("user {uid}")).unwrap();
    let report = Report::read(&query(&path, Period::Day, NOON), &|_| true).unwrap();
    assert_eq!(
        report.text(false),
        "Thursday 2026-11-26
        in         out       total
   4.0 MiB     1.0 MiB     5.0 MiB   50.0 %  ##########            web (user 33)
       0 B     2.0 MiB     2.0 MiB   20.0 %  ####                  mail (user 33)
   1.0 MiB     2.0 MiB     3.0 MiB   30.0 %  ######                (others)
   5.0 MiB     5.0 MiB    10.0 MiB  100.0 %                        (total)
"
    );
    let csv = "period,start,end,kind,name,uid,user,in_bytes,out_bytes
day,2026-11-26T00:00:00+01:00,2026-11-27T00:00:00+01:00,group,web,33,user 33,4194304,1048576
day,2026-11-26T00:00:00+01:00,2026-11-27T00:00:00+01:00,group,mail,33,user 33,0,2097152
day,2026-11-26T00:00:00+01:00,2026-11-27T00:00:00+01:00,others,(others),,,1048576,2097152
";
    assert_eq!(report.csv(), csv);
    let json = String::from_utf8(report.json()).unwrap();
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!((&first["name"], &first["in_bytes"], &first["uid"]), (&"web".into(), &4_194_304.into(), &33.into()));
    let week = Report::read(&query(&path, Period::Week, NOON), &|_| true).unwrap().text(false);
    assert!(week.starts_with("2026-11-23 to 2026-11-29\n"), "{week}");
    let nothing = Query { since: Some(0), until: Some(NOON - 86_400 * 3), ..query(&path, Period::Day, 0) };
    let nothing = Report::read(&nothing, &|_| true).unwrap().text(false);
    assert_eq!(nothing, "nothing was recorded from 1970-01-01 01:00 to 2026-11-23 13:00\n");
    let backwards = Query { until: Some(NOON - 86_400), ..query(&path, Period::Day, NOON) };
    let error = Report::read(&backwards, &|_| true).unwrap_err().to_string();
    assert_eq!(error, "the report would end before it begins: --until has to be later than --since");
}

/// A chart as JSON: its first moment, the seconds of a step, and the name, the bytes in and the bytes out of each series.
fn chart(path: &Path, since: i64, until: i64) -> (i64, i64, Vec<(String, Vec<u64>, Vec<u64>)>) {
    let json = serde_json::to_value(Chart::read(path, since, until, &berlin()).unwrap()).unwrap();
    let numbers = |value: &serde_json::Value| value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    let series = json["series"].as_array().unwrap().iter().map(|series| {
        (series["name"].as_str().unwrap().to_owned(), numbers(&series["in_bytes"]), numbers(&series["out_bytes"]))
    });
    (json["from"].as_i64().unwrap(), json["step_seconds"].as_i64().unwrap(), series.collect())
}

#[test]
fn a_chart_has_the_largest_names_in_each_step_and_the_sum_of_all_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut store = open(&path, "a").unwrap();
    let remote = |remote: &str| Who { remote: Some(remote.to_owned()), ..who("web") };
    let rows = vec![(remote("10.0.0.1"), [300, 1]), (remote("10.0.0.2"), [100, 0]), (Who::others(), [7, 0])];
    store.write(&Minute { at: NOON, batch: 1, rows }, |_| String::new()).unwrap();
    let small = (0..20).map(|n| (who(&format!("small {n:02}")), [20 - n, 0])).collect();
    store.write(&Minute { at: NOON + 120, batch: 2, rows: small }, |_| String::new()).unwrap();
    let (from, step, series) = chart(&path, NOON, NOON + 180);
    assert_eq!((from, step, series.len()), (NOON, 60, 13));
    assert_eq!(series[0], ("web".to_owned(), vec![400, 0, 0], vec![1, 0, 0]));
    assert_eq!(series[1], ("small 00".to_owned(), vec![0, 0, 20], vec![0, 0, 0]));
    // The eleven largest are told apart.
    let rest = (11..20).map(|n| 20 - n).sum();
    assert_eq!(series[12], ("(others)".to_owned(), vec![7, 0, rest], vec![0, 0, 0]));
    assert_eq!(chart(&path, NOON - 7200, NOON - 3600).2, []);
}

#[test]
fn a_chart_is_as_fine_as_the_history_is_for_all_of_its_range() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut store = open(&path, "a").unwrap();
    for (batch, ago) in (1..).zip([40 * 86_400, 3 * 86_400, 7200, 60]) {
        write(&mut store, &minute(batch, NOON - ago, "web", 5)).unwrap();
    }
    let step = |since: i64, until: i64| chart(&path, NOON - since, NOON - until).1;
    assert_eq!([step(3600, 0), step(86_400, 0), step(31 * 86_400, 0), step(300 * 86_400, 0)], [60, 300, 3600, 86_400]);
    // The minutes of three days ago are gone, and the hours before the last day.
    let old = [("minute", NOON - 86_400), ("hour", NOON - 86_400)];
    for (table, before) in old {
        store.connection().execute(&format!("DELETE FROM {table} WHERE start < ?"), [before]).unwrap();
    }
    assert_eq!([step(3600, 0), step(86_400, 0), step(31 * 86_400, 0)], [60, 300, 86_400]);
    let (from, _, series) = chart(&path, NOON - 3 * 86_400, NOON);
    // From midnight in Berlin, in days.
    assert_eq!((from, &series[0].1), (NOON - 3 * 86_400 - 13 * 3600, &vec![5, 0, 0, 10]));
    // A range that is too long is cut, whatever it is.
    assert_eq!(chart(&path, 0, i64::MAX / 2).1, 86_400);
    assert_eq!(chart(&path, NOON - 86_400, crate::calendar::LAST).2[0].1.len(), 750);
}
