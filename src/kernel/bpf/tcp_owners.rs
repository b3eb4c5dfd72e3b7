//! The owners of TCP connections: the process that connected one, recorded before its first packet is sent, and the
//! process that closed it, at either end.
//!
//! A connection that lasts less than some 50 µs has left no socket to find when the conntrack event of its beginning
//! arrives. Neither has one that ended since the last tick, and the process that held it at the end may have been
//! started for it alone. So a BPF program of the type sock_ops records both in a map of ours. The kernel calls it at
//! events of TCP sockets, the `op` of struct bpf_sock_ops (BPF_SOCK_OPS_… in include/uapi/linux/bpf.h), of which it
//! handles four:
//!
//! - `TCP_CONNECT_CB`: connect(2), before the SYN is sent (`tcp_connect` in net/ipv4/tcp_output.c). The program records
//!   the process, and asks to be called when the state of this socket changes.
//! - `RWND_INIT`: a SYN has come in (`tcp_conn_request` in net/ipv4/tcp_input.c). It removes the entry of an earlier
//!   connection with the same ends.
//! - `PASSIVE_ESTABLISHED_CB`: the handshake that this SYN began is complete. It asks to be called when the state of
//!   the new socket changes.
//! - `STATE_CB`: the state is about to change. If to FIN_WAIT1 or LAST_ACK (`tcp_close_state` in net/ipv4/tcp.c), it
//!   records the process, as the one that closed the connection.
//!
//! shutdown(2) changes the state at once; close(2) does if no other process holds the socket. The program does not
//! record a reset: the change of state is the same whether close(2) sends one or one has come in.
//!
//! Where the kernel refuses the program (see [`super`] for what it needs), the owners of short connections are found
//! less often.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;

use super::instruction::{Assembler, Helper, Instruction, R0, R1, R2, R3, R4, R6, R7, R8, Register, STACK};
use super::{AttachType, Map, MapType, ProgramType, attach_to_cgroup_root, in_initial_pid_namespace, load};
use crate::kernel::flow::{Endpoint, Tuple};

/// The most connections that are recorded: those of several seconds on a very busy host, some 7 MB in the kernel.
const ENTRIES: u32 = 65_536;

/// The map's key, the ends of a connection as its socket sees them: where each field begins. IPv4 addresses are mapped
/// into IPv6; the ports are as struct bpf_sock_ops has them.
mod key {
    /// 16 bytes.
    pub const LOCAL_ADDRESS: usize = 0;
    /// 16 bytes.
    pub const REMOTE_ADDRESS: usize = 16;
    /// A u32 in host byte order.
    pub const LOCAL_PORT: usize = 32;
    /// Two bytes of zeros, then the port in network byte order.
    pub const REMOTE_PORT: usize = 36;
    pub const SIZE: usize = 40;
}

/// The map's value: where each field begins.
mod value {
    /// The process id in the initial pid namespace, a u32.
    pub const PID: usize = 0;
    /// 1 if that process closed the connection, 0 if it connected; a u32.
    pub const CLOSED: usize = 4;
    pub const SIZE: usize = 8;
}

/// The kernel's records of owners. Dropping this ends the recording.
#[derive(Debug)]
pub struct TcpOwners {
    map: Map<{ key::SIZE }, { value::SIZE }>,
    _link: OwnedFd,
}

impl TcpOwners {
    /// Loads the program and attaches it: the kernel records the connections that begin from now on.
    ///
    /// # Errors
    /// EPERM without the privileges; ENOSYS or EINVAL where the kernel is too old or built without cgroup BPF;
    /// Unsupported where this process is not in the initial pid namespace.
    pub fn attach() -> io::Result<Self> {
        in_initial_pid_namespace()?;
        let map = Map::create(MapType::LruHash, ENTRIES)?;
        let program = load(ProgramType::SockOps, AttachType::CgroupSockOps, &program(map.as_fd())?)?;
        let link = attach_to_cgroup_root(program.as_fd(), AttachType::CgroupSockOps)?;
        Ok(Self { map, _link: link })
    }

    /// The process at the source of `tuple`: the one that connected it, or the one that has closed the connection
    /// there. The key has no network namespace: equal tuples in two namespaces share a record.
    pub fn owner(&self, tuple: &Tuple) -> Option<u32> {
        self.read(tuple).map(|record| record.pid)
    }

    /// The process that closed the connection of `tuple` at its source.
    pub fn closed_by(&self, tuple: &Tuple) -> Option<u32> {
        self.read(tuple).filter(|record| record.closed).map(|record| record.pid)
    }

    fn read(&self, tuple: &Tuple) -> Option<Record> {
        self.map.lookup(&to_key(tuple.source, tuple.destination)).map(parse)
    }
}

/// A value of the map.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    pid: u32,
    closed: bool,
}

fn parse(value: [u8; value::SIZE]) -> Record {
    let [p0, p1, p2, p3, closed @ ..] = value;
    Record { pid: u32::from_ne_bytes([p0, p1, p2, p3]), closed: closed != [0; 4] }
}

fn to_key(local: Endpoint, remote: Endpoint) -> [u8; key::SIZE] {
    let mut bytes = [0; key::SIZE];
    bytes[key::LOCAL_ADDRESS..key::REMOTE_ADDRESS].copy_from_slice(&local.ipv6().octets());
    bytes[key::REMOTE_ADDRESS..key::LOCAL_PORT].copy_from_slice(&remote.ipv6().octets());
    bytes[key::LOCAL_PORT..key::REMOTE_PORT].copy_from_slice(&u32::from(local.port).to_ne_bytes());
    bytes[key::REMOTE_PORT + 2..].copy_from_slice(&remote.port.to_be_bytes());
    bytes
}

/// The program's context, struct bpf_sock_ops: where each field that it reads begins.
mod context {
    pub const OP: i16 = 0;
    /// With STATE_CB the state that the socket is about to have: `args[1]`.
    pub const NEW_STATE: i16 = 8;
    pub const FAMILY: i16 = 20;
    pub const REMOTE_IP4: i16 = 24;
    pub const LOCAL_IP4: i16 = 28;
    pub const REMOTE_IP6: i16 = 32;
    pub const LOCAL_IP6: i16 = 48;
    pub const REMOTE_PORT: i16 = 64;
    pub const LOCAL_PORT: i16 = 68;
    /// 0 for a request_sock, a connection of which only the SYN has come in.
    pub const IS_FULLSOCK: i16 = 72;
    pub const CB_FLAGS: i16 = 84;
}

// Values of `op`: BPF_SOCK_OPS_….
const RWND_INIT: i32 = 2;
const TCP_CONNECT_CB: i32 = 3;
const PASSIVE_ESTABLISHED_CB: i32 = 5;
const STATE_CB: i32 = 10;
/// BPF_SOCK_OPS_STATE_CB_FLAG: among a socket's callback flags, the one that asks for STATE_CB.
const STATE_CB_FLAG: i32 = 1 << 2;
// Values of the new state: BPF_TCP_….
const FIN_WAIT1: i32 = 4;
const LAST_ACK: i32 = 9;

// The registers that calls leave alone: the program keeps its context, `op`, and `CLOSED` of the value in them.
const CONTEXT: Register = R6;
const OP: Register = R7;
const CLOSED: Register = R8;
/// The key and the value on the stack: their offsets from its end.
const KEY: i16 = -(key::SIZE as i16);
const VALUE: i16 = KEY - value::SIZE as i16;

/// The program, which writes to `map`. It runs these of its blocks:
///
/// ```text
/// TCP_CONNECT_CB                             key, record, follow
/// RWND_INIT for a SYN                        key, delete
/// PASSIVE_ESTABLISHED_CB                     follow
/// STATE_CB for FIN_WAIT1 or LAST_ACK         key, record
/// ```
fn program(map: BorrowedFd<'_>) -> io::Result<Vec<Instruction>> {
    use Instruction as I;
    let map = map.as_raw_fd();
    let mut code = Assembler::default();

    // Selects the block by the event.
    code.push([I::copy(CONTEXT, R1), I::load(OP, CONTEXT, context::OP), I::set(CLOSED, 0)]);
    code.jump_if_equal(OP, TCP_CONNECT_CB, "key");
    code.jump_if_equal(OP, PASSIVE_ESTABLISHED_CB, "follow");
    // RWND_INIT also comes for a connection that this host makes, but then with a full socket.
    code.push([I::load(R0, CONTEXT, context::IS_FULLSOCK)]);
    code.jump_unless_equal(OP, RWND_INIT, "change of state");
    code.jump_if_equal(R0, 0, "key");
    code.label("change of state");
    code.jump_unless_equal(OP, STATE_CB, "end");
    code.push([I::set(CLOSED, 1), I::load(R0, CONTEXT, context::NEW_STATE)]);
    code.jump_if_equal(R0, FIN_WAIT1, "key");
    code.jump_unless_equal(R0, LAST_ACK, "end");

    code.label("key");
    // Writes the key to the stack.
    code.push([I::load(R1, CONTEXT, context::FAMILY)]);
    code.jump_unless_equal(R1, libc::AF_INET6, "IPv4");
    code.push(copy_ipv6(context::LOCAL_IP6, KEY + key::LOCAL_ADDRESS as i16));
    code.push(copy_ipv6(context::REMOTE_IP6, KEY + key::REMOTE_ADDRESS as i16));
    code.jump("ports");
    code.label("IPv4");
    code.push(copy_ipv4(context::LOCAL_IP4, KEY + key::LOCAL_ADDRESS as i16));
    code.push(copy_ipv4(context::REMOTE_IP4, KEY + key::REMOTE_ADDRESS as i16));
    code.label("ports");
    code.push(copy_word(context::LOCAL_PORT, KEY + key::LOCAL_PORT as i16));
    code.push(copy_word(context::REMOTE_PORT, KEY + key::REMOTE_PORT as i16));
    code.jump_if_equal(OP, RWND_INIT, "delete");

    code.label("record");
    // Writes the current process to the map: bpf_map_update_elem(map, key, value, BPF_ANY). The upper half of the
    // result of bpf_get_current_pid_tgid is the id of the thread group, which user space calls the pid.
    code.push([
        I::call(Helper::GetCurrentPidTgid),
        I::shift_right(R0, 32),
        I::store(STACK, VALUE + value::PID as i16, R0),
        I::store(STACK, VALUE + value::CLOSED as i16, CLOSED),
    ]);
    code.push(I::load_map(R1, map));
    code.push([I::copy(R2, STACK), I::add(R2, KEY.into())]);
    code.push([I::copy(R3, STACK), I::add(R3, VALUE.into())]);
    code.push([I::set(R4, 0), I::call(Helper::MapUpdateElem)]);
    code.jump_if_equal(OP, STATE_CB, "end");
    code.jump("follow");

    code.label("delete");
    // Removes the record of an earlier connection: bpf_map_delete_elem(map, key).
    code.push(I::load_map(R1, map));
    code.push([I::copy(R2, STACK), I::add(R2, KEY.into()), I::call(Helper::MapDeleteElem)]);
    code.jump("end");

    code.label("follow");
    // Asks for STATE_CB from this socket, besides the callbacks that other programs have asked for.
    code.push([
        I::copy(R1, CONTEXT),
        I::load(R2, CONTEXT, context::CB_FLAGS),
        I::or(R2, STATE_CB_FLAG),
        I::call(Helper::SockOpsCbFlagsSet),
    ]);

    code.label("end");
    // With 1, the kernel goes on as usual.
    code.push([I::set(R0, 1), I::exit()]);
    code.assemble()
}

/// Copies 32 bits from the context to the stack.
fn copy_word(from: i16, to: i16) -> [Instruction; 2] {
    [Instruction::load(R1, CONTEXT, from), Instruction::store(STACK, to, R1)]
}

/// Copies an IPv6 address from the context to the stack.
fn copy_ipv6(from: i16, to: i16) -> impl Iterator<Item = Instruction> {
    [0, 4, 8, 12].into_iter().flat_map(move |at| copy_word(from + at, to + at))
}

/// Copies an IPv4 address from the context to the stack, mapped into IPv6: the prefix ::ffff:0:0/96 and the address.
fn copy_ipv4(from: i16, to: i16) -> impl Iterator<Item = Instruction> {
    let prefix = [0, 0, i32::from_ne_bytes([0, 0, 0xff, 0xff])];
    let words = [0, 4, 8].into_iter().zip(prefix);
    words.map(move |(at, word)| Instruction::store_value(STACK, to + at, word)).chain(copy_word(from, to + 12))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    #[test]
    fn the_program_reaches_all_its_labels() {
        // Any descriptor will do: it is a number in the program.
        assert!(program(io::stderr().as_fd()).is_ok());
    }

    #[test]
    fn a_key_is_laid_out_as_struct_bpf_sock_ops_has_its_fields() {
        let end = |octet, port| Endpoint::new(IpAddr::from(Ipv4Addr::new(10, 0, 0, octet)), port);
        let bytes = to_key(end(1, 0x1234), end(2, 0x5678));
        let mapped = |octet| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, octet];
        let expected = [&mapped(1)[..], &mapped(2), &0x1234u32.to_ne_bytes(), &[0, 0, 0x56, 0x78]].concat();
        assert_eq!(bytes[..], expected);
    }

    #[test]
    fn a_value_is_the_process_and_whether_it_closed() {
        let bytes = |closed: u32| [4711u32.to_ne_bytes(), closed.to_ne_bytes()].concat().try_into().unwrap();
        assert_eq!(parse(bytes(0)), Record { pid: 4711, closed: false });
        assert_eq!(parse(bytes(1)), Record { pid: 4711, closed: true });
    }
}
