//! Sockets as text: /proc/net/tcp, tcp6, udp and udp6, for where sock_diag is refused (proc_pid_net(5)).
//!
//! A UDP socket may be bound to every address of the host, so those are read too: from /proc/net/fib_trie and if_inet6.
//!
//! ```text
//!            |-- 10.0.0.1
//!               /32 host LOCAL
//! fd000000000000000000000000000001 02 40 00 80     eth0
//! ```

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use procfs::{FromBufReadSI, LocalSystemInfo};

use super::flow::{Endpoint, Protocol, Tuple};

/// A row of one of the four tables that a tuple leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedSocket {
    /// The inode of the socket in sockfs; 0 for a socket that no process holds.
    pub inode: u32,
    /// Whether the socket is connected to the tuple's other end.
    pub connected: bool,
}

/// The sockets of the four tables by their ends, and the addresses of this host.
#[derive(Debug)]
pub struct SocketTable {
    sockets: HashMap<(Protocol, Endpoint, Endpoint), u32>,
    addresses: HashSet<IpAddr>,
}

impl SocketTable {
    /// Reads the tables below `proc_root`. A table that is missing or cannot be read counts as empty.
    pub fn read(proc_root: &Path) -> Self {
        let mut sockets = HashMap::new();
        let net = proc_root.join("net");
        for name in ["tcp", "tcp6"] {
            for entry in read_table(&net.join(name), |row: procfs::net::TcpNetEntries| row.0) {
                let ends = (endpoint(entry.local_address), endpoint(entry.remote_address));
                sockets.insert((Protocol::Tcp, ends.0, ends.1), entry.inode as u32);
            }
        }
        for name in ["udp", "udp6"] {
            for entry in read_table(&net.join(name), |row: procfs::net::UdpNetEntries| row.0) {
                let ends = (endpoint(entry.local_address), endpoint(entry.remote_address));
                sockets.insert((Protocol::Udp, ends.0, ends.1), entry.inode as u32);
            }
        }
        let read = |name| std::fs::read_to_string(net.join(name)).unwrap_or_default();
        let addresses = ipv4_addresses(&read("fib_trie")).chain(ipv6_addresses(&read("if_inet6"))).collect();
        Self { sockets, addresses }
    }

    /// The connected socket at the source of a tuple; for UDP otherwise one that is bound to its port and not connected.
    pub fn find(&self, tuple: &Tuple) -> Option<ListedSocket> {
        if let Some(&inode) = self.sockets.get(&(tuple.protocol, tuple.source, tuple.destination)) {
            return Some(ListedSocket { inode, connected: true });
        }
        if tuple.protocol != Protocol::Udp {
            return None;
        }
        let unspecified = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        let address = tuple.source.address();
        // A wildcard socket takes the packets for the addresses of this host only.
        let wildcard = unspecified.into_iter().filter(|_| self.addresses.contains(&address) || address.is_loopback());
        for local in std::iter::once(address).chain(wildcard) {
            for remote in unspecified {
                let ends = (tuple.protocol, Endpoint::new(local, tuple.source.port), Endpoint::new(remote, 0));
                if let Some(&inode) = self.sockets.get(&ends) {
                    return Some(ListedSocket { inode, connected: false });
                }
            }
        }
        None
    }

    /// Whether `address` may be one of this host's: if the files with the addresses cannot be read, any may.
    pub fn may_have(&self, address: IpAddr) -> bool {
        self.addresses.is_empty() || address.is_loopback() || self.addresses.contains(&address)
    }
}

/// The host's own among all addresses in a fib_trie: each stands in the line before the one that says what it is.
fn ipv4_addresses(fib_trie: &str) -> impl Iterator<Item = IpAddr> {
    let lines = || fib_trie.lines().map(str::trim);
    lines().zip(lines().skip(1)).filter_map(|(leaf, what)| {
        let address: Ipv4Addr = leaf.strip_prefix("|-- ")?.parse().ok()?;
        (what == "/32 host LOCAL").then_some(address.into())
    })
}

fn ipv6_addresses(if_inet6: &str) -> impl Iterator<Item = IpAddr> {
    if_inet6.lines().filter_map(|line| {
        let digits = line.split_ascii_whitespace().next()?;
        Some(Ipv6Addr::from_bits(u128::from_str_radix(digits, 16).ok()?).into())
    })
}

/// Reads a table row by row, since procfs gives up the whole for one that it does not understand.
fn read_table<Table: FromBufReadSI, Row>(path: &Path, rows: fn(Table) -> Vec<Row>) -> Vec<Row> {
    let Ok(text) = std::fs::read_to_string(path) else { return Vec::new() };
    let parse = |line| Table::from_buf_read(format!("\n{line}").as_bytes(), &LocalSystemInfo).map(rows);
    text.lines().skip(1).flat_map(|line| parse(line).unwrap_or_default()).collect()
}

fn endpoint(address: std::net::SocketAddr) -> Endpoint {
    Endpoint::new(address.ip(), address.port())
}
