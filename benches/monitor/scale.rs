//! CPU and memory of each monitor with many open connections, one in a hundred of which moves data each second.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::Common;
use crate::namespace::Namespace;
use crate::peers::{self, Peer};
use crate::program::Program;
use crate::punctuality::refreshes;
use crate::table::{self, median, most, number, spread};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// How many connections are open, over loopback: each has two sockets and one entry in conntrack's table
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 20_000, 100_000])]
    flows: Vec<usize>,
    /// At least how many processes hold the clients' ends
    #[arg(long, default_value_t = 1)]
    processes: usize,
    /// How many seconds a monitor has to start, read all connections and find their owners: with 100,000 it needs 60
    #[arg(long, default_value_t = 12)]
    settle: u64,
    /// For how many seconds to measure each monitor
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// The most connections that one process holds, to its own loopback address.
const HELD_BY_ONE: usize = 10_000;

const PORT: u16 = 7001;

/// The CPU time and memory of one monitor.
struct Usage {
    /// Until it has settled.
    first_cpu_s: f64,
    cpu_s_per_refresh: f64,
    peak_mib: f64,
    kernel_mib: f64,
    refreshes: usize,
}

pub fn run(options: &Options) -> Result<()> {
    for &flows in &options.flows {
        let namespace = Namespace::tracked()?;
        let _holders = hold(&namespace, PORT, flows, options.processes)?;
        println!("{flows} connections held, {} tracked", namespace.tracked_connections()?);
        let peers = peers::present(&Peer::ALL, &options.common);
        let mut used: Vec<Vec<Usage>> = peers.iter().map(|_| Vec::new()).collect();
        // All monitors in each round, so that the machine's other load affects all alike.
        for _ in 0..options.common.rounds {
            for (peer, used) in peers.iter().zip(&mut used) {
                used.push(measure(*peer, &namespace, options)?);
            }
        }
        show(&peers, &used);
    }
    Ok(())
}

/// Starts at least so many `clients`, and servers, that hold `flows` connections over loopback.
pub fn hold(namespace: &Namespace, port: u16, flows: usize, clients: usize) -> Result<Vec<Program>> {
    let before = namespace.tracked_connections()?;
    let servers = flows.div_ceil(HELD_BY_ONE).max(2);
    let clients = clients.div_ceil(servers);
    let part = |of: usize, parts: usize, at: usize| of * (at + 1) / parts - of * at / parts;
    let (mut programs, mut servers_started) = (Vec::new(), Vec::new());
    for server in 0..servers {
        let port = port + u16::try_from(server)?;
        let flows = part(flows, servers, server);
        servers_started.push(namespace.play("held-server", &format!("echo {port}"))?.ready()?);
        for client in 0..clients {
            let role = format!("hold 127.0.0.{}:{port} {}", server + 1, part(flows, clients, client));
            programs.push(namespace.play(&format!("held-client-{client}"), &role)?);
        }
    }
    let mut programs = programs.into_iter().map(Program::ready).collect::<Result<Vec<_>>>()?;
    // Behind the clients, which would complain if these ended first.
    programs.append(&mut servers_started);
    let tracked = namespace.tracked_connections()? - before;
    ensure!(tracked >= flows, "of {flows} connections only {tracked} are tracked: raise nf_conntrack_max");
    Ok(programs)
}

fn measure(peer: Peer, namespace: &Namespace, options: &Options) -> Result<Usage> {
    let program = peer.start(namespace, &options.common.ours)?;
    sleep(Duration::from_secs(options.settle));
    let (first_cpu_s, before) = (program.cpu_s()?, refreshes(&program.chunks()).len());
    sleep(Duration::from_secs(options.seconds));
    let (cpu_s, refreshes) = (program.cpu_s()? - first_cpu_s, refreshes(&program.chunks()).len() - before);
    let kernel_mib = program.kernel_kib()? as f64 / 1024.0;
    let peak_mib = peer.peak_mib(&program)?;
    Ok(Usage { first_cpu_s, cpu_s_per_refresh: cpu_s / refreshes as f64, peak_mib, kernel_mib, refreshes })
}

fn show(peers: &[Peer], used: &[Vec<Usage>]) {
    let cpu_s = |used: &[Usage]| median(used.iter().map(|used| used.cpu_s_per_refresh));
    let floor = peers.iter().position(|peer| *peer == Peer::Floor).map_or(f64::NAN, |at| cpu_s(&used[at]));
    let row = |(peer, used): (&Peer, &Vec<Usage>)| {
        [
            peer.name().into(),
            spread(used.iter().map(|used| used.cpu_s_per_refresh), 4),
            number(cpu_s(used) / floor, 2),
            number(median(used.iter().map(|used| used.first_cpu_s)), 2),
            number(most(used.iter().map(|used| used.peak_mib)), 1),
            number(most(used.iter().map(|used| used.kernel_mib)), 1),
            number(median(used.iter().map(|used| used.refreshes as f64)), 0),
        ]
    };
    let rows: Vec<_> = peers.iter().zip(used).map(row).collect();
    let headings =
        ["monitor", "CPU s per refresh", "of bare dump", "CPU s to settle", "peak MiB", "kernel MiB", "refreshes"];
    table::print(headings, &rows);
}
