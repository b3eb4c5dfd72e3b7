//! Command lines of processes, whatever those do to keep us from reading them (proc_pid_cmdline(5)).
//!
//! The command line is in the memory of the process, so reading it waits until the page is there, and the process decides how
//! long that takes: its page may be in a file system in user space (FUSE) that never answers. Such a wait is not interruptible. So
//! a thread of its own reads, which may be lost; what has no command line in time is known by its comm alone.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::gettid;

use crate::privileges::{Duty, keep_for};

/// The most bytes of a command line that are read; Linux before 4.2 showed no more.
const LONGEST: u64 = 32 * 1024;
/// How long one read may take before its thread counts as lost: usually it takes 10 µs.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);
/// How long all reads of a tick may take together.
const PER_TICK: Duration = Duration::from_millis(200);
/// The most threads that may be lost at a time, and those that the processes of one user other than root may hold.
const MOST_LOST: usize = 32;
const MOST_LOST_TO_USER: usize = 4;
/// From this time on, a read is slow. The slow reads of one user's processes may take this long in a tick.
const SLOW: Duration = Duration::from_millis(5);
const PER_USER: Duration = Duration::from_millis(50);
/// The most command lines that are read between two answers to the waiting thread.
const BATCH: usize = 32;

/// The command line of a process or thread, its arguments each with a NUL; `None` if it has none or cannot be read.
pub(super) fn read(proc_root: &Path, id: u32) -> Option<Vec<u8>> {
    let file = File::open(proc_root.join(id.to_string()).join("cmdline")).ok()?;
    let mut command_line = Vec::with_capacity(256);
    file.take(LONGEST).read_to_end(&mut command_line).ok()?;
    Some(command_line).filter(|command_line| !command_line.is_empty())
}

/// That a command line cannot be read now: its process keeps others of our threads waiting, or the time of the tick is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotInTime;

/// The processes whose command lines hold a thread of ours at present, with their users.
static HOLDING: Mutex<BTreeMap<u32, Option<u32>>> = Mutex::new(BTreeMap::new());

fn holding() -> MutexGuard<'static, BTreeMap<u32, Option<u32>>> {
    // The map is valid even if another thread panicked while it held the lock.
    HOLDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Enters that reading the command line of process `pid` of this user does not end.
pub(crate) fn give_up(pid: u32, user: Option<u32>) {
    holding().insert(pid, user);
}

/// Whether the command line of process `pid` may be read now. `user` returns the user of a process.
fn is_permitted(pid: u32, user: impl FnOnce(u32) -> Option<u32>) -> bool {
    let holding = holding();
    if holding.is_empty() {
        return true;
    }
    let user = user(pid);
    let of_user = holding.values().filter(|holding| **holding == user).count();
    !holding.contains_key(&pid) && (user == Some(0) || (of_user < MOST_LOST_TO_USER && holding.len() < MOST_LOST))
}

/// What a thread reads at present, for those who wait for it or look after it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    /// The process id in the lower half, or 0; the number of the read in the upper half.
    now: Arc<AtomicU64>,
    /// The thread that reads.
    thread: Arc<AtomicI32>,
}

impl Reading {
    /// The process whose command line the thread reads at present, and the number of that read.
    pub fn now(&self) -> Option<(u32, u32)> {
        let now = self.now.load(Ordering::Relaxed);
        let (read, pid) = ((now >> 32) as u32, now as u32);
        (pid != 0).then_some((pid, read))
    }

    /// Whether the thread waits, rather than for its turn on a CPU.
    pub fn is_waiting(&self) -> bool {
        let thread = self.thread.load(Ordering::Relaxed);
        let line = std::fs::read(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
        // The state follows the comm, which is ours.
        let after_comm = line.iter().rposition(|&byte| byte == b')').and_then(|end| line.get(end + 2));
        after_comm != Some(&b'R')
    }

    /// Calls `read`, which reads the command line of process `id` in this thread, for as long as that takes.
    ///
    /// # Errors
    /// Where the command line of this process may not be read now.
    pub fn read(
        &self,
        id: u32,
        user: impl FnOnce(u32) -> Option<u32>,
        read: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, NotInTime> {
        if !is_permitted(id, user) {
            return Err(NotInTime);
        }
        let next = (self.now.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        self.thread.store(gettid().as_raw(), Ordering::Relaxed);
        self.now.store(next | u64::from(id), Ordering::Relaxed);
        let command_line = read();
        self.now.store(next, Ordering::Relaxed);
        // If this thread was given up meanwhile, the process may be read again.
        holding().remove(&id);
        Ok(command_line)
    }
}

/// A command line that another thread has read, and how long that took.
type Answer = (u32, Option<Vec<u8>>, Duration);

/// Reads command lines in another thread, and waits for it for a bounded time.
#[derive(Debug)]
pub(crate) struct CommandLines {
    proc_root: PathBuf,
    reader: Option<Reader>,
    /// What was read in advance.
    read: HashMap<u32, Option<Vec<u8>>>,
    /// How long the reads of this tick may still take.
    left: Duration,
    /// How long the slow reads of a user's processes took, in this tick and in the last one.
    slow: HashMap<Option<u32>, Duration>,
    slow_before: HashMap<Option<u32>, Duration>,
    /// The processes whose command lines took too long.
    given_up: Vec<u32>,
}

/// The other thread.
#[derive(Debug)]
struct Reader {
    requests: Sender<Vec<u32>>,
    answers: Receiver<Vec<Answer>>,
    reading: Reading,
}

impl CommandLines {
    /// Those of the processes of the /proc at `proc_root`.
    pub fn new(proc_root: &Path) -> Self {
        Self {
            proc_root: proc_root.to_owned(),
            reader: None,
            read: HashMap::new(),
            left: PER_TICK,
            slow: HashMap::new(),
            slow_before: HashMap::new(),
            given_up: Vec::new(),
        }
    }

    /// Forgets what was read in advance, and renews the time.
    pub fn begin_tick(&mut self) {
        self.read.clear();
        self.left = PER_TICK;
        self.slow_before = std::mem::take(&mut self.slow);
    }

    /// Reads the command lines of many processes at once, which costs less than one by one. `user` returns the user of a process.
    pub fn read_ahead(&mut self, mut pids: Vec<u32>, user: impl Fn(u32) -> Option<u32>) {
        if !self.slow_before.is_empty() {
            // The users whose processes were slow in the last tick come last.
            pids.sort_by_cached_key(|&pid| self.slow_before.contains_key(&user(pid)));
        }
        while !self.left.is_zero() {
            pids.retain(|&pid| {
                let in_time = self.slow.is_empty() || self.slow.get(&user(pid)).is_none_or(|took| *took < PER_USER);
                in_time && is_permitted(pid, &user)
            });
            if pids.is_empty() {
                return;
            }
            let begun = Instant::now();
            let Some(reader) = self.reader.take().or_else(|| self.start()) else { return };
            pids = self.request(reader, pids, &user);
            self.left = self.left.saturating_sub(begun.elapsed());
        }
    }

    /// Has the thread read command lines, until one takes too long. Returns the processes that are left.
    fn request(&mut self, reader: Reader, pids: Vec<u32>, user: &impl Fn(u32) -> Option<u32>) -> Vec<u32> {
        let mut left = pids.clone();
        if reader.requests.send(pids).is_err() {
            return left;
        }
        // On a busy host the thread may be waiting for a CPU.
        let mut patience = 20;
        while !left.is_empty() {
            match reader.answers.recv_timeout(PATIENCE) {
                Ok(answers) => {
                    left.drain(..answers.len().min(left.len()));
                    for (pid, command_line, took) in answers {
                        if took >= SLOW {
                            *self.slow.entry(user(pid)).or_default() += took;
                        }
                        self.read.insert(pid, command_line);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return left,
                Err(RecvTimeoutError::Timeout) if !reader.reading.is_waiting() && patience > 0 => patience -= 1,
                Err(RecvTimeoutError::Timeout) => {
                    // The thread is left to itself, and ends when this read does.
                    if let Some((pid, _)) = reader.reading.now() {
                        give_up(pid, user(pid));
                        *self.slow.entry(user(pid)).or_default() += PATIENCE;
                        self.given_up.push(pid);
                    }
                    return left;
                }
            }
        }
        self.reader = Some(reader);
        left
    }

    /// The command line of a process or thread; `None` if it has none.
    ///
    /// # Errors
    /// Where it cannot be read in time.
    pub fn get(&mut self, id: u32, user: impl Fn(u32) -> Option<u32>) -> Result<Option<Vec<u8>>, NotInTime> {
        if !self.read.contains_key(&id) {
            self.read_ahead(vec![id], user);
        }
        self.read.remove(&id).ok_or(NotInTime)
    }

    /// The processes that were given up since the last call.
    pub fn take_given_up(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.given_up)
    }

    fn start(&self) -> Option<Reader> {
        let (requests, to_read) = channel::<Vec<u32>>();
        let (answer, answers) = channel();
        let reading = Reading::default();
        let (theirs, proc_root) = (reading.clone(), self.proc_root.clone());
        let read_all = move || {
            keep_for(Duty::ReadingCommandLines);
            // Until the other side has dropped its ends.
            for pids in to_read {
                let (mut batch, mut begun) = (Vec::new(), Instant::now());
                for (number, &pid) in (1..).zip(&pids) {
                    let started = Instant::now();
                    let command_line = theirs.read(pid, |_| Some(0), || read(&proc_root, pid)).unwrap_or_default();
                    batch.push((pid, command_line, started.elapsed()));
                    if number == pids.len() || batch.len() == BATCH || begun.elapsed() >= SLOW {
                        if answer.send(std::mem::take(&mut batch)).is_err() {
                            return;
                        }
                        begun = Instant::now();
                    }
                }
            }
        };
        std::thread::Builder::new().name("command lines".into()).spawn(read_all).ok()?;
        Some(Reader { requests, answers, reading })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    /// A /proc in which the command line of 7 is a named pipe, which answers when somebody writes to it.
    #[test]
    fn a_command_line_that_does_not_come_keeps_nobody_waiting() {
        let proc = tempfile::tempdir().unwrap();
        for pid in ["5", "7", "8", "9"] {
            std::fs::create_dir(proc.path().join(pid)).unwrap();
            if pid != "7" {
                std::fs::write(proc.path().join(pid).join("cmdline"), format!("program{pid}")).unwrap();
            }
        }
        let fifo = proc.path().join("7/cmdline");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let user = |pid| Some(if pid == 5 { 1000 } else { 1001 });
        let mut command_lines = CommandLines::new(proc.path());
        command_lines.read_ahead(vec![5, 7, 8, 9], user);
        let mut get = |pid| command_lines.get(pid, user);
        assert_eq!(get(5), Ok(Some(b"program5".to_vec())));
        assert_eq!(get(7), Err(NotInTime));
        // The others of its user wait until the next tick.
        assert_eq!([get(8), get(9)], [Err(NotInTime), Err(NotInTime)]);
        command_lines.begin_tick();
        assert_eq!(command_lines.get(9, user), Ok(Some(b"program9".to_vec())));
        assert_eq!(command_lines.get(7, user), Err(NotInTime));
        assert_eq!(command_lines.take_given_up(), [7]);
        // The read ends: from then on the process is as any other.
        drop(File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&fifo).unwrap());
        while holding().contains_key(&7) {
            std::thread::yield_now();
        }
        std::fs::remove_file(&fifo).unwrap();
        std::fs::write(&fifo, "program7").unwrap();
        command_lines.begin_tick();
        assert_eq!(command_lines.get(7, user), Ok(Some(b"program7".to_vec())));
    }

    #[test]
    fn a_user_who_holds_some_threads_gets_no_more() {
        for pid in 4_000_001..=4_000_004 {
            give_up(pid, Some(4_000_000));
        }
        assert!(!is_permitted(4_000_009, |_| Some(4_000_000)));
        assert!(is_permitted(4_000_009, |_| Some(4_000_001)));
        assert!(is_permitted(4_000_009, |_| Some(0)));
        assert!(!is_permitted(4_000_001, |_| Some(0)));
        (4_000_001..=4_000_004).for_each(|pid| {
            holding().remove(&pid);
        });
    }
}
