//! Where a pipe leads: the addresses of its target.
//!
//! A name is looked up by the C library (getaddrinfo(3)) in a thread of its own, one look-up at a time, since it may take
//! minutes. The answer serves the connections of the next seconds; it carries no lifetime that would say how long.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(5);

/// What became of a look-up: addresses in the order to try them, at least one, or why there are none.
pub type Answer = Result<Arc<[SocketAddr]>, String>;

/// The host and port that a pipe leads to.
#[derive(Debug)]
pub struct Target {
    host: String,
    port: u16,
    known: Option<Known>,
    asked: bool,
}

#[derive(Debug)]
struct Known {
    addresses: Arc<[SocketAddr]>,
    /// `None`: the host is an address, which stays the same.
    until: Option<Instant>,
}

impl Target {
    /// A target that is an address in text (IPv6 also in brackets) or a name.
    pub fn new(host: &str, port: u16) -> Self {
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let known = host
            .parse()
            .ok()
            .map(|address: IpAddr| Known { addresses: [SocketAddr::new(address, port)].into(), until: None });
        Self { host: host.into(), port, known, asked: false }
    }

    /// The addresses to try, if they are known. If not, [`ask`](Target::ask).
    pub fn known(&self, now: Instant) -> Option<Arc<[SocketAddr]>> {
        let known = self.known.as_ref().filter(|known| known.until.is_none_or(|until| now < until))?;
        Some(Arc::clone(&known.addresses))
    }

    /// Has the name looked up, unless that is being done; `deliver` is given the answer, in another thread.
    pub fn ask(&mut self, deliver: impl FnOnce(Answer) + Send + 'static) {
        if self.asked {
            return;
        }
        let (host, port) = (self.host.clone(), self.port);
        let look_up = move || {
            deliver(match (host.as_str(), port).to_socket_addrs() {
                Ok(addresses) if addresses.len() > 0 => Ok(addresses.collect()),
                Ok(_) => Err("the name has no address".into()),
                Err(error) => Err(error.to_string()),
            });
        };
        // Without a thread there is no answer: who waits for it gets that of a later look-up, or runs into the timeout.
        self.asked = std::thread::Builder::new().name("resolver".into()).spawn(look_up).is_ok();
    }

    /// Takes an answer in. A failed look-up leaves the addresses of the one before in use.
    pub fn answered(&mut self, answer: Answer, now: Instant) -> Answer {
        self.asked = false;
        let until = Some(now + FRESH);
        let addresses = match (answer, &self.known) {
            (Ok(addresses), _) => addresses,
            (Err(_), Some(known)) => Arc::clone(&known.addresses),
            (Err(error), None) => return Err(error),
        };
        self.known = Some(Known { addresses: Arc::clone(&addresses), until });
        Ok(addresses)
    }

    /// The address of a connection that came about is the first to be tried by the next ones.
    pub fn worked(&mut self, address: SocketAddr) {
        if let Some(known) = &mut self.known
            && known.addresses.first() != Some(&address)
        {
            let others = known.addresses.iter().copied().filter(|other| *other != address);
            known.addresses = std::iter::once(address).chain(others).collect();
        }
    }

    /// None of the addresses answered: the next connection looks them up again.
    pub fn failed(&mut self) {
        if self.known.as_ref().is_some_and(|known| known.until.is_some()) {
            self.known = None;
        }
    }
}
