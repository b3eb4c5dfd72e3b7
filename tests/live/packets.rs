//! Packets counted per socket, on hosts where conntrack tracks nothing.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Instant;

use bwmon::kernel::bpf::packet_counters::PacketCounters;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::program::{DEADLINE, Running, wait_for};
use crate::counting::{Addresses, Flow, Traffic, figures_of};
use crate::support::harness::{Outcome, needs_packets, needs_program_starts, needs_remotes, needs_time_wait};
use crate::support::monitor::{Monitor, RUNMONITOR};
use crate::support::netns::{Namespace, address, host_and_remote};
use crate::support::role::{start_role, tag, tell, told};
use crate::support::truth::Truth;

/// Processes that make one connection each and end.
const SHORT: usize = 40;

/// A monitor that has shown its first figures: of what a connection carried before it knows the payload alone.
fn monitor() -> Monitor {
    let monitor = Monitor::start(&["--source=packets"]);
    await_first_figures(&monitor);
    monitor
}

/// Waits until a monitor has shown its first figures.
pub fn await_first_figures(monitor: &Monitor) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let itself = socket.local_addr().unwrap();
    wait_for("the first figures", || {
        socket.send_to(b"x", itself).unwrap();
        (!monitor.program.stdout.so_far().is_empty()).then_some(())
    });
}

pub fn without_conntrack_every_kind_of_flow_is_counted_exactly() -> Outcome {
    needs_packets()?;
    let (host, remote) = &host_and_remote();
    let addresses = Addresses::new();
    let flows = addresses.flows(host, remote);
    let mut monitor = monitor();
    let truth = Truth::new(host);
    let mut traffic = Traffic::default();
    for flow in &flows {
        traffic.send(flow, |port| truth.count(flow.name, flow.protocol, port));
    }
    // The processes at both ends are on this host, whatever namespace they are in.
    monitor.wait_for(|| figures_of(&flows, &[host, remote], &truth.bytes()));
    assert_eq!(monitor.end(), [""; 0]);
    Ok(())
}

pub fn processes_that_end_before_anyone_looks_are_credited() -> Outcome {
    needs_time_wait()?;
    needs_program_starts()?;
    let (host, remote) = &host_and_remote();
    let [remote_v4, _] = address(2);
    let mut monitor = monitor();
    let truth = Truth::new(host);
    let server = start_role(remote, "short_server", "join 0");
    let port = told(&server);
    truth.count("short", "tcp", port);
    monitor.program.signal(Signal::SIGSTOP);
    for _ in 0..SHORT {
        let (status, ..) = start_role(host, "short_client", &format!("ask {remote_v4}:{port}")).end();
        assert!(status.success());
    }
    monitor.program.signal(Signal::SIGCONT);
    monitor.wait_until(|figures| {
        let (sent, received) = truth.bytes()["short"];
        let shown = figures.get("short_client").copied().unwrap_or_default();
        if shown == (received, sent) { Ok(()) } else { Err(format!("{:?}", (received, sent))) }
    });
    Ok(())
}

pub fn two_monitors_at_once_show_the_same() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let mut monitors = [(); 2].map(|()| monitor());
    let truth = Truth::new(host);
    let flow =
        Flow { name: "twice", protocol: "tcp", server: (host, "127.0.0.1:0"), client: (host, "ask", "127.0.0.1") };
    let mut traffic = Traffic::default();
    traffic.send(&flow, |port| truth.count("twice", "tcp", port));
    for monitor in &mut monitors {
        monitor.wait_for(|| figures_of(std::slice::from_ref(&flow), &[host], &truth.bytes()));
    }
    Ok(())
}

pub fn the_counters_lose_nothing_between_two_reads() -> Outcome {
    let mut counters = needs_remotes()?;
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = receiver.local_addr().unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let from = sender.local_addr().unwrap();
    const DATAGRAMS: u64 = 20_000;
    const BYTES: u64 = 28 + 100;
    let sending = std::thread::spawn(move || {
        for _ in 0..DATAGRAMS {
            sender.send_to(&[7; 100], to).unwrap();
        }
        sender
    });
    let (mut sent, mut to_receiver) = (0, 0);
    let mut read = |counters: &mut PacketCounters| {
        let is_ours = |port: u16| port == from.port();
        let overflow = counters
            .read_with_remotes(
                |socket| {
                    if socket.tuple.is_some_and(|tuple| is_ours(tuple.source.port)) && socket.maker.is_some() {
                        sent += socket.bytes_out;
                    }
                },
                |end| {
                    if end.remote.port == to.port() {
                        to_receiver += end.bytes_out;
                    }
                },
            )
            .unwrap();
        assert_eq!(overflow, (0, 0));
    };
    while !sending.is_finished() {
        read(&mut counters);
    }
    let _sender = sending.join().unwrap();
    // What was added late is there at the next read.
    read(&mut counters);
    read(&mut counters);
    assert_eq!((sent, to_receiver), (DATAGRAMS * BYTES, DATAGRAMS * BYTES));
    Ok(())
}

pub fn a_flood_of_closed_sockets_takes_no_room_from_those_that_move_bytes() -> Outcome {
    let mut counters = needs_packets()?;
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    // More than the maps have entries.
    for _ in 0..70_000 {
        drop(UdpSocket::bind("127.0.0.1:0").unwrap());
    }
    sender.send_to(&[7; 100], receiver.local_addr().unwrap()).unwrap();
    let from = sender.local_addr().unwrap().port();
    let mut sent = 0;
    let overflow = counters.read(|socket| {
        if socket.tuple.is_some_and(|tuple| tuple.source.port == from) {
            sent += socket.bytes_out;
        }
    });
    assert_eq!((overflow.unwrap(), sent), ((0, 0), 28 + 100));
    // Who closes is recorded again once the closers were read.
    counters.read_closers(|_| {}).unwrap();
    drop(sender);
    let mut closers = Vec::new();
    counters.read_closers(|socket| closers.push(socket.pid)).unwrap();
    assert!(closers.contains(&std::process::id()), "{closers:?}");
    Ok(())
}

/// An Ethernet frame around an IP packet, whose type is that of its first byte.
fn frame(packet: &[u8]) -> Vec<u8> {
    let ether_type: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&[0; 12][..], &ether_type, packet].concat()
}

pub fn the_headers_of_every_segment_of_an_offloaded_packet_count() -> Outcome {
    let mut counters = needs_packets()?;
    // The fields that the program reads: version, header length, protocol; TCP's data offset.
    let ipv4 = |words: u8, protocol: u8| {
        let mut header = vec![0; usize::from(words) * 4];
        (header[0], header[9]) = (0x40 | words, protocol);
        header
    };
    let ipv6 = |protocol: u8| {
        let mut header = vec![0; 40];
        (header[0], header[6]) = (0x60, protocol);
        header
    };
    let tcp = |words: u8| {
        let mut header = vec![0; usize::from(words) * 4];
        header[12] = words << 4;
        header
    };
    let cases = [
        // The headers of a segment, and what it carries: lengths that no other packet of this host has.
        ([ipv4(5, 6), tcp(8)].concat(), 1001, 1),
        ([ipv4(5, 6), tcp(8)].concat(), 1011, 5),
        ([ipv4(7, 6), tcp(5)].concat(), 1021, 44),
        ([ipv6(6), tcp(8)].concat(), 1031, 7),
        ([ipv4(5, 17), vec![0; 8]].concat(), 1041, 9),
        ([ipv6(17), vec![0; 8]].concat(), 1051, 3),
        // Another protocol: IP's header alone is known.
        (ipv4(5, 132), 1061, 2),
    ];
    let mut expected = Vec::new();
    for (headers, payload, segments) in &cases {
        let packet = [&headers[..], &vec![7; *payload]].concat();
        counters.count_frame(&frame(&packet), *segments).unwrap();
        expected.push(packet.len() as u64 + u64::from(*segments - 1) * headers.len() as u64);
    }
    let mut counted = Vec::new();
    counters.read(|socket| counted.push(socket.bytes_in)).unwrap();
    for bytes in expected {
        assert!(counted.contains(&bytes), "{bytes} is not among {counted:?}");
    }
    Ok(())
}

pub fn the_sockets_bytes_are_those_of_the_interface() -> Outcome {
    const UPLOAD: u64 = 30_000_000;
    let (host, remote) = &host_and_remote();
    let [[host_v4, _], [remote_v4, _]] = [1, 2].map(address);
    let mut counters = needs_packets()?;
    let interface = || -> Vec<u64> {
        // Bytes with Ethernet headers, and packets, each received and sent.
        let names = ["rx_bytes", "tx_bytes", "rx_packets", "tx_packets"];
        let text = host.shell("ip -s -j link show dev cable");
        let figure = |name: &str, direction: &str| -> u64 {
            let part = text.split(&format!("\"{direction}\":{{")).nth(1).unwrap();
            let value = part.split(&format!("\"{name}\":")).nth(1).unwrap();
            value.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
        };
        names
            .map(|name| {
                let (direction, what) = name.split_once('_').unwrap();
                figure(what, direction)
            })
            .to_vec()
    };
    let before = interface();
    let listener = remote.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
    let server = format!("{remote_v4}:{}", listener.local_addr().unwrap().port());
    let receiving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        stream
    });
    let mut client = host.run(|| TcpStream::connect(server).unwrap());
    std::io::copy(&mut std::io::repeat(7).take(UPLOAD), &mut client).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    receiving.join().unwrap();
    let after = interface();
    let (mut bytes_in, mut bytes_out) = (0, 0);
    let ours: IpAddr = host_v4.parse().unwrap();
    counters
        .read(|socket| {
            if socket.tuple.is_some_and(|tuple| tuple.source.address() == ours) && !socket.loopback {
                (bytes_in, bytes_out) = (bytes_in + socket.bytes_in, bytes_out + socket.bytes_out);
            }
        })
        .unwrap();
    const ETHERNET_HEADER: u64 = 14;
    let passed = |at: usize| (after[at] - before[at]) - (after[at + 2] - before[at + 2]) * ETHERNET_HEADER;
    // ARP and neighbour discovery pass the interface too.
    let near = |counted: u64, passed: u64| counted <= passed && (passed - counted) * 1000 <= passed.max(UPLOAD);
    let (received, sent) = (passed(0), passed(1));
    assert!(near(bytes_in, received) && near(bytes_out, sent), "{bytes_in}/{bytes_out} of {received}/{sent}");
    Ok(())
}

pub fn connections_that_this_side_closes_first_count_to_their_last_segment() -> Outcome {
    const CONNECTIONS: usize = 100;
    let mut counters = needs_time_wait()?;
    let (host, remote) = &host_and_remote();
    let truth = Truth::new(host);
    let [host_ends, remote_ends] = [1, 2].map(address);
    let mut cookies = HashSet::new();
    let (mut bytes_in, mut bytes_out) = (0, 0);
    for (family, [ours, theirs]) in ["v4", "v6"].into_iter().zip([0, 1].map(|at| [&host_ends[at], &remote_ends[at]])) {
        let (ours, theirs): (IpAddr, IpAddr) = (ours.parse().unwrap(), theirs.parse().unwrap());
        let listener = remote.run(|| TcpListener::bind((theirs, 0)).unwrap());
        let server = listener.local_addr().unwrap();
        truth.count(family, "tcp", server.port());
        // With and without timestamps, with which a segment is 12 bytes longer.
        for timestamps in [1, 0] {
            host.shell(&format!("sysctl -w net.ipv4.tcp_timestamps={timestamps}"));
            for _ in 0..CONNECTIONS {
                let mut client = host.run(|| TcpStream::connect(server).unwrap());
                let (mut accepted, _) = listener.accept().unwrap();
                client.write_all(b"a request").unwrap();
                drop(client);
                // Closes when the client has closed: with an ACK and a FIN to a socket that is none any more.
                accepted.read_to_end(&mut Vec::new()).unwrap();
            }
        }
        // The other side sends more after this one has closed, and gets a reset.
        let mut client = host.run(|| TcpStream::connect(server).unwrap());
        let (mut accepted, _) = listener.accept().unwrap();
        client.write_all(b"a request").unwrap();
        drop(client);
        accepted.read_to_end(&mut Vec::new()).unwrap();
        wait_for("the connection without a socket", || {
            let closing = host.shell(&format!("ss -Htn state fin-wait-2 dport = :{}", server.port()));
            (!closing.is_empty()).then_some(())
        });
        accepted.write_all(b"more").unwrap();
        wait_for("the reset", || accepted.take_error().unwrap());
        wait_for("the bytes of all segments", || {
            let overflow = counters.read(|socket| {
                if socket.tuple.is_some_and(|tuple| tuple.source.address() == ours) {
                    cookies.insert(socket.cookie);
                }
                if cookies.contains(&socket.cookie) {
                    (bytes_in, bytes_out) = (bytes_in + socket.bytes_in, bytes_out + socket.bytes_out);
                }
            });
            assert_eq!(overflow.unwrap(), (0, 0));
            let passed = truth.bytes().values().fold((0, 0), |sum, bytes| (sum.0 + bytes.0, sum.1 + bytes.1));
            assert!((bytes_out, bytes_in) <= passed, "{:?} of {passed:?}", (bytes_out, bytes_in));
            ((bytes_out, bytes_in) == passed).then_some(())
        });
    }
    Ok(())
}

/// The bytes that the server below answers with, whatever it is asked.
const UDP_ANSWER: usize = 700;

pub fn play(words: &[&str]) -> bool {
    let ["answer_udp"] = words else { return false };
    let server = UdpSocket::bind("[::]:0").unwrap();
    tell(server.local_addr().unwrap().port());
    let mut question = [0; 2000];
    while let Ok((_, client)) = server.recv_from(&mut question) {
        server.send_to(&[7; UDP_ANSWER], client).unwrap();
    }
    true
}

fn record(program: &Running) -> Value {
    serde_json::from_str(&program.line()).unwrap()
}

pub fn a_socket_without_a_peer_shows_each_of_its_remote_ends() -> Outcome {
    needs_remotes()?;
    let (host, remote) = &host_and_remote();
    let other = &Namespace::new();
    host.connect("second", address(5), other, address(6));
    let [[host_v4, _], [_, second_v6]] = [1, 5].map(address);
    let mut monitor = Command::new(RUNMONITOR);
    let include = format!("--include={}", tag());
    monitor.args(["--json", "--source=packets", "--remotes=9", "--interval=0.3", &include]).stdin(Stdio::null());
    let monitor = Running::start(&mut monitor);
    // From then on it counts.
    while record(&monitor)["kind"] != "tick" {}
    let server = start_role(host, "udp_server", "answer_udp");
    let port = told(&server);
    // Clients with their own sizes and numbers of datagrams: two in one namespace, one over IPv6, one over loopback.
    let clients = [
        (remote, "0.0.0.0:0", format!("{host_v4}:{port}"), 100, 50),
        (remote, "0.0.0.0:0", format!("{host_v4}:{port}"), 900, 7),
        (other, "[::]:0", format!("[{second_v6}]:{port}"), 333, 20),
        (host, "127.0.0.1:0", format!("127.0.0.1:{port}"), 50, 30),
    ];
    let mut expected = BTreeMap::new();
    let mut sockets = Vec::new();
    for (namespace, from, to, length, datagrams) in clients {
        let client = namespace.run(|| {
            let client = UdpSocket::bind(from).unwrap();
            client.connect(&to).unwrap();
            client
        });
        for _ in 0..datagrams {
            client.send(&vec![7; length]).unwrap();
            assert_eq!(client.recv(&mut [0; 2000]).unwrap(), UDP_ANSWER);
        }
        let end = client.local_addr().unwrap();
        let headers = if end.is_ipv4() { 20 + 8 } else { 40 + 8 };
        let bytes = |payload: usize| (datagrams * (headers + payload)) as u64;
        expected.insert((end.ip().to_string(), u64::from(end.port())), (bytes(length), bytes(UDP_ANSWER)));
        sockets.push(client);
    }
    let give_up = Instant::now() + DEADLINE;
    loop {
        let record = record(&monitor);
        assert!(Instant::now() < give_up, "{record:#}, not {expected:#?}");
        if record["kind"] != "process" || !record["command_line"].as_str().unwrap().starts_with("udp_server") {
            continue;
        }
        let bytes = |end: &Value| {
            let bytes = ["in_bytes_total", "out_bytes_total"].map(|field| end[field].as_u64().unwrap());
            (bytes[0], bytes[1])
        };
        let ends = record["remotes"].as_array().unwrap();
        assert!(ends.iter().all(|end| end["protocol"] == "udp"), "{record:#}");
        let end = |end: &Value| {
            let (address, port) = (end["address"].as_str().unwrap().to_owned(), end["port"].as_u64().unwrap());
            ((address, port), bytes(end))
        };
        let shown: BTreeMap<_, _> = ends.iter().map(end).collect();
        let all = shown
            .values()
            .chain([&bytes(&record["other_remotes"])])
            .fold((0, 0), |sum, end| (sum.0 + end.0, sum.1 + end.1));
        assert_eq!(all, bytes(&record), "{record:#}");
        if shown == expected {
            assert_eq!(bytes(&record["other_remotes"]), (0, 0));
            return Ok(());
        }
    }
}

pub fn a_flood_of_addresses_at_one_socket_takes_no_room_from_another() -> Outcome {
    const FLOOD: u32 = 100_000;
    const BYTES: u64 = 28 + 1;
    let mut counters = needs_remotes()?;
    let [flooded, other, receiver] = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = receiver.local_addr().unwrap();
    for n in 0..FLOOD {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + n);
        flooded.send_to(b"x", SocketAddr::from((address, to.port()))).unwrap();
    }
    other.send_to(b"x", to).unwrap();
    let from = [&flooded, &other].map(|socket| socket.local_addr().unwrap().port());
    let mut cookies = [0; 2];
    let (mut sent, mut told_apart) = ([0; 2], [0; 2]);
    let mut ends = Vec::new();
    let overflow = counters.read_with_remotes(
        |socket| {
            let port = socket.tuple.map(|tuple| tuple.source.port);
            if let Some(at) = from.iter().position(|from| Some(*from) == port) {
                (cookies[at], sent[at]) = (socket.cookie, socket.bytes_out);
            }
        },
        |end| ends.push(end),
    );
    assert_eq!(overflow.unwrap(), (0, 0));
    for end in &ends {
        if let Some(at) = cookies.iter().position(|cookie| *cookie == end.cookie) {
            told_apart[at] += end.bytes_out;
        }
    }
    assert_eq!(sent, [u64::from(FLOOD) * BYTES, BYTES]);
    assert!((1000 * BYTES..10_000 * BYTES).contains(&told_apart[0]), "{told_apart:?}");
    assert_eq!(told_apart[1], BYTES);
    Ok(())
}
