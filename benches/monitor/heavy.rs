//! The share of its throughput that a flow at full speed keeps beside each monitor.
//!
//! Such a flow uses the whole machine, and its throughput differs by some 10 % from one run to the next. To see the
//! cost of a cheap monitor, compare it with `asleep`, which costs nothing, over many rounds and with many instances at
//! once.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::Common;
use crate::namespace::Namespace;
use crate::peers::{self, Peer};
use crate::program::Program;
use crate::table::{self, median, number};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// How many seconds a flow lasts
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How many instances of each monitor run at once
    #[arg(long, default_value_t = 1)]
    instances: usize,
}

/// The time for monitors to start, and the rest before a flow without a monitor.
const SETTLE: Duration = Duration::from_millis(1500);

const PORT: u16 = 7001;

/// The program that makes the flow.
#[derive(Clone, Copy)]
enum Maker {
    Iperf3,
    Own,
}

impl Maker {
    fn serve(self, host: &Namespace) -> Result<Program> {
        match self {
            Self::Iperf3 => {
                let port = PORT.to_string();
                let server =
                    host.start(std::process::Command::new("iperf3").args(["-s", "--forceflush", "-p", &port]))?;
                while !server.text().contains("listening") {
                    sleep(Duration::from_millis(5));
                }
                Ok(server)
            }
            Self::Own => host.play("server", &format!("serve {PORT}"))?.ready(),
        }
    }

    /// The flow's throughput in bytes per second.
    fn measure(self, host: &Namespace, seconds: u64) -> Result<f64> {
        match self {
            Self::Iperf3 => {
                let report = host.execute(&format!("iperf3 -J -c 10.99.0.2 -p {PORT} -t {seconds}"))?;
                let report: serde_json::Value = serde_json::from_str(&report).context("cannot read iperf3's report")?;
                let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
                Ok(bits.context("iperf3 reports no throughput")? / 8.0)
            }
            Self::Own => {
                let printed = host.play("flood", &format!("flood 10.99.0.2:{PORT} {seconds}"))?.finish()?;
                printed.trim().parse().with_context(|| format!("no throughput: {printed}"))
            }
        }
    }
}

/// A flow beside a monitor.
struct Outcome {
    bytes_per_s: f64,
    kept: f64,
    cores: f64,
}

pub fn run(options: &Options) -> Result<()> {
    let maker = if peers::is_installed("iperf3") { Maker::Iperf3 } else { Maker::Own };
    let (monitored, other) = (Namespace::tracked()?, Namespace::new()?);
    monitored.join(&other)?;
    let _server = maker.serve(&other)?;
    let candidates: Vec<Peer> = std::iter::once(Peer::Asleep).chain(Peer::ALL).collect();
    let peers = peers::present(&candidates, &options.common);
    let mut outcomes: Vec<Vec<Outcome>> = peers.iter().map(|_| Vec::new()).collect();
    // Each flow beside a monitor is measured between two without, since the load of the machine changes every second.
    let mut alone = vec![maker.measure(&monitored, options.seconds)?];
    for round in 0..options.common.rounds {
        for position in 0..peers.len() {
            // So that no monitor is always the first, or always follows the same one.
            let which = if round % 2 == 0 { position } else { peers.len() - 1 - position };
            let start = |_| peers[which].start(&monitored, &options.common.ours);
            let monitors = (0..options.instances).map(start).collect::<Result<Vec<_>>>()?;
            sleep(SETTLE);
            let (cpu_s, start) = (cpu_s(&monitors)?, Instant::now());
            let bytes_per_s = maker.measure(&monitored, options.seconds)?;
            let cores = (self::cpu_s(&monitors)? - cpu_s) / start.elapsed().as_secs_f64();
            drop(monitors);
            sleep(SETTLE);
            let before = alone[alone.len() - 1];
            let after = maker.measure(&monitored, options.seconds)?;
            alone.push(after);
            outcomes[which].push(Outcome { bytes_per_s, kept: bytes_per_s / ((before + after) / 2.0), cores });
        }
    }
    show(&peers, &alone, &outcomes);
    Ok(())
}

fn cpu_s(programs: &[Program]) -> Result<f64> {
    programs.iter().map(Program::cpu_s).sum()
}

fn show(peers: &[Peer], alone: &[f64], outcomes: &[Vec<Outcome>]) {
    let gbit_per_s = |bytes_per_s: f64| number(bytes_per_s * 8.0 / 1e9, 2);
    let row = |(peer, outcomes): (&Peer, &Vec<Outcome>)| {
        let middle = |value: fn(&Outcome) -> f64| median(outcomes.iter().map(value));
        let kept: Vec<f64> = outcomes.iter().map(|of| 100.0 * of.kept).collect();
        [
            peer.name().into(),
            gbit_per_s(middle(|of| of.bytes_per_s)),
            number(median(kept.iter().copied()), 1),
            number(mean(&kept), 1),
            number(standard_error(&kept), 1),
            number(middle(|of| of.cores), 3),
        ]
    };
    let dash = || "-".to_owned();
    let none = ["none".into(), gbit_per_s(median(alone.iter().copied())), dash(), dash(), dash(), dash()];
    let rows: Vec<_> = std::iter::once(none).chain(peers.iter().zip(outcomes).map(row)).collect();
    table::print(["monitor", "Gbit/s", "kept %", "mean", "±", "cores"], &rows);
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard error of the mean.
fn standard_error(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0) / values.len() as f64).sqrt()
}
