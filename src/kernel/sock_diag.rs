//! Sockets as the kernel lists them: which one has this tuple, and how much TCP payload each has carried.
//!
//! A request is a struct inet_diag_req_v2, an answer a struct inet_diag_msg and attributes (sock_diag(7),
//! include/uapi/linux/inet_diag.h; the kernel's side is net/ipv4/inet_diag.c). What `ss` prints comes from here.

use std::net::{Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use nix::libc::{AF_INET, AF_INET6};

use crate::kernel::flow::{Counters, Endpoint, Flow, Protocol, Tuple};
use crate::kernel::netlink::{self, Netlink, attributes, u32_at, u64_at};

/// SOCK_DIAG_BY_FAMILY: the request, and the type of every answer.
const BY_FAMILY: u16 = 20;
/// INET_DIAG_INFO: the attribute that holds struct tcp_info; asked for by the bit of its number less one.
const INFO: u16 = 2;
/// Offsets in struct tcp_info (include/uapi/linux/tcp.h), which only ever grew at its end.
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
/// The states whose sockets carry data, as bits: all but TIME_WAIT (6), LISTEN (10) and NEW_SYN_RECV (12) of
/// include/net/tcp_states.h.
const CARRYING: u32 = !(1 << 6 | 1 << 10 | 1 << 12);
/// TCP_CLOSE and TCP_LAST_ACK: no more data.
const CLOSED: [u8; 2] = [7, 9];
/// SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY, groups 1 and 3, as a mask.
const TCP_DESTROY_GROUPS: u32 = 0b101;

/// A socket that the kernel found for a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// The transport protocol, its own end and the other: unspecified (port 0, address ::) where it is not connected.
    pub protocol: Protocol,
    /// Its own end; the address is unspecified where it takes every one of the host's.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// The inode of its file in sockfs, unique on the host; 0 for a socket without process.
    pub inode: u32,
}

impl Socket {
    /// Whether it takes part in one connection only: no listener, and no UDP socket that talks to anybody.
    pub fn is_connected(&self) -> bool {
        self.remote.port != 0
    }
}

/// A socket for questions about sockets, of the network namespace it was opened in.
#[derive(Debug)]
pub struct SockDiag {
    questions: Netlink,
    /// Apart from the questions, whose answers would mix with what comes unasked.
    destroy_events: Option<Netlink>,
}

impl SockDiag {
    /// Opens one for the network namespace of the calling thread.
    ///
    /// # Errors
    /// Where the kernel lacks sock_diag (CONFIG_INET_DIAG).
    pub fn open() -> nix::Result<Self> {
        Ok(Self { questions: Netlink::open(netlink::protocol::SOCK_DIAG, 0)?, destroy_events: None })
    }

    /// Opens one that also hears of every TCP socket's end, with its last figures; see [`SockDiag::destroyed`].
    ///
    /// # Errors
    /// As [`SockDiag::open`].
    pub fn with_destroy_events() -> nix::Result<Self> {
        let destroy_events = Netlink::open(netlink::protocol::SOCK_DIAG, TCP_DESTROY_GROUPS)?;
        // A message has some 400 bytes: room for tens of thousands that close within one tick.
        destroy_events.set_receive_buffer(16 << 20);
        Ok(Self { destroy_events: Some(destroy_events), ..Self::open()? })
    }

    /// The socket that a packet from `remote` to `local` would be given to: the connected one, else a listener or an
    /// unconnected one. The kernel does the matching, wildcard addresses and dual-stack sockets included.
    ///
    /// # Errors
    /// What the kernel answers, other than that there is none.
    pub fn find(&mut self, protocol: Protocol, local: Endpoint, remote: Endpoint) -> nix::Result<Option<Socket>> {
        // The kernel looks a TCP socket up from its own side, and a UDP one from the packet's, which comes from `remote`
        // (inet_diag_find_one_icsk and udp_dump_one).
        let (source, destination) = match protocol {
            Protocol::Tcp => (local, remote),
            Protocol::Udp => (remote, local),
        };
        let mut found = None;
        let request = request(protocol, Some((source, destination)), u32::MAX, 0);
        match self.questions.request(BY_FAMILY, 0, &request, |message| found = parse(protocol, message.payload)) {
            Ok(()) => Ok(found.map(|row| row.socket)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls `visit` with every socket of `protocol`, IPv4 and IPv6, that carries data.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn dump(&mut self, protocol: Protocol, mut visit: impl FnMut(Socket)) -> nix::Result<()> {
        self.dump_rows(protocol, 0, |row| visit(row.socket))
    }

    /// Calls `visit` with every TCP socket that carries data, as a flow that counts its payload.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn dump_flows(&mut self, mut visit: impl FnMut(&Flow)) -> nix::Result<()> {
        self.dump_rows(Protocol::Tcp, 1 << (INFO - 1), |row| visit(&row.flow()))
    }

    /// Calls `visit` with every TCP socket that ended since the call before.
    ///
    /// # Errors
    /// ENOBUFS: some were lost.
    pub fn destroyed(&mut self, mut visit: impl FnMut(&Flow)) -> nix::Result<()> {
        let Some(destroy_events) = &mut self.destroy_events else { return Ok(()) };
        destroy_events.events(usize::MAX, |message| {
            if message.kind == BY_FAMILY
                && let Some(row) = parse(Protocol::Tcp, message.payload)
            {
                visit(&Flow { open: false, ..row.flow() });
            }
        })?;
        Ok(())
    }

    fn dump_rows(&mut self, protocol: Protocol, extensions: u8, mut visit: impl FnMut(Row)) -> nix::Result<()> {
        for family in [AF_INET, AF_INET6] {
            let mut request = request(protocol, None, CARRYING, extensions);
            request[0] = family as u8;
            self.questions.request(BY_FAMILY, netlink::DUMP, &request, |message| {
                if message.kind == BY_FAMILY
                    && let Some(row) = parse(protocol, message.payload)
                {
                    visit(row);
                }
            })?;
        }
        Ok(())
    }
}

/// One answer.
struct Row {
    socket: Socket,
    cookie: u64,
    state: u8,
    counters: Option<Counters>,
}

impl Row {
    fn flow(&self) -> Flow {
        let original =
            Tuple { protocol: self.socket.protocol, source: self.socket.local, destination: self.socket.remote };
        Flow {
            original,
            reply: original.reversed(),
            zone: 0,
            id: self.cookie,
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
        // An IPv4 question finds dual-stack sockets too.
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
fn parse(protocol: Protocol, payload: &[u8]) -> Option<Row> {
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
    Some(Row {
        socket: Socket {
            protocol,
            local: Endpoint::new(address(8)?, port(4)?),
            remote: Endpoint::new(address(24)?, port(6)?),
            inode: u32_at(message, 68)?,
        },
        cookie: u64_at(message, 44)?,
        state: message[1],
        counters,
    })
}
