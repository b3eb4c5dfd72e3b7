//! The aggregator on recorded tables, compared with the original: its lines and its notifications, tick by tick.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use bwmon::config::{Diagnostics, applications, notifications};
use bwmon::grouping::{Aggregator, GroupBy, Grouping};
use bwmon::notify::Notifier;
use bwmon::output::text::{self, Figures};
use bwmon::output::{Frame, Moment};
use bwmon::traffic::rates::Rates;
use bwmon::traffic::source::{Reading, Source};
use bwmon::traffic::subject::Subject;
use serde_json::Value;

/// The recordings on which the output differs from the original's, and why.
const DEVIATIONS: [(&str, &str); 6] = [
    ("agg_apps_line_order", "lines are sorted, as the monitor's; they came in the order of a hash table"),
    ("agg_notify_long", "notifications are sorted too"),
    ("agg_apps_two_match", "file order decides when two applications match; the order of a hash table did"),
    ("agg_auto_group_empty_cmdline", "ended the program; is an application without a name now"),
    ("agg_auto_group_quote", "ended the program; the first word counts now"),
    ("agg_gap", "a process without a connection was forgotten with its last figures, which came too late afterwards"),
];

/// One character per byte, as in the vectors.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// A source whose totals the test sets.
#[derive(Clone, Default)]
struct Counted(Rc<RefCell<BTreeMap<String, (u64, u64)>>>);

impl Source for Counted {
    fn read(&mut self, _now: Instant) -> Result<Vec<Reading>> {
        let reading = |(name, &(bytes_in, bytes_out)): (&String, &(u64, u64))| {
            let name: Vec<u8> = name.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
            Reading { subject: Arc::new(Subject::Named(name.into())), bytes_in, bytes_out }
        };
        Ok(self.0.borrow().iter().map(reading).collect())
    }
}

/// The totals of each command line in the tables of a tick: those of its connections, which are found by their ports.
fn totals(tick: &Value) -> BTreeMap<String, (u64, u64)> {
    let mut totals = BTreeMap::new();
    for row in tick["tcp"].as_str().unwrap().lines().filter(|row| row.contains(':')) {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let port = |address: &str| u16::from_str_radix(address.split_once(':').unwrap().1, 16).unwrap();
        let owner = tick["fds"].as_array().unwrap().iter().find(|fd| fd[0].as_u64() == fields[9].parse().ok());
        let ports = format!("sport={} dport={} ", port(fields[1]), port(fields[2]));
        let flow = tick["conntrack"].as_str().unwrap().lines().find(|flow| flow.contains(&ports));
        if let (Some(owner), Some(flow)) = (owner, flow) {
            let bytes: Vec<u64> =
                flow.split_whitespace().filter_map(|f| f.strip_prefix("bytes=")?.parse().ok()).collect();
            let total: &mut (u64, u64) = totals.entry(owner[2].as_str().unwrap().to_owned()).or_default();
            *total = (total.0 + bytes[1], total.1 + bytes[0]);
        }
    }
    totals
}

/// The output on stdout and on stderr at each tick of a recording.
fn replay(vector: &Value) -> Vec<(String, String)> {
    let options = &vector["options"];
    let list = |name: &str| options[name].as_array().cloned().unwrap_or_default();
    let mut diagnostics = Diagnostics::default();
    let mut app_file = String::new();
    for app in list("apps") {
        app_file.push_str(&format!("[{}]\n", app[0].as_str().unwrap()));
        for (i, pattern) in app[1].as_array().unwrap().iter().enumerate() {
            app_file.push_str(&format!("p{i}={}\n", pattern.as_str().unwrap()));
        }
    }
    let mut notification_file = String::new();
    for (i, rule) in list("notify").iter().enumerate() {
        let text = |n: usize| rule[n].as_str().map_or(rule[n].to_string(), str::to_owned);
        notification_file.push_str(&format!(
            "[{i}]\nprocess_filter={}\nin_threshold={}\nout_threshold={}\ninterval={}\nnotification_command={}\n",
            text(0),
            text(1),
            text(2),
            text(3),
            text(4)
        ));
    }
    let grouping = Grouping {
        applications: applications("apps.cfg", app_file.as_bytes(), &mut diagnostics),
        group_by: if options["auto_group"] == true { GroupBy::Program } else { GroupBy::Command },
    };
    let mut notifier = Notifier::new(notifications("n.cfg", notification_file.as_bytes(), &mut diagnostics));
    assert!(!diagnostics.has_errors(), "{diagnostics:?}");

    let counted = Counted::default();
    let mut aggregator = Aggregator::new(grouping, vec![counted.clone()]);
    let mut rates = Rates::new();
    let start = Instant::now();
    let mut shown = Vec::new();
    for (i, tick) in vector["ticks"].as_array().unwrap().iter().enumerate() {
        if options["pipe"].is_array() {
            let n = i as u64;
            counted.0.borrow_mut().insert("pipe-2222:host:22".to_owned(), (2048 * n, 4096 * n));
        } else {
            // The monitor keeps the totals of a command line for a minute.
            counted.0.borrow_mut().extend(totals(tick));
        }
        let now = start + Duration::from_secs_f64(tick["time"].as_f64().unwrap() - 1000.0);
        let mut frame = Frame::at(Moment { monotonic: now, wall_clock: SystemTime::UNIX_EPOCH });
        (frame.interval, frame.rows) = rates.rows(now, aggregator.read(now).unwrap());
        let stderr: String = notifier
            .tick(now, &frame.rows)
            .iter()
            .filter_map(|notification| text::notification_line(notification, "2012-11-22 10:37:01"))
            .map(|line| line + "\n")
            .collect();
        shown.push((latin1(&text::table(Figures::ApplicationRates, &frame)), stderr));
    }
    shown
}

fn pipeline() -> Vec<Value> {
    let vectors: Value = serde_json::from_str(include_str!("../vectors/pipeline.json")).unwrap();
    vectors["vectors"].as_array().unwrap().clone()
}

#[test]
fn recorded_tables_give_the_output_of_the_original() {
    let mut deviations = Vec::new();
    for vector in pipeline().iter().filter(|vector| vector["tool"] == "aggregator") {
        let name = vector["name"].as_str().unwrap();
        // We reject its pattern at the start; the original ended when it first used it.
        if name == "agg_app_bad_regex" {
            continue;
        }
        let expected: Vec<(String, String)> = vector["expect"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tick| ["stdout", "stderr"].map(|text| tick[text].as_str().unwrap_or_default().to_owned()).into())
            .collect();
        if replay(vector) != expected {
            deviations.push(name.to_owned());
        }
    }
    let mut expected = DEVIATIONS.map(|(name, _)| name);
    expected.sort();
    deviations.sort();
    assert_eq!(deviations, expected);
}

#[test]
fn the_output_that_differs_from_the_originals_is_the_intended_one() {
    let shown = |name: &str| replay(pipeline().iter().find(|vector| vector["name"] == name).unwrap());
    let expected = |name: &str, tick: usize, stream: &str| -> Vec<String> {
        let vectors = pipeline();
        let vector = vectors.iter().find(|vector| vector["name"] == name).unwrap();
        let text = vector["expect"][tick][stream].as_str().unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&shown("agg_apps_line_order")[1].0), expected("agg_apps_line_order", 1, "stdout"));
    assert_eq!(sorted(&shown("agg_notify_long")[1].1), expected("agg_notify_long", 1, "stderr"));
    let line = |name: &str| format!("    100.00 KiB /      50.00 KiB -- {name}\n");
    assert_eq!(shown("agg_apps_two_match")[1].0, line("Work"));
    assert_eq!(shown("agg_auto_group_quote")[1].0, line("sh"));
    assert_eq!(shown("agg_auto_group_empty_cmdline")[1].0, line(""));
    // 40960 bytes in the three seconds since the previous tick.
    assert_eq!(shown("agg_gap")[2].0, "      0.00 KiB /      13.33 KiB -- wget http://x/ \n");
}
