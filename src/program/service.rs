//! What a service manager learns of the program, by sd_notify(3): that it works, that it reads its files again, that it ends, and for
//! a watchdog that it goes on. Without a service manager, nothing.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::time::{ClockId, clock_gettime};

/// The service manager that started this program, if one did.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    socket: Option<UnixDatagram>,
    /// Whether it ends a program of which it does not hear for some time (WatchdogSec= in systemd.service(5)).
    watches: bool,
    is_ready: bool,
}

impl ServiceManager {
    /// The one that the environment names.
    pub fn of_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| connect(&name));
        let is_ours = env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        Self { socket, watches: is_ours && env::var_os("WATCHDOG_USEC").is_some(), is_ready: false }
    }

    /// Another tick is over; `reloading`: while the program reads its files again.
    pub fn ticked(&mut self, reloading: bool) {
        if !reloading && !std::mem::replace(&mut self.is_ready, true) {
            self.say("READY=1");
        }
        if self.watches {
            self.say("WATCHDOG=1");
        }
    }

    /// The program begins to read its files again; the next tick without that ends it.
    pub fn reloads(&mut self) {
        let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return };
        self.is_ready = false;
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000));
    }

    /// The program ends.
    pub fn ends(&self) {
        self.say("STOPPING=1");
    }

    /// If the manager does not take it, it is gone, or has no room; the program does not wait for it.
    fn say(&self, text: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(text.as_bytes());
        }
    }
}

/// A socket to the manager's, which has a path, or with `@` a name in the abstract namespace (unix(7)).
fn connect(name: &OsStr) -> Option<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name).ok()?,
        None => SocketAddr::from_pathname(name).ok()?,
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect_addr(&address).ok()?;
    Some(socket)
}
