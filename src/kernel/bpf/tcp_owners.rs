//! Who connects and who closes: the kernel notes the process of every TCP connection that is made here, before its first
//! packet is sent, and the one that closes it, from whichever side it was made.
//!
//! A connection that is over within some 50 µs has left no socket to ask about when its first event arrives. Nor has one
//! that ended since the last tick, and whoever had it last was perhaps started for it alone. So a BPF program of the kind
//! sock_ops is attached to the root of the cgroup2 hierarchy. Called at each connect(2) and, for the connections that it
//! saw begin, at each change of the state to FIN_WAIT1 or LAST_ACK, which is made by whoever closes last, it writes the
//! connection's two ends and the process id into an LRU hash that is read here; when a connection from elsewhere begins,
//! it removes the note of one that had the same ends. It needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN) and Linux
//! 5.10; without it such connections are found less often. When this program ends, however it ends, the kernel takes both
//! away.
//!
//! See bpf(2), include/uapi/linux/bpf.h (struct bpf_sock_ops) and, for the moments of the calls, `tcp_connect` in
//! net/ipv4/tcp_output.c, `tcp_close_state` in net/ipv4/tcp.c and `tcp_conn_request` in net/ipv4/tcp_input.c. A reset has
//! no such moment: a close(2) that makes one and one that has come look the same.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::kernel::flow::{Endpoint, Tuple};

/// Connections that are remembered: those of several seconds on a very busy host, some 7 MB in the kernel.
const ENTRIES: u32 = 65_536;

/// The hash's key: the local address and the remote one, IPv4 mapped into IPv6, then the local port as a number of 32 bits
/// and the remote one in network order behind two bytes of zeros, as struct bpf_sock_ops has them.
const KEY: usize = 40;
/// The hash's value: the process id, and whether it has closed the connection.
const VALUE: usize = 8;

/// PROC_PID_INIT_INO of include/linux/proc_ns.h, as a link shows it.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The numbers of include/uapi/linux/bpf.h.
mod number {
    pub const MAP_CREATE: i64 = 0;
    pub const MAP_LOOKUP_ELEM: i64 = 1;
    pub const PROG_LOAD: i64 = 5;
    pub const LINK_CREATE: i64 = 28;
    pub const MAP_TYPE_LRU_HASH: u32 = 9;
    pub const PROG_TYPE_SOCK_OPS: u32 = 13;
    pub const CGROUP_SOCK_OPS: u32 = 3;
    /// BPF_SOCK_OPS_TCP_CONNECT_CB
    pub const TCP_CONNECT: i32 = 3;
    /// BPF_SOCK_OPS_RWND_INIT
    pub const WINDOW_INIT: i32 = 2;
    /// BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
    pub const PASSIVE_ESTABLISHED: i32 = 5;
    /// BPF_SOCK_OPS_STATE_CB
    pub const STATE: i32 = 10;
    /// BPF_SOCK_OPS_STATE_CB_FLAG
    pub const STATE_FLAG: i32 = 4;
    /// BPF_TCP_FIN_WAIT1 and BPF_TCP_LAST_ACK
    pub const FIN_WAIT1: i32 = 4;
    pub const LAST_ACK: i32 = 9;
    pub const HELPER_MAP_UPDATE_ELEM: i32 = 2;
    pub const HELPER_MAP_DELETE_ELEM: i32 = 3;
    pub const HELPER_GET_CURRENT_PID_TGID: i32 = 14;
    pub const HELPER_CB_FLAGS_SET: i32 = 59;
}

/// The noted connections, for as long as this lives.
#[derive(Debug)]
pub struct Connects {
    map: OwnedFd,
    _link: OwnedFd,
}

impl Connects {
    /// Begins to note.
    ///
    /// # Errors
    /// EPERM without the privileges, ENOSYS or EINVAL where the kernel is too old or built without cgroup BPF, and where
    /// this program is not in the initial pid namespace.
    pub fn note() -> io::Result<Self> {
        // The program is told the pids of the initial namespace, which mean others here.
        if std::fs::read_link("/proc/self/ns/pid")?.to_str() != Some(INITIAL_PID_NAMESPACE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut attributes = Attributes::default();
        attributes.push(number::MAP_TYPE_LRU_HASH).push(KEY as u32).push(VALUE as u32).push(ENTRIES);
        let map = attributes.open(number::MAP_CREATE)?;

        let program: Vec<u8> = program(map.as_raw_fd()).iter().flat_map(|instruction| instruction.0).collect();
        let mut attributes = Attributes::default();
        attributes.push(number::PROG_TYPE_SOCK_OPS).push((program.len() / 8) as u32);
        attributes.push_pointer(program.as_ptr()).push_pointer(c"BSD".as_ptr().cast());
        let program_fd = attributes.open(number::PROG_LOAD)?;

        let root = cgroup_root()?;
        let mut attributes = Attributes::default();
        attributes.push(program_fd.as_raw_fd() as u32).push(root.as_raw_fd() as u32).push(number::CGROUP_SOCK_OPS);
        Ok(Self { map, _link: attributes.open(number::LINK_CREATE)? })
    }

    /// The process that connected the source of `tuple` to its destination, in whichever network namespace, or that has
    /// closed it.
    pub fn process(&self, tuple: &Tuple) -> Option<u32> {
        self.read(tuple).map(|note| note.pid)
    }

    /// The process that closed the connection of `tuple` at its source.
    pub fn closer(&self, tuple: &Tuple) -> Option<u32> {
        self.read(tuple).filter(|note| note.closed).map(|note| note.pid)
    }

    fn read(&self, tuple: &Tuple) -> Option<Note> {
        let key = key(tuple.source, tuple.destination);
        let mut value = [0; VALUE];
        let mut attributes = Attributes::default();
        // The pointers stand at multiples of 8.
        attributes.push(self.map.as_raw_fd() as u32).push(0);
        attributes.push_pointer(key.as_ptr()).push_pointer(value.as_mut_ptr());
        attributes.call(number::MAP_LOOKUP_ELEM).ok()?;
        let [p0, p1, p2, p3, closed @ ..] = value;
        Some(Note { pid: u32::from_ne_bytes([p0, p1, p2, p3]), closed: closed != [0; 4] })
    }
}

struct Note {
    pid: u32,
    closed: bool,
}

fn key(local: Endpoint, remote: Endpoint) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[..16].copy_from_slice(&local.ipv6().octets());
    key[16..32].copy_from_slice(&remote.ipv6().octets());
    key[32..36].copy_from_slice(&u32::from(local.port).to_ne_bytes());
    key[38..40].copy_from_slice(&remote.port.to_be_bytes());
    key
}

/// A mount of the whole cgroup2 hierarchy that is nowhere in the file system: the host's own may be hidden (`ip netns
/// exec` does so) or missing.
fn cgroup_root() -> io::Result<OwnedFd> {
    let hierarchy = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&hierarchy)?;
    Ok(fsmount(&hierarchy, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// The arguments of a bpf(2) call, union bpf_attr: what is not said is zero.
#[derive(Default)]
struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    fn push(&mut self, number: u32) -> &mut Self {
        self.bytes.extend(number.to_ne_bytes());
        self
    }

    fn push_pointer(&mut self, pointer: *const u8) -> &mut Self {
        self.bytes.extend((pointer as u64).to_ne_bytes());
        self
    }

    fn call(&mut self, command: i64) -> io::Result<i64> {
        // What the kernel knows beyond this size is zero for it.
        self.bytes.resize(128, 0);
        // SAFETY: the kernel reads 128 bytes, which are there, and follows pointers only where `command` has them: to the
        // program and its licence, the key, and the value it writes, all of which outlive the call and have the sizes
        // that the map and the program were made with.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.bytes.as_mut_ptr(), self.bytes.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    fn open(&mut self, command: i64) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: these commands return a new descriptor, which nobody else knows.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// One instruction: struct bpf_insn.
struct Instruction([u8; 8]);

/// The registers: the result, the arguments, what is kept over calls (the context, what happened, whether it closes), and
/// the frame.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const CONTEXT: u8 = 6;
const EVENT: u8 = 7;
const CLOSES: u8 = 8;
const FRAME: u8 = 10;

impl Instruction {
    fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        let registers =
            if cfg!(target_endian = "little") { destination | source << 4 } else { destination << 4 | source };
        let (offset, immediate) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
        let [i0, i1, i2, i3] = immediate;
        Self([code, registers, offset[0], offset[1], i0, i1, i2, i3])
    }

    /// BPF_ALU64 | BPF_MOV
    fn copy(destination: u8, source: u8) -> Self {
        Self::new(0xbf, destination, source, 0, 0)
    }

    fn set(destination: u8, value: i32) -> Self {
        Self::new(0xb7, destination, 0, 0, value)
    }

    fn add(destination: u8, value: i32) -> Self {
        Self::new(0x07, destination, 0, 0, value)
    }

    /// BPF_ALU64 | BPF_OR
    fn or(destination: u8, bits: i32) -> Self {
        Self::new(0x47, destination, 0, 0, bits)
    }

    fn shift_right(destination: u8, bits: i32) -> Self {
        Self::new(0x77, destination, 0, 0, bits)
    }

    /// BPF_LDX | BPF_MEM | BPF_W: 32 bits of the context.
    fn load(destination: u8, offset: i16) -> Self {
        Self::new(0x61, destination, CONTEXT, offset, 0)
    }

    /// BPF_STX | BPF_MEM | BPF_W: 32 bits to the frame.
    fn store(offset: i16, source: u8) -> Self {
        Self::new(0x63, FRAME, source, offset, 0)
    }

    /// BPF_ST | BPF_MEM | BPF_W
    fn store_value(offset: i16, value: i32) -> Self {
        Self::new(0x62, FRAME, 0, offset, value)
    }

    /// BPF_JMP | BPF_JEQ
    fn skip_if_equal(register: u8, value: i32, instructions: i16) -> Self {
        Self::new(0x15, register, 0, instructions, value)
    }

    /// BPF_JMP | BPF_JNE
    fn skip_unless_equal(register: u8, value: i32, instructions: i16) -> Self {
        Self::new(0x55, register, 0, instructions, value)
    }

    /// BPF_JMP | BPF_JA
    fn skip(instructions: i16) -> Self {
        Self::new(0x05, 0, 0, instructions, 0)
    }

    /// BPF_LD | BPF_IMM | BPF_DW with BPF_PSEUDO_MAP_FD, which takes the place of two.
    fn map(destination: u8, fd: i32) -> [Self; 2] {
        [Self::new(0x18, destination, 1, 0, fd), Self::new(0, 0, 0, 0, 0)]
    }

    fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }
}

/// The program. Its context is a struct bpf_sock_ops.
fn program(map: i32) -> Vec<Instruction> {
    use Instruction as I;
    const OP: i16 = 0;
    const NEW_STATE: i16 = 8;
    const FAMILY: i16 = 20;
    const REMOTE_IP4: i16 = 24;
    const LOCAL_IP4: i16 = 28;
    const REMOTE_IP6: i16 = 32;
    const LOCAL_IP6: i16 = 48;
    const REMOTE_PORT: i16 = 64;
    const LOCAL_PORT: i16 = 68;
    /// 0 for a connection that is only asked for yet.
    const IS_FULL: i16 = 72;
    const CB_FLAGS: i16 = 84;
    /// Where the key and the value are in the frame.
    const TO_LOCAL: i16 = -40;
    const TO_REMOTE: i16 = -24;
    const TO_LOCAL_PORT: i16 = -8;
    const TO_REMOTE_PORT: i16 = -4;
    const TO_VALUE: i16 = -48;

    let ipv4 = |from: i16, to: i16| {
        // ::ffff:0:0/96 and the address
        let prefix = i32::from_ne_bytes([0, 0, 0xff, 0xff]);
        [
            I::store_value(to, 0),
            I::store_value(to + 4, 0),
            I::store_value(to + 8, prefix),
            I::load(R1, from),
            I::store(to + 12, R1),
        ]
    };
    let ipv6 = |from: i16, to: i16| {
        [0, 4, 8, 12].into_iter().flat_map(move |at| [I::load(R1, from + at), I::store(to + at, R1)])
    };

    let mut key: Vec<Instruction> = Vec::new();
    let v6: Vec<Instruction> = ipv6(LOCAL_IP6, TO_LOCAL).chain(ipv6(REMOTE_IP6, TO_REMOTE)).collect();
    let v4: Vec<Instruction> = ipv4(LOCAL_IP4, TO_LOCAL).into_iter().chain(ipv4(REMOTE_IP4, TO_REMOTE)).collect();
    key.push(I::load(R1, FAMILY));
    key.push(I::skip_unless_equal(R1, libc::AF_INET6, v6.len() as i16 + 1));
    key.extend(v6);
    key.push(I::skip(v4.len() as i16));
    key.extend(v4);
    key.extend([I::load(R1, LOCAL_PORT), I::store(TO_LOCAL_PORT, R1)]);
    key.extend([I::load(R1, REMOTE_PORT), I::store(TO_REMOTE_PORT, R1)]);

    // Has this called again when the connection's state changes, beside what others want to be called for.
    let follow = [
        I::copy(R1, CONTEXT),
        I::load(R2, CB_FLAGS),
        I::or(R2, number::STATE_FLAG),
        I::call(number::HELPER_CB_FLAGS_SET),
    ];

    let mut forget = Vec::from(I::map(R1, map));
    forget.extend([
        I::copy(R2, FRAME),
        I::add(R2, i32::from(TO_LOCAL)),
        I::call(number::HELPER_MAP_DELETE_ELEM),
        I::skip(follow.len() as i16),
    ]);

    let mut note = vec![
        I::call(number::HELPER_GET_CURRENT_PID_TGID),
        // The upper half is the thread group's id, which is the process'.
        I::shift_right(R0, 32),
        I::store(TO_VALUE, R0),
        I::store(TO_VALUE + 4, CLOSES),
    ];
    note.extend(I::map(R1, map));
    note.extend([
        I::copy(R2, FRAME),
        I::add(R2, i32::from(TO_LOCAL)),
        I::copy(R3, FRAME),
        I::add(R3, i32::from(TO_VALUE)),
        I::set(R4, 0),
        I::call(number::HELPER_MAP_UPDATE_ELEM),
        I::skip_if_equal(EVENT, number::STATE, (1 + forget.len() + follow.len()) as i16),
        I::skip(forget.len() as i16),
    ]);

    let mut with_key = key;
    with_key.push(I::skip_if_equal(EVENT, number::WINDOW_INIT, note.len() as i16));
    with_key.extend(note.into_iter().chain(forget));

    let to_follow = with_key.len() as i16;
    let to_end = to_follow + follow.len() as i16;
    let mut program = vec![
        I::copy(CONTEXT, R1),
        I::load(EVENT, OP),
        I::set(CLOSES, 0),
        I::skip_if_equal(EVENT, number::TCP_CONNECT, 9),
        I::skip_if_equal(EVENT, number::PASSIVE_ESTABLISHED, 8 + to_follow),
        I::load(R0, IS_FULL),
        I::skip_unless_equal(EVENT, number::WINDOW_INIT, 1),
        I::skip_if_equal(R0, 0, 5),
        I::skip_unless_equal(EVENT, number::STATE, 4 + to_end),
        I::set(CLOSES, 1),
        I::load(R0, NEW_STATE),
        I::skip_if_equal(R0, number::FIN_WAIT1, 1),
        I::skip_unless_equal(R0, number::LAST_ACK, to_end),
    ];
    program.extend(with_key);
    program.extend(follow);
    program.extend([I::set(R0, 1), I::exit()]);
    program
}
