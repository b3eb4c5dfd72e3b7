//! Sockets as text: /proc/net/tcp, tcp6, udp and udp6, for where sock_diag is refused (proc_pid_net(5)).

use std::collections::HashMap;
use std::path::Path;

use procfs::{FromBufReadSI, LocalSystemInfo};

use super::Found;
use crate::flow::{Endpoint, Protocol, Tuple};

/// The sockets of the four tables, by their ends.
pub(super) struct SocketTable {
    sockets: HashMap<(Protocol, Endpoint, Endpoint), u32>,
}

impl SocketTable {
    /// Reads all four. One that is missing or cannot be read holds no sockets.
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
        Self { sockets }
    }

    /// The connected socket of a tuple, else for UDP the one that takes everything for its address or its port.
    pub fn find(&self, tuple: &Tuple) -> Found {
        let nobody = |address: std::net::IpAddr| Endpoint::new(address, 0);
        let any_v4 = std::net::Ipv4Addr::UNSPECIFIED.into();
        let any_v6 = std::net::Ipv6Addr::UNSPECIFIED.into();
        let port = tuple.source.port;
        let mut candidates = vec![(tuple.source, tuple.destination)];
        if tuple.protocol == Protocol::Udp {
            for local in [tuple.source, Endpoint::new(any_v4, port), Endpoint::new(any_v6, port)] {
                candidates.extend([(local, nobody(any_v4)), (local, nobody(any_v6))]);
            }
        }
        for (local, remote) in candidates {
            if let Some(&inode) = self.sockets.get(&(tuple.protocol, local, remote)) {
                return Found::Socket { inode, connected: remote.port != 0 };
            }
        }
        Found::NoSocket
    }
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
