//! The search for the processes that hold sockets: a walk over the descriptors of all processes, in /proc/PID/fd.
//!
//! A user may have processes with millions of descriptors, so a tick reads a bounded number of them, and each user has a share:
//! nobody's descriptors keep the search from those of others. Where a tick has ended, the next one goes on, until it has been once
//! round: a socket that was sought all the way then has no holder in /proc. Where that takes several ticks, the search remembers what
//! it has read of sockets that are sought only later: otherwise each of these would wait until the walk comes to its holder again.

use std::collections::{BTreeMap, HashMap, HashSet};
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

/// The most sockets that are remembered: 5 MB.
const REMEMBERED: usize = 1 << 18;

/// Which process holds which socket.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// In ascending order.
    inodes: Vec<u32>,
    /// In the same order.
    holders: Vec<Option<(u32, Handle)>>,
    left: usize,
    /// Those that were sought among all descriptors and have no holder, in ascending order.
    without: Vec<u32>,
}

impl Holders {
    fn of_inodes(mut inodes: Vec<u32>) -> Self {
        inodes.sort_unstable();
        inodes.dedup();
        Self { holders: vec![None; inodes.len()], left: inodes.len(), inodes, without: Vec::new() }
    }

    /// Enters that `pid` holds a socket, if it is one that is sought and has no holder yet. Breaks when none is left.
    fn enter(&mut self, pid: u32, handle: Handle) -> ControlFlow<()> {
        self.enter_or(pid, handle, |_| {})
    }

    /// The same; calls `remember` with one that is not sought.
    fn enter_or(&mut self, pid: u32, handle: Handle, remember: impl FnOnce(Handle)) -> ControlFlow<()> {
        match self.inodes.binary_search(&handle.inode) {
            Ok(at) => {
                if let Some(holder @ None) = self.holders.get_mut(at) {
                    *holder = Some((pid, handle));
                    self.left -= 1;
                }
            }
            Err(_) => remember(handle),
        }
        if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Enters those of the `remembered` holders that still hold what is sought, as far as the budget goes.
    fn enter_remembered(&mut self, remembered: &mut Remembered, budget: &mut u32, processes: &Processes) {
        for (inode, holder) in self.inodes.iter().zip(&mut self.holders) {
            if *budget == 0 || remembered.is_empty() {
                return;
            }
            if holder.is_none()
                && let Some((pid, fd)) = remembered.remove(inode)
            {
                let handle = Handle { inode: *inode, fd };
                if processes.holds_within(pid, handle, budget) {
                    *holder = Some((pid, handle));
                    self.left -= 1;
                }
            }
        }
    }

    pub fn of(&self, inode: u32) -> Option<(u32, Handle)> {
        let at = self.inodes.binary_search(&inode).ok()?;
        *self.holders.get(at)?
    }

    /// Whether a socket has no holder; otherwise, it may have one that the search did not get to.
    pub fn has_none(&self, inode: u32) -> bool {
        self.without.binary_search(&inode).is_ok()
    }
}

/// The process that held a socket when the walk read it, and its descriptor, by inode.
type Remembered = HashMap<u32, (u32, u32)>;

/// How far the search has come, if one tick cannot read all descriptors.
#[derive(Debug, Default)]
pub(super) struct HolderSearch {
    /// The walks round the processes of each user.
    walks: HashMap<Option<u32>, Walk>,
    /// The sockets that each search since the walks began has sought and not found, in ascending order.
    sought: Vec<u32>,
    /// What the walks have read that was not sought; empty where one tick reads all.
    remembered: Remembered,
    /// The place among the processes at which the search in threads goes on.
    threads_from: usize,
}

/// A walk round the processes of a user, the youngest first.
#[derive(Debug, Default)]
struct Walk {
    /// Where it goes on: a process, and its first descriptor that was not read.
    next: (u32, u32),
    /// The processes whose descriptors were all read since it began.
    read: HashSet<u32>,
    /// The process within which it began, until the rest of its descriptors is read.
    began_in: Option<u32>,
    /// Whether it has been once round since the walks began.
    been_round: bool,
}

impl HolderSearch {
    /// The holders of the sockets with these inodes: among the `likely` ones and then the youngest first, so that a socket that
    /// several processes hold belongs to the youngest of them.
    pub fn holders(&mut self, inodes: Vec<u32>, likely: Vec<u32>, processes: &mut Processes) -> Holders {
        self.holders_within(PER_TICK, inodes, likely, processes)
    }

    /// Reads at most `budget` descriptors, beside those of the likely holders.
    fn holders_within(
        &mut self,
        budget: u32,
        inodes: Vec<u32>,
        likely: Vec<u32>,
        processes: &mut Processes,
    ) -> Holders {
        let mut holders = Holders::of_inodes(inodes);
        if holders.left == 0 {
            self.remembered = Remembered::new();
            return holders;
        }
        let mut left = OF_LIKELY;
        for pid in likely {
            processes.each_socket(pid, &mut left, |handle| holders.enter(pid, handle));
        }
        if holders.left == 0 {
            return holders;
        }
        // The walk gets the other half, whatever is remembered.
        let mut of_remembered = budget / 2;
        holders.enter_remembered(&mut self.remembered, &mut of_remembered, processes);
        if holders.left == 0 {
            return holders;
        }
        let mut left = budget - budget / 2 + of_remembered;
        self.sought.retain(|inode| holders.inodes.binary_search(inode).is_ok());
        let begins = self.sought.is_empty();
        if begins {
            self.sought.clone_from(&holders.inodes);
            self.walks.values_mut().for_each(Walk::begin);
        }
        let users = users(processes);
        self.walks.retain(|user, _| users.contains_key(user));
        // A round in which each user has his share, and one for what that has left over.
        let share = (budget / u32::try_from(users.len()).unwrap_or(u32::MAX).max(1)).max(LEAST_SHARE);
        let mut unfinished: Vec<_> = users.iter().collect();
        for share in [share, budget] {
            unfinished.retain(|(user, pids)| {
                let most = share.min(left);
                let mut unread = most;
                let walk = self.walks.entry(**user).or_default();
                let is_round = walk.go_on(pids, &mut unread, &mut holders, &mut self.remembered, processes);
                left -= most - unread;
                !is_round
            });
        }
        if begins && unfinished.is_empty() {
            self.remembered = Remembered::new();
        }
        self.sought.retain(|inode| holders.of(*inode).is_none());
        if holders.left == 0 {
            // The next search begins with the youngest.
            self.walks.clear();
        } else if users.keys().all(|user| self.walks.get(user).is_some_and(|walk| walk.been_round)) {
            holders.without = std::mem::take(&mut self.sought);
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
}

/// The processes by user, the youngest first; those of the system before those of people.
fn users(processes: &Processes) -> BTreeMap<Option<u32>, Vec<u32>> {
    let mut users: BTreeMap<Option<u32>, Vec<u32>> = BTreeMap::new();
    for pid in processes.youngest_first() {
        users.entry(processes.user(pid)).or_default().push(pid);
    }
    users
}

impl Walk {
    /// Begins a new one where this one is.
    fn begin(&mut self) {
        let (pid, first) = self.next;
        *self = Self { next: self.next, began_in: (first > 0).then_some(pid), ..Self::default() };
    }

    /// Searches the processes `pids` as far as the budget goes. Returns whether it has been once round, or has found everything.
    fn go_on(
        &mut self,
        pids: &[u32],
        budget: &mut u32,
        holders: &mut Holders,
        remembered: &mut Remembered,
        processes: &mut Processes,
    ) -> bool {
        // Few of those that have ended are remembered: another process may get the pid.
        if self.read.len() > 2 * pids.len() {
            let running: HashSet<u32> = pids.iter().copied().collect();
            self.read.retain(|pid| running.contains(pid));
        }
        let (pid, mut first) = self.next;
        let begin = pids.iter().position(|known| *known == pid).unwrap_or_else(|| {
            first = 0;
            0
        });
        // The first one again, in case that the walk began within it.
        for &pid in pids[begin..].iter().chain(&pids[..=begin]) {
            if holders.left == 0 {
                return true;
            }
            if self.read.contains(&pid) {
                continue;
            }
            if *budget == 0 {
                self.next = (pid, first);
                return false;
            }
            let mut remember = |Handle { inode, fd }| {
                // Most of it may be of sockets that are long closed.
                if remembered.len() >= REMEMBERED {
                    remembered.clear();
                }
                remembered.insert(inode, (pid, fd));
            };
            let visit = |handle| holders.enter_or(pid, handle, &mut remember);
            if let Some(unread) = processes.each_socket_from(pid, first, budget, visit) {
                self.next = (pid, unread);
                return false;
            }
            first = 0;
            if self.began_in.take() != Some(pid) {
                self.read.insert(pid);
            }
        }
        *self = Self { been_round: true, ..Self::default() };
        true
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command, Stdio};

    use tempfile::TempDir;

    use super::*;
    use crate::kernel::process::raise_descriptor_limit;

    /// Less than all descriptors of the processes here.
    const BUDGET: u32 = 20;
    /// A number of searches that ends a test, long after it should have ended.
    const MANY: u32 = 10_000;
    const NOBODYS: u32 = 1;

    /// A process that holds one socket.
    struct Holder {
        child: Child,
        socket: u32,
        /// It ends when this is closed.
        _other_end: UnixStream,
    }

    impl Holder {
        fn start() -> Self {
            let (theirs, other_end) = UnixStream::pair().unwrap();
            let stdin = Stdio::from(OwnedFd::from(theirs));
            let child = Command::new("cat").stdin(stdin).stdout(Stdio::null()).spawn().unwrap();
            let socket = inode(child.id(), 0);
            Self { child, socket, _other_end: other_end }
        }

        fn pid(&self) -> u32 {
            self.child.id()
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// The inode of a socket that a process holds.
    fn inode(pid: u32, fd: i32) -> u32 {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        let text = link.to_str().unwrap();
        text.strip_prefix("socket:[").and_then(|text| text.strip_suffix(']')).unwrap().parse().unwrap()
    }

    /// A part of /proc: descriptors can be read from any one on only there.
    struct Part(TempDir);

    impl Part {
        fn of(pids: impl IntoIterator<Item = u32>) -> Self {
            let part = Self(TempDir::new().unwrap());
            pids.into_iter().for_each(|pid| part.add(pid));
            part
        }

        fn add(&self, pid: u32) {
            symlink(format!("/proc/{pid}"), self.0.path().join(pid.to_string())).unwrap();
        }

        fn processes(&self) -> Processes {
            Processes::new(self.0.path())
        }
    }

    fn start(number: usize) -> Vec<Holder> {
        (0..number).map(|_| Holder::start()).collect()
    }

    /// Searches for a socket that nobody holds, and for another one, until it is known that nobody holds the first. Returns the
    /// holder of the other one, and calls `between` after each search.
    fn holder(
        search: &mut HolderSearch,
        processes: &mut Processes,
        other: u32,
        mut between: impl FnMut(u32),
    ) -> Option<u32> {
        let mut found = None;
        for searches in 1..MANY {
            let holders = search.holders_within(BUDGET, vec![NOBODYS, other], Vec::new(), processes);
            assert_eq!(holders.of(NOBODYS), None);
            found = found.or(holders.of(other).map(|(pid, _)| pid));
            if holders.has_none(NOBODYS) {
                assert!(searches > 1, "one search does not reach all");
                return found;
            }
            between(searches);
        }
        panic!("it is never known that nobody holds a socket");
    }

    #[test]
    fn after_one_round_a_socket_is_known_to_have_no_holder() {
        let holders = start(10);
        let part = Part::of(holders.iter().map(Holder::pid));
        let (mut search, mut processes) = (HolderSearch::default(), part.processes());
        for known in &holders {
            assert_eq!(holder(&mut search, &mut processes, known.socket, |_| {}), Some(known.pid()));
        }
        assert_eq!(holder(&mut search, &mut processes, 2, |_| {}), None);
    }

    #[test]
    fn a_process_with_more_descriptors_than_a_search_reads_is_read_to_its_end() {
        let holders = start(3);
        // It is a part of the round, wherever that begins.
        raise_descriptor_limit().unwrap();
        let files: Vec<File> = (0..300).map(|_| File::open("/dev/null").unwrap()).collect();
        let own = UnixStream::pair().unwrap();
        let own_socket = inode(std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&own.1));
        let part = Part::of(holders.iter().map(Holder::pid).chain([std::process::id()]));
        let (mut search, mut processes) = (HolderSearch::default(), part.processes());
        for _ in 0..3 {
            for (socket, pid) in [(own_socket, std::process::id()), (holders[0].socket, holders[0].pid())] {
                assert_eq!(holder(&mut search, &mut processes, socket, |_| {}), Some(pid));
                // The next round begins within a process.
                search.holders_within(BUDGET, vec![2], Vec::new(), &mut processes);
            }
        }
        drop(files);
    }

    #[test]
    fn a_process_that_appears_on_the_way_is_searched_too() {
        let (holders, late) = (start(10), Holder::start());
        let part = Part::of(holders.iter().map(Holder::pid));
        let (mut search, mut processes) = (HolderSearch::default(), part.processes());
        let appear = |searches| {
            if searches == 1 {
                part.add(late.pid());
            }
        };
        assert_eq!(holder(&mut search, &mut processes, late.socket, appear), Some(late.pid()));
    }

    #[test]
    fn a_walk_does_not_remember_processes_without_end() {
        let holders = start(3);
        let pids: Vec<u32> = holders.iter().map(Holder::pid).collect();
        let mut processes = Part::of(pids.iter().copied()).processes();
        let mut sought = Holders::of_inodes(vec![NOBODYS]);
        let mut walk = Walk { read: (u32::MAX - 100..u32::MAX).chain([pids[0]]).collect(), ..Walk::default() };
        assert!(!walk.go_on(&pids, &mut 0, &mut sought, &mut Remembered::new(), &mut processes));
        assert_eq!(walk.read, HashSet::from([pids[0]]));
    }

    #[test]
    fn a_socket_that_is_sought_later_waits_for_a_round_of_its_own() {
        let holders = start(10);
        let part = Part::of(holders.iter().map(Holder::pid));
        let (mut search, mut processes) = (HolderSearch::default(), part.processes());
        let mut seek = |inodes: &[u32]| search.holders_within(BUDGET, inodes.to_vec(), Vec::new(), &mut processes);
        assert!(!seek(&[NOBODYS]).has_none(NOBODYS));
        let known = (0..MANY).map(|_| seek(&[NOBODYS, 2])).find(|holders| holders.has_none(NOBODYS)).unwrap();
        assert!(!known.has_none(2));
        assert!((0..MANY).any(|_| seek(&[NOBODYS, 2]).has_none(2)));
    }

    #[test]
    fn what_is_sought_after_the_walk_has_read_it_is_found_at_once() {
        let holders = start(10);
        let part = Part::of(holders.iter().map(Holder::pid));
        let (mut search, mut processes) = (HolderSearch::default(), part.processes());
        let mut seek = |inode| search.holders_within(BUDGET, vec![NOBODYS, inode], Vec::new(), &mut processes);
        // Once round them all, with another socket to seek.
        assert!((0..MANY).any(|_| seek(2).has_none(NOBODYS)));
        for holder in &holders {
            assert_eq!(seek(holder.socket).of(holder.socket).map(|(pid, _)| pid), Some(holder.pid()));
        }
        // A holder that no longer has it is not believed.
        seek(2);
        assert!(search.remembered.insert(NOBODYS, (holders[0].pid(), 0)).is_none());
        let sought = vec![NOBODYS, holders[0].socket];
        assert_eq!(search.holders_within(BUDGET, sought, Vec::new(), &mut processes).of(NOBODYS), None);
    }

    #[test]
    fn sockets_that_change_in_each_search_do_not_keep_the_walk_where_it_is() {
        let holders = start(10);
        let part = Part::of(holders.iter().map(Holder::pid));
        for sought in &holders {
            let (mut search, mut processes) = (HolderSearch::default(), part.processes());
            let found = |_| {
                let changing = search.sought.first().copied().unwrap_or_default() % 1000 + 1;
                search
                    .holders_within(BUDGET, vec![changing, sought.socket], Vec::new(), &mut processes)
                    .of(sought.socket)
            };
            assert_eq!((0..MANY).find_map(found).map(|(pid, _)| pid), Some(sought.pid()));
        }
    }
}
