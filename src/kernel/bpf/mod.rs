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
//! `attach_to_cgroup_root` makes the kernel run it for the processes of the whole host. Map, program and link live as
//! long as our descriptors for them: when this process ends, in whatever way, the kernel detaches the program and frees
//! the map.
//!
//! It needs CAP_BPF, CAP_NET_ADMIN and, for the mount of cgroup2, CAP_SYS_ADMIN, all in the initial user namespace; and
//! Linux 5.10 with CONFIG_CGROUP_BPF.
//!
//! This folder holds all the `unsafe` code of the crate: one bpf(2) system call, and taking the descriptor it returns.
//!
//! Where to read on: [`tcp_owners`] is the only program so far; `instruction` has the language it is written in. See
//! bpf(2) and, for all names and numbers, include/uapi/linux/bpf.h; the kernel's side is kernel/bpf/syscall.c.

mod instruction;
pub mod tcp_owners;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use instruction::Instruction;

// enum bpf_cmd.
const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_LOOKUP_ELEM: i64 = 1;
const BPF_PROG_LOAD: i64 = 5;
const BPF_LINK_CREATE: i64 = 28;

/// enum bpf_map_type. Only types whose lookup yields one value may be added: that of a per-CPU map yields one for each
/// possible CPU, for which [`Map::lookup`] has no room.
#[derive(Debug, Clone, Copy)]
enum MapType {
    /// BPF_MAP_TYPE_LRU_HASH: when it is full, the least recently used entries make room.
    LruHash = 9,
}

/// enum bpf_prog_type: the events at which the kernel calls the program, and the context it passes.
#[derive(Debug, Clone, Copy)]
enum ProgramType {
    /// BPF_PROG_TYPE_SOCK_OPS: events of TCP sockets, with a struct bpf_sock_ops.
    SockOps = 13,
}

/// enum bpf_attach_type.
#[derive(Debug, Clone, Copy)]
enum AttachType {
    /// BPF_CGROUP_SOCK_OPS: the sockets of a cgroup and of those below it.
    CgroupSockOps = 3,
}

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

    /// The value of `key`, if the map has one.
    fn lookup(&self, key: &[u8; KEY]) -> Option<[u8; VALUE]> {
        let mut value = [0; VALUE];
        let mut attr = BpfAttr::default();
        // The padding puts the pointers at multiples of 8 bytes.
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
fn load(program_type: ProgramType, program: &[Instruction]) -> io::Result<OwnedFd> {
    let bytes: Vec<u8> = program.iter().flat_map(|instruction| instruction.0).collect();
    let mut attr = BpfAttr::default();
    attr.push(program_type as u32).push(program.len() as u32);
    // The licence decides which helpers the program may call; those it calls are open to all.
    attr.push_pointer(bytes.as_ptr()).push_pointer(c"BSD".as_ptr().cast());
    attr.open(BPF_PROG_LOAD)
}

/// Attaches a program to the root of the cgroup2 hierarchy. It stays attached for as long as the returned link is open.
///
/// # Errors
/// EPERM without the privileges, EINVAL where the kernel is too old for links or built without cgroup BPF, or what
/// mounting cgroup2 gives.
fn attach_to_cgroup_root(program: BorrowedFd<'_>, attach_type: AttachType) -> io::Result<OwnedFd> {
    let root = cgroup_root()?;
    let mut attr = BpfAttr::default();
    attr.push(program.as_raw_fd() as u32).push(root.as_raw_fd() as u32).push(attach_type as u32);
    attr.open(BPF_LINK_CREATE)
}

/// A mount of the whole cgroup2 hierarchy that appears nowhere in the file system: the host's own mount may be hidden
/// (`ip netns exec` does so) or missing.
fn cgroup_root() -> io::Result<OwnedFd> {
    let hierarchy = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&hierarchy)?;
    Ok(fsmount(&hierarchy, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
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
        // SAFETY: the kernel reads SIZE bytes, which are there. It follows pointers only where `command` has them:
        // those to a program and its licence, pushed by `load`, and those to a key and a value, pushed by
        // `Map::lookup`. All of them outlive the call. A program has the length pushed with it, the licence ends in
        // NUL, and key and value have the sizes that the map was created with, as both are parameters of its type.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.bytes.as_mut_ptr(), self.bytes.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    /// Calls a command that returns a descriptor; the kernel sets O_CLOEXEC on it.
    #[allow(unsafe_code)]
    fn open(&mut self, command: i64) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: BPF_MAP_CREATE, BPF_PROG_LOAD and BPF_LINK_CREATE, which alone come here, return a new descriptor
        // that nothing else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
