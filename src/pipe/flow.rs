//! One direction of a connection: how bytes get from one socket to the other.
//!
//! Sockets are watched edge-triggered (epoll(7)), both directions registered once for good, so a flow remembers what it
//! was told: it waits until its source is readable, is ready to be given a turn, is blocked with bytes its destination
//! has no room for, or has ended. A blocked flow reads nothing: that is the back-pressure.
//!
//! Few bytes are copied through the thread's buffer. Once a read fills the buffer the flow is bulk and goes through a
//! pipe of the kernel by splice(2), which moves the pages of the packets instead of their bytes. What goes on like that
//! is heavy: then the thread is woken for many packets at once (SO_RCVLOWAT, socket(7)), until the source pauses.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;

use super::kernel_pipe::{KernelPipe, PIPE_BYTES, Pool};
use super::socket::{ease_locally, push, wake_at};

/// The thread's buffer: what one copy moves at most while there is no kernel pipe to be had.
const BUFFER_BYTES: usize = 1 << 16;

/// What a copy of a flow that is not bulk moves at most.
const SMALL_BYTES: usize = 1 << 14;

/// Two splices in a row of fewer bytes than this end the bulk: copies are cheaper.
const FEW_BYTES: usize = 1 << 12;

/// A bulk flow that moves so much within such a time, without being anything else in between, is heavy.
const HEAVY_BYTES: usize = 1 << 24;
const HEAVY_WITHIN: Duration = Duration::from_millis(100);

/// A heavy flow's source collects what comes in such a time before it wakes the thread, but not more than that: half of
/// what it has room for.
const COLLECTED_WITHIN: Duration = Duration::from_micros(800);
const MOST_COLLECTED_BYTES: u32 = 1 << 20;

/// A heavy flow that waits for so long is heavy no more: what was collected so far is late. Longer than the collecting
/// takes, and short beside the time that it took to become heavy.
pub const PAUSE: Duration = Duration::from_millis(2);

/// What all flows of one thread share to move their bytes.
#[derive(Debug)]
pub struct Mover {
    /// The kernel's pipes for bulk.
    pub pool: Pool,
    buffer: Box<[u8]>,
}

impl Mover {
    /// A mover without pipes yet.
    pub fn new() -> Self {
        Self { pool: Pool::default(), buffer: vec![0; BUFFER_BYTES].into() }
    }
}

/// Which end of a flow failed.
#[derive(Debug)]
pub enum Broken {
    /// Reading failed: there is nothing more to come.
    Source(io::Error),
    /// Writing failed: what the flow holds cannot be delivered.
    Destination(io::Error),
}

/// Bytes that were read and that the destination has no room for.
#[derive(Debug)]
enum Held {
    /// The rest of a copy, from `from` on.
    Copied { bytes: Box<[u8]>, from: usize },
    /// In a kernel pipe.
    Spliced(KernelPipe),
}

#[derive(Debug)]
enum Phase {
    /// The source had nothing more; an event tells when it has.
    Waiting,
    /// The source may have bytes.
    Ready,
    /// The destination is full; an event tells when there is room.
    Blocked(Held),
    /// The source's end was passed on.
    Ended,
}

/// How to read the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Care {
    /// A read of fewer bytes than asked for has emptied the source: the next byte brings an event.
    Event,
    /// The event of the source's end has come, none follows: read until it is found.
    End,
    /// There are urgent bytes (TCP's URG): reads stop before each, and splice(2) takes one for the end. Copy to the end.
    Urgent,
    /// The source has failed and the error was told: what reads as its end now is none to be passed on.
    Lost,
}

/// How much comes, and so how it is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Little: copied.
    Small,
    /// Much: spliced. `few` says that the last splice brought little.
    Bulk { since: Instant, moved: usize, few: bool },
    /// Much for long: spliced, and the source is to collect so many bytes. `last` is when it last brought something.
    Heavy { collected_bytes: u32, last: Instant, few: bool },
}

impl Pace {
    fn bulk(now: Instant) -> Self {
        Self::Bulk { since: now, moved: 0, few: false }
    }

    /// The pace after a splice that brought `bytes`.
    fn after(self, bytes: usize, now: Instant) -> Self {
        let is_few = bytes < FEW_BYTES;
        match self {
            // Not only when few: 0 may be the end or an urgent byte, and a copy tells which.
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
                let collected_bytes = HEAVY_BYTES as f64 * COLLECTED_WITHIN.as_secs_f64() / time.as_secs_f64();
                // A quotient that is infinite or too large becomes the largest number.
                let collected_bytes = (collected_bytes as u32).min(MOST_COLLECTED_BYTES);
                Self::Heavy { collected_bytes, last: now, few: is_few }
            }
            Self::Heavy { collected_bytes, .. } => Self::Heavy { collected_bytes, last: now, few: is_few },
            Self::Small => Self::Small,
        }
    }
}

/// The two sockets of a flow, and the sum of what it delivered.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// What is read.
    pub source: &'a TcpStream,
    /// What is written to.
    pub destination: &'a TcpStream,
    /// Grows by what the destination takes.
    pub delivered: &'a AtomicU64,
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Flow {
    phase: Phase,
    care: Care,
    pace: Pace,
    /// Whether its sockets were made ready for bulk.
    eased: bool,
    /// How many bytes the source was told to collect; 1 is none.
    collects: u32,
    /// Whether the destination may keep back the last bytes that it took.
    corked: bool,
}

impl Flow {
    /// A flow whose source may already have bytes.
    pub fn ready() -> Self {
        Self { phase: Phase::Ready, care: Care::Event, pace: Pace::Small, eased: false, collects: 1, corked: false }
    }

    /// A flow whose source will have an event when it has bytes.
    pub fn waiting() -> Self {
        Self { phase: Phase::Waiting, ..Self::ready() }
    }

    /// Whether it is to be given a turn.
    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready)
    }

    /// Whether it holds bytes that its destination has no room for.
    pub fn is_blocked(&self) -> bool {
        matches!(self.phase, Phase::Blocked(_))
    }

    /// Whether the source's end was passed on.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Whether the source collects, so that [`Flow::ends_pause`] is to be asked from time to time.
    pub fn collects(&self) -> bool {
        self.collects > 1
    }

    /// Takes in what happened to the source. Returns whether the flow waited for that and is ready now.
    pub fn source_event(&mut self, events: EpollFlags) -> bool {
        if events.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            self.care = self.care.max(Care::End);
        }
        if events.contains(EpollFlags::EPOLLPRI) {
            self.care = self.care.max(Care::Urgent);
            self.pace = Pace::Small;
        }
        let woken = matches!(self.phase, Phase::Waiting) && events != EpollFlags::EPOLLOUT;
        if woken {
            self.phase = Phase::Ready;
        }
        woken
    }

    /// Takes in that the source has failed: only what it said before is still to be moved.
    pub fn source_is_lost(&mut self) {
        self.care = Care::Lost;
        self.pace = Pace::Small;
        if matches!(self.phase, Phase::Waiting) {
            self.phase = Phase::Ready;
        }
    }

    /// Has a source that pauses hand over what it has collected; epoll tells if that is anything. Returns whether the
    /// source still collects.
    pub fn ends_pause(&mut self, source: &TcpStream, now: Instant) -> bool {
        if let (Pace::Heavy { last, .. }, Phase::Waiting) = (self.pace, &self.phase)
            && now.saturating_duration_since(last) >= PAUSE
        {
            self.pace = Pace::bulk(now);
            self.have_collect(source);
        }
        self.collects()
    }

    /// Moves bytes: first what is held, then at most `allowance` new ones. Returns how many new ones were read.
    ///
    /// # Errors
    /// Which end failed, when one did.
    pub fn turn(&mut self, ends: Ends<'_>, allowance: usize, now: Instant, mover: &mut Mover) -> Result<usize, Broken> {
        let mut taken = 0;
        self.deliver(ends, mover)?;
        while self.is_ready() && taken < allowance {
            let most = allowance - taken;
            let pipe = if self.pace == Pace::Small { None } else { mover.pool.lend() };
            taken += match pipe {
                Some(pipe) => self.splice(ends, most, now, pipe, mover)?,
                None => self.copy(ends, most, now, mover)?,
            };
        }
        if self.corked && !self.is_blocked() {
            self.corked = false;
            push(ends.destination);
        }
        self.have_collect(ends.source);
        Ok(taken)
    }

    /// Has the source collect if the flow is heavy, and else no longer.
    fn have_collect(&mut self, source: &TcpStream) {
        let bytes = match self.pace {
            Pace::Heavy { collected_bytes, .. } => collected_bytes,
            Pace::Small | Pace::Bulk { .. } => 1,
        };
        if std::mem::replace(&mut self.collects, bytes) != bytes {
            wake_at(source, bytes);
        }
    }

    /// One read and one write through the buffer.
    fn copy(&mut self, ends: Ends<'_>, most: usize, now: Instant, mover: &mut Mover) -> Result<usize, Broken> {
        let room = if self.pace == Pace::Small { SMALL_BYTES } else { BUFFER_BYTES };
        let asked = room.min(most);
        let buffer = &mut mover.buffer[..asked];
        let read = match { ends.source }.read(buffer) {
            Ok(0) => {
                self.end(ends.destination)?;
                return Ok(0);
            }
            Ok(read) => read,
            Err(error) => {
                self.could_not_read(error)?;
                return Ok(0);
            }
        };
        if read < asked && self.care == Care::Event {
            self.phase = Phase::Waiting;
        }
        let is_bulk = read == room && self.care < Care::Urgent;
        self.pace = if is_bulk { Pace::bulk(now) } else { Pace::Small };
        if is_bulk && !std::mem::replace(&mut self.eased, true) {
            ease_locally(ends.source);
            ease_locally(ends.destination);
        }
        let sent = send(ends, &buffer[..read])?;
        if sent < read {
            self.phase = Phase::Blocked(Held::Copied { bytes: buffer[sent..read].into(), from: 0 });
        }
        Ok(read)
    }

    /// One splice into `pipe` and as many out of it as the destination has room for.
    fn splice(
        &mut self,
        ends: Ends<'_>,
        most: usize,
        now: Instant,
        mut pipe: KernelPipe,
        mover: &mut Mover,
    ) -> Result<usize, Broken> {
        // The pipe is empty, so EAGAIN is the source's. How full it got tells nothing: each packet takes a slot.
        match pipe.fill(ends.source, PIPE_BYTES.min(most)) {
            Ok(read) => {
                self.pace = self.pace.after(read, now);
                if read == 0 {
                    mover.pool.take_back(pipe);
                } else {
                    self.phase = Phase::Blocked(Held::Spliced(pipe));
                    self.deliver(ends, mover)?;
                }
                Ok(read)
            }
            Err(errno) => {
                mover.pool.take_back(pipe);
                self.could_not_read(errno.into())?;
                Ok(0)
            }
        }
    }

    /// Hands over what is held; with all of it gone the flow is ready again.
    fn deliver(&mut self, ends: Ends<'_>, mover: &mut Mover) -> Result<(), Broken> {
        let Phase::Blocked(held) = &mut self.phase else { return Ok(()) };
        match held {
            Held::Copied { bytes, from } => {
                *from += send(ends, &bytes[*from..])?;
                if *from < bytes.len() {
                    return Ok(());
                }
            }
            // Until EAGAIN: a partial splice need not mean a full socket.
            Held::Spliced(pipe) => {
                while pipe.held() > 0 {
                    match pipe.drain(ends.destination) {
                        Ok(bytes) => {
                            ends.delivered.fetch_add(bytes as u64, Ordering::Relaxed);
                            self.corked = true;
                        }
                        Err(Errno::EAGAIN) => return Ok(()),
                        Err(Errno::EINTR) => {}
                        Err(errno) => return Err(Broken::Destination(errno.into())),
                    }
                }
            }
        }
        if let Phase::Blocked(Held::Spliced(pipe)) = std::mem::replace(&mut self.phase, Phase::Ready) {
            mover.pool.take_back(pipe);
        }
        Ok(())
    }

    fn could_not_read(&mut self, error: io::Error) -> Result<(), Broken> {
        match error.kind() {
            ErrorKind::WouldBlock => self.phase = Phase::Waiting,
            ErrorKind::Interrupted => {}
            _ => return Err(Broken::Source(error)),
        }
        Ok(())
    }

    /// Passes the source's end on. The way back stays open.
    fn end(&mut self, destination: &TcpStream) -> Result<(), Broken> {
        self.phase = Phase::Ended;
        if self.care == Care::Lost {
            return Ok(());
        }
        destination.shutdown(Shutdown::Write).map_err(Broken::Destination)
    }
}

/// Sends until there is no room; returns how much went.
fn send(ends: Ends<'_>, bytes: &[u8]) -> Result<usize, Broken> {
    loop {
        match { ends.destination }.write(bytes) {
            // A short write means a full socket, and an event when it no longer is.
            Ok(sent) => {
                ends.delivered.fetch_add(sent as u64, Ordering::Relaxed);
                return Ok(sent);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Destination(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pace after so many splices of so many bytes, one a millisecond.
    fn pace(splices: &[(usize, usize)]) -> Pace {
        let start = Instant::now();
        let bytes = splices.iter().flat_map(|&(count, bytes)| std::iter::repeat_n(bytes, count));
        let times = (0..).map(|ms| start + Duration::from_millis(ms));
        bytes.zip(times).fold(Pace::bulk(start), |pace, (bytes, now)| pace.after(bytes, now))
    }

    #[test]
    fn much_for_long_is_heavy_and_less_in_the_time_is_not() {
        assert!(matches!(pace(&[(16, 1 << 20)]), Pace::Heavy { collected_bytes: 894_784, few: false, .. }));
        assert!(matches!(pace(&[(1, 1 << 24)]), Pace::Heavy { collected_bytes: MOST_COLLECTED_BYTES, .. }));
        assert!(matches!(pace(&[(15, 1 << 20)]), Pace::Bulk { .. }));
        assert!(matches!(pace(&[(512, 1 << 16)]), Pace::Bulk { .. }));
    }

    #[test]
    fn a_single_splice_of_few_bytes_ends_nothing_and_two_do() {
        assert!(matches!(pace(&[(3, 1 << 16), (1, 100)]), Pace::Bulk { few: true, .. }));
        assert!(matches!(pace(&[(1, 100), (1, 1 << 16), (1, 100)]), Pace::Bulk { few: true, .. }));
        assert_eq!(pace(&[(3, 1 << 16), (2, 100)]), Pace::Small);
        assert!(matches!(pace(&[(16, 1 << 20), (1, 100)]), Pace::Heavy { few: true, .. }));
        assert_eq!(pace(&[(16, 1 << 20), (2, 100)]), Pace::Small);
    }

    #[test]
    fn nothing_is_looked_at_by_a_copy() {
        assert_eq!(pace(&[(1, 0)]), Pace::Small);
        assert_eq!(pace(&[(16, 1 << 20), (1, 0)]), Pace::Small);
    }
}
