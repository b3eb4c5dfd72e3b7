//! Network namespaces: our own, and those of the host's containers (network_namespaces(7)).
//!
//! Each has its own sockets and addresses, so we query a socket in the namespace that has its address. The host's
//! connection tracking table also has the tuples of its containers, as far as the host routes for them.
//!
//! ```text
//! /proc/4711/ns/net -> net:[4026531840]
//! ```
//! Any user can make a namespace, in a user namespace of his own, and give it any address. What is at such an address is no
//! proof of anything, so these namespaces answer only queries that name a socket by its cookie.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::kernel::addresses;
use crate::kernel::inside;
use crate::kernel::process::Processes;
use crate::kernel::sock_diag::SockDiag;

/// How long one scan looks for namespaces and enters them, some 0.1 ms each. The next scan goes on.
const LONGEST_SCAN: Duration = Duration::from_millis(300);
/// The most namespaces of other users that are entered: each takes two or three descriptors.
const MOST_OF_OTHERS: usize = 256;
/// The most threads whose namespaces one scan reads, 2 µs each.
const MOST_THREADS: usize = 10_000;

/// How the sock_diag socket of a namespace is opened.
type OpenSockDiag = fn() -> nix::Result<SockDiag>;

/// A network namespace whose sockets we can query.
#[derive(Debug)]
pub struct Namespace {
    /// The inode of its file in nsfs, which is unique on the host; 0 for our own.
    pub id: u32,
    /// Queries its sockets. While this is open the kernel keeps the namespace, so drop it when the last process has
    /// left.
    pub diag: SockDiag,
    addresses: HashSet<IpAddr>,
    entrance: Entrance,
}

/// Where a namespace can be entered. While it is there, the namespace is in use.
#[derive(Debug, Clone)]
struct Entrance {
    /// Its file in nsfs: that of the oldest process or thread in it, or a mount.
    file: PathBuf,
    /// Whether all processes in it are in our own user namespace, or it is mounted: only someone with privileges over us can
    /// have made it, and its addresses are what they seem. One process of ours proves nothing: a program of root, such as this
    /// one, may have a thread in a namespace of others for a moment.
    trusted: bool,
}

impl Namespace {
    /// The namespace of the calling thread.
    fn here(id: u32, entrance: Entrance, open: OpenSockDiag) -> Result<Self> {
        let diag = open().context("cannot query the kernel's sockets (sock_diag)")?;
        Ok(Self { id, diag, addresses: addresses::here(), entrance })
    }

    /// # Errors
    /// Where it cannot be entered (setns(2) needs CAP_SYS_ADMIN) or is gone.
    fn enter(id: u32, entrance: Entrance, open: OpenSockDiag) -> Result<Self> {
        let file = entrance.file.clone();
        inside::run_in(&file, move || Self::here(id, entrance, open))
    }

    /// Whether packets to `address` end in the namespace, and this can be trusted.
    pub fn has_address(&self, address: IpAddr) -> bool {
        match address {
            // A namespace's own conntrack table tracks its loopback connections, and we read only our own table.
            IpAddr::V4(v4) if v4.is_loopback() => self.id == 0,
            IpAddr::V6(v6) if v6.is_loopback() => self.id == 0,
            _ => self.entrance.trusted && self.addresses.contains(&address),
        }
    }

    /// Whether nobody without privileges over us can have made it.
    pub fn is_trusted(&self) -> bool {
        self.entrance.trusted
    }

    /// Whether a socket with this local address may be in the namespace, trusted or not.
    pub fn may_have_sockets_at(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }
}

/// The network namespaces of this host's processes.
#[derive(Debug)]
pub struct Namespaces {
    /// Our own first, then those that are trusted.
    all: Vec<Namespace>,
    /// The inode of our own.
    own_inode: u32,
    /// The inodes of those found since the last scan began, including those that we could not enter.
    found: HashSet<u32>,
    /// The number of those that the last scan has left out.
    left_out: usize,
    /// The place among the processes at which the next scan begins: where the last one was out of time.
    begin_at: usize,
    open: OpenSockDiag,
}

impl Namespaces {
    /// Our own namespace; [`Namespaces::scan`] finds the others.
    ///
    /// # Errors
    /// Where the kernel refuses sock_diag.
    pub fn new(proc_root: &Path) -> Result<Self> {
        Self::opened_by(proc_root, SockDiag::open)
    }

    /// Like [`new`](Self::new), but the [`Namespace::diag`] of each namespace also receives the TCP sockets that the
    /// kernel [destroys](SockDiag::destroyed).
    ///
    /// # Errors
    /// Where the kernel refuses sock_diag.
    pub fn with_destroy_events(proc_root: &Path) -> Result<Self> {
        Self::opened_by(proc_root, SockDiag::with_destroy_events)
    }

    fn opened_by(proc_root: &Path, open: OpenSockDiag) -> Result<Self> {
        let file = proc_root.join("self/ns/net");
        let own_inode = inode(&file).unwrap_or_default();
        let all = vec![Namespace::here(0, Entrance { file, trusted: true }, open)?];
        Ok(Self { all, own_inode, found: HashSet::from([own_inode]), left_out: 0, begin_at: 0, open })
    }

    /// All of them, our own first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Namespace> {
        self.all.iter_mut()
    }

    /// The number of those other than our own.
    pub fn others(&self) -> usize {
        self.all.len() - 1
    }

    /// The one at this place; our own is at 0.
    pub fn get_mut(&mut self, at: usize) -> Option<&mut Namespace> {
        self.all.get_mut(at)
    }

    /// The namespaces that have `address`: our own alone if it has it, since nothing else gets packets that come to it.
    pub fn with_address(&mut self, address: IpAddr) -> impl Iterator<Item = &mut Namespace> {
        let most = if self.all[0].has_address(address) { 1 } else { usize::MAX };
        self.all.iter_mut().filter(move |namespace| namespace.has_address(address)).take(most)
    }

    /// The number of namespaces that the last scan has left out, since there are too many.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The addresses of all of them, each with the [`Namespace::id`].
    pub fn addresses(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        self.all.iter().flat_map(|namespace| namespace.addresses.iter().map(|&address| (namespace.id, address)))
    }

    /// Reads the addresses of our own namespace again.
    pub fn refresh(&mut self) {
        self.all[0].addresses = addresses::here();
    }

    /// Looks up the namespaces of all processes and their threads, and those that are mounted. Enters each of them, to find new
    /// ones and the current addresses of known ones, as long as the time of a scan lasts, and drops those that nobody is in.
    /// Leaves out new ones that cannot be entered.
    pub fn scan(&mut self, processes: &Processes) {
        let deadline = Instant::now() + LONGEST_SCAN;
        let (entrances, complete) = self.entrances(processes, deadline);
        let mut known: HashMap<u32, Namespace> =
            self.all.split_off(1).into_iter().map(|namespace| (namespace.id, namespace)).collect();
        self.found = HashSet::from([self.own_inode]);
        self.left_out = 0;
        let mut of_others = 0;
        for (id, entrance) in entrances {
            if !self.found.insert(id) {
                continue;
            }
            let before = known.remove(&id);
            of_others += usize::from(!entrance.trusted);
            if Instant::now() >= deadline || (!entrance.trusted && of_others > MOST_OF_OTHERS) {
                if before.is_none() {
                    // The next scan finds it again.
                    self.found.remove(&id);
                    self.left_out += 1;
                }
                self.all.extend(before.map(|before| Namespace { entrance, ..before }));
                continue;
            }
            self.all.extend(match (Namespace::enter(id, entrance, self.open), before) {
                // Keeps its sock_diag socket, which may hold events to be read.
                (Ok(Namespace { addresses, entrance, .. }), Some(before)) => {
                    Some(Namespace { addresses, entrance, ..before })
                }
                (Ok(entered), None) => Some(entered),
                // For want of a descriptor, or since the process has just ended.
                (Err(_), before) => before,
            });
        }
        if !complete {
            self.found.extend(known.keys());
            self.all.extend(known.into_values());
        }
    }

    /// The namespaces of the host by their inodes, those that are trusted first: of processes, of threads that are not in that
    /// of their process, and mounted ones (`ip netns`). Each comes once. Also returns whether these are all.
    fn entrances(&mut self, processes: &Processes, deadline: Instant) -> (Vec<(u32, Entrance)>, bool) {
        let root = processes.root();
        let ours = own_user_namespace(root);
        let mut pids = processes.youngest_first();
        let looked_at = pids.len();
        if looked_at > 0 {
            pids.rotate_left(self.begin_at % looked_at);
        }
        let mut entrances: HashMap<u32, Entrance> = HashMap::new();
        let mut threads = MOST_THREADS;
        // Without an entry not even of this process, /proc could not be read, and what was known holds on.
        let mut complete = !pids.is_empty();
        for (at, pid) in pids.into_iter().enumerate() {
            if Instant::now() >= deadline {
                (self.begin_at, complete) = (self.begin_at + at, false);
                break;
            }
            let Some(id) = inode(&link(root, pid)) else { continue };
            let is_ours = user_namespace(root, pid) == ours;
            let trusted = is_ours && entrances.get(&id).is_none_or(|known| known.trusted);
            // The last one that is found is the oldest.
            entrances.insert(id, Entrance { file: link(root, pid), trusted });
            for thread in processes.threads(pid).take(threads) {
                threads -= 1;
                let file = root.join(pid.to_string()).join("task").join(thread.to_string()).join("ns/net");
                if let Some(its) = inode(&file)
                    && its != id
                {
                    let known = entrances.entry(its).or_insert(Entrance { file, trusted: is_ours });
                    known.trusted &= is_ours;
                }
            }
        }
        if complete {
            self.begin_at = 0;
            entrances.extend(mounted(root).into_iter().map(|(id, file)| (id, Entrance { file, trusted: true })));
        }
        let mut sorted: Vec<_> = entrances.into_iter().collect();
        sorted.sort_unstable_by_key(|(id, entrance)| (!entrance.trusted, *id));
        (sorted, complete)
    }

    /// Adds the namespace of process `pid`, unless it was found before. Returns whether it has added one.
    pub fn enter(&mut self, processes: &Processes, pid: u32) -> bool {
        let file = link(processes.root(), pid);
        let Some(id) = inode(&file).filter(|id| self.found.insert(*id)) else { return false };
        let trusted = user_namespace(processes.root(), pid) == own_user_namespace(processes.root());
        if !trusted && self.all.len() > MOST_OF_OTHERS {
            return false;
        }
        let entered = Namespace::enter(id, Entrance { file, trusted }, self.open);
        entered.map(|entered| self.all.push(entered)).is_ok()
    }

    /// Whether a namespace other than our own may have lost its last process.
    pub fn may_have_ended(&self) -> bool {
        self.all[1..].iter().any(|namespace| inode(&namespace.entrance.file) != Some(namespace.id))
    }

    /// The [`Namespace::id`] of the namespace of process `pid`.
    pub fn id_of(&self, processes: &Processes, pid: u32) -> Option<u32> {
        let id = inode(&link(processes.root(), pid))?;
        Some(if id == self.own_inode { 0 } else { id })
    }

    /// Whether process `pid` is in a namespace that was not found before.
    pub fn is_new(&self, processes: &Processes, pid: u32) -> bool {
        inode(&link(processes.root(), pid)).is_some_and(|id| !self.found.contains(&id))
    }
}

/// The network namespaces that are mounted where this process can see them, as `ip netns` does it (proc_pid_mountinfo(5)).
///
/// ```text
/// 503 27 0:4 net:[4026532281] /run/netns/blue rw shared:270 - nsfs nsfs rw
/// ```
fn mounted(proc_root: &Path) -> HashMap<u32, PathBuf> {
    let text = std::fs::read_to_string(proc_root.join("self/mountinfo")).unwrap_or_default();
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        let id = parse_link(fields.next()?)?;
        // A path with a blank is written with an escape, and then is not found.
        Some((id, PathBuf::from(fields.next()?)))
    };
    text.lines().filter_map(mount).collect()
}

/// The link to the network namespace of process `pid`.
fn link(proc_root: &Path, pid: u32) -> PathBuf {
    proc_root.join(pid.to_string()).join("ns/net")
}

/// The inode of the network namespace at `file`: a link of a process, or a mount. `None` where it cannot be read.
fn inode(file: &Path) -> Option<u32> {
    match std::fs::read_link(file) {
        Ok(target) => parse_link(target.to_str()?),
        Err(_) => u32::try_from(std::fs::metadata(file).ok()?.ino()).ok(),
    }
}

/// The user namespace of process `pid`, as the target of its link; `None` where it cannot be read.
fn user_namespace(proc_root: &Path, pid: u32) -> Option<PathBuf> {
    std::fs::read_link(proc_root.join(pid.to_string()).join("ns/user")).ok()
}

/// The user namespace of this process.
fn own_user_namespace(proc_root: &Path) -> Option<PathBuf> {
    std::fs::read_link(proc_root.join("self/ns/user")).ok()
}

/// The inode in `net:[4026531840]`.
fn parse_link(target: &str) -> Option<u32> {
    target.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inode_stands_in_the_link_of_a_network_namespace() {
        assert_eq!(parse_link("net:[4026531840]"), Some(4_026_531_840));
        assert_eq!(parse_link("pid:[4026531836]"), None);
        assert_eq!(parse_link("net:[4026531840"), None);
    }

    #[test]
    fn a_namespace_is_dropped_only_when_no_process_is_in_it() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: u32, namespace: &str| {
            let directory = proc.path().join(pid.to_string()).join("ns");
            std::fs::create_dir_all(&directory).unwrap();
            std::os::unix::fs::symlink(namespace, directory.join("net")).unwrap();
        };
        let mut namespaces = Namespaces::new(Path::new("/proc")).unwrap();
        let entrance = Entrance { file: PathBuf::new(), trusted: false };
        namespaces.all.push(Namespace::here(123, entrance, SockDiag::open).unwrap());
        let known = |namespaces: &Namespaces| namespaces.all.iter().any(|namespace| namespace.id == 123);
        // It cannot be entered now, as without a free descriptor.
        process(7, "net:[123]");
        namespaces.scan(&Processes::new(proc.path()));
        assert!(known(&namespaces));
        // /proc cannot be read.
        namespaces.scan(&Processes::new(proc.path().join("missing")));
        assert!(known(&namespaces));
        std::fs::remove_dir_all(proc.path().join("7")).unwrap();
        process(8, "net:[124]");
        namespaces.scan(&Processes::new(proc.path()));
        assert!(!known(&namespaces));
    }
}
