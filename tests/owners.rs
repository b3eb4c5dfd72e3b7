//! Whose socket it is, on a /proc of our own making.

mod common {
    pub mod fake_proc;
}

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use bwmon::flow::{Endpoint, Protocol, Tuple};
use bwmon::owner::{Answer, Owners, Question, Reason};
use bwmon::process::Processes;
use common::fake_proc::{FakeProc, FakeProcess, socket_table};

/// A process with nothing special about it that holds `sockets`.
fn holder(pid: u32, sockets: &[u64]) -> FakeProcess<'_> {
    FakeProcess { pid, start_time: 100, command_line: b"server\0", sockets }
}

/// Which process holds each of `inodes`.
fn holders(proc: &FakeProc, inodes: impl IntoIterator<Item = u64>) -> Vec<(u64, u32)> {
    let mut wanted: HashSet<u64> = inodes.into_iter().collect();
    let found = Processes::new(proc.root()).holders(&mut wanted);
    assert!(found.keys().all(|inode| !wanted.contains(inode)));
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_unstable();
    found
}

fn name(proc: &FakeProc, pid: u32) -> Vec<u8> {
    Processes::new(proc.root()).identify(pid).unwrap().name.to_vec()
}

#[test]
fn a_socket_in_several_processes_belongs_to_the_youngest() {
    let proc = FakeProc::new();
    proc.write("loadavg", "0.1 0.2 0.3 1/99 400\n");
    for pid in [9, 120, 350] {
        proc.run(&holder(pid, &[7]));
    }
    proc.run(&holder(121, &[8]));
    assert_eq!(holders(&proc, [7, 8, 9]), [(7, 350), (8, 121)]);
}

#[test]
fn after_the_pids_began_again_the_youngest_has_a_low_one() {
    let proc = FakeProc::new();
    for pid in [9, 300, 301, 32000] {
        proc.run(&holder(pid, &[7]));
    }
    proc.write("loadavg", "0.1 0.2 0.3 1/99 300\n");
    assert_eq!(Processes::new(proc.root()).youngest_first(), [300, 9, 32000, 301]);
    assert_eq!(holders(&proc, [7]), [(7, 300)]);
}

#[test]
fn without_a_last_pid_the_highest_is_the_youngest() {
    let proc = FakeProc::new();
    for pid in [9, 300, 32000] {
        proc.run(&holder(pid, &[7]));
    }
    assert_eq!(holders(&proc, [7]), [(7, 32000)]);
    proc.write("loadavg", "what is this\n");
    assert_eq!(holders(&proc, [7]), [(7, 32000)]);
}

#[test]
fn what_vanished_or_is_no_process_is_passed_over() {
    let proc = FakeProc::new();
    proc.run(&holder(10, &[7]));
    // Gone between the listing and the look at it: the whole process, its descriptors, one descriptor.
    fs::create_dir(proc.process_dir(11)).unwrap();
    proc.run(&holder(12, &[]));
    fs::remove_dir_all(proc.process_dir(12).join("fd")).unwrap();
    proc.run(&holder(13, &[8]));
    fs::write(proc.process_dir(13).join("fd/9"), "no link").unwrap();
    proc.write("14", "no directory");
    proc.write("uptime", "1 1");
    assert_eq!(holders(&proc, [7, 8]), [(7, 10), (8, 13)]);
    assert_eq!(Processes::new(proc.root()).identify(11), None);
    assert_eq!(Processes::new(proc.root()).identify(99), None);
    assert_eq!(Processes::new("/nonexistent").youngest_first(), [0; 0]);
}

#[test]
fn a_descriptor_that_only_looks_like_a_socket_is_none() {
    let proc = FakeProc::new();
    proc.run(&holder(10, &[7]));
    for (at, target) in ["socket:[", "socket:[x]", "socket:[-7]", "[socket]:7", "/tmp/socket:[8]"].iter().enumerate() {
        std::os::unix::fs::symlink(target, proc.process_dir(10).join(format!("fd/{}", 50 + at))).unwrap();
    }
    assert_eq!(holders(&proc, [7, 8]), [(7, 10)]);
}

#[test]
fn another_users_descriptors_are_noticed_and_the_rest_is_found() {
    let proc = FakeProc::new();
    proc.run(&holder(10, &[7]));
    proc.run(&holder(11, &[8]));
    let closed = proc.process_dir(11).join("fd");
    let permit = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
    proc.write("net/tcp", socket_table(&[row(("10.0.0.1", 1), ("10.0.0.2", 2), 8)]));
    let look = || {
        let mut processes = Processes::new(proc.root());
        let found = processes.holders(&mut HashSet::from([7, 8]));
        let answer = Owners::from_files(proc.root()).answer(&[ask(Protocol::Tcp, ("10.0.0.1", 1), ("10.0.0.2", 2))]);
        (found, processes.some_unreadable(), answer)
    };

    permit(0o000);
    let (found, unreadable, answer) = as_ordinary_user(look);
    assert_eq!(found, [(7, 10)].into());
    assert!(unreadable);
    assert_eq!(answer, [Answer::Nobody(Reason::NotPermitted)]);

    permit(0o755);
    let (found, unreadable, answer) = as_ordinary_user(look);
    assert_eq!(found, [(7, 10), (8, 11)].into());
    assert!(!unreadable);
    assert_eq!(answer, [Answer::Held { pid: 11, connected: true }]);
}

/// Does what root would be permitted to as somebody who is not.
fn as_ordinary_user<T: Send>(look: impl FnOnce() -> T + Send) -> T {
    const NOBODY: u32 = 65534;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // The file system's idea of the user is this thread's own, and with it go the rights of root.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(NOBODY));
            look()
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_name_is_the_command_line_with_blanks() {
    let proc = FakeProc::new();
    let run = |pid, command_line| proc.run(&FakeProcess { pid, start_time: 1, command_line, sockets: &[] });
    run(10, b"curl\0-s\0http://example.com/\0");
    run(11, b"nginx: worker process\0\0\0");
    run(12, b"caf\xe9\0\xff\xfe\0");
    assert_eq!(name(&proc, 10), b"curl -s http://example.com/ ");
    assert_eq!(name(&proc, 11), b"nginx: worker process   ");
    assert_eq!(name(&proc, 12), b"caf\xe9 \xff\xfe ");
    assert!(!Processes::new(proc.root()).identify(12).unwrap().nameless);
}

#[test]
fn a_process_without_command_line_goes_by_its_short_name() {
    let proc = FakeProc::new();
    proc.run(&FakeProcess { pid: 10, start_time: 4711, command_line: b"", sockets: &[7] });
    for (comm, shown) in [
        (&b"kworker/0:1"[..], "[kworker/0:1]"),
        (b"a) S 1 (b", "[a) S 1 (b]"),
        (b"caf\xc3\xa9 x", "[caf\u{e9} x]"),
        (b"\xff", "[\u{fffd}]"),
        (b"", "[]"),
    ] {
        proc.name_task(10, 4711, comm);
        let identity = Processes::new(proc.root()).identify(10).unwrap();
        assert_eq!(identity.name.to_vec(), shown.as_bytes());
        assert_eq!((identity.pid, identity.start_time, identity.nameless), (10, 4711, true));
    }
    // Not even a file for it, as of a process of another user on a host that hides them.
    fs::remove_file(proc.process_dir(10).join("cmdline")).unwrap();
    assert_eq!(name(&proc, 10), b"[]");
}

#[test]
fn a_very_long_command_line_is_cut() {
    let proc = FakeProc::new();
    proc.run(&FakeProcess { pid: 10, start_time: 1, command_line: &b"java\0-cp\0".repeat(100_000), sockets: &[] });
    assert_eq!(name(&proc, 10).len(), 4096);
}

#[test]
fn a_pid_that_was_given_out_again_is_another_process() {
    let proc = FakeProc::new();
    let mut processes = Processes::new(proc.root());
    proc.run(&FakeProcess { pid: 10, start_time: 100, command_line: b"first\0", sockets: &[7] });
    assert!(processes.holds_a_socket(10, 100));
    proc.run(&FakeProcess { pid: 10, start_time: 250, command_line: b"second\0", sockets: &[7] });
    assert!(!processes.holds_a_socket(10, 100));
    assert!(processes.holds_a_socket(10, 250));
    proc.run(&FakeProcess { pid: 10, start_time: 250, command_line: b"second\0", sockets: &[] });
    assert!(!processes.holds_a_socket(10, 250));
    proc.end(10);
    assert!(!processes.holds_a_socket(10, 250));
}

#[test]
fn ten_thousand_processes_are_walked() {
    const COUNT: u32 = 10_000;
    let proc = FakeProc::new();
    for pid in 1..=COUNT {
        proc.run(&holder(pid, &[u64::from(pid) + 50_000]));
    }
    let found = holders(&proc, (50_001..).take(COUNT as usize + 1));
    assert_eq!(found.len(), COUNT as usize);
    assert!(found.iter().all(|&(inode, pid)| inode == u64::from(pid) + 50_000));
}

fn address((address, port): (&str, u16)) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}

/// A socket of the tables in /proc/net.
fn row(local: (&str, u16), remote: (&str, u16), inode: u64) -> (SocketAddr, SocketAddr, u8, u64) {
    (address(local), address(remote), 1, inode)
}

fn ask(protocol: Protocol, source: (&str, u16), destination: (&str, u16)) -> Question {
    let end = |end| Endpoint::new(address(end).ip(), address(end).port());
    Question::Tuple(Tuple { protocol, source: end(source), destination: end(destination) })
}

/// The pid that answers for the sockets with the inodes 1 to 9 is ten times that.
fn fake_host() -> FakeProc {
    let proc = FakeProc::new();
    for inode in 1..10 {
        proc.run(&holder(inode * 10, &[inode.into()]));
    }
    proc
}

fn held(pid: u32) -> Answer {
    Answer::Held { pid, connected: true }
}

fn held_unconnected(pid: u32) -> Answer {
    Answer::Held { pid, connected: false }
}

#[test]
fn tcp_sockets_are_found_by_both_ends_whatever_their_family() {
    let proc = fake_host();
    proc.write("net/tcp", socket_table(&[row(("10.0.0.1", 1), ("10.0.0.2", 80), 1)]));
    let dual_stack = row(("::ffff:10.0.0.1", 443), ("::ffff:10.0.0.3", 5), 2);
    proc.write("net/tcp6", socket_table(&[dual_stack, row(("fd00::1", 443), ("fd00::2", 5), 3)]));
    let answers = Owners::from_files(proc.root()).answer(&[
        ask(Protocol::Tcp, ("10.0.0.1", 1), ("10.0.0.2", 80)),
        ask(Protocol::Tcp, ("10.0.0.2", 80), ("10.0.0.1", 1)),
        ask(Protocol::Tcp, ("10.0.0.1", 443), ("10.0.0.3", 5)),
        ask(Protocol::Tcp, ("fd00::1", 443), ("fd00::2", 5)),
        ask(Protocol::Udp, ("10.0.0.1", 1), ("10.0.0.2", 80)),
        Question::Inode(9),
    ]);
    let nobody = Answer::Nobody(Reason::NoSocket);
    assert_eq!(answers, [held(10), nobody, held(20), held(30), nobody, held(90)]);
}

#[test]
fn udp_sockets_are_found_by_as_much_as_they_are_bound_to() {
    let proc = fake_host();
    proc.write(
        "net/udp",
        socket_table(&[
            row(("10.0.0.1", 53), ("10.0.0.2", 5), 1),
            row(("10.0.0.1", 53), ("0.0.0.0", 0), 2),
            row(("0.0.0.0", 53), ("0.0.0.0", 0), 3),
        ]),
    );
    proc.write("net/udp6", socket_table(&[row(("::", 123), ("::", 0), 4), row(("fd00::1", 53), ("::", 0), 5)]));
    let answers = Owners::from_files(proc.root()).answer(&[
        ask(Protocol::Udp, ("10.0.0.1", 53), ("10.0.0.2", 5)),
        ask(Protocol::Udp, ("10.0.0.1", 53), ("10.0.0.2", 6)),
        ask(Protocol::Udp, ("10.0.0.9", 53), ("10.0.0.2", 6)),
        ask(Protocol::Udp, ("10.0.0.1", 123), ("10.0.0.2", 6)),
        ask(Protocol::Udp, ("fd00::1", 53), ("fd00::2", 6)),
        ask(Protocol::Udp, ("10.0.0.1", 54), ("10.0.0.2", 6)),
    ]);
    let others = [20, 30, 40, 50].map(held_unconnected);
    assert_eq!(answers[0], held(10));
    assert_eq!(answers[1..5], others);
    assert_eq!(answers[5], Answer::Nobody(Reason::NoSocket));
}

#[test]
fn a_socket_that_no_process_holds_is_nobodys() {
    let proc = fake_host();
    let closed = (address(("10.0.0.1", 1)), address(("10.0.0.2", 80)), 6, 0);
    proc.write("net/tcp", socket_table(&[closed, row(("10.0.0.1", 2), ("10.0.0.2", 80), 77)]));
    let answers = Owners::from_files(proc.root()).answer(&[
        ask(Protocol::Tcp, ("10.0.0.1", 1), ("10.0.0.2", 80)),
        ask(Protocol::Tcp, ("10.0.0.1", 2), ("10.0.0.2", 80)),
        Question::Inode(0),
    ]);
    assert_eq!(answers, [Answer::Nobody(Reason::NoProcess); 3]);
}

#[test]
fn an_odd_row_does_not_empty_its_table() {
    let proc = fake_host();
    let good = socket_table(&[row(("10.0.0.1", 1), ("10.0.0.2", 80), 1), row(("10.0.0.1", 2), ("10.0.0.2", 80), 2)]);
    let (header, rows) = good.split_once('\n').unwrap();
    let (first, second) = rows.split_once('\n').unwrap();
    proc.write("net/tcp", format!("{header}\n{first}\n   9: 0100000A:ZZZZ 1\n\n{second}"));
    let answers = Owners::from_files(proc.root()).answer(&[
        ask(Protocol::Tcp, ("10.0.0.1", 1), ("10.0.0.2", 80)),
        ask(Protocol::Tcp, ("10.0.0.1", 2), ("10.0.0.2", 80)),
    ]);
    assert_eq!(answers, [held(10), held(20)]);
}
