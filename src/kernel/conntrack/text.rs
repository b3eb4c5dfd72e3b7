//! The conntrack table as text, from /proc/net/nf_conntrack, from the older /proc/net/ip_conntrack, or from the command
//! `conntrack -L`.
//!
//! ```text
//! ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=80 packets=3 bytes=1000 src=10.0.0.2 dst=10.0.0.1 sport=80 dport=40000 packets=11 bytes=5000 [ASSURED] mark=0 zone=0 use=2
//! udp      17 29 src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=53 packets=1 bytes=60 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=53 dport=40000 packets=0 bytes=0 mark=0 use=1
//! ```
//! Only nf_conntrack begins its lines with the network protocol and its number. The keys of a tuple appear twice, first
//! for the original, then for the reply. The kernel's side is net/netfilter/nf_conntrack_standalone.c, `ct_seq_show`;
//! the command's is libnetfilter_conntrack, src/conntrack/snprintf_default.c.

use std::net::IpAddr;

use crate::kernel::flow::{Counters, Endpoint, Flow, Protocol, Tuple};

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A TCP or UDP flow.
    Flow(Flow),
    /// Nothing to count: blank, or another protocol.
    Other,
    /// A line that neither the kernel nor the command writes.
    Malformed,
}

/// Parses one line, with or without the line feed at its end.
pub fn parse(line: &[u8]) -> Line {
    let Ok(line) = std::str::from_utf8(line) else { return Line::Malformed };
    let mut words = line.split_ascii_whitespace().peekable();
    if words.next_if(|word| matches!(*word, "ipv4" | "ipv6")).is_some() {
        words.next();
    }
    let protocol = match words.next() {
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        None => return Line::Other,
        // A line of another protocol has, as all lines have, a protocol number as its second word.
        Some(_) if words.next().is_some_and(|number| number.parse::<u8>().is_ok()) => return Line::Other,
        Some(_) => return Line::Malformed,
    };
    parse_flow(protocol, words).map_or(Line::Malformed, Line::Flow)
}

/// One half of a line: a tuple and its counter.
#[derive(Default)]
struct Half {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    bytes: Option<u64>,
}

impl Half {
    fn tuple(&self, protocol: Protocol) -> Option<Tuple> {
        Some(Tuple {
            protocol,
            source: Endpoint::new(self.source?, self.source_port?),
            destination: Endpoint::new(self.destination?, self.destination_port?),
        })
    }
}

fn parse_flow<'a>(protocol: Protocol, words: impl Iterator<Item = &'a str>) -> Option<Flow> {
    let (mut original, mut reply) = (Half::default(), Half::default());
    let (mut zone, mut id) = (0, 0);
    let mut open = true;
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            open &= !matches!(word, "LAST_ACK" | "TIME_WAIT" | "CLOSE");
            continue;
        };
        match key {
            "src" => *unset(&mut original.source, &mut reply.source)? = Some(value.parse().ok()?),
            "dst" => *unset(&mut original.destination, &mut reply.destination)? = Some(value.parse().ok()?),
            "sport" => *unset(&mut original.source_port, &mut reply.source_port)? = Some(value.parse().ok()?),
            "dport" => {
                *unset(&mut original.destination_port, &mut reply.destination_port)? = Some(value.parse().ok()?);
            }
            "bytes" => *unset(&mut original.bytes, &mut reply.bytes)? = Some(value.parse().ok()?),
            "zone" | "zone-orig" => zone = value.parse().ok()?,
            "id" => id = value.parse().ok()?,
            _ => {}
        }
    }
    let counters = original.bytes.zip(reply.bytes).map(|(original, reply)| Counters { original, reply });
    Some(Flow {
        original: original.tuple(protocol)?,
        reply: reply.tuple(protocol)?,
        zone,
        id,
        counters,
        open,
        socket: None,
    })
}

/// The first of two places that is still free; a line may have a key twice, not three times.
fn unset<'a, T>(first: &'a mut Option<T>, second: &'a mut Option<T>) -> Option<&'a mut Option<T>> {
    match (first.is_none(), second.is_none()) {
        (true, _) => Some(first),
        (_, true) => Some(second),
        _ => None,
    }
}
