//! The conntrack table as netlink messages, as `conntrack -L` reads it.
//!
//! A message has a struct nfgenmsg of 4 bytes and attributes: the two tuples, the counters (big-endian), the zone, the
//! id. The kernel's side is net/netfilter/nf_conntrack_netlink.c; the numbers are those of
//! include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc::{AF_INET, AF_INET6};

use crate::kernel::flow::{Counters, Endpoint, Flow, Protocol, Tuple};
use crate::kernel::netlink::{self, Netlink, attributes, push_attribute};

/// NFNL_SUBSYS_CTNETLINK, the upper byte of the message type.
const SUBSYSTEM: u16 = 1 << 8;
/// IPCTNL_MSG_CT_NEW: an entry of a dump; as an event, an entry that has begun.
pub(super) const NEW: u16 = SUBSYSTEM;
/// IPCTNL_MSG_CT_GET: the request for entries.
const GET: u16 = SUBSYSTEM | 1;
/// IPCTNL_MSG_CT_DELETE: as an event, an entry that has ended.
pub(super) const DELETE: u16 = SUBSYSTEM | 2;

/// struct nfgenmsg: family (0 is AF_UNSPEC: all), version, resource.
const NFGENMSG: [u8; 4] = [0; 4];

/// Types of attributes: CTA_….
mod attribute {
    pub const TUPLE_ORIG: u16 = 1;
    pub const TUPLE_REPLY: u16 = 2;
    pub const PROTOINFO: u16 = 4;
    pub const COUNTERS_ORIG: u16 = 9;
    pub const COUNTERS_REPLY: u16 = 10;
    pub const ID: u16 = 12;
    pub const ZONE: u16 = 18;

    pub const TUPLE_IP: u16 = 1;
    pub const TUPLE_PROTO: u16 = 2;
    pub const TUPLE_ZONE: u16 = 3;
    pub const IP_V4_SRC: u16 = 1;
    pub const IP_V4_DST: u16 = 2;
    pub const IP_V6_SRC: u16 = 3;
    pub const IP_V6_DST: u16 = 4;
    pub const PROTO_NUM: u16 = 1;
    pub const PROTO_SRC_PORT: u16 = 2;
    pub const PROTO_DST_PORT: u16 = 3;
    pub const COUNTERS_BYTES: u16 = 2;
    pub const PROTOINFO_TCP: u16 = 1;
    pub const PROTOINFO_TCP_STATE: u16 = 1;
}

/// The states in which no more data comes: LAST_ACK, TIME_WAIT and CLOSE (TCP_CONNTRACK_… in
/// include/uapi/linux/netfilter/nf_conntrack_tcp.h). The next one, 9, is SYN_SENT2: both sides open at once.
const TCP_CLOSED: std::ops::RangeInclusive<u8> = 6..=8;

/// Netlink sockets for the conntrack table.
#[derive(Debug)]
pub struct Ctnetlink {
    /// For the whole table: a dump may go on over several ticks.
    table: Netlink,
    /// For single entries, meanwhile.
    entries: Netlink,
}

impl Ctnetlink {
    /// Opens them for the network namespace of the calling thread.
    ///
    /// # Errors
    /// Where the kernel lacks NETLINK_NETFILTER. It checks permission only when a dump is requested.
    pub(super) fn open() -> nix::Result<Self> {
        let open = || Netlink::open(netlink::protocol::NETFILTER, 0);
        Ok(Self { table: open()?, entries: open()? })
    }

    /// Calls `visit` with the flows of the table, IPv4 and IPv6, until all of them or the time of `deadline` has come. Returns
    /// whether the table is complete; if not, the next call goes on. The kernel may send an entry twice.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub(super) fn dump(&mut self, deadline: Instant, mut visit: impl FnMut(&Flow)) -> nix::Result<bool> {
        if !self.table.is_dumping() {
            self.table.begin_dump(GET, &NFGENMSG)?;
        }
        self.table.read_dump(deadline, |message| {
            if message.kind == NEW
                && let Some(flow) = parse(message.payload)
            {
                visit(&flow);
            }
        })
    }

    /// Looks up the entry with an original tuple in zone 0, and calls `visit` with it if there is one.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub(super) fn get(&mut self, original: &Tuple, mut visit: impl FnMut(&Flow)) -> nix::Result<()> {
        let result = self.entries.request(GET, &request(original), |message| {
            if message.kind == NEW
                && let Some(flow) = parse(message.payload)
            {
                visit(&flow);
            }
        });
        // ENOENT: the connection has ended.
        if result == Err(Errno::ENOENT) { Ok(()) } else { result }
    }
}

/// The payload of a request for the entry with this original tuple.
fn request(original: &Tuple) -> Vec<u8> {
    let nested = |kind: u16, attributes: &[(u16, &[u8])]| {
        let mut inner = Vec::new();
        attributes.iter().for_each(|(kind, value)| push_attribute(&mut inner, *kind, value));
        (kind | netlink::NESTED, inner)
    };
    let (source, destination) = (original.source.address(), original.destination.address());
    let (family, (ip, addresses)) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ends: [(u16, &[u8]); 2] =
                [(attribute::IP_V4_SRC, &source.octets()), (attribute::IP_V4_DST, &destination.octets())];
            (AF_INET, nested(attribute::TUPLE_IP, &ends))
        }
        _ => {
            let (source, destination) = (original.source.ipv6().octets(), original.destination.ipv6().octets());
            let ends: [(u16, &[u8]); 2] = [(attribute::IP_V6_SRC, &source), (attribute::IP_V6_DST, &destination)];
            (AF_INET6, nested(attribute::TUPLE_IP, &ends))
        }
    };
    let (proto, ports) = nested(
        attribute::TUPLE_PROTO,
        &[
            (attribute::PROTO_NUM, &[original.protocol.number()]),
            (attribute::PROTO_SRC_PORT, &original.source.port.to_be_bytes()),
            (attribute::PROTO_DST_PORT, &original.destination.port.to_be_bytes()),
        ],
    );
    let (tuple, parts) = nested(attribute::TUPLE_ORIG, &[(ip, &addresses), (proto, &ports)]);
    let mut payload = NFGENMSG.to_vec();
    payload[0] = family as u8;
    push_attribute(&mut payload, tuple, &parts);
    payload
}

/// The flow of one message; `None` where the protocol is not TCP or UDP, or where the message lacks a tuple.
pub fn parse(payload: &[u8]) -> Option<Flow> {
    let (mut original, mut reply, mut zone) = (None, None, 0);
    let (mut bytes_original, mut bytes_reply) = (None, None);
    let mut id = 0;
    let mut open = true;
    for (kind, value) in attributes(payload.get(NFGENMSG.len()..)?) {
        match kind {
            attribute::TUPLE_ORIG => {
                let (tuple, tuple_zone) = parse_tuple(value)?;
                original = Some(tuple);
                zone = tuple_zone.map_or(zone, u32::from);
            }
            attribute::TUPLE_REPLY => reply = Some(parse_tuple(value)?.0),
            attribute::PROTOINFO => open = !parse_tcp_state(value).is_some_and(|state| TCP_CLOSED.contains(&state)),
            attribute::COUNTERS_ORIG => bytes_original = parse_bytes(value),
            attribute::COUNTERS_REPLY => bytes_reply = parse_bytes(value),
            attribute::ID => id = u64::from(u32::from_be_bytes(value.try_into().ok()?)),
            attribute::ZONE => zone = u32::from(u16::from_be_bytes(value.try_into().ok()?)),
            _ => {}
        }
    }
    let counters = bytes_original.zip(bytes_reply).map(|(original, reply)| Counters { original, reply });
    Some(Flow { original: original?, reply: reply?, zone, id, counters, open, socket: None })
}

/// A tuple, and its zone if that applies to this direction alone.
fn parse_tuple(value: &[u8]) -> Option<(Tuple, Option<u16>)> {
    let (mut source, mut destination): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let (mut protocol, mut source_port, mut destination_port, mut zone) = (None, None, None, None);
    for (kind, value) in attributes(value) {
        match kind {
            attribute::TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        attribute::IP_V4_SRC => source = Some(ipv4(value)?),
                        attribute::IP_V4_DST => destination = Some(ipv4(value)?),
                        attribute::IP_V6_SRC => source = Some(ipv6(value)?),
                        attribute::IP_V6_DST => destination = Some(ipv6(value)?),
                        _ => {}
                    }
                }
            }
            attribute::TUPLE_PROTO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        attribute::PROTO_NUM => protocol = Protocol::tcp_or_udp(*value.first()?),
                        attribute::PROTO_SRC_PORT => source_port = Some(u16::from_be_bytes(value.try_into().ok()?)),
                        attribute::PROTO_DST_PORT => {
                            destination_port = Some(u16::from_be_bytes(value.try_into().ok()?));
                        }
                        _ => {}
                    }
                }
            }
            attribute::TUPLE_ZONE => zone = Some(u16::from_be_bytes(value.try_into().ok()?)),
            _ => {}
        }
    }
    let tuple = Tuple {
        protocol: protocol?,
        source: Endpoint::new(source?, source_port?),
        destination: Endpoint::new(destination?, destination_port?),
    };
    Some((tuple, zone))
}

fn ipv4(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value).ok().map(|octets| Ipv4Addr::from(octets).into())
}

fn ipv6(value: &[u8]) -> Option<IpAddr> {
    <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into())
}

fn parse_bytes(value: &[u8]) -> Option<u64> {
    let (_, bytes) = attributes(value).find(|(kind, _)| *kind == attribute::COUNTERS_BYTES)?;
    bytes.try_into().ok().map(u64::from_be_bytes)
}

fn parse_tcp_state(value: &[u8]) -> Option<u8> {
    let (_, tcp) = attributes(value).find(|(kind, _)| *kind == attribute::PROTOINFO_TCP)?;
    let (_, state) = attributes(tcp).find(|(kind, _)| *kind == attribute::PROTOINFO_TCP_STATE)?;
    state.first().copied()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::kernel::flow::Endpoint;

    #[test]
    fn a_look_at_an_entry_takes_nothing_of_a_table_that_is_not_complete() {
        // The kernel may lack conntrack, or refuse it to this user.
        let Ok(mut table) = Ctnetlink::open() else { return };
        let end = Endpoint::new(Ipv4Addr::LOCALHOST, 1);
        let tuple = Tuple { protocol: Protocol::Tcp, source: end, destination: end };
        if table.get(&tuple, |_| {}).is_err() {
            return;
        }
        assert_eq!(table.dump(Instant::now(), |_| {}), Ok(false));
        for _ in 0..20 {
            assert_eq!(table.get(&tuple, |_| {}), Ok(()));
        }
        assert_eq!(table.dump(Instant::now() + Duration::from_secs(60), |_| {}), Ok(true));
    }
}
