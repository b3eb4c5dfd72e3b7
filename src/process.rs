//! Processes: which one holds a socket, and what it is called.
//!
//! ```text
//! /proc/4711/fd/5 -> socket:[81234]
//! /proc/4711/cmdline: "curl\0-s\0http://example.com/\0"
//! ```
//! The kernel's side is fs/proc/fd.c and fs/proc/base.c, the manual proc_pid_fd(5) and proc_pid_cmdline(5). The walk over
//! descriptors is our own: procfs opens and stats each one where a single readlinkat(2) tells all.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::Dir;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::Mode;
use procfs::process::Process;

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

/// The processes of a /proc.
#[derive(Debug)]
pub struct Processes {
    root: PathBuf,
    unreadable: bool,
}

impl Processes {
    /// Those below `root`, normally /proc.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), unreadable: false }
    }

    /// The /proc they are read from.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether a walk met a process whose descriptors this user may not see.
    pub fn some_unreadable(&self) -> bool {
        self.unreadable
    }

    /// All process ids, the youngest first.
    ///
    /// Ids are given out in ascending order and begin again at the bottom when they run out; the last one given out, at
    /// the end of /proc/loadavg, tells where the youngest are.
    pub fn youngest_first(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(&self.root) else { return Vec::new() };
        let mut pids: Vec<u32> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let loadavg = std::fs::read_to_string(self.root.join("loadavg")).unwrap_or_default();
        let newest = loadavg.split_ascii_whitespace().last().and_then(|pid| pid.parse().ok()).unwrap_or(u32::MAX);
        pids.sort_unstable_by_key(|&pid| std::cmp::Reverse((pid <= newest, pid)));
        pids
    }

    /// Takes from `wanted`, a set of socket inodes, each one that a process holds, and says which: the youngest.
    ///
    /// Processes that vanish meanwhile are passed over; those that may not be looked at are remembered in
    /// [`Processes::some_unreadable`].
    pub fn holders(&mut self, wanted: &mut std::collections::HashSet<u64>) -> HashMap<u64, u32> {
        let mut holders = HashMap::with_capacity(wanted.len());
        if wanted.is_empty() {
            return holders;
        }
        for pid in self.youngest_first() {
            self.each_socket(pid, |inode| {
                if wanted.remove(&inode) {
                    holders.insert(inode, pid);
                }
                !wanted.is_empty()
            });
            if wanted.is_empty() {
                break;
            }
        }
        holders
    }

    /// Whether the process that started at `start_time` still runs under `pid` and has any socket open.
    pub fn holds_a_socket(&mut self, pid: u32, start_time: u64) -> bool {
        if self.identify(pid).is_none_or(|identity| identity.start_time != start_time) {
            return false;
        }
        let mut found = false;
        self.each_socket(pid, |_| {
            found = true;
            false
        });
        found
    }

    /// Calls `visit` with the inode of each socket among the descriptors of `pid`, for as long as it says so.
    fn each_socket(&mut self, pid: u32, mut visit: impl FnMut(u64) -> bool) {
        let path = self.root.join(pid.to_string()).join("fd");
        let mut descriptors = match Dir::open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                self.unreadable |= matches!(error, nix::errno::Errno::EACCES | nix::errno::Errno::EPERM);
                return;
            }
        };
        // Opened once more, since iterating borrows the directory that the links are to be read in.
        let Ok(directory) = descriptors.as_fd().try_clone_to_owned() else { return };
        for entry in descriptors.iter().flatten() {
            if let Some(inode) = socket_inode(&directory, entry.file_name())
                && !visit(inode)
            {
                return;
            }
        }
    }

    /// What is running under `pid`; `None` where nothing is, or where it cannot be read.
    pub fn identify(&self, pid: u32) -> Option<Identity> {
        let process = Process::new_with_root(self.root.join(pid.to_string())).ok()?;
        let stat = process.stat().ok()?;
        let mut name = Vec::new();
        if let Ok(file) = File::open(self.root.join(pid.to_string()).join("cmdline")) {
            let _ = file.take(LONGEST_NAME).read_to_end(&mut name);
        }
        let nameless = name.is_empty();
        if nameless {
            name = format!("[{}]", stat.comm).into_bytes();
        }
        name.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        Some(Identity { pid, start_time: stat.starttime, name: name.into(), nameless })
    }
}

/// The inode of the socket that an entry of a descriptor directory links to: `socket:[81234]`.
fn socket_inode(directory: impl AsFd, name: &CStr) -> Option<u64> {
    let target = readlinkat(directory, name).ok()?;
    parse_socket_link(target.as_encoded_bytes())
}

fn parse_socket_link(target: &[u8]) -> Option<u64> {
    let digits = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
