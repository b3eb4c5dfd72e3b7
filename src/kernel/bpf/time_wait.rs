//! The program that counts the segments of connections in TIME_WAIT, and of those in FIN_WAIT2 that no process holds any more.
//!
//! What the kernel keeps of such a connection is a struct inet_timewait_sock: no socket that a program of the type cgroup_skb
//! could be called for. It bears the cookie of the socket that it was. `tcp_v4_rcv` and `tcp_v6_rcv` pass each segment for it to
//! `tcp_timewait_state_process`, and answer as that says. The program runs as this function returns, or, where the kernel
//! allows no program there, as the segment is dropped afterwards: at the tracepoint `kfree_skb`, which from Linux 6.11 on tells
//! for whom. Then it concludes the result from the segment:
//!
//! ```text
//! result               answer                   counts as sent                      concluded for
//! TCP_TW_SUCCESS       none                                                         no data and no FIN; RST
//! TCP_TW_RST           RST                      a header of 20 bytes                data after our FIN, in FIN_WAIT2
//! TCP_TW_ACK, ACK_OOW  ACK                      with timestamps 12 bytes more       other data, FIN
//! TCP_TW_SYN           that of a listener, which receives the segment instead
//! ```
//! An answer also counts if a firewall drops it; its options other than timestamps (of RFC 2385, RFC 5925, IP) do not. What is
//! concluded leaves out the ACK for a segment without data that is out of the window, of which the kernel sends at most two a
//! second for a connection.
//!
//! See net/ipv4/tcp_minisocks.c, `tcp_v4_send_ack` in net/ipv4/tcp_ipv4.c and `tcp_v6_send_response` in net/ipv6/tcp_ipv6.c.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc;

use super::btf::{Btf, Function};
use super::instruction::{Assembler, Helper, Instruction, R0, R1, R2, R3, R6, R7, R8, R9, Register, STACK};
use super::packet_programs::{
    Fds, KEY, LOOPBACK_IFINDEX, PACKET, SOCK_PROTOCOL, SOCK_TYPE, clear_value, insert, key, lookup, on_stack,
    select_map, skb, value,
};
use super::{AttachType, ProgramType, attach_to_function, load_for};

// States: include/net/tcp_states.h.
const TCP_FIN_WAIT2: i32 = 5;
const TCP_TIME_WAIT: i32 = 6;
/// The flag RST in the 14th byte of TCP's header.
const RST_FLAG: i32 = 4;
// enum tcp_tw_status.
const TCP_TW_SUCCESS: i32 = 0;
const TCP_TW_RST: i32 = 1;
const TCP_TW_ACK: i32 = 2;
const TCP_TW_SYN: i32 = 3;
/// Of recent kernels.
const TCP_TW_ACK_OOW: i32 = 4;

/// ETH_P_IP, as a load of it in network byte order gives it.
const ETH_P_IP: i32 = u16::to_be(0x0800) as i32;
// Bytes of headers: of IPv4 and IPv6, of TCP, and of its option for timestamps with its padding.
const IPV4: i32 = 20;
const IPV6: i32 = 40;
const TCP: i32 = 20;
const TIMESTAMPS: i32 = 12;

/// The descriptors of the maps, as the programs have them.
#[derive(Debug)]
pub struct Maps {
    /// The two maps of entries, of which [`Fds::index`] tells which one is written to. Their entries have no addresses.
    pub entries: [i32; 2],
    /// 1 on a CPU that is about to send an answer that is counted already, a u64; where answers are seen.
    pub answering: Option<i32>,
}

/// Where the running kernel has what the program reads.
#[derive(Debug)]
pub struct Layout {
    /// `tcp_timewait_state_process`.
    process: Function,
    /// The tracepoint `kfree_skb`.
    dropped: Function,
    /// In a struct sock_common, which is the beginning of a struct inet_timewait_sock, which is the beginning of a struct tcp_timewait_sock.
    cookie: i16,
    state: i16,
    next_sequence: i16,
    substate: i16,
    timestamp: i16,
    skb: Skb,
    /// In the struct skb_shared_info, which is at `end` of an skb.
    gso_segs: i16,
    /// Whether the answers over IPv4 pass the program for packets that are sent, as those of the socket that the kernel has for
    /// all its answers.
    pub answers_are_seen: bool,
}

/// struct sk_buff.
#[derive(Debug)]
struct Skb {
    /// The sequence numbers at which the segment begins and ends.
    sequence: i16,
    end_sequence: i16,
    len: i16,
    head: i16,
    end: i16,
    network_header: i16,
    transport_header: i16,
    protocol: i16,
    interface: i16,
}

impl Layout {
    /// Reads it from the kernel's description of its types.
    ///
    /// # Errors
    /// NotFound where the kernel does not have these functions and fields, InvalidData where it describes them in another way.
    pub fn of_kernel() -> io::Result<Self> {
        let btf = Btf::of_kernel()?;
        let skb = |member| btf.offset("sk_buff", member);
        let common = |member| btf.offset("sock_common", member);
        Ok(Self {
            process: btf.function("tcp_timewait_state_process")?,
            dropped: btf.tracepoint("kfree_skb")?,
            cookie: common("skc_cookie")?,
            state: common("skc_state")?,
            next_sequence: common("skc_tw_rcv_nxt")?,
            substate: btf.offset("inet_timewait_sock", "tw_substate")?,
            timestamp: btf.offset("tcp_timewait_sock", "tw_ts_recent")?,
            skb: Skb {
                sequence: skb("cb")? + btf.offset("tcp_skb_cb", "seq")?,
                end_sequence: skb("cb")? + btf.offset("tcp_skb_cb", "end_seq")?,
                len: skb("len")?,
                head: skb("head")?,
                end: skb("end")?,
                network_header: skb("network_header")?,
                transport_header: skb("transport_header")?,
                protocol: skb("protocol")?,
                interface: skb("skb_iif")?,
            },
            gso_segs: btf.offset("skb_shared_info", "gso_segs")?,
            // Since Linux 6.13 the answer has the socket that it answers for instead.
            answers_are_seen: !btf.function("ip_send_unicast_reply")?.parameters.iter().any(|name| name == "orig_sk"),
        })
    }
}

/// The events at which the program may run, the exact one first.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// `tcp_timewait_state_process` returns.
    Returned,
    /// The kernel drops a packet.
    Dropped,
}

/// Where the program's context has the `n`th parameter of the function, each a u64.
const fn parameter(n: usize) -> i16 {
    8 * n as i16
}

// What the program keeps in the registers that calls leave alone.
const TIME_WAIT: Register = R6;
const SKB: Register = R7;
const RESULT: Register = R8;
/// The length of a received segment's headers.
const HEADERS: Register = R9;
/// The bytes of the answer, once the segment is counted.
const ANSWER: Register = R9;
/// On the stack: the bytes received and sent before they are added, and the number of segments received.
const RECEIVED: i16 = PACKET - 8;
const SENT: i16 = PACKET - 16;
const SEGMENTS: i16 = PACKET + 8;

/// Attaches the program to the first event that this kernel allows.
///
/// # Errors
/// What bpf(2) gives for the last one.
pub fn attach(layout: &Layout, fds: &Fds, maps: &Maps) -> io::Result<OwnedFd> {
    attach_at(Event::Returned, layout, fds, maps).or_else(|_| attach_at(Event::Dropped, layout, fds, maps))
}

fn attach_at(event: Event, layout: &Layout, fds: &Fds, maps: &Maps) -> io::Result<OwnedFd> {
    let (attach_type, function) = match event {
        Event::Returned => (AttachType::TraceFexit, &layout.process),
        Event::Dropped => (AttachType::TraceRawTp, &layout.dropped),
    };
    let program = count(event, layout, fds, maps)?;
    attach_to_function(load_for(ProgramType::Tracing, attach_type, function.id, &program)?.as_fd())
}

/// The program.
fn count(event: Event, layout: &Layout, fds: &Fds, maps: &Maps) -> io::Result<Vec<Instruction>> {
    use Instruction as I;
    let mut code = Assembler::default();
    match event {
        Event::Returned => {
            code.push([I::load_double(TIME_WAIT, R1, parameter(0)), I::load_double(SKB, R1, parameter(1))]);
            // The result follows the parameters, and has 32 bits.
            code.push([I::load_double(RESULT, R1, parameter(layout.process.parameters.len()))]);
            code.push([I::shift_left(RESULT, 32), I::shift_right(RESULT, 32)]);
            code.jump_if_equal(RESULT, TCP_TW_SYN, "end");
        }
        Event::Dropped => {
            // The packet, the place, the reason, and the socket if there is one.
            code.push([I::load_double(SKB, R1, parameter(0)), I::load_double(TIME_WAIT, R1, parameter(3))]);
            code.jump_if_equal(TIME_WAIT, 0, "end");
            code.push([I::load_byte(R1, TIME_WAIT, layout.state)]);
            code.jump_unless_equal(R1, TCP_TIME_WAIT, "end");
            conclude_result(&mut code, layout);
        }
    }
    code.push([I::load_double(R1, TIME_WAIT, layout.cookie), I::store_double(STACK, on_stack(KEY, key::COOKIE), R1)]);
    code.push([I::set(R2, 0), I::load(R1, SKB, layout.skb.interface)]);
    code.jump_unless_equal(R1, LOOPBACK_IFINDEX, "key");
    code.push([I::set(R2, 1)]);
    code.label("key");
    code.push([I::store_double(STACK, on_stack(KEY, key::LOOPBACK), R2)]);
    count_received(&mut code, layout);
    count_sent(&mut code, layout, maps.answering);
    select_map(&mut code, fds);
    for (scope, &map) in (1..).zip(&maps.entries) {
        code.scope(scope);
        code.label("map");
        lookup(&mut code, map);
        code.jump_unless_equal(R0, 0, "add");
        clear_value(&mut code);
        insert(&mut code, map);
        lookup(&mut code, map);
        code.jump_unless_equal(R0, 0, "add");
        // The map is full.
        code.push(I::load_map_value(R0, fds.overflow));
        code.label("add");
        for (field, bytes) in [(value::BYTES_IN, RECEIVED), (value::BYTES_OUT, SENT)] {
            code.push([I::load_double(R1, STACK, bytes), I::atomic_add(R0, field as i16, R1)]);
        }
        code.jump("end");
    }
    code.scope(0);
    code.label("end");
    code.push([I::set(R0, 0), I::exit()]);
    code.assemble()
}

/// Sets `RESULT` to what `tcp_timewait_state_process` has returned for the segment, less what does not matter here.
fn conclude_result(code: &mut Assembler, layout: &Layout) {
    use Instruction as I;
    let skb = &layout.skb;
    code.push([I::set(RESULT, TCP_TW_SUCCESS)]);
    code.push([
        I::load_double(R3, SKB, skb.head),
        I::load_half(R1, SKB, skb.transport_header),
        I::add_register(R3, R1),
    ]);
    code.read_kernel(PACKET, R3, 13, 1);
    code.push([I::load_byte(R1, STACK, PACKET), I::and(R1, RST_FLAG)]);
    code.jump_unless_equal(R1, 0, "concluded");
    code.read_kernel(PACKET, SKB, skb.sequence, 4);
    code.read_kernel(SEGMENTS, SKB, skb.end_sequence, 4);
    code.push([I::load(HEADERS, STACK, SEGMENTS), I::load(R1, STACK, PACKET), I::subtract_register(R1, HEADERS)]);
    code.jump_if_equal(R1, 0, "concluded");
    code.push([I::set(RESULT, TCP_TW_ACK)]);
    code.read_kernel(PACKET, TIME_WAIT, layout.substate, 1);
    code.push([I::load_byte(R1, STACK, PACKET)]);
    code.jump_unless_equal(R1, TCP_FIN_WAIT2, "concluded");
    // Data up to the next sequence number has come before. The difference has 32 bits and a sign.
    code.push([I::load(R1, TIME_WAIT, layout.next_sequence), I::subtract_register(R1, HEADERS)]);
    code.push([I::shift_left(R1, 32), I::shift_right(R1, 63)]);
    code.jump_if_equal(R1, 0, "concluded");
    code.push([I::set(RESULT, TCP_TW_RST)]);
    code.label("concluded");
}

/// Stores the length of the segment's packet, and adds the headers of the segments that it stands for beyond the first.
fn count_received(code: &mut Assembler, layout: &Layout) {
    use Instruction as I;
    let skb = &layout.skb;
    // The packet begins with TCP's header here: what is in front of it is IP's.
    code.push([I::load_half(HEADERS, SKB, skb.transport_header), I::load_half(R1, SKB, skb.network_header)]);
    code.push([I::subtract_register(HEADERS, R1), I::load(R1, SKB, skb.len), I::add_register(R1, HEADERS)]);
    code.push([I::store_double(STACK, RECEIVED, R1)]);
    code.push([I::load_double(R3, SKB, skb.head), I::load(R1, SKB, skb.end), I::add_register(R3, R1)]);
    code.read_kernel(SEGMENTS, R3, layout.gso_segs, 2);
    code.push([I::load_half(R1, STACK, SEGMENTS)]);
    code.jump_if_less(R1, 2, "received");
    code.push([
        I::load_double(R3, SKB, skb.head),
        I::load_half(R1, SKB, skb.transport_header),
        I::add_register(R3, R1),
    ]);
    // The upper half of its 13th byte is its length in words of 32 bits.
    code.read_kernel(PACKET, R3, 12, 1);
    code.push([I::load_byte(R1, STACK, PACKET), I::shift_right(R1, 4), I::shift_left(R1, 2)]);
    code.push([I::add_register(HEADERS, R1), I::load_half(R1, STACK, SEGMENTS), I::add(R1, -1)]);
    code.push([I::multiply(R1, HEADERS), I::load_double(R2, STACK, RECEIVED), I::add_register(R1, R2)]);
    code.push([I::store_double(STACK, RECEIVED, R1)]);
    code.label("received");
}

/// Stores the length of the answer.
fn count_sent(code: &mut Assembler, layout: &Layout, answering: Option<i32>) {
    use Instruction as I;
    code.push([I::set(ANSWER, 0)]);
    code.jump_if_equal(RESULT, TCP_TW_RST, "answer");
    code.jump_if_equal(RESULT, TCP_TW_ACK, "timestamps");
    code.jump_unless_equal(RESULT, TCP_TW_ACK_OOW, "answered");
    code.label("timestamps");
    code.read_kernel(PACKET, TIME_WAIT, layout.timestamp, 4);
    code.push([I::load(R1, STACK, PACKET)]);
    code.jump_if_equal(R1, 0, "answer");
    code.push([I::set(ANSWER, TIMESTAMPS)]);
    code.label("answer");
    code.push([I::add(ANSWER, IPV6 + TCP), I::load_half(R1, SKB, layout.skb.protocol)]);
    code.jump_unless_equal(R1, ETH_P_IP, "answered");
    code.push([I::add(ANSWER, IPV4 - IPV6)]);
    if let Some(answering) = answering {
        look_up_answering(code, answering);
        code.jump_if_equal(R0, 0, "answered");
        code.push([I::store_double_value(R0, 0, 1)]);
    }
    code.label("answered");
    code.push([I::store_double(STACK, SENT, ANSWER)]);
}

/// r0 = the address of this CPU's value in the map `answering`.
fn look_up_answering(code: &mut Assembler, answering: i32) {
    use Instruction as I;
    code.push([I::store_value(STACK, PACKET, 0)]);
    code.push(I::load_map(R1, answering));
    code.push([I::copy(R2, STACK), I::add(R2, PACKET.into()), I::call(Helper::MapLookupElem)]);
}

/// In the program for packets that are sent, with its context in `context`: ends it for an answer that is counted already. From
/// `tcp_timewait_state_process` to this program, a CPU sends nothing else by a control socket.
pub fn skip_answer(code: &mut Assembler, context: Register, answering: i32) {
    use Instruction as I;
    look_up_answering(code, answering);
    code.jump_if_equal(R0, 0, "no answer");
    code.push([I::copy(R7, R0), I::load_double(R1, R7, 0)]);
    code.jump_if_equal(R1, 0, "no answer");
    // The control socket is a raw one for TCP (`tcp_sk_init`).
    code.push([I::load_double(R1, context, skb::SK)]);
    code.jump_if_equal(R1, 0, "no answer");
    code.push([I::call(Helper::SkFullsock)]);
    code.jump_if_equal(R0, 0, "no answer");
    code.push([I::load(R1, R0, SOCK_TYPE)]);
    code.jump_unless_equal(R1, libc::SOCK_RAW, "no answer");
    code.push([I::load(R1, R0, SOCK_PROTOCOL)]);
    code.jump_unless_equal(R1, libc::IPPROTO_TCP, "no answer");
    code.push([I::store_double_value(R7, 0, 0)]);
    code.jump("end");
    code.label("no answer");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_reaches_all_its_labels() {
        let skb = Skb {
            sequence: 0,
            end_sequence: 0,
            len: 0,
            head: 0,
            end: 0,
            network_header: 0,
            transport_header: 0,
            protocol: 0,
            interface: 0,
        };
        let function = || Function { id: 1, parameters: Vec::new() };
        let layout = Layout {
            process: function(),
            dropped: function(),
            cookie: 0,
            state: 0,
            next_sequence: 0,
            substate: 0,
            timestamp: 0,
            skb,
            gso_segs: 0,
            answers_are_seen: true,
        };
        let fds =
            Fds { maps: [0; 2], room: Default::default(), index: 0, overflow: 0, remotes: None, makers: 0, closers: 0 };
        for event in [Event::Returned, Event::Dropped] {
            for answering in [None, Some(0)] {
                assert!(count(event, &layout, &fds, &Maps { entries: [0; 2], answering }).is_ok());
            }
        }
    }
}
