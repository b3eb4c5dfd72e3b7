//! Bytes per socket: every IP packet that any socket of the host sends or receives, in all network namespaces.
//!
//! ```text
//!                                                         ┌── a map of sockets ──▶ read once a tick
//! packet ──▶ ingress, egress ──┬── index: which of two ──┤
//!                              │                         └── a map of sockets     written meanwhile
//! socket(2), connect(2) ──▶ makers: cookie → process
//! close(2) ──▶ closers: cookie → process ─────────────────────────────────────────▶ read once a tick
//! ```
//! Two programs of the type cgroup_skb, attached to the root of the cgroup2 hierarchy, add the length of each packet to
//! the entry of its socket. The key is the socket's cookie, by which sock_diag(7) knows it and which the kernel never uses
//! again, and whether the packet passed the loopback interface. The first packet of a socket in a tick makes the entry,
//! with the socket's addresses: not the packet's, which may be translated. A packet of GSO or GRO stands for several on the
//! wire, so the headers of the further ones are added.
//!
//! Three programs more say whose the socket is: at socket(2) and connect(2) they record the process in a map of makers, from
//! which the entry takes it; at the last close(2) they record the process in a map of closers, whether the socket has moved
//! anything or not. A socket that accept(2) made has no maker. Any user can close sockets faster than anyone reads: such a
//! flood takes the room of closers alone, and the bytes are counted all the same.
//!
//! The programs write to one of two maps. [`PacketCounters::read`] turns them to the other one and reads the first. A
//! program that was interrupted between finding an entry and adding to it may still add to the map that was read, so its
//! entries stay until the next read, which takes what was added late, and removes them. Nothing is lost, and nobody waits.
//!
//! A socket without a peer (a UDP server, a raw socket) exchanges packets with many remote ends. Only where these are wanted, the
//! programs also add the packet to an entry of its remote end, in two more maps that are read in the same way. There it is what the
//! packet says: where addresses are translated, that of the wire. The maps have bounded room, which one socket cannot take from
//! the others; what finds none is still in the entry of its socket.
//!
//! A connection in TIME_WAIT has no socket any more, but still a cookie: another program adds its segments to two maps of their
//! own, so that a flood of them takes no room from sockets.
//!
//! Not seen: packets without a socket (forwarded, dropped by a firewall before the socket, sent to a closed port, and the
//! answers to these), and those of AF_PACKET and AF_XDP. A multicast packet counts once for each socket that receives it.
//!
//! The programs are in `packet_programs` and `time_wait`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::instruction::Instruction;
use super::packet_programs::{
    FEW_OF_SHARE, Fds, REMOTE_VALUE_SIZE, SOCKETS, closer, count, key, maker, record_closer, record_maker, remote_key,
    skb, value,
};
use super::room::{Limits, Room};
use super::time_wait::{self, Layout};
use super::{
    AttachType, Map, MapType, ProgramType, attach_to_cgroup_root, in_initial_pid_namespace, load, test_run, u32_at,
    u64_at,
};
use crate::kernel::flow::{Endpoint, Protocol, Tuple};

/// Connections in TIME_WAIT that may move bytes between two reads; 3 MB in the kernel for each of the two maps.
const IN_TIME_WAIT: u32 = 16_384;
/// Remote ends of sockets without a peer that may exchange bytes between two reads; 7 MB in the kernel for each of the two maps.
const REMOTES: u32 = 65_536;
/// Makers that are remembered until the first packet of their sockets, the most recent ones.
const MAKERS: u32 = 65_536;
/// Sockets that may be closed between two reads with the process that did it being recorded.
const CLOSERS: u32 = 65_536;

/// The states in which a TCP socket may be closed before the other side has closed it: TCP_ESTABLISHED, TCP_FIN_WAIT1,
/// TCP_FIN_WAIT2, TCP_CLOSING; and TCP_CLOSE, since a socket that was shut down has this one in TIME_WAIT.
const LINGERING: [u32; 5] = [1, 4, 5, 11, 7];

/// Up to this number, entries are removed one by one, 1 µs each: removing all at once walks all buckets of the map.
const FEW: usize = 1000;

/// What a socket has moved since the read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketBytes {
    /// The socket's cookie.
    pub cookie: u64,
    /// Whether the packets passed the loopback interface: traffic of this host with itself.
    pub loopback: bool,
    /// The socket's own end and the other one; both unspecified where it is not connected or bound, and `None` where
    /// nothing but its end is known.
    pub tuple: Option<Tuple>,
    /// Bytes of IP packets, headers included, that the socket received.
    pub bytes_in: u64,
    /// Bytes that it sent.
    pub bytes_out: u64,
    /// Whether these are bytes of a connection in TIME_WAIT: its socket is closed.
    pub time_wait: bool,
    /// The process that made or connected it, where that was recorded, and when, in ns of CLOCK_MONOTONIC.
    pub maker: Option<(u32, u64)>,
}

/// What a socket without a peer has exchanged with a remote end since the read before: a part of its [`SocketBytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteEndBytes {
    /// The socket's cookie.
    pub cookie: u64,
    /// Whether the packets passed the loopback interface.
    pub loopback: bool,
    /// The protocol of the socket.
    pub protocol: Protocol,
    /// The remote end; its port is 0 where the protocol has none.
    pub remote: Endpoint,
    /// Bytes of IP packets that came from there.
    pub bytes_in: u64,
    /// Bytes that went there.
    pub bytes_out: u64,
}

/// A socket that was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedSocket {
    /// The socket's cookie.
    pub cookie: u64,
    /// The process that closed it.
    pub pid: u32,
    /// Whether the connection may outlive the socket: the other side has not closed it yet.
    pub lingers: bool,
}

/// Two maps of entries, which begin with bytes in and out: programs write to one while the other is read.
#[derive(Debug)]
struct Entries<const KEY: usize, const VALUE: usize> {
    maps: [Map<KEY, VALUE>; 2],
    /// What the last read took from the map that is not written any more.
    taken: HashMap<[u8; KEY], (u64, u64)>,
}

type SocketEntries = Entries<{ key::SIZE }, { value::SIZE }>;

/// The programs and their maps, for as long as this lives.
#[derive(Debug)]
pub struct PacketCounters {
    sockets: SocketEntries,
    /// The room in each of the two maps of sockets.
    room: [Room; 2],
    /// Those of connections in TIME_WAIT, or why the kernel lets no program count them.
    time_wait: io::Result<SocketEntries>,
    /// Those of the remote ends of sockets without a peer, if they are counted.
    remotes: Option<Entries<{ remote_key::SIZE }, REMOTE_VALUE_SIZE>>,
    /// Which of the two maps the programs write to.
    index: Map<4, 4>,
    active: usize,
    /// Bytes in and out of sockets for which the maps had no room.
    overflow: Map<4, 16>,
    overflow_before: (u64, u64),
    /// Who closed sockets, by cookie.
    closers: Map<8, { closer::SIZE }>,
    /// The program for packets that come in.
    ingress: OwnedFd,
    _links: Vec<OwnedFd>,
    /// The parts that this kernel refused.
    missing: Vec<&'static str>,
}

impl PacketCounters {
    /// Loads and attaches the programs: the kernel counts from now on, with `remotes` also the bytes of each remote end of sockets
    /// without a peer.
    ///
    /// # Errors
    /// EPERM without the privileges or where another program claims the root of the hierarchy for itself; ENOSYS or
    /// EINVAL where the kernel is too old or built without cgroup BPF; Unsupported where this process is not in the
    /// initial pid namespace.
    pub fn attach(remotes: bool) -> io::Result<Self> {
        in_initial_pid_namespace()?;
        let sockets = Entries::create(SOCKETS)?;
        let room = || Room::create(Limits { entries: SOCKETS, few: FEW_OF_SHARE });
        let room = [room()?, room()?];
        let remotes = remotes.then(|| Entries::create(REMOTES)).transpose()?;
        let index = Map::create(MapType::Array, 1)?;
        let overflow = Map::create(MapType::Array, 1)?;
        let makers: Map<8, { maker::SIZE }> = Map::create(MapType::LruHash, MAKERS)?;
        let closers: Map<8, { closer::SIZE }> = Map::create(MapType::Hash, CLOSERS)?;
        let fds = Fds {
            maps: sockets.fds(),
            room: room.each_ref().map(Room::fds),
            index: index.as_fd().as_raw_fd(),
            overflow: overflow.as_fd().as_raw_fd(),
            remotes: remotes.as_ref().map(Entries::fds),
            makers: makers.as_fd().as_raw_fd(),
            closers: closers.as_fd().as_raw_fd(),
        };
        let layout = Layout::of_kernel();
        let answering: Option<Map<4, 8>> = match &layout {
            Ok(layout) if layout.answers_are_seen => Some(Map::create(MapType::PerCpuArray, 1)?),
            _ => None,
        };
        let answering = answering.as_ref().map(|map| map.as_fd().as_raw_fd());
        let attach = |program_type, attach_type, program: io::Result<Vec<Instruction>>| {
            let program = load(program_type, attach_type, &program?)?;
            attach_to_cgroup_root(program.as_fd(), attach_type)
        };
        // Without one of these the figures would be wrong.
        let ingress = count(&fds, value::BYTES_IN, None)?;
        let ingress = load(ProgramType::CgroupSkb, AttachType::CgroupInetIngress, &ingress)?;
        let mut links = vec![
            attach_to_cgroup_root(ingress.as_fd(), AttachType::CgroupInetIngress)?,
            attach(ProgramType::CgroupSkb, AttachType::CgroupInetEgress, count(&fds, value::BYTES_OUT, answering))?,
        ];
        // Without one of these owners are found less often.
        let mut missing = Vec::new();
        let optional = [
            ("release", ProgramType::CgroupSock, AttachType::CgroupInetSockRelease, record_closer(&fds)),
            ("create", ProgramType::CgroupSock, AttachType::CgroupInetSockCreate, record_maker(&fds)),
            ("connect4", ProgramType::CgroupSockAddr, AttachType::CgroupInet4Connect, record_maker(&fds)),
            ("connect6", ProgramType::CgroupSockAddr, AttachType::CgroupInet6Connect, record_maker(&fds)),
        ];
        for (name, program_type, attach_type, program) in optional {
            match attach(program_type, attach_type, program) {
                Ok(link) => links.push(link),
                Err(_) => missing.push(name),
            }
        }
        let time_wait = layout.and_then(|layout| attach_time_wait(&layout, &fds, answering));
        let time_wait = time_wait.map(|(entries, link)| {
            links.push(link);
            entries
        });
        Ok(Self {
            sockets,
            room,
            time_wait,
            remotes,
            index,
            active: 0,
            overflow,
            overflow_before: (0, 0),
            closers,
            ingress,
            _links: links,
            missing,
        })
    }

    /// Why this kernel does not let the segments of connections in TIME_WAIT be counted; `None` where they are.
    pub fn refused_time_wait(&self) -> Option<&io::Error> {
        self.time_wait.as_ref().err()
    }

    /// The programs that this kernel refused to load or attach, of those that find owners.
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }

    /// Makes the kernel count a made-up Ethernet frame that stands for `segments` segments, for a socket of its own: for
    /// tests of the program that counts.
    ///
    /// # Errors
    /// What bpf(2) gives.
    #[doc(hidden)]
    pub fn count_frame(&self, frame: &[u8], segments: u32) -> io::Result<()> {
        let mut context = [0; skb::SIZE];
        context[skb::GSO_SEGS as usize..][..4].copy_from_slice(&segments.to_ne_bytes());
        test_run(self.ingress.as_fd(), frame, &context)
    }

    /// Calls `visit` with each socket that was closed since the call before. Before [`read`](Self::read), all that these have
    /// moved until then is in what that reads.
    ///
    /// # Errors
    /// What bpf(2) gives.
    pub fn read_closers(&mut self, mut visit: impl FnMut(ClosedSocket)) -> io::Result<()> {
        self.closers.drain(true, |cookie, value| {
            let lingers = LINGERING.contains(&u32_at(value, closer::STATE));
            visit(ClosedSocket { cookie: u64::from_ne_bytes(*cookie), pid: u32_at(value, closer::PID), lingers });
        })
    }

    /// Calls `visit` with what each socket has moved since the call before. Returns the bytes in and out of the sockets for
    /// which the maps had no room.
    ///
    /// # Errors
    /// What bpf(2) gives.
    pub fn read(&mut self, visit: impl FnMut(SocketBytes)) -> io::Result<(u64, u64)> {
        self.read_with_remotes(visit, |_| {})
    }

    /// As [`read`](Self::read), and calls `visit_remote` with what each remote end that is told apart has exchanged with sockets
    /// without a peer.
    ///
    /// # Errors
    /// What bpf(2) gives.
    pub fn read_with_remotes(
        &mut self,
        mut visit: impl FnMut(SocketBytes),
        mut visit_remote: impl FnMut(RemoteEndBytes),
    ) -> io::Result<(u64, u64)> {
        let (full, other) = (self.active, 1 - self.active);
        // Programs count for the socket first, so that what is read of its remote ends first is in what is read of it.
        if let Some(remotes) = &mut self.remotes {
            remotes.read_late(other, |key, value, before| visit_remote(parse_remote(key, value, before)))?;
        }
        let mut entries: Vec<(&mut SocketEntries, bool)> = vec![(&mut self.sockets, false)];
        entries.extend(self.time_wait.iter_mut().map(|entries| (entries, true)));
        for (entries, time_wait) in &mut entries {
            entries.read_late(other, |key, value, before| visit(parse(key, value, before, *time_wait)))?;
        }
        self.room[other].clear()?;
        self.index.update(&[0; 4], &(other as u32).to_ne_bytes())?;
        self.active = other;
        if let Some(remotes) = &mut self.remotes {
            remotes.read(full, |key, value| visit_remote(parse_remote(key, value, (0, 0))))?;
        }
        for (entries, time_wait) in &mut entries {
            entries.read(full, |key, value| visit(parse(key, value, (0, 0), *time_wait)))?;
        }
        let overflow = self.overflow.lookup(&[0; 4]).unwrap_or_default();
        let overflow = (u64_at(&overflow, 0), u64_at(&overflow, 8));
        let before = std::mem::replace(&mut self.overflow_before, overflow);
        Ok((overflow.0.wrapping_sub(before.0), overflow.1.wrapping_sub(before.1)))
    }
}

/// Attaches the program that counts segments of connections in TIME_WAIT.
fn attach_time_wait(layout: &Layout, fds: &Fds, answering: Option<i32>) -> io::Result<(SocketEntries, OwnedFd)> {
    let entries = Entries::create(IN_TIME_WAIT)?;
    let link = time_wait::attach(layout, fds, &time_wait::Maps { entries: entries.fds(), answering })?;
    Ok((entries, link))
}

impl<const KEY: usize, const VALUE: usize> Entries<KEY, VALUE> {
    fn create(entries: u32) -> io::Result<Self> {
        let map = || Map::create(MapType::Hash, entries);
        Ok(Self { maps: [map()?, map()?], taken: HashMap::new() })
    }

    fn fds(&self) -> [i32; 2] {
        self.maps.each_ref().map(|map| map.as_fd().as_raw_fd())
    }

    /// Calls `visit` with the entries of the map `n`, which the call before this has read, to which programs have added
    /// late, and with what that call has read. Empties the map.
    fn read_late(&mut self, n: usize, mut visit: impl FnMut(&[u8; KEY], &[u8; VALUE], (u64, u64))) -> io::Result<()> {
        let taken = std::mem::take(&mut self.taken);
        let map = &self.maps[n];
        let mut visit_late = |key: &[u8; KEY], value: &[u8; VALUE]| {
            let before = taken.get(key).copied().unwrap_or_default();
            if moved(value) != before {
                visit(key, value, before);
            }
        };
        if taken.len() > FEW {
            return map.drain(true, visit_late);
        }
        // An entry that was made late, too, stays until its map is read again.
        for key in taken.keys() {
            if let Some(value) = map.lookup(key) {
                visit_late(key, &value);
                map.delete(key);
            }
        }
        Ok(())
    }

    /// Calls `visit` with the entries of the map `n`, to which programs do not write any more.
    fn read(&mut self, n: usize, mut visit: impl FnMut(&[u8; KEY], &[u8; VALUE])) -> io::Result<()> {
        let taken = &mut self.taken;
        self.maps[n].drain(false, |key, value| {
            taken.insert(*key, moved(value));
            visit(key, value);
        })
    }
}

/// Bytes in and out, in an entry.
fn moved(value: &[u8]) -> (u64, u64) {
    (u64_at(value, value::BYTES_IN), u64_at(value, value::BYTES_OUT))
}

/// An address of 16 bytes, IPv4 mapped into IPv6.
fn address_at(bytes: &[u8], at: usize) -> IpAddr {
    let octets = bytes.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).unwrap_or_default();
    Ipv6Addr::from(octets).into()
}

/// An entry, less what was taken from it `before`.
fn parse(key: &[u8; key::SIZE], value: &[u8; value::SIZE], before: (u64, u64), time_wait: bool) -> SocketBytes {
    let pid = |at| Some(u32_at(value, at)).filter(|&pid| pid != 0);
    let tuple = || {
        let remote_port = u16::from_be_bytes([value[value::REMOTE_PORT + 2], value[value::REMOTE_PORT + 3]]);
        Tuple {
            protocol: Protocol::from_number(u32_at(value, value::PROTOCOL) as u8),
            source: Endpoint::new(address_at(value, value::LOCAL_ADDRESS), u32_at(value, value::LOCAL_PORT) as u16),
            destination: Endpoint::new(address_at(value, value::REMOTE_ADDRESS), remote_port),
        }
    };
    SocketBytes {
        cookie: u64_at(key, key::COOKIE),
        loopback: u64_at(key, key::LOOPBACK) != 0,
        tuple: (u32_at(value, value::FAMILY) != 0).then(tuple),
        bytes_in: moved(value).0.saturating_sub(before.0),
        bytes_out: moved(value).1.saturating_sub(before.1),
        time_wait,
        maker: pid(value::MAKER).map(|pid| (pid, u64_at(value, value::MADE_AT))),
    }
}

/// The entry of a remote end, less what was taken from it `before`.
fn parse_remote(key: &[u8; remote_key::SIZE], value: &[u8; REMOTE_VALUE_SIZE], before: (u64, u64)) -> RemoteEndBytes {
    let protocol = u32_at(key, remote_key::PROTOCOL);
    let port = u16::from_be_bytes([key[remote_key::PORT], key[remote_key::PORT + 1]]);
    RemoteEndBytes {
        cookie: u64_at(key, remote_key::COOKIE),
        loopback: protocol & remote_key::LOOPBACK != 0,
        protocol: Protocol::from_number(protocol as u8),
        remote: Endpoint::new(address_at(key, remote_key::ADDRESS), port),
        bytes_in: moved(value).0.saturating_sub(before.0),
        bytes_out: moved(value).1.saturating_sub(before.1),
    }
}
