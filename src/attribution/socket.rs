//! The socket at the source of a tuple, through sock_diag in the network namespace that has its address.

use super::Answer;
use crate::kernel::flow::{Endpoint, Protocol, Tuple};
use crate::kernel::namespace::{Namespace, Namespaces};
use crate::kernel::process::Handle;
use crate::traffic::subject::Reason;

/// From this number of TCP queries on, one dump of all sockets is cheaper than one request per query: 5 µs each, beside
/// 1 µs for each socket there is.
const BULK: usize = 4000;

/// What a query has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A socket; its inode is 0 if no process holds it.
    Socket {
        inode: u32,
        connected: bool,
    },
    NoSocket,
    Elsewhere,
    /// The process that closed it.
    Closed(Answer),
}

impl Found {
    /// The answer, where `holder` gives the process and the descriptor that hold the socket with an inode.
    pub fn answer(self, holder: impl FnOnce(u32) -> Option<(u32, Handle)>, some_unreadable: bool) -> Answer {
        match self {
            Self::Closed(answer) => answer,
            Self::Elsewhere => Answer::Elsewhere,
            Self::NoSocket | Self::Socket { inode: 0, .. } => Answer::Nobody(Reason::Gone),
            Self::Socket { inode, connected } => match holder(inode) {
                Some((pid, handle)) => Answer::Held { pid, handle: Some(handle), connected },
                None if some_unreadable => Answer::Nobody(Reason::NotPermitted),
                None => Answer::Nobody(Reason::NoProcess),
            },
        }
    }
}

/// The sockets at the sources of many tuples, in their order.
pub(super) fn find_all(namespaces: &mut Namespaces, tuples: &[Tuple]) -> Vec<Found> {
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

/// The socket at the source of a tuple.
pub(super) fn find(namespaces: &mut Namespaces, tuple: &Tuple) -> Found {
    let Some(namespace) = namespaces.with_address(tuple.source.address()) else { return Found::Elsewhere };
    match find_in(namespace, tuple, tuple.destination) {
        // It is closed already, and in TIME_WAIT or orphaned: it was accepted from the socket that listens there, if any.
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
