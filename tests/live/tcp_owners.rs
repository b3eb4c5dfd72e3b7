//! What the BPF program records of TCP connections, over loopback.
//!
//! Each test runs in a process of its own: a process that another test starts has a copy of this one's sockets until it
//! calls execve(2), so that a close here would not be the last.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use bwmon::kernel::bpf::tcp_owners::TcpOwners;
use bwmon::kernel::flow::{Endpoint, Protocol, Tuple};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::support::harness::{Outcome, needs_bpf, needs_ipv6};

/// A connection whose client has this port; 0 is any.
fn connect(from: u16, to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let client = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    socket::setsockopt(&client, sockopt::ReuseAddr, &true).unwrap();
    socket::bind(client.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to.ip(), from))).unwrap();
    socket::connect(client.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    client.into()
}

fn tuple(source: SocketAddr, destination: SocketAddr) -> Tuple {
    let [source, destination] = [source, destination].map(|end| Endpoint::new(end.ip(), end.port()));
    Tuple { protocol: Protocol::Tcp, source, destination }
}

/// A process whose standard input is a connection, and which ends with it.
fn reader(stream: TcpStream) -> Child {
    Command::new("cat").stdin(Stdio::from(OwnedFd::from(stream))).stdout(Stdio::null()).spawn().unwrap()
}

pub fn the_connecting_and_the_closing_process_of_a_connection_are_recorded() -> Outcome {
    let owners = needs_bpf()?;
    connecting_and_closing_are_recorded(&owners, Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into());
    Ok(())
}

pub fn the_same_is_recorded_over_ipv6_and_on_a_dual_stack_socket() -> Outcome {
    let owners = needs_bpf()?;
    needs_ipv6()?;
    connecting_and_closing_are_recorded(&owners, Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    connecting_and_closing_are_recorded(&owners, Ipv4Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into());
    Ok(())
}

fn connecting_and_closing_are_recorded(owners: &TcpOwners, address: IpAddr, listen: IpAddr) {
    let listener = TcpListener::bind((listen, 0)).unwrap();
    let server = SocketAddr::new(address, listener.local_addr().unwrap().port());
    let client = connect(0, server);
    let to_server = tuple(client.local_addr().unwrap(), server);
    let to_client = to_server.reversed();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(owners.owner(&to_server), Some(std::process::id()));
    assert_eq!(owners.closed_by(&to_server), None);
    assert_eq!(owners.owner(&to_client), None);

    let mut child = reader(accepted);
    // Not close(2): the child has a copy of this socket until it calls execve(2).
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(owners.closed_by(&to_server), Some(std::process::id()));
    assert!(child.wait().unwrap().success());
    assert_eq!(owners.closed_by(&to_client), Some(child.id()));
    assert_eq!(owners.owner(&to_client), Some(child.id()));
}

pub fn the_next_connection_between_the_same_ports_begins_without_a_record() -> Outcome {
    let owners = needs_bpf()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = listener.local_addr().unwrap();
    let first = connect(0, server);
    let port = first.local_addr().unwrap().port();
    let to_server = tuple(first.local_addr().unwrap(), server);
    // The server closes first and keeps the TIME_WAIT, so that the client's port is free at once.
    drop(listener.accept().unwrap());
    assert_eq!((&first).read(&mut [0]).unwrap(), 0);
    drop(first);
    let this = Some(std::process::id());
    assert_eq!((owners.closed_by(&to_server), owners.closed_by(&to_server.reversed())), (this, this));

    let _second = connect(port, server);
    assert_eq!((owners.owner(&to_server), owners.closed_by(&to_server)), (this, None));
    assert_eq!(owners.owner(&to_server.reversed()), None);
    Ok(())
}
