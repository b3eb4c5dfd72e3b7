//! Connections at the moment they begin and end.
//!
//! The kernel sends the same messages as for a dump to the multicast groups NFNLGRP_CONNTRACK_NEW and
//! NFNLGRP_CONNTRACK_DESTROY (include/uapi/linux/netfilter/nfnetlink.h); those of the second have the final counters.
//! It sends none about a connection that began before the first subscription on the host (nf_conntrack_events=2, the
//! default).

use std::os::fd::{AsFd, BorrowedFd};

use super::ctnetlink;
use crate::kernel::flow::Flow;
use crate::kernel::netlink::{Netlink, protocol};

/// Groups 1 (NEW) and 3 (DESTROY), as a mask.
const GROUPS: u32 = 0b101;
/// The receive buffer at first, in bytes: room for some 60,000 messages. It doubles each time that events were lost.
const RECEIVE_BUFFER: usize = 32 << 20;
/// The largest receive buffer, in bytes.
const LARGEST_RECEIVE_BUFFER: usize = 256 << 20;

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It began.
    Opened(Flow),
    /// It ended; these are its final counters.
    Ended(Flow),
}

/// A subscription to the events of the calling thread's network namespace.
#[derive(Debug)]
pub struct Events {
    socket: Netlink,
    receive_buffer: usize,
}

impl Events {
    /// Subscribes.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub fn subscribe() -> nix::Result<Self> {
        let socket = Netlink::open(protocol::NETFILTER, GROUPS)?;
        socket.set_receive_buffer(RECEIVE_BUFFER);
        Ok(Self { socket, receive_buffer: RECEIVE_BUFFER })
    }

    /// Reads at most `most` datagrams that wait, and calls `visit` with their events. Returns the number of datagrams.
    ///
    /// # Errors
    /// ENOBUFS: the kernel dropped events, since the receive buffer was full. It is larger from now on.
    pub fn read(&mut self, most: usize, mut visit: impl FnMut(Event)) -> nix::Result<usize> {
        let read = self.socket.events(most, |message| {
            let flow = match message.kind {
                ctnetlink::NEW | ctnetlink::DELETE => ctnetlink::parse(message.payload),
                _ => None,
            };
            match flow {
                Some(flow) if message.kind == ctnetlink::NEW => visit(Event::Opened(flow)),
                Some(flow) => visit(Event::Ended(Flow { open: false, ..flow })),
                None => {}
            }
        });
        if read == Err(nix::errno::Errno::ENOBUFS) {
            self.receive_buffer = (self.receive_buffer * 2).min(LARGEST_RECEIVE_BUFFER);
            self.socket.set_receive_buffer(self.receive_buffer);
        }
        read
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
