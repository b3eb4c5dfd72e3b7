//! The program on real connections: in network namespaces of the tests' own, where they can be made without root or with
//! it, else over loopback.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bwmon::monitor::advice::ENABLE_COMMANDS;
use nix::sys::prctl::set_dumpable;

use crate::common::inside::inside;
use crate::common::monitor::{Figures, Monitor, ONLY_OWN, RUNMONITOR};
use crate::common::netns::{Namespace, address, host_and_remote};
use crate::common::program::Running;
use crate::common::role;
use crate::common::role::{as_role, start_role, stay, tell, told};
use crate::common::truth::{Bytes, Truth};
use crate::common::user::User;

/// What a TCP client sends and what it is answered.
const REQUEST: usize = 300_000;
const ANSWER: usize = 2_000_000;
/// The datagrams of a UDP client, each of which is sent back.
const DATAGRAMS: usize = 50;
const DATAGRAM: usize = 700;

/// No test, but what [`as_role`] is about.
pub fn role() {
    let Some(role) = role::role() else { return };
    let words: Vec<&str> = role.split(' ').collect();
    let [protocol, act, address, ref manner @ ..] = words[..] else { panic!("{role}") };
    if manner == ["hidden"] {
        // Like another user's process, whose descriptors only root may see.
        set_dumpable(false).unwrap();
    }
    let address: SocketAddr = address.parse().unwrap();
    match (protocol, act) {
        ("tcp", "serve") => {
            let listener = TcpListener::bind(address).unwrap();
            tell(listener.local_addr().unwrap().port());
            let (mut client, _) = listener.accept().unwrap();
            client.read_exact(&mut vec![0; REQUEST]).unwrap();
            client.write_all(&vec![7; ANSWER]).unwrap();
            stay();
        }
        ("tcp", "ask") => {
            let mut server = TcpStream::connect(address).unwrap();
            server.write_all(&vec![7; REQUEST]).unwrap();
            server.read_exact(&mut vec![0; ANSWER]).unwrap();
            tell(server.local_addr().unwrap().port());
            stay();
        }
        ("udp", "serve") => {
            let socket = UdpSocket::bind(address).unwrap();
            tell(socket.local_addr().unwrap().port());
            let mut datagram = [0; DATAGRAM];
            for _ in 0..DATAGRAMS {
                let (length, client) = socket.recv_from(&mut datagram).unwrap();
                socket.send_to(&datagram[..length], client).unwrap();
            }
            stay();
        }
        ("udp", "ask" | "ask-connected") => {
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            if act == "ask-connected" {
                socket.connect(address).unwrap();
            }
            for _ in 0..DATAGRAMS {
                match act {
                    "ask-connected" => socket.send(&[7; DATAGRAM]).unwrap(),
                    _ => socket.send_to(&[7; DATAGRAM], address).unwrap(),
                };
                socket.recv(&mut [0; DATAGRAM]).unwrap();
            }
            tell(socket.local_addr().unwrap().port());
            stay();
        }
        _ => panic!("{role}"),
    }
}

/// A flow between two processes, `<name>_client` and `<name>_server`.
struct Flow<'a> {
    name: &'static str,
    protocol: &'static str,
    /// Where the server runs, and the address it listens on.
    server: (&'a Namespace, &'a str),
    /// Where the client runs, what it does, and the address it knows the server by.
    client: (&'a Namespace, &'static str, &'a str),
}

/// The processes of flows whose bytes have all been sent.
#[derive(Default)]
struct Traffic {
    roles: Vec<Running>,
}

impl Traffic {
    /// Has a flow send all it has to. `prepare` is called with the server's port before the first packet.
    fn send(&mut self, flow: &Flow, prepare: impl FnOnce(u16)) {
        let &Flow { name, protocol, server: (server_side, listen), client: (client_side, act, server_address) } = flow;
        let server = start_role(server_side, &format!("{name}_server"), &format!("{protocol} serve {listen}"));
        let port = told(&server);
        prepare(port);
        let role = format!("{protocol} {act} {server_address}:{port}");
        let client = start_role(client_side, &format!("{name}_client"), &role);
        told(&client);
        self.roles.extend([server, client]);
    }
}

/// What the processes in these namespaces move that have an end of a flow, of which `truth` says by its name what it
/// carried.
fn figures_of(flows: &[Flow], namespaces: &[&Namespace], truth: &BTreeMap<String, Bytes>) -> Figures {
    let mut expected = Figures::new();
    let among = |end| namespaces.iter().any(|namespace| std::ptr::eq(*namespace, end));
    for &Flow { name, server: (server, _), client: (client, ..), .. } in flows {
        let (from_client, from_server) = truth[name];
        if among(server) {
            expected.insert(format!("{name}_server"), (from_client, from_server));
        }
        if among(client) {
            expected.insert(format!("{name}_client"), (from_server, from_client));
        }
    }
    expected
}

/// What those of TCP flows move, counted as payload.
fn payload(names: &[&str]) -> Figures {
    let mut expected = Figures::new();
    for name in names {
        expected.insert(format!("{name}_server"), (REQUEST as u64, ANSWER as u64));
        // TCP numbers the SYN of who connects as if it were a byte.
        expected.insert(format!("{name}_client"), (ANSWER as u64, REQUEST as u64 + 1));
    }
    expected
}

pub fn conntrack_counts_every_kind_of_flow_exactly() {
    let (host, remote) = &host_and_remote();
    host.shell(ENABLE_COMMANDS);
    let [[host_v4, host_v6], [remote_v4, remote_v6]] = [address(1), address(2)].map(|[v4, v6]| [v4, format!("[{v6}]")]);
    // 192.0.2.1 is translated to the remote host, 192.0.2.2 to this one.
    host.shell(&format!(
        "ip route add 192.0.2.1 via {remote_v4}; nft 'add table ip nat; \
         add chain ip nat output {{ type nat hook output priority -100; }}; \
         add chain ip nat input {{ type nat hook prerouting priority -100; }}; \
         add rule ip nat output ip daddr 192.0.2.1 dnat to {remote_v4}; \
         add rule ip nat input ip daddr 192.0.2.2 dnat to {host_v4}'"
    ));
    remote.shell(&format!("ip route add 192.0.2.2 via {host_v4}"));
    let flow = |name, protocol, server, client| Flow { name, protocol, server, client };
    let flows = [
        flow("tcp_v4", "tcp", (remote, "0.0.0.0:0"), (host, "ask", &*remote_v4)),
        flow("tcp_v6", "tcp", (remote, "[::]:0"), (host, "ask", &remote_v6)),
        flow("tcp_dual_stack", "tcp", (host, "[::]:0"), (remote, "ask", &host_v4)),
        flow("tcp_server_v6", "tcp", (host, "[::]:0"), (remote, "ask", &host_v6)),
        flow("tcp_loopback", "tcp", (host, "127.0.0.1:0"), (host, "ask", "127.0.0.1")),
        flow("tcp_loopback_v6", "tcp", (host, "[::1]:0"), (host, "ask", "[::1]")),
        flow("tcp_own_address", "tcp", (host, "[::]:0"), (host, "ask", &host_v4)),
        flow("tcp_translated", "tcp", (remote, "0.0.0.0:0"), (host, "ask", "192.0.2.1")),
        flow("tcp_server_translated", "tcp", (host, "0.0.0.0:0"), (remote, "ask", "192.0.2.2")),
        flow("udp_connected", "udp", (remote, "0.0.0.0:0"), (host, "ask-connected", &remote_v4)),
        flow("udp_unconnected", "udp", (remote, "0.0.0.0:0"), (host, "ask", &remote_v4)),
        flow("udp_server", "udp", (host, "0.0.0.0:0"), (remote, "ask-connected", &host_v4)),
        flow("udp_dual_stack", "udp", (host, "[::]:0"), (remote, "ask", &host_v4)),
        flow("udp_v6", "udp", (remote, "[::]:0"), (host, "ask-connected", &remote_v6)),
        flow("udp_loopback", "udp", (host, "127.0.0.1:0"), (host, "ask", "127.0.0.1")),
        flow("udp_translated", "udp", (remote, "0.0.0.0:0"), (host, "ask", "192.0.2.1")),
    ];

    let mut monitor = Monitor::start(&[]);
    let truth = Truth::new(host);
    let mut traffic = Traffic::default();
    for flow in &flows {
        traffic.send(flow, |port| truth.count(flow.name, flow.protocol, port));
    }
    let expected = || figures_of(&flows, &[host], &truth.bytes());
    monitor.wait_for(expected);
    assert!(expected().values().all(|&(bytes_in, bytes_out)| bytes_in > 30_000 && bytes_out > 30_000));
    assert_eq!(monitor.end(), [""; 0]);

    // One that comes when all is over finds the same.
    Monitor::start(&[]).wait_for(expected);
}

pub fn a_container_is_shown_by_its_own_command_line() {
    let (host, remote) = &host_and_remote();
    let container = &Namespace::new();
    host.connect("bridge", address(5), container, address(6));
    host.shell(ENABLE_COMMANDS);
    // As container engines do it: a network behind this host, which goes by this host's address outside.
    host.shell(
        "sysctl -w net.ipv4.ip_forward=1; nft 'add table ip nat; \
         add chain ip nat out { type nat hook postrouting priority 100; }; \
         add rule ip nat out oifname cable masquerade'",
    );
    let [[host_v4, _], [remote_v4, _], [gateway, _]] = [1, 2, 5].map(address);
    container.shell(&format!("ip route add default via {gateway}"));
    let flow = |name, protocol, server, client| Flow { name, protocol, server, client };
    let flows = [
        flow("tcp_out", "tcp", (remote, "0.0.0.0:0"), (container, "ask", &*remote_v4)),
        flow("udp_out", "udp", (remote, "0.0.0.0:0"), (container, "ask", &remote_v4)),
        flow("tcp_to_host", "tcp", (host, "0.0.0.0:0"), (container, "ask", &host_v4)),
    ];

    let mut monitor = Monitor::start(&[]);
    let truth = Truth::new(host);
    let mut traffic = Traffic::default();
    for flow in &flows {
        traffic.send(flow, |port| truth.count(flow.name, flow.protocol, port));
    }
    monitor.wait_for(|| figures_of(&flows, &[host, container], &truth.bytes()));
}

/// A flow over loopback.
fn over_loopback<'a>(name: &'static str, protocol: &'static str, host: &'a Namespace) -> Flow<'a> {
    Flow { name, protocol, server: (host, "127.0.0.1:0"), client: (host, "ask", "127.0.0.1") }
}

pub fn without_conntrack_payload_is_counted_and_the_user_is_told_what_turns_it_on() {
    let (host, remote) = &host_and_remote();
    let [remote_v4, _] = address(2);
    let outside =
        Flow { name: "outside", protocol: "tcp", server: (remote, "0.0.0.0:0"), client: (host, "ask", &remote_v4) };
    let mut traffic = Traffic::default();
    let mut monitor = Monitor::start(&[]);
    for flow in [outside, over_loopback("inside", "tcp", host), over_loopback("datagrams", "udp", host)] {
        traffic.send(&flow, |_| ());
    }
    monitor.wait_for(|| payload(&["outside", "inside"]));
    assert!(!monitor.figures.contains_key("datagrams_client"));
    let said = monitor.end();
    let [note] = &said[..] else { panic!("{said:?}") };
    assert!(note.contains("TCP payload per socket is counted, without UDP and without packet headers"), "{note}");
    let (_, turn_on) = note.split_once("For full counting run: ").expect(note);

    host.shell(turn_on);
    let flows = [over_loopback("now_counted", "tcp", host), over_loopback("now_too", "udp", host)];
    let truth = Truth::new(host);
    let mut monitor = Monitor::start(&[]);
    for flow in &flows {
        traffic.send(flow, |port| truth.count(flow.name, flow.protocol, port));
    }
    monitor.wait_for(|| figures_of(&flows, &[host], &truth.bytes()));
    assert_eq!(monitor.end(), [""; 0]);
}

pub fn where_conntrack_does_not_count_bytes_the_user_is_told_in_the_words_of_the_original() {
    let host = &Namespace::here();
    host.shell(&format!("{ENABLE_COMMANDS} && sysctl -w net.netfilter.nf_conntrack_acct=0"));
    let mut monitor = Monitor::start(&[]);
    let mut traffic = Traffic::default();
    traffic.send(&over_loopback("flow", "tcp", host), |_| ());
    monitor.wait_for(|| payload(&["flow"]));
    let said = monitor.end();
    let [note] = &said[..] else { panic!("{said:?}") };
    let original = "WARNING: No 'bytes' field in output (use 'sysctl -w net.netfilter.nf_conntrack_acct=1' to enable \
                    accounting.";
    assert!(note.starts_with(original) && note.contains("TCP payload per socket is counted"), "{note}");
}

pub fn conntrack_that_is_insisted_on_counts_from_when_it_is_turned_on() {
    let host = &Namespace::here();
    let mut traffic = Traffic::default();
    let mut monitor = Monitor::start(&["--source=conntrack"]);
    traffic.send(&over_loopback("before", "tcp", host), |_| ());
    // Once it has said so it has looked.
    let note = monitor.program.stderr.line();
    assert!(note.contains("nothing is counted") && note.contains(ENABLE_COMMANDS), "{note}");
    host.shell(ENABLE_COMMANDS);
    let flows = [over_loopback("after", "tcp", host)];
    let truth = Truth::new(host);
    traffic.send(&flows[0], |port| truth.count("after", "tcp", port));
    monitor.wait_for(|| figures_of(&flows, &[host], &truth.bytes()));
    assert!(!monitor.figures.contains_key("before_client"), "{:?}", monitor.figures);
}

pub fn the_sockets_own_counters_can_be_insisted_on() {
    let host = &Namespace::here();
    host.shell(ENABLE_COMMANDS);
    let mut traffic = Traffic::default();
    let mut monitor = Monitor::start(&["--source=sockets"]);
    traffic.send(&over_loopback("flow", "tcp", host), |_| ());
    monitor.wait_for(|| payload(&["flow"]));
    assert_eq!(monitor.end(), [""; 0]);
}

/// Starts a process of an ordinary user that acts, and gives what it tells.
fn start_users_role(user: &User, name: &str, role: &str) -> (Running, u16) {
    let command = user.command(&std::env::current_exe().unwrap());
    let role = Running::start(&mut as_role(command, name, role));
    let told = told(&role);
    (role, told)
}

// An ordinary user is one over the host's own loopback, since in a user namespace of one's own one is root.
pub fn an_ordinary_user_sees_their_own_processes_and_is_told_once() {
    let user = User::new();
    let mut monitor = Monitor::run(&mut user.command(Path::new(RUNMONITOR)));
    let (_own_server, port) = start_users_role(&user, "own_server", "tcp serve 127.0.0.1:0");
    let _own_client = start_users_role(&user, "own_client", &format!("tcp ask 127.0.0.1:{port}"));
    let (_hidden_server, port) = start_users_role(&user, "hidden_server", "tcp serve 127.0.0.1:0 hidden");
    let _hidden_client = start_users_role(&user, "hidden_client", &format!("tcp ask 127.0.0.1:{port} hidden"));
    for _at_two_ticks in 0..2 {
        monitor.wait_for(|| payload(&["own"]));
    }
    assert!(!monitor.figures.keys().any(|name| name.starts_with("hidden")), "{:?}", monitor.figures);
    let said = monitor.end_with(|_| true);
    assert_eq!(said.iter().filter(|line| line.starts_with(ONLY_OWN)).count(), 1, "{said:?}");
    let how = said.iter().find(|line| line.contains("TCP payload per socket is counted")).expect("what is counted");
    assert!(how.contains("as root (sudo)") && how.contains(ENABLE_COMMANDS), "{how}");
}

pub fn the_conntrack_command_is_read_where_nothing_else_may_be() {
    let user = User::new();
    let (_server, server) = start_users_role(&user, "server", "tcp serve 127.0.0.1:0");
    let (_client, client) = start_users_role(&user, "client", &format!("tcp ask 127.0.0.1:{server}"));
    // One that may be run by everybody, as with a sudo of its own.
    let command = user.programs().join("conntrack");
    let entry = format!(
        "tcp 6 9 ESTABLISHED src=127.0.0.1 dst=127.0.0.1 sport={client} dport={server} packets=1 bytes=1234 \
         src=127.0.0.1 dst=127.0.0.1 sport={server} dport={client} packets=1 bytes=56789 [ASSURED] use=1"
    );
    std::fs::write(&command, format!("#!/bin/sh\necho '{entry}'\necho 1 flow entries >&2\n")).unwrap();
    std::fs::set_permissions(&command, Permissions::from_mode(0o755)).unwrap();
    let path = std::env::join_paths([user.programs(), Path::new("/usr/bin"), Path::new("/bin")]).unwrap();
    let mut monitor = Monitor::run(user.command(Path::new(RUNMONITOR)).env("PATH", path));
    monitor.wait_for(|| [("client".into(), (56789, 1234)), ("server".into(), (1234, 56789))].into());
    assert_eq!(monitor.end(), [""; 0]);
}
