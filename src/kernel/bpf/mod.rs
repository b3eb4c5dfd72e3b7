//! BPF programs: code of ours that the kernel runs at the moment something happens, where user space would come too
//! late.
//!
//! ```text
//! Assembler ── BPF_PROG_LOAD ──> verifier ──> program, attached to the cgroup2 root by BPF_LINK_CREATE
//!                                                │ writes
//! Map::lookup <── BPF_MAP_LOOKUP_ELEM ── map <───┘
//! ```
//! The programs are written here as instructions, so that neither a compiler nor a loader is needed to build or run
//! them. `Map::create` makes the map that a program writes to, `load` hands the program to the kernel's verifier, and
//! `attach_to_cgroup_root` makes the kernel run it for the processes of the whole host, `attach_to_function` at each return
//! of a function of the kernel. Map, program and link live as long as our descriptors for them: when this process ends, in
//! whatever way, the kernel detaches the program and frees the map.
//!
//! They need CAP_BPF, CAP_NET_ADMIN and, for the mount of cgroup2, CAP_SYS_ADMIN, all in the initial user namespace;
//! and Linux 5.10 with CONFIG_CGROUP_BPF.
//!
//! `unsafe` are here one bpf(2) system call, and taking the descriptor that it returns.
//!
//! Where to read on: [`packet_counters`] counts packets per socket, by the programs in `packet_programs` and `time_wait`;
//! [`tcp_owners`] records the owners of TCP connections; [`program_starts`] notes what programs are called; `room` shares
//! the room of their maps; `instruction` is the language in which they are written, and `btf` tells them where the kernel keeps
//! what they read.
//! See bpf(2) and, for all names and numbers, include/uapi/linux/bpf.h; the kernel's side is kernel/bpf/syscall.c.

mod btf;
#[doc(hidden)]
pub mod census;
mod instruction;
pub mod packet_counters;
mod packet_programs;
pub mod program_starts;
mod room;
pub mod tcp_owners;
mod time_wait;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::libc;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use instruction::Instruction;

/// Where union bpf_attr has `expected_attach_type` and `attach_btf_id` for BPF_PROG_LOAD.
const EXPECTED_ATTACH_TYPE: usize = 68;
const ATTACH_BTF_ID: usize = 108;

// enum bpf_cmd.
const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_LOOKUP_ELEM: i64 = 1;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_MAP_DELETE_ELEM: i64 = 3;
const BPF_MAP_GET_NEXT_KEY: i64 = 4;
const BPF_PROG_LOAD: i64 = 5;
const BPF_PROG_TEST_RUN: i64 = 10;
const BPF_MAP_GET_FD_BY_ID: i64 = 14;
const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
const BPF_RAW_TRACEPOINT_OPEN: i64 = 17;
const BPF_MAP_LOOKUP_BATCH: i64 = 24;
const BPF_MAP_LOOKUP_AND_DELETE_BATCH: i64 = 25;
const BPF_LINK_CREATE: i64 = 28;

/// A flag of BPF_MAP_CREATE.
const BPF_F_NO_PREALLOC: u32 = 1;

/// enum bpf_map_type. Add only types whose lookup yields one value: the lookup of a per-CPU map yields one for each
/// possible CPU, for which [`Map::lookup`] has no room.
#[derive(Debug, Clone, Copy)]
enum MapType {
    /// BPF_MAP_TYPE_HASH: when it is full, it refuses further keys.
    Hash = 1,
    /// BPF_MAP_TYPE_ARRAY: keys are indices of 32 bits, and every entry exists from the beginning.
    Array = 2,
    /// BPF_MAP_TYPE_PERCPU_ARRAY, of which programs alone read the values: each those of the CPU that it runs on.
    PerCpuArray = 6,
    /// BPF_MAP_TYPE_LRU_HASH: when it is full, the least recently used entries make room.
    LruHash = 9,
}

/// enum bpf_prog_type: the events at which the kernel calls the program, and the context it passes.
#[derive(Debug, Clone, Copy)]
enum ProgramType {
    /// BPF_PROG_TYPE_CGROUP_SKB: packets that a socket sends or receives, with a struct __sk_buff.
    CgroupSkb = 8,
    /// BPF_PROG_TYPE_CGROUP_SOCK: sockets that are made or released, with a struct bpf_sock.
    CgroupSock = 9,
    /// BPF_PROG_TYPE_CGROUP_SOCK_ADDR: addresses that are given to connect(2), with a struct bpf_sock_addr.
    CgroupSockAddr = 18,
    /// BPF_PROG_TYPE_SOCK_OPS: events of TCP sockets, with a struct bpf_sock_ops.
    SockOps = 13,
    /// BPF_PROG_TYPE_TRACING: calls of a function of the kernel, with its arguments.
    Tracing = 26,
}

/// enum bpf_attach_type.
#[derive(Debug, Clone, Copy)]
enum AttachType {
    /// BPF_CGROUP_INET_INGRESS: each packet that a socket of the cgroup is about to receive.
    CgroupInetIngress = 0,
    /// BPF_CGROUP_INET_EGRESS: each packet that it sends.
    CgroupInetEgress = 1,
    /// BPF_CGROUP_INET_SOCK_CREATE: socket(2).
    CgroupInetSockCreate = 2,
    /// BPF_CGROUP_INET4_CONNECT and BPF_CGROUP_INET6_CONNECT: connect(2).
    CgroupInet4Connect = 10,
    CgroupInet6Connect = 11,
    /// BPF_CGROUP_INET_SOCK_RELEASE: the last close(2) of a socket, from Linux 5.9 on.
    CgroupInetSockRelease = 34,
    /// BPF_CGROUP_SOCK_OPS: the sockets of a cgroup and of those below it.
    CgroupSockOps = 3,
    /// BPF_TRACE_RAW_TP: each time that the kernel passes a tracepoint.
    TraceRawTp = 23,
    /// BPF_TRACE_FEXIT: each return of the function, with the result after the arguments.
    TraceFexit = 25,
}

/// Entries that one bpf(2) call reads, and the most that it is ever given room for; and the same in bytes of values.
const BATCH: usize = 4096;
const MOST_IN_BATCH: usize = 1 << 20;
const BATCH_BYTES: usize = 1 << 20;

/// A map with keys of `KEY` and values of `VALUE` bytes.
#[derive(Debug)]
struct Map<const KEY: usize, const VALUE: usize> {
    fd: OwnedFd,
}

impl<const KEY: usize, const VALUE: usize> Map<KEY, VALUE> {
    /// Makes an empty map for at most `entries` entries.
    ///
    /// # Errors
    /// EPERM without the privileges, ENOSYS where the kernel has no bpf(2).
    fn create(map_type: MapType, entries: u32) -> io::Result<Self> {
        let mut attr = BpfAttr::default();
        attr.push(map_type as u32).push(KEY as u32).push(VALUE as u32).push(entries);
        Ok(Self { fd: attr.open(BPF_MAP_CREATE)? })
    }

    /// The same, with memory for the entries that there are, not for all that there may be.
    fn create_as_needed(map_type: MapType, entries: u32) -> io::Result<Self> {
        let mut attr = BpfAttr::default();
        attr.push(map_type as u32).push(KEY as u32).push(VALUE as u32).push(entries).push(BPF_F_NO_PREALLOC);
        Ok(Self { fd: attr.open(BPF_MAP_CREATE)? })
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    /// E2BIG where the map is full, or has no such index.
    fn update(&self, key: &[u8; KEY], value: &[u8; VALUE]) -> io::Result<()> {
        let mut attr = BpfAttr::default();
        // BPF_ANY: whether the key exists or not.
        attr.push(self.fd.as_raw_fd() as u32).push(0);
        attr.push_pointer(key.as_ptr()).push_pointer(value.as_ptr()).push(0).push(0);
        attr.call(BPF_MAP_UPDATE_ELEM).map(|_| ())
    }

    /// Removes `key`, if the map has it.
    fn delete(&self, key: &[u8; KEY]) {
        let mut attr = BpfAttr::default();
        attr.push(self.fd.as_raw_fd() as u32).push(0).push_pointer(key.as_ptr());
        // ENOENT: it is not there.
        let _ = attr.call(BPF_MAP_DELETE_ELEM);
    }

    /// Calls `visit` with every entry, and with `delete` removes it from the map. What programs write meanwhile may be
    /// missing.
    ///
    /// # Errors
    /// EINVAL where the kernel has no such command for this type of map, or what bpf(2) gives.
    fn drain(&self, delete: bool, mut visit: impl FnMut(&[u8; KEY], &[u8; VALUE])) -> io::Result<()> {
        let command = if delete { BPF_MAP_LOOKUP_AND_DELETE_BATCH } else { BPF_MAP_LOOKUP_BATCH };
        let mut room = BATCH.min(BATCH_BYTES / VALUE);
        let mut keys = vec![[0; KEY]; room];
        let mut values = vec![[0; VALUE]; room];
        // Where the batch begins and where the next one does: numbers of hash buckets.
        let (mut from, mut next) = ([0; 8], [0; 8]);
        let mut first = true;
        loop {
            let mut attr = BpfAttr::default();
            attr.push_pointer(if first { std::ptr::null() } else { from.as_ptr() });
            attr.push_pointer(next.as_mut_ptr());
            attr.push_pointer(keys.as_mut_ptr().cast()).push_pointer(values.as_mut_ptr().cast());
            let count_at = attr.bytes.len();
            attr.push(room as u32).push(self.fd.as_raw_fd() as u32);
            let result = attr.call(command);
            let done = match result {
                Ok(_) => false,
                // The last batch.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // One bucket has more entries than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < MOST_IN_BATCH => {
                    room *= 2;
                    keys.resize(room, [0; KEY]);
                    values.resize(room, [0; VALUE]);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = attr.bytes.get(count_at..count_at + 4).and_then(|bytes| bytes.try_into().ok());
            let count = count.map_or(0, u32::from_ne_bytes) as usize;
            keys.iter().zip(&values).take(count).for_each(|(key, value)| visit(key, value));
            if done {
                return Ok(());
            }
            (from, first) = (next, false);
        }
    }

    /// The value of `key`, if the map has one.
    fn lookup(&self, key: &[u8; KEY]) -> Option<[u8; VALUE]> {
        let mut value = [0; VALUE];
        let mut attr = BpfAttr::default();
        // The 0 is padding: it aligns the pointers to 8 bytes.
        attr.push(self.fd.as_raw_fd() as u32).push(0);
        attr.push_pointer(key.as_ptr()).push_pointer(value.as_mut_ptr());
        attr.call(BPF_MAP_LOOKUP_ELEM).ok()?;
        Some(value)
    }
}

impl<const KEY: usize, const VALUE: usize> AsFd for Map<KEY, VALUE> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Loads a program, which the kernel verifies first.
///
/// # Errors
/// EPERM without the privileges; EINVAL or EACCES where the verifier refuses the program, for instance since the kernel
/// is too old to have one of its helpers.
fn load(program_type: ProgramType, attach_type: AttachType, program: &[Instruction]) -> io::Result<OwnedFd> {
    load_for(program_type, attach_type, 0, program)
}

/// As [`load`], for a function or a tracepoint of the kernel that has the id `function` in its [`btf`].
fn load_for(
    program_type: ProgramType,
    attach_type: AttachType,
    function: u32,
    program: &[Instruction],
) -> io::Result<OwnedFd> {
    let bytes: Vec<u8> = program.iter().flat_map(|instruction| instruction.0).collect();
    let mut attr = BpfAttr::default();
    attr.push(program_type as u32).push(program.len() as u32);
    // The kernel lets only what may be combined with it read its own structures. The BSD licence permits that.
    attr.push_pointer(bytes.as_ptr()).push_pointer(c"Dual BSD/GPL".as_ptr().cast());
    attr.bytes.resize(EXPECTED_ATTACH_TYPE, 0);
    attr.push(attach_type as u32);
    attr.bytes.resize(ATTACH_BTF_ID, 0);
    attr.push(function);
    attr.open(BPF_PROG_LOAD)
}

/// Attaches a program to the root of the cgroup2 hierarchy. It stays attached for as long as the returned link is open.
///
/// # Errors
/// EPERM without the privileges, EINVAL where the kernel is too old for links or built without cgroup BPF, or the error
/// of mounting cgroup2.
fn attach_to_cgroup_root(program: BorrowedFd<'_>, attach_type: AttachType) -> io::Result<OwnedFd> {
    let root = cgroup_root()?;
    let mut attr = BpfAttr::default();
    attr.push(program.as_raw_fd() as u32).push(root.as_raw_fd() as u32).push(attach_type as u32);
    attr.open(BPF_LINK_CREATE)
}

/// Attaches a program of the type Tracing to the function or tracepoint that it was loaded for. It stays attached for as long
/// as the returned link is open.
///
/// # Errors
/// EPERM without the privileges; ENOTSUPP or EINVAL where the kernel cannot trace the function.
fn attach_to_function(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = BpfAttr::default();
    // Without a name: the program has the function. BPF_LINK_CREATE does the same from Linux 5.19 on.
    attr.push_pointer(std::ptr::null()).push(program.as_raw_fd() as u32);
    attr.open(BPF_RAW_TRACEPOINT_OPEN)
}

/// PROC_PID_INIT_INO of include/linux/proc_ns.h, as /proc/self/ns/pid shows it.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Programs get the pids of the initial pid namespace, which mean other processes in any other.
///
/// # Errors
/// Unsupported where this process is in another.
fn in_initial_pid_namespace() -> io::Result<()> {
    match std::fs::read_link("/proc/self/ns/pid")?.to_str() {
        Some(INITIAL_PID_NAMESPACE) => Ok(()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Runs a program of the type cgroup_skb on a made-up Ethernet frame, whose `context` is a struct __sk_buff. The kernel gives
/// the frame a socket of its own.
///
/// # Errors
/// EPERM without the privileges, EINVAL for a frame or context that the kernel does not take.
fn test_run(program: BorrowedFd<'_>, frame: &[u8], context: &[u8]) -> io::Result<()> {
    let mut attr = BpfAttr::default();
    attr.push(program.as_raw_fd() as u32).push(0).push(frame.len() as u32).push(0);
    attr.push_pointer(frame.as_ptr()).push_pointer(std::ptr::null());
    // Once, without asking for the time it takes.
    attr.push(1).push(0).push(context.len() as u32).push(0);
    attr.push_pointer(context.as_ptr()).push_pointer(std::ptr::null());
    attr.call(BPF_PROG_TEST_RUN).map(|_| ())
}

/// A mount of the whole cgroup2 hierarchy that appears nowhere in the file system: the host's own mount may be hidden
/// (`ip netns exec` does so) or missing. Where a service manager lets its services mount nothing, the host's own.
fn cgroup_root() -> io::Result<OwnedFd> {
    let hierarchy = match fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(rustix::io::Errno::PERM) => return mounted_cgroup_root(),
        hierarchy => hierarchy?,
    };
    fsconfig_create(&hierarchy)?;
    Ok(fsmount(&hierarchy, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// The inode of the root in kernfs (fs/kernfs/dir.c, `kernfs_create_root`): in a cgroup namespace, another one may be mounted there.
const ROOT_INODE: u64 = 1;

fn mounted_cgroup_root() -> io::Result<OwnedFd> {
    let root = File::open("/sys/fs/cgroup")?;
    let is_cgroup2 = fstatfs(&root)?.filesystem_type() == CGROUP2_SUPER_MAGIC;
    if !is_cgroup2 || root.metadata()?.ino() != ROOT_INODE {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(root.into())
}

/// The numbers in a key or a value, which has them; 0 beyond its end.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The argument of a bpf(2) call, union bpf_attr, built field by field; the fields not pushed are zero.
#[derive(Default)]
struct BpfAttr {
    bytes: Vec<u8>,
}

impl BpfAttr {
    /// The size of a union bpf_attr that has all fields used here. The kernel takes those beyond it as zero.
    const SIZE: usize = 128;

    fn push(&mut self, number: u32) -> &mut Self {
        self.bytes.extend(number.to_ne_bytes());
        self
    }

    fn push_pointer(&mut self, pointer: *const u8) -> &mut Self {
        self.bytes.extend((pointer as u64).to_ne_bytes());
        self
    }

    #[allow(unsafe_code)]
    fn call(&mut self, command: i64) -> io::Result<i64> {
        self.bytes.resize(Self::SIZE, 0);
        // SAFETY: the kernel reads SIZE bytes, which are there. It follows pointers only where `command` has them, and
        // all of them outlive the call: those to a program and its licence, pushed by `load`; those to keys, values and
        // the place of a batch, pushed by the methods of `Map`; those to a frame and its context, pushed by `test_run`; those to
        // two keys and to the description of a map, pushed by `census`. A program, a frame, a context and the description have
        // the lengths pushed with them, and the licence ends in NUL. Keys and values have the sizes that the map was created
        // with, which are parameters of its type, or in `census` what the kernel has described; batches have room for the number
        // of elements that is pushed with them.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.bytes.as_mut_ptr(), self.bytes.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    /// Calls a command that returns a descriptor; the kernel sets O_CLOEXEC on it.
    #[allow(unsafe_code)]
    fn open(&mut self, command: i64) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: all callers pass BPF_MAP_CREATE, BPF_MAP_GET_FD_BY_ID, BPF_PROG_LOAD, BPF_LINK_CREATE or
        // BPF_RAW_TRACEPOINT_OPEN. Each returns a new descriptor that nothing else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

    use super::*;

    #[test]
    fn where_nothing_can_be_mounted_the_hosts_own_cgroup_root_is_used() {
        let is_mounted = mounted_cgroup_root().is_ok();
        let eperm = SeccompAction::Errno(libc::EPERM as u32);
        let machine = std::env::consts::ARCH.try_into().unwrap();
        let refused = BTreeMap::from([(libc::SYS_fsopen, Vec::new())]);
        let filter = SeccompFilter::new(refused, SeccompAction::Allow, eperm, machine).unwrap();
        let filter: BpfProgram = filter.try_into().unwrap();
        let root = std::thread::spawn(move || apply_filter(&filter).map(|()| cgroup_root())).join().unwrap();
        let Ok(root) = root else { return };
        match root {
            Ok(root) => assert_eq!(File::from(root).metadata().unwrap().ino(), ROOT_INODE),
            Err(error) => assert!(!is_mounted, "{error}"),
        }
    }
}
