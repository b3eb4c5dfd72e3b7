//! The names of remote addresses.
//!
//! The C library looks a name up (getnameinfo(3)): in DNS, in /etc/hosts, and wherever nsswitch.conf(5) says. That may take minutes
//! or for ever, and whoever owns an address decides how long, and which name it has. So threads that may be lost do it: a frame takes
//! the names that are known when it is made, and what has none yet may have one in a later frame.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::privileges::{Duty, keep_for};

/// The most addresses whose names are known or looked up. In a frame with more, the others have no name.
const MOST_KNOWN: usize = 16_384;

/// How long a name is used before it is looked up again, and how long an address counts as one without a name.
const LIFETIME: Duration = Duration::from_secs(600);
const LIFETIME_OF_NONE: Duration = Duration::from_secs(60);

/// The most threads that look names up at the same time, apart from those that are lost.
const MOST_AT_WORK: usize = 8;

/// A lookup that takes longer than this counts as lost: another thread may take the place of its own.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most threads, lost ones included.
const MOST_THREADS: usize = 32;

/// The most characters of a host name (RFC 1035, section 2.3.4, without the last dot).
const LONGEST: usize = 253;

type LookUp = dyn Fn(IpAddr) -> Option<String> + Send + Sync;

/// What is known of an address.
#[derive(Debug)]
struct Known {
    name: Option<Arc<str>>,
    /// When its name is to be looked up again; `None` while a lookup is at work or waits for its turn.
    expires: Option<Instant>,
    /// The number of the last frame that had it.
    seen: u64,
}

/// What the frames and the threads share.
#[derive(Debug, Default)]
struct Shared {
    waiting: VecDeque<IpAddr>,
    /// The address at which each thread is, and since when, by the number of the thread.
    at_work: HashMap<u64, (IpAddr, Instant)>,
    answers: Vec<(IpAddr, Option<Arc<str>>)>,
}

/// The names of addresses, as far as they are known.
pub struct HostNames {
    look_up: Arc<LookUp>,
    known: HashMap<IpAddr, Known>,
    shared: Arc<Mutex<Shared>>,
    frame: u64,
    /// The last frame in which addresses were forgotten.
    swept: u64,
    /// The number of threads that were started.
    started: u64,
}

impl HostNames {
    /// Names as the C library finds them.
    pub fn of_this_host() -> Self {
        Self::by(|address| dns_lookup::lookup_addr(&address).ok())
    }

    /// Names as `look_up` finds them, which may take any time.
    pub fn by(look_up: impl Fn(IpAddr) -> Option<String> + Send + Sync + 'static) -> Self {
        let (known, shared) = (HashMap::new(), Arc::default());
        Self { look_up: Arc::new(look_up), known, shared, frame: 0, swept: 0, started: 0 }
    }

    /// Begins a frame at `now`: takes the names that have been found.
    pub(crate) fn begin_frame(&mut self, now: Instant) {
        self.frame += 1;
        for (address, name) in std::mem::take(&mut lock(&self.shared).answers) {
            if let Some(known) = self.known.get_mut(&address) {
                known.expires = Some(now + if name.is_some() { LIFETIME } else { LIFETIME_OF_NONE });
                known.name = name;
            }
        }
    }

    /// The name of an address, if it is known. Otherwise it is looked up for later frames, as it is if it is old.
    pub fn name(&mut self, address: IpAddr, now: Instant) -> Option<Arc<str>> {
        if self.known.len() >= MOST_KNOWN && !self.known.contains_key(&address) {
            // Once a frame: it walks all of them.
            if std::mem::replace(&mut self.swept, self.frame) != self.frame {
                self.forget_unseen();
            }
            if self.known.len() >= MOST_KNOWN {
                return None;
            }
        }
        let known = self.known.entry(address).or_insert(Known { name: None, expires: Some(now), seen: 0 });
        known.seen = self.frame;
        if known.expires.is_some_and(|expires| expires <= now) {
            known.expires = None;
            lock(&self.shared).waiting.push_back(address);
        }
        known.name.clone()
    }

    /// Ends a frame: starts as many threads as there is work for.
    pub(crate) fn end_frame(&mut self, now: Instant) {
        let mut shared = lock(&self.shared);
        let is_lost = |&(_, since): &(IpAddr, Instant)| now.saturating_duration_since(since) > PATIENCE;
        let lost = shared.at_work.values().filter(|at_work| is_lost(at_work)).count();
        let threads = shared.at_work.len();
        let most = (MOST_AT_WORK + lost).min(MOST_THREADS).saturating_sub(threads);
        for _ in 0..most {
            let Some(address) = shared.waiting.pop_front() else { break };
            let (number, look_up, ours) = (self.started, Arc::clone(&self.look_up), Arc::clone(&self.shared));
            let work = move || work(number, address, &*look_up, &ours);
            if std::thread::Builder::new().name("host names".into()).spawn(work).is_err() {
                // The next frame tries again.
                shared.waiting.push_front(address);
                break;
            }
            self.started += 1;
            shared.at_work.insert(number, (address, now));
        }
    }

    /// Forgets the addresses that neither this frame nor the last one had.
    fn forget_unseen(&mut self) {
        let frame = self.frame;
        let mut shared = lock(&self.shared);
        self.known.retain(|_, known| known.seen + 1 >= frame);
        shared.waiting.retain(|address| self.known.contains_key(address));
    }
}

impl fmt::Debug for HostNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostNames").field("known", &self.known).finish_non_exhaustive()
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // What it has is valid even if another thread panicked while it held the lock.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks names up until none waits: the work of the thread with this `number`, which begins with `address`.
fn work(number: u64, mut address: IpAddr, look_up: &LookUp, shared: &Mutex<Shared>) {
    keep_for(Duty::Resolving);
    loop {
        let name = look_up(address).as_deref().and_then(host_name);
        let mut shared = lock(shared);
        shared.answers.push((address, name));
        let Some(next) = shared.waiting.pop_front() else {
            shared.at_work.remove(&number);
            return;
        };
        shared.at_work.insert(number, (next, Instant::now()));
        address = next;
    }
}

/// A name that is one: letters, digits, hyphens, underscores and dots (RFC 1123, section 2.1), of which an address has no letter or
/// has colons. Anything else that a foreign name server says is no name, so it can neither change the screen nor pass for an address.
fn host_name(text: &str) -> Option<Arc<str>> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name =
        text.len() <= LONGEST && text.bytes().all(is_of_names) && text.bytes().any(|byte| byte.is_ascii_alphabetic());
    is_name.then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::Condvar;

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    /// Makes frames with these addresses at `now` until `done` accepts their names.
    fn frames(names: &mut HostNames, addresses: &[u32], now: Instant, done: impl Fn(&[Option<Arc<str>>]) -> bool) {
        loop {
            names.begin_frame(now);
            let found: Vec<_> = addresses.iter().map(|n| names.name(address(*n), now)).collect();
            names.end_frame(now);
            if done(&found) {
                return;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_name_comes_in_a_later_frame_and_is_looked_up_again_when_it_is_old() {
        let now = Instant::now();
        let asked = Arc::new(Mutex::new(0));
        let ask = Arc::clone(&asked);
        let mut names = HostNames::by(move |_| {
            let mut asked = ask.lock().unwrap();
            *asked += 1;
            Some(format!("host{asked}.example."))
        });
        names.begin_frame(now);
        assert_eq!(names.name(address(1), now), None);
        names.end_frame(now);
        frames(&mut names, &[1, 1], now, |found| found.iter().all(|name| name.as_deref() == Some("host1.example")));
        assert_eq!(*asked.lock().unwrap(), 1);
        frames(&mut names, &[1], now + LIFETIME, |found| found[0].as_deref() == Some("host2.example"));
    }

    #[test]
    fn lookups_that_never_end_hold_up_no_frame_and_take_a_bounded_number_of_threads() {
        let now = Instant::now();
        let (held, at_work) = (Arc::new((Mutex::new(true), Condvar::new())), Arc::new(Mutex::new(0)));
        let (hold, count) = (Arc::clone(&held), Arc::clone(&at_work));
        let mut names = HostNames::by(move |of| {
            if of == address(0) {
                return Some("known.example".into());
            }
            *count.lock().unwrap() += 1;
            drop(hold.1.wait_while(hold.0.lock().unwrap(), |held| *held).unwrap());
            None
        });
        let all: Vec<u32> = (1..1000).collect();
        for after in 0..20 {
            let now = now + after * 2 * PATIENCE;
            names.begin_frame(now);
            assert!(all.iter().all(|n| names.name(address(*n), now).is_none()));
            names.end_frame(now);
        }
        assert_eq!(lock(&names.shared).at_work.len(), MOST_THREADS);
        assert!(*at_work.lock().unwrap() <= MOST_THREADS);
        // Once they end, those that wait have their turn.
        *held.0.lock().unwrap() = false;
        held.1.notify_all();
        frames(&mut names, &[0], now, |found| found[0].as_deref() == Some("known.example"));
    }

    #[test]
    fn ever_new_addresses_take_bounded_room() {
        let now = Instant::now();
        let mut names = HostNames::by(|_| None);
        for frame in 0..20 {
            names.begin_frame(now);
            (0..2000).for_each(|n| drop(names.name(address(frame * 2000 + n), now)));
            assert!(names.known.len() <= MOST_KNOWN && lock(&names.shared).waiting.len() <= MOST_KNOWN);
        }
        names.begin_frame(now);
        (0..20_000).for_each(|n| drop(names.name(address(1_000_000 + n), now)));
        assert!(names.known.len() <= MOST_KNOWN && lock(&names.shared).waiting.len() <= MOST_KNOWN);
    }

    #[test]
    fn what_a_name_server_says_is_a_name_or_nothing() {
        for name in ["a", "www.example.com", "xn--bcher-kva.example", "_sip._tcp.x", "3.example", &"a".repeat(253)] {
            assert_eq!(host_name(name).as_deref(), Some(name));
        }
        assert_eq!(host_name("example.com.").as_deref(), Some("example.com"));
        let long = "a".repeat(254);
        for none in [
            "",
            ".",
            "10.0.0.1",
            "1",
            "::1",
            "fe80::1",
            "a b",
            "a\u{1b}[2J",
            "a\n",
            "bücher.example",
            "a(b)",
            "a/b",
            "a:80",
            &long,
        ] {
            assert_eq!(host_name(none), None, "{none:?}");
        }
    }
}
