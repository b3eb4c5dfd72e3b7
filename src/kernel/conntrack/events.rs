//! Connections as they begin and end, the moment the kernel says so.
//!
//! The messages are those of the table, sent to the multicast groups NFNLGRP_CONNTRACK_NEW and NFNLGRP_CONNTRACK_DESTROY
//! (include/uapi/linux/netfilter/nfnetlink.h); the last carry the final counters. The kernel sends no end for a
//! connection that is older than the first subscription on the host (nf_conntrack_events=2, the default).

use std::os::fd::{AsFd, BorrowedFd};

use super::ctnetlink;
use crate::kernel::flow::Flow;
use crate::kernel::netlink::{Netlink, protocol};

/// Groups 1 and 3, as a mask.
const GROUPS: u32 = 0b101;
/// Room for some 60,000 messages at first; doubled when it was not enough, up to the largest.
const BUFFER: usize = 32 << 20;
const LARGEST_BUFFER: usize = 256 << 20;

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It began.
    Opened(Flow),
    /// It ended, with these counters.
    Ended(Flow),
}

/// A subscription to the events of the calling thread's network namespace.
#[derive(Debug)]
pub struct Events {
    socket: Netlink,
    buffer: usize,
}

impl Events {
    /// Subscribes.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub fn subscribe() -> nix::Result<Self> {
        let socket = Netlink::open(protocol::NETFILTER, GROUPS)?;
        socket.set_receive_buffer(BUFFER);
        Ok(Self { socket, buffer: BUFFER })
    }

    /// Calls `visit` with up to `most` events that wait, and says how many messages that took.
    ///
    /// # Errors
    /// ENOBUFS: events were lost. The buffer is larger from now on.
    pub fn read(&mut self, most: usize, visit: impl FnMut(Event)) -> nix::Result<usize> {
        let mut visit = visit;
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
            self.buffer = (self.buffer * 2).min(LARGEST_BUFFER);
            self.socket.set_receive_buffer(self.buffer);
        }
        read
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
