//! The addresses of the interfaces in a network namespace, through rtnetlink (rtnetlink(7)).
//!
//! A message has a struct ifaddrmsg of 8 bytes, of which the first is the address family, and attributes
//! (include/uapi/linux/if_addr.h). getifaddrs(3) reads the same, but waits for a reply without a deadline, and the owner
//! of a namespace can fill its receive buffer, so that the reply is lost.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::kernel::netlink::{Netlink, ROUTE, attributes};

/// RTM_GETADDR and RTM_NEWADDR.
const GET: u16 = 22;
const NEW: u16 = 20;
/// IFA_ADDRESS, and IFA_LOCAL: where an interface leads to one peer, the first is the peer's.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
/// The size of struct ifaddrmsg.
const HEADER: usize = 8;
/// How long they are read.
const LONGEST_DUMP: Duration = Duration::from_millis(100);

/// The addresses in the calling thread's namespace; those that the kernel lists in time.
pub fn here() -> HashSet<IpAddr> {
    let mut addresses = HashSet::new();
    let Ok(mut netlink) = Netlink::open(ROUTE, 0) else { return addresses };
    if netlink.begin_dump(GET, &[0; HEADER]).is_ok() {
        let _ = netlink.read_dump(Instant::now() + LONGEST_DUMP, |message| {
            addresses.extend(if message.kind == NEW { parse(message.payload) } else { None });
        });
    }
    addresses
}

/// The address in a message.
fn parse(payload: &[u8]) -> Option<IpAddr> {
    let value = |wanted| attributes(payload.get(HEADER..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let bytes = value(LOCAL).or_else(|| value(ADDRESS))?;
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::push_attribute;

    #[test]
    fn the_own_address_goes_before_that_of_the_peer() {
        let mut payload = vec![2, 32, 0, 0, 1, 0, 0, 0];
        push_attribute(&mut payload, ADDRESS, &[10, 0, 0, 2]);
        assert_eq!(parse(&payload), Some(Ipv4Addr::new(10, 0, 0, 2).into()));
        push_attribute(&mut payload, LOCAL, &[10, 0, 0, 1]);
        assert_eq!(parse(&payload), Some(Ipv4Addr::new(10, 0, 0, 1).into()));
        assert_eq!(parse(&payload[..9]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn the_loopback_address_is_found() {
        // In a namespace whose loopback interface is down, there is none.
        let expected = nix::ifaddrs::getifaddrs().unwrap().filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
        });
        assert_eq!(here(), expected.collect());
    }
}
