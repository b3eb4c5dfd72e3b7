//! Where the connections are kept, and the names under which epoll(7) and the queues know them.

/// A connection's place and which of the connections that ever had this place it is: an event or a turn that comes
/// late does not reach the wrong one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id {
    index: u32,
    generation: u32,
}

/// Which of a connection's two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that was accepted.
    Client,
    /// The one that was connected.
    Target,
}

impl Id {
    /// Its place, to index with.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// The number under which epoll knows one of its sockets.
    pub fn token(self, side: Side) -> u64 {
        let side = match side {
            Side::Client => 0,
            Side::Target => 1,
        };
        u64::from(self.generation) << 32 | u64::from(self.index) << 1 | side
    }

    /// The connection and socket of a token.
    pub fn from_token(token: u64) -> (Self, Side) {
        let side = if token & 1 == 0 { Side::Client } else { Side::Target };
        (Self { index: (token as u32) >> 1, generation: (token >> 32) as u32 }, side)
    }

    #[cfg(test)]
    pub fn first(index: u32) -> Self {
        Self { index, generation: 0 }
    }
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    content: Option<T>,
}

/// Things in numbered places; a place is used again when its thing has gone.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// One with no places yet.
    pub fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    /// How many things it holds.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Puts in what `make` makes of its own id.
    pub fn insert(&mut self, make: impl FnOnce(Id) -> T) -> Id {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, content: None });
            // Each thing has descriptors, and those are ints.
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        let id = Id { index, generation: place.generation };
        place.content = Some(make(id));
        id
    }

    /// The thing, unless it has gone.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let place = self.places.get_mut(id.index())?;
        if place.generation == id.generation { place.content.as_mut() } else { None }
    }

    /// Takes the thing out.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        let place = self.places.get_mut(id.index()).filter(|place| place.generation == id.generation)?;
        let content = place.content.take()?;
        // The highest generation is left to the tokens that are no connection's.
        place.generation = (place.generation + 1) % (u32::MAX >> 1);
        self.free.push(id.index);
        Some(content)
    }

    /// The ids of all things.
    pub fn ids(&self) -> Vec<Id> {
        let used = self.places.iter().enumerate().filter(|(_, place)| place.content.is_some());
        used.map(|(index, place)| Id { index: index as u32, generation: place.generation }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_id_does_not_reach_the_next_one_in_its_place() {
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
    fn a_token_names_one_socket() {
        let mut slab = Slab::new();
        let first = slab.insert(|_| ());
        slab.remove(first);
        for id in [slab.insert(|_| ()), slab.insert(|_| ())] {
            for side in [Side::Client, Side::Target] {
                assert_eq!(Id::from_token(id.token(side)), (id, side));
            }
        }
    }
}
