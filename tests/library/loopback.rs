//! Helpers of the tests that use real sockets on the loopback interface.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use bwmon::pipe::PipeSettings;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, socket,
};

/// A test fails if it waits for longer than this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of a pipe from a free port of 127.0.0.1 to `target`.
pub fn settings(target: SocketAddr) -> PipeSettings {
    PipeSettings {
        bind: Some(Ipv4Addr::LOCALHOST.into()),
        ..PipeSettings::new(0, target.ip().to_string(), target.port())
    }
}

/// Sets the timeouts of a socket to [`PATIENCE`].
pub fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Waits until `reached` returns true; `what` names that in the message of a failure.
pub fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Random bytes, so that a test notices bytes at a wrong place in their stream.
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed | 1);
    let mut bytes: Vec<u8> =
        std::iter::repeat_with(|| random.next().to_le_bytes()).take(length / 8 + 1).flatten().collect();
    bytes.truncate(length);
    bytes
}

/// Marsaglia's xorshift64*: random enough for the program under test.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// A listener whose accept queue is full: the kernel drops what else wants to connect, as a host does that is gone.
pub struct Silent {
    pub address: SocketAddr,
    _socket: OwnedFd,
    _queued: Vec<TcpStream>,
}

impl Silent {
    pub fn on(address: SocketAddr) -> Self {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
        listen(&socket, Backlog::new(0).unwrap()).unwrap();
        let bound = getsockname::<SockaddrStorage>(socket.as_raw_fd()).unwrap();
        let port = bound.as_sockaddr_in().map(|v4| v4.port()).or(bound.as_sockaddr_in6().map(|v6| v6.port()));
        let address = SocketAddr::new(address.ip(), port.unwrap());
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(stream);
        }
        Self { address, _socket: socket, _queued: queued }
    }
}
