//! The share of each application's bytes that a monitor reports, compared with the bytes that nftables counted at its
//! port. No packet is offloaded, so that each passes nftables with its own headers.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::Common;
use crate::namespace::{Bytes, Namespace};
use crate::peers::{self, Peer};
use crate::program::Program;
use crate::table::{self, median, number, percent};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Keep all cores busy with other processes during the measurement
    #[arg(long)]
    busy: bool,
}

/// The time for a monitor to start, and to show the last bytes.
const SETTLE: Duration = Duration::from_millis(3500);

/// The port of the first workload; the others follow in order.
const FIRST_PORT: u16 = 7001;

/// An application and its traffic. It runs on the monitored host; its processes are called `app-` and the port.
struct Workload {
    title: &'static str,
    app: App,
    /// The server's role, without its port.
    server: &'static str,
    /// The server's address as the client sees it.
    address: &'static str,
    /// The client's role; `TO` stands for the server's address and port.
    client: &'static str,
    /// The number of clients, one after the other.
    times: u32,
}

#[derive(PartialEq, Eq)]
enum App {
    Client,
    Server,
}

const OTHER_HOST: &str = "10.99.0.2";

const WORKLOADS: [Workload; 11] = [
    Workload::client("long upload", "serve", OTHER_HOST, "send TO 48000000 6000000", 1),
    Workload::client("long download", "serve", OTHER_HOST, "receive TO 48000000 6000000 0", 1),
    Workload::client("long download, IPv6", "serve", "[fd99::2]", "receive TO 32000000 4000000 0", 1),
    Workload::client("400 processes of a few ms", "serve", OTHER_HOST, "receive TO 100000 0 0", 400),
    Workload::client("100 processes of 50 ms", "serve", OTHER_HOST, "receive TO 100000 0 50", 100),
    Workload::client("12 processes of 0.5 s", "serve", OTHER_HOST, "receive TO 2000000 0 500", 12),
    Workload::client("UDP client, connected", "echo-datagrams", OTHER_HOST, "datagrams TO 3000 connected", 1),
    Workload::client("UDP client, unconnected", "echo-datagrams", OTHER_HOST, "datagrams TO 3000 unconnected", 1),
    Workload::server("UDP server", "echo-datagrams", "10.99.0.1", "datagrams TO 3000 connected", 1),
    Workload::server("IPv4 on a dual-stack server", "serve", "10.99.0.1", "receive TO 1000000 5000000 0", 35),
    Workload::client("loopback", "serve", "127.0.0.1", "receive TO 32000000 4000000 0", 1),
];

impl Workload {
    const fn client(
        title: &'static str,
        server: &'static str,
        address: &'static str,
        client: &'static str,
        times: u32,
    ) -> Self {
        Self { title, app: App::Client, server, address, client, times }
    }

    const fn server(
        title: &'static str,
        server: &'static str,
        address: &'static str,
        client: &'static str,
        times: u32,
    ) -> Self {
        Self { title, app: App::Server, server, address, client, times }
    }

    fn start_server(&self, hosts: &Hosts, port: u16) -> Result<Program> {
        let (host, name) = match self.app {
            App::Server => (&hosts.monitored, name(port)),
            App::Client if self.address == "127.0.0.1" => (&hosts.monitored, "other-end".into()),
            App::Client => (&hosts.other, "other-end".into()),
        };
        host.play(&name, &format!("{} {port}", self.server))?.ready()
    }

    fn start_client(&self, hosts: &Hosts, port: u16) -> Result<Program> {
        let (host, name) = match self.app {
            App::Client => (&hosts.monitored, name(port)),
            App::Server => (&hosts.other, "other-end".into()),
        };
        let role = self.client.replace("TO", &format!("{}:{port}", self.address));
        match self.times {
            1 => host.play(&name, &role),
            times => host.play("starter", &format!("one-by-one {times} {name} {role}")),
        }
    }
}

/// The name of the application at a port.
fn name(port: u16) -> String {
    format!("app-{port}")
}

struct Hosts {
    monitored: Namespace,
    other: Namespace,
}

/// The bytes that one application moved, and those that the monitor reported.
#[derive(Clone, Copy)]
struct Outcome {
    truth: Bytes,
    reported: Bytes,
}

pub fn run(options: &Options) -> Result<()> {
    for peer in peers::present(&Peer::ATTRIBUTING, &options.common) {
        let rounds: Result<Vec<_>> = (0..options.common.rounds).map(|_| round(peer, options)).collect();
        show(peer, &rounds?);
    }
    Ok(())
}

/// All workloads at once beside one monitor.
fn round(peer: Peer, options: &Options) -> Result<Vec<Outcome>> {
    let hosts = Hosts { monitored: Namespace::tracked()?, other: Namespace::new()? };
    hosts.monitored.join(&hosts.other)?;
    for (namespace, device) in [(&hosts.monitored, "lo"), (&hosts.monitored, "cable"), (&hosts.other, "cable")] {
        namespace.execute(&format!("ip link set {device} gso_max_segs 1"))?;
    }
    let numbered = || (FIRST_PORT..).zip(&WORKLOADS);
    let ports: Vec<u16> = numbered().map(|(port, _)| port).collect();
    hosts.monitored.count_ports(&ports)?;
    let servers: Result<Vec<Program>> =
        numbered().map(|(port, workload)| workload.start_server(&hosts, port)).collect();
    let _servers = servers?;
    let monitor = peer.start(&hosts.monitored, &options.common.ours)?;
    sleep(SETTLE);
    let cores = if options.busy { std::thread::available_parallelism()?.get() } else { 0 };
    let spinning: Result<Vec<Program>> = (0..cores).map(|_| hosts.other.play("spinning", "spin")).collect();
    let spinning = spinning?;
    let clients: Result<Vec<Program>> =
        numbered().map(|(port, workload)| workload.start_client(&hosts, port)).collect();
    for client in clients? {
        client.finish()?;
    }
    drop(spinning);
    sleep(SETTLE);
    let mut figures = peer.figures(&monitor.text());
    let outcome = |(port, workload): (u16, &Workload)| {
        let counted = hosts.monitored.counted(port)?;
        let truth = if workload.app == App::Server { counted.server } else { counted.client };
        Ok(Outcome { truth, reported: figures.remove(&name(port)).unwrap_or_default() })
    };
    numbered().map(outcome).collect()
}

fn show(peer: Peer, rounds: &[Vec<Outcome>]) {
    let rows: Vec<[String; 8]> = WORKLOADS
        .iter()
        .enumerate()
        .map(|(at, workload)| {
            let all = || rounds.iter().map(|round| &round[at]);
            let middle = |value: &dyn Fn(&Outcome) -> f64| median(all().map(value));
            let shares = all().map(|of| percent(of.reported.of(of.truth), of.truth.sum()));
            [
                workload.title.into(),
                number(middle(&|of| of.truth.bytes_in as f64), 0),
                number(middle(&|of| of.reported.bytes_in as f64), 0),
                number(middle(&|of| percent(of.reported.bytes_in, of.truth.bytes_in)), 1),
                number(middle(&|of| of.truth.bytes_out as f64), 0),
                number(middle(&|of| of.reported.bytes_out as f64), 0),
                number(middle(&|of| percent(of.reported.bytes_out, of.truth.bytes_out)), 1),
                number(shares.fold(f64::INFINITY, f64::min), 1),
            ]
        })
        .collect();
    table::print([peer.name(), "true in", "reported", "%", "true out", "reported", "%", "worst"], &rows);
    let share = |value: fn(&Outcome) -> u64| {
        let of_round = |round: &Vec<Outcome>| {
            percent(round.iter().map(value).sum(), round.iter().map(|outcome| outcome.truth.sum()).sum())
        };
        let shares: Vec<f64> = rounds.iter().map(of_round).collect();
        let each: Vec<String> = shares.iter().map(|share| number(*share, 2)).collect();
        format!("{} % ({})", number(median(shares), 2), each.join(", "))
    };
    let total: u64 = rounds.first().map_or(0, |round| round.iter().map(|outcome| outcome.truth.sum()).sum());
    println!("of {} MB, attributed {}", total / 1_000_000, share(|outcome| outcome.reported.of(outcome.truth)));
    println!("absolute error {}\n", share(|outcome| outcome.reported.error(outcome.truth)));
}
