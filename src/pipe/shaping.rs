//! The turns of the transfers of one direction, and the limit on their bytes.
//!
//! All transfers of a direction that have more to move wait in queues, one in each thread of the pipe. Without a limit
//! each gets a turn as soon as the events are handled. With a limit, a token bucket (RFC 2697 describes the idea) that
//! the threads share gives the transfers equal turns, one after the other, until it is empty; then the pipe reads
//! nothing until time has filled it again. Each thread gets the tokens for its transfers: as many times one transfer's
//! share as it has transfers waiting.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::slab::ConnectionId;

/// The most bytes that a transfer may move in one turn.
const TURN_BYTES: usize = 1 << 20;

/// The same with a limit, so that each transfer gets its share in small turns.
const SHAPED_TURN_BYTES: f64 = 65536.0;

/// The bucket gives out tokens in portions worth this time, so that a limit costs a thread at most 50 wake-ups a second.
const PORTION_S: f64 = 0.02;

/// The smallest portion: packets of fewer bytes would be all header.
const PORTION_BYTES: f64 = 64.0;

/// The time whose tokens the bucket can hold: a late wake-up loses none, and a start from idle stays within 1 % of the
/// limit over ten seconds.
const CAPACITY_S: f64 = 0.06;

/// The part of a bucket for the transfers of one thread.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    /// How many of its transfers wait.
    waiting: usize,
    /// Negative when they have moved more bytes than there were tokens.
    tokens: f64,
}

/// A token bucket, empty at first. A token is one byte.
#[derive(Debug)]
struct TokenBucket {
    bytes_per_s: f64,
    /// One share per thread.
    shares: Vec<Share>,
    /// The tokens, or debts, that are in no share: they are for the transfers that wait next.
    unassigned: f64,
    filled_at: Instant,
}

impl TokenBucket {
    fn new(limit_bytes_per_s: NonZeroU64, threads: usize, now: Instant) -> Self {
        let shares = vec![Share::default(); threads];
        Self { bytes_per_s: limit_bytes_per_s.get() as f64, shares, unassigned: 0.0, filled_at: now }
    }

    /// The bytes per second for the transfers of a thread.
    fn rate(&self, thread: usize) -> f64 {
        let waiting: usize = self.shares.iter().map(|share| share.waiting).sum();
        self.bytes_per_s * self.shares[thread].waiting as f64 / waiting.max(1) as f64
    }

    fn portion(rate: f64) -> f64 {
        (rate * PORTION_S).max(PORTION_BYTES)
    }

    fn capacity(rate: f64) -> f64 {
        (rate * CAPACITY_S).max(2.0 * Self::portion(rate))
    }

    /// The bytes that one transfer of a thread may move in one turn.
    fn turn(&self, thread: usize) -> f64 {
        Self::portion(self.rate(thread)).min(SHAPED_TURN_BYTES)
    }

    fn fill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.filled_at = self.filled_at.max(now);
        self.unassigned += seconds * self.bytes_per_s;
        let rates: Vec<f64> = (0..self.shares.len()).map(|thread| self.rate(thread)).collect();
        let tokens = self.unassigned;
        for (share, rate) in self.shares.iter_mut().zip(rates).filter(|(_, rate)| *rate > 0.0) {
            let part = tokens * rate / self.bytes_per_s;
            self.unassigned -= part;
            // What the share holds already, it keeps: its rate may have been higher.
            share.tokens = (share.tokens + part).min(Self::capacity(rate).max(share.tokens));
        }
        self.unassigned = self.unassigned.min(Self::capacity(self.bytes_per_s));
    }

    /// From now on, `waiting` transfers of a thread wait.
    fn set_waiting(&mut self, thread: usize, waiting: usize, now: Instant) {
        self.fill(now);
        let share = &mut self.shares[thread];
        if std::mem::replace(&mut share.waiting, waiting) == waiting {
            return;
        }
        if waiting == 0 {
            self.unassigned += std::mem::take(&mut share.tokens);
        }
        self.fill(now);
    }

    /// The time until the share of a thread holds a portion; zero if it holds enough for a turn.
    fn wait(&self, thread: usize) -> Duration {
        let (rate, tokens) = (self.rate(thread), self.shares[thread].tokens);
        if tokens >= self.turn(thread) {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64((Self::portion(rate) - tokens) / rate).unwrap_or(Duration::MAX)
    }
}

/// The limit of one direction, which the threads of a pipe share.
#[derive(Debug)]
pub struct Limit {
    threads: usize,
    is_set: AtomicBool,
    bucket: Mutex<Option<TokenBucket>>,
}

impl Limit {
    /// The limit for the transfers of `threads` threads; `None` is none.
    pub fn new(limit_bytes_per_s: Option<NonZeroU64>, threads: usize, now: Instant) -> Self {
        let limit = Self { threads, is_set: AtomicBool::new(false), bucket: Mutex::new(None) };
        limit.set(limit_bytes_per_s, now);
        limit
    }

    /// Changes the limit. The tokens and the debts stay, so that changing it often gives no extra bytes.
    pub fn set(&self, limit_bytes_per_s: Option<NonZeroU64>, now: Instant) {
        let mut bucket = self.lock();
        *bucket = limit_bytes_per_s.map(|limit| match bucket.take() {
            Some(mut bucket) => {
                bucket.fill(now);
                bucket.bytes_per_s = limit.get() as f64;
                bucket
            }
            None => TokenBucket::new(limit, self.threads, now),
        });
        self.is_set.store(bucket.is_some(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Option<TokenBucket>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `action` does with the bucket; `None` if there is no limit.
    fn with_bucket<T>(&self, action: impl FnOnce(&mut TokenBucket) -> T) -> Option<T> {
        // So that threads without a limit do not wait for one another.
        if !self.is_set.load(Ordering::Relaxed) {
            return None;
        }
        self.lock().as_mut().map(action)
    }
}

/// The queue of the transfers of one direction, in one thread, that have more to move.
#[derive(Debug)]
pub struct Turns {
    queue: VecDeque<ConnectionId>,
    limit: Arc<Limit>,
    /// The index of the thread.
    thread: usize,
}

impl Turns {
    /// An empty queue for one of the threads that share `limit`.
    pub fn new(limit: Arc<Limit>, thread: usize) -> Self {
        Self { queue: VecDeque::new(), limit, thread }
    }

    /// The bytes that a transfer may move without queueing.
    pub fn immediate_allowance(&self) -> usize {
        if self.limit.is_set.load(Ordering::Relaxed) { 0 } else { TURN_BYTES }
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
        let turn = self.limit.with_bucket(|bucket| {
            // The first transfers need no other round to get the tokens that are there.
            let waiting = bucket.shares[self.thread].waiting.max(self.queue.len().min(1));
            bucket.set_waiting(self.thread, waiting, now);
            let turn = bucket.turn(self.thread);
            (bucket.shares[self.thread].tokens >= turn).then_some(turn as usize)
        });
        let allowance = turn.unwrap_or(Some(TURN_BYTES))?;
        Some((self.queue.pop_front()?, allowance))
    }

    /// Takes from the bucket the tokens for the bytes that a transfer has moved.
    pub fn charge(&mut self, bytes: usize) {
        self.limit.with_bucket(|bucket| match &mut bucket.shares[self.thread] {
            Share { waiting: 0, .. } => bucket.unassigned -= bytes as f64,
            share => share.tokens -= bytes as f64,
        });
    }

    /// The time until [`Turns::next`] returns a transfer; `None` if the queue is empty. Call it when all turns have been
    /// given: it says how many transfers wait.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let wait = self.limit.with_bucket(|bucket| {
            bucket.set_waiting(self.thread, self.queue.len(), now);
            bucket.wait(self.thread)
        });
        (!self.queue.is_empty()).then(|| wait.unwrap_or(Duration::ZERO))
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        self.limit.with_bucket(|bucket| bucket.set_waiting(self.thread, 0, bucket.filled_at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The queue of a pipe with one thread.
    fn turns(limit_bytes_per_s: Option<NonZeroU64>, now: Instant) -> Turns {
        Turns::new(Arc::new(Limit::new(limit_bytes_per_s, 1, now)), 0)
    }

    /// Runs `transfers` transfers that always have more to move, for ten simulated seconds; returns the bytes of each.
    fn ten_seconds(limit: u64, transfers: u32) -> Vec<u64> {
        let start = Instant::now();
        let mut now = start;
        let mut turns = turns(NonZeroU64::new(limit), now);
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

    /// Like [`ten_seconds`] in two threads, with so many transfers each; the bytes of each transfer.
    fn ten_seconds_of_two_threads(bytes_per_s: u64, transfers: [u32; 2]) -> [Vec<u64>; 2] {
        let start = Instant::now();
        let limit = Arc::new(Limit::new(NonZeroU64::new(bytes_per_s), 2, start));
        let mut threads = [0, 1].map(|thread| {
            let mut turns = Turns::new(Arc::clone(&limit), thread);
            (0..transfers[thread]).for_each(|index| turns.push(ConnectionId::first(index)));
            (start, turns, vec![0_u64; transfers[thread] as usize])
        });
        loop {
            let (now, turns, moved) = threads.iter_mut().min_by_key(|(at, ..)| *at).unwrap();
            if *now >= start + Duration::from_secs(10) {
                return threads.map(|(.., moved)| moved);
            }
            while let Some((id, allowance)) = turns.next(*now) {
                moved[id.index()] += allowance as u64;
                turns.charge(allowance);
                turns.push(id);
            }
            *now += turns.wait(*now).unwrap() + Duration::from_micros(1700);
        }
    }

    #[test]
    fn the_transfers_of_two_threads_share_a_limit_equally() {
        for (bytes_per_s, transfers) in [(1 << 20, [1, 49]), (10 << 20, [3, 5]), (300 << 20, [1, 1])] {
            let moved = ten_seconds_of_two_threads(bytes_per_s, transfers).concat();
            let share = moved.iter().sum::<u64>() as f64 / (bytes_per_s as f64 * 10.0);
            assert!((0.99..=1.01).contains(&share), "{bytes_per_s} bytes/s, {transfers:?}: {share}");
            let (least, most) = (moved.iter().min().unwrap(), moved.iter().max().unwrap());
            assert!(*least as f64 >= *most as f64 * 0.7, "{bytes_per_s} bytes/s, {transfers:?}: {moved:?}");
        }
    }

    #[test]
    fn the_tokens_of_a_thread_without_transfers_are_for_the_others() {
        let now = Instant::now();
        let limit = Arc::new(Limit::new(NonZeroU64::new(100_000), 2, now));
        let [mut first, mut second] = [0, 1].map(|thread| Turns::new(Arc::clone(&limit), thread));
        [&mut first, &mut second].into_iter().for_each(|turns| turns.push(ConnectionId::first(0)));
        [&mut first, &mut second].into_iter().for_each(|turns| assert!(turns.wait(now).is_some()));
        let later = now + Duration::from_millis(40);
        assert_eq!(first.next(later), Some((ConnectionId::first(0), 1000)), "half of the rate");
        // It has moved nothing, and waits no longer.
        assert_eq!(first.wait(later), None);
        assert_eq!(second.next(later), Some((ConnectionId::first(0), 2000)));
        second.charge(4000);
        second.push(ConnectionId::first(0));
        assert_eq!(second.next(later), None);
        drop(second);
        first.push(ConnectionId::first(1));
        assert!(first.next(later + Duration::from_millis(20)).is_some());
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
        let mut turns = turns(NonZeroU64::new(100_000), now);
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
        let mut turns = turns(NonZeroU64::new(1000), now);
        turns.push(ConnectionId::first(0));
        turns.charge(5000);
        assert_eq!(turns.next(now + Duration::from_secs(5)), None);
        assert!(turns.next(now + Duration::from_millis(5100)).is_some());
    }

    #[test]
    fn changing_the_limit_often_gives_no_extra_bytes() {
        let start = Instant::now();
        let mut turns = turns(None, start);
        turns.push(ConnectionId::first(0));
        let mut moved = 0;
        for ms in 0..1000 {
            let now = start + Duration::from_millis(ms);
            turns.limit.set(NonZeroU64::new(if ms % 2 == 0 { 100_000 } else { 50_000 }), now);
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
        let mut turns = turns(None, now);
        assert_eq!(turns.wait(now), None);
        turns.push(ConnectionId::first(7));
        assert_eq!(turns.wait(now), Some(Duration::ZERO));
        assert_eq!(turns.next(now), Some((ConnectionId::first(7), TURN_BYTES)));
        assert_eq!(turns.next(now), None);
    }
}
