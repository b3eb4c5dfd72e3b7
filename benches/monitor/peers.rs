//! The monitors to measure: how to start each one, and how to read its figures.

use std::collections::HashMap;
use std::process::{Command, Stdio};

use anyhow::Result;
use clap::ValueEnum;

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
    /// Our runmonitor
    Runmonitor,
    /// The same, which counts by conntrack
    RunmonitorConntrack,
}

impl Peer {
    /// All but `Asleep`.
    pub const ALL: [Self; 6] =
        [Self::Floor, Self::Conntrack, Self::Ss, Self::Nethogs, Self::Runmonitor, Self::RunmonitorConntrack];
    /// Those that report bytes per process.
    pub const ATTRIBUTING: [Self; 3] = [Self::Nethogs, Self::Runmonitor, Self::RunmonitorConntrack];

    pub fn name(self) -> &'static str {
        match self {
            Self::Asleep => "asleep",
            Self::Floor => "bare dump",
            Self::Conntrack => "conntrack -L",
            Self::Ss => "ss -tunpi",
            Self::Nethogs => "nethogs",
            Self::Runmonitor => "runmonitor",
            Self::RunmonitorConntrack => "runmonitor --source=conntrack",
        }
    }

    /// The Debian package that has it; `None` if it is a part of this program.
    fn package(self) -> Option<&'static str> {
        match self {
            Self::Asleep | Self::Floor | Self::Runmonitor | Self::RunmonitorConntrack => None,
            Self::Conntrack => Some("conntrack"),
            Self::Ss => Some("iproute2"),
            Self::Nethogs => Some("nethogs"),
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
        // By command line (runmonitor) or process (nethogs); later lines replace earlier ones.
        let lines: HashMap<&str, Bytes> = match self {
            Self::Runmonitor | Self::RunmonitorConntrack => printed.lines().filter_map(runmonitor_line).collect(),
            Self::Nethogs => printed.lines().filter_map(nethogs_line).collect(),
            _ => HashMap::new(),
        };
        let mut figures: HashMap<String, Bytes> = HashMap::new();
        for (line, bytes) in lines {
            let name = line.split([' ', '/']).next().unwrap_or_default();
            let sum = figures.entry(name.into()).or_default();
            sum.bytes_in += bytes.bytes_in;
            sum.bytes_out += bytes.bytes_out;
        }
        figures
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

    fn is_installed(self) -> bool {
        let file = match self {
            Self::Asleep | Self::Floor | Self::Runmonitor | Self::RunmonitorConntrack => return true,
            Self::Conntrack => "conntrack",
            Self::Ss => "ss",
            Self::Nethogs => "nethogs",
        };
        is_installed(file)
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
    let present = |peer: &&Peer| {
        let installed = peer.is_installed();
        if !installed {
            let package = peer.package().unwrap_or_default();
            eprintln!("{} is not installed, so it is left out (Debian: {package})", peer.name());
        }
        installed
    };
    wanted.copied().filter(|peer| present(&peer)).collect()
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
