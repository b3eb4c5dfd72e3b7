//! Whether conntrack counts anything on this host.
//!
//! The kernel tracks connections only where a firewall rule needs it (since Linux 4.10, per network namespace), and
//! counts their bytes only with net.netfilter.nf_conntrack_acct=1. Both are off on a fresh machine, and the table alone
//! does not tell an idle host from one that tracks nothing. So we send one datagram over loopback, and see whether it
//! appears in the table, and whether with counters.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::Result;

use super::Table;
use crate::kernel::flow::{Endpoint, Protocol, Tuple};

/// What conntrack does on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracking {
    /// Connections are tracked and their bytes counted.
    Counts,
    /// Connections are tracked, but new ones have no counters: nf_conntrack_acct is 0.
    WithoutCounters,
    /// No connection is tracked: no firewall rule needs it.
    Off,
}

/// Sends the datagram and reads the table. Also returns the datagram's tuple, if it is in the table: it stays there for
/// some seconds and is not the host's traffic.
///
/// # Errors
/// Where the table cannot be read.
pub fn probe(table: &mut Table) -> Result<(Tracking, Option<Tuple>)> {
    // Where loopback is down no datagram can be sent, and the other flows decide alone.
    let ours = send_datagram().ok();
    let mut found = None;
    let mut others = None;
    table.dump(&mut |flow| {
        let counts = Some(flow.counters.is_some());
        if Some(flow.original) == ours {
            found = counts;
        } else {
            others = others.max(counts);
        }
    })?;
    // Firewalls often exempt loopback from tracking: then the other flows decide.
    let tracking = match found.or(others) {
        Some(true) => Tracking::Counts,
        Some(false) => Tracking::WithoutCounters,
        None => Tracking::Off,
    };
    Ok((tracking, ours.filter(|_| found.is_some())))
}

fn send_datagram() -> std::io::Result<Tuple> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (from, to) = (sender.local_addr()?, receiver.local_addr()?);
    sender.send_to(b"?", to)?;
    Ok(Tuple {
        protocol: Protocol::Udp,
        source: Endpoint::new(from.ip(), from.port()),
        destination: Endpoint::new(to.ip(), to.port()),
    })
}
