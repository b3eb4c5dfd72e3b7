//! The socket at the source of a tuple, through sock_diag in the network namespace that has its address.

use std::collections::HashMap;

use super::Answer;
use crate::kernel::flow::{Endpoint, Protocol, Tuple};
use crate::kernel::namespace::{Namespace, Namespaces};
use crate::kernel::process::Handle;
use crate::kernel::sock_diag::Socket;
use crate::traffic::subject::Reason;

/// From this number of TCP queries on, one dump (1 µs per socket) is cheaper than one request per query (5 µs).
const BULK: usize = 4000;

/// IPPROTO_UDPLITE, IPPROTO_RAW and IPPROTO_SCTP.
const UDPLITE: Protocol = Protocol::Other(136);
const RAW: Protocol = Protocol::Other(255);
const SCTP: Protocol = Protocol::Other(132);

/// What a query has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A socket; its inode is 0 if no process holds it.
    Socket {
        inode: u32,
        connected: bool,
    },
    NoSocket,
    /// A socket that is open and that sock_diag does not list: the kernel's own, for ICMP for example.
    Kernels,
    Elsewhere,
    /// It is closed; the answer has the process that closed it.
    Closed(Answer),
}

impl Found {
    /// The answer; `holder` returns the process and the descriptor that hold the socket with an inode.
    pub fn answer(self, holder: impl FnOnce(u32) -> Option<(u32, Handle)>, some_unreadable: bool) -> Answer {
        match self {
            Self::Closed(answer) => answer,
            Self::Elsewhere => Answer::Elsewhere,
            Self::Kernels => Answer::Unowned(Reason::NoProcess),
            Self::NoSocket | Self::Socket { inode: 0, .. } => Answer::Unowned(Reason::Gone),
            Self::Socket { inode, connected } => match holder(inode) {
                Some((pid, handle)) => Answer::Held { pid, handle: Some(handle), connected },
                None if some_unreadable => Answer::Unowned(Reason::NotPermitted),
                None => Answer::Unowned(Reason::NoProcess),
            },
        }
    }
}

/// The sockets at the sources of many tuples, in their order.
pub(super) fn find_all(namespaces: &mut Namespaces, tuples: &[Tuple]) -> Vec<Found> {
    if tuples.is_empty() {
        return Vec::new();
    }
    namespaces.refresh();
    let mut found = vec![Found::NoSocket; tuples.len()];
    let mut order: Vec<u32> =
        (0..).take(tuples.len()).filter(|&at| tuples[at as usize].protocol == Protocol::Tcp).collect();
    if order.len() >= BULK {
        order.sort_unstable_by_key(|&at| tuples[at as usize]);
        for namespace in namespaces.iter_mut() {
            // The sockets that this dump misses are requested one by one below.
            let _ = namespace.diag.dump(Protocol::Tcp, |socket| {
                let tuple = Tuple { protocol: Protocol::Tcp, source: socket.local, destination: socket.remote };
                let from = order.partition_point(|&at| tuples[at as usize] < tuple);
                for &at in order[from..].iter().take_while(|&&at| tuples[at as usize] == tuple) {
                    found[at as usize] = Found::Socket { inode: socket.inode, connected: true };
                }
            });
        }
    }
    for (tuple, found) in tuples.iter().zip(&mut found) {
        if !matches!(found, Found::Socket { inode: 1.., .. }) {
            *found = find(namespaces, tuple);
        }
    }
    found
}

/// The sockets with these cookies, in their order; each comes with its tuple, and whether it is still open.
///
/// A connected socket is requested by its tuple, and the answer counts if it bears the cookie: equal tuples in two
/// namespaces cannot be mistaken for each other. Sockets that have no peer, or are bound to a device, are not found so, and
/// are searched for among those that the kernel lists.
pub(super) fn find_by_cookie(namespaces: &mut Namespaces, sockets: &[(u64, Tuple, bool)]) -> Vec<Found> {
    if sockets.is_empty() {
        return Vec::new();
    }
    namespaces.refresh();
    let mut found = vec![Found::NoSocket; sockets.len()];
    // The places of the sockets that are still to be found, by their cookies.
    let mut left: HashMap<u64, usize> = HashMap::new();
    for (at, (cookie, tuple, open)) in sockets.iter().enumerate() {
        match find_connected(namespaces, *cookie, tuple) {
            // No process has accepted it yet, or its last one has closed it.
            Some(Found::Socket { inode: 0, .. }) => {
                let listener = find_listener(namespaces, tuple).unwrap_or_default();
                found[at] = Found::Socket { inode: listener, connected: false };
            }
            Some(socket) => found[at] = socket,
            None if *open => {
                left.insert(*cookie, at);
            }
            // Closed already: it was accepted from the socket that listens there, if any.
            None => {
                if let Some(inode) = find_listener(namespaces, tuple) {
                    found[at] = Found::Socket { inode, connected: false };
                }
            }
        }
    }
    let wanted = |protocol| sockets.iter().any(|(_, tuple, _)| tuple.protocol == protocol);
    let protocols = [Protocol::Udp, UDPLITE, RAW, SCTP].map(|protocol| (protocol, wanted(protocol)));
    let any_raw = sockets.iter().any(|(_, tuple, _)| matches!(tuple.protocol, Protocol::Other(_)));
    for namespace in namespaces.iter_mut() {
        if left.is_empty() {
            break;
        }
        let mut take = |socket: Socket| {
            if let Some(at) = left.remove(&socket.cookie) {
                found[at] = Found::Socket { inode: socket.inode, connected: true };
            }
        };
        // A socket that a listing misses stays without owner until the next try.
        let _ = namespace.diag.dump_listeners(&mut take);
        for (protocol, wanted) in protocols {
            if wanted || (protocol == RAW && any_raw) {
                let _ = namespace.diag.dump(protocol, &mut take);
            }
        }
        if left.values().any(|&at| sockets[at].1.protocol == Protocol::Tcp && sockets[at].1.destination.port != 0) {
            let _ = namespace.diag.dump(Protocol::Tcp, |socket| {
                if let Some(at) = left.remove(&socket.cookie) {
                    found[at] = Found::Socket { inode: socket.inode, connected: true };
                }
            });
        }
    }
    for at in left.into_values() {
        let tuple = &sockets[at].1;
        if let Some(inode) = find_listener(namespaces, tuple) {
            found[at] = Found::Socket { inode, connected: false };
        } else if matches!(tuple.protocol, Protocol::Other(_)) {
            found[at] = Found::Kernels;
        }
    }
    found
}

/// The connected socket with this cookie, in whichever namespace answers to its tuple.
fn find_connected(namespaces: &mut Namespaces, cookie: u64, tuple: &Tuple) -> Option<Found> {
    if tuple.destination.port == 0 {
        return None;
    }
    let address = tuple.source.address();
    let candidates = namespaces.iter_mut().filter(|namespace| address.is_loopback() || namespace.has_address(address));
    for namespace in candidates {
        if let Ok(Some(socket)) = namespace.diag.find(tuple.protocol, tuple.source, tuple.destination)
            && socket.cookie == cookie
        {
            return Some(Found::Socket { inode: socket.inode, connected: true });
        }
    }
    None
}

/// The socket at the source of a tuple.
pub(super) fn find(namespaces: &mut Namespaces, tuple: &Tuple) -> Found {
    let Some(namespace) = namespaces.with_address(tuple.source.address()) else { return Found::Elsewhere };
    match find_in(namespace, tuple, tuple.destination) {
        // The connection's socket is closed, in TIME_WAIT or orphaned. If a socket listens there, it accepted the
        // connection.
        found @ (Found::NoSocket | Found::Socket { inode: 0, .. }) => match find_listener(namespaces, tuple) {
            Some(inode) => Found::Socket { inode, connected: false },
            None => found,
        },
        found => found,
    }
}

/// The inode of the TCP socket that listens at the source of a tuple.
pub(super) fn find_listener(namespaces: &mut Namespaces, tuple: &Tuple) -> Option<u32> {
    if tuple.protocol != Protocol::Tcp {
        return None;
    }
    let namespace = namespaces.with_address(tuple.source.address())?;
    // No connection has port 0, so the listener is the only socket that the kernel can find.
    match find_in(namespace, tuple, Endpoint::new(tuple.destination.address(), 0)) {
        Found::Socket { inode, connected: false } => Some(inode),
        _ => None,
    }
}

fn find_in(namespace: &mut Namespace, tuple: &Tuple, remote: Endpoint) -> Found {
    match namespace.diag.find(tuple.protocol, tuple.source, remote) {
        Ok(Some(socket)) => Found::Socket { inode: socket.inode, connected: socket.is_connected() },
        Ok(None) | Err(_) => Found::NoSocket,
    }
}
