//! Measures runmonitor on traffic of a known amount, beside the other monitors that are installed.
//!
//! ```text
//! sudo cargo bench --bench monitor -- accuracy      whose bytes are reported, against what nftables counted
//! sudo cargo bench --bench monitor -- scale         CPU and memory while many connections are held
//! sudo cargo bench --bench monitor -- storm         short connections, thousands a second
//! sudo cargo bench --bench monitor -- heavy         what a flow at full speed keeps of its throughput
//! sudo cargo bench --bench monitor -- soak          memory and punctuality over minutes
//! ```
//! All traffic is in network namespaces of its own, which end with the program. It needs root, nft and ip; a monitor
//! that is not installed (nethogs, ss, conntrack) is left out. The figures are those of one machine: compare within
//! one run, never across.

mod accuracy;
mod heavy;
mod namespace;
mod peers;
mod program;
mod punctuality;
mod roles;
mod scale;
mod soak;
mod storm;
mod table;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};

use peers::Peer;

/// Measures runmonitor on traffic of a known amount, beside the other monitors that are installed.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// What cargo says to every benchmark
    #[arg(long = "bench", global = true, hide = true)]
    _from_cargo: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// Which share of each application's bytes a monitor reports, against nftables' counters
    Accuracy(accuracy::Options),
    /// CPU and memory while many connections are held, one in a hundred moving data
    Scale(scale::Options),
    /// Short connections at a rate from one process, or from a new process each as fast as the machine forks
    Storm(storm::Options),
    /// What a flow at full speed keeps of its throughput
    Heavy(heavy::Options),
    /// Memory and punctuality of runmonitor over minutes, while connections come and go
    Soak(soak::Options),
}

/// What is measured.
#[derive(Args)]
struct Ours {
    /// The runmonitor to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_runmonitor"))]
    runmonitor: PathBuf,
}

/// What the benchmarks are told that compare.
#[derive(Args)]
struct Common {
    /// Rounds; medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these monitors
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Peer>,
    #[command(flatten)]
    ours: Ours,
}

fn main() -> Result<()> {
    // The traffic's own processes, started by this program.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, role)) = words.split_first()
        && first == roles::ROLE
    {
        return roles::play(role);
    }
    let arguments = Arguments::parse();
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces and conntrack need root: run with sudo");
    match &arguments.bench {
        Bench::Accuracy(options) => accuracy::run(options),
        Bench::Scale(options) => scale::run(options),
        Bench::Storm(options) => storm::run(options),
        Bench::Heavy(options) => heavy::run(options),
        Bench::Soak(options) => soak::run(options),
    }
}
