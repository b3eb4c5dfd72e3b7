//! Whether conntrack counts anything on this host.
//!
//! The kernel tracks connections only where a firewall rule needs it (since Linux 4.10, per network namespace), and
//! counts their bytes only with net.netfilter.nf_conntrack_acct=1. Both are off on a fresh machine, and the table alone
//! does not distinguish an idle host from one that tracks nothing. So we send one datagram of each address family over
//! loopback, and look whether it appears in the table, and whether with counters.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;

use super::Table;
use crate::kernel::flow::{Endpoint, Protocol, Tuple};
use crate::kernel::is_shortage;

/// How long a probe reads the table.
const LONGEST_DUMP: Duration = Duration::from_millis(50);

/// Whether conntrack tracks and counts on this host. The last is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tracking {
    /// No connection is tracked: no firewall rule needs it.
    Off,
    /// Connections are tracked, but new ones have no counters: nf_conntrack_acct is 0.
    WithoutCounters,
    /// Connections are tracked and their bytes counted.
    Counts,
}

/// What a probe has found, for each address family: firewall rules may be for one of them only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// For IPv4.
    pub ipv4: Tracking,
    /// For IPv6; as for IPv4 where that cannot be found out, since this host has no IPv6 or tracks no loopback traffic.
    pub ipv6: Tracking,
    /// The tuples of the datagrams that are in the table: they stay there for some seconds and are not the host's traffic.
    pub sent: Vec<Tuple>,
}

impl Probe {
    /// Whether connections of any address family are counted.
    pub fn counts(&self) -> bool {
        self.ipv4.max(self.ipv6) == Tracking::Counts
    }
}

/// Sends the datagrams and looks for them in the table, which must be for probes alone: a large one is not read to its end.
///
/// # Errors
/// Where the table cannot be read, or no datagram can be sent for want of a descriptor or of memory.
pub fn probe(table: &mut Table) -> Result<Probe> {
    let mut sent = [None; 2];
    for (sent, loopback) in sent.iter_mut().zip([IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]) {
        *sent = match send_datagram(loopback) {
            Ok(tuple) => Some(tuple),
            Err(error) if is_shortage(Errno::from_raw(error.raw_os_error().unwrap_or_default())) => {
                return Err(error.into());
            }
            // If loopback is down, the other flows alone decide.
            Err(_) => None,
        };
    }
    let (mut ours, mut others) = ([None; 2], [None; 2]);
    let requested: Vec<Tuple> = sent.into_iter().flatten().collect();
    table.get(&requested, &mut |flow| {
        if let Some(family) = sent.iter().position(|sent| *sent == Some(flow.original)) {
            ours[family] = Some(flow.counters.is_some());
        }
    })?;
    // Firewalls often exempt loopback from tracking; then the other flows decide, as many as can be read in a moment.
    if requested.is_empty() || ours.iter().flatten().count() < requested.len() {
        table.dump(Instant::now() + LONGEST_DUMP, &mut |flow| {
            let family = usize::from(flow.original.source.ipv4().is_none());
            let found = if Some(flow.original) == sent[family] { &mut ours } else { &mut others };
            found[family] = found[family].max(Some(flow.counters.is_some()));
        })?;
    }
    let tracking = |family: usize| match ours[family].or(others[family]) {
        Some(true) => Tracking::Counts,
        Some(false) => Tracking::WithoutCounters,
        None => Tracking::Off,
    };
    let ipv4 = tracking(0);
    // Where not even the IPv4 datagram is tracked, the other one says nothing.
    let says_something = (ours[0].is_some() && sent[1].is_some()) || ours[1].or(others[1]).is_some();
    let ipv6 = if says_something { tracking(1) } else { ipv4 };
    let in_table = sent.into_iter().zip(ours).filter(|(_, ours)| ours.is_some());
    Ok(Probe { ipv4, ipv6, sent: in_table.filter_map(|(tuple, _)| tuple).collect() })
}

fn send_datagram(loopback: IpAddr) -> std::io::Result<Tuple> {
    let receiver = UdpSocket::bind((loopback, 0))?;
    let sender = UdpSocket::bind((loopback, 0))?;
    let (from, to) = (sender.local_addr()?, receiver.local_addr()?);
    sender.send_to(b"?", to)?;
    Ok(Tuple {
        protocol: Protocol::Udp,
        source: Endpoint::new(from.ip(), from.port()),
        destination: Endpoint::new(to.ip(), to.port()),
    })
}
