//! Whether conntrack counts anything on this host.
//!
//! The kernel tracks connections only where a firewall rule needs it (since Linux 4.10, per network namespace), and
//! counts their bytes only with net.netfilter.nf_conntrack_acct=1. Both are off on a fresh machine, and the table alone
//! does not tell an idle host from one that tracks nothing. So one datagram is sent over loopback: it shows up in the
//! table, with counters, or it does not.

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

/// Asks, and says which tuple the question left in the table for some seconds, so that it can be told from the host's
/// traffic.
///
/// # Errors
/// When the table cannot be read.
pub fn probe(table: &mut Table) -> Result<(Tracking, Option<Tuple>)> {
    // Without a loopback interface there is no question to send, and the table has to answer alone.
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
    // Firewalls often exempt loopback from tracking: then the flows of others tell.
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
