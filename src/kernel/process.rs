//! Processes: the sockets that each one holds, its command line, its user and its cgroup.
//!
//! ```text
//! /proc/4711/fd/5 -> socket:[81234]
//! /proc/4711/cmdline: "curl\0-s\0http://example.com/\0"
//! /proc/4711/cgroup:  0::/system.slice/backup.service
//! ```
//! The kernel's side is fs/proc/fd.c and fs/proc/base.c; see also proc_pid_fd(5), proc_pid_cmdline(5) and cgroups(7).
//! The walk over descriptors is our own: the procfs crate opens and stats each one, where one readlinkat(2) is enough.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, fstat};
use procfs::FromRead;
use procfs::process::Stat;

/// The most bytes of a file that are read, such as a command line; Linux before 4.2 showed no more of that.
const LONGEST_FILE: u64 = 32 * 1024;
/// The room for a file in most cases.
const USUAL_LENGTH: usize = 2048;
/// The most threads of a process that are looked at one by one.
const MOST_THREADS: usize = 64;

/// A process when it was read. A pid alone does not identify a process: the kernel reuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The process id, in the namespace of the /proc that was read.
    pub pid: u32,
    /// When the process started, in clock ticks since boot (proc_pid_stat(5)).
    pub start_time: u64,
    /// Its arguments with a blank in place of each NUL, so that it normally ends in a blank; `[comm]` if there are
    /// none.
    pub command_line: Vec<u8>,
    /// Whether it has no command line: a kernel thread, or a process that is exiting.
    pub nameless: bool,
    /// The effective user id; `None` if it cannot be read.
    pub uid: Option<u32>,
    /// The path of its cgroup from the root of the hierarchy; `None` if it cannot be read.
    pub cgroup: Option<Vec<u8>>,
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
    /// The processes of the /proc at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), some_unreadable: false }
    }

    /// The /proc from which they are read.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether any process had descriptors that this user may not read.
    pub fn some_unreadable(&self) -> bool {
        self.some_unreadable
    }

    /// The last process id that the kernel gave out, to a process or a thread (proc_loadavg(5)).
    pub fn newest_pid(&self) -> Option<u32> {
        let loadavg = std::fs::read_to_string(self.root.join("loadavg")).ok()?;
        loadavg.split_ascii_whitespace().last()?.parse().ok()
    }

    /// All process ids, the youngest process first: the kernel gives out ids in ascending order, and wraps around when
    /// they run out.
    pub fn youngest_first(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(&self.root) else { return Vec::new() };
        let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        let mut pids: Vec<u32> = entries.flatten().filter_map(number).collect();
        let newest = self.newest_pid().unwrap_or(u32::MAX);
        pids.sort_unstable_by_key(|&pid| std::cmp::Reverse((pid <= newest, pid)));
        pids
    }

    /// Calls `visit` with each socket that a thread of `pid` holds other than the main one, with the thread's id: threads may
    /// have descriptor tables of their own, and outlive the main thread. `budget` is counted in descriptors.
    pub fn each_socket_of_threads(&mut self, pid: u32, budget: &mut u32, mut visit: impl FnMut(u32, Handle)) {
        for thread in self.threads(pid) {
            self.each_socket(thread, budget, |handle| {
                visit(thread, handle);
                ControlFlow::Continue(())
            });
        }
    }

    /// Calls `visit` with each socket that `pid` holds, until `visit` breaks or `budget` descriptors have been read. A
    /// process that is gone holds none.
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
        // A second descriptor for readlinkat(2), since iterating borrows the first.
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
        if self.start_time(pid) != Some(start_time) {
            return false;
        }
        let mut found = false;
        self.each_socket(pid, &mut u32::MAX.clone(), |_| {
            found = true;
            ControlFlow::Break(())
        });
        found
    }

    /// When the process that runs under `pid` started, in clock ticks since boot; `None` if there is none.
    fn start_time(&self, pid: u32) -> Option<u64> {
        Some(Stat::from_read(read_file(self.open(pid)?, c"stat")?.as_slice()).ok()?.starttime)
    }

    /// The process that runs under `pid`; `None` if there is none or it cannot be read.
    pub fn read(&self, pid: u32) -> Option<Process> {
        // One walk to the directory, and none at all for each file of a process that has ended.
        let directory = self.open(pid)?;
        // The command line first, since an exiting process loses it first.
        let mut command_line = read_file(&directory, c"cmdline").unwrap_or_default();
        if command_line.is_empty() {
            // If the main thread has ended, the others still have it.
            let mut of_threads = self.threads(pid).filter_map(|thread| read_file(self.open(thread)?, c"cmdline"));
            command_line = of_threads.find(|command_line| !command_line.is_empty()).unwrap_or_default();
        }
        let cgroup = read_file(&directory, c"cgroup");
        let cgroup = cgroup.as_deref().and_then(cgroup_path).map(<[u8]>::to_vec);
        // Unlike the files in it, the directory belongs to the effective user even if the process is not dumpable
        // (fs/proc/base.c, task_dump_owner).
        let uid = fstat(&directory).ok().map(|status| status.st_uid);
        let stat = Stat::from_read(read_file(&directory, c"stat")?.as_slice()).ok()?;
        let nameless = command_line.is_empty();
        if nameless {
            command_line = format!("[{}]", stat.comm).into_bytes();
        }
        command_line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        Some(Process { pid, start_time: stat.starttime, command_line, nameless, uid, cgroup })
    }

    /// The directory of a process or thread, from which its files can be opened.
    fn open(&self, id: u32) -> Option<OwnedFd> {
        open(&self.root.join(id.to_string()), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()
    }

    /// The other threads of a process, by their ids. The first ones only: this is for a few whose main thread has ended.
    fn threads(&self, pid: u32) -> impl Iterator<Item = u32> + use<> {
        let entries = std::fs::read_dir(self.root.join(pid.to_string()).join("task"));
        let id = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        entries.into_iter().flatten().flatten().filter_map(id).filter(move |&id| id != pid).take(MOST_THREADS)
    }

    /// The process to which a thread belongs; a process belongs to itself. /proc has entries for threads too, although
    /// it does not list them.
    pub fn leader(&self, pid: u32) -> Option<u32> {
        let status = std::fs::read_to_string(self.root.join(pid.to_string()).join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
    }

    fn descriptors(&self, pid: u32) -> PathBuf {
        self.root.join(pid.to_string()).join("fd")
    }
}

/// The content of a file of a process, as far as it matters; `None` if it cannot be read.
fn read_file(directory: impl AsFd, name: &CStr) -> Option<Vec<u8>> {
    let mut file = File::from(openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?);
    // These files give all that there is room for, so that usually one read(2) is enough.
    let mut content = [0; USUAL_LENGTH];
    let length = file.read(&mut content).ok()?;
    let mut content = content[..length].to_vec();
    if length == USUAL_LENGTH {
        file.take(LONGEST_FILE - USUAL_LENGTH as u64).read_to_end(&mut content).ok()?;
    }
    Some(content)
}

/// The path of the cgroup in the text of /proc/PID/cgroup: in systemd's own hierarchy, if the host has one beside
/// cgroup2, otherwise in cgroup2. A path may contain colons, so only the first two of a line separate its fields.
fn cgroup_path(text: &[u8]) -> Option<&[u8]> {
    let path_of = |hierarchy: &[u8]| {
        text.split(|&byte| byte == b'\n').find_map(|line| {
            let mut fields = line.splitn(3, |&byte| byte == b':').skip(1);
            (fields.next()? == hierarchy).then(|| fields.next()).flatten()
        })
    };
    path_of(b"name=systemd").filter(|path| *path != b"/").or_else(|| path_of(b""))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_that_of_systemds_hierarchy_or_of_cgroup2() {
        assert_eq!(cgroup_path(b"0::/user.slice/a:b::c\n"), Some(&b"/user.slice/a:b::c"[..]));
        let hybrid = b"12:cpu,cpuacct:/x\n1:name=systemd:/system.slice/a.service\n0::/system.slice\n";
        assert_eq!(cgroup_path(hybrid), Some(&b"/system.slice/a.service"[..]));
        assert_eq!(cgroup_path(b"1:name=systemd:/\n0::/y\n"), Some(&b"/y"[..]));
        assert_eq!(cgroup_path(b"4:memory:/z\n"), None);
        assert_eq!(cgroup_path(b"0:\n"), None);
    }
}
