//! How other threads reach a thread of a pipe: messages in a channel, and an eventfd(2) that wakes it from
//! epoll_wait(2).

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use anyhow::{Context, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::resolve::Resolution;
use super::{PipeSettings, Route};

/// A request or a report of another thread to a thread of a pipe.
#[derive(Debug)]
pub enum PipeMessage {
    /// Go on with other settings, and with this route for new connections.
    Reconfigure(Box<PipeSettings>, Arc<Route>),
    /// Close the listener, then drop the sender: its receiver waits for that.
    StopAccepting(Sender<()>),
    /// Close the listener and reset all connections.
    Close,
    /// A connection has ended, and others wait for its place or its descriptors.
    PlaceFree,
    /// A lookup has ended, of the name of the target of a route.
    Resolved(Arc<Route>, Resolution),
}

/// Sends messages to a thread of a pipe and wakes it.
#[derive(Debug, Clone)]
pub struct Mailbox {
    sender: Sender<PipeMessage>,
    wakeup: Arc<EventFd>,
}

/// The end of the mailbox that the pipe's thread reads.
#[derive(Debug)]
pub struct Inbox {
    receiver: Receiver<PipeMessage>,
    wakeup: Arc<EventFd>,
}

impl Mailbox {
    /// Both ends of a new mailbox.
    ///
    /// # Errors
    /// When the kernel gives no eventfd(2).
    pub fn new() -> Result<(Self, Inbox)> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wakeup = Arc::new(EventFd::from_flags(flags).context("cannot make an eventfd")?);
        let (sender, receiver) = mpsc::channel();
        Ok((Self { sender, wakeup: Arc::clone(&wakeup) }, Inbox { receiver, wakeup }))
    }

    /// Sends `message`. It is no error if the thread has ended: then it needs no messages.
    pub fn send(&self, message: PipeMessage) {
        if self.sender.send(message).is_ok() {
            let _ = self.wakeup.write(1);
        }
    }

    /// Whether both reach the same thread.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.wakeup, &other.wakeup)
    }
}

impl Inbox {
    /// The descriptor that is readable while there are messages.
    pub fn wakeup(&self) -> &EventFd {
        &self.wakeup
    }

    /// Makes the descriptor unreadable until the next message is sent; then [`receive`](Inbox::receive) all there are.
    pub fn clear_wakeup(&self) {
        // The value is the number of messages sent since the last read, and does not matter.
        let _ = self.wakeup.read();
    }

    /// The next message, if there is one.
    pub fn receive(&self) -> Option<PipeMessage> {
        self.receiver.try_recv().ok()
    }
}
