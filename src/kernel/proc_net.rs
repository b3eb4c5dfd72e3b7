//! Sockets as text, for users to whom the kernel refuses sock_diag: /proc/net/tcp, tcp6, udp and udp6
//! (proc_pid_net(5)).
//!
//! ```text
//!   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
//!    0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 81234 1 ...
//! ```
//! A UDP socket may be bound to all addresses of the host, so we also read these, from /proc/net/fib_trie and if_inet6:
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

use crate::kernel::flow::{Endpoint, Protocol, Tuple};

/// A socket that one of the four tables lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedSocket {
    /// The inode of its file in sockfs; 0 where no process holds the socket.
    pub inode: u32,
    /// Whether it is connected to the destination of the tuple for which it was found.
    pub connected: bool,
}

/// The sockets of the four tables by protocol, local end and remote end; and the addresses of this host.
#[derive(Debug)]
pub struct SocketTable {
    sockets: HashMap<(Protocol, Endpoint, Endpoint), u32>,
    addresses: HashSet<IpAddr>,
}

impl SocketTable {
    /// Reads the tables below `proc_root`. Treats a table that is missing or cannot be read as empty.
    pub fn read(proc_root: &Path) -> Self {
        let mut sockets = HashMap::new();
        let net = proc_root.join("net");
        let read = |name| std::fs::read_to_string(net.join(name)).unwrap_or_default();
        for name in ["tcp", "tcp6"] {
            for entry in parse_table(&read(name), |row: procfs::net::TcpNetEntries| row.0) {
                let ends = (endpoint(entry.local_address), endpoint(entry.remote_address));
                sockets.insert((Protocol::Tcp, ends.0, ends.1), entry.inode as u32);
            }
        }
        for name in ["udp", "udp6"] {
            for entry in parse_table(&read(name), |row: procfs::net::UdpNetEntries| row.0) {
                let ends = (endpoint(entry.local_address), endpoint(entry.remote_address));
                sockets.insert((Protocol::Udp, ends.0, ends.1), entry.inode as u32);
            }
        }
        let addresses = ipv4_addresses(&read("fib_trie")).chain(ipv6_addresses(&read("if_inet6"))).collect();
        Self { sockets, addresses }
    }

    /// The connected socket at the source of a tuple. If there is none, for UDP an unconnected one that is bound to the
    /// source's port.
    pub fn find(&self, tuple: &Tuple) -> Option<ListedSocket> {
        if let Some(&inode) = self.sockets.get(&(tuple.protocol, tuple.source, tuple.destination)) {
            return Some(ListedSocket { inode, connected: true });
        }
        if tuple.protocol != Protocol::Udp {
            return None;
        }
        let unspecified = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        let address = tuple.source.address();
        // A wildcard socket receives packets for the addresses of this host only.
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

    /// Whether this host may have `address`: any address, if the files with the addresses cannot be read.
    pub fn may_have_address(&self, address: IpAddr) -> bool {
        self.addresses.is_empty() || address.is_loopback() || self.addresses.contains(&address)
    }
}

/// The IPv4 addresses of this host in a fib_trie, which also has others: the line after an address has its kind.
fn ipv4_addresses(fib_trie: &str) -> impl Iterator<Item = IpAddr> {
    let lines = || fib_trie.lines().map(str::trim);
    lines().zip(lines().skip(1)).filter_map(|(leaf, kind)| {
        let address: Ipv4Addr = leaf.strip_prefix("|-- ")?.parse().ok()?;
        (kind == "/32 host LOCAL").then_some(address.into())
    })
}

/// The IPv6 addresses of this host: the first word of each line, without colons.
fn ipv6_addresses(if_inet6: &str) -> impl Iterator<Item = IpAddr> {
    if_inet6.lines().filter_map(|line| {
        let digits = line.split_ascii_whitespace().next()?;
        Some(Ipv6Addr::from_bits(u128::from_str_radix(digits, 16).ok()?).into())
    })
}

/// The rows of a table. procfs rejects a whole table for one row that it cannot parse, so each row is parsed as a table
/// of its own, with an empty heading.
fn parse_table<T: FromBufReadSI, R>(table: &str, rows: fn(T) -> Vec<R>) -> Vec<R> {
    let parse = |line| T::from_buf_read(format!("\n{line}").as_bytes(), &LocalSystemInfo).map(rows);
    table.lines().skip(1).flat_map(|line| parse(line).unwrap_or_default()).collect()
}

fn endpoint(address: std::net::SocketAddr) -> Endpoint {
    Endpoint::new(address.ip(), address.port())
}
