//! The number of open connections of each client.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Counts connections per client: per IPv4 address, or per network of 2^64 IPv6 addresses, which one host may use all.
#[derive(Debug, Default)]
pub struct Crowd {
    connections: HashMap<IpAddr, usize>,
}

impl Crowd {
    /// A connection of a client begins, unless the client has `most` already; returns whether it does.
    pub fn enter(&mut self, client: IpAddr, most: usize) -> bool {
        let connections = self.connections.entry(network(client)).or_default();
        let has_room = *connections < most;
        *connections += usize::from(has_room);
        has_room
    }

    /// A connection of a client has ended.
    pub fn leave(&mut self, client: IpAddr) {
        let network = network(client);
        if let Some(connections) = self.connections.get_mut(&network) {
            *connections -= 1;
            if *connections == 0 {
                self.connections.remove(&network);
            }
        }
    }
}

fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_64_bits_of_an_ipv6_address() {
        let mut crowd = Crowd::default();
        for client in ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "2001:db8::ffff:0:0:2"] {
            assert!(crowd.enter(ip(client), 2));
        }
        let more = ["10.0.0.1", "10.0.0.2", "2001:db8::7", "2001:db8:0:1::1"].map(|client| crowd.enter(ip(client), 2));
        assert_eq!(more, [false, true, false, true]);
    }

    #[test]
    fn a_client_without_connections_takes_no_memory() {
        let mut crowd = Crowd::default();
        crowd.enter(ip("10.0.0.1"), 1);
        crowd.leave(ip("10.0.0.1"));
        crowd.leave(ip("10.0.0.1"));
        assert!(crowd.connections.is_empty());
    }
}
