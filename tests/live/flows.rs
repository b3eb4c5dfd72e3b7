//! Flows that are easily mistaken for each other, and bytes without an owner.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bwmon::kernel::conntrack::Table;
use bwmon::kernel::flow::{Endpoint, Tuple};
use bwmon::monitor::advice::ENABLE_COMMANDS;
use nix::sys::signal::Signal;
use nix::sys::socket::{self, ControlMessage, MsgFlags, SockaddrIn, sockopt};
use serde_json::Value;

use crate::common::program::{DEADLINE, Running, wait_for};
use crate::support::harness::{Outcome, needs_bpf, needs_command, stranger};
use crate::support::monitor::{Figures, Monitor, RUNMONITOR};
use crate::support::netns::{Namespace, address, host_and_remote};
use crate::support::role::{start_role, stay, tag, tell, told};
use crate::support::scene::{ANSWER, REQUEST, Scene, ask, less, serve, serve_once};
use crate::support::truth::{Bytes, Truth};

/// How often a connection follows between the same two ports.
const AGAIN: usize = 20;

/// Plays the roles of this module, and says whether `role` is one.
pub fn play(role: &[&str]) -> bool {
    match *role {
        // Closes every second connection first, so that the client's port is free at once, and the others after the client.
        ["serve", port, times] => {
            let listener = TcpListener::bind(("0.0.0.0", port.parse().unwrap())).unwrap();
            tell(listener.local_addr().unwrap().port());
            for n in 0..times.parse().unwrap() {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(serve_once(&mut stream));
                if n % 2 == 1 {
                    let _ = stream.read(&mut [0]);
                }
            }
            stay();
        }
        ["join", port] => {
            let listener = socket(None);
            socket::setsockopt(&listener, sockopt::ReusePort, &true).unwrap();
            bind(&listener, port.parse().unwrap());
            socket::listen(&listener, socket::Backlog::new(16).unwrap()).unwrap();
            let listener = TcpListener::from(listener);
            tell(listener.local_addr().unwrap().port());
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                tell(stream.peer_addr().unwrap().port());
                std::thread::spawn(move || serve(&mut stream));
            }
        }
        ["ask", address] => ask(&mut TcpStream::connect(address).unwrap()),
        ["ask", address, "and", "stay"] => {
            let mut stream = TcpStream::connect(address).unwrap();
            ask(&mut stream);
            tell(0);
            stay();
        }
        ["let", "go"] => {
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            tell(listener.local_addr().unwrap().port());
            let (stream, _) = listener.accept().unwrap();
            // No process holds a descriptor that is in a message between two sockets.
            let (sender, _receiver) = UnixStream::pair().unwrap();
            let fds = [stream.as_raw_fd()];
            let message = [ControlMessage::ScmRights(&fds)];
            let bytes = [io::IoSlice::new(b"x")];
            socket::sendmsg::<()>(sender.as_raw_fd(), &bytes, &message, MsgFlags::empty(), None).unwrap();
            drop((stream, listener));
            tell(0);
            stay();
        }
        _ => return false,
    }
    true
}

/// A TCP socket, in a namespace or here.
fn socket(namespace: Option<&Namespace>) -> OwnedFd {
    let make =
        || socket::socket(socket::AddressFamily::Inet, socket::SockType::Stream, socket::SockFlag::SOCK_CLOEXEC, None);
    let socket = namespace.map_or_else(make, |namespace| namespace.run(make)).unwrap();
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    socket
}

fn bind(socket: &OwnedFd, port: u16) {
    socket::bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port)).unwrap();
}

/// A client of the remote host that is bound to a port and not yet connected.
fn client(scene: &Scene) -> (OwnedFd, u16) {
    let client = socket(Some(scene.remote));
    bind(&client, 0);
    let port = socket::getsockname::<SockaddrIn>(client.as_raw_fd()).unwrap().port();
    (client, port)
}

fn connect(client: OwnedFd, port: u16) -> nix::Result<TcpStream> {
    let [host_v4, _] = address(1);
    let server: SocketAddr = format!("{host_v4}:{port}").parse().unwrap();
    socket::connect(client.as_raw_fd(), &socket::SockaddrStorage::from(server))?;
    Ok(client.into())
}

pub fn a_connection_of_the_host_with_its_own_address_is_local() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &["--ignore-local"]);
    let mut sockets = Monitor::start(&["--ignore-local", "--source=sockets"]);
    let near = start_role(host, "near", "serve 0 1");
    let [own_address, _] = address(1);
    let local = start_role(host, "local", &format!("ask {own_address}:{}", told(&near)));
    assert!(local.end().0.success());
    let (_far, port) = scene.server("far", "far", "serve 0 1");
    let mut stream = scene.connect(port);
    ask(&mut stream);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    drop(stream);
    scene.wait_for_all("far", "far");
    sockets.wait_until(|figures| {
        let all = |&(bytes_in, bytes_out): &(u64, u64)| bytes_in >= REQUEST as u64 && bytes_out >= ANSWER as u64;
        if figures.get("far").is_some_and(all) { Ok(()) } else { Err("all of far".to_owned()) }
    });
    for figures in [&scene.monitor.figures, &sockets.figures] {
        assert!(["near", "local"].iter().all(|name| !figures.contains_key(*name)), "{figures:#?}");
    }
}

pub fn a_new_connection_between_the_same_two_ports_is_another_flow() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (first, port) = scene.server("again", "first", "serve 0 1");
    let (_, from) = client(&scene);
    let again = || {
        // The port is free when the kernel has seen the end of the connection before.
        wait_for("the port to be free", || {
            let client = socket(Some(remote));
            bind(&client, from);
            connect(client, port).ok()
        })
    };
    let mut stream = again();
    ask(&mut stream);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    drop(stream);
    scene.wait_for_all("again", "first");
    let firsts = scene.bytes("again");
    drop(first);

    let second = start_role(host, "second", &format!("serve {port} {AGAIN}"));
    told(&second);
    for n in 0..AGAIN {
        let mut stream = again();
        ask(&mut stream);
        // Some end in TIME_WAIT, some with a reset.
        if n % 2 == 0 {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        } else {
            let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            socket::setsockopt(&stream, sockopt::Linger, &at_once).unwrap();
        }
    }
    // Conntrack does not count a packet that it takes for an answer in the connection before: a few without payload.
    let truth = &scene.truth;
    scene.monitor.wait_until(|figures| {
        let seconds = less(truth.bytes()["again"], firsts);
        let near = |shown: u64, all: u64| shown <= all && (all - shown) * 100 <= all;
        let fine = |&(a, b): &Bytes| near(a, seconds.0) && near(b, seconds.1);
        if figures.get("second").is_some_and(fine) { Ok(()) } else { Err(format!("{seconds:?}")) }
    });
    assert_eq!(scene.monitor.figures["first"], firsts);
}

pub fn servers_that_share_a_port_are_credited_with_their_own_connections() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let one = start_role(host, "group_one", "join 0");
    let port = told(&one);
    let other = start_role(host, "group_other", &format!("join {port}"));
    assert_eq!(told(&other), port);

    let mut ports = [Vec::new(), Vec::new()];
    let mut streams = Vec::new();
    // The kernel chooses the server by a hash of the ports, so that both have their turn.
    while ports.iter().any(|ports| ports.len() < 2) {
        let (client, from) = client(&scene);
        scene.truth.count(&format!("p{from}"), "tcp", from);
        let mut stream = connect(client, port).unwrap();
        ask(&mut stream);
        streams.push(stream);
        wait_for("one of them to accept it", || {
            for (ports, member) in ports.iter_mut().zip([&one, &other]) {
                let said = member.stdout.so_far();
                ports.extend(said.iter().filter_map(|line| line.parse::<u16>().ok()));
            }
            (ports.concat().len() == streams.len()).then_some(())
        });
    }
    for _ in 0..2 {
        streams.iter_mut().for_each(ask);
        let truth = &scene.truth;
        scene.monitor.wait_for(|| {
            let bytes = truth.bytes();
            // Here the counters are named after the client's port, and count from its point of view.
            let of = |ports: &[u16]| {
                ports
                    .iter()
                    .map(|port| bytes[&format!("p{port}")])
                    .fold((0, 0), |(a, b), (to, from)| (a + from, b + to))
            };
            Figures::from([("group_one".into(), of(&ports[0])), ("group_other".into(), of(&ports[1]))])
        });
    }
}

pub fn counters_that_are_reset_to_zero_lose_no_byte_and_count_none_twice() -> Outcome {
    needs_command("conntrack", &["--version"])?;
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (_server, port) = scene.server("zeroed", "server", "join 0");
    let mut stream = scene.connect(port);
    ask(&mut stream);
    for zero in ["conntrack -L -z >/dev/null", ""] {
        // The same at two ticks: the monitor has seen the last packet, and the counters as they are now.
        for _ in 0..2 {
            scene.wait_for_all("zeroed", "server");
        }
        host.shell(zero);
    }
    ask(&mut stream);
    scene.wait_for_all("zeroed", "server");
    Ok(())
}

pub fn a_table_that_is_flushed_loses_no_byte_and_counts_none_twice() -> Outcome {
    needs_command("conntrack", &["--version"])?;
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (_server, port) = scene.server("flushed", "server", "join 0");
    let mut stream = scene.connect(port);
    for _ in 0..3 {
        ask(&mut stream);
        for _ in 0..2 {
            scene.wait_for_all("flushed", "server");
        }
        host.shell("conntrack -F");
    }
    ask(&mut stream);
    scene.wait_for_all("flushed", "server");
    Ok(())
}

/// The messages that the kernel has dropped because a netlink socket of netfilter was full (/proc/net/netlink).
fn dropped(namespace: &Namespace) -> u64 {
    let table = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
    let rows = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[1] == "12").map(|row| row[8].parse::<u64>().unwrap()).sum()
}

/// The kernel drops events of conntrack while nobody reads them (ENOBUFS).
pub fn events_that_the_kernel_drops_cost_no_byte() {
    let host = &Namespace::here();
    // None ends before it was seen, however slow the machine is.
    host.shell(&format!("{ENABLE_COMMANDS} && sysctl -w net.netfilter.nf_conntrack_udp_timeout=3600"));
    let mut command = Command::new(RUNMONITOR);
    let mut monitor = Running::start(command.args(["--source=conntrack", "--unowned", "--json"]));
    let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
    let to_all_ports = |last: u8| {
        for port in 1..=u16::MAX {
            sender.send_to(b"x", (Ipv4Addr::new(127, 0, 0, last), port)).unwrap();
        }
    };
    // Each of these connections has one packet of 29 bytes. Some have an owner and some are still to be looked up.
    let wait_for = |monitor: &mut Running, addresses: u64| {
        let (sent, give_up) = (addresses * u64::from(u16::MAX) * (20 + 8 + 1), Instant::now() + DEADLINE);
        let mut shown = 0;
        while shown != sent {
            assert!(Instant::now() < give_up, "it shows {shown} bytes, not {sent}");
            shown = 0;
            loop {
                let record: Value = serde_json::from_str(&monitor.stdout.line()).unwrap();
                if record["kind"] == "tick" {
                    break;
                }
                shown += record["out_bytes_total"].as_u64().unwrap_or(0);
            }
        }
    };
    to_all_ports(1);
    wait_for(&mut monitor, 1);
    monitor.signal(Signal::SIGSTOP);
    let before = dropped(host);
    to_all_ports(2);
    assert!(dropped(host) > before, "the events of 65,535 connections fit into the socket's buffer");
    monitor.signal(Signal::SIGCONT);
    wait_for(&mut monitor, 2);
}

pub fn a_monitor_that_was_stopped_misses_nothing() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (_server, port) = scene.server("unwatched", "server", "join 0");
    let mut before = scene.connect(port);
    ask(&mut before);
    scene.wait_for_all("unwatched", "server");
    scene.monitor.program.signal(Signal::SIGSTOP);
    ask(&mut before);
    drop(before);
    for _ in 0..20 {
        ask(&mut scene.connect(port));
    }
    scene.monitor.program.signal(Signal::SIGCONT);
    scene.wait_for_all("unwatched", "server");
}

pub fn without_descriptors_it_says_so_and_goes_on_as_soon_as_there_are_some() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (_server, port) = scene.server("wanted", "server", "join 0");
    ask(&mut scene.connect(port));
    scene.wait_for_all("wanted", "server");
    let pid = scene.monitor.program.child.id();
    // No more than it has already.
    let limit = |soft: &str| {
        host.shell(&format!("prlimit --pid {pid} --nofile={soft}:"));
    };
    limit("3");
    let mut stream = scene.connect(port);
    ask(&mut stream);
    wait_for("a note", || {
        let said = scene.monitor.program.stderr.so_far();
        said.into_iter().find(|line| line.contains("out of file descriptors"))
    });
    limit("1024");
    ask(&mut stream);
    scene.wait_for_all("wanted", "server");
}

pub fn containers_that_start_and_end_while_it_runs_are_credited() {
    run_containers(&[Life::Stays, Life::Stays]);
}

pub fn a_container_that_ends_at_once_is_credited() -> Outcome {
    needs_bpf()?;
    run_containers(&[Life::Stays, Life::EndsAtOnce, Life::Stays]);
    Ok(())
}

/// How long a container's process lives.
#[derive(Clone, Copy, PartialEq)]
enum Life {
    /// Until the monitor has shown its bytes.
    Stays,
    /// Until it has its answer.
    EndsAtOnce,
}

/// Runs containers one after the other, all with the same addresses, and waits until each is credited with its bytes.
fn run_containers(lives: &[Life]) {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    host.shell(
        "sysctl -w net.ipv4.ip_forward=1; nft 'add table ip nat; \
         add chain ip nat out { type nat hook postrouting priority 100; }; \
         add rule ip nat out oifname cable masquerade'",
    );
    let [[gateway, _], [remote_v4, _]] = [5, 2].map(address);
    for (n, &life) in lives.iter().enumerate() {
        let listener = remote.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
        let server = listener.local_addr().unwrap().port();
        let (flow, name) = (format!("flow{n}"), format!("container{n}"));
        scene.truth.count(&flow, "tcp", server);
        let thread = std::thread::spawn(move || serve(&mut listener.accept().unwrap().0));
        let container = Namespace::new();
        host.connect("bridge", address(5), &container, address(6));
        container.shell(&format!("ip route add default via {gateway}"));
        let manner = if life == Life::EndsAtOnce { "" } else { " and stay" };
        let mut role = start_role(&container, &name, &format!("ask {remote_v4}:{server}{manner}"));
        if life == Life::EndsAtOnce {
            assert!(role.child.wait().unwrap().success());
        } else {
            told(&role);
            wait_for_client(&mut scene, &flow, &name);
        }
        drop((role, container));
        thread.join().unwrap();
        wait_for("the container's network to go", || {
            let gone = host.run(|| Command::new("ip").args(["link", "show", "bridge"]).output().unwrap());
            (!gone.status.success()).then_some(())
        });
        wait_for_client(&mut scene, &flow, &name);
    }
}

/// Waits until this command line has all bytes of a flow whose server is on another host.
fn wait_for_client(scene: &mut Scene, flow: &str, command_line: &str) {
    let truth = &scene.truth;
    scene.monitor.wait_for(|| {
        let (to_server, from_server) = truth.bytes()[flow];
        Figures::from([(command_line.into(), (from_server, to_server))])
    });
}

pub fn bytes_without_an_owner_are_shown_with_the_reason() {
    let (host, remote) = &host_and_remote();
    host.shell(ENABLE_COMMANDS);
    let truth = Truth::new(host);
    // The host forwards this flow. No process is in the namespaces of its ends.
    let other = Namespace::new();
    host.connect("bridge", address(5), &other, address(6));
    host.shell("sysctl -w net.ipv4.ip_forward=1");
    let [[here, _], [gateway, _], [other_v4, _]] = [1, 5, 6].map(address);
    remote.shell(&format!("ip route add {other_v4} via {here}"));
    other.shell(&format!("ip route add default via {gateway}"));
    let listener = other.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
    let forwarded_to = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || serve(&mut listener.accept().unwrap().0));

    let letting_go = start_role(host, "server", "let go");
    let port = told(&letting_go);
    truth.count("nobodys", "tcp", port);
    truth.count("forwarded", "tcp", forwarded_to);
    let mut nobodys = remote.run(|| TcpStream::connect(format!("{here}:{port}")).unwrap());
    told(&letting_go);

    let mut monitor = Monitor::start(&["--source=conntrack", "--unowned"]);
    let mut forwarded = remote.run(|| TcpStream::connect(format!("{other_v4}:{forwarded_to}")).unwrap());
    ask(&mut forwarded);
    // While there is a process whose descriptors it may not see, the monitor cannot say that no process holds a socket.
    let unreadable = std::fs::read_dir(format!("/proc/{}/fd", stranger()))
        .is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
    let of_nobodys = if unreadable { "(no permission to see the process)" } else { "(socket without process)" };
    let shown = |name: &str, reason: &str| {
        let (to_server, from_server) = truth.bytes()[name];
        // As the end on this host sees it, and a forwarded flow as its client does.
        let bytes = if name == "forwarded" { (from_server, to_server) } else { (to_server, from_server) };
        (reason.to_owned(), bytes)
    };
    nobodys.write_all(&[7; REQUEST]).unwrap();
    monitor
        .wait_for(|| Figures::from([shown("nobodys", of_nobodys), shown("forwarded", "(no local socket: forwarded)")]));
    drop(forwarded);
    thread.join().unwrap();
}

pub fn each_flow_of_the_table_can_be_queried_by_its_tuples() {
    Namespace::here().shell(ENABLE_COMMANDS);
    let mut open = Vec::new();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).unwrap();
        open.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let socket = UdpSocket::bind(address).unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
    }
    let mut table = Table::open(Path::new("/proc")).unwrap();
    let mut flows = Vec::new();
    let dump = table.dump(Instant::now() + Duration::from_secs(60), &mut |flow| flows.push(*flow)).unwrap();
    assert!(dump.complete);
    assert!(flows.len() >= 4, "{flows:?}");
    for flow in &flows {
        let mut got = Vec::new();
        table.get(&[flow.original, flow.original.reversed()], &mut |flow| got.push(*flow)).unwrap();
        // By its reply tuple too, which has its own direction.
        assert!(!got.is_empty() && got.iter().all(|got| got == flow), "{flow:?}: {got:?}");
    }
    let nowhere = Tuple { source: Endpoint::new(Ipv4Addr::LOCALHOST, 0), ..flows[0].original };
    table.get(&[nowhere], &mut |flow| panic!("{flow:?}")).unwrap();
}

pub fn a_new_process_has_a_rate_from_its_first_tick() {
    let (host, remote) = &host_and_remote();
    let scene = Scene::new(host, remote, &["--bandwidth"]);
    let (_server, port) = scene.server("new", "new_server", "serve 0 1");
    let mut stream = scene.connect(port);
    ask(&mut stream);
    // The answer is in one tick or in two. If the first had no rate, the sum would stay below half of it.
    let new_server = format!("new_server{} ", tag());
    let mut sum = 0;
    while sum < ANSWER / 3 {
        let line = scene.monitor.program.stdout.line();
        let (rates, name) = line.split_once(" -- ").unwrap();
        if name.starts_with(&new_server) {
            sum += rates.split_once('/').unwrap().1.trim().parse::<usize>().unwrap();
        }
    }
}
