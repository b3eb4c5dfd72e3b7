//! The monitors to measure: how to start each one, and how to read its figures.

use std::collections::HashMap;
use std::process::{Command, Stdio};

use anyhow::Result;
use clap::ValueEnum;
use serde_json::Value;

use crate::namespace::{Bytes, Namespace};
use crate::program::Program;
use crate::roles;
use crate::{Common, Ours};

/// A monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// A program that does nothing: its apparent cost is the measurement's error
    Asleep,
    /// A dump of conntrack's table each second, received and discarded: the least that polling can cost
    Floor,
    /// `conntrack -L`, once a second
    Conntrack,
    /// `ss -tunpi`, once a second
    Ss,
    /// nethogs, TCP and UDP, on all devices
    Nethogs,
    /// `bandwhich --raw --no-resolve --processes --total-utilization`
    Bandwhich,
    /// `rustnet --headless` with all of its interfaces, and owners also where its BPF programs cannot be loaded
    Rustnet,
    /// Our runmonitor
    Runmonitor,
    /// The same, which counts by conntrack
    RunmonitorConntrack,
}

impl Peer {
    /// All but `Asleep`.
    pub const ALL: [Self; 8] = [
        Self::Floor,
        Self::Conntrack,
        Self::Ss,
        Self::Nethogs,
        Self::Bandwhich,
        Self::Rustnet,
        Self::Runmonitor,
        Self::RunmonitorConntrack,
    ];
    /// Those that report bytes per process.
    pub const ATTRIBUTING: [Self; 5] =
        [Self::Nethogs, Self::Bandwhich, Self::Rustnet, Self::Runmonitor, Self::RunmonitorConntrack];

    pub fn name(self) -> &'static str {
        match self {
            Self::Asleep => "asleep",
            Self::Floor => "bare dump",
            Self::Conntrack => "conntrack -L",
            Self::Ss => "ss -tunpi",
            Self::Nethogs => "nethogs",
            Self::Bandwhich => "bandwhich",
            Self::Rustnet => "rustnet",
            Self::Runmonitor => "runmonitor",
            Self::RunmonitorConntrack => "runmonitor --source=conntrack",
        }
    }

    /// Its program, and where that is from; `None` if it is a part of this one or ours.
    fn program(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Asleep | Self::Floor | Self::Runmonitor | Self::RunmonitorConntrack => None,
            Self::Conntrack => Some(("conntrack", "Debian: conntrack")),
            Self::Ss => Some(("ss", "Debian: iproute2")),
            Self::Nethogs => Some(("nethogs", "Debian: nethogs")),
            Self::Bandwhich => Some(("bandwhich", "cargo install bandwhich")),
            Self::Rustnet => Some(("rustnet", "cargo install rustnet-monitor")),
        }
    }

    /// Starts it in a namespace.
    pub fn start(self, namespace: &Namespace, ours: &Ours) -> Result<Program> {
        match self {
            Self::Asleep => namespace.start(Command::new("sleep").arg("infinity")),
            Self::Floor => namespace.play("floor", "dump"),
            Self::Conntrack => namespace.start(roles::command("repeat", "repeat conntrack -L")?.stderr(Stdio::null())),
            Self::Ss => namespace.start(roles::command("repeat", "repeat ss -tunpi")?.stderr(Stdio::null())),
            Self::Nethogs => {
                // Trace mode, totals in bytes, all devices, UDP too.
                let mut nethogs = Command::new("nethogs");
                namespace.start(nethogs.args(["-t", "-v", "2", "-a", "-C"]).stderr(Stdio::null()))
            }
            Self::Bandwhich => {
                let mut bandwhich = Command::new("bandwhich");
                bandwhich.args(["--raw", "--no-resolve", "--processes", "--total-utilization"]);
                // It asks terminfo even so.
                namespace.start(bandwhich.env("TERM", "xterm").stderr(Stdio::null()))
            }
            Self::Rustnet => {
                let mut rustnet = Command::new("rustnet");
                rustnet.args(["--headless", "--output", "jsonl", "--interface", "any"]);
                rustnet.args(["--show-localhost", "--no-resolve-dns", "--refresh-interval", "1000"]);
                // Without BPF programs, it looks into processes, which these would keep it from.
                rustnet.args(["--no-uid-drop", "--no-sandbox"]);
                namespace.start(rustnet.stderr(Stdio::null()))
            }
            Self::Runmonitor | Self::RunmonitorConntrack => {
                let mut runmonitor = Command::new(&ours.runmonitor);
                if self == Self::RunmonitorConntrack {
                    runmonitor.arg("--source=conntrack");
                }
                if let Some(file) = &ours.history {
                    runmonitor.arg("--history").arg(file).args(["--history-remotes", "--history-interval=10"]);
                }
                namespace.start(&mut runmonitor)
            }
        }
    }

    /// The figures that it last reported for each process, by the process's name (argv[0]).
    pub fn figures(self, printed: &str) -> HashMap<String, Bytes> {
        // By command line (runmonitor) or process (nethogs); later lines replace earlier ones. bandwhich names processes alike that
        // it counts apart, so all lines of its last refresh count.
        let lines: Vec<(&str, Bytes)> = match self {
            Self::Runmonitor | Self::RunmonitorConntrack => latest(printed.lines().filter_map(runmonitor_line)),
            Self::Nethogs => latest(printed.lines().filter_map(nethogs_line)),
            Self::Bandwhich => {
                let refreshes = printed.rsplit("Refreshing:");
                let mut refreshes = refreshes.map(|refresh| refresh.lines().filter_map(bandwhich_line).collect());
                refreshes.find(|lines: &Vec<_>| !lines.is_empty()).unwrap_or_default()
            }
            Self::Rustnet => {
                // It forgets what has ended: the last figures of each connection count.
                let connections = printed.lines().flat_map(rustnet_connections).collect::<HashMap<_, _>>();
                return sums(connections.values().map(|(name, bytes)| (name.as_str(), *bytes)));
            }
            _ => Vec::new(),
        };
        sums(lines.into_iter().map(|(line, bytes)| (line.split([' ', '/']).next().unwrap_or_default(), bytes)))
    }

    /// Its peak resident memory, in MiB; for a program that runs once a second, that of the largest run.
    pub fn peak_mib(self, program: &Program) -> Result<f64> {
        let kib = match self {
            Self::Conntrack | Self::Ss => {
                program.text().lines().filter_map(|line| line.parse().ok()).max().unwrap_or_default()
            }
            _ => program.peak_kib()?,
        };
        Ok(kib as f64 / 1024.0)
    }
}

/// Whether there is a program of this name.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Those of `peers` that the options ask for and that are installed. Reports those that are not installed.
pub fn present(peers: &[Peer], common: &Common) -> Vec<Peer> {
    let wanted = peers.iter().filter(|peer| common.only.is_empty() || common.only.contains(peer));
    let present = |peer: &&Peer| match peer.program() {
        Some((program, from)) if !is_installed(program) => {
            eprintln!("{program} is not installed, so it is left out ({from})");
            false
        }
        _ => true,
    };
    wanted.copied().filter(|peer| present(&peer)).collect()
}

/// The last figures under each name.
fn latest<'a>(lines: impl Iterator<Item = (&'a str, Bytes)>) -> Vec<(&'a str, Bytes)> {
    lines.collect::<HashMap<_, _>>().into_iter().collect()
}

fn sums<'a>(lines: impl Iterator<Item = (&'a str, Bytes)>) -> HashMap<String, Bytes> {
    let mut sums: HashMap<String, Bytes> = HashMap::new();
    for (name, bytes) in lines {
        let sum = sums.entry(name.into()).or_default();
        sum.bytes_in += bytes.bytes_in;
        sum.bytes_out += bytes.bytes_out;
    }
    sums
}

/// `     15500 /       2500 -- name and arguments`
fn runmonitor_line(line: &str) -> Option<(&str, Bytes)> {
    let (figures, name) = line.split_once(" -- ")?;
    let (bytes_in, bytes_out) = figures.split_once(" / ")?;
    Some((name, Bytes { bytes_in: bytes_in.trim().parse().ok()?, bytes_out: bytes_out.trim().parse().ok()? }))
}

/// `name and arguments/pid/uid<TAB>sent<TAB>received`
fn nethogs_line(line: &str) -> Option<(&str, Bytes)> {
    let mut columns = line.rsplit('\t');
    let bytes_in = columns.next()?.trim().parse::<f64>().ok()? as u64;
    let bytes_out = columns.next()?.trim().parse::<f64>().ok()? as u64;
    Some((columns.next()?, Bytes { bytes_in, bytes_out }))
}

/// `process: <time> "name" up/down Bps: sent/received connections: 1`
fn bandwhich_line(line: &str) -> Option<(&str, Bytes)> {
    let (name, figures) = line.strip_prefix("process: ")?.split_once('"')?.1.split_once("\" up/down Bps: ")?;
    let (bytes_out, bytes_in) = figures.split_once(' ')?.0.split_once('/')?;
    Some((name, Bytes { bytes_in: bytes_in.parse().ok()?, bytes_out: bytes_out.parse().ok()? }))
}

/// The connections of a snapshot of rustnet that have a process: what identifies each, the process's name and the bytes.
fn rustnet_connections(snapshot: &str) -> Vec<(String, (String, Bytes))> {
    let snapshot: Value = serde_json::from_str(snapshot).unwrap_or_default();
    let connection = |connection: &Value| {
        let traffic = &connection["traffic"];
        let bytes_in = traffic["bytes_received"].as_u64()?;
        let bytes = Bytes { bytes_in, bytes_out: traffic["bytes_sent"].as_u64()? };
        let key = format!("{} {}", connection["id"], connection["created_at"]);
        Some((key, (connection["process"]["name"].as_str()?.into(), bytes)))
    };
    snapshot["connections"].as_array().into_iter().flatten().filter_map(connection).collect()
}
