//! Helpers of the tests that use real sockets on the loopback interface.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::thread;
use std::time::{Duration, Instant};

use bwmon::pipe::PipeSettings;

/// A test fails if it waits for longer than this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The threads of a pipe in the tests: PIPE_THREADS, by default 2.
fn threads() -> Option<NonZeroUsize> {
    std::env::var("PIPE_THREADS").map_or(NonZeroUsize::new(2), |text| Some(text.parse().unwrap()))
}

/// Settings of a pipe from a free port of 127.0.0.1 to `target`.
pub fn settings(target: SocketAddr) -> PipeSettings {
    PipeSettings {
        bind: Some(Ipv4Addr::LOCALHOST.into()),
        threads: threads(),
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
