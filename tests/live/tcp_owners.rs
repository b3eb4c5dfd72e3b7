//! What the kernel notes of connections, over loopback.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use bwmon::kernel::bpf::tcp_owners::TcpOwners;
use bwmon::kernel::flow::{Endpoint, Protocol, Tuple};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

/// A connection whose client has this port, or any where that is 0.
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

/// A program that has a connection as its standard input, and ends when it hears of its end there.
fn reader(stream: TcpStream) -> std::process::Child {
    Command::new("cat").stdin(Stdio::from(std::os::fd::OwnedFd::from(stream))).stdout(Stdio::null()).spawn().unwrap()
}

/// One test for all, since a process that another starts has this one's connections for a moment.
pub fn what_is_noted() {
    match TcpOwners::attach() {
        Ok(owners) => {
            let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
            whoever_closes_is_noted_at_either_end(&owners, v4, v4);
            whoever_closes_is_noted_at_either_end(&owners, v4, Ipv6Addr::UNSPECIFIED.into());
            whoever_closes_is_noted_at_either_end(&owners, v6, v6);
            the_next_connection_with_the_same_ends_begins_without_notes(&owners);
        }
        // Past the test harness, which shows what a test prints only if it fails.
        Err(error) => writeln!(io::stderr(), "what_is_noted is skipped: {error}").unwrap(),
    }
}

fn whoever_closes_is_noted_at_either_end(owners: &TcpOwners, address: IpAddr, listen: IpAddr) {
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
    // The child closes what it got of ours a moment after it has begun, so that a mere close may not be the last.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(owners.closed_by(&to_server), Some(std::process::id()));
    assert!(child.wait().unwrap().success());
    assert_eq!(owners.closed_by(&to_client), Some(child.id()));
    assert_eq!(owners.owner(&to_client), Some(child.id()));
}

fn the_next_connection_with_the_same_ends_begins_without_notes(owners: &TcpOwners) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = listener.local_addr().unwrap();
    let first = connect(0, server);
    let port = first.local_addr().unwrap().port();
    let to_server = tuple(first.local_addr().unwrap(), server);
    // The server closes first, so that the client's port is free at once.
    drop(listener.accept().unwrap());
    assert_eq!((&first).read(&mut [0]).unwrap(), 0);
    drop(first);
    let me = Some(std::process::id());
    assert_eq!((owners.closed_by(&to_server), owners.closed_by(&to_server.reversed())), (me, me));

    let _second = connect(port, server);
    assert_eq!((owners.owner(&to_server), owners.closed_by(&to_server)), (me, None));
    assert_eq!(owners.owner(&to_server.reversed()), None);
}
