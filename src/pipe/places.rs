//! The places of a pipe for connections, which its threads share: how many are taken, in all and by each client, and how
//! many connections wait for descriptors.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::crowd::Crowd;
use super::mailbox::{Mailbox, PipeMessage};
use super::socket::accept;

/// Why there is no client to serve.
#[derive(Debug)]
pub enum NoClient {
    /// All places are taken, or connections wait for descriptors.
    Full,
    /// What accept4(2) says.
    Failed(Errno),
}

/// The places of one pipe.
#[derive(Debug, Default)]
pub struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    crowd: Crowd,
    /// The connections of all threads that wait for a descriptor. They get it before new clients do.
    starved: usize,
    /// The threads to which something that is free matters: they have such connections, or accept nobody.
    waiting: Vec<Mailbox>,
}

impl Taken {
    fn are_all(&self, most: Option<NonZeroUsize>) -> bool {
        self.starved > 0 || most.is_some_and(|most| self.all >= most.get())
    }

    fn notify(&mut self, mailbox: &Mailbox) {
        if !self.waiting.iter().any(|waiting| waiting.is_same(mailbox)) {
            self.waiting.push(mailbox.clone());
        }
    }
}

impl Places {
    /// The number of places that are taken.
    pub fn taken(&self) -> usize {
        self.lock().all
    }

    /// Accepts a client and gives it a place, if fewer than `most` are taken and no connection waits for a descriptor.
    pub fn accept(
        &self,
        listener: &TcpListener,
        most: Option<NonZeroUsize>,
    ) -> Result<(TcpStream, SocketAddr), NoClient> {
        // With the lock held: a client that is accepted must have a place, and two threads may see the last one free.
        let mut taken = self.lock();
        if taken.are_all(most) {
            return Err(NoClient::Full);
        }
        let client = accept(listener).map_err(NoClient::Failed)?;
        taken.all += 1;
        Ok(client)
    }

    /// Gives the place of a connection to the client `ip`, unless it has `most_per_client` already: then the place is
    /// free again. Returns whether the client has it.
    pub fn assign(&self, ip: IpAddr, most_per_client: Option<NonZeroUsize>) -> bool {
        let has_place = self.lock().crowd.enter(ip, most_per_client.map_or(usize::MAX, NonZeroUsize::get));
        if !has_place {
            self.free(None);
        }
        has_place
    }

    /// The connection of a client has ended: its place is free.
    pub fn leave(&self, ip: IpAddr) {
        self.free(Some(ip));
    }

    fn free(&self, ip: Option<IpAddr>) {
        let mut taken = self.lock();
        taken.all -= 1;
        if let Some(ip) = ip {
            taken.crowd.leave(ip);
        }
        Self::notify_all(taken);
    }

    fn notify_all(mut taken: MutexGuard<'_, Taken>) {
        let waiting = std::mem::take(&mut taken.waiting);
        drop(taken);
        waiting.iter().for_each(|mailbox| mailbox.send(PipeMessage::PlaceFree));
    }

    /// Whether there is no place for a client. If so, the thread of `mailbox` gets a message as soon as there may be one.
    pub fn are_taken(&self, most: Option<NonZeroUsize>, mailbox: &Mailbox) -> bool {
        let mut taken = self.lock();
        let are_all = taken.are_all(most);
        if are_all {
            taken.notify(mailbox);
        }
        are_all
    }

    /// A connection of the thread of `mailbox` waits for a descriptor. The thread gets a message when another ends.
    pub fn starve(&self, mailbox: &Mailbox) {
        let mut taken = self.lock();
        taken.starved += 1;
        taken.notify(mailbox);
    }

    /// A connection no longer waits for a descriptor.
    pub fn end_starving(&self) {
        let mut taken = self.lock();
        taken.starved -= 1;
        if taken.starved == 0 {
            Self::notify_all(taken);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
