//! Measures runmonitor on traffic of a known amount, beside the other monitors that are installed.
//!
//! ```text
//! sudo cargo bench --bench monitor -- accuracy      the share of each application's bytes that is reported
//! sudo cargo bench --bench monitor -- scale         CPU and memory with many open connections
//! sudo cargo bench --bench monitor -- storm         thousands of short connections a second
//! sudo cargo bench --bench monitor -- heavy         the throughput that a flow at full speed keeps
//! sudo cargo bench --bench monitor -- overhead      the CPU time that counting adds to each packet
//! sudo cargo bench --bench monitor -- churn         memory and punctuality while connections come and go
//! sudo cargo bench --bench monitor -- soak          ninety days of a busy host in twenty minutes
//! ```
//! All traffic is in network namespaces that end with the program. It needs root, nft and ip, and leaves out the
//! monitors that are not installed (nethogs, bandwhich, rustnet, ss, conntrack). Figures depend on the machine and its load: compare only
//! those of one run.

mod accuracy;
mod churn;
mod heavy;
mod namespace;
mod overhead;
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
    /// Cargo passes this to every benchmark
    #[arg(long = "bench", global = true, hide = true)]
    _from_cargo: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// The share of each application's bytes that a monitor reports, compared with nftables' counters
    Accuracy(accuracy::Options),
    /// CPU and memory with many open connections, one in a hundred of which moves data
    Scale(scale::Options),
    /// Short connections from one process at a given rate, or each from a new process, as fast as the machine forks
    Storm(storm::Options),
    /// The share of its throughput that a flow at full speed keeps
    Heavy(heavy::Options),
    /// The CPU time that counting packets adds to a round trip and to a datagram, and what connection tracking adds
    Overhead(overhead::Options),
    /// Memory and punctuality of runmonitor over minutes, while connections come and go
    Churn(churn::Options),
    /// Ninety days of a busy host in twenty minutes: memory, descriptors, threads and maps of runmonitor and runaggregator, and their totals
    Soak(soak::Options),
}

/// The program to measure.
#[derive(Args)]
struct Ours {
    /// The runmonitor to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_runmonitor"))]
    runmonitor: PathBuf,
    /// Let it record each remote address in this history, every 10 seconds
    #[arg(long)]
    history: Option<PathBuf>,
}

/// The options of the benchmarks that compare monitors.
#[derive(Args)]
struct Common {
    /// Number of rounds, of which the medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure only these monitors
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Peer>,
    #[command(flatten)]
    ours: Ours,
}

fn main() -> Result<()> {
    // This program starts itself again for the processes that make traffic.
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
        Bench::Overhead(options) => overhead::run(options),
        Bench::Churn(options) => churn::run(options),
        Bench::Soak(options) => soak::run(options),
    }
}
