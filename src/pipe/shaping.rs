//! The turns of the transfers of one direction, and the limit on their bytes.
//!
//! All transfers of a direction that have more to move wait in one queue. Without a limit each gets a turn as soon as
//! the events are handled. With a limit, a token bucket (RFC 2697 describes the idea) gives the transfers equal turns,
//! one after the other, until it is empty; then the pipe reads nothing until time has filled it again.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::slab::ConnectionId;

/// The most bytes that a transfer may move in one turn.
const TURN_BYTES: usize = 1 << 20;

/// The same with a limit, so that each transfer gets its share in small turns.
const SHAPED_TURN_BYTES: f64 = 65536.0;

/// The bucket gives out tokens in portions worth this time, so that a limit costs at most 50 wake-ups a second.
const PORTION_S: f64 = 0.02;

/// The smallest portion: packets of fewer bytes would be all header.
const PORTION_BYTES: f64 = 64.0;

/// The time whose tokens the bucket can hold: a late wake-up loses none, and a start from idle stays within 1 % of the
/// limit over ten seconds.
const CAPACITY_S: f64 = 0.06;

/// A token bucket, empty at first. A token is one byte.
#[derive(Debug)]
struct TokenBucket {
    bytes_per_s: f64,
    /// Negative when transfers have moved more bytes than there were tokens.
    tokens: f64,
    filled_at: Instant,
}

impl TokenBucket {
    fn new(limit_bytes_per_s: NonZeroU64, now: Instant) -> Self {
        Self { bytes_per_s: limit_bytes_per_s.get() as f64, tokens: 0.0, filled_at: now }
    }

    fn portion(&self) -> f64 {
        (self.bytes_per_s * PORTION_S).max(PORTION_BYTES)
    }

    /// The bytes that one transfer may move in one turn.
    fn turn(&self) -> f64 {
        self.portion().min(SHAPED_TURN_BYTES)
    }

    fn fill(&mut self, now: Instant) {
        let capacity = (self.bytes_per_s * CAPACITY_S).max(2.0 * self.portion());
        let seconds = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + seconds * self.bytes_per_s).min(capacity);
        self.filled_at = self.filled_at.max(now);
    }

    /// The time until the bucket holds a portion.
    fn wait(&self) -> Duration {
        // At one byte per second or more, the time always fits a Duration.
        Duration::try_from_secs_f64((self.portion() - self.tokens) / self.bytes_per_s).unwrap_or_default()
    }
}

/// The queue of the transfers of one direction that have more to move.
#[derive(Debug)]
pub struct Turns {
    queue: VecDeque<ConnectionId>,
    bucket: Option<TokenBucket>,
}

impl Turns {
    /// An empty queue; `None` is no limit.
    pub fn new(limit_bytes_per_s: Option<NonZeroU64>, now: Instant) -> Self {
        Self { queue: VecDeque::new(), bucket: limit_bytes_per_s.map(|limit| TokenBucket::new(limit, now)) }
    }

    /// Changes the limit. The tokens and the debts stay, so that changing it often gives no extra bytes.
    pub fn set_limit(&mut self, limit_bytes_per_s: Option<NonZeroU64>, now: Instant) {
        self.bucket = limit_bytes_per_s.map(|limit| match self.bucket.take() {
            Some(mut bucket) => {
                bucket.fill(now);
                bucket.bytes_per_s = limit.get() as f64;
                bucket
            }
            None => TokenBucket::new(limit, now),
        });
    }

    /// The bytes that a transfer may move without queueing.
    pub fn immediate_allowance(&self) -> usize {
        if self.bucket.is_some() { 0 } else { TURN_BYTES }
    }

    /// Puts a transfer at the end of the queue.
    pub fn push(&mut self, id: ConnectionId) {
        self.queue.push_back(id);
    }

    /// The number of transfers in the queue.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Takes the first transfer out of the queue, with the bytes that it may move; `None` if the queue is empty or the
    /// bucket has too few tokens.
    pub fn next(&mut self, now: Instant) -> Option<(ConnectionId, usize)> {
        let allowance = match &mut self.bucket {
            None => TURN_BYTES,
            Some(bucket) => {
                bucket.fill(now);
                let turn = bucket.turn();
                if bucket.tokens < turn {
                    return None;
                }
                turn as usize
            }
        };
        Some((self.queue.pop_front()?, allowance))
    }

    /// Takes from the bucket the tokens for the bytes that a transfer has moved.
    pub fn charge(&mut self, bytes: usize) {
        if let Some(bucket) = &mut self.bucket {
            bucket.tokens -= bytes as f64;
        }
    }

    /// The time until [`Turns::next`] returns a transfer; `None` if the queue is empty.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        if self.queue.is_empty() {
            return None;
        }
        let Some(bucket) = &mut self.bucket else { return Some(Duration::ZERO) };
        bucket.fill(now);
        Some(if bucket.tokens < bucket.turn() { bucket.wait() } else { Duration::ZERO })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `transfers` transfers that always have more to move, for ten simulated seconds; returns the bytes of each.
    fn ten_seconds(limit: u64, transfers: u32) -> Vec<u64> {
        let start = Instant::now();
        let mut now = start;
        let mut turns = Turns::new(NonZeroU64::new(limit), now);
        let mut moved = vec![0_u64; transfers as usize];
        for index in 0..transfers {
            turns.push(ConnectionId::first(index));
        }
        while now < start + Duration::from_secs(10) {
            while let Some((id, allowance)) = turns.next(now) {
                moved[id.index()] += allowance as u64;
                turns.charge(allowance);
                turns.push(id);
            }
            let wait = turns.wait(now).unwrap();
            assert!(wait >= Duration::from_micros(100), "busy waiting: {wait:?}");
            // epoll_wait(2) returns at the next whole millisecond, on a busy machine a little later.
            now += wait + Duration::from_micros(1700);
        }
        moved
    }

    #[test]
    fn one_transfer_and_fifty_meet_a_limit_within_one_percent() {
        for limit in [1024, 20 * 1024, 1024 * 1024, 300 * 1024 * 1024] {
            for transfers in [1, 50] {
                let moved: u64 = ten_seconds(limit, transfers).iter().sum();
                let share = moved as f64 / (limit as f64 * 10.0);
                assert!((0.99..=1.01).contains(&share), "{limit} bytes/s, {transfers} transfers: {share}");
            }
        }
    }

    #[test]
    fn transfers_share_a_limit_equally() {
        let moved = ten_seconds(1024 * 1024, 50);
        let (least, most) = (moved.iter().min().unwrap(), moved.iter().max().unwrap());
        assert!(most - least <= 65536, "{least} to {most}");
    }

    #[test]
    fn idle_time_does_not_fill_the_bucket_beyond_its_capacity() {
        let now = Instant::now();
        let mut turns = Turns::new(NonZeroU64::new(100_000), now);
        let later = now + Duration::from_secs(3600);
        turns.push(ConnectionId::first(0));
        let mut moved = 0;
        while let Some((id, allowance)) = turns.next(later) {
            moved += allowance;
            turns.charge(allowance);
            turns.push(id);
        }
        assert!(moved <= 6_000, "{moved}");
    }

    #[test]
    fn tokens_that_were_overdrawn_are_missing_later() {
        let now = Instant::now();
        let mut turns = Turns::new(NonZeroU64::new(1000), now);
        turns.push(ConnectionId::first(0));
        turns.charge(5000);
        assert_eq!(turns.next(now + Duration::from_secs(5)), None);
        assert!(turns.next(now + Duration::from_millis(5100)).is_some());
    }

    #[test]
    fn changing_the_limit_often_gives_no_extra_bytes() {
        let start = Instant::now();
        let mut turns = Turns::new(None, start);
        turns.push(ConnectionId::first(0));
        let mut moved = 0;
        for ms in 0..1000 {
            let now = start + Duration::from_millis(ms);
            turns.set_limit(NonZeroU64::new(if ms % 2 == 0 { 100_000 } else { 50_000 }), now);
            while let Some((id, allowance)) = turns.next(now) {
                moved += allowance;
                turns.charge(allowance);
                turns.push(id);
            }
        }
        assert!((70_000..=76_000).contains(&moved), "{moved}");
    }

    #[test]
    fn without_a_limit_every_transfer_has_a_turn_at_once() {
        let now = Instant::now();
        let mut turns = Turns::new(None, now);
        assert_eq!(turns.wait(now), None);
        turns.push(ConnectionId::first(7));
        assert_eq!(turns.wait(now), Some(Duration::ZERO));
        assert_eq!(turns.next(now), Some((ConnectionId::first(7), TURN_BYTES)));
        assert_eq!(turns.next(now), None);
    }
}
