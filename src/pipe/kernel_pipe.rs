//! The kernel's pipes that bytes are spliced through, and the pool that bounds their number.
//!
//! pipe(7): a pipe has slots of a page or a piece of a packet each, 16 of them unless F_SETPIPE_SZ makes it larger.
//! Above /proc/sys/fs/pipe-user-pages-soft an unprivileged user's pipes shrink to a page or two, which is worse than
//! copying; such a pipe is given up.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// The size that is asked for: the most that an unprivileged user may have (/proc/sys/fs/pipe-max-size).
pub const PIPE_BYTES: usize = 1 << 20;

/// A pipe of fewer slots than this costs more than a copy.
const WORTHWHILE_BYTES: i32 = 1 << 16;

/// Pipes of one pool at most, in use and spare: 32 MiB, half of what an unprivileged user may have in full-size pipes.
const POOL_SIZE: usize = 32;

/// One pipe of the kernel, and how many bytes wait in it.
#[derive(Debug)]
pub struct KernelPipe {
    read_end: OwnedFd,
    write_end: OwnedFd,
    held: usize,
    /// One share for each pipe there is: the pool counts them.
    _share: Rc<()>,
}

impl KernelPipe {
    /// Bytes that were taken from a source and not delivered yet.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes at most `most` bytes from `source`; 0 is said at its end, but also before an urgent byte.
    pub fn fill(&mut self, source: &TcpStream, most: usize) -> Result<usize, Errno> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let bytes = splice(source, None, &self.write_end, None, most, flags)?;
        self.held += bytes;
        Ok(bytes)
    }

    /// Hands what it holds to `destination`, as far as there is room. A last packet that is not full stays there until
    /// more comes or it is [pushed](super::socket::push).
    pub fn drain(&mut self, destination: &TcpStream) -> Result<usize, Errno> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MORE;
        let bytes = splice(&self.read_end, None, destination, None, self.held, flags)?;
        self.held -= bytes;
        Ok(bytes)
    }
}

/// Lends pipes to flows for as long as they have bytes in one.
#[derive(Debug, Default)]
pub struct Pool {
    spare: Vec<KernelPipe>,
    share: Rc<()>,
    /// The kernel gave no pipe of a useful size; asked again after the spare ones were let go.
    refused: bool,
}

impl Pool {
    /// An empty pipe, the one last given back first: its slots are in the processor's cache. `None` means copy.
    pub fn lend(&mut self) -> Option<KernelPipe> {
        if let Some(pipe) = self.spare.pop() {
            return Some(pipe);
        }
        if self.refused || Rc::strong_count(&self.share) > POOL_SIZE {
            return None;
        }
        let pipe = self.make();
        self.refused = pipe.is_none();
        pipe
    }

    fn make(&self) -> Option<KernelPipe> {
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        // Where the larger size is not allowed, the one it was born with may do.
        let _ = fcntl(&write_end, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32));
        let size = fcntl(&write_end, FcntlArg::F_GETPIPE_SZ).ok()?;
        (size >= WORTHWHILE_BYTES).then(|| KernelPipe { read_end, write_end, held: 0, _share: Rc::clone(&self.share) })
    }

    /// Takes back a pipe. One that still holds bytes is closed: they belong to a connection that is no more.
    pub fn take_back(&mut self, pipe: KernelPipe) {
        if pipe.held == 0 {
            self.spare.push(pipe);
        }
    }

    /// Closes the spare pipes: somebody needs their descriptors more.
    pub fn let_go(&mut self) {
        self.spare.clear();
        self.refused = false;
    }
}
