//! Packets counted per socket, on hosts where conntrack tracks nothing.

use std::net::UdpSocket;

use bwmon::kernel::bpf::packet_counters::PacketCounters;

use crate::common::program::wait_for;
use crate::counting::{Flow, Traffic, figures_of};
use crate::support::harness::{Outcome, needs_packets};
use crate::support::monitor::Monitor;
use crate::support::netns::{Namespace, address, host_and_remote};
use crate::support::role::{start_role, told};
use crate::support::truth::Truth;

/// Processes that make one connection each and end.
const SHORT: usize = 40;

/// A monitor that has shown its first figures: of what a connection carried before it knows the payload alone.
fn monitor() -> Monitor {
    let monitor = Monitor::start(&["--source=packets"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let itself = socket.local_addr().unwrap();
    wait_for("the first figures", || {
        socket.send_to(b"x", itself).unwrap();
        (!monitor.program.stdout.so_far().is_empty()).then_some(())
    });
    monitor
}

pub fn without_conntrack_every_kind_of_flow_is_counted_exactly() -> Outcome {
    needs_packets()?;
    let (host, remote) = &host_and_remote();
    let [[host_v4, host_v6], [remote_v4, remote_v6]] = [address(1), address(2)].map(|[v4, v6]| [v4, format!("[{v6}]")]);
    let flow = |name, protocol, server, client| Flow { name, protocol, server, client };
    let flows = [
        flow("tcp_v4", "tcp", (remote, "0.0.0.0:0"), (host, "ask", &*remote_v4)),
        flow("tcp_v6", "tcp", (remote, "[::]:0"), (host, "ask", &remote_v6)),
        flow("tcp_dual_stack", "tcp", (host, "[::]:0"), (remote, "ask", &host_v4)),
        flow("tcp_server_v6", "tcp", (host, "[::]:0"), (remote, "ask", &host_v6)),
        flow("tcp_loopback", "tcp", (host, "127.0.0.1:0"), (host, "ask", "127.0.0.1")),
        flow("tcp_own_address", "tcp", (host, "[::]:0"), (host, "ask", &host_v4)),
        flow("udp_connected", "udp", (remote, "0.0.0.0:0"), (host, "ask-connected", &remote_v4)),
        flow("udp_unconnected", "udp", (remote, "0.0.0.0:0"), (host, "ask", &remote_v4)),
        flow("udp_server", "udp", (host, "0.0.0.0:0"), (remote, "ask-connected", &host_v4)),
        flow("udp_dual_stack", "udp", (host, "[::]:0"), (remote, "ask", &host_v4)),
        flow("udp_v6", "udp", (remote, "[::]:0"), (host, "ask-connected", &remote_v6)),
        flow("udp_loopback", "udp", (host, "127.0.0.1:0"), (host, "ask", "127.0.0.1")),
    ];
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

pub fn processes_that_end_at_once_are_credited() -> Outcome {
    needs_packets()?;
    let (host, remote) = &host_and_remote();
    let [remote_v4, _] = address(2);
    let mut monitor = monitor();
    let truth = Truth::new(host);
    let server = start_role(remote, "short_server", "join 0");
    let port = told(&server);
    truth.count("short", "tcp", port);
    for _ in 0..SHORT {
        let (status, ..) = start_role(host, "short_client", &format!("ask {remote_v4}:{port}")).end();
        assert!(status.success());
    }
    monitor.wait_until(|figures| {
        let (sent, received) = truth.bytes()["short"];
        let (bytes_in, bytes_out) = figures.get("short_client").copied().unwrap_or_default();
        // The last packets of a connection pass when its socket is closed already.
        let near = |shown: u64, all: u64| shown <= all && (all - shown) * 100 <= all;
        if near(bytes_in, received) && near(bytes_out, sent) { Ok(()) } else { Err(format!("{:?}", (received, sent))) }
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
    let mut counters = needs_packets()?;
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
    let mut sent = 0;
    let read = |counters: &mut PacketCounters| {
        let mut add = 0;
        let is_ours = |port: u16| port == from.port();
        let overflow = counters
            .read(|socket| {
                if socket.tuple.is_some_and(|tuple| is_ours(tuple.source.port)) && socket.maker.is_some() {
                    add += socket.bytes_out;
                }
            })
            .unwrap();
        assert_eq!(overflow, (0, 0));
        add
    };
    while !sending.is_finished() {
        sent += read(&mut counters);
    }
    let _sender = sending.join().unwrap();
    // What was added late is there at the next read.
    sent += read(&mut counters);
    sent += read(&mut counters);
    assert_eq!(sent, DATAGRAMS * BYTES);
    Ok(())
}
