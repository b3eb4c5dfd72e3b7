//! JSON lines: a record for each row, and a `tick` record that closes the frame.
//!
//! ```text
//! {"timestamp":"2026-11-25T22:31:00.004Z","host":"atlas","kind":"process","command_line":"curl http://x/ ", …}
//! {"timestamp":"2026-11-25T22:31:00.004Z","host":"atlas","kind":"tick","source":"packets","records":1, …}
//! ```
//! docs/json.md describes the fields, docs/json.schema.json is their schema. Numbers are integers, the unit is in their names, and
//! what is not known is null. Nothing is cut, and text is always a string: where it is not UTF-8, a second field has its bytes. A
//! reader ignores kinds and fields that it does not know.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::terminal::Terminal;
use super::text::messages;
use super::{Announcement, Frame, Notification, Output, QuotaNotification, host};
use crate::printable::is_unsafe_to_print;
use crate::traffic::detail::{Detail, ProcessId, RemoteBytes};
use crate::traffic::rates::{BYTES_PER_KB, Row, per_second};
use crate::traffic::subject::Subject;
use crate::workload::Workload;
use crate::workload::cgroup::Cgroup;
use crate::workload::names::Names;

/// The clock ticks per second in which the kernel tells when a process started: USER_HZ of every architecture that Rust knows
/// (proc_pid_stat(5)).
const TICKS_PER_SECOND: u64 = 100;

/// What the rows of a program are that have a name only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// Applications, programs and pipes, by the rules of a configuration.
    Application,
    /// The pipe itself.
    Pipe,
    /// Groups by this property of processes.
    Group(&'static str),
}

/// Shows frames as JSON.
#[derive(Debug)]
pub struct Json {
    named: Named,
    host: String,
    names: Names,
    terminal: Terminal,
}

impl Json {
    /// Writes to stdout; messages go to stderr, too.
    pub fn new(named: Named) -> Self {
        Self { named, host: host(), names: Names::new(), terminal: Terminal::of_this_process() }
    }

    fn records(&mut self) -> Records<'_> {
        Records { named: self.named, host: &self.host, names: &mut self.names }
    }
}

impl Output for Json {
    fn show(&mut self, frame: &Frame) -> io::Result<()> {
        self.names.refresh();
        let text = self.records().of_frame(frame);
        self.terminal.table_below(text, messages(frame))
    }

    fn tell(&mut self, frame: &Frame) -> io::Result<()> {
        let text = self.records().of_events(frame);
        self.terminal.table_below(text, messages(frame))
    }

    fn announce(&mut self, announcements: &[Announcement]) -> io::Result<()> {
        let (mut text, mut notes) = (Vec::new(), Vec::new());
        let timestamp = timestamp(SystemTime::now());
        for announcement in announcements {
            if let Announcement::Note(note) = announcement {
                write(&mut text, &Note { timestamp: &timestamp, host: &self.host, kind: "note", message: note });
                notes.push(note.clone());
            }
        }
        self.terminal.append(&text, notes)
    }

    fn is_written(&self) -> bool {
        self.terminal.is_written()
    }
}

/// Makes the records of a frame.
#[derive(Debug)]
pub struct Records<'a> {
    /// What rows with a name are.
    pub named: Named,
    /// The name of this host.
    pub host: &'a str,
    /// Names of users and containers.
    pub names: &'a mut Names,
}

impl<'a> Records<'a> {
    /// The lines of a frame: its rows, the bytes without an owner, its notifications and messages, and the `tick`.
    pub fn of_frame(&mut self, frame: &Frame) -> Vec<u8> {
        let timestamp = timestamp(frame.at.wall_clock);
        let boot = boot();
        let mut text = Vec::with_capacity(1024 * (frame.rows.len() + 1));
        let mut sums = Bytes::default();
        let mut records = 0;
        for row in frame.rows.iter().chain(&frame.unowned) {
            let bytes = Bytes::of(row, frame.interval);
            if bytes == Bytes::default() {
                continue;
            }
            sums.add(&bytes);
            records += 1;
            write(&mut text, &self.row(row, frame.interval, &timestamp, boot));
        }
        text.extend(self.of_events(frame));
        let tick = Tick {
            timestamp: &timestamp,
            host: self.host,
            kind: "tick",
            source: frame.facts.counters,
            records,
            bytes: sums,
            interval_microseconds: frame.interval.map(micros),
            ticks_with_lost_events_total: frame.facts.ticks_with_lost_events,
            duration_microseconds: micros(frame.took),
        };
        write(&mut text, &tick);
        text
    }

    /// The lines of a frame's notifications and messages.
    pub fn of_events(&self, frame: &Frame) -> Vec<u8> {
        let timestamp = timestamp(frame.at.wall_clock);
        let mut text = Vec::new();
        for notification in &frame.notifications {
            write(&mut text, &NotificationRecord::of(notification, &timestamp, self.host));
        }
        for quota in &frame.quotas {
            write(&mut text, &QuotaRecord::of(quota, &timestamp, self.host));
        }
        for message in &frame.notes {
            write(&mut text, &Note { timestamp: &timestamp, host: self.host, kind: "note", message });
        }
        text
    }

    fn row<'r>(
        &mut self,
        row: &'r Row,
        interval: Option<Duration>,
        timestamp: &'r str,
        boot: SystemTime,
    ) -> RowRecord<'r>
    where
        'a: 'r,
    {
        let who = match &*row.subject {
            Subject::Processes { command_line, uid, cgroup, executable, nameless } => Who::Process(Box::new(
                self.process(command_line, *uid, cgroup.as_ref(), executable.as_deref(), *nameless),
            )),
            Subject::Others { user } => Who::Others { uid: *user, user: user.map(|uid| self.names.user(uid)) },
            Subject::Named(name) => {
                let (name, hex) = text(name);
                match self.named {
                    Named::Application => Who::Application { application: name, application_hex: hex },
                    Named::Pipe => Who::Pipe { pipe: name, pipe_hex: hex },
                    Named::Group(group_by) => Who::Group { group_by, group: name, group_hex: hex },
                }
            }
            Subject::Unowned(reason) => Who::Unowned { reason: reason.text() },
        };
        let detail = row.detail.as_ref().map(|detail| DetailRecord::of(detail, interval, boot));
        RowRecord { timestamp, host: self.host, who, bytes: Bytes::of(row, interval), detail }
    }

    fn process(
        &mut self,
        command_line: &[u8],
        uid: Option<u32>,
        cgroup: Option<&Cgroup>,
        executable: Option<&[u8]>,
        nameless: bool,
    ) -> ProcessRecord {
        let workload = cgroup.map(Cgroup::workload);
        let of_workload = |name: fn(&Workload<'_>) -> Option<String>| workload.as_ref().and_then(name);
        let container = workload.as_ref().and_then(|workload| workload.container.as_ref()).map(|container| {
            let name = cgroup.and_then(|cgroup| self.names.container_name(cgroup));
            let pod = name.and_then(|name| name.pod.as_ref());
            let (id, id_hex) = text(&container.id);
            ContainerRecord {
                runtime: container.runtime.name(),
                id,
                id_hex,
                name: name.and_then(|name| name.name.clone()),
                pod: pod.map(|pod| pod.name.clone()),
                pod_namespace: pod.map(|pod| pod.namespace.clone()),
                pod_uid: of_workload(|workload| workload.pod_uid.as_deref().map(str::to_owned)),
            }
        });
        let (command_line, command_line_hex) = text(command_line);
        let (executable, executable_hex) = optional_text(executable);
        let (cgroup_path, cgroup_hex) = optional_text(cgroup.map(Cgroup::path));
        ProcessRecord {
            command_line,
            command_line_hex,
            has_command_line: !nameless,
            executable,
            executable_hex,
            uid,
            user: uid.map(|uid| self.names.user(uid)),
            cgroup: cgroup_path,
            cgroup_hex,
            unit: of_workload(|workload| workload.unit.map(str::to_owned)),
            user_unit: of_workload(|workload| workload.user_unit.map(str::to_owned)),
            slice: of_workload(|workload| Some(workload.slice.to_owned())),
            session: of_workload(|workload| workload.session().map(str::to_owned)),
            container,
            claimed_by: of_workload(|workload| Some(workload.claimed_by.to_string())),
        }
    }
}

/// The bytes of a record.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
struct Bytes {
    in_bytes_total: u64,
    out_bytes_total: u64,
    in_bytes_per_second: u64,
    out_bytes_per_second: u64,
}

impl Bytes {
    fn of(row: &Row, interval: Option<Duration>) -> Self {
        Self {
            in_bytes_total: row.bytes_in,
            out_bytes_total: row.bytes_out,
            in_bytes_per_second: rate(row.moved_in, interval),
            out_bytes_per_second: rate(row.moved_out, interval),
        }
    }

    fn add(&mut self, other: &Self) {
        self.in_bytes_total += other.in_bytes_total;
        self.out_bytes_total += other.out_bytes_total;
        self.in_bytes_per_second += other.in_bytes_per_second;
        self.out_bytes_per_second += other.out_bytes_per_second;
    }
}

/// Bytes per second. At the first tick nothing has moved that is known of.
fn rate(moved: u64, interval: Option<Duration>) -> u64 {
    interval.map_or(0, |interval| per_second(moved, interval).round() as u64)
}

/// Text that need not be UTF-8, with U+FFFD in place of what is none; then also all its bytes in hexadecimal digits.
fn text(bytes: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => {
            let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (String::from_utf8_lossy(bytes).into_owned(), Some(hex))
        }
    }
}

fn optional_text(bytes: Option<&[u8]>) -> (Option<String>, Option<String>) {
    bytes.map(text).map_or((None, None), |(text, hex)| (Some(text), hex))
}

/// A row.
#[derive(Debug, Serialize)]
struct RowRecord<'a> {
    timestamp: &'a str,
    host: &'a str,
    #[serde(flatten)]
    who: Who,
    #[serde(flatten)]
    bytes: Bytes,
    #[serde(flatten)]
    detail: Option<DetailRecord<'a>>,
}

/// Whose bytes a row has.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Who {
    Process(Box<ProcessRecord>),
    /// The processes of a user beyond those that are told apart.
    Others {
        uid: Option<u32>,
        user: Option<String>,
    },
    Application {
        application: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        application_hex: Option<String>,
    },
    Pipe {
        pipe: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pipe_hex: Option<String>,
    },
    Group {
        group_by: &'static str,
        group: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        group_hex: Option<String>,
    },
    Unowned {
        reason: &'static str,
    },
}

#[derive(Debug, Serialize)]
struct ProcessRecord {
    command_line: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_line_hex: Option<String>,
    /// False for a kernel thread and the like: then the command line is the name of the program in brackets.
    has_command_line: bool,
    executable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    executable_hex: Option<String>,
    uid: Option<u32>,
    user: Option<String>,
    cgroup: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup_hex: Option<String>,
    unit: Option<String>,
    user_unit: Option<String>,
    slice: Option<String>,
    session: Option<String>,
    container: Option<ContainerRecord>,
    /// Who could have chosen the names of unit and container: `root`, or a user or unit that has cgroups of its own.
    claimed_by: Option<String>,
}

#[derive(Debug, Serialize)]
struct DetailRecord<'a> {
    pids: Vec<u32>,
    /// When the first of these processes started.
    started: Option<String>,
    connections: u64,
    /// Null unless remote ends are counted.
    remotes: Option<Vec<RemoteRecord<'a>>>,
    other_remotes: Option<OtherRemotes>,
}

impl<'a> DetailRecord<'a> {
    fn of(detail: &'a Detail, interval: Option<Duration>, boot: SystemTime) -> Self {
        let started =
            |&(_, ticks): &ProcessId| boot + Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND));
        let has_remotes = !detail.remotes.is_empty() || detail.other_remotes != (0, 0);
        let (in_bytes_total, out_bytes_total) = detail.other_remotes;
        Self {
            pids: detail.processes.iter().map(|(pid, _)| *pid).collect(),
            started: detail.processes.iter().map(started).min().map(timestamp),
            connections: detail.connections,
            remotes: has_remotes.then(|| detail.remotes.iter().map(|end| RemoteRecord::of(end, interval)).collect()),
            other_remotes: has_remotes.then_some(OtherRemotes { in_bytes_total, out_bytes_total }),
        }
    }
}

#[derive(Debug, Serialize)]
struct ContainerRecord {
    runtime: &'static str,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_hex: Option<String>,
    name: Option<String>,
    pod: Option<String>,
    pod_namespace: Option<String>,
    pod_uid: Option<String>,
}

#[derive(Debug, Serialize)]
struct RemoteRecord<'a> {
    address: IpAddr,
    port: u16,
    protocol: String,
    /// Null unless names are looked up and this one is known.
    name: Option<&'a str>,
    #[serde(flatten)]
    bytes: Bytes,
}

impl<'a> RemoteRecord<'a> {
    fn of(end: &'a RemoteBytes, interval: Option<Duration>) -> Self {
        Self {
            address: end.remote.address,
            port: end.remote.port,
            protocol: end.remote.protocol_name(),
            name: end.name.as_deref(),
            bytes: Bytes {
                in_bytes_total: end.bytes_in,
                out_bytes_total: end.bytes_out,
                in_bytes_per_second: rate(end.moved_in, interval),
                out_bytes_per_second: rate(end.moved_out, interval),
            },
        }
    }
}

/// The remote ends that are not listed, or not known.
#[derive(Debug, Serialize)]
struct OtherRemotes {
    in_bytes_total: u64,
    out_bytes_total: u64,
}

#[derive(Debug, Serialize)]
struct Tick<'a> {
    timestamp: &'a str,
    host: &'a str,
    kind: &'static str,
    /// The source of the counters, a value of `--source`; null without a monitor.
    source: Option<&'static str>,
    records: u64,
    #[serde(flatten)]
    bytes: Bytes,
    interval_microseconds: Option<u64>,
    ticks_with_lost_events_total: u64,
    duration_microseconds: u64,
}

#[derive(Debug, Serialize)]
struct Note<'a> {
    timestamp: &'a str,
    host: &'a str,
    kind: &'static str,
    message: &'a str,
}

#[derive(Debug, Serialize)]
struct NotificationRecord<'a> {
    timestamp: &'a str,
    host: &'a str,
    kind: &'static str,
    event: &'static str,
    application: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_hex: Option<String>,
    direction: String,
    threshold_bytes_per_second: i64,
    value_bytes_per_second: u64,
    command_failure: Option<&'a str>,
}

impl<'a> NotificationRecord<'a> {
    fn of(notification: &'a Notification, timestamp: &'a str, host: &'a str) -> Self {
        let (application, application_hex) = text(&notification.application.name());
        Self {
            timestamp,
            host,
            kind: "notification",
            event: if notification.recovered { "recovered" } else { "exceeded" },
            application,
            application_hex,
            direction: notification.direction.to_string(),
            threshold_bytes_per_second: notification.threshold_kb_per_s.saturating_mul(BYTES_PER_KB as i64),
            value_bytes_per_second: (notification.value_kb_per_s * BYTES_PER_KB as f64).round() as u64,
            command_failure: notification.command_failure.as_deref(),
        }
    }
}

#[derive(Debug, Serialize)]
struct QuotaRecord<'a> {
    timestamp: &'a str,
    host: &'a str,
    kind: &'static str,
    event: &'static str,
    application: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_hex: Option<String>,
    used_bytes: u64,
    quota_bytes: u64,
    period: &'static str,
    period_started: String,
    command_failure: Option<&'a str>,
}

impl<'a> QuotaRecord<'a> {
    fn of(quota: &'a QuotaNotification, timestamp: &'a str, host: &'a str) -> Self {
        let since_1970 = Duration::from_secs(quota.period_start.max(0).unsigned_abs());
        let (application, application_hex) = text(&quota.application.name());
        Self {
            timestamp,
            host,
            kind: "quota",
            event: quota.event(),
            application,
            application_hex,
            used_bytes: quota.used_bytes,
            quota_bytes: quota.quota_bytes,
            period: quota.period.name(),
            period_started: self::timestamp(SystemTime::UNIX_EPOCH + since_1970),
            command_failure: quota.command_failure.as_deref(),
        }
    }
}

/// When the host booted, by today's clock, to the hundredth of a second: the same at each call, unless somebody sets the clock.
fn boot() -> SystemTime {
    let since = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    // A process started by the clock that goes on while the host sleeps (proc_pid_stat(5)).
    let boot = since(ClockId::CLOCK_REALTIME).saturating_sub(since(ClockId::CLOCK_BOOTTIME));
    SystemTime::UNIX_EPOCH + Duration::from_millis((boot.as_millis() as u64 + 5) / 10 * 10)
}

/// RFC 3339 in UTC, with milliseconds; for a clock beyond the year 9999, the beginning of 1970.
pub fn timestamp(at: SystemTime) -> String {
    let timestamp = jiff::Timestamp::try_from(at).unwrap_or_default();
    timestamp.strftime("%FT%T.%3fZ").to_string()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Appends a record and the end of the line.
pub(crate) fn write(text: &mut Vec<u8>, record: &impl Serialize) {
    // Writing to a Vec cannot fail, and no key of a record is anything but a string.
    let _ = record.serialize(&mut Serializer::with_formatter(&mut *text, Visible));
    text.push(b'\n');
}

/// Writes characters that cannot be seen, or that change how others are, as escapes.
struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // Most text is printable ASCII, of which there is much.
        if fragment.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_unsafe_to_print(*c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}
