//! One direction of a connection: how bytes get from one socket to the other.
//!
//! epoll(7) watches the sockets edge-triggered: it reports each change once. So a transfer remembers what epoll has
//! reported: it waits until its source is readable, is ready for a turn, is blocked because its destination has no room
//! for the bytes that it holds, or has ended. A blocked transfer reads nothing: that is the back-pressure.
//!
//! The thread copies few bytes through its buffer. Once a read fills the buffer the transfer is bulk: its bytes go
//! through a kernel pipe by splice(2), which moves the pages of the packets instead of copying their bytes. A transfer
//! that stays bulk at a high rate becomes heavy: then the kernel wakes the thread once for many packets (SO_RCVLOWAT,
//! socket(7)), until the source pauses.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;

use super::kernel_pipe::{KernelPipe, PIPE_BYTES, Pool};
use super::socket::{DescriptorReserve, flush_corked, set_rcvlowat, tune_for_loopback};

/// The size of the thread's buffer: the most that one copy of a bulk transfer moves if there is no kernel pipe for it.
const BUFFER_BYTES: usize = 1 << 16;

/// The most that one copy of any other transfer moves.
const SMALL_BYTES: usize = 1 << 14;

/// Two splices in a row of fewer bytes than this end bulk: copies are cheaper then.
const FEW_BYTES: usize = 1 << 12;

/// A transfer that moves this many bytes within this time, and is bulk throughout, becomes heavy. A thread whose transfers
/// do so together is a batch.
pub const HEAVY_BYTES: usize = 1 << 24;
pub const HEAVY_WITHIN: Duration = Duration::from_millis(100);

/// The SO_RCVLOWAT of a heavy transfer's source is the number of bytes that arrive in this time, at most half of the
/// source's receive buffer.
const COALESCE_TIME: Duration = Duration::from_micros(800);
const MAX_RCVLOWAT: u32 = 1 << 20;

/// A heavy transfer that has waited for this long becomes bulk again, so that bytes that have arrived wait no longer.
/// The time is longer than [`COALESCE_TIME`], and short compared with the time that the transfer took to become heavy.
pub const PAUSE: Duration = Duration::from_millis(2);

/// The buffer and the kernel pipes that all transfers of one thread share.
#[derive(Debug)]
pub struct Mover {
    /// The kernel pipes for bulk transfers.
    pub pool: Pool,
    buffer: Box<[u8]>,
}

impl Mover {
    /// A buffer, and a pool without pipes yet, for one of `threads` threads.
    pub fn new(reserve: DescriptorReserve, threads: usize) -> Self {
        Self { pool: Pool::new(reserve, threads), buffer: vec![0; BUFFER_BYTES].into() }
    }
}

/// Which of a transfer's two sockets failed.
#[derive(Debug)]
pub enum TransferError {
    /// Reading failed: nothing more will come.
    Source(io::Error),
    /// Writing failed: the bytes that the transfer holds cannot be delivered.
    Destination(io::Error),
}

/// Bytes that were read, and that the destination has no room for.
#[derive(Debug)]
enum Held {
    /// The rest of a copy: `bytes`, from index `from` on.
    Copied { bytes: Box<[u8]>, from: usize },
    /// Bytes in a kernel pipe.
    Spliced(KernelPipe),
}

#[derive(Debug)]
enum Phase {
    /// The source had no more bytes; epoll reports when it has.
    Waiting,
    /// The source may have bytes.
    Ready,
    /// The destination is full; epoll reports when it has room.
    Blocked(Held),
    /// The source's end of stream was forwarded.
    Ended,
}

/// How far to read the source before the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ReadUntil {
    /// Until a read returns fewer bytes than asked for: it has emptied the source, and the next byte brings an event.
    ShortRead,
    /// Until the end of stream: epoll has reported it, and no event follows.
    End,
    /// Until the end of stream, by copying: there are urgent bytes (TCP's URG), a read stops before each, and splice(2)
    /// reports each as the end.
    EndPastUrgent,
    /// Until the end of stream, which is not to be forwarded: the source has failed, and the kernel has reported the
    /// error already.
    EndAfterFailure,
}

/// How to move the bytes; depends on how many have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TransferMode {
    /// Few bytes: copy them.
    Small,
    /// Many bytes: splice them. `few`: the last splice brought fewer than [`FEW_BYTES`].
    Bulk { since: Instant, moved: usize, few: bool },
    /// Many bytes for a long time: splice them, with the SO_RCVLOWAT of the source at `rcvlowat` bytes. `last` is when
    /// the last bytes came.
    Heavy { rcvlowat: u32, last: Instant, few: bool },
}

impl TransferMode {
    fn bulk(now: Instant) -> Self {
        Self::Bulk { since: now, moved: 0, few: false }
    }

    /// The mode after a splice that brought `bytes`.
    fn after(self, bytes: usize, now: Instant) -> Self {
        let is_few = bytes < FEW_BYTES;
        match self {
            // At once: 0 is the end of stream or an urgent byte, and only a copy shows which.
            _ if bytes == 0 => Self::Small,
            Self::Bulk { few: true, .. } | Self::Heavy { few: true, .. } if is_few => Self::Small,
            Self::Bulk { since, moved, .. } if moved + bytes < HEAVY_BYTES => {
                Self::Bulk { since, moved: moved + bytes, few: is_few }
            }
            Self::Bulk { since, .. } => {
                let time = now.saturating_duration_since(since);
                if time > HEAVY_WITHIN {
                    return Self::bulk(now);
                }
                let rcvlowat = HEAVY_BYTES as f64 * COALESCE_TIME.as_secs_f64() / time.as_secs_f64();
                // The cast turns an infinite or too large quotient into u32::MAX.
                let rcvlowat = (rcvlowat as u32).min(MAX_RCVLOWAT);
                Self::Heavy { rcvlowat, last: now, few: is_few }
            }
            Self::Heavy { rcvlowat, .. } => Self::Heavy { rcvlowat, last: now, few: is_few },
            Self::Small => Self::Small,
        }
    }
}

/// The coalescing of the wake-ups for a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coalescing {
    /// The source's SO_RCVLOWAT is 1: each packet wakes the thread.
    Over,
    /// The transfer waits for its source, which may have paused: look again after [`PAUSE`].
    Waiting,
    /// The transfer has a turn coming, or is blocked until an event of its destination: there is nothing to look at.
    Busy,
}

/// The two sockets of a transfer, and the count of the bytes that it delivered.
#[derive(Debug, Clone, Copy)]
pub struct SocketPair<'a> {
    /// The socket to read.
    pub source: &'a TcpStream,
    /// The socket to write to.
    pub destination: &'a TcpStream,
    /// Grows by the bytes that the destination's kernel buffer takes.
    pub delivered: &'a AtomicU64,
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Transfer {
    phase: Phase,
    read_until: ReadUntil,
    mode: TransferMode,
    /// Whether its sockets were tuned for bulk, if they are on loopback.
    is_tuned: bool,
    /// The SO_RCVLOWAT that the source has; 1, the kernel's default, wakes the thread at every packet.
    rcvlowat: u32,
    /// Whether the kernel may hold back the last bytes to the destination, to fill a packet (SPLICE_F_MORE).
    corked: bool,
}

impl Transfer {
    /// A transfer whose source may already have bytes.
    pub fn ready() -> Self {
        Self {
            phase: Phase::Ready,
            read_until: ReadUntil::ShortRead,
            mode: TransferMode::Small,
            is_tuned: false,
            rcvlowat: 1,
            corked: false,
        }
    }

    /// A transfer for whose source epoll will report the first bytes.
    pub fn waiting() -> Self {
        Self { phase: Phase::Waiting, ..Self::ready() }
    }

    /// Whether it needs a turn.
    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready)
    }

    /// Whether it holds bytes that its destination has no room for.
    pub fn is_blocked(&self) -> bool {
        matches!(self.phase, Phase::Blocked(_))
    }

    /// Whether the source's end of stream was forwarded.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Whether the source's SO_RCVLOWAT is above 1, so that [`Transfer::check_pause`] must be called from time to time.
    pub fn is_coalescing(&self) -> bool {
        self.rcvlowat > 1
    }

    /// Remembers an event of the source. Returns whether the transfer has waited for it and is ready now.
    pub fn source_event(&mut self, events: EpollFlags) -> bool {
        if events.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            self.read_until = self.read_until.max(ReadUntil::End);
        }
        if events.contains(EpollFlags::EPOLLPRI) {
            self.read_until = self.read_until.max(ReadUntil::EndPastUrgent);
            self.mode = TransferMode::Small;
        }
        let woken = matches!(self.phase, Phase::Waiting) && events != EpollFlags::EPOLLOUT;
        if woken {
            self.phase = Phase::Ready;
        }
        woken
    }

    /// Remembers that the source has failed: only the bytes that came before are still to be moved.
    pub fn source_failed(&mut self) {
        self.read_until = ReadUntil::EndAfterFailure;
        self.mode = TransferMode::Small;
        if matches!(self.phase, Phase::Waiting) {
            self.phase = Phase::Ready;
        }
    }

    /// Sets the SO_RCVLOWAT of a source that has paused back to 1; epoll reports the bytes that already wait there.
    pub fn check_pause(&mut self, source: &TcpStream, now: Instant) -> Coalescing {
        if let (TransferMode::Heavy { last, .. }, Phase::Waiting) = (self.mode, &self.phase)
            && now.saturating_duration_since(last) >= PAUSE
        {
            self.mode = TransferMode::bulk(now);
            self.update_rcvlowat(source);
        }
        match self.phase {
            _ if !self.is_coalescing() => Coalescing::Over,
            Phase::Waiting => Coalescing::Waiting,
            Phase::Ready | Phase::Blocked(_) | Phase::Ended => Coalescing::Busy,
        }
    }

    /// Moves bytes: first those that the transfer holds, then at most `allowance` new ones. Returns the number of new
    /// ones.
    ///
    /// # Errors
    /// When one of the sockets fails.
    pub fn turn(
        &mut self,
        sockets: SocketPair<'_>,
        allowance: usize,
        now: Instant,
        mover: &mut Mover,
    ) -> Result<usize, TransferError> {
        let mut taken = 0;
        self.deliver(sockets, mover)?;
        while self.is_ready() && taken < allowance {
            let most = allowance - taken;
            let pipe = if self.mode == TransferMode::Small { None } else { mover.pool.lend() };
            taken += match pipe {
                Some(pipe) => self.splice(sockets, most, now, pipe, mover)?,
                None => self.copy(sockets, most, now, mover)?,
            };
        }
        if self.corked && !self.is_blocked() {
            self.corked = false;
            flush_corked(sockets.destination);
        }
        self.update_rcvlowat(sockets.source);
        Ok(taken)
    }

    /// Sets the source's SO_RCVLOWAT to the value for the mode.
    fn update_rcvlowat(&mut self, source: &TcpStream) {
        let bytes = match self.mode {
            TransferMode::Heavy { rcvlowat, .. } => rcvlowat,
            TransferMode::Small | TransferMode::Bulk { .. } => 1,
        };
        if std::mem::replace(&mut self.rcvlowat, bytes) != bytes {
            set_rcvlowat(source, bytes);
        }
    }

    /// Makes one read and one write through the buffer.
    fn copy(
        &mut self,
        sockets: SocketPair<'_>,
        most: usize,
        now: Instant,
        mover: &mut Mover,
    ) -> Result<usize, TransferError> {
        let room = if self.mode == TransferMode::Small { SMALL_BYTES } else { BUFFER_BYTES };
        let asked = room.min(most);
        let buffer = &mut mover.buffer[..asked];
        let read = match { sockets.source }.read(buffer) {
            Ok(0) => {
                self.forward_end(sockets.destination)?;
                return Ok(0);
            }
            Ok(read) => read,
            Err(error) => {
                self.read_failed(error)?;
                return Ok(0);
            }
        };
        if read < asked && self.read_until == ReadUntil::ShortRead {
            self.phase = Phase::Waiting;
        }
        let is_bulk = read == room && self.read_until < ReadUntil::EndPastUrgent;
        self.mode = if is_bulk { TransferMode::bulk(now) } else { TransferMode::Small };
        if is_bulk && !std::mem::replace(&mut self.is_tuned, true) {
            tune_for_loopback(sockets.source);
            tune_for_loopback(sockets.destination);
        }
        let sent = send(sockets, &buffer[..read])?;
        if sent < read {
            self.phase = Phase::Blocked(Held::Copied { bytes: buffer[sent..read].into(), from: 0 });
        }
        Ok(read)
    }

    /// Makes one splice into `pipe`, and as many out of it as the destination has room for.
    fn splice(
        &mut self,
        sockets: SocketPair<'_>,
        most: usize,
        now: Instant,
        mut pipe: KernelPipe,
        mover: &mut Mover,
    ) -> Result<usize, TransferError> {
        // The pipe is empty, so EAGAIN can only be the source's. A pipe that is not full does not mean that the source
        // is empty, since each packet takes a slot.
        match pipe.fill(sockets.source, PIPE_BYTES.min(most)) {
            Ok(read) => {
                self.mode = self.mode.after(read, now);
                if read == 0 {
                    mover.pool.take_back(pipe);
                } else {
                    self.phase = Phase::Blocked(Held::Spliced(pipe));
                    self.deliver(sockets, mover)?;
                }
                Ok(read)
            }
            Err(errno) => {
                mover.pool.take_back(pipe);
                self.read_failed(errno.into())?;
                Ok(0)
            }
        }
    }

    /// Writes the bytes that the transfer holds; once all are written it is ready again.
    fn deliver(&mut self, sockets: SocketPair<'_>, mover: &mut Mover) -> Result<(), TransferError> {
        let Phase::Blocked(held) = &mut self.phase else { return Ok(()) };
        match held {
            Held::Copied { bytes, from } => {
                *from += send(sockets, &bytes[*from..])?;
                if *from < bytes.len() {
                    return Ok(());
                }
            }
            // Until EAGAIN: a partial splice does not prove that the socket is full.
            Held::Spliced(pipe) => {
                while pipe.held() > 0 {
                    match pipe.drain(sockets.destination) {
                        Ok(bytes) => {
                            sockets.delivered.fetch_add(bytes as u64, Ordering::Relaxed);
                            self.corked = true;
                        }
                        Err(Errno::EAGAIN) => return Ok(()),
                        Err(Errno::EINTR) => {}
                        Err(errno) => return Err(TransferError::Destination(errno.into())),
                    }
                }
            }
        }
        if let Phase::Blocked(Held::Spliced(pipe)) = std::mem::replace(&mut self.phase, Phase::Ready) {
            mover.pool.take_back(pipe);
        }
        Ok(())
    }

    fn read_failed(&mut self, error: io::Error) -> Result<(), TransferError> {
        match error.kind() {
            ErrorKind::WouldBlock => self.phase = Phase::Waiting,
            ErrorKind::Interrupted => {}
            _ => return Err(TransferError::Source(error)),
        }
        Ok(())
    }

    /// Forwards the source's end of stream. The other direction stays open.
    fn forward_end(&mut self, destination: &TcpStream) -> Result<(), TransferError> {
        self.phase = Phase::Ended;
        if self.read_until == ReadUntil::EndAfterFailure {
            return Ok(());
        }
        destination.shutdown(Shutdown::Write).map_err(TransferError::Destination)
    }
}

/// Sends as many bytes as the destination has room for; returns how many.
fn send(sockets: SocketPair<'_>, bytes: &[u8]) -> Result<usize, TransferError> {
    loop {
        match { sockets.destination }.write(bytes) {
            // A short write means that the socket is full, and that epoll will report when it has room.
            Ok(sent) => {
                sockets.delivered.fetch_add(sent as u64, Ordering::Relaxed);
                return Ok(sent);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(TransferError::Destination(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mode after `splices`, each a count and the bytes of each, one a millisecond.
    fn mode(splices: &[(usize, usize)]) -> TransferMode {
        let start = Instant::now();
        let bytes = splices.iter().flat_map(|&(count, bytes)| std::iter::repeat_n(bytes, count));
        let times = (0..).map(|ms| start + Duration::from_millis(ms));
        bytes.zip(times).fold(TransferMode::bulk(start), |mode, (bytes, now)| mode.after(bytes, now))
    }

    #[test]
    fn sixteen_mib_within_100_ms_are_heavy_and_fewer_or_slower_are_bulk() {
        assert!(matches!(mode(&[(16, 1 << 20)]), TransferMode::Heavy { rcvlowat: 894_784, few: false, .. }));
        assert!(matches!(mode(&[(1, 1 << 24)]), TransferMode::Heavy { rcvlowat: MAX_RCVLOWAT, .. }));
        assert!(matches!(mode(&[(15, 1 << 20)]), TransferMode::Bulk { .. }));
        assert!(matches!(mode(&[(512, 1 << 16)]), TransferMode::Bulk { .. }));
    }

    #[test]
    fn one_splice_of_few_bytes_changes_nothing_and_two_in_a_row_end_bulk() {
        assert!(matches!(mode(&[(3, 1 << 16), (1, 100)]), TransferMode::Bulk { few: true, .. }));
        assert!(matches!(mode(&[(1, 100), (1, 1 << 16), (1, 100)]), TransferMode::Bulk { few: true, .. }));
        assert_eq!(mode(&[(3, 1 << 16), (2, 100)]), TransferMode::Small);
        assert!(matches!(mode(&[(16, 1 << 20), (1, 100)]), TransferMode::Heavy { few: true, .. }));
        assert_eq!(mode(&[(16, 1 << 20), (2, 100)]), TransferMode::Small);
    }

    #[test]
    fn after_a_splice_of_nothing_a_copy_finds_out_why() {
        assert_eq!(mode(&[(1, 0)]), TransferMode::Small);
        assert_eq!(mode(&[(16, 1 << 20), (1, 0)]), TransferMode::Small);
    }
}
