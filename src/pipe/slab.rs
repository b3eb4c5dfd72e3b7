//! The slab that holds the connections, and the ids by which epoll(7) and the queues refer to them.

/// A connection's slot, and a generation that tells apart the connections that use this slot one after the other: a
/// late event or turn does not reach the wrong one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId {
    index: u32,
    generation: u32,
}

/// Which of a connection's two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// The accepted one.
    Client,
    /// The connected one.
    Target,
}

impl ConnectionId {
    /// The slot's index.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// The epoll token of one of the connection's sockets.
    pub fn token(self, leg: Leg) -> u64 {
        let leg = match leg {
            Leg::Client => 0,
            Leg::Target => 1,
        };
        u64::from(self.generation) << 32 | u64::from(self.index) << 1 | leg
    }

    /// The connection and the socket that a token stands for.
    pub fn from_token(token: u64) -> (Self, Leg) {
        let leg = if token & 1 == 0 { Leg::Client } else { Leg::Target };
        (Self { index: (token as u32) >> 1, generation: (token >> 32) as u32 }, leg)
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
            // Fits: each connection has descriptors of its own, and a descriptor is an int.
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
            for leg in [Leg::Client, Leg::Target] {
                assert_eq!(ConnectionId::from_token(id.token(leg)), (id, leg));
            }
        }
    }
}
