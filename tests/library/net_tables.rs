//! The texts of /proc/net: the sockets in tcp, tcp6, udp and udp6, the addresses in fib_trie and if_inet6.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// One socket: local end, remote end, state, inode.
pub type SocketRow = (SocketAddr, SocketAddr, u8, u32);

/// The text of a table.
pub fn socket_table(rows: &[SocketRow]) -> String {
    let mut text = String::from("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n");
    for (number, (local, remote, state, inode)) in rows.iter().enumerate() {
        let (local, remote) = (kernel_hex(local), kernel_hex(remote));
        let rest = "00000000:00000000 00:00000000 00000000  1000        0";
        writeln!(text, "{number:4}: {local} {remote} {state:02X} {rest} {inode} 1 0000000000000000 20 4 30 10 -1")
            .unwrap();
    }
    text
}

/// An address as the kernel writes it in them: 32 bits at a time, as a number in host byte order.
fn kernel_hex(address: &SocketAddr) -> String {
    let octets = match address {
        SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
        SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
    };
    let words = octets.chunks(4).map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap())));
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

/// The text of fib_trie on a host with these addresses.
pub fn fib_trie(addresses: &[&str]) -> String {
    let mut text = String::from("Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n");
    for address in addresses {
        let address: Ipv4Addr = address.parse().unwrap();
        let network = Ipv4Addr::from_bits(address.to_bits() & !0xff);
        let broadcast = Ipv4Addr::from_bits(address.to_bits() | 0xff);
        let leaves = [(network, "/24 link UNICAST"), (address, "/32 host LOCAL"), (broadcast, "/32 link BROADCAST")];
        for (leaf, what) in leaves {
            writeln!(text, "        |-- {leaf}\n           {what}").unwrap();
        }
    }
    text
}

/// The text of if_inet6 on a host with these addresses.
pub fn if_inet6(addresses: &[&str]) -> String {
    let line =
        |address: &&str| format!("{:032x} 02 40 00 80     eth0\n", address.parse::<Ipv6Addr>().unwrap().to_bits());
    addresses.iter().map(line).collect()
}
