//! Every byte that is counted has an owner or a reason: the two add up, whatever happens to sockets and processes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bwmon::attribution::{Answer, Identity, ProcessLookup};
use bwmon::kernel::bpf::packet_counters::{ClosedSocket, SocketBytes};
use bwmon::kernel::flow::{Counters, Endpoint, Flow, Protocol, Tuple};
use bwmon::kernel::process::{Handle, Process, Unreadable};
use bwmon::ledger::{Ledger, OpenTick, Selection};
use bwmon::traffic::subject::Reason;
use proptest::prelude::*;

/// What happens in a tick.
#[derive(Debug, Clone)]
enum Event {
    /// A socket moves bytes, in and out; it may have a maker.
    Moves {
        cookie: u64,
        loopback: bool,
        bytes: (u64, u64),
        maker: Option<u32>,
    },
    /// A process closes a socket.
    Closes {
        cookie: u64,
        pid: u32,
    },
    /// A process ends, or starts.
    Ends {
        pid: u32,
    },
    Starts {
        pid: u32,
    },
    /// Bytes of sockets for which there was no room.
    Overflows {
        bytes: (u64, u64),
    },
}

fn event() -> impl Strategy<Value = Event> {
    let bytes = || (0..5_000_u64, 0..5_000_u64);
    prop_oneof![
        5 => (0..9_u64, any::<bool>(), bytes(), prop::option::of(0..5_u32))
            .prop_map(|(cookie, loopback, bytes, maker)| Event::Moves { cookie, loopback, bytes, maker }),
        2 => (0..9_u64, 0..5_u32).prop_map(|(cookie, pid)| Event::Closes { cookie, pid }),
        1 => (0..5_u32).prop_map(|pid| Event::Ends { pid }),
        1 => (0..5_u32).prop_map(|pid| Event::Starts { pid }),
        1 => bytes().prop_map(|bytes| Event::Overflows { bytes }),
    ]
}

/// A host with a few processes. Each has started as often as is noted.
struct Host {
    running: BTreeMap<u32, u64>,
    starts: u64,
}

impl ProcessLookup for Host {
    fn identify(&mut self, pid: u32) -> Result<Option<Identity>, Unreadable> {
        let Some(&start_time) = self.running.get(&pid) else { return Ok(None) };
        let command_line = format!("process{pid} ").into_bytes();
        Ok(Some(
            Process { pid, start_time, command_line, nameless: false, uid: Some(0), cgroup: None, executable: None }
                .into(),
        ))
    }

    fn replaced_program(&mut self, pid: u32, at: u64) -> Option<Identity> {
        let command_line = b"replaced ".to_vec();
        let program =
            Process { pid, start_time: 1, command_line, nameless: false, uid: Some(0), cgroup: None, executable: None };
        (at == 0 && pid == 3).then(|| program.into())
    }

    fn holds(&mut self, pid: u32, handle: Handle) -> bool {
        self.running.contains_key(&pid) && handle.inode.is_multiple_of(2)
    }

    fn has_sockets(&mut self, pid: u32, start_time: u64) -> bool {
        self.running.get(&pid) == Some(&start_time)
    }

    fn closer(&mut self, pid: u32) -> Answer {
        Answer::Closed { pid, inherited: pid.is_multiple_of(2) }
    }

    fn closed_by(&mut self, _tuple: &Tuple) -> Option<Answer> {
        None
    }
}

proptest! {
    #[test]
    fn owned_and_unowned_bytes_are_those_that_were_counted(
        ticks in prop::collection::vec(prop::collection::vec((event(), 0..6_u32), 0..12), 1..20),
    ) {
        let start = Instant::now();
        let mut host = Host { running: BTreeMap::from([(0, 1), (1, 1), (2, 1)]), starts: 1 };
        let mut ledger = Ledger::new(vec![Selection::default()], true, start);
        let mut counted = (0, 0);
        for (second, events) in (1..).zip(&ticks) {
            let mut tick = ledger.open(start + Duration::from_secs(second));
            for (event, _) in events {
                match *event {
                    Event::Moves { cookie, loopback, bytes: (bytes_in, bytes_out), maker } => {
                        counted = (counted.0 + bytes_in, counted.1 + bytes_out);
                        let end = |port| Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), port);
                        let tuple = Tuple { protocol: Protocol::Tcp, source: end(cookie as u16), destination: end(80) };
                        let maker = maker.map(|pid| (pid, u64::from(loopback)));
                        let tuple = Some(tuple);
                        let time_wait = maker.is_none() && !loopback;
                        let socket = SocketBytes { cookie, loopback, tuple, bytes_in, bytes_out, time_wait, maker };
                        tick.socket(&socket, &mut host);
                    }
                    Event::Closes { cookie, pid } => {
                        tick.closed(ClosedSocket { cookie, pid, lingers: pid % 2 == 0 });
                    }
                    Event::Ends { pid } => {
                        host.running.remove(&pid);
                    }
                    Event::Starts { pid } => {
                        host.starts += 1;
                        host.running.insert(pid, host.starts);
                    }
                    Event::Overflows { bytes: (bytes_in, bytes_out) } => {
                        counted = (counted.0 + bytes_in, counted.1 + bytes_out);
                        tick.without_owner(Counters { original: bytes_out, reply: bytes_in });
                    }
                }
            }
            let mut tick = tick.attribute();
            let answers: Vec<u32> = events.iter().map(|(_, answer)| *answer).chain([0, 1, 2, 3, 4]).collect();
            for (end, answer) in tick.due(&mut host).into_iter().zip(answers.into_iter().cycle()) {
                let answer = match answer {
                    pid @ 0..3 => {
                        let handle = Some(Handle { inode: pid + 10, fd: 3 });
                        Answer::Held { pid, handle, connected: pid != 1 }
                    }
                    3 => Answer::Unowned(Reason::NoProcess),
                    _ => Answer::Unowned(Reason::Gone),
                };
                tick.resolved(end, answer, &mut |pid| host.identify(pid));
            }
            tick.close(&mut host);
            let readings = [ledger.readings(), ledger.unowned()].concat();
            let sum = readings.iter().fold((0, 0), |sum, reading| (sum.0 + reading.bytes_in, sum.1 + reading.bytes_out));
            prop_assert_eq!(sum, counted, "at tick {}", second);
        }
    }
}

/// The kernel makes some rows of a table before the program asks for them: what ends in between is in both.
#[test]
fn a_row_that_is_older_than_the_end_of_its_flow_counts_nothing_more() {
    let end = |port| Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), port);
    let original = Tuple { protocol: Protocol::Udp, source: end(1000), destination: end(53) };
    let counters = Some(Counters { original: 29, reply: 0 });
    let flow = Flow { original, reply: original.reversed(), id: 7, zone: 0, counters, open: true, socket: None };
    let start = Instant::now();
    let mut host = Host { running: BTreeMap::new(), starts: 0 };
    let mut ledger = Ledger::new(vec![Selection::default()], true, start);
    let mut sum_after = |second: u64, enter: &mut dyn FnMut(&mut OpenTick<'_>, &mut Host)| {
        let mut tick = ledger.open(start + Duration::from_secs(second));
        enter(&mut tick, &mut host);
        let mut tick = tick.attribute();
        for end in tick.due(&mut host) {
            tick.resolved(end, Answer::Unowned(Reason::NoProcess), &mut |_| Ok(None));
        }
        tick.close(&mut host);
        ledger.unowned().iter().map(|reading| reading.bytes_out).sum::<u64>()
    };
    let first = sum_after(1, &mut |tick, host| {
        tick.row(&flow);
        tick.table_continues();
        tick.ended(&flow, host);
    });
    assert_eq!(first, 29);
    assert_eq!(sum_after(2, &mut |tick, _| tick.row(&flow)), 29);
    // The kernel gives the next one the same number.
    let next = sum_after(3, &mut |tick, _| {
        tick.opened(&flow);
        tick.row(&flow);
    });
    assert_eq!(next, 58);
}
