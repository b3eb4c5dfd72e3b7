//! What has moved, by those who know it, and what the programs say.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags};

use super::ports;
use crate::namespace::{Bytes, Namespace};
use crate::table;

/// The applications of runaggregator that are compared, and which command lines and pipes they are.
pub const APPLICATIONS: [(&str, &str); 5] = [
    ("Clients", "^soak-(client|job-)"),
    ("Servers", "^soak-(echo|datagrams|target)"),
    ("Apart", "^soak-apart"),
    ("Steady pipe", "^pipe-8001:"),
    ("Passing pipe", "^pipe-8002:"),
];

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The share of the bytes of processes that may be missing or too much.
const TOLERANCE: f64 = 0.001;

/// What has moved.
pub struct Moved {
    clients: Bytes,
    servers: Bytes,
    apart: Bytes,
    steady: u64,
    /// Of the pipe that comes and goes: what was to move, and what certainly has.
    passing: (u64, u64),
    begun_and_ended: (usize, usize),
    processes: String,
}

/// What the programs say.
pub struct Figures {
    applications: Vec<Bytes>,
    monitor: Bytes,
    health: Vec<String>,
}

impl Moved {
    /// From the counters of the kernel, and what the guests have printed.
    pub fn read(namespace: &Namespace, reported: &str) -> Result<Self> {
        let mut moved = Self {
            clients: Bytes::default(),
            servers: Bytes::default(),
            apart: Bytes::default(),
            steady: 0,
            passing: (0, 0),
            begun_and_ended: (0, 0),
            processes: reported.lines().last().unwrap_or_default().to_owned(),
        };
        let add = |sum: &mut Bytes, bytes: Bytes| {
            sum.bytes_in += bytes.bytes_in;
            sum.bytes_out += bytes.bytes_out;
        };
        for port in [ports::ECHO, ports::DATAGRAMS, ports::STEADY_PIPE, ports::PASSING_PIPE] {
            add(&mut moved.clients, namespace.counted(port)?.client);
        }
        for port in [ports::ECHO, ports::DATAGRAMS, ports::TARGET] {
            add(&mut moved.servers, namespace.counted(port)?.server);
        }
        for line in reported.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [name, what, bytes] = words[..] else { continue };
            let bytes: u64 = bytes.parse().with_context(|| format!("no number of bytes: {line}"))?;
            match (name, what) {
                ("apart", _) => add(&mut moved.apart, Bytes { bytes_in: bytes, bytes_out: bytes }),
                ("steady", "begins") => moved.begun_and_ended.0 += 1,
                ("steady", _) => {
                    moved.begun_and_ended.1 += 1;
                    moved.steady += bytes;
                }
                ("passing", "begins") => moved.passing.0 += bytes,
                _ => moved.passing.1 += bytes,
            }
        }
        Ok(moved)
    }

    /// Prints the figures beside the truth; returns what differs.
    pub fn compare(&self, figures: &Figures, recorded: Bytes) -> Vec<String> {
        let mut faults = Vec::new();
        println!("processes that came and went, and those that failed: {}", self.processes);
        figures.health.iter().for_each(|line| println!("{line}"));
        println!();
        let all = Bytes {
            bytes_in: self.clients.bytes_in + self.servers.bytes_in + self.apart.bytes_in,
            bytes_out: self.clients.bytes_out + self.servers.bytes_out + self.apart.bytes_out,
        };
        let steady = Bytes { bytes_in: self.steady, bytes_out: self.steady };
        let [clients, servers, apart, steady_pipe, passing_pipe] = figures.applications[..] else {
            return vec!["runaggregator lacks an application".to_owned()];
        };
        let mut rows = Vec::new();
        for (name, truth, figure, tolerance) in [
            ("runaggregator: Clients", self.clients, clients, TOLERANCE),
            ("runaggregator: Servers", self.servers, servers, TOLERANCE),
            ("runaggregator: Apart", self.apart, apart, TOLERANCE),
            ("runaggregator: Steady pipe", steady, steady_pipe, 0.0),
            ("runmonitor: all, on the page", all, figures.monitor, TOLERANCE),
            ("runmonitor: all, in the history", all, recorded, TOLERANCE),
        ] {
            let difference = figure.error(truth);
            let share = difference as f64 / truth.sum() as f64;
            rows.push([
                name.to_owned(),
                truth.bytes_in.to_string(),
                figure.bytes_in.to_string(),
                truth.bytes_out.to_string(),
                figure.bytes_out.to_string(),
                format!("{:.4} %", share * 100.0),
            ]);
            // Also if nothing has moved at all.
            if difference > 0 && share > tolerance || truth.sum() == 0 {
                faults.push(format!("{name}: {figure:?} instead of {truth:?}"));
            }
        }
        table::print(["bytes", "in, truth", "in", "out, truth", "out", "difference"], &rows);
        let (begun, ended) = self.begun_and_ended;
        if begun != ended {
            faults.push(format!("{} of {begun} connections through the steady pipe failed", begun - ended));
        }
        let (most, least) = self.passing;
        println!("runaggregator: Passing pipe: {passing_pipe:?} of {least} to {most} bytes each way");
        let is_possible = |bytes: u64| (least..=most).contains(&bytes);
        if !is_possible(passing_pipe.bytes_in) || !is_possible(passing_pipe.bytes_out) {
            faults.push(format!("the passing pipe has {passing_pipe:?} of {least} to {most} bytes"));
        }
        if !self.processes.ends_with(" 0") {
            faults.push(format!("guests failed: {}", self.processes));
        }
        faults
    }
}

impl Figures {
    /// From the metrics of both programs.
    pub fn read(namespace: &Namespace) -> Result<Self> {
        let monitor = get(namespace, ports::MONITOR_PAGE, "/metrics")?;
        let aggregator = get(namespace, ports::AGGREGATOR_PAGE, "/metrics")?;
        let bytes = |text: &str, series: &dyn Fn(&str) -> bool| Bytes {
            bytes_in: sum(text, "bwmon_application_receive_bytes_total", series),
            bytes_out: sum(text, "bwmon_application_transmit_bytes_total", series),
        };
        let applications = APPLICATIONS.map(|(name, _)| {
            let label = format!("application=\"{name}\"");
            bytes(&aggregator, &|series| series.contains(&label))
        });
        let mut health = Vec::new();
        for (name, text) in [("runmonitor", &monitor), ("runaggregator", &aggregator)] {
            let all = sum(text, "bwmon_tick_duration_seconds_count", &|_| true);
            let in_time = sum(text, "bwmon_tick_duration_seconds_bucket", &|series| series.contains("le=\"0.1\""));
            let lost = sum(text, "bwmon_ticks_with_lost_events_total", &|_| true);
            health
                .push(format!("{name}: {all} ticks, {} took more than 0.1 s, {lost} with lost events", all - in_time));
        }
        Ok(Self { applications: applications.to_vec(), monitor: bytes(&monitor, &|_| true), health })
    }
}

/// The sum of the series of a metric.
fn sum(text: &str, metric: &str, series: &dyn Fn(&str) -> bool) -> u64 {
    let lines = text.lines().filter_map(|line| line.strip_prefix(metric)).filter_map(|line| line.rsplit_once(' '));
    lines.filter(|(labels, _)| series(labels)).filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
}

/// Waits until a program has ticked so many times.
pub fn await_ticks(namespace: &Namespace, port: u16, ticks: u64) -> Result<()> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let text = get(namespace, port, "/metrics").unwrap_or_default();
        if sum(&text, "bwmon_tick_duration_seconds_count", &|_| true) >= ticks {
            return Ok(());
        }
        ensure!(Instant::now() < give_up, "nothing ticks at port {port}");
        sleep(Duration::from_millis(50));
    }
}

fn get(namespace: &Namespace, port: u16, path: &str) -> Result<String> {
    let mut stream = namespace.inside(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("no answer to {path}"))?;
    ensure!(text.starts_with("HTTP/1.1 200"), "{path}: {}", text.lines().next().unwrap_or_default());
    Ok(text)
}

/// All that a history has.
pub fn recorded(file: &Path) -> Result<Bytes> {
    let history = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let sum = |column: &str| history.query_row(&format!("SELECT sum({column}) FROM month"), [], |row| row.get(0));
    Ok(Bytes { bytes_in: sum("bytes_in")?, bytes_out: sum("bytes_out")? })
}
