//! The metrics, for Prometheus.
//!
//! ```text
//! bwmon_application_receive_bytes_total{application="nginx"} 93011969249
//! ```
//! Two formats: the text format of Prometheus (version 0.0.4), and OpenMetrics 1.0, which names a counter's family without its
//! `_total`, states the units and ends in `# EOF`. The number of series is bounded, and no counter ever falls: a name gets its
//! series once, and what finds none free counts in `(other)`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt::{Display, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};

use crate::grouping::key;
use crate::output::{Direction, Frame, Notification};
use crate::printable::printable;
use crate::traffic::subject::{Reason, Subject};
use crate::workload::names::Names;

/// The series of all names that have none of their own.
const OTHER: &str = "(other)";
/// The most columns of a label's value.
const LABEL_WIDTH: usize = 120;
/// The upper bounds of the histogram of ticks.
const TICK_BOUNDS: [(&str, Duration); 6] = [
    ("0.001", Duration::from_millis(1)),
    ("0.005", Duration::from_millis(5)),
    ("0.025", Duration::from_millis(25)),
    ("0.1", Duration::from_millis(100)),
    ("0.5", Duration::from_millis(500)),
    ("1.0", Duration::from_secs(1)),
];

/// A label that the series of applications may have beside their name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Label {
    /// The systemd unit.
    Unit,
    /// The container.
    Container,
    /// The user.
    User,
}

impl Label {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Container => "container",
            Self::User => "user",
        }
    }

    fn value(self, subject: &Subject, names: &mut Names) -> String {
        let cgroup = match subject {
            Subject::Processes { cgroup, .. } => cgroup.as_ref(),
            _ => None,
        };
        match self {
            Self::Unit => cgroup.and_then(|cgroup| cgroup.workload().unit.map(|unit| label(unit.as_bytes()))),
            Self::Container => cgroup.and_then(|cgroup| names.container(cgroup)).map(|name| label(&name)),
            Self::User => subject.uid().map(|uid| label(names.user(uid).as_bytes())),
        }
        .unwrap_or_default()
    }
}

/// A value of a label: what another user may have chosen, short and visible.
fn label(text: &[u8]) -> String {
    printable(text, LABEL_WIDTH)
}

/// Which series there are.
#[derive(Debug, Clone)]
pub struct MetricsSettings {
    /// The labels of applications, beside their name.
    pub labels: Vec<Label>,
    /// The most series of applications.
    pub top: usize,
    /// The applications that have a series from the start.
    pub applications: Vec<String>,
}

impl Default for MetricsSettings {
    fn default() -> Self {
        Self { labels: Vec::new(), top: 100, applications: Vec::new() }
    }
}

/// Bytes received and sent.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Bytes {
    received: u64,
    sent: u64,
}

impl Bytes {
    fn add(&mut self, (received, sent): (u64, u64)) {
        self.received += received;
        self.sent += sent;
    }
}

/// The counters, from the start of the program.
#[derive(Debug)]
pub struct Metrics {
    settings: MetricsSettings,
    started: SystemTime,
    /// By the values of the labels, the application first.
    applications: BTreeMap<Vec<String>, Bytes>,
    other: Bytes,
    /// The names that counted as `(other)` at the last tick.
    others: usize,
    unowned: BTreeMap<Reason, Bytes>,
    all: Bytes,
    /// The rules and applications that exceed a threshold now.
    exceeded: HashSet<(u64, Vec<u8>, Direction)>,
    /// The notifications so far, in and out.
    notified: [u64; 2],
    source: Option<&'static str>,
    ticks_with_lost_events: u64,
    ticks: u64,
    ticks_within: [u64; TICK_BOUNDS.len()],
    ticks_took: Duration,
    last_tick: SystemTime,
}

impl Metrics {
    /// Without any tick yet.
    pub fn new(settings: MetricsSettings, started: SystemTime) -> Self {
        let mut metrics = Self {
            applications: BTreeMap::new(),
            started,
            other: Bytes::default(),
            others: 0,
            unowned: Reason::ALL.iter().map(|&reason| (reason, Bytes::default())).collect(),
            all: Bytes::default(),
            exceeded: HashSet::new(),
            notified: [0; 2],
            source: None,
            ticks_with_lost_events: 0,
            ticks: 0,
            ticks_within: [0; TICK_BOUNDS.len()],
            ticks_took: Duration::ZERO,
            last_tick: started,
            settings,
        };
        for name in &metrics.settings.applications {
            let mut values = vec![label(name.as_bytes())];
            values.resize(1 + metrics.settings.labels.len(), String::new());
            if metrics.applications.len() < metrics.settings.top {
                metrics.applications.insert(values, Bytes::default());
            }
        }
        metrics
    }

    /// Counts what moved in one tick.
    pub fn tick(&mut self, frame: &Frame, names: &mut Names) {
        let mut moved: BTreeMap<Vec<String>, Bytes> = BTreeMap::new();
        for row in frame.rows.iter().filter(|row| row.moved_in + row.moved_out > 0) {
            let bytes = (row.moved_in, row.moved_out);
            self.all.add(bytes);
            moved.entry(self.values(&row.subject, names)).or_default().add(bytes);
        }
        for row in &frame.unowned {
            let bytes = (row.moved_in, row.moved_out);
            self.all.add(bytes);
            if let Subject::Unowned(reason) = &*row.subject {
                self.unowned.entry(*reason).or_default().add(bytes);
            }
        }
        // The biggest first: they find a free series.
        let mut moved: Vec<_> = moved.into_iter().collect();
        moved.sort_by_key(|(_, bytes)| std::cmp::Reverse(bytes.received + bytes.sent));
        self.others = 0;
        for (values, Bytes { received, sent }) in moved {
            let series = if self.applications.contains_key(&values) || self.applications.len() < self.settings.top {
                self.applications.entry(values).or_default()
            } else {
                self.others += 1;
                &mut self.other
            };
            series.add((received, sent));
        }
        self.notifications(&frame.notifications);
        self.source = frame.facts.counters;
        self.ticks_with_lost_events = frame.facts.ticks_with_lost_events;
        self.ticks += 1;
        self.ticks_took += frame.took;
        for (count, (_, bound)) in self.ticks_within.iter_mut().zip(TICK_BOUNDS) {
            *count += u64::from(frame.took <= bound);
        }
        self.last_tick = frame.at.wall_clock;
    }

    /// Counts notifications.
    pub fn notifications(&mut self, notifications: &[Notification]) {
        for notification in notifications {
            let name = notification.application.name().into_owned();
            let exceeds = (notification.rule, name, notification.direction);
            if notification.recovered {
                self.exceeded.remove(&exceeds);
            } else {
                self.notified[usize::from(notification.direction == Direction::Out)] += 1;
                self.exceeded.insert(exceeds);
            }
        }
    }

    /// The values of a subject's labels.
    fn values(&self, subject: &Subject, names: &mut Names) -> Vec<String> {
        let name = subject.name();
        // A command line may hold secrets, and there is no end of them: only the program is a label. The name of an application
        // does not end in a blank, as each argument does.
        let name: Cow<'_, [u8]> = match subject {
            Subject::Processes { .. } => key::program(&name).into(),
            Subject::Named(_) if name.ends_with(b" ") => key::program(&name).into(),
            _ => name,
        };
        let mut name = label(name.trim_ascii());
        if name.starts_with("(other") && !matches!(subject, Subject::Others { .. }) {
            // Not one of our own.
            name.insert(0, '\\');
        }
        let labels = self.settings.labels.iter().map(|label| label.value(subject, names));
        std::iter::once(name).chain(labels).collect()
    }

    /// All metrics as text.
    pub fn text(&self, is_openmetrics: bool) -> String {
        let mut text = Text { text: String::new(), is_openmetrics };
        let names = self.settings.labels.iter().map(|label| label.name());
        let names: Vec<&str> = std::iter::once("application").chain(names).collect();
        let mut other = vec![OTHER.to_owned()];
        other.resize(names.len(), String::new());
        let applications = || self.applications.iter().chain([(&other, &self.other)]);
        let mut of_applications = |name, help, value: fn(&Bytes) -> u64| {
            text.counter(name, "bytes", help);
            for (values, bytes) in applications() {
                let labels: Vec<_> = names.iter().copied().zip(values.iter().map(String::as_str)).collect();
                text.sample(&format!("{name}_total"), &labels, value(bytes));
            }
        };
        let help = "Bytes that the application's processes have received.";
        of_applications("bwmon_application_receive_bytes", help, |bytes| bytes.received);
        let help = "Bytes that the application's processes have sent.";
        of_applications("bwmon_application_transmit_bytes", help, |bytes| bytes.sent);

        let mut of_reasons = |name, help, value: fn(&Bytes) -> u64| {
            text.counter(name, "bytes", help);
            for (reason, bytes) in &self.unowned {
                text.sample(&format!("{name}_total"), &[("reason", reason.key())], value(bytes));
            }
        };
        let help = "Bytes received at an end that no process owns, by reason.";
        of_reasons("bwmon_unowned_receive_bytes", help, |bytes| bytes.received);
        let help = "Bytes sent from an end that no process owns, by reason.";
        of_reasons("bwmon_unowned_transmit_bytes", help, |bytes| bytes.sent);

        let help = "Bytes received by all that is counted: all applications and what no process owns.";
        text.counter("bwmon_receive_bytes", "bytes", help);
        text.sample("bwmon_receive_bytes_total", &[], self.all.received);
        let help = "Bytes sent by all that is counted: all applications and what no process owns.";
        text.counter("bwmon_transmit_bytes", "bytes", help);
        text.sample("bwmon_transmit_bytes_total", &[], self.all.sent);

        text.gauge("bwmon_applications", "", "Applications that have a series of their own.", self.applications.len());
        let help = "Applications that count as (other), for want of a free series, and moved bytes at the last tick.";
        text.gauge("bwmon_applications_other", "", help, self.others);
        let help = "The most applications that have a series of their own.";
        text.gauge("bwmon_application_series_limit", "", help, self.settings.top);

        text.family("bwmon_notifications_active", "gauge", "", "Rules that an application exceeds now.");
        for direction in [Direction::In, Direction::Out] {
            let active = self.exceeded.iter().filter(|(_, _, exceeded)| *exceeded == direction).count();
            text.sample("bwmon_notifications_active", &[direction_label(direction)], active);
        }
        text.counter("bwmon_notifications", "", "Times that an application began to exceed a rule.");
        for (direction, count) in [Direction::In, Direction::Out].into_iter().zip(self.notified) {
            text.sample("bwmon_notifications_total", &[direction_label(direction)], count);
        }

        let help = "Where the counters come from: 1 for the source in use.";
        text.family("bwmon_counters_source", "gauge", "", help);
        for source in ["packets", "conntrack", "sockets"] {
            let in_use = self.source == Some(source);
            text.sample("bwmon_counters_source", &[("source", source)], u8::from(in_use));
        }
        let help = "Ticks in which events of the kernel were lost, so that figures may be incomplete.";
        text.counter("bwmon_ticks_with_lost_events", "", help);
        text.sample("bwmon_ticks_with_lost_events_total", &[], self.ticks_with_lost_events);

        text.family("bwmon_tick_duration_seconds", "histogram", "seconds", "How long a tick took.");
        let bounds = TICK_BOUNDS.iter().map(|(bound, _)| *bound).zip(self.ticks_within).chain([("+Inf", self.ticks)]);
        for (bound, count) in bounds {
            text.sample("bwmon_tick_duration_seconds_bucket", &[("le", bound)], count);
        }
        text.sample("bwmon_tick_duration_seconds_sum", &[], self.ticks_took.as_secs_f64());
        text.sample("bwmon_tick_duration_seconds_count", &[], self.ticks);
        let last_tick = unix_seconds(self.last_tick);
        text.gauge("bwmon_last_tick_timestamp_seconds", "seconds", "Unix time of the last tick.", last_tick);

        text.family("bwmon_build_info", "gauge", "", "1, with the version of bwmon.");
        text.sample("bwmon_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        self.process(&mut text);
        if is_openmetrics {
            text.text.push_str("# EOF\n");
        }
        text.text
    }

    /// What the client libraries of Prometheus tell of a process.
    fn process(&self, text: &mut Text) {
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let times = [usage.user_time(), usage.system_time()];
            let seconds: f64 = times.iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).sum();
            let help = "Total user and system CPU time spent in seconds.";
            text.counter("process_cpu_seconds", "seconds", help);
            text.sample("process_cpu_seconds_total", &[], seconds);
        }
        if let Some(pages) = resident_pages() {
            let help = "Resident memory size in bytes.";
            text.gauge("process_resident_memory_bytes", "bytes", help, pages * procfs::page_size());
        }
        let help = "Start time of the process since unix epoch in seconds.";
        text.gauge("process_start_time_seconds", "seconds", help, unix_seconds(self.started));
    }
}

/// The second figure of proc_pid_statm(5).
fn resident_pages() -> Option<u64> {
    std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()
}

fn direction_label(direction: Direction) -> (&'static str, &'static str) {
    let value = match direction {
        Direction::In => "receive",
        Direction::Out => "transmit",
    };
    ("direction", value)
}

fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_millis() as f64 / 1000.0)
}

/// The text of metrics in the making.
struct Text {
    text: String,
    is_openmetrics: bool,
}

impl Text {
    /// Begins a family of samples.
    fn family(&mut self, name: &str, kind: &str, unit: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}");
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
        if self.is_openmetrics && !unit.is_empty() {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
    }

    /// Begins a family of counters, by its name without `_total`.
    fn counter(&mut self, name: &str, unit: &str, help: &str) {
        let full = format!("{name}_total");
        self.family(if self.is_openmetrics { name } else { &full }, "counter", unit, help);
    }

    /// A gauge without labels.
    fn gauge(&mut self, name: &str, unit: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", unit, help);
        self.sample(name, &[], value);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.text, "{}{label}=\"{value}\"", if at == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::output::Moment;
    use crate::traffic::rates::Row;
    use crate::workload::cgroup::Cgroup;

    fn row(subject: Subject, moved_in: u64, moved_out: u64) -> Row {
        Row { subject: Arc::new(subject), bytes_in: 0, bytes_out: 0, moved_in, moved_out, detail: None }
    }

    fn named(name: &str) -> Subject {
        Subject::Named(name.as_bytes().into())
    }

    fn process(command_line: &str, cgroup: &str) -> Subject {
        Subject::Processes {
            command_line: command_line.as_bytes().into(),
            uid: Some(0),
            cgroup: Cgroup::parse(format!("0::{cgroup}").as_bytes(), b""),
            executable: None,
            nameless: false,
        }
    }

    fn metrics(settings: MetricsSettings, ticks: &[&[(Subject, u64, u64)]]) -> Metrics {
        let mut metrics = Metrics::new(settings, SystemTime::now());
        let mut names = Names::new();
        names.refresh();
        for rows in ticks {
            let mut frame = Frame::at(Moment::now());
            frame.rows = rows.iter().map(|(subject, i, o)| row(subject.clone(), *i, *o)).collect();
            metrics.tick(&frame, &mut names);
        }
        metrics
    }

    /// The samples of a family, without its name.
    fn samples(metrics: &Metrics, name: &str) -> Vec<String> {
        let text = metrics.text(false);
        text.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect()
    }

    #[test]
    fn beyond_the_limit_names_count_as_other_and_no_byte_ever_moves_between_series() {
        let settings = MetricsSettings { top: 2, ..Default::default() };
        let first: &[_] = &[(named("small"), 1, 0), (named("big"), 100, 3), (named("middle"), 10, 0)];
        let second: &[_] = &[(named("small"), 1000, 0), (named("new"), 5, 0), (named("middle"), 1, 0)];
        let metrics = metrics(settings, &[first, second]);
        assert_eq!(
            samples(&metrics, "bwmon_application_receive_bytes_total"),
            [r#"{application="big"} 100"#, r#"{application="middle"} 11"#, r#"{application="(other)"} 1006"#]
        );
        assert_eq!(samples(&metrics, "bwmon_receive_bytes_total"), [" 1117"]);
        assert_eq!(samples(&metrics, "bwmon_applications_other"), [" 2"]);
        assert_eq!(samples(&metrics, "bwmon_application_series_limit"), [" 2"]);
    }

    #[test]
    fn an_application_of_the_file_is_there_from_the_start() {
        let settings = MetricsSettings { applications: vec!["Web".into()], ..Default::default() };
        let metrics = metrics(settings, &[]);
        assert_eq!(
            samples(&metrics, "bwmon_application_transmit_bytes_total"),
            [r#"{application="Web"} 0"#, r#"{application="(other)"} 0"#]
        );
        assert_eq!(samples(&metrics, "bwmon_unowned_receive_bytes_total").len(), Reason::ALL.len());
    }

    #[test]
    fn a_command_line_is_never_a_label_and_two_of_one_program_share_a_series() {
        let rows: &[_] = &[
            (process("/usr/bin/curl --user me:secret http://a/ ", "/"), 1, 0),
            (process("curl http://b/ ", "/"), 2, 0),
            (named("wget http://c/ "), 4, 0),
        ];
        assert_eq!(
            samples(&metrics(MetricsSettings::default(), &[rows]), "bwmon_application_receive_bytes_total"),
            [r#"{application="curl"} 3"#, r#"{application="wget"} 4"#, r#"{application="(other)"} 0"#]
        );
    }

    #[test]
    fn the_chosen_labels_tell_units_and_users_apart() {
        let settings = MetricsSettings { labels: vec![Label::Unit, Label::User], ..Default::default() };
        let unit = |name: &str, bytes| (process("nginx ", &format!("/system.slice/{name}.service")), bytes, 0);
        assert_eq!(
            samples(&metrics(settings, &[&[unit("a", 1), unit("b", 2)]]), "bwmon_application_receive_bytes_total"),
            [
                r#"{application="nginx",unit="a.service",user="root"} 1"#,
                r#"{application="nginx",unit="b.service",user="root"} 2"#,
                r#"{application="(other)",unit="",user=""} 0"#
            ]
        );
    }

    #[test]
    fn names_that_others_chose_cannot_end_a_label_a_line_or_pass_for_ours() {
        let rows: &[_] = &[(named("a\"} 1\nb\\"), 1, 0), (named(OTHER), 2, 0), (named(&"x".repeat(500)), 3, 0)];
        assert_eq!(
            samples(&metrics(MetricsSettings::default(), &[rows]), "bwmon_application_receive_bytes_total"),
            [
                r#"{application="\\(other)"} 2"#.to_owned(),
                r#"{application="a\"} 1\\nb\\"} 1"#.to_owned(),
                format!(r#"{{application="{}..."}} 3"#, "x".repeat(LABEL_WIDTH - 3)),
                r#"{application="(other)"} 0"#.to_owned()
            ]
        );
    }

    #[test]
    fn processes_that_are_not_told_apart_have_a_series_that_nobody_can_imitate() {
        let others = || Subject::Others { user: Some(1000) };
        let before: &[_] = &[(process("curl ", "/"), 10, 1), (others(), 5, 1)];
        let after: &[_] = &[(others(), 7, 1), (process(r"(other\ processes\ of\ user\ 1000) ", "/"), 3, 1)];
        assert_eq!(
            samples(&metrics(MetricsSettings::default(), &[before, after]), "bwmon_application_receive_bytes_total"),
            [
                r#"{application="(other processes of user 1000)"} 12"#,
                r#"{application="\\(other processes of user 1000)"} 3"#,
                r#"{application="curl"} 10"#,
                r#"{application="(other)"} 0"#
            ]
        );
    }

    #[test]
    fn openmetrics_names_families_without_total_and_has_an_end() {
        let text = metrics(MetricsSettings::default(), &[]).text(true);
        assert!(text.contains("# TYPE bwmon_receive_bytes counter\n# UNIT bwmon_receive_bytes bytes\n"));
        assert!(text.contains("\nbwmon_receive_bytes_total 0\n"));
        assert!(text.ends_with("\n# EOF\n"));
    }
}
