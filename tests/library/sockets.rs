//! Which of the processes that had a socket gets its bytes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bwmon::attribution::{Answer, Identity, ProcessLookup};
use bwmon::kernel::bpf::packet_counters::{ClosedSocket, SocketBytes};
use bwmon::kernel::flow::{Counters, Endpoint, Flow, Protocol, Tuple};
use bwmon::kernel::process::{Handle, Process, Unreadable};
use bwmon::ledger::{Ledger, Selection};
use bwmon::traffic::source::Reading;
use bwmon::traffic::subject::Reason;

/// The processes that run, and their users. Whoever holds the socket is found by `holder`.
#[derive(Default)]
struct Host {
    running: BTreeMap<u32, u32>,
    holder: u32,
    out_of_descriptors: bool,
    /// Whether there are so many descriptors that no search gets to the socket, and how often one was made.
    has_too_many: bool,
    searches: u32,
}

impl ProcessLookup for Host {
    fn identify(&mut self, pid: u32) -> Result<Option<Identity>, Unreadable> {
        if self.out_of_descriptors {
            return Err(Unreadable);
        }
        let Some(&uid) = self.running.get(&pid) else { return Ok(None) };
        let command_line = format!("{pid}").into_bytes();
        let process = Process {
            pid,
            start_time: 1,
            command_line,
            nameless: false,
            uid: Some(uid),
            cgroup: None,
            executable: None,
        };
        Ok(Some(process.into()))
    }

    fn replaced_program(&mut self, _pid: u32, _at: u64) -> Option<Identity> {
        None
    }

    fn holds(&mut self, pid: u32, _handle: Handle) -> bool {
        self.running.contains_key(&pid)
    }

    fn has_sockets(&mut self, pid: u32, _start_time: u64) -> bool {
        self.running.contains_key(&pid)
    }

    fn closer(&mut self, pid: u32) -> Answer {
        Answer::Closed { pid, inherited: true }
    }

    fn closed_by(&mut self, _tuple: &Tuple) -> Option<Answer> {
        None
    }
}

fn tuple() -> Tuple {
    let end = |port| Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), port);
    Tuple { protocol: Protocol::Tcp, source: end(9), destination: end(80) }
}

/// One socket of a host, tick by tick.
struct Socket {
    cookie: u64,
    host: Host,
    ledger: Ledger,
    maker: Option<(u32, u64)>,
    /// Whether its packets pass the loopback interface.
    loopback: bool,
    /// Whether the other side has not closed the connection when a process closes the socket.
    lingers: bool,
    now: Instant,
}

impl Socket {
    fn new(running: &[(u32, u32)], maker: Option<u32>, holder: u32) -> Self {
        let now = Instant::now();
        let ledger = Ledger::new(vec![Selection::default()], true, now);
        let host = Host { running: running.iter().copied().collect(), holder, ..Host::default() };
        Self { cookie: 1, host, ledger, maker: maker.map(|pid| (pid, 0)), loopback: false, lingers: false, now }
    }

    /// A tick in which the socket sends `bytes_out`, and may be closed.
    fn tick(&mut self, bytes_out: u64, closer: Option<u32>) {
        self.tick_of(bytes_out, closer, false);
    }

    /// A tick in which the connection, whose socket is closed, sends `bytes_out`.
    fn tick_in_time_wait(&mut self, bytes_out: u64) {
        self.tick_of(bytes_out, None, true);
    }

    fn tick_of(&mut self, bytes_out: u64, closer: Option<u32>, time_wait: bool) {
        self.now += Duration::from_secs(1);
        let tuple = Some(tuple()).filter(|_| !time_wait);
        let maker = self.maker.filter(|_| !time_wait);
        let Self { cookie, loopback, .. } = *self;
        let socket = SocketBytes { cookie, loopback, tuple, bytes_in: 0, bytes_out, time_wait, maker };
        let mut tick = self.ledger.open(self.now);
        if let Some(pid) = closer {
            tick.closed(ClosedSocket { cookie: self.cookie, pid, lingers: self.lingers });
        }
        tick.socket(&socket, &mut self.host);
        let mut tick = tick.attribute();
        for end in tick.due(&mut self.host) {
            let handle = Some(Handle { inode: 10, fd: 3 });
            let held = Answer::Held { pid: self.host.holder, handle, connected: true };
            let answer = if self.host.has_too_many { Answer::Unowned(Reason::NotSearched) } else { held };
            self.host.searches += 1;
            tick.resolved(end, answer, &mut |pid| self.host.identify(pid));
        }
        tick.close(&mut self.host);
    }

    /// The bytes out of each process, by its pid.
    fn figures(&self) -> BTreeMap<String, u64> {
        let figure = |reading: &Reading| (String::from_utf8_lossy(&reading.subject.label()).into(), reading.bytes_out);
        self.ledger.readings().iter().map(figure).collect()
    }
}

/// The number of open connections of each process, by its pid.
fn connections(socket: &Socket) -> BTreeMap<String, u64> {
    let mut connections = BTreeMap::new();
    socket.ledger.each_detail(&mut |subject, detail, _| {
        connections.insert(String::from_utf8_lossy(&subject.label()).into(), detail.connections);
    });
    connections
}

fn figures<const N: usize>(expected: [(&str, u64); N]) -> BTreeMap<String, u64> {
    expected.map(|(pid, bytes)| (pid.to_owned(), bytes)).into()
}

#[test]
fn a_socket_that_was_accepted_is_handed_over_to_a_child_of_the_same_user() {
    let mut socket = Socket::new(&[(2, 1000), (3, 1000)], None, 2);
    socket.tick(100, None);
    socket.tick(50, Some(3));
    assert_eq!(socket.figures(), figures([("2", 100), ("3", 50)]));
}

#[test]
fn root_may_hand_a_socket_over_to_any_user() {
    let mut socket = Socket::new(&[(2, 0), (3, 1000)], None, 2);
    socket.tick(100, None);
    socket.tick(50, Some(3));
    assert_eq!(socket.figures(), figures([("2", 100), ("3", 50)]));
}

#[test]
fn a_process_that_only_closes_the_socket_of_another_user_gets_none_of_its_bytes() {
    let mut socket = Socket::new(&[(2, 1000), (3, 0)], None, 2);
    socket.tick(100, None);
    socket.tick(50, Some(3));
    assert_eq!(socket.figures(), figures([("2", 150)]));
}

#[test]
fn the_last_bytes_of_a_maker_are_its_own_when_a_child_has_a_copy() {
    let mut socket = Socket::new(&[(2, 1000), (3, 1000)], Some(2), 2);
    socket.tick(100, None);
    socket.host.running.remove(&2);
    socket.host.holder = 3;
    socket.tick(50, None);
    assert_eq!(socket.figures(), figures([("2", 150)]));
    // The child goes on with it.
    socket.tick(7, None);
    assert_eq!(socket.figures(), figures([("2", 150), ("3", 7)]));
}

#[test]
fn what_a_child_sends_long_after_its_parent_ended_is_the_childs() {
    let mut socket = Socket::new(&[(2, 1000), (3, 1000)], Some(2), 2);
    socket.tick(100, None);
    socket.host.running.remove(&2);
    socket.host.holder = 3;
    socket.tick(0, None);
    socket.tick(0, None);
    socket.tick(50, None);
    assert_eq!(socket.figures(), figures([("2", 100), ("3", 50)]));
}

#[test]
fn a_process_that_cannot_be_read_for_a_while_has_not_ended() {
    let mut socket = Socket::new(&[(2, 1000), (3, 1000)], None, 2);
    socket.tick(100, None);
    socket.host.out_of_descriptors = true;
    socket.host.holder = 3;
    (0..3).for_each(|_| socket.tick(10, None));
    socket.host.out_of_descriptors = false;
    socket.tick(10, None);
    assert_eq!(socket.figures(), figures([("2", 140)]));
}

#[test]
fn what_passes_in_time_wait_is_of_the_process_that_had_the_socket() {
    let mut socket = Socket::new(&[(2, 1000)], Some(2), 2);
    socket.lingers = true;
    socket.tick(100, Some(2));
    (0..100).for_each(|_| socket.tick(0, None));
    socket.tick_in_time_wait(52);
    assert_eq!(socket.figures(), figures([("2", 152)]));
    assert_eq!(socket.ledger.unowned(), []);
}

#[test]
fn what_passes_in_time_wait_is_no_ones_if_the_socket_is_not_known() {
    let mut socket = Socket::new(&[(2, 1000)], Some(2), 2);
    socket.tick(100, Some(2));
    (0..100).for_each(|_| socket.tick(0, None));
    socket.tick_in_time_wait(52);
    assert_eq!(socket.figures(), figures([("2", 100)]));
    let unowned: Vec<_> = socket.ledger.unowned().iter().map(|reading| reading.bytes_out).collect();
    assert_eq!(unowned, [52]);
}

#[test]
fn what_a_process_opened_since_the_last_tick_is_its_own_if_it_has_ended() {
    let mut socket = Socket::new(&[(2, 1000)], Some(2), 2);
    socket.tick(100, None);
    socket.host.running.remove(&2);
    for cookie in [2, 3] {
        socket.cookie = cookie;
        socket.tick_of(50, Some(2), false);
    }
    assert_eq!(socket.figures(), figures([("2", 150)]));
}

#[test]
fn a_socket_that_no_search_gets_to_is_searched_for_less_and_less_often_and_never_given_up() {
    let mut socket = Socket::new(&[(2, 1000)], None, 2);
    socket.host.has_too_many = true;
    (0..8).for_each(|_| socket.tick(1, None));
    assert_eq!(socket.host.searches, 8);
    (0..192).for_each(|_| socket.tick(1, None));
    assert!(socket.host.searches < 20, "{} searches in 200 ticks", socket.host.searches);
    socket.host.has_too_many = false;
    (0..32).for_each(|_| socket.tick(1, None));
    assert_eq!(socket.figures(), figures([("2", 232)]));
}

#[test]
fn a_connection_within_the_host_that_is_older_than_the_monitor_counts_once() {
    let mut socket = Socket::new(&[(2, 1000)], None, 2);
    let existing = Flow {
        original: tuple(),
        reply: tuple().reversed(),
        zone: 0,
        id: socket.cookie,
        counters: Some(Counters { original: 1000, reply: 0 }),
        open: true,
        socket: Some(10),
    };
    socket.ledger.open(socket.now).existing_socket(&existing);
    for loopback in [false, true] {
        socket.loopback = loopback;
        socket.tick(100, None);
        assert_eq!(connections(&socket), figures([("2", 1)]));
    }
    assert_eq!(socket.figures(), figures([("2", 1200)]));
}
