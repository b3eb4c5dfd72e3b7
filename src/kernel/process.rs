//! Processes: which one holds a socket, and what it is called.
//!
//! ```text
//! /proc/4711/fd/5 -> socket:[81234]
//! /proc/4711/cmdline: "curl\0-s\0http://example.com/\0"
//! ```
//! The kernel's side is fs/proc/fd.c and fs/proc/base.c, the manual proc_pid_fd(5) and proc_pid_cmdline(5). The walk over
//! descriptors is our own: procfs opens and stats each one, where a single readlinkat(2) tells all.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::Mode;
use procfs::FromRead;
use procfs::process::Stat;

/// As much of a command line as is kept, in bytes: what Linux showed of one until 4.2.
const LONGEST_NAME: u64 = 4096;

/// A process as it is at the moment. A pid alone is none: the kernel gives it out again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The process id, in the namespace of the /proc that was read.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// Its command line with a blank for each NUL, so that it normally ends in one; `[comm]` where it is empty.
    pub name: Arc<[u8]>,
    /// Whether it has no command line: a kernel thread, or a process that is ending.
    pub nameless: bool,
}

/// A socket, and the descriptor by which a process holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    /// The inode of the socket in sockfs: unique on the host, and 32 bits wide (fs/inode.c, `get_next_ino`).
    pub inode: u32,
    /// The number of the descriptor.
    pub fd: u32,
}

/// The processes of a /proc.
#[derive(Debug)]
pub struct Processes {
    root: PathBuf,
    some_unreadable: bool,
}

impl Processes {
    /// Those below `root`, normally /proc.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), some_unreadable: false }
    }

    /// The /proc they are read from.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether any process was met whose descriptors this user may not see.
    pub fn some_unreadable(&self) -> bool {
        self.some_unreadable
    }

    /// The last process id that was given out, to a process or a thread.
    pub fn newest_pid(&self) -> Option<u32> {
        let loadavg = std::fs::read_to_string(self.root.join("loadavg")).ok()?;
        loadavg.split_ascii_whitespace().last()?.parse().ok()
    }

    /// All process ids, the youngest first: ids are given out in ascending order, and again from the bottom when they
    /// run out.
    pub fn youngest_first(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(&self.root) else { return Vec::new() };
        let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        let mut pids: Vec<u32> = entries.flatten().filter_map(number).collect();
        let newest = self.newest_pid().unwrap_or(u32::MAX);
        pids.sort_unstable_by_key(|&pid| std::cmp::Reverse((pid <= newest, pid)));
        pids
    }

    /// Calls `visit` with each socket that `pid` holds, until it breaks off or `budget`, counted in descriptors, is used
    /// up. A process that is gone holds none.
    pub fn each_socket(&mut self, pid: u32, budget: &mut u32, mut visit: impl FnMut(Handle) -> ControlFlow<()>) {
        *budget = budget.saturating_sub(1);
        let path = self.descriptors(pid);
        let mut descriptors =
            match Dir::open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
                Ok(descriptors) => descriptors,
                Err(error) => {
                    self.some_unreadable |= matches!(error, Errno::EACCES | Errno::EPERM);
                    return;
                }
            };
        // A second descriptor, since iterating borrows the directory that the links are read in.
        let Ok(directory) = descriptors.as_fd().try_clone_to_owned() else { return };
        for entry in descriptors.iter().flatten() {
            if *budget == 0 {
                return;
            }
            *budget -= 1;
            if let Some(fd) = number(entry.file_name())
                && let Some(inode) = socket_inode(&directory, entry.file_name())
                && visit(Handle { inode, fd }).is_break()
            {
                return;
            }
        }
    }

    /// Whether `pid` has this socket at this descriptor.
    pub fn holds(&self, pid: u32, handle: Handle) -> bool {
        let link = std::fs::read_link(self.descriptors(pid).join(handle.fd.to_string()));
        link.is_ok_and(|target| parse_socket_link(target.as_os_str().as_encoded_bytes()) == Some(handle.inode))
    }

    /// Whether the process that started at `start_time` still runs under `pid` and has any socket open.
    pub fn has_sockets(&mut self, pid: u32, start_time: u64) -> bool {
        if self.identify(pid).is_none_or(|identity| identity.start_time != start_time) {
            return false;
        }
        let mut found = false;
        self.each_socket(pid, &mut u32::MAX.clone(), |_| {
            found = true;
            ControlFlow::Break(())
        });
        found
    }

    /// What is running under `pid`; `None` where nothing is, or where it cannot be read.
    pub fn identify(&self, pid: u32) -> Option<Identity> {
        let process = self.root.join(pid.to_string());
        // First what a process loses first when it ends.
        let mut name = Vec::with_capacity(256);
        if let Ok(file) = File::open(process.join("cmdline")) {
            let _ = file.take(LONGEST_NAME).read_to_end(&mut name);
        }
        let stat = Stat::from_read(File::open(process.join("stat")).ok()?).ok()?;
        let nameless = name.is_empty();
        if nameless {
            name = format!("[{}]", stat.comm).into_bytes();
        }
        name.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        Some(Identity { pid, start_time: stat.starttime, name: name.into(), nameless })
    }

    /// The process of a thread; of a process itself. /proc has threads too, though it does not list them.
    pub fn leader(&self, pid: u32) -> Option<u32> {
        let status = std::fs::read_to_string(self.root.join(pid.to_string()).join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
    }

    fn descriptors(&self, pid: u32) -> PathBuf {
        self.root.join(pid.to_string()).join("fd")
    }
}

fn number(name: &CStr) -> Option<u32> {
    name.to_str().ok()?.parse().ok()
}

/// The inode of the socket that an entry of a descriptor directory links to.
fn socket_inode(directory: impl AsFd, name: &CStr) -> Option<u32> {
    parse_socket_link(readlinkat(directory, name).ok()?.as_encoded_bytes())
}

/// The inode in `socket:[81234]`.
fn parse_socket_link(target: &[u8]) -> Option<u32> {
    let digits = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
