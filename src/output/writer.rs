//! Writing to stdout and stderr without waiting for their readers.
//!
//! A write(2) may take for ever: the reader of a pipe has stopped, a terminal is held with Ctrl-S, a disk does not answer.
//! So a thread writes, and nobody needs it: what the program has to say waits in a short queue, and what finds no room
//! there is dropped and counted.

use std::collections::VecDeque;
use std::io::{self, Stderr, Stdout};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

use crate::privileges::{Duty, keep_for};

/// The most tables that wait for a reader, and the most bytes in all: a table beyond that pushes out the oldest, a message
/// beyond that is dropped.
const MAX_WAITING_TABLES: usize = 5;
const MAX_WAITING_BYTES: usize = 1 << 18;

/// The most bytes of one write(2).
const MAX_WRITE_BYTES: usize = 1 << 16;

/// A thread that has bytes for a descriptor with room for them gets at least this time to write them: it may only be
/// waiting for a CPU.
const SCHEDULING: Duration = Duration::from_secs(1);

/// One of the two streams of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// A standard stream that is kept open for as long as it is borrowed.
enum Handle {
    Stdout(Stdout),
    Stderr(Stderr),
}

impl Stream {
    // Only the descriptor: a thread that waits in a write must not hold the locks of the buffers in std.
    fn handle(self) -> Handle {
        match self {
            Self::Stdout => Handle::Stdout(io::stdout()),
            Self::Stderr => Handle::Stderr(io::stderr()),
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdout(stdout) => stdout.as_fd(),
            Self::Stderr(stderr) => stderr.as_fd(),
        }
    }
}

/// What to write, in whole lines.
#[derive(Debug)]
struct Chunk {
    stream: Stream,
    is_table: bool,
    bytes: Vec<u8>,
}

/// What a writer has dropped, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Loss {
    /// The tables that were dropped since the last call.
    pub tables: u64,
    /// Why the last write failed, if it did.
    pub error: Option<Errno>,
    /// Whether everything was written.
    pub is_idle: bool,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    /// The stream that the thread is writing to.
    writing: Option<Stream>,
    waiting_bytes: usize,
    dropped_tables: u64,
    dropped_lines: u64,
    error: Option<Errno>,
    /// When the reader last took something.
    written_at: Option<Instant>,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.writing.is_none() && self.chunks.is_empty()
    }

    fn waiting_tables(&self) -> usize {
        self.chunks.iter().filter(|chunk| chunk.is_table).count()
    }

    /// Drops the oldest table that waits. Returns whether there was one.
    fn drop_table(&mut self) -> bool {
        let Some(chunk) = self.chunks.iter().position(|chunk| chunk.is_table).and_then(|at| self.chunks.remove(at))
        else {
            return false;
        };
        self.waiting_bytes -= chunk.bytes.len();
        self.dropped_tables += 1;
        true
    }

    fn push(&mut self, chunk: Chunk) {
        self.waiting_bytes += chunk.bytes.len();
        self.chunks.push_back(chunk);
    }
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>, time: Duration) -> MutexGuard<'a, Queue> {
        self.changed.wait_timeout(queue, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Writes to the standard streams, in a thread of its own.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    has_thread: bool,
}

impl Writer {
    pub fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("writer".into()).spawn(move || write_chunks(&for_thread));
        Self { shared, has_thread: thread.is_ok() }
    }

    /// Writes a table, if there is time before the next: where `only_latest`, it takes the place of one that waits.
    pub fn table(&self, bytes: Vec<u8>, only_latest: bool) {
        let mut queue = self.shared.queue();
        while queue.waiting_tables() >= if only_latest { 1 } else { MAX_WAITING_TABLES }
            || queue.waiting_bytes + bytes.len() > MAX_WAITING_BYTES
        {
            if !queue.drop_table() {
                break;
            }
        }
        self.push(queue, Chunk { stream: Stream::Stdout, is_table: true, bytes });
    }

    /// Writes lines.
    pub fn lines(&self, stream: Stream, bytes: Vec<u8>) {
        let mut queue = self.shared.queue();
        if queue.waiting_bytes + bytes.len() > MAX_WAITING_BYTES {
            queue.dropped_lines += bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
            return;
        }
        self.push(queue, Chunk { stream, is_table: false, bytes });
    }

    fn push(&self, mut queue: MutexGuard<'_, Queue>, chunk: Chunk) {
        if self.has_thread && !chunk.bytes.is_empty() {
            queue.push(chunk);
            self.shared.changed.notify_all();
        }
    }

    /// What was dropped since the last call.
    pub fn loss(&self) -> Loss {
        let mut queue = self.shared.queue();
        let tables = std::mem::take(&mut queue.dropped_tables);
        Loss { tables, error: queue.error, is_idle: queue.is_idle() }
    }

    /// Whether everything is written, or cannot be.
    pub fn is_idle(&self) -> bool {
        self.shared.queue().is_idle()
    }

    /// Waits until everything is written: from `start` on for at most `time`, and for at most `patience` while the reader
    /// takes nothing.
    pub fn finish(&self, start: Instant, patience: Duration, time: Duration) {
        let mut queue = self.shared.queue();
        while !queue.is_idle() {
            let stream = queue.writing.or_else(|| queue.chunks.front().map(|chunk| chunk.stream));
            let has_room = stream.is_some_and(|stream| has_room(stream, PollTimeout::ZERO));
            let stands_still = queue.written_at.map_or(start, |at| at.max(start)).elapsed();
            if start.elapsed() >= time || stands_still >= if has_room { patience.max(SCHEDULING) } else { patience } {
                return;
            }
            queue = self.shared.wait(queue, Duration::from_millis(5));
        }
    }
}

/// Waits for at most `timeout` until a stream takes bytes. Returns whether it does.
fn has_room(stream: Stream, timeout: PollTimeout) -> bool {
    let handle = stream.handle();
    poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLOUT)], timeout).is_ok_and(|ready| ready > 0)
}

/// The writer's thread. It may wait for ever, and ends with the process.
fn write_chunks(shared: &Shared) {
    keep_for(Duty::Showing);
    // The end of a line that could be written in part only, for each stream: it comes before anything else there.
    let mut cut: [Vec<u8>; 2] = Default::default();
    let mut queue = shared.queue();
    loop {
        let Some(chunk) = queue.chunks.pop_front() else {
            queue.writing = None;
            shared.changed.notify_all();
            queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        queue.waiting_bytes -= chunk.bytes.len();
        queue.writing = Some(chunk.stream);
        let dropped = if chunk.stream == Stream::Stderr { std::mem::take(&mut queue.dropped_lines) } else { 0 };
        drop(queue);

        let cut = &mut cut[chunk.stream as usize];
        let mut bytes = std::mem::take(cut);
        let finished_line = bytes.len();
        if dropped > 0 {
            bytes.extend(format!("{dropped} messages before this one were dropped, since nobody read them\n").bytes());
        }
        let first_own = bytes.len();
        bytes.extend(chunk.bytes);
        let (written, error) = write_all(chunk.stream, &bytes, shared);

        queue = shared.queue();
        queue.error = error;
        if written < bytes.len() {
            if written > 0 && bytes[written - 1] != b'\n' || written < finished_line {
                let rest = &bytes[written..];
                let line = rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |end| end + 1);
                *cut = rest[..line].to_vec();
            }
            if chunk.is_table {
                queue.dropped_tables += 1;
            } else {
                let lost = bytes[first_own..].iter().filter(|&&byte| byte == b'\n').count() as u64;
                queue.dropped_lines += dropped + lost;
            }
        }
    }
}

/// Returns the number of bytes that were written, and the error if that is not all.
fn write_all(stream: Stream, bytes: &[u8], shared: &Shared) -> (usize, Option<Errno>) {
    let handle = stream.handle();
    let mut written = 0;
    while written < bytes.len() {
        let end = bytes.len().min(written + MAX_WRITE_BYTES);
        match write(&handle, &bytes[written..end]) {
            Ok(0) => return (written, Some(Errno::EIO)),
            Ok(count) => {
                written += count;
                shared.queue().written_at = Some(Instant::now());
                shared.changed.notify_all();
            }
            Err(Errno::EINTR) => {}
            // Another process that shares the descriptor has made it non-blocking.
            Err(Errno::EAGAIN) => {
                has_room(stream, PollTimeout::NONE);
            }
            Err(errno) => return (written, Some(errno)),
        }
    }
    (written, None)
}
