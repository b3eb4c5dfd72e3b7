//! Whose end of a connection this is: from a tuple to a socket, from the socket to the process that holds it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use procfs::{FromBufReadSI, LocalSystemInfo};

use crate::flow::{Endpoint, Protocol, Tuple};
use crate::namespace::Namespaces;
use crate::process::Processes;
use crate::sock_diag::Socket;

/// From this many questions about TCP on, one reading of all sockets is cheaper than asking for each.
const BULK: usize = 1000;
/// Why bytes are nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Neither address is one of this host's, or no socket has the tuple: the packets are forwarded, or were for nobody.
    NoSocket,
    /// The kernel has a socket, but no process holds it: it was closed, or is the kernel's own.
    NoProcess,
    /// A socket's process is another user's, and this user may not see its descriptors.
    NotPermitted,
}

/// What to find an owner by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The tuple whose source the end is.
    Tuple(Tuple),
    /// The inode of its socket; 0 for a socket that has none.
    Inode(u64),
}

/// Who is at one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This process holds the socket.
    Held {
        /// Its process id.
        pid: u32,
        /// Whether the socket is this connection's own. A listener's, which answers while there is no other, may
        /// hand the connection on to another process.
        connected: bool,
    },
    /// The address is not on this host.
    Elsewhere,
    /// Nobody, for this reason.
    Nobody(Reason),
}

/// Finds owners.
#[derive(Debug)]
pub struct Owners {
    sockets: Sockets,
    processes: Processes,
    scanned: Option<Instant>,
}

/// The two ways to find a socket.
#[derive(Debug)]
enum Sockets {
    /// sock_diag, in every network namespace.
    Kernel(Namespaces),
    /// /proc/net/{tcp,tcp6,udp,udp6}, in the own one.
    Files,
}

impl Owners {
    /// Owners on this host: through sock_diag, or where that is refused through the tables in /proc/net.
    pub fn of_this_host() -> Self {
        let processes = Processes::new("/proc");
        let sockets = Namespaces::new(processes.root()).map_or(Sockets::Files, Sockets::Kernel);
        Self { sockets, processes, scanned: None }
    }

    /// Owners as the files below `proc_root` have them.
    pub fn from_files(proc_root: impl AsRef<Path>) -> Self {
        Self { sockets: Sockets::Files, processes: Processes::new(proc_root.as_ref()), scanned: None }
    }

    /// The processes, for questions about one.
    pub fn processes(&mut self) -> &mut Processes {
        &mut self.processes
    }

    /// The network namespaces, where sock_diag is there to ask them.
    pub fn namespaces(&mut self) -> Option<&mut Namespaces> {
        match &mut self.sockets {
            Sockets::Kernel(namespaces) => Some(namespaces),
            Sockets::Files => None,
        }
    }

    /// Has every network namespace tell of the TCP sockets that end in it.
    ///
    /// # Errors
    /// Where sock_diag is refused.
    pub fn subscribe_to_endings(&mut self) -> Result<()> {
        let namespaces = Namespaces::with_endings(self.processes.root())?;
        self.sockets = Sockets::Kernel(namespaces);
        Ok(())
    }

    /// Looks for network namespaces that came or went, unless it did so less than `interval` ago. Says whether it did.
    pub fn scan_namespaces(&mut self, now: Instant, interval: Duration) -> bool {
        let Sockets::Kernel(namespaces) = &mut self.sockets else { return false };
        if self.scanned.is_some_and(|at| now.saturating_duration_since(at) < interval) {
            return false;
        }
        self.scanned = Some(now);
        namespaces.scan(&self.processes);
        true
    }

    /// The answers to questions, in their order.
    pub fn answer(&mut self, questions: &[Question]) -> Vec<Answer> {
        let tuples: Vec<Tuple> = questions.iter().filter_map(Question::tuple).collect();
        let mut of_tuples = match &mut self.sockets {
            _ if tuples.is_empty() => Vec::new(),
            Sockets::Kernel(namespaces) => find_in_kernel(namespaces, &tuples),
            Sockets::Files => {
                let table = SocketTable::read(self.processes.root());
                tuples.iter().map(|tuple| table.find(tuple)).collect()
            }
        }
        .into_iter();
        let found: Vec<Found> = questions
            .iter()
            .map(|question| match question {
                Question::Tuple(_) => of_tuples.next().unwrap_or(Found::Nothing),
                Question::Inode(inode) => Found::Socket { inode: *inode, connected: true },
            })
            .collect();
        let mut wanted = found.iter().filter_map(Found::inode).collect();
        let holders = self.processes.holders(&mut wanted);
        let answer = |found| match found {
            Found::Elsewhere => Answer::Elsewhere,
            Found::Nothing => Answer::Nobody(Reason::NoSocket),
            Found::Socket { inode, connected } => match holders.get(&inode) {
                Some(&pid) => Answer::Held { pid, connected },
                None if inode != 0 && self.processes.some_unreadable() => Answer::Nobody(Reason::NotPermitted),
                None => Answer::Nobody(Reason::NoProcess),
            },
        };
        found.into_iter().map(answer).collect()
    }
}

impl Question {
    fn tuple(&self) -> Option<Tuple> {
        match self {
            Self::Tuple(tuple) => Some(*tuple),
            Self::Inode(_) => None,
        }
    }
}

/// What was found for a question.
#[derive(Debug, Clone, Copy)]
enum Found {
    Socket { inode: u64, connected: bool },
    Nothing,
    Elsewhere,
}

impl Found {
    fn socket(socket: &Socket) -> Self {
        Self::Socket { inode: socket.inode, connected: socket.is_connected() }
    }

    fn inode(&self) -> Option<u64> {
        match self {
            Self::Socket { inode, .. } if *inode != 0 => Some(*inode),
            _ => None,
        }
    }
}

fn find_in_kernel(namespaces: &mut Namespaces, tuples: &[Tuple]) -> Vec<Found> {
    namespaces.refresh();
    let mut all = HashMap::new();
    if tuples.iter().filter(|tuple| tuple.protocol == Protocol::Tcp).count() >= BULK {
        let wanted: HashSet<&Tuple> = tuples.iter().collect();
        for namespace in namespaces.iter_mut() {
            let id = namespace.id;
            // What this reading misses is asked for below, one by one.
            let _ = namespace.diag.dump(Protocol::Tcp, |socket| {
                let tuple = Tuple { protocol: Protocol::Tcp, source: socket.local, destination: socket.remote };
                if wanted.contains(&tuple) {
                    all.insert((id, tuple), socket);
                }
            });
        }
    }
    let find = |tuple: &Tuple| {
        let Some(namespace) = namespaces.of_address(tuple.source.address()) else { return Found::Elsewhere };
        if let Some(socket) = all.get(&(namespace.id, *tuple)) {
            return Found::socket(socket);
        }
        let mut ask = |remote| namespace.diag.find(tuple.protocol, tuple.source, remote).ok().flatten();
        let found = ask(tuple.destination);
        match found {
            // Closed already, and in TIME_WAIT or orphaned: it was accepted from whoever listens there.
            Some(socket) if socket.inode == 0 && tuple.protocol == Protocol::Tcp => {
                ask(Endpoint::new(tuple.destination.address(), 0)).or(found)
            }
            _ => found,
        }
        .map_or(Found::Nothing, |socket| Found::socket(&socket))
    };
    tuples.iter().map(find).collect()
}

/// The sockets of the tables in /proc/net, by their ends.
struct SocketTable {
    sockets: HashMap<(Protocol, Endpoint, Endpoint), u64>,
}

impl SocketTable {
    /// Reads all four. One that is missing or cannot be read holds no sockets.
    fn read(proc_root: &Path) -> Self {
        let mut sockets = HashMap::new();
        let net = proc_root.join("net");
        for name in ["tcp", "tcp6"] {
            let entries = read_table::<procfs::net::TcpNetEntries>(&net.join(name)).map_or(Vec::new(), |t| t.0);
            for entry in entries {
                let ends = (endpoint(entry.local_address), endpoint(entry.remote_address));
                sockets.insert((Protocol::Tcp, ends.0, ends.1), entry.inode);
            }
        }
        for name in ["udp", "udp6"] {
            let entries = read_table::<procfs::net::UdpNetEntries>(&net.join(name)).map_or(Vec::new(), |t| t.0);
            for entry in entries {
                let ends = (endpoint(entry.local_address), endpoint(entry.remote_address));
                sockets.insert((Protocol::Udp, ends.0, ends.1), entry.inode);
            }
        }
        Self { sockets }
    }

    /// The connected socket of a tuple, else for UDP the one that takes everything for its address or its port.
    fn find(&self, tuple: &Tuple) -> Found {
        let nobody = |address: std::net::IpAddr| Endpoint::new(address, 0);
        let any_v4 = std::net::Ipv4Addr::UNSPECIFIED.into();
        let any_v6 = std::net::Ipv6Addr::UNSPECIFIED.into();
        let port = tuple.source.port;
        let mut candidates = vec![(tuple.source, tuple.destination)];
        if tuple.protocol == Protocol::Udp {
            for local in [tuple.source, Endpoint::new(any_v4, port), Endpoint::new(any_v6, port)] {
                candidates.extend([(local, nobody(any_v4)), (local, nobody(any_v6))]);
            }
        }
        for (local, remote) in candidates {
            if let Some(&inode) = self.sockets.get(&(tuple.protocol, local, remote)) {
                return Found::Socket { inode, connected: remote.port != 0 };
            }
        }
        Found::Nothing
    }
}

fn read_table<T: FromBufReadSI>(path: &Path) -> Result<T> {
    let file = BufReader::new(File::open(path)?);
    Ok(T::from_buf_read(file, &LocalSystemInfo)?)
}

fn endpoint(address: std::net::SocketAddr) -> Endpoint {
    Endpoint::new(address.ip(), address.port())
}
