//! Ninety days of a busy host in minutes: what runmonitor and runaggregator take of memory, descriptors, threads and room in the
//! kernel while processes, connections, network namespaces, cgroups, page clients and settings come and go; and whether their
//! totals are the truth in the end.
//!
//! ```text
//! come-and-go ── 84 processes a second ──▶ echo, datagrams, two pipes, pages          nftables counts ports
//!                                            │ runmonitor, runaggregator              lo counts namespaces
//! SIGHUP every 5 s with other files ────────▶│                                        the guests count payload
//! each 5 s ◀── /proc/PID, BPF maps, files ───┘
//! ```
//! The wall clock of both programs passes `--days` in the same time (clock.c), so that the minutes, hours, days and months of the
//! histories begin and end. docs/soak.md has the figures of a run.

mod plot;
mod sample;
mod truth;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::signal::{Signal, kill};

use crate::namespace::Namespace;
use crate::program::Program;
use crate::roles;
use sample::{Files, Sample};

/// The ports of the soak, in its own namespace.
pub mod ports {
    /// Echoes of bytes and of datagrams.
    pub const ECHO: u16 = 7001;
    pub const DATAGRAMS: u16 = 7002;
    /// Where the pipes lead to.
    pub const TARGET: u16 = 7003;
    /// A pipe that stays, and one that comes and goes.
    pub const STEADY_PIPE: u16 = 8001;
    pub const PASSING_PIPE: u16 = 8002;
    /// The pages of the programs.
    pub const MONITOR_PAGE: u16 = 8010;
    pub const AGGREGATOR_PAGE: u16 = 8011;
}

#[derive(Args)]
pub struct Options {
    /// For how many minutes to run
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// How many days pass in that time on the clock of the programs
    #[arg(long, default_value_t = 90.0)]
    days: f64,
    /// How many processes come and go each second
    #[arg(long, default_value_t = 84.0)]
    rate: f64,
    /// The directory for the samples, the plot and what the programs write
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/soak"))]
    output: PathBuf,
    /// The runmonitor to run
    #[arg(long, default_value = env!("CARGO_BIN_EXE_runmonitor"))]
    runmonitor: PathBuf,
    /// The runaggregator to run
    #[arg(long, default_value = env!("CARGO_BIN_EXE_runaggregator"))]
    runaggregator: PathBuf,
}

/// How many samples there are at most, and the time between two.
const SAMPLES: f64 = 240.0;
const BETWEEN_SAMPLES_S: (f64, f64) = (1.0, 5.0);
/// The time in which what has moved reaches the figures of both programs.
const SETTLE: Duration = Duration::from_secs(5);
/// The most MiB of the history of runmonitor, which records each command line: little, so that it has to make room.
const HISTORY_MIB: u64 = 16;

/// The programs that are watched.
pub const NAMES: [&str; 2] = ["runmonitor", "runaggregator"];

pub fn run(options: &Options) -> Result<()> {
    let directory = &options.output;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for name in NAMES {
        // The histories of the last run would go on.
        for part in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(directory.join(format!("{name}.db{part}")));
        }
    }
    let time = Duration::from_secs_f64(options.minutes * 60.0);
    let clock = build_clock(directory)?;
    let speed = options.days * 86_400.0 / time.as_secs_f64();

    let namespace = Namespace::new()?;
    let counted = [ports::ECHO, ports::DATAGRAMS, ports::TARGET, ports::STEADY_PIPE, ports::PASSING_PIPE];
    namespace.count_ports(&counted)?;
    let servers = [
        ("soak-echo", format!("echo {}", ports::ECHO)),
        ("soak-datagrams", format!("echo-datagrams {}", ports::DATAGRAMS)),
        ("soak-target", format!("echo {}", ports::TARGET)),
    ];
    let servers: Result<Vec<Program>> =
        servers.iter().map(|(name, role)| namespace.play(name, role)?.ready()).collect();
    let _servers = servers?;
    let start = |program: &Path, name: &str, arguments: &[String]| -> Result<Program> {
        let mut command = roles::command(name, "become")?;
        command.arg(program).args(arguments).env("LD_PRELOAD", &clock).env("SOAK_SPEED", speed.to_string());
        let log = directory.join(format!("{name}.log"));
        command.stderr(File::create(&log).with_context(|| format!("cannot write {}", log.display()))?);
        namespace.start(&mut command)
    };
    configure(directory, 0)?;
    let file = |name: &str| directory.join(name).display().to_string();
    let monitor = [
        "--include=^soak-".to_owned(),
        format!("--http={}", ports::MONITOR_PAGE),
        format!("--history={}", file("runmonitor.db")),
        format!("--history-size={HISTORY_MIB}"),
        "--history-remotes".to_owned(),
        "--history-interval=1".to_owned(),
        "--remotes".to_owned(),
    ];
    let aggregator = [
        format!("--monitor-config={}", file("monitors.cfg")),
        format!("--app-config={}", file("group.cfg")),
        format!("--notification-config={}", file("notifications.cfg")),
        format!("--http={}", ports::AGGREGATOR_PAGE),
        format!("--history={}", file("runaggregator.db")),
        "--history-interval=1".to_owned(),
    ];
    let programs =
        [start(&options.runmonitor, NAMES[0], &monitor)?, start(&options.runaggregator, NAMES[1], &aggregator)?];
    for port in [ports::MONITOR_PAGE, ports::AGGREGATOR_PAGE] {
        truth::await_ticks(&namespace, port, 3)?;
    }

    let cgroups = Path::new("/sys/fs/cgroup");
    let cgroups = if cgroups.join("cgroup.procs").exists() { "/sys/fs/cgroup" } else { "-" };
    let guests = format!("come-and-go {} {} {cgroups}", options.rate, time.as_secs());
    let begun = Instant::now();
    let guests = namespace.play("guests", &guests)?.ready()?;
    let files = NAMES.map(|name| Files::new(directory.join(format!("{name}.db"))));
    let between =
        Duration::from_secs_f64((time.as_secs_f64() / SAMPLES).clamp(BETWEEN_SAMPLES_S.0, BETWEEN_SAMPLES_S.1));
    let mut samples: [Vec<Sample>; 2] = [Vec::new(), Vec::new()];
    for round in 1_u32.. {
        sleep((begun + between * round).saturating_duration_since(Instant::now()));
        if begun.elapsed() > time {
            break;
        }
        for ((program, files), samples) in programs.iter().zip(&files).zip(&mut samples) {
            samples.push(Sample::take(program.pid(), files, begun.elapsed())?);
        }
        configure(directory, round)?;
        kill(programs[1].pid(), Signal::SIGHUP).context("runaggregator is gone")?;
    }
    let reported = guests.finish()?;
    sleep(SETTLE);
    let moved = truth::Moved::read(&namespace, &reported)?;
    let figures = truth::Figures::read(&namespace)?;
    for program in &programs {
        kill(program.pid(), Signal::SIGTERM).context("a program is gone")?;
    }
    for program in programs {
        program.finish()?;
    }
    let recorded = truth::recorded(&directory.join("runmonitor.db"))?;

    sample::write(&directory.join("samples.tsv"), &samples)?;
    plot::write(&directory.join("soak.svg"), &samples)?;
    println!("the samples, the plot and what the programs wrote are in {}", directory.display());
    let mut faults = sample::show(&samples, time);
    faults.extend(moved.compare(&figures, recorded));
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Compiles what makes a process's wall clock pass faster.
fn build_clock(directory: &Path) -> Result<PathBuf> {
    let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
    fs::write(&source, include_str!("clock.c")).with_context(|| format!("cannot write {}", source.display()))?;
    let mut compiler = Command::new("cc");
    let compiled = compiler.args(["-shared", "-fPIC", "-O2", "-o"]).args([&library, &source]).arg("-ldl").status();
    ensure!(compiled.context("cannot run cc")?.success(), "cc does not compile {}", source.display());
    Ok(library)
}

/// Writes the files of runaggregator, different ones in each round.
fn configure(directory: &Path, round: u32) -> Result<()> {
    let mut monitors = String::from("[Host]\ntype=monitor\n");
    let target = ["127.0.0.1", "::1"][round as usize % 2];
    let limit_kb_per_s = [0, 4096, 1024][round as usize % 3];
    let _ = write!(
        monitors,
        "[Steady {round}]\ntype=pipe\nport={}\nnewhost={target}\nnewport={}\nshape_threshold={limit_kb_per_s}\n",
        ports::STEADY_PIPE,
        ports::TARGET
    );
    if round % 4 < 2 {
        let (port, target) = (ports::PASSING_PIPE, ports::TARGET);
        let _ = write!(monitors, "[Passing]\ntype=pipe\nport={port}\nnewhost=localhost\nnewport={target}\n");
    }
    let mut group = String::new();
    for (name, pattern) in truth::APPLICATIONS {
        let _ = writeln!(group, "[{name}]\nall={pattern}");
    }
    for number in 0..round % 7 {
        let _ = writeln!(group, "[Round {round} {number}]\nall=^nothing-{round}-{number}(?=x)");
    }
    let threshold_kb_per_s = [1, 1_000_000][round as usize % 2];
    let notifications = format!(
        "[Loud {}]\nprocess_filter=Clients\nin_threshold={threshold_kb_per_s}\ninterval=5\n\
         notification_command=true\nrecovery_command=true\n\
         [Quota]\nprocess_filter=Clients|Servers\nin_threshold=0\nquota=20 MB\nquota_period=day\nnotification_command=true\n",
        round % 5
    );
    for (name, text) in [("monitors", monitors), ("group", group), ("notifications", notifications)] {
        let (new, file) = (directory.join("new"), directory.join(format!("{name}.cfg")));
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &file));
        written.with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
