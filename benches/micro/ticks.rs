//! A tick of the ledger, from the flows to the rates, with ever more flows. One in a hundred moves bytes in each tick.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bwmon::attribution::{Answer, Identity, ProcessLookup};
use bwmon::kernel::bpf::packet_counters::SocketBytes;
use bwmon::kernel::flow::{Counters, Endpoint, Flow, Protocol, Tuple};
use bwmon::kernel::process::{Handle, Process, Unreadable};
use bwmon::ledger::{Ledger, OpenTick, Selection};
use bwmon::traffic::rates::Rates;

use crate::measure::{Cost, cpu_time};

const FLOWS: [u32; 3] = [1_000, 20_000, 100_000];
/// The number of flows of one process.
const OF_ONE_PROCESS: u32 = 20;
const ONE_IN: u32 = 100;
const TICKS: u32 = 100;

pub fn run() {
    println!(
        "| a tick of the ledger | flows | processes | first, ms | µs, median | lowest | highest | ns for each flow |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (name, enter) in [("packets: the sockets that moved", socket as Enter), ("conntrack: all rows", row as Enter)] {
        for flows in FLOWS {
            measure(name, flows, enter);
        }
    }
}

/// Enters a flow that `moves` or not in a tick.
type Enter = fn(&mut OpenTick<'_>, &mut Host, flow: u32, moves: bool, tick: u32);

fn socket(tick: &mut OpenTick<'_>, host: &mut Host, flow: u32, moves: bool, _: u32) {
    if moves {
        let maker = Some((flow / OF_ONE_PROCESS, 1));
        let cookie = flow.into();
        let (bytes_in, bytes_out, tuple) = (60_000, 5_000, Some(tuple(flow)));
        let socket = SocketBytes { cookie, loopback: false, tuple, bytes_in, bytes_out, time_wait: false, maker };
        tick.socket(&socket, host);
    }
}

fn row(tick: &mut OpenTick<'_>, _: &mut Host, flow: u32, moves: bool, at: u32) {
    let moved = if moves { u64::from(at) } else { 1 };
    let counters = Some(Counters { original: 5_000 * moved, reply: 60_000 * moved });
    let original = tuple(flow);
    let id = flow.into();
    tick.row(&Flow { original, reply: original.reversed(), zone: 0, id, counters, open: true, socket: None });
}

fn tuple(flow: u32) -> Tuple {
    let source = Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), (flow % 50_000) as u16 + 10_000);
    Tuple { protocol: Protocol::Tcp, source, destination: Endpoint::new(Ipv4Addr::from(0x0a01_0000 + flow), 443) }
}

/// A host whose processes do not end.
struct Host {
    processes: Vec<Identity>,
}

impl Host {
    fn new(processes: u32) -> Self {
        let process = |pid| {
            let command_line = format!("/usr/lib/program-{pid} --type=renderer --profile=/home/user/.config/{pid} ");
            Identity::from(Process {
                pid,
                start_time: 1,
                command_line: command_line.into_bytes(),
                nameless: false,
                // The ledger tells some 4,000 command lines of one user apart.
                uid: Some(1000 + pid % 10),
                cgroup: None,
                executable: None,
            })
        };
        Self { processes: (0..processes).map(process).collect() }
    }
}

impl ProcessLookup for Host {
    fn identify(&mut self, pid: u32) -> Result<Option<Identity>, Unreadable> {
        Ok(self.processes.get(pid as usize).cloned())
    }

    fn replaced_program(&mut self, _pid: u32, _at: u64) -> Option<Identity> {
        None
    }

    fn holds(&mut self, _pid: u32, _handle: Handle) -> bool {
        true
    }

    fn has_sockets(&mut self, _pid: u32, _start_time: u64) -> bool {
        true
    }

    fn closer(&mut self, pid: u32) -> Answer {
        Answer::Closed { pid, inherited: false }
    }

    fn closed_by(&mut self, _tuple: &Tuple) -> Option<Answer> {
        None
    }
}

fn measure(name: &str, flows: u32, enter: Enter) {
    let processes = flows / OF_ONE_PROCESS;
    let mut host = Host::new(processes);
    let start = Instant::now();
    let mut ledger = Ledger::new(vec![Selection::default()], true, start);
    let mut rates = Rates::new();
    let mut times = Vec::new();
    for tick in 0..=TICKS {
        let now = start + Duration::from_secs(tick.into());
        let before = cpu_time();
        let mut open = ledger.open(now);
        for flow in 0..flows {
            enter(&mut open, &mut host, flow, tick == 0 || flow % ONE_IN == tick % ONE_IN, tick + 1);
        }
        let mut attributing = open.attribute();
        for end in attributing.due(&mut host) {
            let bwmon::attribution::Query::Tuple(tuple) = attributing.query(end) else { continue };
            let answer = match tuple.source.port {
                443 => Answer::Elsewhere,
                _ => {
                    let flow = u32::from(tuple.destination.ipv4().unwrap_or(Ipv4Addr::UNSPECIFIED)) - 0x0a01_0000;
                    let handle = Some(Handle { inode: flow, fd: 3 });
                    Answer::Held { pid: flow / OF_ONE_PROCESS, handle, connected: true }
                }
            };
            attributing.resolved(end, answer, &mut |pid| host.identify(pid));
        }
        attributing.close(&mut host);
        let rows = rates.rows(now, ledger.readings()).1.len();
        times.push(cpu_time() - before);
        assert_eq!(rows, processes as usize);
    }
    let first = times.remove(0);
    let cost = Cost::of(times);
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "| {name} | {flows} | {processes} | {:.1} | {:.0} | {:.0} | {:.0} | {:.1} |",
        us(first) / 1000.0,
        us(cost.median),
        us(cost.lowest),
        us(cost.highest),
        us(cost.median) * 1000.0 / f64::from(flows)
    );
}
