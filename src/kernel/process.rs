//! Processes: the sockets that each one holds, its command line, its user and its cgroup.
//!
//! ```text
//! /proc/4711/fd/5 -> socket:[81234]
//! /proc/4711/cmdline: "curl\0-s\0http://example.com/\0"
//! /proc/4711/cgroup:  0::/system.slice/backup.service
//! ```
//! The kernel's side is fs/proc/fd.c and fs/proc/base.c; see also proc_pid_fd(5), proc_pid_cmdline(5) and cgroups(7).
//! We read these files ourselves: the procfs crate opens and stats each descriptor, where one readlinkat(2) is enough, and
//! takes no comm that is not UTF-8.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Whence, lseek};

use crate::kernel::command_line::{CommandLines, NotInTime, Reading};
use crate::kernel::is_shortage;
use crate::workload::cgroup::{Cgroup, host_root};

/// The most bytes of a file that are read, such as a command line; Linux before 4.2 showed no more of that.
const LONGEST_FILE: u64 = 32 * 1024;
/// The room for a file in most cases.
const USUAL_LENGTH: usize = 2048;
/// How long it takes to read a descriptor that the kernel has listed before: the unit of a budget. One that takes longer, since
/// the kernel lists it anew, counts as several.
const UNIT: Duration = Duration::from_nanos(1500);
/// How many times as much it costs to read when a process has started, and to open a directory.
const COST_OF_STAT: u32 = 4;
const COST_OF_DIRECTORY: u32 = 4;
/// After this many descriptors the clock is read.
const AT_A_TIME: u32 = 64;
/// Where descriptor 0 is in the directory of a process's descriptors: the position of the first after `.` and `..`
/// (fs/proc/fd.c, proc_readfd_common).
const FIRST_DESCRIPTOR: i64 = 2;
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
    /// Its cgroups; `None` if they cannot be read.
    pub cgroup: Option<Cgroup>,
    /// The path of its program, with ` (deleted)` behind it if the file is no longer there; `None` for a kernel thread, or if it
    /// cannot be read.
    pub executable: Option<Vec<u8>>,
}

/// A socket, and the descriptor by which a process holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    /// The inode of the socket in sockfs: unique on the host, and 32 bits wide (fs/inode.c, `get_next_ino`).
    pub inode: u32,
    /// The number of the descriptor.
    pub fd: u32,
}

/// That a process cannot be read now, whether it is there or not: for want of a descriptor or of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

/// The processes of a /proc.
#[derive(Debug)]
pub struct Processes {
    root: PathBuf,
    /// The cgroup in which the host itself is, as the paths of processes begin with it.
    host_root: Vec<u8>,
    some_unreadable: bool,
    out_of_descriptors: Cell<bool>,
    command_lines: ReadBy,
}

/// In which thread command lines are read.
#[derive(Debug)]
enum ReadBy {
    /// In that which asks, which somebody looks after.
    This(Reading),
    /// In another one, which may be lost.
    Other(Box<RefCell<CommandLines>>),
}

impl Processes {
    /// The processes of the /proc at `root`. No process can keep the caller waiting.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let command_lines = ReadBy::Other(Box::new(RefCell::new(CommandLines::new(&root))));
        Self::read_by(root, command_lines)
    }

    /// Like [`new`](Self::new), for a thread that may be lost: it waits for a process as long as that takes, and `reading` tells
    /// for which.
    pub(crate) fn read_by_this_thread(root: impl Into<PathBuf>, reading: Reading) -> Self {
        Self::read_by(root.into(), ReadBy::This(reading))
    }

    fn read_by(root: PathBuf, command_lines: ReadBy) -> Self {
        let init = std::fs::read(root.join("1/cgroup")).unwrap_or_default();
        let host_root = host_root(&init).to_vec();
        Self { root, host_root, some_unreadable: false, out_of_descriptors: Cell::new(false), command_lines }
    }

    /// Begins a tick, in which reading command lines takes a bounded time.
    pub fn begin_tick(&self) {
        if let ReadBy::Other(command_lines) = &self.command_lines {
            command_lines.borrow_mut().begin_tick();
        }
    }

    /// Reads the command lines of many processes at once, for those who read the processes next.
    pub fn read_ahead(&self, pids: Vec<u32>) {
        if let ReadBy::Other(command_lines) = &self.command_lines {
            command_lines.borrow_mut().read_ahead(pids, |pid| self.user(pid));
        }
    }

    /// The processes whose command lines could not be read in time, since the last call.
    pub fn take_given_up(&self) -> Vec<u32> {
        match &self.command_lines {
            ReadBy::This(_) => Vec::new(),
            ReadBy::Other(command_lines) => command_lines.borrow_mut().take_given_up(),
        }
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
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) => {
                self.note_want(errno(&error));
                return Vec::new();
            }
        };
        let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        let mut pids: Vec<u32> = entries.flatten().filter_map(number).collect();
        let newest = self.newest_pid().unwrap_or(u32::MAX);
        pids.sort_unstable_by_key(|&pid| std::cmp::Reverse((pid <= newest, pid)));
        pids
    }

    /// Calls `visit` with each socket that a thread of `pid` holds other than the main one, with the thread's id: threads may
    /// have descriptor tables of their own, and outlive the main thread. `budget` is counted in descriptors.
    pub fn each_socket_of_threads(&mut self, pid: u32, budget: &mut u32, mut visit: impl FnMut(u32, Handle)) {
        let mut work = Work::begin(COST_OF_DIRECTORY, budget);
        let threads: Vec<u32> = self.threads(pid).collect();
        work.charge_time(budget);
        for thread in threads {
            if *budget == 0 {
                return;
            }
            self.each_socket(thread, budget, |handle| {
                visit(thread, handle);
                ControlFlow::Continue(())
            });
        }
    }

    /// Calls `visit` with each socket that `pid` holds, until `visit` breaks or `budget` descriptors have been read. A
    /// process that is gone holds none.
    pub fn each_socket(&mut self, pid: u32, budget: &mut u32, visit: impl FnMut(Handle) -> ControlFlow<()>) {
        self.each_socket_from(pid, 0, budget, visit);
    }

    /// Like [`each_socket`](Self::each_socket), for the descriptors from `first` on, in ascending order. Returns the number of
    /// the descriptor at which the budget has ended; `None` if there are no others.
    pub fn each_socket_from(
        &mut self,
        pid: u32,
        first: u32,
        budget: &mut u32,
        mut visit: impl FnMut(Handle) -> ControlFlow<()>,
    ) -> Option<u32> {
        let mut work = Work::begin(COST_OF_DIRECTORY, budget);
        let path = self.descriptors(pid);
        let mut descriptors =
            match Dir::open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
                Ok(descriptors) => descriptors,
                Err(error) => {
                    self.some_unreadable |= matches!(error, Errno::EACCES | Errno::EPERM);
                    self.note_want(error);
                    return None;
                }
            };
        // A second descriptor for readlinkat(2), since iterating borrows the first.
        let directory = match descriptors.as_fd().try_clone_to_owned() {
            Ok(directory) => directory,
            Err(error) => {
                self.note_want(errno(&error));
                return None;
            }
        };
        if first > 0 {
            // To list those before would cost as much as to read them.
            let _ = lseek(&descriptors, FIRST_DESCRIPTOR + i64::from(first), Whence::SeekSet);
        }
        for entry in descriptors.iter().flatten() {
            let fd = number(entry.file_name());
            if *budget == 0 {
                return fd.or(Some(first));
            }
            work.charge(budget);
            if let Some(fd) = fd
                && let Some(inode) = socket_inode(&directory, entry.file_name())
                && visit(Handle { inode, fd }).is_break()
            {
                break;
            }
        }
        work.charge_time(budget);
        None
    }

    /// The effective user id of a process; `None` if there is none.
    pub fn user(&self, pid: u32) -> Option<u32> {
        // Unlike the files in it, the directory belongs to the effective user even if the process is not dumpable
        // (fs/proc/base.c, task_dump_owner).
        std::fs::metadata(self.root.join(pid.to_string())).ok().map(|metadata| metadata.uid())
    }

    /// Whether `pid` has this socket at this descriptor.
    pub fn holds(&self, pid: u32, handle: Handle) -> bool {
        let link = std::fs::read_link(self.descriptors(pid).join(handle.fd.to_string()));
        link.is_ok_and(|target| parse_socket_link(target.as_os_str().as_encoded_bytes()) == Some(handle.inode))
    }

    /// The same, for at least one descriptor of a `budget`.
    pub fn holds_within(&self, pid: u32, handle: Handle, budget: &mut u32) -> bool {
        let mut work = Work::begin(1, budget);
        let holds = self.holds(pid, handle);
        work.charge_time(budget);
        holds
    }

    /// Whether the process that started at `start_time` still runs under `pid` and has any socket open, or may have one that a
    /// search of `budget` descriptors did not get to.
    pub fn has_sockets(&mut self, pid: u32, start_time: u64, budget: &mut u32) -> bool {
        *budget = budget.saturating_sub(COST_OF_STAT);
        if *budget == 0 {
            return true;
        }
        match self.stat(pid) {
            Ok(stat) if stat.as_ref().map(|stat| stat.start_time) != Some(start_time) => return false,
            Ok(_) => {}
            Err(Unreadable) => return true,
        }
        let mut found = false;
        self.each_socket(pid, budget, |_| {
            found = true;
            ControlFlow::Break(())
        });
        found || *budget == 0
    }

    fn stat(&self, pid: u32) -> Result<Option<Stat>, Unreadable> {
        let Some(directory) = self.open(pid)? else { return Ok(None) };
        Ok(read_file(&directory, c"stat").map_err(|error| self.unreadable(error))?.and_then(|line| Stat::parse(&line)))
    }

    /// Takes note of an error for want of a descriptor or of memory, and returns whether it is one.
    fn note_want(&self, error: Errno) -> bool {
        let want = is_shortage(error);
        self.out_of_descriptors.set(self.out_of_descriptors.get() || want);
        want
    }

    fn unreadable(&self, want: Errno) -> Unreadable {
        self.note_want(want);
        Unreadable
    }

    /// Whether any process could not be read for want of a descriptor or of memory, since the last
    /// [`has_been_out_of_descriptors`](Self::has_been_out_of_descriptors).
    pub fn is_out_of_descriptors(&self) -> bool {
        self.out_of_descriptors.get()
    }

    /// The same, and forgets it.
    pub fn has_been_out_of_descriptors(&self) -> bool {
        self.out_of_descriptors.take()
    }

    /// The process that runs under `pid`; `None` if there is none, or this user may not read it.
    ///
    /// # Errors
    /// Where that cannot be found out now.
    pub fn read(&self, pid: u32) -> Result<Option<Process>, Unreadable> {
        // One walk to the directory, and none at all for each file of a process that has ended.
        let Some(directory) = self.open(pid)? else { return Ok(None) };
        // Unlike the files in it, the directory belongs to the effective user even if the process is not dumpable
        // (fs/proc/base.c, task_dump_owner).
        let uid = fstat(&directory).ok().map(|status| status.st_uid);
        // The command line first, since an exiting process loses it first.
        let mut command_line = match self.command_line(pid, uid, &directory) {
            Ok(Some(command_line)) => command_line,
            // If the main thread has ended, the others still have it.
            Ok(None) => {
                self.threads(pid).find_map(|thread| self.command_line_of_thread(thread, uid)).unwrap_or_default()
            }
            Err(NotInTime) => Vec::new(),
        };
        let read = |name| read_file(&directory, name).map_err(|error| self.unreadable(error));
        let cgroup = read(c"cgroup")?.and_then(|text| Cgroup::parse(&text, &self.host_root));
        let executable = readlinkat(&directory, c"exe").ok().map(OsStringExt::into_vec);
        let Some(stat) = read(c"stat")?.and_then(|line| Stat::parse(&line)) else { return Ok(None) };
        let nameless = command_line.is_empty();
        if nameless {
            command_line = [b"[", &*stat.comm, b"]"].concat();
        }
        command_line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        Ok(Some(Process { pid, start_time: stat.start_time, command_line, nameless, uid, cgroup, executable }))
    }

    /// The command line of the process in a directory; `None` if it has none.
    fn command_line(&self, pid: u32, uid: Option<u32>, directory: &OwnedFd) -> Result<Option<Vec<u8>>, NotInTime> {
        match &self.command_lines {
            ReadBy::This(reading) => reading.read(pid, |_| uid, || read_file(directory, c"cmdline").ok().flatten()),
            ReadBy::Other(command_lines) => command_lines.borrow_mut().get(pid, |id| self.user(id)),
        }
    }

    fn command_line_of_thread(&self, thread: u32, uid: Option<u32>) -> Option<Vec<u8>> {
        self.command_line(thread, uid, &self.open(thread).ok()??).ok()?
    }

    /// The directory of a process or thread, from which its files can be opened; `None` if there is none.
    fn open(&self, id: u32) -> Result<Option<OwnedFd>, Unreadable> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match open(&self.root.join(id.to_string()), flags, Mode::empty()) {
            Ok(directory) => Ok(Some(directory)),
            Err(error) if self.note_want(error) => Err(Unreadable),
            Err(_) => Ok(None),
        }
    }

    /// The other threads of a process, by their ids. The first ones only: this is for a few whose main thread has ended.
    pub(crate) fn threads(&self, pid: u32) -> impl Iterator<Item = u32> + use<> {
        let entries = std::fs::read_dir(self.root.join(pid.to_string()).join("task"));
        let entries = entries.inspect_err(|error| {
            self.note_want(errno(error));
        });
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

/// Work that is charged to a budget, by the piece, and by the time that it takes.
struct Work {
    begun: Instant,
    charged: u32,
}

impl Work {
    /// Begins, and charges the least that it costs.
    fn begin(cost: u32, budget: &mut u32) -> Self {
        *budget = budget.saturating_sub(cost);
        Self { begun: Instant::now(), charged: cost }
    }

    /// Charges a descriptor.
    fn charge(&mut self, budget: &mut u32) {
        *budget = budget.saturating_sub(1);
        self.charged += 1;
        if self.charged.is_multiple_of(AT_A_TIME) {
            self.charge_time(budget);
        }
    }

    /// Charges the time since the beginning, as far as it is more than what was charged.
    fn charge_time(&mut self, budget: &mut u32) {
        let worth = u32::try_from(self.begun.elapsed().as_nanos() / UNIT.as_nanos()).unwrap_or(u32::MAX);
        *budget = budget.saturating_sub(worth.saturating_sub(self.charged));
        self.charged = self.charged.max(worth);
    }
}

/// What we need of /proc/PID/stat (proc_pid_stat(5)).
///
/// ```text
/// 4711 (a name) with ) in it) S 1 4711 …                the 22nd field is the time of the start
/// ```
pub(crate) struct Stat {
    /// Any bytes but NUL: every process can set it (PR_SET_NAME).
    comm: Vec<u8>,
    /// In clock ticks since boot.
    start_time: u64,
}

impl Stat {
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let begin = line.iter().position(|&byte| byte == b'(')? + 1;
        let end = line.iter().rposition(|&byte| byte == b')')?;
        let comm = line.get(begin..end)?.to_vec();
        // The first field after the comm is the third.
        let start_time = line[end + 1..].split(|&byte| byte == b' ').filter(|field| !field.is_empty()).nth(22 - 3)?;
        Some(Self { comm, start_time: std::str::from_utf8(start_time).ok()?.parse().ok()? })
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// The content of a file of a process, as far as it matters; `None` if it is empty or cannot be read.
///
/// # Errors
/// EMFILE, ENFILE or ENOMEM: whether there is such a file cannot be found out now.
pub(super) fn read_file(directory: impl AsFd, name: &CStr) -> nix::Result<Option<Vec<u8>>> {
    let mut file = match openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(want) if is_shortage(want) => return Err(want),
        Err(_) => return Ok(None),
    };
    // These files give all that there is room for, so that usually one read(2) is enough.
    let mut content = [0; USUAL_LENGTH];
    let Ok(length) = file.read(&mut content) else { return Ok(None) };
    let mut content = content[..length].to_vec();
    if length == USUAL_LENGTH && file.take(LONGEST_FILE - USUAL_LENGTH as u64).read_to_end(&mut content).is_err() {
        return Ok(None);
    }
    Ok(Some(content).filter(|content| !content.is_empty()))
}

/// Lets this program have as many descriptors as it may: every network namespace and pipe takes some.
///
/// # Errors
/// Where the limit cannot be read or changed.
pub fn raise_descriptor_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

fn number(name: &CStr) -> Option<u32> {
    name.to_str().ok()?.parse().ok()
}

/// The inode of the socket that an entry of a descriptor directory links to.
fn socket_inode(directory: impl AsFd, name: &CStr) -> Option<u32> {
    parse_socket_link(readlinkat(directory, name).ok()?.as_encoded_bytes())
}

/// The inode in `socket:[81234]`.
pub(crate) fn parse_socket_link(target: &[u8]) -> Option<u32> {
    let digits = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comm_may_have_any_bytes() {
        let line = b"7 (a) b\xff (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 2400256 180 1\n";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((&stat.comm[..], stat.start_time), (&b"a) b\xff (c)"[..], 12345));
        assert!((0..line.len() - 20).all(|length| Stat::parse(&line[..length]).is_none()));
        assert!(Stat::parse(b") (").is_none());
    }
}
