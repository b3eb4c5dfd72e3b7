//! The target that a pipe forwards to, and its addresses.
//!
//! The C library looks a name up (getaddrinfo(3)). That may take minutes, so it happens in a thread of its own, for which
//! nobody waits. Once the name has addresses, connections use them at once: after a few seconds the name is looked up
//! again, behind the connections, and the addresses stay in use until an answer replaces them. getaddrinfo(3) does not
//! return its time to live.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The age from which addresses are looked up again when a connection uses them.
const LIFETIME: Duration = Duration::from_secs(5);

/// The least time between two lookups because no address accepted a connection.
const LIFETIME_OF_FAILED: Duration = Duration::from_secs(1);

/// A lookup that takes longer than this may be lost, in a name server that does not answer: another one may start.
const OVERDUE: Duration = Duration::from_secs(5);

/// The most lookups of one target that may be at work.
const MAX_AT_WORK: usize = 8;

/// The most addresses of a name that are tried: a name server may return thousands.
const MAX_ADDRESSES: usize = 32;

/// The result of a lookup: at least one address, in the order in which to try them, or why there is none.
pub type Resolution = Result<Arc<[SocketAddr]>, String>;

/// The number of a lookup; a later one has a higher number.
pub type LookupId = u64;

/// The host and port that a pipe forwards to.
#[derive(Debug)]
pub struct Target {
    host: String,
    port: u16,
    addresses: Option<Arc<[SocketAddr]>>,
    /// When the addresses are to be looked up again; `None` if the host is an address itself, which does not change.
    expires: Option<Instant>,
    /// When the last lookup was answered.
    answered_at: Option<Instant>,
    /// The address that last accepted a connection.
    preferred: Option<SocketAddr>,
    lookups: Lookups,
}

/// The lookups of a target.
#[derive(Debug, Default)]
struct Lookups {
    at_work: usize,
    /// The last one that was started.
    last: LookupId,
    /// Only later ones still count.
    answered: LookupId,
    started_at: Option<Instant>,
}

impl Target {
    /// The target `host`:`port`, where `host` is a name or an address (IPv6 also in brackets).
    pub fn new(host: &str, port: u16, now: Instant) -> Self {
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let literal = host.parse().ok().map(|address: IpAddr| [SocketAddr::new(address, port)].into());
        Self {
            host: host.into(),
            port,
            expires: if literal.is_some() { None } else { Some(now) },
            addresses: literal,
            answered_at: None,
            preferred: None,
            lookups: Lookups::default(),
        }
    }

    /// The addresses to try, if there are any yet.
    pub fn addresses(&self) -> Option<Arc<[SocketAddr]>> {
        self.addresses.clone()
    }

    /// Whether the addresses are old or missing, so that a lookup may bring others.
    pub fn is_stale(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// Starts a thread that looks the name up and calls `deliver` with the result, if the addresses are old or missing
    /// and no other lookup is about to answer.
    pub fn look_up_if_stale(
        &mut self,
        now: Instant,
        deliver: impl FnOnce(LookupId, Result<Vec<SocketAddr>, String>) + Send + 'static,
    ) {
        let lookups = &mut self.lookups;
        let is_waiting = lookups.started_at.is_some_and(|at| now.saturating_duration_since(at) < OVERDUE);
        let is_stale = self.expires.is_some_and(|expires| expires <= now);
        if !is_stale || is_waiting || lookups.at_work >= MAX_AT_WORK {
            return;
        }
        let (id, host, port) = (lookups.last + 1, self.host.clone(), self.port);
        let look_up = move || {
            let addresses = (host.as_str(), port).to_socket_addrs();
            deliver(id, addresses.map(Iterator::collect).map_err(|error| error.to_string()));
        };
        // Without a thread there is no lookup now. The next connection tries again, and those that wait have a timeout.
        if std::thread::Builder::new().name("resolver".into()).spawn(look_up).is_ok() {
            lookups.at_work += 1;
            lookups.last = id;
            lookups.started_at = Some(now);
        }
    }

    /// Stores the result of a lookup. If it failed, the addresses of the last successful one stay in use. Returns the
    /// addresses in use now; `None` if a later lookup has answered already.
    pub fn store(&mut self, id: LookupId, result: Result<Vec<SocketAddr>, String>, now: Instant) -> Option<Resolution> {
        self.lookups.at_work = self.lookups.at_work.saturating_sub(1);
        if id <= self.lookups.answered {
            return None;
        }
        self.lookups.answered = id;
        if id == self.lookups.last {
            self.lookups.started_at = None;
        }
        self.answered_at = Some(now);
        self.expires = Some(now + LIFETIME);
        let error = match result {
            Ok(addresses) if !addresses.is_empty() => {
                self.addresses = Some(order(addresses, self.preferred));
                String::new()
            }
            Ok(_) => "the name has no address".into(),
            Err(error) => error,
        };
        Some(self.addresses.clone().ok_or(error))
    }

    /// Makes `address`, which accepted a connection, the first that the next connections try.
    pub fn prefer(&mut self, address: SocketAddr) {
        if self.preferred != Some(address) {
            self.preferred = Some(address);
            self.addresses = self.addresses.as_ref().map(|addresses| order(addresses.to_vec(), self.preferred));
        }
    }

    /// None of the addresses accepted a connection: they are to be looked up again soon.
    pub fn all_failed(&mut self, now: Instant) {
        let soon = self.answered_at.map_or(now, |at| at + LIFETIME_OF_FAILED);
        self.expires = self.expires.map(|expires| expires.min(soon));
    }
}

/// The order in which to try addresses: first the one that is `preferred`, then by turns one of each family, so that a
/// family that does not work costs one attempt (RFC 8305, section 4).
fn order(mut addresses: Vec<SocketAddr>, preferred: Option<SocketAddr>) -> Arc<[SocketAddr]> {
    // Stable, so the C library's order (RFC 6724) stays.
    addresses.sort_by_key(|address| Some(*address) != preferred);
    let is_ipv4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv4() == is_ipv4);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut ordered = Vec::new();
    loop {
        let before = ordered.len();
        ordered.extend(one.next().into_iter().chain(other.next()));
        if ordered.len() == before {
            ordered.truncate(MAX_ADDRESSES);
            return ordered.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 80)).collect()
    }

    /// A target with a lookup at work, whose answer the test stores itself.
    fn with_lookup(now: Instant) -> Target {
        let mut target = Target::new(&"x".repeat(300), 80, now);
        target.look_up_if_stale(now, |_, _| {});
        assert_eq!(target.lookups.last, 1);
        target
    }

    #[test]
    fn old_addresses_are_used_until_an_answer_replaces_them() {
        let now = Instant::now();
        let mut target = with_lookup(now);
        assert_eq!(target.addresses(), None);
        target.store(1, Ok(addresses(&["10.0.0.1"])), now);
        let later = now + LIFETIME;
        assert!(!target.is_stale(now) && target.is_stale(later));
        assert_eq!(target.addresses().unwrap()[..], addresses(&["10.0.0.1"]));
        target.look_up_if_stale(later, |_, _| {});
        assert_eq!(target.store(2, Err("no answer".into()), later).unwrap().unwrap()[..], addresses(&["10.0.0.1"]));
        target.look_up_if_stale(later + LIFETIME, |_, _| {});
        target.store(3, Ok(addresses(&["10.0.0.2"])), later + LIFETIME);
        assert_eq!(target.addresses().unwrap()[..], addresses(&["10.0.0.2"]));
    }

    #[test]
    fn what_worked_last_stays_first_when_the_name_is_looked_up_again() {
        let now = Instant::now();
        let mut target = with_lookup(now);
        let found = addresses(&["2001:db8::1", "2001:db8::2", "10.0.0.1", "10.0.0.2"]);
        target.store(1, Ok(found.clone()), now);
        let by_turns = addresses(&["2001:db8::1", "10.0.0.1", "2001:db8::2", "10.0.0.2"]);
        assert_eq!(target.addresses().unwrap()[..], by_turns);
        target.prefer(found[3]);
        let preferred_first = addresses(&["10.0.0.2", "2001:db8::1", "10.0.0.1", "2001:db8::2"]);
        assert_eq!(target.addresses().unwrap()[..], preferred_first);
        target.look_up_if_stale(now + LIFETIME, |_, _| {});
        target.store(2, Ok(found), now + LIFETIME);
        assert_eq!(target.addresses().unwrap()[..], preferred_first);
    }

    #[test]
    fn addresses_that_refuse_are_kept_and_looked_up_soon() {
        let now = Instant::now();
        let mut target = with_lookup(now);
        target.store(1, Ok(addresses(&["10.0.0.1"])), now);
        target.all_failed(now);
        assert!(!target.is_stale(now) && target.is_stale(now + LIFETIME_OF_FAILED));
        assert!(target.addresses().is_some());
    }

    #[test]
    fn lookups_that_hang_are_replaced_up_to_a_number() {
        let now = Instant::now();
        let mut target = Target::new("localhost", 80, now);
        // The threads end with the test: their deliveries wait for it.
        let (hold, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        for second in 0..100 {
            let held = Arc::clone(&held);
            let wait = move |_: LookupId, _: Result<Vec<SocketAddr>, String>| drop(held.lock().map(|held| held.recv()));
            target.look_up_if_stale(now + Duration::from_secs(second), wait);
        }
        assert_eq!((target.lookups.at_work, target.lookups.last), (MAX_AT_WORK, MAX_AT_WORK as u64));
        drop(hold);
        // The answer of an earlier one counts until that of a later one has come.
        assert!(target.store(2, Ok(addresses(&["10.0.0.2"])), now).is_some());
        assert_eq!(target.store(1, Ok(addresses(&["10.0.0.1"])), now), None);
        assert_eq!(target.addresses().unwrap()[..], addresses(&["10.0.0.2"]));
    }

    #[test]
    fn an_address_as_host_is_never_looked_up() {
        let now = Instant::now();
        let mut target = Target::new("[2001:db8::1]", 80, now);
        target.all_failed(now);
        assert!(!target.is_stale(now + LIFETIME));
        assert_eq!(target.addresses().unwrap()[..], addresses(&["2001:db8::1"]));
    }
}
