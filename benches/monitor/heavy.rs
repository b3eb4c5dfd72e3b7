//! What a flow at full speed keeps of its throughput beside each monitor.

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
}

/// Time for a monitor to start.
const SETTLE: Duration = Duration::from_millis(1500);

const PORT: u16 = 7001;

/// What makes the flow.
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
                let said = host.execute(&format!("iperf3 -J -c 10.99.0.2 -p {PORT} -t {seconds}"))?;
                let said: serde_json::Value = serde_json::from_str(&said).context("cannot read iperf3's figures")?;
                let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
                Ok(bits.context("iperf3 tells no throughput")? / 8.0)
            }
            Self::Own => {
                let said = host.play("flood", &format!("flood 10.99.0.2:{PORT} {seconds}"))?.finish()?;
                said.trim().parse().with_context(|| format!("no throughput: {said}"))
            }
        }
    }
}

/// A flow beside one monitor.
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
    let peers = peers::present(&Peer::ALL, &options.common);
    let mut alone = Vec::new();
    let mut outcomes: Vec<Vec<Outcome>> = peers.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.common.rounds {
        for (peer, outcomes) in peers.iter().zip(&mut outcomes) {
            // Each beside a flow without a monitor, since what else goes on changes from minute to minute.
            let before = maker.measure(&monitored, options.seconds)?;
            let monitor = peer.start(&monitored, &options.common.ours)?;
            sleep(SETTLE);
            let (cpu_s, start) = (monitor.cpu_s()?, Instant::now());
            let bytes_per_s = maker.measure(&monitored, options.seconds)?;
            let cores = (monitor.cpu_s()? - cpu_s) / start.elapsed().as_secs_f64();
            drop(monitor);
            let after = maker.measure(&monitored, options.seconds)?;
            alone.extend([before, after]);
            outcomes.push(Outcome { bytes_per_s, kept: bytes_per_s / ((before + after) / 2.0), cores });
        }
    }
    show(&peers, &alone, &outcomes);
    Ok(())
}

fn show(peers: &[Peer], alone: &[f64], outcomes: &[Vec<Outcome>]) {
    let gbit_per_s = |bytes_per_s: f64| number(bytes_per_s * 8.0 / 1e9, 2);
    let row = |(peer, outcomes): (&Peer, &Vec<Outcome>)| {
        let middle = |value: fn(&Outcome) -> f64| median(outcomes.iter().map(value));
        [
            peer.name().into(),
            gbit_per_s(middle(|of| of.bytes_per_s)),
            number(100.0 * middle(|of| of.kept), 1),
            number(middle(|of| of.cores), 3),
        ]
    };
    let alone = ["none".into(), gbit_per_s(median(alone.iter().copied())), number(100.0, 1), "-".into()];
    let rows: Vec<_> = std::iter::once(alone).chain(peers.iter().zip(outcomes).map(row)).collect();
    table::print(["monitor", "Gbit/s", "kept %", "cores"], &rows);
}
