//! The search for the processes that hold sockets: a walk over the descriptors of all processes, in /proc/PID/fd.
//!
//! A user may have processes with millions of descriptors, so a tick reads a bounded number of them, and each user has a share:
//! nobody's descriptors keep the search from those of others. Where a tick has ended, the next one goes on.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use crate::kernel::process::{Handle, Processes};

/// The most descriptors that one tick reads, 1.5 µs each.
const PER_TICK: u32 = 150_000;
/// The most of them that are read of processes that are likely to be the holders.
const OF_LIKELY: u32 = 30_000;
/// The most that are read of threads other than the main ones.
const OF_THREADS: u32 = 20_000;
/// A share is not less than this, as long as there are any left.
const LEAST_SHARE: u32 = 2_000;

/// Which process holds which socket.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// In ascending order.
    inodes: Vec<u32>,
    /// In the same order.
    holders: Vec<Option<(u32, Handle)>>,
    left: usize,
    /// Whether the search has ended before all descriptors were read.
    cut_short: bool,
}

impl Holders {
    fn of_inodes(mut inodes: Vec<u32>) -> Self {
        inodes.sort_unstable();
        inodes.dedup();
        Self { holders: vec![None; inodes.len()], left: inodes.len(), inodes, cut_short: false }
    }

    /// Enters that `pid` holds a socket, if it is one that is sought and has no holder yet. Breaks when none is left.
    fn enter(&mut self, pid: u32, handle: Handle) -> ControlFlow<()> {
        if let Ok(at) = self.inodes.binary_search(&handle.inode)
            && let Some(holder @ None) = self.holders.get_mut(at)
        {
            *holder = Some((pid, handle));
            self.left -= 1;
        }
        if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    pub fn of(&self, inode: u32) -> Option<(u32, Handle)> {
        let at = self.inodes.binary_search(&inode).ok()?;
        *self.holders.get(at)?
    }

    /// Whether a socket without holder may have one that the search did not get to.
    pub fn is_cut_short(&self) -> bool {
        self.cut_short
    }
}

/// Where the search in the processes of each user has ended, if a tick could not read them all: a process, and its first
/// descriptor that was not read.
#[derive(Debug, Default)]
pub(super) struct HolderSearch {
    ended: HashMap<Option<u32>, (u32, u32)>,
    /// The place among the processes at which the search in threads goes on.
    threads_from: usize,
}

impl HolderSearch {
    /// The holders of the sockets with these inodes: among the `likely` ones and then the youngest first, so that a socket that
    /// several processes hold belongs to the youngest of them.
    pub fn holders(&mut self, inodes: Vec<u32>, likely: Vec<u32>, processes: &mut Processes) -> Holders {
        let mut holders = Holders::of_inodes(inodes);
        if holders.left == 0 {
            return holders;
        }
        let mut left = OF_LIKELY;
        for pid in likely {
            processes.each_socket(pid, &mut left, |handle| holders.enter(pid, handle));
        }
        if holders.left == 0 {
            return holders;
        }
        let mut left = PER_TICK;
        let users = self.users(processes);
        // A round in which each user has his share, and one for what that has left over.
        let share = (PER_TICK / u32::try_from(users.len()).unwrap_or(u32::MAX).max(1)).max(LEAST_SHARE);
        for share in [share, PER_TICK] {
            for (user, pids) in &users {
                let most = share.min(left);
                let mut unread = most;
                self.search_user(*user, pids, &mut unread, &mut holders, processes);
                left -= most - unread;
                if holders.left == 0 {
                    return holders;
                }
            }
            if self.ended.is_empty() {
                break;
            }
        }
        holders.cut_short = !self.ended.is_empty();
        if !holders.cut_short {
            self.search_threads(&mut holders, processes);
        }
        holders
    }

    /// Searches the threads that have descriptor tables of their own, or whose main thread has ended; each time others first.
    fn search_threads(&mut self, holders: &mut Holders, processes: &mut Processes) {
        let mut pids = processes.youngest_first();
        if pids.is_empty() {
            return;
        }
        let begin = self.threads_from % pids.len();
        pids.rotate_left(begin);
        let mut left = OF_THREADS;
        for (read, pid) in pids.into_iter().enumerate() {
            if left == 0 || holders.left == 0 {
                self.threads_from = begin + read;
                return;
            }
            processes.each_socket_of_threads(pid, &mut left, |thread, handle| {
                let _ = holders.enter(thread, handle);
            });
        }
        self.threads_from = 0;
    }

    /// The processes by user, the youngest first; those of the system before those of people.
    fn users(&mut self, processes: &Processes) -> BTreeMap<Option<u32>, Vec<u32>> {
        let mut users: BTreeMap<Option<u32>, Vec<u32>> = BTreeMap::new();
        for pid in processes.youngest_first() {
            users.entry(processes.user(pid)).or_default().push(pid);
        }
        self.ended.retain(|user, _| users.contains_key(user));
        users
    }

    /// Searches the processes of a user, from where the last search has ended.
    fn search_user(
        &mut self,
        user: Option<u32>,
        pids: &[u32],
        budget: &mut u32,
        holders: &mut Holders,
        processes: &mut Processes,
    ) {
        let (ended, mut first) = self.ended.remove(&user).unwrap_or_default();
        let begin = pids.iter().position(|pid| *pid == ended).unwrap_or_default();
        if pids.get(begin) != Some(&ended) {
            first = 0;
        }
        for &pid in pids[begin..].iter().chain(&pids[..begin]) {
            let unread = processes.each_socket_from(pid, first, budget, |handle| holders.enter(pid, handle));
            first = 0;
            if holders.left == 0 {
                return;
            }
            if *budget == 0 {
                self.ended.insert(user, (pid, unread));
                return;
            }
        }
    }
}
