//! Whose turn it is in one direction of a pipe, and how many bytes the limit lets it have.
//!
//! All flows of a direction that have more to move stand in one queue. Without a limit each gets a turn as soon as the
//! events are handled. With one, a token bucket (RFC 2697 is a description of the idea) gives out equal turns, one flow after the
//! other, until it is empty; then nothing is read until the clock has filled it again.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::slab::Id;

/// What a flow may move before others have their turn.
const TURN_BYTES: usize = 1 << 20;

/// The same where a limit makes many flows share little.
const SHAPED_TURN_BYTES: f64 = 65536.0;

/// Tokens are given out in portions of so much time, so that a limit costs no more than 50 wake-ups a second.
const PORTION_S: f64 = 0.02;

/// Portions of fewer bytes would be all header.
const PORTION_BYTES: f64 = 64.0;

/// The most that is saved up: a late wake-up loses nothing, and a start from idle stays within 1 % over ten seconds.
const CAPACITY_S: f64 = 0.06;

/// A token bucket; one token is one byte. Starts empty.
#[derive(Debug)]
struct Bucket {
    bytes_per_s: f64,
    /// Negative when more was moved than there were tokens.
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    fn new(limit_bytes_per_s: NonZeroU64, now: Instant) -> Self {
        Self { bytes_per_s: limit_bytes_per_s.get() as f64, tokens: 0.0, filled_at: now }
    }

    fn portion(&self) -> f64 {
        (self.bytes_per_s * PORTION_S).max(PORTION_BYTES)
    }

    /// What one flow gets at a time.
    fn turn(&self) -> f64 {
        self.portion().min(SHAPED_TURN_BYTES)
    }

    fn fill(&mut self, now: Instant) {
        let capacity = (self.bytes_per_s * CAPACITY_S).max(2.0 * self.portion());
        let seconds = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + seconds * self.bytes_per_s).min(capacity);
        self.filled_at = self.filled_at.max(now);
    }

    /// How long until a portion is in.
    fn wait(&self) -> Duration {
        // A wait that is too long to be a Duration does not come from a rate of at least a byte per second.
        Duration::try_from_secs_f64((self.portion() - self.tokens) / self.bytes_per_s).unwrap_or_default()
    }
}

/// The queue of the flows of one direction that have more to move.
#[derive(Debug)]
pub struct Turns {
    queue: VecDeque<Id>,
    bucket: Option<Bucket>,
}

impl Turns {
    /// An empty queue; no limit means as fast as it goes.
    pub fn new(limit_bytes_per_s: Option<NonZeroU64>, now: Instant) -> Self {
        Self { queue: VecDeque::new(), bucket: limit_bytes_per_s.map(|limit| Bucket::new(limit, now)) }
    }

    /// What a flow may move without queueing.
    pub fn at_once(&self) -> usize {
        if self.bucket.is_some() { 0 } else { TURN_BYTES }
    }

    /// Puts a flow at the end of the queue.
    pub fn push(&mut self, id: Id) {
        self.queue.push_back(id);
    }

    /// How many are in the queue.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Takes the first of the queue and says how many bytes it may move, if that is any now.
    pub fn next(&mut self, now: Instant) -> Option<(Id, usize)> {
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

    /// Takes the tokens for what a flow moved.
    pub fn charge(&mut self, bytes: usize) {
        if let Some(bucket) = &mut self.bucket {
            bucket.tokens -= bytes as f64;
        }
    }

    /// How long until [`Turns::next`] has one to give; `None` when nobody waits.
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

    /// Runs `flows` flows that always have more for ten seconds of an injected clock; returns what each moved.
    fn ten_seconds(limit: u64, flows: u32) -> Vec<u64> {
        let start = Instant::now();
        let mut now = start;
        let mut turns = Turns::new(NonZeroU64::new(limit), now);
        let mut moved = vec![0_u64; flows as usize];
        for index in 0..flows {
            turns.push(Id::first(index));
        }
        while now < start + Duration::from_secs(10) {
            while let Some((id, allowance)) = turns.next(now) {
                moved[id.index()] += allowance as u64;
                turns.charge(allowance);
                turns.push(id);
            }
            let wait = turns.wait(now).unwrap();
            assert!(wait >= Duration::from_micros(100), "busy waiting: {wait:?}");
            // epoll_wait(2) wakes on the millisecond after, and a busy machine a little later.
            now += wait + Duration::from_micros(1700);
        }
        moved
    }

    #[test]
    fn a_limit_is_met_within_a_hundredth_by_one_flow_and_by_fifty() {
        for limit in [1024, 20 * 1024, 1024 * 1024, 300 * 1024 * 1024] {
            for flows in [1, 50] {
                let moved: u64 = ten_seconds(limit, flows).iter().sum();
                let share = moved as f64 / (limit as f64 * 10.0);
                assert!((0.99..=1.01).contains(&share), "{limit} bytes/s, {flows} flows: {share}");
            }
        }
    }

    #[test]
    fn flows_share_alike() {
        let moved = ten_seconds(1024 * 1024, 50);
        let (least, most) = (moved.iter().min().unwrap(), moved.iter().max().unwrap());
        assert!(most - least <= 65536, "{least} to {most}");
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let now = Instant::now();
        let mut turns = Turns::new(NonZeroU64::new(100_000), now);
        let later = now + Duration::from_secs(3600);
        turns.push(Id::first(0));
        let mut moved = 0;
        while let Some((id, allowance)) = turns.next(later) {
            moved += allowance;
            turns.charge(allowance);
            turns.push(id);
        }
        assert!(moved <= 6_000, "{moved}");
    }

    #[test]
    fn a_debt_is_paid_back() {
        let now = Instant::now();
        let mut turns = Turns::new(NonZeroU64::new(1000), now);
        turns.push(Id::first(0));
        turns.charge(5000);
        assert_eq!(turns.next(now + Duration::from_secs(5)), None);
        assert!(turns.next(now + Duration::from_millis(5100)).is_some());
    }

    #[test]
    fn without_a_limit_everyone_has_a_turn_at_once() {
        let now = Instant::now();
        let mut turns = Turns::new(None, now);
        assert_eq!(turns.wait(now), None);
        turns.push(Id::first(7));
        assert_eq!(turns.wait(now), Some(Duration::ZERO));
        assert_eq!(turns.next(now), Some((Id::first(7), TURN_BYTES)));
        assert_eq!(turns.next(now), None);
    }
}
