//! The owners of sockets, on a fake /proc.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use crate::fake_proc::{FakeProc, FakeProcess};
use crate::net_tables::{SocketRow, fib_trie, if_inet6, socket_table};
use bwmon::attribution::per_tick::TickLookup;
use bwmon::attribution::{Answer, Query};
use bwmon::kernel::flow::{Endpoint, Protocol, Tuple};
use bwmon::kernel::process::Processes;
use bwmon::traffic::subject::Reason;

/// An ordinary process that holds `sockets`.
fn holder(pid: u32, sockets: &[u32]) -> FakeProcess<'_> {
    FakeProcess { pid, start_time: 100, command_line: b"server\0", sockets }
}

/// The pid of the owner and whether the socket is the connection's own, or the reason why there is no owner: `None` where
/// the address is not on this host.
type Found = Result<(u32, bool), Option<Reason>>;

const ELSEWHERE: Found = Err(None);

fn answers(proc: &FakeProc, queries: impl IntoIterator<Item = Query>) -> Vec<Found> {
    let found = |answer| match answer {
        Answer::Held { pid, connected, .. } => Ok((pid, connected)),
        Answer::Closed { pid, .. } => panic!("{pid} is said to have closed it"),
        Answer::Unowned(reason) => Err(Some(reason)),
        Answer::Elsewhere => ELSEWHERE,
    };
    TickLookup::from_files(proc.root()).resolve(queries.into_iter(), Vec::new()).into_iter().map(found).collect()
}

/// Which process holds each of `inodes`.
fn holders(proc: &FakeProc, inodes: impl IntoIterator<Item = u32>) -> Vec<Option<u32>> {
    let found = answers(proc, inodes.into_iter().map(Query::Inode));
    found.into_iter().map(|found| found.ok().map(|(pid, _)| pid)).collect()
}

fn name(proc: &FakeProc, pid: u32) -> Vec<u8> {
    Processes::new(proc.root()).read(pid).unwrap().unwrap().command_line
}

#[test]
fn a_socket_in_several_processes_belongs_to_the_youngest() {
    let proc = FakeProc::new();
    proc.write("loadavg", "0.1 0.2 0.3 1/99 400\n");
    for pid in [9, 120, 350] {
        proc.run(&holder(pid, &[7]));
    }
    proc.run(&holder(121, &[8]));
    assert_eq!(holders(&proc, [7, 8, 9]), [Some(350), Some(121), None]);
}

#[test]
fn after_the_pids_have_wrapped_the_youngest_process_has_a_low_pid() {
    let proc = FakeProc::new();
    for pid in [9, 300, 301, 32000] {
        proc.run(&holder(pid, &[7]));
    }
    proc.write("loadavg", "0.1 0.2 0.3 1/99 300\n");
    assert_eq!(Processes::new(proc.root()).youngest_first(), [300, 9, 32000, 301]);
    assert_eq!(holders(&proc, [7]), [Some(300)]);
}

#[test]
fn where_the_last_pid_is_unknown_the_highest_is_the_youngest() {
    let proc = FakeProc::new();
    for pid in [9, 300, 32000] {
        proc.run(&holder(pid, &[7]));
    }
    assert_eq!(holders(&proc, [7]), [Some(32000)]);
    proc.write("loadavg", "what is this\n");
    assert_eq!(holders(&proc, [7]), [Some(32000)]);
}

#[test]
fn processes_that_have_ended_and_other_files_are_skipped() {
    let proc = FakeProc::new();
    proc.run(&holder(10, &[7]));
    // These end between the listing and the look at them: the whole process, its descriptors, one descriptor.
    fs::create_dir(proc.process_dir(11)).unwrap();
    proc.run(&holder(12, &[]));
    fs::remove_dir_all(proc.process_dir(12).join("fd")).unwrap();
    proc.run(&holder(13, &[8]));
    fs::write(proc.process_dir(13).join("fd/9"), "no link").unwrap();
    proc.write("14", "no directory");
    proc.write("uptime", "1 1");
    assert_eq!(holders(&proc, [7, 8]), [Some(10), Some(13)]);
    assert_eq!(Processes::new(proc.root()).read(11), Ok(None));
    assert_eq!(Processes::new(proc.root()).read(99), Ok(None));
    assert_eq!(Processes::new("/nonexistent").youngest_first(), [0; 0]);
}

#[test]
fn a_link_that_only_looks_like_a_sockets_is_not_a_socket() {
    let proc = FakeProc::new();
    proc.run(&holder(10, &[7]));
    for (at, target) in ["socket:[", "socket:[x]", "socket:[-7]", "[socket]:7", "/tmp/socket:[8]"].iter().enumerate() {
        std::os::unix::fs::symlink(target, proc.process_dir(10).join(format!("fd/{}", 50 + at))).unwrap();
    }
    assert_eq!(holders(&proc, [7, 8]), [Some(10), None]);
}

#[test]
fn unreadable_descriptors_are_noticed_and_other_owners_are_found() {
    let proc = FakeProc::new();
    proc.run(&holder(10, &[7]));
    proc.run(&holder(11, &[8]));
    let closed = proc.process_dir(11).join("fd");
    let permit = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
    proc.write("net/tcp", socket_table(&[row(("10.0.0.1", 1), ("10.0.0.2", 2), 8)]));
    let look = || answers(&proc, [Query::Inode(7), ask(Protocol::Tcp, ("10.0.0.1", 1), ("10.0.0.2", 2))]);

    permit(0o000);
    assert_eq!(as_ordinary_user(look), [Ok((10, true)), Err(Some(Reason::NotPermitted))]);
    permit(0o755);
    assert_eq!(as_ordinary_user(look), [Ok((10, true)), Ok((11, true))]);
}

/// Calls `look` without the rights of root.
fn as_ordinary_user<T: Send>(look: impl FnOnce() -> T + Send) -> T {
    const NOBODY: u32 = 65534;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // The thread's file system uid; when it is not 0, the kernel drops the capabilities for files (capabilities(7)).
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(NOBODY));
            look()
        });
        thread.join().unwrap()
    })
}

#[test]
fn nul_bytes_of_a_command_line_are_shown_as_blanks() {
    let proc = FakeProc::new();
    let run = |pid, command_line| proc.run(&FakeProcess { pid, start_time: 1, command_line, sockets: &[] });
    run(10, b"curl\0-s\0http://example.com/\0");
    run(11, b"nginx: worker process\0\0\0");
    run(12, b"caf\xe9\0\xff\xfe\0");
    assert_eq!(name(&proc, 10), b"curl -s http://example.com/ ");
    assert_eq!(name(&proc, 11), b"nginx: worker process   ");
    assert_eq!(name(&proc, 12), b"caf\xe9 \xff\xfe ");
    assert!(!Processes::new(proc.root()).read(12).unwrap().unwrap().nameless);
}

#[test]
fn a_process_without_a_command_line_is_shown_by_its_short_name() {
    let proc = FakeProc::new();
    proc.run(&FakeProcess { pid: 10, start_time: 4711, command_line: b"", sockets: &[7] });
    for (comm, shown) in [
        (&b"kworker/0:1"[..], &b"[kworker/0:1]"[..]),
        (b"a) S 1 (b", b"[a) S 1 (b]"),
        (b"caf\xc3\xa9 x", b"[caf\xc3\xa9 x]"),
        (b"\xff", b"[\xff]"),
        (b"", b"[]"),
    ] {
        proc.name_task(10, 4711, comm);
        let process = Processes::new(proc.root()).read(10).unwrap().unwrap();
        assert_eq!(process.command_line, shown);
        assert_eq!((process.pid, process.start_time, process.nameless), (10, 4711, true));
    }
    // Nor may the file be read, as that of another user's process on a host that hides them.
    fs::remove_file(proc.process_dir(10).join("cmdline")).unwrap();
    assert_eq!(name(&proc, 10), b"[]");
}

#[test]
fn a_very_long_command_line_is_truncated() {
    let proc = FakeProc::new();
    proc.run(&FakeProcess { pid: 10, start_time: 1, command_line: &b"java\0-cp\0".repeat(100_000), sockets: &[] });
    assert_eq!(name(&proc, 10).len(), 32 * 1024);
}

#[test]
fn a_process_with_the_pid_of_an_earlier_one_is_another_process() {
    let proc = FakeProc::new();
    let mut processes = Processes::new(proc.root());
    proc.run(&FakeProcess { pid: 10, start_time: 100, command_line: b"first\0", sockets: &[7] });
    assert!(processes.has_sockets(10, 100, &mut 1000));
    proc.run(&FakeProcess { pid: 10, start_time: 250, command_line: b"second\0", sockets: &[7] });
    assert!(!processes.has_sockets(10, 100, &mut 1000));
    assert!(processes.has_sockets(10, 250, &mut 1000));
    proc.run(&FakeProcess { pid: 10, start_time: 250, command_line: b"second\0", sockets: &[] });
    assert!(!processes.has_sockets(10, 250, &mut 1000));
    proc.end(10);
    assert!(!processes.has_sockets(10, 250, &mut 1000));
}

#[test]
fn the_owners_among_ten_thousand_processes_are_found() {
    const COUNT: u32 = 10_000;
    let proc = FakeProc::new();
    for pid in 1..=COUNT {
        proc.run(&holder(pid, &[pid + 50_000]));
    }
    // A tick searches as many as its time allows, and the next one goes on where it has ended.
    let mut lookup = TickLookup::from_files(proc.root());
    let mut found = vec![None; COUNT as usize + 1];
    for _ in 0..COUNT {
        let answers = lookup.resolve((50_001..).take(found.len()).map(Query::Inode), Vec::new());
        for (found, answer) in found.iter_mut().zip(answers) {
            if let Answer::Held { pid, .. } = answer {
                *found = Some(pid);
            }
        }
        if found[..COUNT as usize].iter().all(Option::is_some) {
            break;
        }
    }
    assert!(found.into_iter().eq((1..=COUNT).map(Some).chain([None])));
}

fn address((address, port): (&str, u16)) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}

/// A socket of the tables in /proc/net.
fn row(local: (&str, u16), remote: (&str, u16), inode: u32) -> SocketRow {
    (address(local), address(remote), 1, inode)
}

fn ask(protocol: Protocol, source: (&str, u16), destination: (&str, u16)) -> Query {
    let end = |end| Endpoint::new(address(end).ip(), address(end).port());
    Query::Tuple(Tuple { protocol, source: end(source), destination: end(destination) })
}

/// A host with the addresses 10.0.0.1, 10.0.0.9 and fd00::1, where the processes 10 to 90 hold the sockets with the inodes
/// 1 to 9.
fn fake_host() -> FakeProc {
    let proc = FakeProc::new();
    proc.write("net/fib_trie", fib_trie(&["10.0.0.1", "10.0.0.9"]));
    proc.write("net/if_inet6", if_inet6(&["fd00::1"]));
    for inode in 1..10 {
        proc.run(&holder(inode * 10, &[inode]));
    }
    proc
}

/// This process owns the connection's own socket.
fn own(pid: u32) -> Found {
    Ok((pid, true))
}

#[test]
fn tcp_sockets_of_both_families_are_found_by_their_two_ends() {
    let proc = fake_host();
    proc.write("net/tcp", socket_table(&[row(("10.0.0.1", 1), ("10.0.0.2", 80), 1)]));
    let dual_stack = row(("::ffff:10.0.0.1", 443), ("::ffff:10.0.0.3", 5), 2);
    proc.write("net/tcp6", socket_table(&[dual_stack, row(("fd00::1", 443), ("fd00::2", 5), 3)]));
    let answers = answers(
        &proc,
        [
            ask(Protocol::Tcp, ("10.0.0.1", 1), ("10.0.0.2", 80)),
            ask(Protocol::Tcp, ("10.0.0.2", 80), ("10.0.0.1", 1)),
            ask(Protocol::Tcp, ("10.0.0.1", 443), ("10.0.0.3", 5)),
            ask(Protocol::Tcp, ("fd00::1", 443), ("fd00::2", 5)),
            ask(Protocol::Udp, ("10.0.0.1", 1), ("10.0.0.2", 80)),
            Query::Inode(9),
        ],
    );
    assert_eq!(answers, [own(10), ELSEWHERE, own(20), own(30), Err(Some(Reason::Gone)), own(90)]);
}

#[test]
fn udp_sockets_are_found_by_the_ends_that_they_are_bound_to() {
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
    let answers = answers(
        &proc,
        [
            ask(Protocol::Udp, ("10.0.0.1", 53), ("10.0.0.2", 5)),
            ask(Protocol::Udp, ("10.0.0.1", 53), ("10.0.0.2", 6)),
            ask(Protocol::Udp, ("10.0.0.9", 53), ("10.0.0.2", 6)),
            ask(Protocol::Udp, ("10.0.0.1", 123), ("10.0.0.2", 6)),
            ask(Protocol::Udp, ("fd00::1", 53), ("fd00::2", 6)),
            ask(Protocol::Udp, ("10.0.0.1", 54), ("10.0.0.2", 6)),
            // A socket for all addresses of this host does not own the same port of another host.
            ask(Protocol::Udp, ("10.0.0.2", 53), ("10.0.0.1", 5)),
        ],
    );
    let others = [20, 30, 40, 50].map(|pid| Ok((pid, false)));
    assert_eq!(answers[0], own(10));
    assert_eq!(answers[1..5], others);
    assert_eq!(answers[5..], [Err(Some(Reason::Gone)), ELSEWHERE]);
}

#[test]
fn a_socket_that_no_process_holds_has_no_owner_and_a_reason() {
    let proc = fake_host();
    let closed = (address(("10.0.0.1", 1)), address(("10.0.0.2", 80)), 6, 0);
    proc.write("net/tcp", socket_table(&[closed, row(("10.0.0.1", 2), ("10.0.0.2", 80), 77)]));
    let answers = answers(
        &proc,
        [
            ask(Protocol::Tcp, ("10.0.0.1", 1), ("10.0.0.2", 80)),
            ask(Protocol::Tcp, ("10.0.0.1", 2), ("10.0.0.2", 80)),
            Query::Inode(0),
        ],
    );
    assert_eq!(answers, [Err(Some(Reason::Gone)), Err(Some(Reason::NoProcess)), Err(Some(Reason::Gone))]);
}

#[test]
fn a_malformed_row_loses_no_other_row_of_its_table() {
    let proc = fake_host();
    let good = socket_table(&[row(("10.0.0.1", 1), ("10.0.0.2", 80), 1), row(("10.0.0.1", 2), ("10.0.0.2", 80), 2)]);
    let (header, rows) = good.split_once('\n').unwrap();
    let (first, second) = rows.split_once('\n').unwrap();
    proc.write("net/tcp", format!("{header}\n{first}\n   9: 0100000A:ZZZZ 1\n\n{second}"));
    let answers = answers(
        &proc,
        [ask(Protocol::Tcp, ("10.0.0.1", 1), ("10.0.0.2", 80)), ask(Protocol::Tcp, ("10.0.0.1", 2), ("10.0.0.2", 80))],
    );
    assert_eq!(answers, [own(10), own(20)]);
}
