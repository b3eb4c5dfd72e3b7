//! What else is known of the bytes of one subject: which processes, how many connections, which remote ends.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::rates::moved;
use super::subject::Subject;

/// The most processes of a subject or group that are listed.
pub const MOST_PROCESSES: usize = 16;

/// What is known of a subject beside its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// The processes that last had traffic or an open connection, [`MOST_PROCESSES`] at most, the most recent last.
    pub processes: Vec<ProcessId>,
    /// The number of open connections that are known.
    pub connections: u64,
    /// The remote ends with the most bytes, the biggest first; empty unless they are counted.
    pub remotes: Vec<RemoteBytes>,
    /// The bytes in and out of all other remote ends.
    pub other_remotes: (u64, u64),
}

/// Takes what is known of a subject, without remote ends, and its remote ends if they are counted.
pub type VisitDetail<'a> = dyn FnMut(&Arc<Subject>, Detail, Option<&Remotes>) + 'a;

/// A process: its id, and when it started, in clock ticks since boot. The kernel reuses the id alone.
pub type ProcessId = (u32, u64);

/// The other end of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Remote {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 for a protocol without ports.
    pub port: u16,
    /// The IP protocol (RFC 790 and its successors).
    pub protocol: u8,
}

/// Bytes in and out that were exchanged with a remote end.
pub type Exchanged = (Remote, (u64, u64));

impl Remote {
    /// The name of the protocol, or its number.
    pub fn protocol_name(&self) -> String {
        match self.protocol {
            1 => "icmp".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            58 => "icmpv6".to_owned(),
            132 => "sctp".to_owned(),
            136 => "udplite".to_owned(),
            number => number.to_string(),
        }
    }
}

/// The bytes exchanged with a remote end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteBytes {
    /// The remote end.
    pub remote: Remote,
    /// The name of its address, if names are looked up and this one is known. Whoever owns the address has chosen it.
    pub name: Option<Arc<str>>,
    /// Bytes that came from there.
    pub bytes_in: u64,
    /// Bytes that went there.
    pub bytes_out: u64,
    /// Bytes that came from there since the last frame.
    pub moved_in: u64,
    /// Bytes that went there since then.
    pub moved_out: u64,
}

impl Detail {
    /// The same without remote ends.
    pub fn without_remotes(&self) -> Self {
        Self { processes: self.processes.clone(), connections: self.connections, ..Self::default() }
    }

    /// Adds what is known of another subject of the same group. The remote ends stay as they are: see [`Remotes`].
    pub fn add(&mut self, other: &Self) {
        self.processes.extend(&other.processes);
        self.processes.drain(..self.processes.len().saturating_sub(MOST_PROCESSES));
        self.connections += other.connections;
    }
}

/// The bytes of each remote end of a subject or group, those with few bytes folded into one sum where there are too many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remotes {
    bytes: HashMap<Remote, (u64, u64)>,
    folded: (u64, u64),
    /// All bytes: those of the remote ends, and the folded ones.
    sum: (u64, u64),
}

/// The most remote ends that one subject has; beyond that, the smaller half is folded.
const MOST_REMOTES: usize = 256;

impl Remotes {
    /// Adds bytes in and out of a remote end; `None` where it is not known.
    pub fn add(&mut self, remote: Option<Remote>, bytes: (u64, u64)) {
        if let Some(remote) = remote
            && self.bytes.len() >= MOST_REMOTES
            && !self.bytes.contains_key(&remote)
        {
            self.fold();
        }
        self.add_unfolded(remote, bytes);
    }

    fn add_unfolded(&mut self, remote: Option<Remote>, (bytes_in, bytes_out): (u64, u64)) {
        let of_remote = match remote {
            Some(remote) => self.bytes.entry(remote).or_default(),
            None => &mut self.folded,
        };
        for sum in [of_remote, &mut self.sum] {
            *sum = (sum.0 + bytes_in, sum.1 + bytes_out);
        }
    }

    /// Moves bytes in and out that were added while their remote end was not known to that remote end, at most as many as there are.
    pub fn tell_apart(&mut self, remote: Remote, (bytes_in, bytes_out): (u64, u64)) {
        let known = (bytes_in.min(self.folded.0), bytes_out.min(self.folded.1));
        if known != (0, 0) {
            self.folded = (self.folded.0 - known.0, self.folded.1 - known.1);
            self.sum = (self.sum.0 - known.0, self.sum.1 - known.1);
            self.add(Some(remote), known);
        }
    }

    fn fold(&mut self) {
        let mut sorted: Vec<_> = std::mem::take(&mut self.bytes).into_iter().collect();
        sorted.sort_unstable_by_key(|(remote, bytes)| (Reverse(bytes.0 + bytes.1), *remote));
        for (_, bytes) in sorted.split_off(MOST_REMOTES / 2) {
            self.folded = (self.folded.0 + bytes.0, self.folded.1 + bytes.1);
        }
        self.bytes = sorted.into_iter().collect();
    }

    /// Adds all of another subject's. Nothing is folded: a group is added up anew at each tick, and what it folded would depend on
    /// the order of its members.
    pub fn extend(&mut self, other: &Self) {
        for (remote, bytes) in &other.bytes {
            self.add_unfolded(Some(*remote), *bytes);
        }
        self.add_unfolded(None, other.folded);
    }

    /// Whether this remote end is told apart.
    pub fn has(&self, remote: &Remote) -> bool {
        self.bytes.contains_key(remote)
    }

    /// The number of remote ends that are told apart.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was exchanged with anybody.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.folded == (0, 0)
    }

    /// Whether no byte has moved since these were `before`.
    pub fn is_unchanged(&self, before: &Self) -> bool {
        self.sum == before.sum
    }

    /// Enters the `most` biggest into `detail`, and the sum of the others: by what they have moved since they were `before`, if
    /// `by_rate`, and by their totals.
    pub fn enter(&self, most: usize, by_rate: bool, before: Option<&Self>, detail: &mut Detail) {
        let unchanged = before.is_some_and(|before| self.is_unchanged(before));
        let bytes = |(&remote, &(bytes_in, bytes_out)): (&Remote, &(u64, u64))| {
            let before = before.and_then(|before| before.bytes.get(&remote)).copied().unwrap_or_default();
            let (moved_in, moved_out) =
                if unchanged { (0, 0) } else { (moved(bytes_in, before.0), moved(bytes_out, before.1)) };
            RemoteBytes { remote, name: None, bytes_in, bytes_out, moved_in, moved_out }
        };
        let mut remotes: Vec<RemoteBytes> = self.bytes.iter().map(bytes).collect();
        remotes.sort_unstable_by_key(|end| {
            let moved = if by_rate { end.moved_in + end.moved_out } else { 0 };
            (Reverse((moved, end.bytes_in + end.bytes_out)), end.remote)
        });
        detail.other_remotes = self.folded;
        for end in remotes.drain(most.min(remotes.len())..) {
            detail.other_remotes.0 += end.bytes_in;
            detail.other_remotes.1 += end.bytes_out;
        }
        detail.remotes = remotes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn remote(last: u8) -> Remote {
        Remote { address: Ipv4Addr::new(10, 0, 0, last).into(), port: 443, protocol: 6 }
    }

    #[test]
    fn the_biggest_are_listed_and_the_sum_is_kept() {
        let mut remotes = Remotes::default();
        for last in 1..=9 {
            remotes.add(Some(remote(last)), (u64::from(last), 0));
        }
        remotes.add(Some(remote(1)), (0, 100));
        remotes.add(None, (1000, 0));
        let mut detail = Detail::default();
        remotes.enter(2, false, None, &mut detail);
        let listed: Vec<_> = detail.remotes.iter().map(|end| (end.remote, end.bytes_in, end.bytes_out)).collect();
        assert_eq!(listed, [(remote(1), 1, 100), (remote(9), 9, 0)]);
        assert_eq!(detail.other_remotes, (1000 + 2 + 3 + 4 + 5 + 6 + 7 + 8, 0));
    }

    #[test]
    fn ever_new_remote_ends_take_bounded_room_and_lose_no_byte() {
        let mut remotes = Remotes::default();
        remotes.add(Some(remote(1)), (1_000_000, 0));
        for port in 0..10_000 {
            remotes.add(Some(Remote { port, ..remote(2) }), (1, 2));
        }
        assert!(remotes.len() <= MOST_REMOTES);
        let mut detail = Detail::default();
        remotes.enter(1, false, None, &mut detail);
        assert_eq!(detail.remotes[0].remote, remote(1));
        assert_eq!(detail.other_remotes, (10_000, 20_000));
    }

    #[test]
    fn bytes_whose_remote_end_becomes_known_are_moved_and_never_more_than_there_are() {
        let mut remotes = Remotes::default();
        remotes.add(None, (1000, 100));
        let before = remotes.clone();
        remotes.tell_apart(remote(1), (300, 40));
        remotes.tell_apart(remote(2), (900, 10));
        assert!(remotes.is_unchanged(&before));
        let mut detail = Detail::default();
        remotes.enter(9, false, None, &mut detail);
        let listed: Vec<_> = detail.remotes.iter().map(|end| (end.remote, end.bytes_in, end.bytes_out)).collect();
        assert_eq!(listed, [(remote(2), 700, 10), (remote(1), 300, 40)]);
        assert_eq!(detail.other_remotes, (0, 50));
    }

    #[test]
    fn the_rate_of_a_remote_end_that_was_not_listed_is_what_it_has_moved_since() {
        let mut remotes = Remotes::default();
        remotes.add(Some(remote(1)), (1000, 0));
        remotes.add(Some(remote(2)), (900, 0));
        let before = remotes.clone();
        remotes.add(Some(remote(2)), (200, 0));
        remotes.add(Some(remote(3)), (50, 0));
        let listed = |most, by_rate| {
            let mut detail = Detail::default();
            remotes.enter(most, by_rate, Some(&before), &mut detail);
            detail.remotes.iter().map(|end| (end.remote, end.bytes_in, end.moved_in)).collect::<Vec<_>>()
        };
        assert_eq!(listed(1, false), [(remote(2), 1100, 200)]);
        assert_eq!(listed(3, true), [(remote(2), 1100, 200), (remote(3), 50, 50), (remote(1), 1000, 0)]);
    }

    #[test]
    fn the_remote_ends_of_a_group_do_not_depend_on_the_order_of_its_members() {
        let member = |first: u16| {
            let mut member = Remotes::default();
            for port in first..first + 200 {
                member.add(Some(Remote { port, ..remote(1) }), (u64::from(port), 1));
            }
            member
        };
        let members = [member(1), member(101), member(301)];
        let (mut one, mut other) = (Remotes::default(), Remotes::default());
        members.iter().for_each(|member| one.extend(member));
        members.iter().rev().for_each(|member| other.extend(member));
        assert_eq!(one, other);
        assert_eq!(one.bytes[&Remote { port: 150, ..remote(1) }], (300, 2));
    }
}
