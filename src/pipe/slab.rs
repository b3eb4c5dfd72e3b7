//! The slab that holds the connections, and the ids by which epoll(7) and the queues refer to them.

/// A connection's slot, and a generation that distinguishes the connections that use this slot one after the other, so
/// that a late event or turn does not reach the wrong one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId {
    index: u32,
    generation: u32,
}

/// One of the two sockets of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// The accepted one.
    Client,
    /// The connected one.
    Target,
}

/// The socket of a connection that an event of epoll is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpollSource {
    /// One of the two between which it forwards.
    Leg(Leg),
    /// One of those with which it tries the target's addresses. The attempt that wins gets the token of the target, so
    /// that late events of the others are not taken for events of the target.
    Attempt,
}

impl ConnectionId {
    /// The slot's index.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// The epoll token of one of the connection's sockets.
    pub fn token(self, socket: EpollSource) -> u64 {
        let socket = match socket {
            EpollSource::Leg(Leg::Client) => 0,
            EpollSource::Leg(Leg::Target) => 1,
            EpollSource::Attempt => 2,
        };
        u64::from(self.generation) << 32 | u64::from(self.index) << 2 | socket
    }

    /// The connection and the socket that a token stands for.
    pub fn from_token(token: u64) -> (Self, EpollSource) {
        let socket = match token & 3 {
            0 => EpollSource::Leg(Leg::Client),
            1 => EpollSource::Leg(Leg::Target),
            _ => EpollSource::Attempt,
        };
        (Self { index: (token as u32) >> 2, generation: (token >> 32) as u32 }, socket)
    }

    #[cfg(test)]
    pub fn first(index: u32) -> Self {
        Self { index, generation: 0 }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    content: Option<T>,
}

/// Values in numbered slots; the slot of a removed value is used again.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// A slab without slots.
    pub fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Inserts the value that `make` builds from its id.
    pub fn insert(&mut self, make: impl FnOnce(ConnectionId) -> T) -> ConnectionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, content: None });
            // Fits 30 bits, as in a token: fs.nr_open allows a process at most 2^30 descriptors.
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let id = ConnectionId { index, generation: slot.generation };
        slot.content = Some(make(id));
        id
    }

    /// The value, unless it was removed.
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index())?;
        if slot.generation == id.generation { slot.content.as_mut() } else { None }
    }

    /// Removes the value and returns it.
    pub fn remove(&mut self, id: ConnectionId) -> Option<T> {
        let slot = self.slots.get_mut(id.index()).filter(|slot| slot.generation == id.generation)?;
        let content = slot.content.take()?;
        // The event loop uses tokens of the highest generations for descriptors that belong to no connection.
        slot.generation = (slot.generation + 1) % (u32::MAX >> 1);
        self.free.push(id.index);
        Some(content)
    }

    /// The ids of all values.
    pub fn ids(&self) -> Vec<ConnectionId> {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.content.is_some());
        used.map(|(index, slot)| ConnectionId { index: index as u32, generation: slot.generation }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_does_not_reach_the_next_value_in_its_slot() {
        let mut slab = Slab::new();
        let first = slab.insert(|_| 'a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert(|_| 'b');
        assert_eq!(first.index(), second.index());
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn a_token_stands_for_one_socket_of_one_connection() {
        let mut slab = Slab::new();
        let first = slab.insert(|_| ());
        slab.remove(first);
        for id in [slab.insert(|_| ()), slab.insert(|_| ())] {
            for socket in [EpollSource::Leg(Leg::Client), EpollSource::Leg(Leg::Target), EpollSource::Attempt] {
                assert_eq!(ConnectionId::from_token(id.token(socket)), (id, socket));
            }
        }
    }
}
