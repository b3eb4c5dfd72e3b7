//! What else is known of the bytes of one subject: which processes, how many connections, which remote ends.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteBytes {
    /// The remote end.
    pub remote: Remote,
    /// Bytes that came from there.
    pub bytes_in: u64,
    /// Bytes that went there.
    pub bytes_out: u64,
    /// Bytes that came from there since the last tick, or since it was not among the biggest.
    pub moved_in: u64,
    /// Bytes that went there since then.
    pub moved_out: u64,
}

impl Detail {
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
}

/// The most remote ends that one subject has; beyond that, the smaller half is folded.
const MOST_REMOTES: usize = 256;

impl Remotes {
    /// Adds bytes in and out of a remote end; `None` where it is not known.
    pub fn add(&mut self, remote: Option<Remote>, (bytes_in, bytes_out): (u64, u64)) {
        let sum = match remote {
            Some(remote) => {
                if self.bytes.len() >= MOST_REMOTES && !self.bytes.contains_key(&remote) {
                    self.fold();
                }
                self.bytes.entry(remote).or_default()
            }
            None => &mut self.folded,
        };
        *sum = (sum.0 + bytes_in, sum.1 + bytes_out);
    }

    fn fold(&mut self) {
        let mut sorted: Vec<_> = std::mem::take(&mut self.bytes).into_iter().collect();
        sorted.sort_unstable_by_key(|(remote, bytes)| (std::cmp::Reverse(bytes.0 + bytes.1), *remote));
        for (_, bytes) in sorted.split_off(MOST_REMOTES / 2) {
            self.folded = (self.folded.0 + bytes.0, self.folded.1 + bytes.1);
        }
        self.bytes = sorted.into_iter().collect();
    }

    /// Adds all of another subject's.
    pub fn extend(&mut self, other: &Self) {
        for (remote, bytes) in &other.bytes {
            self.add(Some(*remote), *bytes);
        }
        self.add(None, other.folded);
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

    /// Enters the `most` biggest into `detail`, and the sum of the others.
    pub fn enter(&self, most: usize, detail: &mut Detail) {
        let bytes = |(&remote, &(bytes_in, bytes_out)): (&Remote, &(u64, u64))| RemoteBytes {
            remote,
            bytes_in,
            bytes_out,
            moved_in: 0,
            moved_out: 0,
        };
        let mut remotes: Vec<RemoteBytes> = self.bytes.iter().map(bytes).collect();
        remotes.sort_unstable_by_key(|end| (std::cmp::Reverse(end.bytes_in + end.bytes_out), end.remote));
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
        remotes.enter(2, &mut detail);
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
        remotes.enter(1, &mut detail);
        assert_eq!(detail.remotes[0].remote, remote(1));
        assert_eq!(detail.other_remotes, (10_000, 20_000));
    }
}
