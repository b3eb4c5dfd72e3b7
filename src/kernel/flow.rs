//! A flow: the two tuples by which conntrack knows a connection, and the bytes that went each way.
//!
//! The original tuple is that of the connection's first packet, the reply tuple that of the packets that come back.
//! Without address translation one is the reverse of the other. With it they differ, and a socket may have either.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// IPPROTO_TCP, 6.
    Tcp,
    /// IPPROTO_UDP, 17.
    Udp,
    /// Another, by its number in the IP header: ICMP, SCTP and so on.
    Other(u8),
}

impl Protocol {
    /// The protocol with an IP protocol number (RFC 790 and its successors).
    pub(crate) fn from_number(number: u8) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            other => Self::Other(other),
        }
    }

    /// The same, if it is TCP or UDP: the two whose flows conntrack counts for us.
    pub(crate) fn tcp_or_udp(number: u8) -> Option<Self> {
        Some(Self::from_number(number)).filter(|protocol| !matches!(protocol, Self::Other(_)))
    }

    /// The number in the IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Other(number) => number,
        }
    }
}

/// An address and a port.
///
/// IPv4 addresses are stored in their IPv6-mapped form (RFC 4291, 2.5.5.2), so that 10.0.0.1 of a conntrack entry
/// equals ::ffff:10.0.0.1 of a dual-stack socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    address: Ipv6Addr,
    /// In host byte order.
    pub port: u16,
}

impl Endpoint {
    /// No address and no port: of a socket that is not bound, or has no peer.
    pub const UNSPECIFIED: Self = Self { address: Ipv6Addr::UNSPECIFIED, port: 0 };

    /// The endpoint of an address, mapped or not.
    pub fn new(address: impl Into<IpAddr>, port: u16) -> Self {
        let address = match address.into() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self { address, port }
    }

    /// The address as it is usually written: IPv4 without the IPv6 prefix.
    pub fn address(self) -> IpAddr {
        self.address.to_canonical()
    }

    /// The address, if it is IPv4.
    pub fn ipv4(self) -> Option<Ipv4Addr> {
        self.address.to_ipv4_mapped()
    }

    /// The address as IPv6; IPv4 is mapped.
    pub fn ipv6(self) -> Ipv6Addr {
        self.address
    }

    /// Whether the address is that of any host to itself: 127.0.0.0/8 and ::1 (loopback), 0.0.0.0 and :: (any address, of
    /// a socket that has no connection). The original knew 127.0.0.* and 0.0.0.*.
    pub fn is_local(self) -> bool {
        let address = self.address();
        address.is_loopback() || address.is_unspecified()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address(), self.port).fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One direction of a connection, as in the headers of its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Where the packets come from.
    pub source: Endpoint,
    /// Where they go.
    pub destination: Endpoint,
}

impl Tuple {
    /// The tuple of the other direction, where no address is translated.
    pub fn reversed(self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }
}

/// Bytes counted along a flow: of IP packets with their headers where conntrack counts, of TCP payload where a socket
/// does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes along the original tuple.
    pub original: u64,
    /// Bytes along the reply tuple.
    pub reply: u64,
}

impl Counters {
    /// The bytes added since `earlier`; `None` where a counter went down, which means that it counts another flow.
    pub fn since(self, earlier: Self) -> Option<Self> {
        Some(Self {
            original: self.original.checked_sub(earlier.original)?,
            reply: self.reply.checked_sub(earlier.reply)?,
        })
    }
}

/// One row of a table with counters: a conntrack entry, or a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The tuple of the first packet.
    pub original: Tuple,
    /// The tuple of the packets that come back.
    pub reply: Tuple,
    /// The conntrack zone: equal tuples in two zones are two flows. For a socket, its network namespace. 0 where there
    /// is neither.
    pub zone: u32,
    /// Distinguishes this flow from a later one with the same tuple: conntrack's id, or the socket's cookie; 0 where
    /// the table has none.
    pub id: u64,
    /// The bytes so far; `None` where the kernel does not count them (nf_conntrack_acct was 0 when the flow began).
    pub counters: Option<Counters>,
    /// Whether the connection is still open; false once it is being closed (TIME_WAIT and the like).
    pub open: bool,
    /// The socket's inode, where the row is a socket. Then only the original tuple's source is an end of this flow: the
    /// other end, if it is on this host, is another row.
    pub socket: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mapped: Ipv6Addr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(Endpoint::new(mapped, 80), Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), 80));
        assert_eq!(format!("{:?}", Endpoint::new(mapped, 80)), "10.0.0.1:80");
    }

    #[test]
    fn an_endpoint_is_local_if_its_address_is_loopback_or_any() {
        let local = |text: &str| Endpoint::new(text.parse::<IpAddr>().unwrap(), 1).is_local();
        for text in
            ["127.0.0.1", "127.0.0.55", "127.0.1.1", "127.255.255.254", "0.0.0.0", "::1", "::", "::ffff:127.0.1.1"]
        {
            assert!(local(text), "{text}");
        }
        assert!(!local("128.0.0.1") && !local("10.0.0.1") && !local("fe80::1"));
    }

    #[test]
    fn a_counter_that_went_down_counts_another_flow() {
        let earlier = Counters { original: 5, reply: 5 };
        assert_eq!(Counters { original: 7, reply: 5 }.since(earlier), Some(Counters { original: 2, reply: 0 }));
        assert_eq!(Counters { original: 700, reply: 4 }.since(earlier), None);
    }
}
