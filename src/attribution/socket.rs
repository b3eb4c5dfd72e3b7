//! The socket at the source of a tuple, through sock_diag in the network namespace that has its address.

use std::collections::HashMap;
use std::time::Instant;

use nix::errno::Errno;

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
    /// Several network namespaces have one.
    Ambiguous,
    /// The time of the tick was over before the search.
    NotSearched,
    /// A socket that is open and that sock_diag does not list: the kernel's own, for ICMP for example.
    Kernels,
    Elsewhere,
    /// It is closed; the answer has the process that closed it.
    Closed(Answer),
}

impl Found {
    /// The answer; `holder` returns the process and the descriptor that hold the socket with an inode, or the reason why there is
    /// none.
    pub fn answer(self, holder: impl FnOnce(u32) -> Result<(u32, Handle), Reason>) -> Answer {
        match self {
            Self::Closed(answer) => answer,
            Self::Elsewhere => Answer::Elsewhere,
            Self::Ambiguous => Answer::Unowned(Reason::Ambiguous),
            Self::NotSearched => Answer::Unowned(Reason::NotSearched),
            Self::Kernels => Answer::Unowned(Reason::NoProcess),
            Self::NoSocket | Self::Socket { inode: 0, .. } => Answer::Unowned(Reason::Gone),
            Self::Socket { inode, connected } => match holder(inode) {
                Ok((pid, handle)) => Answer::Held { pid, handle: Some(handle), connected },
                Err(reason) => Answer::Unowned(reason),
            },
        }
    }
}

/// The sockets at the sources of many tuples, in their order.
pub(super) fn find_all(namespaces: &mut Namespaces, tuples: &[Tuple], deadline: Instant) -> Vec<Found> {
    if tuples.is_empty() {
        return Vec::new();
    }
    namespaces.refresh();
    let mut found = vec![Found::NoSocket; tuples.len()];
    let of_tcp = |at: &u32| tuples[*at as usize].protocol == Protocol::Tcp;
    let order: Vec<u32> = (0..).take(tuples.len()).filter(of_tcp).collect();
    if order.len() >= BULK {
        // The sockets that this dump misses are requested one by one below. There may be so many that it is not done in time, and it
        // begins with the same ones in each tick, so the others get as much.
        let half_time = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        find_listed(namespaces, Protocol::Tcp, tuples, order, &mut found, half_time);
    }
    for (tuple, found) in tuples.iter().zip(&mut found) {
        if !matches!(found, Found::Socket { inode: 1.., .. }) {
            *found = if Instant::now() < deadline { find(namespaces, tuple) } else { Found::NotSearched };
        }
    }
    found
}

/// Looks for sockets that a request for a tuple does not find, among those that the kernel lists: sockets bound to a device,
/// and at addresses that are on no interface (`ip route add local`, IP_TRANSPARENT). Each takes the place of its tuple in `found`.
pub(super) fn find_unusual(namespaces: &mut Namespaces, tuples: &[Tuple], found: &mut [Found], deadline: Instant) {
    for protocol in [Protocol::Tcp, Protocol::Udp, SCTP] {
        let unknown = |at: &u32| {
            let at = *at as usize;
            tuples[at].protocol == protocol
                && matches!(found[at], Found::NoSocket | Found::Elsewhere | Found::Socket { inode: 0, .. })
        };
        let order: Vec<u32> = (0..).take(tuples.len()).filter(unknown).collect();
        if !order.is_empty() {
            find_listed(namespaces, protocol, tuples, order, found, deadline);
        }
    }
}

/// Looks for the sockets of the tuples at the places `order` among those that the kernel lists. A namespace that others may have
/// made does not take part.
fn find_listed(
    namespaces: &mut Namespaces,
    protocol: Protocol,
    tuples: &[Tuple],
    mut order: Vec<u32>,
    found: &mut [Found],
    deadline: Instant,
) {
    order.sort_unstable_by_key(|&at| tuples[at as usize]);
    for namespace in namespaces.iter_mut().filter(|namespace| namespace.is_trusted()) {
        let _ = namespace.diag.dump(protocol, deadline, |socket| {
            if socket.inode == 0 {
                return;
            }
            let tuple = Tuple { protocol, source: socket.local, destination: socket.remote };
            let from = order.partition_point(|&at| tuples[at as usize] < tuple);
            for &at in order[from..].iter().take_while(|&&at| tuples[at as usize] == tuple) {
                let found = &mut found[at as usize];
                *found = match *found {
                    // Another namespace has an equal one.
                    Found::Socket { inode: before @ 1.., .. } if before != socket.inode => Found::Ambiguous,
                    Found::Ambiguous => Found::Ambiguous,
                    _ => Found::Socket { inode: socket.inode, connected: true },
                };
            }
        });
    }
}

/// The sockets with these cookies, in their order; each comes with its tuple, and whether it is still open.
///
/// A connected socket is requested by its tuple, and the answer counts if it bears the cookie: equal tuples in two
/// namespaces cannot be mistaken for each other. Sockets that have no peer, or are bound to a device, are not found so, and
/// are searched for among those that the kernel lists.
pub(super) fn find_by_cookie(
    namespaces: &mut Namespaces,
    sockets: &[(u64, Tuple, bool)],
    deadline: Instant,
) -> Vec<Found> {
    if sockets.is_empty() {
        return Vec::new();
    }
    namespaces.refresh();
    let mut found = vec![Found::NoSocket; sockets.len()];
    let mut connected = vec![None; sockets.len()];
    // All of them first where nobody makes the search long: those who own the other namespaces may have many, with many sockets.
    for trusted in [true, false] {
        for ((cookie, tuple, _), connected) in sockets.iter().zip(&mut connected) {
            if connected.is_none() && Instant::now() < deadline {
                *connected = find_connected(namespaces, *cookie, tuple, trusted);
            }
        }
    }
    // The places of the sockets that are still to be found, by their cookies.
    let mut left: HashMap<u64, usize> = HashMap::new();
    for (at, (cookie, tuple, open)) in sockets.iter().enumerate() {
        if connected[at].is_none() && Instant::now() >= deadline {
            found[at] = Found::NotSearched;
            continue;
        }
        match connected[at] {
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
    let mut in_time = true;
    for namespace in namespaces.iter_mut() {
        if left.is_empty() || !in_time {
            break;
        }
        let mut take = |socket: Socket| {
            if let Some(at) = left.remove(&socket.cookie) {
                found[at] = Found::Socket { inode: socket.inode, connected: true };
            }
        };
        // A socket that a listing misses stays without owner until the next try.
        in_time &= namespace.diag.dump_listeners(deadline, &mut take) != Err(Errno::ETIME);
        for (protocol, wanted) in protocols {
            if wanted || (protocol == RAW && any_raw) {
                in_time &= namespace.diag.dump(protocol, deadline, &mut take) != Err(Errno::ETIME);
            }
        }
        if left.values().any(|&at| sockets[at].1.protocol == Protocol::Tcp && sockets[at].1.destination.port != 0) {
            let dumped = namespace.diag.dump(Protocol::Tcp, deadline, |socket| {
                if let Some(at) = left.remove(&socket.cookie) {
                    found[at] = Found::Socket { inode: socket.inode, connected: true };
                }
            });
            in_time &= dumped != Err(Errno::ETIME);
        }
    }
    for at in left.into_values() {
        let tuple = &sockets[at].1;
        if let Some(inode) = find_listener(namespaces, tuple) {
            found[at] = Found::Socket { inode, connected: false };
        } else if !in_time {
            found[at] = Found::NotSearched;
        } else if matches!(tuple.protocol, Protocol::Other(_)) {
            found[at] = Found::Kernels;
        }
    }
    found
}

/// The connected socket with this cookie, in whichever namespace answers to its tuple, of those that are `trusted` or not.
fn find_connected(namespaces: &mut Namespaces, cookie: u64, tuple: &Tuple, trusted: bool) -> Option<Found> {
    if tuple.destination.port == 0 {
        return None;
    }
    let address = tuple.source.address();
    let may_have =
        |namespace: &&mut Namespace| namespace.is_trusted() == trusted && namespace.may_have_sockets_at(address);
    for namespace in namespaces.iter_mut().filter(may_have) {
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
    let find_here = |namespace: &mut Namespace| match find_in(namespace, tuple, tuple.destination) {
        // The connection's socket is closed, in TIME_WAIT or orphaned. If a socket listens there, it accepted the
        // connection.
        unheld @ (Found::NoSocket | Found::Socket { inode: 0, .. }) => match find_listener_in(namespace, tuple) {
            Some(inode) => Found::Socket { inode, connected: false },
            None => unheld,
        },
        socket => socket,
    };
    let candidates: Vec<Found> = namespaces.with_address(tuple.source.address()).map(find_here).collect();
    let sockets = |own: bool| {
        let wanted = move |found: &Found| matches!(found, Found::Socket { connected, .. } if *connected || !own);
        candidates.iter().copied().filter(wanted)
    };
    // The connection's own socket goes before those that would take it. Where two containers have one address and both have
    // such a socket, nothing tells which of them this is.
    for own in [true, false] {
        match (sockets(own).next(), sockets(own).count()) {
            (Some(socket), 1) => return socket,
            (Some(_), _) => return Found::Ambiguous,
            (None, _) => {}
        }
    }
    if candidates.is_empty() { Found::Elsewhere } else { Found::NoSocket }
}

/// The inode of the TCP socket that listens at the source of a tuple; `None` also where several namespaces have one.
pub(super) fn find_listener(namespaces: &mut Namespaces, tuple: &Tuple) -> Option<u32> {
    let mut listeners =
        namespaces.with_address(tuple.source.address()).filter_map(|namespace| find_listener_in(namespace, tuple));
    let listener = listeners.next()?;
    listeners.next().is_none().then_some(listener)
}

fn find_listener_in(namespace: &mut Namespace, tuple: &Tuple) -> Option<u32> {
    if tuple.protocol != Protocol::Tcp {
        return None;
    }
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
