//! Sockets as the kernel lists them: which one has a given tuple, and how much TCP payload each has carried.
//!
//! A request is a struct inet_diag_req_v2, a reply a struct inet_diag_msg and attributes (sock_diag(7),
//! include/uapi/linux/inet_diag.h; the kernel's side is net/ipv4/inet_diag.c). `ss` prints the same data.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc::{AF_INET, AF_INET6};

use crate::kernel::flow::{Counters, Endpoint, Flow, Protocol, Tuple};
use crate::kernel::netlink::{Netlink, attributes, protocol, u32_at, u64_at};

/// SOCK_DIAG_BY_FAMILY: the type of requests and of replies.
const BY_FAMILY: u16 = 20;
/// INET_DIAG_INFO: the attribute with struct tcp_info; a request asks for it with the bit `1 << (INFO - 1)`.
const INFO: u16 = 2;
/// Offsets in struct tcp_info (include/uapi/linux/tcp.h), which grows only at its end.
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
/// A mask of the states in which a socket carries data: all but TIME_WAIT (6), LISTEN (10) and NEW_SYN_RECV (12) of
/// include/net/tcp_states.h.
const CARRYING: u32 = !(1 << 6 | 1 << 10 | 1 << 12);
/// The state LISTEN, as a mask.
const LISTENING: u32 = 1 << 10;
/// TCP_CLOSE and TCP_LAST_ACK: no more data comes or goes.
const CLOSED: [u8; 2] = [7, 9];
/// SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY, groups 1 and 3, as a mask.
const TCP_DESTROY_GROUPS: u32 = 0b101;
/// The most datagrams about destroyed sockets that are read at a time. The owner of the namespace can send them faster than
/// they can be read.
const DESTROYED_AT_A_TIME: usize = 100_000;

/// A socket of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The local end; the address is unspecified (::) where the socket is bound to all addresses of the host.
    pub local: Endpoint,
    /// The remote end; unspecified (port 0, address ::) where the socket is not connected.
    pub remote: Endpoint,
    /// The inode of its file in sockfs, unique on the host; 0 where no process holds the socket.
    pub inode: u32,
    /// The number that the kernel gives to no other socket, ever.
    pub cookie: u64,
}

impl Socket {
    /// Whether the socket has a peer: it is neither a listener nor a UDP socket that receives datagrams from any
    /// source.
    pub fn is_connected(&self) -> bool {
        self.remote.port != 0
    }
}

/// A netlink socket that queries the sockets of the network namespace in which it was opened.
#[derive(Debug)]
pub struct SockDiag {
    queries: Netlink,
    /// A second netlink socket: a dump that its deadline has interrupted goes on when the next one begins, and what waits of it is not
    /// to come between a query and its reply.
    dumps: Netlink,
    /// A third one, for the same reason.
    destroy_events: Option<Netlink>,
}

impl SockDiag {
    /// Opens one for the network namespace of the calling thread.
    ///
    /// # Errors
    /// Where the kernel lacks sock_diag (CONFIG_INET_DIAG).
    pub fn open() -> nix::Result<Self> {
        let open = || Netlink::open(protocol::SOCK_DIAG, 0);
        Ok(Self { queries: open()?, dumps: open()?, destroy_events: None })
    }

    /// Opens one that also receives every TCP socket that the kernel destroys, with its final counters; see
    /// [`SockDiag::destroyed`].
    ///
    /// # Errors
    /// As [`SockDiag::open`].
    pub fn with_destroy_events() -> nix::Result<Self> {
        let destroy_events = Netlink::open(protocol::SOCK_DIAG, TCP_DESTROY_GROUPS)?;
        // A message has some 400 bytes: room for tens of thousands of sockets that close within one tick.
        destroy_events.set_receive_buffer(16 << 20);
        Ok(Self { destroy_events: Some(destroy_events), ..Self::open()? })
    }

    /// The socket to which the kernel would deliver a packet from `remote` to `local`: the connected one, else a
    /// listener or an unconnected one. The kernel does the matching, including wildcard addresses and dual-stack
    /// sockets.
    ///
    /// # Errors
    /// The kernel's error for the request, except ENOENT, which is `None`.
    pub fn find(&mut self, protocol: Protocol, local: Endpoint, remote: Endpoint) -> nix::Result<Option<Socket>> {
        // The kernel looks up a TCP socket by the socket's view of source and destination, a UDP socket by the view of
        // a packet that comes from `remote` (inet_diag_find_one_icsk and udp_dump_one).
        let (source, destination) = match protocol {
            Protocol::Tcp => (local, remote),
            Protocol::Udp | Protocol::Other(_) => (remote, local),
        };
        let mut found = None;
        let request = request(protocol, Some((source, destination)), u32::MAX, 0);
        match self.queries.request(BY_FAMILY, &request, |message| found = parse(protocol, message.payload)) {
            Ok(()) => Ok(found.map(|message| message.socket)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls `visit` with every socket of `protocol`, IPv4 and IPv6, that carries data.
    ///
    /// # Errors
    /// ETIME where `deadline` passes before the kernel has listed all, or the kernel's error for the request.
    pub fn dump(&mut self, protocol: Protocol, deadline: Instant, mut visit: impl FnMut(Socket)) -> nix::Result<()> {
        self.dump_messages(protocol, CARRYING, 0, deadline, |message| visit(message.socket))
    }

    /// Calls `visit` with every TCP socket that listens, IPv4 and IPv6.
    ///
    /// # Errors
    /// ETIME where `deadline` passes before the kernel has listed all, or the kernel's error for the request.
    pub fn dump_listeners(&mut self, deadline: Instant, mut visit: impl FnMut(Socket)) -> nix::Result<()> {
        self.dump_messages(Protocol::Tcp, LISTENING, 0, deadline, |message| visit(message.socket))
    }

    /// Calls `visit` with every socket of `protocol` that is open, IPv4 and IPv6, as a flow from its local end to its remote
    /// end. The counters of a TCP socket are its payload; others have none.
    ///
    /// # Errors
    /// ETIME where `deadline` passes before the kernel has listed all, or the kernel's error for the request: ENOENT where it
    /// cannot list sockets of this protocol.
    pub fn dump_open(
        &mut self,
        protocol: Protocol,
        deadline: Instant,
        mut visit: impl FnMut(&Flow),
    ) -> nix::Result<()> {
        let states = CARRYING | LISTENING;
        self.dump_messages(protocol, states, 1 << (INFO - 1), deadline, |message| visit(&message.flow()))
    }

    /// Calls `visit` with every TCP socket that carries data, as a flow whose counters are its payload.
    ///
    /// # Errors
    /// ETIME where `deadline` passes before the kernel has listed all, or the kernel's error for the request.
    pub fn dump_flows(&mut self, deadline: Instant, mut visit: impl FnMut(&Flow)) -> nix::Result<()> {
        self.dump_messages(Protocol::Tcp, CARRYING, 1 << (INFO - 1), deadline, |message| visit(&message.flow()))
    }

    /// Calls `visit` with every TCP socket that the kernel destroyed since the last call, up to some 100,000. Does nothing
    /// unless opened [with destroy events](SockDiag::with_destroy_events).
    ///
    /// # Errors
    /// ENOBUFS: the kernel dropped events, since the socket's buffer was full.
    pub fn destroyed(&mut self, mut visit: impl FnMut(&Flow)) -> nix::Result<()> {
        let Some(destroy_events) = &mut self.destroy_events else { return Ok(()) };
        destroy_events.events(DESTROYED_AT_A_TIME, |message| {
            if message.kind == BY_FAMILY
                && let Some(diag) = parse(Protocol::Tcp, message.payload)
            {
                visit(&Flow { open: false, ..diag.flow() });
            }
        })?;
        Ok(())
    }

    fn dump_messages(
        &mut self,
        protocol: Protocol,
        states: u32,
        extensions: u8,
        deadline: Instant,
        mut visit: impl FnMut(DiagMessage),
    ) -> nix::Result<()> {
        // One for which the time was too short, or that ended in an error.
        let mut complete = self.dumps.read_dump(deadline, |_| {})?;
        for family in [AF_INET, AF_INET6] {
            if !complete {
                return Err(Errno::ETIME);
            }
            let mut request = request(protocol, None, states, extensions);
            request[0] = family as u8;
            self.dumps.begin_dump(BY_FAMILY, &request)?;
            complete = self.dumps.read_dump(deadline, |message| {
                if message.kind == BY_FAMILY
                    && let Some(diag) = parse(protocol, message.payload)
                {
                    visit(diag);
                }
            })?;
        }
        if complete { Ok(()) } else { Err(Errno::ETIME) }
    }
}

/// One struct inet_diag_msg, with its attributes.
pub(crate) struct DiagMessage {
    socket: Socket,
    state: u8,
    counters: Option<Counters>,
}

impl DiagMessage {
    fn flow(&self) -> Flow {
        let original =
            Tuple { protocol: self.socket.protocol, source: self.socket.local, destination: self.socket.remote };
        Flow {
            original,
            reply: original.reversed(),
            zone: 0,
            id: self.socket.cookie,
            counters: self.counters,
            open: !CLOSED.contains(&self.state),
            socket: Some(self.socket.inode),
        }
    }
}

/// struct inet_diag_req_v2: family, protocol, extensions, padding, states, and struct inet_diag_sockid.
fn request(protocol: Protocol, ends: Option<(Endpoint, Endpoint)>, states: u32, extensions: u8) -> [u8; 56] {
    let mut request = [0; 56];
    request[1] = protocol.number();
    request[2] = extensions;
    request[4..8].copy_from_slice(&states.to_ne_bytes());
    if let Some((source, destination)) = ends {
        request[8..10].copy_from_slice(&source.port.to_be_bytes());
        request[10..12].copy_from_slice(&destination.port.to_be_bytes());
        // An IPv4 query finds dual-stack sockets too.
        if let (Some(source), Some(destination)) = (source.ipv4(), destination.ipv4()) {
            request[0] = AF_INET as u8;
            request[12..16].copy_from_slice(&source.octets());
            request[28..32].copy_from_slice(&destination.octets());
        } else {
            request[0] = AF_INET6 as u8;
            request[12..28].copy_from_slice(&source.ipv6().octets());
            request[28..44].copy_from_slice(&destination.ipv6().octets());
        }
    }
    // INET_DIAG_NOCOOKIE
    request[48..56].fill(0xff);
    request
}

/// struct inet_diag_msg: family, state, timer, retransmits, struct inet_diag_sockid (48 bytes), expires, receive queue,
/// send queue, user, inode; 72 bytes.
pub(crate) fn parse(protocol: Protocol, payload: &[u8]) -> Option<DiagMessage> {
    let message = payload.get(..72)?;
    let port = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<std::net::IpAddr> {
        if i32::from(message[0]) == AF_INET {
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(message.get(at..at + 4)?).ok()?).into())
        } else {
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(message.get(at..at + 16)?).ok()?).into())
        }
    };
    let info = attributes(&payload[72..]).find(|(kind, _)| *kind == INFO).map(|(_, info)| info);
    let counters = info
        .and_then(|info| Some(Counters { original: u64_at(info, BYTES_ACKED)?, reply: u64_at(info, BYTES_RECEIVED)? }));
    Some(DiagMessage {
        socket: Socket {
            protocol,
            local: Endpoint::new(address(8)?, port(4)?),
            remote: Endpoint::new(address(24)?, port(6)?),
            inode: u32_at(message, 68)?,
            cookie: u64_at(message, 44)?,
        },
        state: message[1],
        counters,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn queries_take_nothing_of_a_dump_that_is_not_complete() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let local = Endpoint::new(address.ip(), address.port());
        let mut diag = SockDiag::open().unwrap();
        assert_eq!(diag.dump_listeners(Instant::now(), |_| {}), Err(Errno::ETIME));
        // More queries than the interrupted dump has messages.
        for _ in 0..20 {
            assert!(diag.find(Protocol::Tcp, local, Endpoint::new(local.address(), 1)).unwrap().is_some());
        }
        let mut found = false;
        let listed =
            diag.dump_listeners(Instant::now() + Duration::from_secs(60), |socket| found |= socket.local == local);
        assert_eq!((listed, found), (Ok(()), true));
    }
}
