//! The monitor on tables that the original misread, on a fake /proc.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::fake_proc::{FakeProc, FakeProcess};
use crate::net_tables::{fib_trie, if_inet6, socket_table};
use bwmon::ledger::Selection;
use bwmon::ledger::selection::Filter;
use bwmon::monitor::{Monitor, MonitorSettings};
use bwmon::python2::pattern::Pattern;
use bwmon::traffic::source::Source;

struct Host {
    proc: FakeProc,
    monitor: Monitor,
    now: Instant,
}

impl Host {
    /// A host with the addresses 10.0.0.1 and fd00::1 and without processes, and a monitor with one selection per filter.
    fn new(filters: Vec<Filter>) -> Self {
        let proc = FakeProc::new();
        proc.write("net/fib_trie", fib_trie(&["10.0.0.1"]));
        proc.write("net/if_inet6", if_inet6(&["fd00::1"]));
        let selections = filters.into_iter().map(|filter| Selection { filter, ignore_local: false }).collect();
        let settings = MonitorSettings { selections, lookback: true, ..MonitorSettings::default() };
        let monitor = Monitor::from_files(proc.root(), settings);
        Self { proc, monitor, now: Instant::now() }
    }

    /// A host with one process, `server`, which has one TCP connection from `local` to `remote`.
    fn with_server(local: &str, remote: &str) -> Self {
        let host = Self::new(vec![Filter::default()]);
        host.run(10, b"server\0", &[1]);
        host.sockets("tcp", &[(local, remote, 1)]);
        host
    }

    fn run(&self, pid: u32, command_line: &[u8], sockets: &[u32]) {
        self.proc.run(&FakeProcess { pid, start_time: 1, command_line, sockets });
    }

    /// Writes one of the tables in /proc/net: local end, remote end, inode.
    fn sockets(&self, table: &str, sockets: &[(&str, &str, u32)]) {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let rows = sockets.iter().map(|(local, remote, inode)| (address(local), address(remote), 1, *inode));
        self.proc.write(&format!("net/{table}"), socket_table(&rows.collect::<Vec<_>>()));
    }

    /// Lets a second pass. Returns the bytes that each command line has received and sent, and the notes for the user.
    fn tick(&mut self, conntrack: &[&str]) -> (Vec<(String, u64, u64)>, Vec<String>) {
        self.proc.write("net/nf_conntrack", conntrack.join("\n"));
        self.now += Duration::from_secs(1);
        let readings = self.monitor.read(self.now).unwrap();
        let name = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
        let mut figures: Vec<_> =
            readings.iter().map(|r| (name(&r.subject.label()), r.bytes_in, r.bytes_out)).collect();
        figures.sort();
        (figures, self.monitor.notes())
    }

    /// The same, at a tick without notes.
    fn figures(&mut self, conntrack: &[&str]) -> Vec<(String, u64, u64)> {
        let (figures, notes) = self.tick(conntrack);
        assert_eq!(notes, [""; 0]);
        figures
    }
}

fn figure(name: &str, bytes_in: u64, bytes_out: u64) -> (String, u64, u64) {
    (name.into(), bytes_in, bytes_out)
}

/// A line of conntrack: the connection of a client on another host to the server.
fn connection(bytes_in: u64, bytes_out: u64) -> String {
    format!(
        "tcp 6 9 ESTABLISHED src=10.0.0.2 dst=10.0.0.1 sport=40000 dport=80 packets=1 bytes={bytes_in} \
         src=10.0.0.1 dst=10.0.0.2 sport=80 dport=40000 packets=1 bytes={bytes_out} [ASSURED] use=1"
    )
}

fn host_of_the_server() -> Host {
    Host::with_server("10.0.0.1:80", "10.0.0.2:40000")
}

#[test]
fn udp_and_ipv6_are_counted() {
    let mut host = Host::new(vec![Filter::default()]);
    host.run(10, b"resolver\0", &[1, 2]);
    host.run(11, b"browser\0", &[3]);
    host.sockets("udp", &[("10.0.0.1:5000", "10.0.0.2:53", 1)]);
    host.sockets("udp6", &[("[::]:53", "[::]:0", 2)]);
    host.sockets("tcp6", &[("[fd00::1]:6000", "[fd00::2]:443", 3)]);
    let figures = host.figures(&[
        "udp 17 9 src=10.0.0.1 dst=10.0.0.2 sport=5000 dport=53 packets=1 bytes=60 src=10.0.0.2 dst=10.0.0.1 \
         sport=53 dport=5000 packets=1 bytes=600 use=1",
        "udp 17 9 src=fd00::9 dst=fd00::1 sport=7000 dport=53 packets=1 bytes=5 src=fd00::1 dst=fd00::9 sport=53 \
         dport=7000 packets=1 bytes=7 use=1",
        "tcp 6 9 ESTABLISHED src=fd00::1 dst=fd00::2 sport=6000 dport=443 packets=1 bytes=100 src=fd00::2 dst=fd00::1 \
         sport=443 dport=6000 packets=1 bytes=2000 use=1",
    ]);
    assert_eq!(figures, [figure("browser ", 2000, 100), figure("resolver ", 605, 67)]);
}

#[test]
fn a_server_behind_a_translated_address_is_found_by_the_reply_tuple() {
    let mut host = host_of_the_server();
    let figures = host
        .figures(&["tcp 6 9 ESTABLISHED src=10.0.0.2 dst=192.0.2.1 sport=40000 dport=8080 packets=1 bytes=300 \
         src=10.0.0.1 dst=10.0.0.2 sport=80 dport=40000 packets=1 bytes=4000 use=1"]);
    assert_eq!(figures, [figure("server ", 300, 4000)]);
}

#[test]
fn the_owner_of_a_dual_stack_socket_is_found() {
    let mut host = Host::new(vec![Filter::default()]);
    host.run(10, b"server\0", &[1]);
    host.sockets("tcp6", &[("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:40000", 1)]);
    assert_eq!(host.figures(&[&connection(5, 6)]), [figure("server ", 5, 6)]);
}

#[test]
fn a_row_that_a_dump_has_twice_counts_once() {
    let mut host = host_of_the_server();
    assert_eq!(host.figures(&[&connection(5, 6), &connection(5, 6)]), [figure("server ", 5, 6)]);
    // The second was read a moment later, with more bytes.
    assert_eq!(host.figures(&[&connection(10, 6), &connection(11, 6)]), [figure("server ", 11, 6)]);
}

#[test]
fn a_flow_that_one_dump_misses_counts_on_when_it_is_back() {
    let mut host = host_of_the_server();
    host.figures(&[&connection(5, 6)]);
    host.figures(&[]);
    assert_eq!(host.figures(&[&connection(7, 6)]), [figure("server ", 7, 6)]);
}

#[test]
fn entries_without_counters_are_ignored_while_others_have_them() {
    let mut host = host_of_the_server();
    let uncounted = "tcp 6 9 ESTABLISHED src=10.0.0.2 dst=10.0.0.1 sport=5 dport=80 src=10.0.0.1 dst=10.0.0.2 sport=80 \
                     dport=5 [ASSURED] use=1";
    assert_eq!(host.figures(&[uncounted, &connection(5, 6)]), [figure("server ", 5, 6)]);
}

#[test]
fn malformed_lines_are_reported_once_and_lose_nothing_else() {
    let mut host = host_of_the_server();
    let (figures, notes) = host.tick(&["tcp what\x1b[2J is this", &connection(5, 6), "udp 17 9 src=nowhere"]);
    assert_eq!(figures, [figure("server ", 5, 6)]);
    let said = "2 lines of the conntrack table cannot be read and are left out, the first: tcp what\\u{1b}[2J is this";
    assert_eq!(notes, [said]);
    assert_eq!(host.tick(&["tcp again", &connection(7, 6)]), (vec![figure("server ", 7, 6)], vec![]));
}

#[test]
fn the_last_bytes_of_an_ending_process_are_credited_to_it() {
    let mut host = host_of_the_server();
    host.figures(&[&connection(5, 6)]);
    // It is ending: its command line and its descriptors are gone.
    host.run(10, b"", &[]);
    host.sockets("tcp", &[]);
    assert_eq!(host.figures(&[&connection(8, 6)]), [figure("server ", 8, 6)]);
    host.proc.end(10);
    assert_eq!(host.figures(&[&connection(9, 6)]), [figure("server ", 9, 6)]);
}

#[test]
fn bytes_count_for_the_process_that_holds_the_connection_when_they_move() {
    let mut host = host_of_the_server();
    host.figures(&[&connection(5, 6)]);
    host.run(10, b"server\0", &[]);
    host.run(20, b"worker\0", &[1]);
    let figures = host.figures(&[&connection(25, 36)]);
    assert_eq!(figures, [figure("server ", 5, 6), figure("worker ", 20, 30)]);
}

#[test]
fn a_new_process_with_the_pid_of_an_earlier_one_does_not_get_its_bytes() {
    let mut host = host_of_the_server();
    host.figures(&[&connection(5, 6)]);
    host.proc.run(&FakeProcess { pid: 10, start_time: 2, command_line: b"stranger\0", sockets: &[] });
    host.sockets("tcp", &[]);
    assert_eq!(host.figures(&[&connection(8, 6)]), [figure("server ", 8, 6)]);
}

#[test]
fn bytes_that_several_selections_match_count_once() {
    let filter = |include: &str| Filter::new(vec![Pattern::new(include.as_bytes()).unwrap()], vec![]);
    let mut host = Host::new(vec![filter("serv"), filter("er"), filter("nothing")]);
    host.run(10, b"server\0", &[1]);
    host.sockets("tcp", &[("10.0.0.1:80", "10.0.0.2:40000", 1)]);
    assert_eq!(host.figures(&[&connection(5, 6)]), [figure("server ", 5, 6)]);
}
