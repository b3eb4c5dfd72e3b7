//! One direction of a connection: how bytes get from one socket to the other.
//!
//! Sockets are watched edge-triggered (epoll(7)), both directions registered once for good, so a flow remembers what it
//! was told: it waits until its source is readable, is ready to be given a turn, is blocked with bytes its destination
//! has no room for, or has ended. A blocked flow reads nothing: that is the back-pressure.
//!
//! Few bytes are copied through the thread's buffer. Once a read fills the buffer the flow is bulk and goes through a
//! pipe of the kernel by splice(2), which moves the pages of the packets instead of their bytes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;

use super::kernel_pipe::{KernelPipe, PIPE_BYTES, Pool};
use super::socket::ease_locally;

/// The thread's buffer: what one copy moves at most while there is no kernel pipe to be had.
const BUFFER_BYTES: usize = 1 << 16;

/// What a copy of a flow that is not bulk moves at most.
const SMALL_BYTES: usize = 1 << 14;

/// A splice of fewer bytes than this ends the bulk: a copy is cheaper.
const FEW_BYTES: usize = 1 << 12;

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

/// One direction of a connection.
#[derive(Debug)]
pub struct Flow {
    phase: Phase,
    care: Care,
    bulk: bool,
    /// Whether its sockets were made ready for bulk.
    eased: bool,
}

impl Flow {
    /// A flow whose source may already have bytes.
    pub fn ready() -> Self {
        Self { phase: Phase::Ready, care: Care::Event, bulk: false, eased: false }
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

    /// Takes in what happened to the source. Returns whether the flow waited for that and is ready now.
    pub fn source_event(&mut self, events: EpollFlags) -> bool {
        if events.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            self.care = self.care.max(Care::End);
        }
        if events.contains(EpollFlags::EPOLLPRI) {
            self.care = self.care.max(Care::Urgent);
            self.bulk = false;
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
        self.bulk = false;
        if matches!(self.phase, Phase::Waiting) {
            self.phase = Phase::Ready;
        }
    }

    /// Moves bytes from `source` to `destination`: first what is held, then at most `allowance` new ones. Adds to
    /// `delivered` what the destination took, and returns how many new ones were read.
    ///
    /// # Errors
    /// Which end failed, when one did.
    pub fn turn(
        &mut self,
        source: &TcpStream,
        destination: &TcpStream,
        allowance: usize,
        mover: &mut Mover,
        delivered: &AtomicU64,
    ) -> Result<usize, Broken> {
        let mut taken = 0;
        self.deliver(destination, mover, delivered)?;
        while self.is_ready() && taken < allowance {
            let most = allowance - taken;
            taken += match self.bulk.then(|| mover.pool.lend()).flatten() {
                Some(pipe) => self.splice(source, destination, most, pipe, mover, delivered)?,
                None => self.copy(source, destination, most, mover, delivered)?,
            };
        }
        Ok(taken)
    }

    /// One read and one write through the buffer.
    fn copy(
        &mut self,
        source: &TcpStream,
        destination: &TcpStream,
        most: usize,
        mover: &mut Mover,
        delivered: &AtomicU64,
    ) -> Result<usize, Broken> {
        let room = if self.bulk { BUFFER_BYTES } else { SMALL_BYTES };
        let asked = room.min(most);
        let buffer = &mut mover.buffer[..asked];
        let read = match (&mut &*source).read(buffer) {
            Ok(0) => {
                self.end(destination)?;
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
        self.bulk = read == room && self.care < Care::Urgent;
        if self.bulk && !std::mem::replace(&mut self.eased, true) {
            ease_locally(source);
            ease_locally(destination);
        }
        let sent = send(destination, &buffer[..read], delivered)?;
        if sent < read {
            self.phase = Phase::Blocked(Held::Copied { bytes: buffer[sent..read].into(), from: 0 });
        }
        Ok(read)
    }

    /// One splice into `pipe` and as many out of it as the destination has room for.
    fn splice(
        &mut self,
        source: &TcpStream,
        destination: &TcpStream,
        most: usize,
        mut pipe: KernelPipe,
        mover: &mut Mover,
        delivered: &AtomicU64,
    ) -> Result<usize, Broken> {
        // The pipe is empty, so EAGAIN is the source's. How full it got tells nothing: each packet takes a slot.
        match pipe.fill(source, PIPE_BYTES.min(most)) {
            Ok(read) => {
                // Not only when few: 0 may be the end or an urgent byte, and a copy tells which.
                self.bulk = read >= FEW_BYTES;
                if read == 0 {
                    mover.pool.take_back(pipe);
                } else {
                    self.phase = Phase::Blocked(Held::Spliced(pipe));
                    self.deliver(destination, mover, delivered)?;
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
    fn deliver(&mut self, destination: &TcpStream, mover: &mut Mover, delivered: &AtomicU64) -> Result<(), Broken> {
        let Phase::Blocked(held) = &mut self.phase else { return Ok(()) };
        match held {
            Held::Copied { bytes, from } => {
                *from += send(destination, &bytes[*from..], delivered)?;
                if *from < bytes.len() {
                    return Ok(());
                }
            }
            // Until EAGAIN: a partial splice need not mean a full socket.
            Held::Spliced(pipe) => {
                while pipe.held() > 0 {
                    match pipe.drain(destination) {
                        Ok(bytes) => _ = delivered.fetch_add(bytes as u64, Ordering::Relaxed),
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
fn send(destination: &TcpStream, bytes: &[u8], delivered: &AtomicU64) -> Result<usize, Broken> {
    loop {
        match (&mut &*destination).write(bytes) {
            // A short write means a full socket, and an event when it no longer is.
            Ok(sent) => {
                delivered.fetch_add(sent as u64, Ordering::Relaxed);
                return Ok(sent);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Destination(error)),
        }
    }
}
