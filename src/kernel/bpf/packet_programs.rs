//! The programs that count packets per socket, and the layout of what they write.
//!
//! See include/uapi/linux/bpf.h (struct __sk_buff, struct bpf_sock), `__cgroup_bpf_run_filter_skb` and
//! `__cgroup_bpf_run_filter_sk` in kernel/bpf/cgroup.c.

use std::io;

use nix::libc;

use super::instruction::{Assembler, Helper, Instruction, R0, R1, R2, R3, R4, R6, R7, R8, R9, Register, STACK};
use super::room::{self, Of};
use super::time_wait::skip_answer;

/// The key of a socket's entry: where each field begins.
pub mod key {
    /// A u64.
    pub const COOKIE: usize = 0;
    /// 1 for packets of the loopback interface, otherwise 0; a u64.
    pub const LOOPBACK: usize = 8;
    pub const SIZE: usize = 16;
}

/// A socket's entry: where each field begins.
pub mod value {
    /// Bytes received and sent, two u64.
    pub const BYTES_IN: usize = 0;
    pub const BYTES_OUT: usize = 8;
    /// AF_INET or AF_INET6, a u32.
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
    /// A process id in the initial pid namespace, a u32; 0 where none is recorded.
    pub const MAKER: usize = 64;
    /// The number of its entries in the map of remote ends, a u32.
    pub const REMOTES: usize = 68;
    /// When the maker made or connected it, in ns of CLOCK_MONOTONIC, a u64.
    pub const MADE_AT: usize = 72;
    pub const SIZE: usize = 80;
}

/// The key of a remote end's entry: where each field begins.
pub mod remote_key {
    /// The socket's, a u64.
    pub const COOKIE: usize = 0;
    /// 16 bytes, IPv4 mapped into IPv6.
    pub const ADDRESS: usize = 8;
    /// Two bytes in network byte order, and as many zeros.
    pub const PORT: usize = 24;
    /// The IP protocol of the socket, plus [`LOOPBACK`](self::LOOPBACK) for packets of the loopback interface; a u32.
    pub const PROTOCOL: usize = 28;
    pub const LOOPBACK: u32 = 0x100;
    pub const SIZE: usize = 32;
}

/// The size of a remote end's entry: its bytes received and sent are where a socket's entry has them.
pub const REMOTE_VALUE_SIZE: usize = 16;

/// The remote ends of one socket that are told apart between two reads, so that a flood of addresses at one takes no room from the
/// others.
pub const REMOTES_OF_SOCKET: i32 = 4096;

/// What is recorded of a maker: where each field begins.
pub mod maker {
    /// The process id, a u32.
    pub const PID: usize = 0;
    /// The time, a u64.
    pub const TIME: usize = 8;
    pub const SIZE: usize = 16;
}

/// What is recorded of a closer: where each field begins.
pub mod closer {
    /// The process id, a u32.
    pub const PID: usize = 0;
    /// The state that a TCP socket has as it is closed (enum in include/net/tcp_states.h), 0 for another socket; a u32.
    pub const STATE: usize = 4;
    pub const SIZE: usize = 8;
}

/// The descriptors of the maps, as the programs have them.
#[derive(Debug)]
pub struct Fds {
    /// The two maps of entries.
    pub maps: [i32; 2],
    /// The room in each of the two.
    pub room: [room::Fds; 2],
    /// Which of the two is written to, a u32.
    pub index: i32,
    /// Bytes in and out for which the maps had no room, two u64.
    pub overflow: i32,
    /// The two maps of remote ends, if they are counted.
    pub remotes: Option<[i32; 2]>,
    /// Makers by cookie.
    pub makers: i32,
    /// Closers by cookie.
    pub closers: i32,
}

/// struct __sk_buff: where the fields begin that the programs read.
pub mod skb {
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

/// struct bpf_sock: where `type`, `protocol` and `state` are.
pub const SOCK_TYPE: i16 = 8;
pub const SOCK_PROTOCOL: i16 = 12;
const SOCK_STATE: i16 = 72;
/// The loopback interface has this index in every network namespace (LOOPBACK_IFINDEX, include/net/flow.h).
pub const LOOPBACK_IFINDEX: i32 = 1;
/// Sockets that may move bytes between two reads; 14 MB in the kernel for each of the two maps.
pub const SOCKETS: u32 = 65_536;
/// Those that a share of them may have if the map is nearly full.
pub const FEW_OF_SHARE: u32 = 1024;
/// BPF_NOEXIST: the packet of another CPU may have made the entry meanwhile, and its bytes stay.
const NOEXIST: i32 = 1;

// What the programs keep in the registers that calls leave alone.
const CONTEXT: Register = R6;
/// The length of a packet's headers.
const HEADERS: Register = R7;
/// The number of segments beyond the first.
const SEGMENTS: Register = R8;
/// The socket's entry, and where the packet's transport header begins, from then on.
const ENTRY: Register = R7;
const TRANSPORT: Register = R8;
/// The bytes that a packet counts.
const BYTES: Register = R9;
/// The key, an entry and some bytes of the packet on the stack: their offsets from its end.
pub const KEY: i16 = -(key::SIZE as i16);
pub const VALUE: i16 = KEY - value::SIZE as i16;
pub const PACKET: i16 = VALUE - 16;
/// The key and the entry of a remote end.
const REMOTE_KEY: i16 = PACKET - remote_key::SIZE as i16;
const REMOTE_VALUE: i16 = REMOTE_KEY - REMOTE_VALUE_SIZE as i16;

pub const fn on_stack(base: i16, field: usize) -> i16 {
    base + field as i16
}

/// The program that adds a packet's bytes to the `field` of its socket's entry. With `answering`, it skips what is counted
/// already: see [`skip_answer`].
pub fn count(fds: &Fds, field: usize, answering: Option<i32>) -> io::Result<Vec<Instruction>> {
    use Instruction as I;
    let mut code = Assembler::default();
    code.push([I::copy(CONTEXT, R1)]);
    if let Some(answering) = answering {
        skip_answer(&mut code, CONTEXT, answering);
    }
    code.push([I::copy(R1, CONTEXT), I::call(Helper::GetSocketCookie)]);
    code.push([I::store_double(STACK, on_stack(KEY, key::COOKIE), R0), I::set(R2, 0)]);
    code.push([I::load(R1, CONTEXT, skb::IFINDEX)]);
    code.jump_unless_equal(R1, LOOPBACK_IFINDEX, "key");
    code.push([I::set(R2, 1)]);
    code.label("key");
    code.push([I::store_double(STACK, on_stack(KEY, key::LOOPBACK), R2)]);
    count_headers(&mut code);
    select_map(&mut code, fds);
    for (scope, n) in (1..).zip([0, 1]) {
        let map = fds.maps[n];
        code.scope(scope);
        code.label("map");
        lookup(&mut code, map);
        code.jump_unless_equal(R0, 0, "add");
        room::take(&mut code, fds.room[n], Of::Packet(CONTEXT), PACKET);
        make_entry(&mut code, fds, map);
        lookup(&mut code, map);
        code.jump_unless_equal(R0, 0, "add");
        code.label("full");
        code.push(I::load_map_value(R0, fds.overflow));
        code.push([I::atomic_add(R0, field as i16, BYTES)]);
        code.jump("end");
        code.label("add");
        code.push([I::atomic_add(R0, field as i16, BYTES)]);
        if let Some(remotes) = fds.remotes {
            code.push([I::copy(ENTRY, R0)]);
            count_remote(&mut code, remotes[n], field);
        }
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
    load_bytes(code, PACKET, length, "counted");
}

/// Copies `length` bytes of the packet, from the offset in r2 on, to the offset `to` from the end of the stack. Jumps to `otherwise`
/// where the packet is shorter.
fn load_bytes(code: &mut Assembler, to: i16, length: i32, otherwise: &'static str) {
    use Instruction as I;
    code.push([I::copy(R1, CONTEXT), I::copy(R3, STACK), I::add(R3, to.into()), I::set(R4, length)]);
    code.push([I::call(Helper::SkbLoadBytes)]);
    code.jump_unless_equal(R0, 0, otherwise);
}

/// Adds the bytes to the `field` of the packet's remote end, if the socket has no peer: a UDP server, a raw socket. Its remote end is
/// where the packet says it comes from or goes to. What a listener of TCP receives begins a connection, which has a peer.
fn count_remote(code: &mut Assembler, map: i32, field: usize) {
    use Instruction as I;
    code.push([I::load(R1, ENTRY, value::PROTOCOL as i16)]);
    code.jump_if_equal(R1, libc::IPPROTO_TCP, "end");
    code.push([I::load(R1, CONTEXT, skb::FAMILY), I::load(R2, CONTEXT, skb::REMOTE_IP4)]);
    code.jump_unless_equal(R1, libc::AF_INET6, "peer");
    code.push([I::load(R2, CONTEXT, skb::REMOTE_IP6)]);
    for at in [4, 8, 12] {
        code.push([I::load(R1, CONTEXT, skb::REMOTE_IP6 + at), I::or_register(R2, R1)]);
    }
    code.label("peer");
    code.jump_unless_equal(R2, 0, "end");
    make_remote_key(code, field);
    lookup_remote(code, map);
    code.jump_unless_equal(R0, 0, "add to remote end");
    code.push([I::load(R1, ENTRY, value::REMOTES as i16)]);
    code.jump_if_less(R1, REMOTES_OF_SOCKET, "new remote end");
    code.jump("end");
    code.label("new remote end");
    for at in (0..REMOTE_VALUE_SIZE).step_by(8) {
        code.push([I::store_double_value(STACK, on_stack(REMOTE_VALUE, at), 0)]);
    }
    insert_at(code, map, REMOTE_KEY, REMOTE_VALUE);
    lookup_remote(code, map);
    // The map is full.
    code.jump_if_equal(R0, 0, "end");
    code.push([I::set(R1, 1), I::atomic_add_word(ENTRY, value::REMOTES as i16, R1)]);
    code.label("add to remote end");
    code.push([I::atomic_add(R0, field as i16, BYTES)]);
}

/// Makes the key of the packet's remote end on the stack: from its source, if `field` says that it came in, or its destination.
fn make_remote_key(code: &mut Assembler, field: usize) {
    use Instruction as I;
    // Where the headers of IPv4, IPv6 and the transport have what is remote.
    let (ipv4, ipv6, port) = if field == value::BYTES_IN { (12, 8, 0) } else { (16, 24, 2) };
    let key = |field: usize| on_stack(REMOTE_KEY, field);
    code.push([I::load_double(R1, STACK, on_stack(KEY, key::COOKIE))]);
    code.push([I::store_double(STACK, key(remote_key::COOKIE), R1)]);
    for at in (remote_key::ADDRESS..remote_key::SIZE).step_by(8) {
        code.push([I::store_double_value(STACK, key(at), 0)]);
    }
    code.push([
        I::load_double(R1, STACK, on_stack(KEY, key::LOOPBACK)),
        I::shift_left(R1, remote_key::LOOPBACK.ilog2() as i32),
    ]);
    code.push([I::load(R2, ENTRY, value::PROTOCOL as i16), I::add_register(R1, R2)]);
    code.push([I::store(STACK, key(remote_key::PROTOCOL), R1), I::set(R2, 0)]);
    load_bytes(code, PACKET, 10, "end");
    code.push([I::load_byte(R1, STACK, PACKET), I::copy(TRANSPORT, R1), I::shift_right(R1, 4)]);
    code.jump_unless_equal(R1, 4, "IPv6 remote end");
    code.push([I::and(TRANSPORT, 15), I::shift_left(TRANSPORT, 2)]);
    // The prefix ::ffff:0:0/96.
    let prefix = i32::from_ne_bytes([0, 0, 0xff, 0xff]);
    code.push([I::store_value(STACK, key(remote_key::ADDRESS + 8), prefix), I::set(R2, ipv4)]);
    load_bytes(code, key(remote_key::ADDRESS + 12), 4, "end");
    // A later fragment has no port: its offset, in network byte order and below three flags, is not 0.
    code.push([I::load_half(R1, STACK, PACKET + 6), I::and(R1, u16::to_be(0x1fff).into())]);
    code.jump_unless_equal(R1, 0, "remote end");
    code.push([I::load_byte(R1, STACK, PACKET + 9)]);
    code.jump("port");
    code.label("IPv6 remote end");
    code.push([I::set(TRANSPORT, 40), I::set(R2, ipv6)]);
    load_bytes(code, key(remote_key::ADDRESS), 16, "end");
    code.push([I::load_byte(R1, STACK, PACKET + 6)]);
    code.label("port");
    for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE, libc::IPPROTO_SCTP] {
        code.jump_if_equal(R1, protocol, "has port");
    }
    code.jump("remote end");
    code.label("has port");
    code.push([I::copy(R2, TRANSPORT), I::add(R2, port)]);
    load_bytes(code, key(remote_key::PORT), 2, "end");
    code.label("remote end");
}

/// r0 = the address of the entry of the remote end with the key on the stack, or 0.
fn lookup_remote(code: &mut Assembler, map: i32) {
    lookup_at(code, map, REMOTE_KEY);
}

/// Jumps to the code for the map that is written to: the label `map` in its scope. It has to follow at once.
pub fn select_map(code: &mut Assembler, fds: &Fds) {
    code.push(Instruction::load_map_value(R1, fds.index));
    code.push([Instruction::load(R1, R1, 0)]);
    // Each map has code of its own, for the kernel makes the look-up in a map that is known part of the program.
    code.scope(2);
    code.jump_if_equal(R1, 1, "map");
}

/// r0 = the address of the entry with the key on the stack, or 0.
pub fn lookup(code: &mut Assembler, map: i32) {
    lookup_at(code, map, KEY);
}

/// The same, with the key at the offset `key` from the end of the stack.
fn lookup_at(code: &mut Assembler, map: i32, key: i16) {
    use Instruction as I;
    code.push(I::load_map(R1, map));
    code.push([I::copy(R2, STACK), I::add(R2, key.into()), I::call(Helper::MapLookupElem)]);
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
pub fn clear_value(code: &mut Assembler) {
    for at in (0..value::SIZE).step_by(8) {
        code.push([Instruction::store_double_value(STACK, on_stack(VALUE, at), 0)]);
    }
}

/// Inserts the entry on the stack with the key on the stack.
pub fn insert(code: &mut Assembler, map: i32) {
    insert_at(code, map, KEY, VALUE);
}

/// The same, with the key and the entry at these offsets from the end of the stack.
fn insert_at(code: &mut Assembler, map: i32, key: i16, value: i16) {
    use Instruction as I;
    code.push(I::load_map(R1, map));
    code.push([I::copy(R2, STACK), I::add(R2, key.into()), I::copy(R3, STACK), I::add(R3, value.into())]);
    code.push([I::set(R4, NOEXIST), I::call(Helper::MapUpdateElem)]);
}

/// The program that records the process that closes a socket, and forgets the maker.
pub fn record_closer(fds: &Fds) -> io::Result<Vec<Instruction>> {
    use Instruction as I;
    let mut code = Assembler::default();
    code.push([I::copy(CONTEXT, R1), I::call(Helper::GetSocketCookie), I::store_double(STACK, KEY, R0)]);
    // The upper half is the thread group's id, which user space calls the pid.
    code.push([I::call(Helper::GetCurrentPidTgid), I::shift_right(R0, 32)]);
    code.push([I::store(STACK, on_stack(VALUE, closer::PID), R0), I::set(R2, 0)]);
    code.push([I::load(R1, CONTEXT, SOCK_PROTOCOL)]);
    code.jump_unless_equal(R1, libc::IPPROTO_TCP, "state");
    code.push([I::load(R2, CONTEXT, SOCK_STATE)]);
    code.label("state");
    code.push([I::store(STACK, on_stack(VALUE, closer::STATE), R2)]);
    insert(&mut code, fds.closers);
    code.push(I::load_map(R1, fds.makers));
    code.push([I::copy(R2, STACK), I::add(R2, KEY.into()), I::call(Helper::MapDeleteElem)]);
    end(&mut code);
    code.assemble()
}

/// The program that notes the process that makes or connects a socket.
pub fn record_maker(fds: &Fds) -> io::Result<Vec<Instruction>> {
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
