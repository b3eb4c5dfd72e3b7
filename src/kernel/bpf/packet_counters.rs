//! Bytes per socket: every IP packet that any socket of the host sends or receives, in all network namespaces.
//!
//! ```text
//! packet ──▶ ingress, egress ──┐                         ┌── a map of sockets ──▶ read once a tick
//! close(2) ──▶ release ────────┼── index: which of two ──┤
//!                              │                         └── a map of sockets     written meanwhile
//! socket(2), connect(2) ──▶ makers: cookie → process
//! ```
//! Two programs of the type cgroup_skb, attached to the root of the cgroup2 hierarchy, add the length of each packet to
//! the entry of its socket. The key is the socket's cookie, by which sock_diag(7) knows it and which the kernel never uses
//! again, and whether the packet passed the loopback interface. The first packet of a socket in a tick makes the entry,
//! with the socket's addresses: not the packet's, which may be translated. A packet of GSO or GRO stands for several on the
//! wire, so the headers of the further ones are added.
//!
//! Three programs more say whose the socket is: at socket(2) and connect(2) they record the process in a map of makers, from
//! which the entry takes it; at the last close(2) they record the process in the entry itself. A socket that accept(2)
//! made has no maker.
//!
//! The programs write to one of two maps. [`PacketCounters::read`] turns them to the other one and reads the first. A
//! program that was interrupted between finding an entry and adding to it may still add to the map that was read, so its
//! entries stay until the next read, which takes what was added late, and removes them. Nothing is lost, and nobody waits.
//!
//! Not seen: packets without a socket (forwarded, dropped by a firewall before the socket, sent to a closed port), those
//! of AF_PACKET and AF_XDP, and the last ones of a connection in TIME_WAIT, which has no socket any more. A multicast packet
//! counts once for each socket that receives it.
//!
//! See include/uapi/linux/bpf.h (struct __sk_buff, struct bpf_sock), `__cgroup_bpf_run_filter_skb` and
//! `__cgroup_bpf_run_filter_sk` in kernel/bpf/cgroup.c.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::libc;

use super::instruction::{Assembler, Helper, Instruction, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Register};
use super::{AttachType, Map, MapType, ProgramType, attach_to_cgroup_root, in_initial_pid_namespace, load, test_run};
use crate::kernel::flow::{Endpoint, Protocol, Tuple};

/// Sockets that may move bytes between two reads; 14 MB in the kernel for each of the two maps.
const SOCKETS: u32 = 65_536;
/// Makers that are remembered until the first packet of their sockets, the most recent ones.
const MAKERS: u32 = 65_536;

/// Up to this number, entries are removed one by one, 1 µs each: removing all at once walks all buckets of the map.
const FEW: usize = 1000;

/// The key of a socket's entry: where each field begins.
mod key {
    /// A u64.
    pub const COOKIE: usize = 0;
    /// 1 for packets of the loopback interface, otherwise 0; a u64.
    pub const LOOPBACK: usize = 8;
    pub const SIZE: usize = 16;
}

/// A socket's entry: where each field begins.
mod value {
    /// Bytes received and sent, two u64.
    pub const BYTES_IN: usize = 0;
    pub const BYTES_OUT: usize = 8;
    /// AF_INET or AF_INET6, a u32; 0 in an entry that only `release` has written.
    pub const FAMILY: usize = 16;
    /// The IP protocol, a u32.
    pub const PROTOCOL: usize = 20;
    /// A u32 in host byte order.
    pub const LOCAL_PORT: usize = 24;
    /// Two bytes of zeros, then the port in network byte order.
    pub const REMOTE_PORT: usize = 28;
    /// 16 bytes, IPv4 mapped into IPv6.
    pub const LOCAL_ADDRESS: usize = 32;
    /// 16 bytes, IPv4 mapped into IPv6.
    pub const REMOTE_ADDRESS: usize = 48;
    /// Process ids in the initial pid namespace, each a u32; 0 where there is none.
    pub const MAKER: usize = 64;
    pub const CLOSED_BY: usize = 68;
    /// When the maker made or connected it, in ns of CLOCK_MONOTONIC, a u64.
    pub const MADE_AT: usize = 72;
    pub const SIZE: usize = 80;
}

/// What is recorded of a maker: where each field begins.
mod maker {
    /// The process id, a u32.
    pub const PID: usize = 0;
    /// The time, a u64.
    pub const TIME: usize = 8;
    pub const SIZE: usize = 16;
}

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
    /// The process that made or connected it, where that was recorded, and when, in ns of CLOCK_MONOTONIC.
    pub maker: Option<(u32, u64)>,
    /// The process that closed it, if it is closed.
    pub closed_by: Option<u32>,
}

/// The programs and their maps, for as long as this lives.
#[derive(Debug)]
pub struct PacketCounters {
    maps: [Map<{ key::SIZE }, { value::SIZE }>; 2],
    /// Which of the maps the programs write to.
    index: Map<4, 4>,
    active: usize,
    /// Bytes in and out of sockets for which the maps had no room.
    overflow: Map<4, 16>,
    overflow_before: (u64, u64),
    /// What the last read took from the map that is not written any more.
    taken: HashMap<[u8; key::SIZE], (u64, u64)>,
    /// The program for packets that come in.
    ingress: OwnedFd,
    _links: Vec<OwnedFd>,
    /// The parts that this kernel refused.
    missing: Vec<&'static str>,
}

impl PacketCounters {
    /// Loads and attaches the programs: the kernel counts from now on.
    ///
    /// # Errors
    /// EPERM without the privileges or where another program claims the root of the hierarchy for itself; ENOSYS or
    /// EINVAL where the kernel is too old or built without cgroup BPF; Unsupported where this process is not in the
    /// initial pid namespace.
    pub fn attach() -> io::Result<Self> {
        in_initial_pid_namespace()?;
        let maps = [Map::create(MapType::Hash, SOCKETS)?, Map::create(MapType::Hash, SOCKETS)?];
        let index = Map::create(MapType::Array, 1)?;
        let overflow = Map::create(MapType::Array, 1)?;
        let makers: Map<8, { maker::SIZE }> = Map::create(MapType::LruHash, MAKERS)?;
        let fds = Fds {
            maps: [maps[0].as_fd(), maps[1].as_fd()].map(|fd| fd.as_raw_fd()),
            index: index.as_fd().as_raw_fd(),
            overflow: overflow.as_fd().as_raw_fd(),
            makers: makers.as_fd().as_raw_fd(),
        };
        let attach = |program_type, attach_type, program: io::Result<Vec<Instruction>>| {
            let program = load(program_type, attach_type, &program?)?;
            attach_to_cgroup_root(program.as_fd(), attach_type)
        };
        // Without one of these the figures would be wrong.
        let ingress = load(ProgramType::CgroupSkb, AttachType::CgroupInetIngress, &count(&fds, value::BYTES_IN)?)?;
        let mut links = vec![
            attach_to_cgroup_root(ingress.as_fd(), AttachType::CgroupInetIngress)?,
            attach(ProgramType::CgroupSkb, AttachType::CgroupInetEgress, count(&fds, value::BYTES_OUT))?,
        ];
        // Without one of these owners are found less often.
        let mut missing = Vec::new();
        let optional = [
            ("release", ProgramType::CgroupSock, AttachType::CgroupInetSockRelease, release(&fds)),
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
        Ok(Self {
            maps,
            index,
            active: 0,
            overflow,
            overflow_before: (0, 0),
            taken: HashMap::new(),
            ingress,
            _links: links,
            missing,
        })
    }

    /// The programs that this kernel refused to load or attach.
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

    /// Calls `visit` with what each socket has moved since the call before. Returns the bytes in and out of the sockets for
    /// which the maps had no room.
    ///
    /// # Errors
    /// What bpf(2) gives.
    pub fn read(&mut self, mut visit: impl FnMut(SocketBytes)) -> io::Result<(u64, u64)> {
        let (full, other) = (self.active, 1 - self.active);
        // What programs have added late to the map that the call before has read.
        let taken = std::mem::take(&mut self.taken);
        let mut visit_late = |key: &[u8; key::SIZE], value: &[u8; value::SIZE]| {
            let before = taken.get(key).copied().unwrap_or_default();
            let bytes = parse(key, value, before);
            if bytes.bytes_in > 0 || bytes.bytes_out > 0 {
                visit(bytes);
            }
        };
        if taken.len() <= FEW {
            // An entry that was made late, too, stays until its map is read again.
            for key in taken.keys() {
                if let Some(value) = self.maps[other].lookup(key) {
                    visit_late(key, &value);
                    self.maps[other].delete(key);
                }
            }
        } else {
            self.maps[other].drain(true, visit_late)?;
        }
        self.index.update(&[0; 4], &(other as u32).to_ne_bytes())?;
        self.active = other;
        let taken = &mut self.taken;
        self.maps[full].drain(false, |key, value| {
            taken.insert(*key, (u64_at(value, value::BYTES_IN), u64_at(value, value::BYTES_OUT)));
            visit(parse(key, value, (0, 0)));
        })?;
        let overflow = self.overflow.lookup(&[0; 4]).unwrap_or_default();
        let overflow = (u64_at(&overflow, 0), u64_at(&overflow, 8));
        let before = std::mem::replace(&mut self.overflow_before, overflow);
        Ok((overflow.0.wrapping_sub(before.0), overflow.1.wrapping_sub(before.1)))
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// An entry, less what was taken from it `before`.
fn parse(key: &[u8; key::SIZE], value: &[u8; value::SIZE], before: (u64, u64)) -> SocketBytes {
    let pid = |at| Some(u32_at(value, at)).filter(|&pid| pid != 0);
    let address = |at: usize| -> IpAddr {
        let octets = value.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).unwrap_or_default();
        Ipv6Addr::from(octets).into()
    };
    let tuple = || {
        let remote_port = u16::from_be_bytes([value[value::REMOTE_PORT + 2], value[value::REMOTE_PORT + 3]]);
        Tuple {
            protocol: Protocol::from_number(u32_at(value, value::PROTOCOL) as u8),
            source: Endpoint::new(address(value::LOCAL_ADDRESS), u32_at(value, value::LOCAL_PORT) as u16),
            destination: Endpoint::new(address(value::REMOTE_ADDRESS), remote_port),
        }
    };
    SocketBytes {
        cookie: u64_at(key, key::COOKIE),
        loopback: u64_at(key, key::LOOPBACK) != 0,
        tuple: (u32_at(value, value::FAMILY) != 0).then(tuple),
        bytes_in: u64_at(value, value::BYTES_IN).saturating_sub(before.0),
        bytes_out: u64_at(value, value::BYTES_OUT).saturating_sub(before.1),
        maker: pid(value::MAKER).map(|pid| (pid, u64_at(value, value::MADE_AT))),
        closed_by: pid(value::CLOSED_BY),
    }
}

/// The descriptors of the maps, as the programs have them.
struct Fds {
    maps: [i32; 2],
    index: i32,
    overflow: i32,
    makers: i32,
}

/// struct __sk_buff: where the fields begin that the programs read.
mod skb {
    pub const LEN: i16 = 0;
    pub const IFINDEX: i16 = 40;
    pub const FAMILY: i16 = 88;
    pub const REMOTE_IP4: i16 = 92;
    pub const LOCAL_IP4: i16 = 96;
    pub const REMOTE_IP6: i16 = 100;
    pub const LOCAL_IP6: i16 = 116;
    pub const REMOTE_PORT: i16 = 132;
    pub const LOCAL_PORT: i16 = 136;
    pub const GSO_SEGS: i16 = 164;
    /// A pointer to a struct bpf_sock.
    pub const SK: i16 = 168;
    /// Up to the last field that is used here, as the kernel of Linux 5.10 has it.
    pub const SIZE: usize = 176;
}

/// struct bpf_sock: where `protocol` is.
const SOCK_PROTOCOL: i16 = 12;
/// The loopback interface has this index in every network namespace (LOOPBACK_IFINDEX, include/net/flow.h).
const LOOPBACK_IFINDEX: i32 = 1;
/// BPF_NOEXIST: the packet of another CPU may have made the entry meanwhile, and its bytes stay.
const NOEXIST: i32 = 1;

// What the programs keep in the registers that calls leave alone.
const CONTEXT: Register = R6;
/// The length of a packet's headers.
const HEADERS: Register = R7;
/// The number of segments beyond the first.
const SEGMENTS: Register = R8;
/// The bytes that a packet counts.
const BYTES: Register = R9;
/// The end of the stack, from which it grows downwards.
const STACK: Register = R10;
/// The key, an entry and some bytes of the packet on the stack: their offsets from its end.
const KEY: i16 = -(key::SIZE as i16);
const VALUE: i16 = KEY - value::SIZE as i16;
const PACKET: i16 = VALUE - 16;

const fn on_stack(base: i16, field: usize) -> i16 {
    base + field as i16
}

/// The program that adds a packet's bytes to the `field` of its socket's entry.
fn count(fds: &Fds, field: usize) -> io::Result<Vec<Instruction>> {
    use Instruction as I;
    let mut code = Assembler::default();
    code.push([I::copy(CONTEXT, R1), I::call(Helper::GetSocketCookie)]);
    code.push([I::store_double(STACK, on_stack(KEY, key::COOKIE), R0), I::set(R2, 0)]);
    code.push([I::load(R1, CONTEXT, skb::IFINDEX)]);
    code.jump_unless_equal(R1, LOOPBACK_IFINDEX, "key");
    code.push([I::set(R2, 1)]);
    code.label("key");
    code.push([I::store_double(STACK, on_stack(KEY, key::LOOPBACK), R2)]);
    count_headers(&mut code);
    select_map(&mut code, fds);
    for (scope, &map) in (1..).zip(&fds.maps) {
        code.scope(scope);
        code.label("map");
        lookup(&mut code, map);
        code.jump_unless_equal(R0, 0, "add");
        make_entry(&mut code, fds, map);
        lookup(&mut code, map);
        code.jump_unless_equal(R0, 0, "add");
        // The map is full.
        code.push(I::load_map_value(R0, fds.overflow));
        code.push([I::atomic_add(R0, field as i16, BYTES)]);
        code.jump("end");
        code.label("add");
        code.push([I::atomic_add(R0, field as i16, BYTES)]);
        code.jump("end");
    }
    end(&mut code);
    code.assemble()
}

/// Sets `BYTES` to the packet's length, and adds the headers of the segments that it stands for beyond the first.
fn count_headers(code: &mut Assembler) {
    use Instruction as I;
    code.push([I::load(BYTES, CONTEXT, skb::LEN), I::load(SEGMENTS, CONTEXT, skb::GSO_SEGS)]);
    code.jump_if_less(SEGMENTS, 2, "counted");
    code.push([I::add(SEGMENTS, -1), I::set(R2, 0)]);
    load_packet(code, 10);
    // The first byte has the version and, with IPv4, the length of the header in words of 32 bits.
    code.push([I::load_byte(R1, STACK, PACKET), I::copy(R2, R1), I::shift_right(R2, 4)]);
    code.jump_unless_equal(R2, 4, "IPv6 header");
    code.push([I::and(R1, 15), I::shift_left(R1, 2), I::copy(HEADERS, R1), I::load_byte(R1, STACK, PACKET + 9)]);
    code.jump("transport");
    code.label("IPv6 header");
    code.push([I::set(HEADERS, 40), I::load_byte(R1, STACK, PACKET + 6)]);
    code.label("transport");
    code.jump_if_equal(R1, libc::IPPROTO_TCP, "TCP header");
    code.push([I::add(HEADERS, 8)]);
    code.jump_if_equal(R1, libc::IPPROTO_UDP, "add headers");
    code.push([I::add(HEADERS, -8)]);
    code.jump("add headers");
    code.label("TCP header");
    // The upper half of its 13th byte is its length in words of 32 bits.
    code.push([I::copy(R2, HEADERS), I::add(R2, 12)]);
    load_packet(code, 1);
    code.push([I::load_byte(R1, STACK, PACKET), I::shift_right(R1, 4), I::shift_left(R1, 2)]);
    code.push([I::add_register(HEADERS, R1)]);
    code.label("add headers");
    code.push([I::multiply(SEGMENTS, HEADERS), I::add_register(BYTES, SEGMENTS)]);
    code.label("counted");
}

/// Copies `length` bytes of the packet, from the offset in r2 on, to the stack.
fn load_packet(code: &mut Assembler, length: i32) {
    use Instruction as I;
    code.push([I::copy(R1, CONTEXT), I::copy(R3, STACK), I::add(R3, PACKET.into()), I::set(R4, length)]);
    code.push([I::call(Helper::SkbLoadBytes)]);
    code.jump_unless_equal(R0, 0, "counted");
}

/// Jumps to the code for the map that is written to: the label `map` in its scope. It has to follow at once.
fn select_map(code: &mut Assembler, fds: &Fds) {
    code.push(Instruction::load_map_value(R1, fds.index));
    code.push([Instruction::load(R1, R1, 0)]);
    // Each map has code of its own, for the kernel makes the look-up in a map that is known part of the program.
    code.scope(2);
    code.jump_if_equal(R1, 1, "map");
}

/// r0 = the address of the entry with the key on the stack, or 0.
fn lookup(code: &mut Assembler, map: i32) {
    use Instruction as I;
    code.push(I::load_map(R1, map));
    code.push([I::copy(R2, STACK), I::add(R2, KEY.into()), I::call(Helper::MapLookupElem)]);
}

/// Makes an entry with the socket's addresses and maker, and without bytes.
fn make_entry(code: &mut Assembler, fds: &Fds, map: i32) {
    use Instruction as I;
    clear_value(code);
    code.push(I::load_map(R1, fds.makers));
    code.push([I::copy(R2, STACK), I::add(R2, KEY.into()), I::call(Helper::MapLookupElem)]);
    code.jump_if_equal(R0, 0, "protocol");
    copy_maker(code);
    code.label("protocol");
    code.push([I::load_double(R1, CONTEXT, skb::SK)]);
    code.jump_if_equal(R1, 0, "addresses");
    code.push([I::call(Helper::SkFullsock)]);
    code.jump_if_equal(R0, 0, "addresses");
    code.push([I::load(R1, R0, SOCK_PROTOCOL), I::store(STACK, on_stack(VALUE, value::PROTOCOL), R1)]);
    code.label("addresses");
    code.push([I::load(R1, CONTEXT, skb::FAMILY), I::store(STACK, on_stack(VALUE, value::FAMILY), R1)]);
    let copy = |from: i16, to: usize| [I::load(R2, CONTEXT, from), I::store(STACK, on_stack(VALUE, to), R2)];
    code.push(copy(skb::LOCAL_PORT, value::LOCAL_PORT));
    code.push(copy(skb::REMOTE_PORT, value::REMOTE_PORT));
    code.jump_if_equal(R1, libc::AF_INET6, "IPv6");
    for (from, to) in [(skb::LOCAL_IP4, value::LOCAL_ADDRESS), (skb::REMOTE_IP4, value::REMOTE_ADDRESS)] {
        // The prefix ::ffff:0:0/96, the rest of which is zero already.
        let prefix = i32::from_ne_bytes([0, 0, 0xff, 0xff]);
        code.push([I::store_value(STACK, on_stack(VALUE, to + 8), prefix)]);
        code.push(copy(from, to + 12));
    }
    code.jump("insert");
    code.label("IPv6");
    for (from, to) in [(skb::LOCAL_IP6, value::LOCAL_ADDRESS), (skb::REMOTE_IP6, value::REMOTE_ADDRESS)] {
        [0, 4, 8, 12].into_iter().for_each(|at| code.push(copy(from + at, to + at as usize)));
    }
    code.label("insert");
    insert(code, map);
}

/// Copies the record of the maker at r0 to the entry on the stack.
fn copy_maker(code: &mut Assembler) {
    use Instruction as I;
    code.push([I::load(R1, R0, maker::PID as i16), I::store(STACK, on_stack(VALUE, value::MAKER), R1)]);
    code.push([I::load_double(R1, R0, maker::TIME as i16)]);
    code.push([I::store_double(STACK, on_stack(VALUE, value::MADE_AT), R1)]);
}

/// Clears the entry on the stack.
fn clear_value(code: &mut Assembler) {
    for at in (0..value::SIZE).step_by(8) {
        code.push([Instruction::store_double_value(STACK, on_stack(VALUE, at), 0)]);
    }
}

/// Inserts the entry on the stack with the key on the stack.
fn insert(code: &mut Assembler, map: i32) {
    use Instruction as I;
    code.push(I::load_map(R1, map));
    code.push([I::copy(R2, STACK), I::add(R2, KEY.into()), I::copy(R3, STACK), I::add(R3, VALUE.into())]);
    code.push([I::set(R4, NOEXIST), I::call(Helper::MapUpdateElem)]);
}

/// The program that notes the process in the entry of a socket that it closes, and forgets the maker.
fn release(fds: &Fds) -> io::Result<Vec<Instruction>> {
    use Instruction as I;
    let mut code = Assembler::default();
    code.push([I::copy(CONTEXT, R1), I::call(Helper::GetSocketCookie)]);
    code.push([I::store_double(STACK, on_stack(KEY, key::COOKIE), R0)]);
    code.push([I::store_double_value(STACK, on_stack(KEY, key::LOOPBACK), 0)]);
    // The upper half is the thread group's id, which user space calls the pid.
    code.push([I::call(Helper::GetCurrentPidTgid), I::shift_right(R0, 32), I::copy(R7, R0)]);
    select_map(&mut code, fds);
    for (scope, &map) in (1..).zip(&fds.maps) {
        code.scope(scope);
        code.label("map");
        lookup(&mut code, map);
        code.jump_unless_equal(R0, 0, "note");
        clear_value(&mut code);
        // Its first and last packets may lie in one tick, and come through the loopback interface.
        code.push(I::load_map(R1, fds.makers));
        code.push([I::copy(R2, STACK), I::add(R2, KEY.into()), I::call(Helper::MapLookupElem)]);
        code.jump_if_equal(R0, 0, "insert");
        copy_maker(&mut code);
        code.label("insert");
        insert(&mut code, map);
        lookup(&mut code, map);
        code.jump_if_equal(R0, 0, "forget");
        code.label("note");
        code.push([I::store(R0, value::CLOSED_BY as i16, R7)]);
        code.jump("forget");
    }
    code.scope(0);
    code.label("forget");
    code.push(I::load_map(R1, fds.makers));
    code.push([I::copy(R2, STACK), I::add(R2, KEY.into()), I::call(Helper::MapDeleteElem)]);
    end(&mut code);
    code.assemble()
}

/// The program that notes the process that makes or connects a socket.
fn record_maker(fds: &Fds) -> io::Result<Vec<Instruction>> {
    use Instruction as I;
    let mut code = Assembler::default();
    code.push([I::call(Helper::GetSocketCookie), I::store_double(STACK, KEY, R0)]);
    code.push([I::call(Helper::GetCurrentPidTgid), I::shift_right(R0, 32)]);
    // With the padding behind the pid.
    code.push([I::store_double_value(STACK, on_stack(VALUE, maker::PID), 0)]);
    code.push([I::store(STACK, on_stack(VALUE, maker::PID), R0), I::call(Helper::KtimeGetNs)]);
    code.push([I::store_double(STACK, on_stack(VALUE, maker::TIME), R0)]);
    code.push(I::load_map(R1, fds.makers));
    code.push([I::copy(R2, STACK), I::add(R2, KEY.into()), I::copy(R3, STACK), I::add(R3, VALUE.into())]);
    // BPF_ANY: who connects comes after who made it.
    code.push([I::set(R4, 0), I::call(Helper::MapUpdateElem)]);
    end(&mut code);
    code.assemble()
}

/// Ends a program: 1 lets the kernel go on.
fn end(code: &mut Assembler) {
    code.scope(0);
    code.label("end");
    code.push([Instruction::set(R0, 1), Instruction::exit()]);
}
