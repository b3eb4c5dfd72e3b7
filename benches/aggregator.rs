//! The cost of the aggregator: memory over a day with a million command lines, and CPU with many applications.
//!
//! `cargo bench --bench aggregator` measures each case in a separate process. It does not read the kernel: flows,
//! processes and their command lines are made up, and go through the real code.

use std::env;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bwmon::attribution::{Answer, Attribution, Identity, ProcessLookup};
use bwmon::config::{Diagnostics, applications, notifications};
use bwmon::grouping::{Aggregator, GroupBy, Grouping};
use bwmon::kernel::flow::{Counters, Endpoint, Flow, Protocol, Tuple};
use bwmon::kernel::process::{Handle, Process, Unreadable};
use bwmon::ledger::{Ledger, OpenTick, Selection};
use bwmon::notify::Notifier;
use bwmon::traffic::rates::Rates;
use bwmon::traffic::source::{Reading, Source};
use bwmon::traffic::subject::Subject;
use nix::time::{ClockId, clock_gettime};

const DAY_S: u32 = 86_400;
const COMMAND_LINES_PER_DAY: u32 = 1_000_000;
const APPLICATIONS: usize = 200;
const PATTERNS: usize = 5;
const PROCESSES: u64 = 5_000;
const NEW_PER_S: u64 = 12;

fn main() {
    // Cargo adds --bench.
    if let Some(case) = env::args().nth(1).filter(|argument| argument != "--bench") {
        match case.as_str() {
            "cpu" => cpu(),
            case => memory(case),
        }
        return;
    }
    let this = env::current_exe().unwrap();
    for case in ["by command line", "by program", "by application", "cpu"] {
        assert!(Command::new(&this).arg(case).status().unwrap().success());
    }
}

/// A host on which a million programs a day start, connect once and end.
struct Host {
    ledger: Ledger,
    started: u32,
    second: u32,
}

/// Finds no process: all have ended.
struct Gone;

impl ProcessLookup for Gone {
    fn identify(&mut self, _pid: u32) -> Result<Option<Identity>, Unreadable> {
        Ok(None)
    }

    fn replaced_program(&mut self, _pid: u32, _at: u64) -> Option<Identity> {
        None
    }

    fn holds(&mut self, _pid: u32, _handle: Handle) -> bool {
        false
    }

    fn has_sockets(&mut self, _pid: u32, _start_time: u64) -> bool {
        false
    }

    fn closer(&mut self, pid: u32) -> Answer {
        Answer::Closed { pid, inherited: false }
    }

    fn closed_by(&mut self, _tuple: &Tuple) -> Option<Answer> {
        None
    }
}

impl Host {
    fn new(now: Instant) -> Self {
        Self { ledger: Ledger::new(vec![Selection::default()], false, now), started: 0, second: 0 }
    }

    /// A process starts, connects, moves some bytes and ends.
    fn run(tick: &mut OpenTick, n: u32) {
        let source = Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), (n % 60_000) as u16);
        let original = Tuple { protocol: Protocol::Tcp, source, destination: Endpoint::new(Ipv4Addr::from(n), 443) };
        let counters = Some(Counters { original: 1_000, reply: 100_000 });
        let id = u64::from(n);
        let flow = Flow { original, reply: original.reversed(), zone: 0, id, counters, open: true, socket: None };
        let name = format!("/usr/lib/tool-{n} --job={n} --output=/var/tmp/{n}.out --verbose https://example.com/{n} ");
        let command_line = name.into_bytes();
        let process = Process {
            pid: n,
            start_time: id,
            command_line,
            nameless: false,
            uid: Some(0),
            cgroup: None,
            executable: None,
        };
        let handle = Some(Handle { inode: n, fd: 3 });
        let answer = Answer::Held { pid: n, handle, connected: true };
        tick.opened(&flow);
        tick.attributed(&flow, [Some(Attribution { answer, identity: Identity::from(process) }), None]);
        tick.ended(&flow, &mut Gone);
    }
}

impl Source for Host {
    fn read(&mut self, now: Instant) -> Result<Vec<Reading>> {
        let mut tick = self.ledger.open(now);
        self.second += 1;
        let due = u64::from(COMMAND_LINES_PER_DAY) * u64::from(self.second) / u64::from(DAY_S);
        while u64::from(self.started) < due {
            self.started += 1;
            Self::run(&mut tick, self.started);
        }
        let mut tick = tick.attribute();
        tick.due(&mut Gone);
        tick.close(&mut Gone);
        Ok(self.ledger.readings())
    }
}

/// The value of `key` in /proc/self/status, in KiB.
fn status_kib(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

fn memory(case: &str) {
    let mut diagnostics = Diagnostics::default();
    let mut grouping = Grouping {
        applications: Vec::new(),
        group_by: if case == "by program" { GroupBy::Program } else { GroupBy::Command },
    };
    if case == "by application" {
        grouping.applications = applications("a.cfg", b"[Tools]\na=tool-\\d*[02468]\\s\n", &mut diagnostics);
    }
    // One rule averages over a day, the other over the whole run.
    let rules =
        b"[A]\nprocess_filter=.\nin_threshold=1000\ninterval=86400\n[B]\nprocess_filter=.\nin_threshold=9\ninterval=0\n";
    let mut notifier = Notifier::new(notifications("n.cfg", rules, &mut diagnostics));
    assert!(!diagnostics.has_errors());
    let start = Instant::now();
    let mut aggregator = Aggregator::new(grouping, vec![Host::new(start)]);
    let mut rates = Rates::new();
    let mut shown = 0;
    for second in 1..=DAY_S {
        let now = start + Duration::from_secs(second.into());
        let (_, rows) = rates.rows(now, aggregator.read(now).unwrap());
        notifier.tick(now, &rows);
        shown = shown.max(rows.len());
    }
    let started: u32 = aggregator.sources().map(|host| host.started).sum();
    let mib = status_kib("VmHWM:") as f64 / 1024.0;
    println!("{started} command lines in a day, {case}: at most {mib:.1} MiB resident, {shown} lines at once");
}

/// Many processes that all move bytes every second; each second some of them are new.
struct Busy {
    second: u64,
    subjects: Vec<Arc<Subject>>,
}

impl Busy {
    fn new() -> Self {
        Self { second: 0, subjects: (0..PROCESSES).map(command_line).collect() }
    }
}

/// A command line as long as those on a desktop.
fn command_line(n: u64) -> Arc<Subject> {
    let name = format!(
        "/usr/lib/suite-{}/program-{} --type=renderer --lang=de --num-raster-threads=4 --profile=/home/user/.config/{n} ",
        n % 97,
        n % 1009
    );
    let command_line = name.into_bytes().into();
    Arc::new(Subject::Processes { command_line, uid: Some(1000), cgroup: None, executable: None, nameless: false })
}

impl Source for Busy {
    fn read(&mut self, _now: Instant) -> Result<Vec<Reading>> {
        self.second += 1;
        for n in (0..NEW_PER_S).map(|k| PROCESSES + NEW_PER_S * self.second + k) {
            self.subjects[(n % PROCESSES) as usize] = command_line(n);
        }
        let bytes = 10_000 * self.second;
        let reading =
            |subject: &Arc<Subject>| Reading { subject: Arc::clone(subject), bytes_in: bytes, bytes_out: bytes };
        Ok(self.subjects.iter().map(reading).collect())
    }
}

fn cpu_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap())
}

fn cpu() {
    let mut text = String::new();
    for application in 0..APPLICATIONS {
        text.push_str(&format!("[Application {application}]\n"));
        // Realistic patterns; nearly all command lines match none of them.
        for (i, pattern) in ["(^|/)name-X\\b", "firefox-X|chrom(e|ium)-X", "-X --type=(gpu|zygote)", "user-X@", "nX$"]
            .into_iter()
            .enumerate()
        {
            text.push_str(&format!("p{i}={}\n", pattern.replace('X', &application.to_string())));
        }
    }
    let mut diagnostics = Diagnostics::default();
    let applications = applications("a.cfg", text.as_bytes(), &mut diagnostics);
    assert!(!diagnostics.has_errors() && applications.iter().all(|application| application.patterns.len() == PATTERNS));
    let (mut source, mut rates) = (Busy::new(), Rates::new());
    measure("runmonitor", |now| rates.rows(now, source.read(now).unwrap()).1.len());

    let (mut aggregator, mut rates) =
        (Aggregator::new(Grouping { applications, group_by: GroupBy::Program }, vec![Busy::new()]), Rates::new());
    measure("runaggregator", |now| rates.rows(now, aggregator.read(now).unwrap()).1.len());
}

/// Prints the CPU time of the first tick, to which everything is new, and the mean of the others.
fn measure(program: &str, mut tick: impl FnMut(Instant) -> usize) {
    const TICKS: u32 = 300;
    let start = Instant::now();
    let before = cpu_time();
    tick(start);
    let first = cpu_time() - before;
    let before = cpu_time();
    let mut lines = 0;
    for second in 1..=TICKS {
        lines = tick(start + Duration::from_secs(second.into()));
    }
    let each = (cpu_time() - before) / TICKS;
    println!(
        "{program}, {PROCESSES} processes, {NEW_PER_S} new a second, {lines} names: the first tick {first:.1?}, each other \
         {each:.2?}, {:.2} % of a core",
        each.as_secs_f64() * 100.0
    );
}
