//! Thousands of short connections a second: the share of their bytes that each monitor credits to a process, and the
//! cost.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::Common;
use crate::namespace::Namespace;
use crate::peers::{self, Peer};
use crate::punctuality::{lateness, refreshes};
use crate::table::{self, median, most, number, percent};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Which processes make the connections
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["holder", "forks"])]
    from: Vec<From>,
    /// How many connections a second the holder makes
    #[arg(long, default_value_t = 5000.0)]
    rate: f64,
    /// How many other connections it holds
    #[arg(long, default_value_t = 5000)]
    held: usize,
    /// How many seconds a storm lasts
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum From {
    /// One process, which also holds other connections
    Holder,
    /// A new process for each connection, as fast as the machine starts them
    Forks,
}

const PORT: u16 = 7001;
const CALM_PORT: u16 = 7002;
const CLIENT: &str = "storm-client";
const SERVER: &str = "storm-server";

/// The time for which the held connections are open before the storm, and the time for a monitor to start, or to show
/// the last bytes.
const BEFORE_S: u64 = 6;
const SETTLE: Duration = Duration::from_millis(4500);

/// The result of one monitor in one storm.
struct Outcome {
    connections: f64,
    failed: f64,
    client_percent: f64,
    server_percent: f64,
    cores: f64,
    peak_mib: f64,
    latest_s: f64,
}

pub fn run(options: &Options) -> Result<()> {
    for &from in &options.from {
        match from {
            From::Holder => println!(
                "up to {} connections a second for {} s, from a process that holds {}",
                options.rate, options.seconds, options.held
            ),
            From::Forks => println!("a new process per connection for {} s", options.seconds),
        }
        let peers = peers::present(&[Peer::Floor, Peer::Nethogs, Peer::Runmonitor], &options.common);
        let mut outcomes: Vec<Vec<Outcome>> = peers.iter().map(|_| Vec::new()).collect();
        for _ in 0..options.common.rounds {
            for (peer, outcomes) in peers.iter().zip(&mut outcomes) {
                outcomes.push(round(*peer, from, options)?);
            }
        }
        show(&peers, &outcomes);
    }
    Ok(())
}

fn round(peer: Peer, from: From, options: &Options) -> Result<Outcome> {
    let namespace = Namespace::tracked()?;
    namespace.count_ports(&[PORT])?;
    let _server = namespace.play(SERVER, &format!("echo {PORT}"))?.ready()?;
    // So that there is something to show from the first refresh on.
    let _calm_server = namespace.play("calm-server", &format!("echo {CALM_PORT}"))?.ready()?;
    let _calm = namespace.play("calm-client", &format!("hold 127.0.0.1:{CALM_PORT} 1"))?.ready()?;
    let monitor = peer.start(&namespace, &options.common.ours)?;
    sleep(SETTLE);
    let calm_until = Instant::now();

    let (to, seconds) = (format!("127.0.0.1:{PORT}"), options.seconds);
    let storm = match from {
        From::Holder => {
            let (held, rate) = (options.held, options.rate);
            namespace.play(CLIENT, &format!("storm {to} {held} {rate} {BEFORE_S} {seconds}"))?
        }
        From::Forks => namespace.play("starter", &format!("fork-storm {BEFORE_S} {seconds} {CLIENT} exchange {to}"))?,
    };
    let storm = storm.ready()?;
    sleep(SETTLE);
    let figures = || {
        let figures = peer.figures(&monitor.text());
        [CLIENT, SERVER].map(|name| figures.get(name).copied().unwrap_or_default())
    };
    let (truth, reported, cpu_s) = (namespace.counted(PORT)?, figures(), monitor.cpu_s()?);
    let (done, failed) = storm.connections()?;
    let cpu_s = monitor.cpu_s()? - cpu_s;
    sleep(SETTLE);
    let truth = namespace.counted(PORT)?.since(truth);
    let [client, server] = figures();

    let share = |reported: u64, truth: u64| {
        if Peer::ATTRIBUTING.contains(&peer) { percent(reported, truth) } else { f64::NAN }
    };
    let late = lateness(&refreshes(&monitor.chunks()), calm_until);
    Ok(Outcome {
        connections: done as f64 / seconds as f64,
        failed: failed as f64,
        client_percent: share(client.since(reported[0]).of(truth.client), truth.client.sum()),
        server_percent: share(server.since(reported[1]).of(truth.server), truth.server.sum()),
        cores: cpu_s / seconds as f64,
        peak_mib: peer.peak_mib(&monitor)?,
        // The schedule of the others is not known.
        latest_s: if peer == Peer::Runmonitor { most(late) } else { f64::NAN },
    })
}

fn show(peers: &[Peer], outcomes: &[Vec<Outcome>]) {
    let row = |(peer, outcomes): (&Peer, &Vec<Outcome>)| {
        let all = |value: fn(&Outcome) -> f64| outcomes.iter().map(value);
        [
            peer.name().into(),
            number(median(all(|of| of.connections)), 0),
            number(most(all(|of| of.failed)), 0),
            number(median(all(|of| of.client_percent)), 1),
            number(median(all(|of| of.server_percent)), 1),
            number(median(all(|of| of.cores)), 2),
            number(most(all(|of| of.peak_mib)), 1),
            number(most(all(|of| of.latest_s * 1000.0)), 0),
        ]
    };
    let rows: Vec<_> = peers.iter().zip(outcomes).map(row).collect();
    let headings = ["monitor", "connections/s", "failed", "client %", "server %", "cores", "peak MiB", "latest ms"];
    table::print(headings, &rows);
}
