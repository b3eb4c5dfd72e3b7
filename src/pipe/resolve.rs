//! The target that a pipe forwards to, and its addresses.
//!
//! The C library looks a name up (getaddrinfo(3)). That may take minutes, so it happens in a thread of its own, one
//! lookup at a time. The connections of the next seconds use the result too; getaddrinfo(3) does not return its time to
//! live.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the result of a lookup is used.
const LIFETIME: Duration = Duration::from_secs(5);

/// The result of a lookup: at least one address, in the order in which to try them, or why there is none.
pub type Resolution = Result<Arc<[SocketAddr]>, String>;

/// The host and port that a pipe forwards to.
#[derive(Debug)]
pub struct Target {
    host: String,
    port: u16,
    cached: Option<CachedAddresses>,
    is_looking_up: bool,
}

#[derive(Debug)]
struct CachedAddresses {
    addresses: Arc<[SocketAddr]>,
    /// `None` if the host is an address itself, which does not change.
    expires: Option<Instant>,
}

impl Target {
    /// The target `host`:`port`, where `host` is a name or an address (IPv6 also in brackets).
    pub fn new(host: &str, port: u16) -> Self {
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let cached = host.parse().ok().map(|address: IpAddr| CachedAddresses {
            addresses: [SocketAddr::new(address, port)].into(),
            expires: None,
        });
        Self { host: host.into(), port, cached, is_looking_up: false }
    }

    /// The addresses to try, if they are known. If not, [look them up](Target::look_up).
    pub fn addresses(&self, now: Instant) -> Option<Arc<[SocketAddr]>> {
        let cached = self.cached.as_ref().filter(|cached| cached.expires.is_none_or(|expires| now < expires))?;
        Some(Arc::clone(&cached.addresses))
    }

    /// Starts a thread that looks the name up and calls `deliver` with the result, unless such a thread is at work
    /// already.
    pub fn look_up(&mut self, deliver: impl FnOnce(Resolution) + Send + 'static) {
        if self.is_looking_up {
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
        // Without a thread this lookup gives no result. The connections that wait for it get that of a later one, or
        // run into their timeout.
        self.is_looking_up = std::thread::Builder::new().name("resolver".into()).spawn(look_up).is_ok();
    }

    /// Stores the result of a lookup. If it failed, the addresses of the one before stay in use. Returns what is in use
    /// now.
    pub fn store(&mut self, resolution: Resolution, now: Instant) -> Resolution {
        self.is_looking_up = false;
        let expires = Some(now + LIFETIME);
        let addresses = match (resolution, &self.cached) {
            (Ok(addresses), _) => addresses,
            (Err(_), Some(cached)) => Arc::clone(&cached.addresses),
            (Err(error), None) => return Err(error),
        };
        self.cached = Some(CachedAddresses { addresses: Arc::clone(&addresses), expires });
        Ok(addresses)
    }

    /// Makes `address`, which accepted a connection, the first that the next connections try.
    pub fn prefer(&mut self, address: SocketAddr) {
        if let Some(cached) = &mut self.cached
            && cached.addresses.first() != Some(&address)
        {
            let others = cached.addresses.iter().copied().filter(|other| *other != address);
            cached.addresses = std::iter::once(address).chain(others).collect();
        }
    }

    /// Forgets the addresses, none of which accepted a connection: the next connection looks them up again.
    pub fn all_failed(&mut self) {
        if self.cached.as_ref().is_some_and(|cached| cached.expires.is_some()) {
            self.cached = None;
        }
    }
}
