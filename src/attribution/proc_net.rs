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

use super::socket::Found;
use crate::kernel::flow::{Endpoint, Protocol, Tuple};

/// The sockets of the four tables, by their ends, and the addresses that are at home here.
pub(super) struct SocketTable {
    sockets: HashMap<(Protocol, Endpoint, Endpoint), u32>,
    addresses: HashSet<IpAddr>,
}

impl SocketTable {
    /// Reads all. One that is missing or cannot be read holds no sockets.
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

    /// The connected socket of a tuple, else for UDP the one that takes everything for its address or its port.
    pub fn find(&self, tuple: &Tuple) -> Found {
        if let Some(&inode) = self.sockets.get(&(tuple.protocol, tuple.source, tuple.destination)) {
            return Found::Socket { inode, connected: true };
        }
        let any_v4 = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let any_v6 = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let address = tuple.source.address();
        let at_home = self.has(address);
        if tuple.protocol == Protocol::Udp {
            // At another host's end, one that is bound to every address has nothing but the same port.
            for local in [address].into_iter().chain([any_v4, any_v6].into_iter().filter(|_| at_home)) {
                for remote in [any_v4, any_v6] {
                    let ends = (tuple.protocol, Endpoint::new(local, tuple.source.port), Endpoint::new(remote, 0));
                    if let Some(&inode) = self.sockets.get(&ends) {
                        return Found::Socket { inode, connected: false };
                    }
                }
            }
        }
        if at_home || self.addresses.is_empty() { Found::NoSocket } else { Found::Elsewhere }
    }

    fn has(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
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
