//! The kernel pipes (pipe(7)) through which bytes are spliced, and the pool that limits their number.
//!
//! A pipe has slots, 16 unless F_SETPIPE_SZ makes it larger; each holds a page or a piece of a packet. Once an
//! unprivileged user exceeds /proc/sys/fs/pipe-user-pages-soft, the kernel makes new pipes of a page or two. Those are
//! slower than copying, so the pool closes them.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::socket::DescriptorReserve;

/// The size of a pipe: by default the most that an unprivileged user may have (/proc/sys/fs/pipe-max-size).
pub const PIPE_BYTES: usize = 1 << 20;

/// A pipe that holds fewer bytes than this costs more than a copy.
const WORTHWHILE_BYTES: i32 = 1 << 16;

/// The most pipes of all pools together, in use and spare: 32 MiB, half of what an unprivileged user may have in pipes
/// of full size.
const MAX_PIPES: usize = 32;

/// One kernel pipe, and the number of bytes in it.
#[derive(Debug)]
pub struct KernelPipe {
    read_end: OwnedFd,
    write_end: OwnedFd,
    held: usize,
    /// The pool counts its pipes by the clones of this.
    _share: Rc<()>,
}

impl KernelPipe {
    /// The number of bytes that were read from a source and are not yet delivered.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Splices at most `most` bytes from `source`. 0 means the end of stream, or an urgent byte next.
    pub fn fill(&mut self, source: &TcpStream, most: usize) -> Result<usize, Errno> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let bytes = splice(source, None, &self.write_end, None, most, flags)?;
        self.held += bytes;
        Ok(bytes)
    }

    /// Splices the bytes in the pipe to `destination`, as far as there is room. The kernel holds back a last packet
    /// that is not full, until more bytes come or [`flush_corked`](super::socket::flush_corked) sends it.
    pub fn drain(&mut self, destination: &TcpStream) -> Result<usize, Errno> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MORE;
        let bytes = splice(&self.read_end, None, destination, None, self.held, flags)?;
        self.held -= bytes;
        Ok(bytes)
    }
}

/// Lends pipes to transfers, each while it holds bytes.
#[derive(Debug)]
pub struct Pool {
    spare: Vec<KernelPipe>,
    share: Rc<()>,
    /// The most pipes of this pool.
    most: usize,
    reserve: DescriptorReserve,
    /// Whether the kernel last gave no pipe of a useful size. Tried again after [`Pool::close_spare`].
    refused: bool,
}

impl Pool {
    /// One of `pools` pools, without pipes yet, which leaves the reserve alone.
    pub fn new(reserve: DescriptorReserve, pools: usize) -> Self {
        let most = (MAX_PIPES / pools).max(1);
        Self { spare: Vec::new(), share: Rc::new(()), most, reserve, refused: false }
    }

    /// An empty pipe; `None` means that there is none, so copy. The pipe that was returned last goes first, since its
    /// slots are in the CPU's cache.
    pub fn lend(&mut self) -> Option<KernelPipe> {
        if let Some(pipe) = self.spare.pop() {
            return Some(pipe);
        }
        if self.refused || Rc::strong_count(&self.share) > self.most {
            return None;
        }
        let pipe = self.make();
        self.refused = pipe.is_none();
        pipe
    }

    fn make(&self) -> Option<KernelPipe> {
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        if self.reserve.includes(&read_end) || self.reserve.includes(&write_end) {
            return None;
        }
        // If the kernel does not allow this size, the size that the pipe has may be enough.
        let _ = fcntl(&write_end, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32));
        let size = fcntl(&write_end, FcntlArg::F_GETPIPE_SZ).ok()?;
        (size >= WORTHWHILE_BYTES).then(|| KernelPipe { read_end, write_end, held: 0, _share: Rc::clone(&self.share) })
    }

    /// Takes back a pipe. Closes one that still holds bytes: they belong to a connection that has ended.
    pub fn take_back(&mut self, pipe: KernelPipe) {
        if pipe.held == 0 {
            self.spare.push(pipe);
        }
    }

    /// Closes the spare pipes, because connections need the descriptors.
    pub fn close_spare(&mut self) {
        self.spare.clear();
        self.refused = false;
    }
}
