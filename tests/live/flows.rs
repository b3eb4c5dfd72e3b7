//! Flows that are easily mistaken for each other, and bytes that are nobody's.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use bwmon::kernel::bpf::tcp_owners::TcpOwners;
use bwmon::kernel::conntrack::Table;
use bwmon::kernel::flow::{Endpoint, Tuple};
use bwmon::monitor::advice::ENABLE_COMMANDS;
use nix::sys::socket::{self, ControlMessage, MsgFlags, SockaddrIn, sockopt};

use crate::common::inside::{inside_each, inside_each_alone};
use crate::common::monitor::{Figures, Monitor};
use crate::common::netns::{Namespace, address, host_and_remote};
use crate::common::program::wait_for;
use crate::common::role::{self, start_role, stay, tell, told};
use crate::common::scene::{ANSWER, REQUEST, Scene, ask, less, serve, serve_once};
use crate::common::truth::{Bytes, Truth};

/// How often the same two ports are used again.
const AGAIN: usize = 20;

/// No test, but what the processes do that the tests start.
pub fn role() {
    let Some(role) = role::role() else { return };
    match role.split(' ').collect::<Vec<_>>()[..] {
        // Ends every second connection itself, so that the client's port is free at once, and waits for the others' end.
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
            // A descriptor that is on its way from one end to the other is nobody's.
            let (sender, _receiver) = UnixStream::pair().unwrap();
            let fds = [stream.as_raw_fd()];
            let message = [ControlMessage::ScmRights(&fds)];
            let bytes = [io::IoSlice::new(b"x")];
            socket::sendmsg::<()>(sender.as_raw_fd(), &bytes, &message, MsgFlags::empty(), None).unwrap();
            drop((stream, listener));
            tell(0);
            stay();
        }
        _ => panic!("{role}"),
    }
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

/// A client of the remote host that has a port, though no connection yet.
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

pub fn the_same_two_ports_again_are_another_flow() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (first, port) = scene.server("again", "first", "serve 0 1");
    let (_, from) = client(&scene);
    let again = || {
        // Until the kernel has seen the end of the connection before.
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
    // Conntrack leaves out what it takes for an answer to another connection: of 20 a few packets without payload.
    let truth = &scene.truth;
    scene.monitor.wait_until(|figures| {
        let seconds = less(truth.bytes()["again"], firsts);
        let near = |shown: u64, all: u64| shown <= all && (all - shown) * 100 <= all;
        let fine = |&(a, b): &Bytes| near(a, seconds.0) && near(b, seconds.1);
        if figures.get("second").is_some_and(fine) { Ok(()) } else { Err(format!("{seconds:?}")) }
    });
    assert_eq!(scene.monitor.figures["first"], firsts);
}

pub fn each_of_a_group_on_one_port_has_its_own() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let one = start_role(host, "group_one", "join 0");
    let port = told(&one);
    let other = start_role(host, "group_other", &format!("join {port}"));
    assert_eq!(told(&other), port);

    let mut ports = [Vec::new(), Vec::new()];
    let mut streams = Vec::new();
    // The kernel chooses by a hash of the ports, sooner or later the one and the other.
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
            // Here the counters' port is the client's.
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

pub fn counters_that_begin_again_cost_nothing_and_double_nothing() {
    if Command::new("conntrack").arg("--version").output().is_err() {
        let _ = writeln!(io::stderr(), "counters_that_begin_again… is skipped: there is no conntrack command");
        return;
    }
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (_server, port) = scene.server("zeroed", "server", "join 0");
    let mut stream = scene.connect(port);
    ask(&mut stream);
    for zero in ["conntrack -L -z >/dev/null", ""] {
        // At two ticks the same: nothing is on its way any more, and the counters are seen as they are.
        for _ in 0..2 {
            scene.wait_for_all("zeroed", "server");
        }
        host.shell(zero);
    }
    ask(&mut stream);
    scene.wait_for_all("zeroed", "server");
}

pub fn containers_come_and_go_while_it_runs() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    host.shell(
        "sysctl -w net.ipv4.ip_forward=1; nft 'add table ip nat; \
         add chain ip nat out { type nat hook postrouting priority 100; }; \
         add rule ip nat out oifname cable masquerade'",
    );
    let [[gateway, _], [remote_v4, _]] = [5, 2].map(address);
    let noted = TcpOwners::attach().is_ok();
    if !noted {
        let _ = writeln!(io::stderr(), "containers that end at once are left out: nobody notes who connects");
    }
    for n in 0..3 {
        let short = n % 2 == 1;
        if short && !noted {
            continue;
        }
        let listener = remote.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
        let server = listener.local_addr().unwrap().port();
        let (flow, name) = (format!("flow{n}"), format!("container{n}"));
        scene.truth.count(&flow, "tcp", server);
        let thread = std::thread::spawn(move || serve(&mut listener.accept().unwrap().0));
        // Each with the same addresses as the one before.
        let container = Namespace::new();
        host.connect("bridge", address(5), &container, address(6));
        container.shell(&format!("ip route add default via {gateway}"));
        let manner = if short { "" } else { " and stay" };
        let mut role = start_role(&container, &name, &format!("ask {remote_v4}:{server}{manner}"));
        if short {
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

/// Waits until all bytes of a flow whose server is elsewhere are this command line's.
fn wait_for_client(scene: &mut Scene, flow: &str, command_line: &str) {
    let truth = &scene.truth;
    scene.monitor.wait_for(|| {
        let (to_server, from_server) = truth.bytes()[flow];
        Figures::from([(command_line.into(), (from_server, to_server))])
    });
}

pub fn what_is_nobodys_is_told_with_the_reason() {
    let (host, remote) = &host_and_remote();
    host.shell(ENABLE_COMMANDS);
    let truth = Truth::new(host);
    // Whom the host forwards for: neither end is a process of its own, but a thread of this one.
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

    let mut monitor = Monitor::start(&["--unowned"]);
    let mut forwarded = remote.run(|| TcpStream::connect(format!("{other_v4}:{forwarded_to}")).unwrap());
    ask(&mut forwarded);
    let reason = |name: &str| match name {
        "forwarded" => "(no local socket: forwarded)",
        _ => "(socket without process)",
    };
    let shown = |name: &str| {
        let (to_server, from_server) = truth.bytes()[name];
        // As whoever made the connection sees it.
        (reason(name).to_owned(), (from_server, to_server))
    };
    nobodys.write_all(&[7; REQUEST]).unwrap();
    monitor.wait_for(|| Figures::from([shown("nobodys"), shown("forwarded")]));
    drop(forwarded);
    thread.join().unwrap();
}

pub fn each_flow_of_the_table_can_be_asked_for() {
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
    table.dump(&mut |flow| flows.push(*flow)).unwrap();
    assert!(flows.len() >= 4, "{flows:?}");
    for flow in &flows {
        let mut got = Vec::new();
        table.get(&[flow.original, flow.original.reversed()], &mut |flow| got.push(*flow)).unwrap();
        // By its reply tuple too, which is not the same way round.
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
    // All of it is in one tick, or in two: a tick without a rate would leave half of it out at the least.
    let mut sum = 0;
    while sum < ANSWER / 3 {
        let line = scene.monitor.program.stdout.line();
        let (rates, name) = line.split_once(" -- ").unwrap();
        if name.starts_with("new_server ") {
            sum += rates.split_once('/').unwrap().1.trim().parse::<usize>().unwrap();
        }
    }
}
