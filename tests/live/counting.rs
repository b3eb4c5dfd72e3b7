//! What runmonitor counts: from conntrack, from the sockets, and for an ordinary user.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::Ordering;

use bwmon::monitor::advice::{ENABLE_COMMANDS, RIGHTS};
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::program::Running;
use crate::common::runmonitor::{is_figure, on_a_terminal, views};
use crate::common::user::User;
use crate::support::harness::{Outcome, needs_command};
use crate::support::monitor::{Figures, Monitor, ONLY_OWN, RUNMONITOR};
use crate::support::name_server::{NAME, NameServer};
use crate::support::netns::{Namespace, address, host_and_remote};
use crate::support::role::{as_role, start_role, stay, tell, told};
use crate::support::truth::{Bytes, Truth};

/// The bytes that a TCP client sends, and those of the answer.
const REQUEST: usize = 300_000;
const ANSWER: usize = 2_000_000;
/// The number and the size of the datagrams that a UDP client sends. The server sends each back.
const DATAGRAMS: usize = 50;
const DATAGRAM: usize = 700;

/// Plays the roles of this module, and says whether `role` is one.
pub fn play(role: &[&str]) -> bool {
    let [protocol @ ("tcp" | "udp"), act, address, ref manner @ ..] = *role else { return false };
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
        _ => return false,
    }
    true
}

/// A flow between two processes, `<name>_client` and `<name>_server`.
pub struct Flow<'a> {
    pub name: &'static str,
    pub protocol: &'static str,
    /// The namespace of the server, and the address on which it listens.
    pub server: (&'a Namespace, &'a str),
    /// The namespace of the client, its role, and the address to which it connects.
    pub client: (&'a Namespace, &'static str, &'a str),
}

/// The addresses of the host and the remote one of [`host_and_remote`], those of IPv6 in brackets.
pub struct Addresses {
    host_v4: String,
    host_v6: String,
    remote_v4: String,
    remote_v6: String,
}

impl Addresses {
    pub fn new() -> Self {
        let [[host_v4, host_v6], [remote_v4, remote_v6]] =
            [address(1), address(2)].map(|[v4, v6]| [v4, format!("[{v6}]")]);
        Self { host_v4, host_v6, remote_v4, remote_v6 }
    }

    /// Flows of every kind between the two, and within the host.
    pub fn flows<'a>(&'a self, host: &'a Namespace, remote: &'a Namespace) -> Vec<Flow<'a>> {
        let Self { host_v4, host_v6, remote_v4, remote_v6 } = self;
        let flow = |name, protocol, server, client| Flow { name, protocol, server, client };
        vec![
            flow("tcp_v4", "tcp", (remote, "0.0.0.0:0"), (host, "ask", remote_v4)),
            flow("tcp_v6", "tcp", (remote, "[::]:0"), (host, "ask", remote_v6)),
            flow("tcp_dual_stack", "tcp", (host, "[::]:0"), (remote, "ask", host_v4)),
            flow("tcp_server_v6", "tcp", (host, "[::]:0"), (remote, "ask", host_v6)),
            flow("tcp_loopback", "tcp", (host, "127.0.0.1:0"), (host, "ask", "127.0.0.1")),
            flow("tcp_loopback_v6", "tcp", (host, "[::1]:0"), (host, "ask", "[::1]")),
            flow("tcp_own_address", "tcp", (host, "[::]:0"), (host, "ask", host_v4)),
            flow("udp_connected", "udp", (remote, "0.0.0.0:0"), (host, "ask-connected", remote_v4)),
            flow("udp_unconnected", "udp", (remote, "0.0.0.0:0"), (host, "ask", remote_v4)),
            flow("udp_server", "udp", (host, "0.0.0.0:0"), (remote, "ask-connected", host_v4)),
            flow("udp_dual_stack", "udp", (host, "[::]:0"), (remote, "ask", host_v4)),
            flow("udp_v6", "udp", (remote, "[::]:0"), (host, "ask-connected", remote_v6)),
            flow("udp_loopback", "udp", (host, "127.0.0.1:0"), (host, "ask", "127.0.0.1")),
        ]
    }
}

/// The processes of flows that have sent all their bytes.
#[derive(Default)]
pub struct Traffic {
    roles: Vec<Running>,
}

impl Traffic {
    /// Runs a flow until all its bytes are sent. Calls `prepare` with the server's port before the first packet.
    pub fn send(&mut self, flow: &Flow, prepare: impl FnOnce(u16)) {
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

/// The bytes of each process at an end of these flows, as far as it runs in one of these namespaces. `truth` has the bytes
/// of each flow by its name.
pub fn figures_of(flows: &[Flow], namespaces: &[&Namespace], truth: &BTreeMap<String, Bytes>) -> Figures {
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

/// The payload bytes of both processes of these TCP flows.
fn payload(names: &[&str]) -> Figures {
    let mut expected = Figures::new();
    for name in names {
        expected.insert(format!("{name}_server"), (REQUEST as u64, ANSWER as u64));
        // The SYN has a sequence number of its own, so that tcp_info counts it as a byte sent.
        expected.insert(format!("{name}_client"), (ANSWER as u64, REQUEST as u64 + 1));
    }
    expected
}

pub fn conntrack_counts_every_kind_of_flow_exactly() {
    let (host, remote) = &host_and_remote();
    host.shell(ENABLE_COMMANDS);
    let addresses = Addresses::new();
    let Addresses { host_v4, remote_v4, .. } = &addresses;
    // The host translates 192.0.2.1 to the remote host, and 192.0.2.2 to itself.
    host.shell(&format!(
        "ip route add 192.0.2.1 via {remote_v4}; nft 'add table ip nat; \
         add chain ip nat output {{ type nat hook output priority -100; }}; \
         add chain ip nat input {{ type nat hook prerouting priority -100; }}; \
         add rule ip nat output ip daddr 192.0.2.1 dnat to {remote_v4}; \
         add rule ip nat input ip daddr 192.0.2.2 dnat to {host_v4}'"
    ));
    remote.shell(&format!("ip route add 192.0.2.2 via {host_v4}"));
    let flow = |name, protocol, server, client| Flow { name, protocol, server, client };
    let mut flows = addresses.flows(host, remote);
    flows.extend([
        flow("tcp_translated", "tcp", (remote, "0.0.0.0:0"), (host, "ask", "192.0.2.1")),
        flow("tcp_server_translated", "tcp", (host, "0.0.0.0:0"), (remote, "ask", "192.0.2.2")),
        flow("udp_translated", "udp", (remote, "0.0.0.0:0"), (host, "ask", "192.0.2.1")),
    ]);

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

    // A monitor that starts when all traffic is over shows the same.
    Monitor::start(&[]).wait_for(expected);
}

pub fn traffic_of_a_container_is_shown_under_the_command_line_of_its_process() {
    let (host, remote) = &host_and_remote();
    let container = &Namespace::new();
    host.connect("bridge", address(5), container, address(6));
    host.shell(ENABLE_COMMANDS);
    // As container engines do it: the network is behind this host, which translates its addresses to its own.
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

pub fn without_conntrack_payload_is_counted_and_a_note_says_how_to_enable_it() {
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
    let (_, enable) = note.split_once("For full counting run: ").expect(note);

    host.shell(enable);
    let flows = [over_loopback("now_counted", "tcp", host), over_loopback("now_too", "udp", host)];
    let truth = Truth::new(host);
    let mut monitor = Monitor::start(&[]);
    for flow in &flows {
        traffic.send(flow, |port| truth.count(flow.name, flow.protocol, port));
    }
    monitor.wait_for(|| figures_of(&flows, &[host], &truth.bytes()));
    assert_eq!(monitor.end(), [""; 0]);
}

pub fn where_conntrack_does_not_count_bytes_the_note_begins_as_the_originals() {
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

pub fn with_source_conntrack_it_counts_from_the_moment_conntrack_is_enabled() {
    let host = &Namespace::here();
    let mut traffic = Traffic::default();
    let mut monitor = Monitor::start(&["--source=conntrack"]);
    traffic.send(&over_loopback("before", "tcp", host), |_| ());
    // The program says this after it has looked at the table.
    let note = monitor.program.stderr.line();
    assert!(note.contains("nothing is counted") && note.contains(ENABLE_COMMANDS), "{note}");
    host.shell(ENABLE_COMMANDS);
    let flows = [over_loopback("after", "tcp", host)];
    let truth = Truth::new(host);
    traffic.send(&flows[0], |port| truth.count("after", "tcp", port));
    monitor.wait_for(|| figures_of(&flows, &[host], &truth.bytes()));
    assert!(!monitor.figures.contains_key("before_client"), "{:?}", monitor.figures);
}

pub fn with_source_sockets_payload_is_counted_even_where_conntrack_counts() {
    let host = &Namespace::here();
    host.shell(ENABLE_COMMANDS);
    let mut traffic = Traffic::default();
    let mut monitor = Monitor::start(&["--source=sockets"]);
    traffic.send(&over_loopback("flow", "tcp", host), |_| ());
    monitor.wait_for(|| payload(&["flow"]));
    assert_eq!(monitor.end(), [""; 0]);
}

/// Starts a process of an ordinary user that plays `role`, and waits for the port that it tells.
fn start_users_role(user: &User, name: &str, role: &str) -> (Running, u16) {
    let command = user.command(&std::env::current_exe().unwrap());
    let role = Running::start(&mut as_role(command, name, role));
    let told = told(&role);
    (role, told)
}

// On the host's own loopback: in a user namespace the user would be root.
pub fn an_ordinary_user_sees_only_their_own_processes_and_one_note_about_that() {
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
    // Nothing has to be set up for root.
    let advice = format!("For full counting run this as root (sudo), or give it the rights: sudo setcap {RIGHTS} /");
    assert!(how.contains(&advice), "{how}");
}

pub fn where_the_kernel_refuses_its_table_the_conntrack_command_is_read() {
    let user = User::new();
    let (_server, server) = start_users_role(&user, "server", "tcp serve 127.0.0.1:0");
    let (_client, client) = start_users_role(&user, "client", &format!("tcp ask 127.0.0.1:{server}"));
    // A command that every user may run, such as a script that calls sudo.
    let directory = TempDir::new().unwrap();
    let script = directory.path().join("conntrack");
    let entry = format!(
        "tcp 6 9 ESTABLISHED src=127.0.0.1 dst=127.0.0.1 sport={client} dport={server} packets=1 bytes=1234 \
         src=127.0.0.1 dst=127.0.0.1 sport={server} dport={client} packets=1 bytes=56789 [ASSURED] use=1"
    );
    std::fs::write(&script, format!("#!/bin/sh\necho '{entry}'\necho 1 flow entries >&2\n")).unwrap();
    user.install(&script);
    let path = std::env::join_paths([user.programs(), Path::new("/usr/bin"), Path::new("/bin")]).unwrap();
    let mut monitor = Monitor::run(user.command(Path::new(RUNMONITOR)).env("PATH", path));
    monitor.wait_for(|| [("client".into(), (56789, 1234)), ("server".into(), (1234, 56789))].into());
    assert_eq!(monitor.end(), [""; 0]);
}

pub fn notes_stay_below_the_table_of_a_terminal() {
    let shown = on_a_terminal("xterm", &["--source=auto"], Signal::SIGINT);
    for view in views(&shown).iter().skip(1) {
        let (figures, notes): (Vec<&str>, Vec<&str>) = view.lines().skip(1).partition(|line| is_figure(line));
        assert!(!figures.is_empty() && view.contains(&figures.join("\r\n")), "{view:?}");
        let notes: Vec<&str> = notes.iter().flat_map(|note| note.split_whitespace()).collect();
        assert!(notes.join(" ").contains("For full counting run: "), "{view:?}");
    }
}

pub fn names_of_remote_ends_stand_beside_their_addresses_and_keep_nobody_waiting() -> Outcome {
    needs_command("unshare", &["--version"])?;
    let names = NameServer::start(false, &[]);
    let [host_v4, remote_v4] = [1, 2].map(|host| address(host)[0].clone());
    Namespace::here().shell(&format!("ip addr add {host_v4}/30 dev lo; ip addr add {remote_v4}/30 dev lo"));
    let listener = TcpListener::bind((remote_v4.as_str(), 0)).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(&[7; 5000]).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.read_exact(&mut [0; 5000]).unwrap();
    let arguments = ["--json", "--source=sockets", "--remotes", "--resolve", "--interval=0.2"];
    let remotes = |line: &String| -> Vec<Value> {
        let record: Value = serde_json::from_str(line).unwrap();
        let ends = record["remotes"].as_array().into_iter().flatten();
        ends.filter(|end| end["address"] == *remote_v4).cloned().collect()
    };
    // A lookup without an answer takes longer than all of these refreshes and the end together.
    let asked = || names.questions.load(Ordering::Relaxed);
    let (status, lines, _) =
        Running::start(&mut names.run(RUNMONITOR, &[&arguments[..], &["--count=10"]].concat())).end();
    assert_eq!(status.code(), Some(0));
    assert!(asked() > 0);
    let ticks = lines.iter().filter(|line| line.contains("\"kind\":\"tick\"")).count();
    let shown: Vec<Value> = lines.iter().flat_map(remotes).collect();
    assert!(ticks == 10 && !shown.is_empty(), "{lines:#?}");
    assert!(shown.iter().all(|end| end["name"].is_null()), "{shown:#?}");
    // The name comes when there is an answer.
    names.answers.store(true, Ordering::Relaxed);
    let program = Running::start(&mut names.run(RUNMONITOR, &arguments));
    while !remotes(&program.line()).iter().any(|end| end["name"] == NAME) {}
    let text = Running::start(&mut names.run(RUNMONITOR, &["--source=sockets", "--remotes", "--resolve"]));
    let line = std::iter::repeat_with(|| text.line()).find(|line| line.contains(NAME)).unwrap();
    assert!(line.contains(&format!(" --   {remote_v4}:")) && line.ends_with(&format!(" tcp ({NAME})")), "{line}");
    Ok(())
}
