//! What each program is called, whose it is and where it belongs, noted by the kernel as the program starts: a process may have
//! ended before anyone reads it in /proc.
//!
//! ```text
//! execve(2) ──▶ tracepoint sched_process_exec ──▶ a map: (pid, time) → note ──▶ read once a tick
//! ```
//! The program follows the kernel's own pointers, to where BTF says that they are:
//!
//! ```text
//! task_struct ─┬─ mm ─┬─ arg_start .. arg_end, in the memory of the process   as /proc/PID/cmdline
//!              │      └─ exe_file ── dentry ── d_parent ── …, mnt             as /proc/PID/exe
//!              ├─ cred ── euid                                                as the owner of /proc/PID
//!              ├─ start_boottime, comm                                        as /proc/PID/stat
//!              ├─ cgroups ── dfl_cgrp ── kn ── parent ── …                    as the line of cgroup2 in /proc/PID/cgroup
//!              └─ files ── fdt ── open_fds, fd ── f_inode ── i_mode           whether it has sockets
//! ```
//! At the tracepoint the process has its new memory, and has closed what was to be closed by execve(2). The names of a path are noted
//! from its end to its beginning, each with a NUL behind it. See `exec_binprm` in fs/exec.c and `prepend_path` in fs/d_path.c.
//!
//! It needs Linux 5.10 with CONFIG_DEBUG_INFO_BTF, and a kernel that lets its memory be read (not kernel_lockdown(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use super::btf::{Btf, Function};
use super::instruction::{Assembler, Helper, Instruction, R0, R1, R2, R3, R4, R6, R7, R8, R9, Register, STACK};
use super::room::{self, Limits, Of, Room};
use super::{
    AttachType, Map, MapType, ProgramType, attach_to_function, in_initial_pid_namespace, load_for, u32_at, u64_at,
};
use crate::kernel::process::Process;
use crate::workload::cgroup::{Cgroup, host_root};

/// Programs that are noted between two reads, and how many of a share if these are nearly all; 4 kB each in the kernel, while they wait.
const NOTES: Limits = Limits { entries: 8192, few: 256 };

/// The key of a note: where each field begins.
mod key {
    /// The process id in the initial pid namespace, a u32.
    pub const PID: usize = 0;
    /// In ns of CLOCK_MONOTONIC, a u64.
    pub const TIME: usize = 8;
    pub const SIZE: usize = 16;
}

/// A note: where each field begins.
mod note {
    /// When the process started, in ns since boot, a u64.
    pub const START_TIME: usize = 0;
    /// The effective user in the initial user namespace, a u32.
    pub const USER: usize = 8;
    /// Whether it has any socket open, a u32.
    pub const HAS_SOCKETS: usize = 12;
    /// The lengths of what follows, each a u32; of the paths 0 if they are too long.
    pub const ARGUMENTS_LENGTH: usize = 16;
    pub const EXECUTABLE_LENGTH: usize = 20;
    pub const CGROUP_LENGTH: usize = 24;
    /// 1 for the root of cgroup2, whose path has no names, a u32.
    pub const CGROUP_WHOLE: usize = 28;
    /// 16 bytes, with a NUL.
    pub const COMM: usize = 32;
    pub const EXECUTABLE: usize = 48;
    pub const CGROUP: usize = EXECUTABLE + super::PATH_ROOM;
    pub const ARGUMENTS: usize = CGROUP + super::PATH_ROOM;
    pub const SIZE: usize = ARGUMENTS + super::ARGUMENTS_ROOM;
}

/// The size of task_struct.comm, TASK_COMM_LEN.
const COMM_SIZE: usize = 16;
/// The bytes for the names of a path, and for the arguments. What is longer is cut off.
const PATH_ROOM: usize = 1024;
const ARGUMENTS_ROOM: usize = 1792;
/// The longest name with its NUL: NAME_MAX of limits.h and 1.
const LONGEST_NAME: i32 = 256;
/// The most names of a path, and the most mounts that it leads through.
const DEEPEST: u32 = 32;
/// Descriptors that are looked at one by one. Those of higher numbers count as sockets, and as open beyond a number.
const FIRST_DESCRIPTORS: i32 = 256;
const DESCRIPTORS: i32 = 8192;
/// S_IFMT and S_IFSOCK of inode(7).
const FILE_TYPE: i32 = 0o170_000;
const SOCKET: i32 = 0o140_000;

/// A program that a process has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedProgram {
    /// The process as it was then.
    pub process: Process,
    /// Whether it may have had sockets then.
    pub may_have_sockets: bool,
    /// When it was, in ns of CLOCK_MONOTONIC.
    pub at: u64,
}

/// The program and its maps, for as long as this lives.
#[derive(Debug)]
pub struct ProgramStarts {
    notes: Map<{ key::SIZE }, { note::SIZE }>,
    room: Room,
    /// What the time since boot is ahead of the kernel's here, in ns: time_namespaces(7).
    boottime_offset: i64,
    /// The cgroup of the host, as /proc has it.
    host_root: Vec<u8>,
    _link: OwnedFd,
}

impl ProgramStarts {
    /// Loads and attaches the program: the kernel notes from now on.
    ///
    /// # Errors
    /// EPERM without the privileges or where the kernel keeps its memory to itself; NotFound where it has other structures or does not
    /// describe them; Unsupported where this process is not in the initial pid namespace, or where there are cgroups of version 1,
    /// which the program does not read.
    pub fn attach() -> io::Result<Self> {
        in_initial_pid_namespace()?;
        let proc = Path::new("/proc");
        let read = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap_or_default();
        if uses_other_hierarchies(&read("cgroups"), &read("self/cgroup")) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let layout = Layout::of_kernel()?;
        let notes = Map::create_as_needed(MapType::Hash, NOTES.entries)?;
        let empty: Map<4, { note::SIZE }> = Map::create(MapType::Array, 1)?;
        let room = Room::create(NOTES)?;
        let fds = Fds { notes: notes.as_fd().as_raw_fd(), empty: empty.as_fd().as_raw_fd(), room: room.fds() };
        let load = |with_cgroup| {
            let program = note_program(&layout, &fds, Of::Process { with_cgroup })?;
            load_for(ProgramType::Tracing, AttachType::TraceRawTp, layout.started.id, &program)
        };
        let program = load(true).or_else(|_| load(false))?;
        Ok(Self {
            notes,
            room,
            boottime_offset: boottime(&read("self/timens_offsets")),
            host_root: host_root(read("1/cgroup").as_bytes()).to_vec(),
            _link: attach_to_function(program.as_fd())?,
        })
    }

    /// The programs that were started since the call before, the earliest first.
    ///
    /// # Errors
    /// What bpf(2) gives.
    pub fn take(&mut self) -> io::Result<Vec<StartedProgram>> {
        let mut started = Vec::new();
        if self.room.is_empty() {
            return Ok(started);
        }
        self.notes.drain(true, |key, note| started.push(self.parse(key, note)))?;
        self.room.clear()?;
        started.sort_unstable_by_key(|program| program.at);
        Ok(started)
    }

    fn parse(&self, key: &[u8; key::SIZE], note: &[u8; note::SIZE]) -> StartedProgram {
        let word = |at: usize| u32_at(note, at);
        let part = |at: usize, length: usize| note.get(at..at + word(length) as usize).unwrap_or_default();
        let mut command_line = part(note::ARGUMENTS, note::ARGUMENTS_LENGTH).to_vec();
        command_line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        let nameless = command_line.is_empty();
        if nameless {
            let comm = note[note::COMM..][..COMM_SIZE].split(|&byte| byte == 0).next().unwrap_or_default();
            command_line = [b"[", comm, b"]"].concat();
        }
        let executable = path(part(note::EXECUTABLE, note::EXECUTABLE_LENGTH));
        let cgroup = match path(part(note::CGROUP, note::CGROUP_LENGTH)) {
            None if word(note::CGROUP_WHOLE) == 1 => Some(b"/".to_vec()),
            cgroup => cgroup,
        };
        let cgroup = cgroup.and_then(|path| Cgroup::parse(&[b"0::", &*path].concat(), &self.host_root));
        let start_time = u64_at(note, note::START_TIME).saturating_add_signed(self.boottime_offset) / NS_OF_CLOCK_TICK;
        let pid = u64_at(key, key::PID) as u32;
        let uid = Some(word(note::USER));
        StartedProgram {
            process: Process { pid, start_time, command_line, nameless, uid, cgroup, executable },
            may_have_sockets: word(note::HAS_SOCKETS) != 0,
            at: u64_at(key, key::TIME),
        }
    }
}

/// The clock tick of proc_pid_stat(5): USER_HZ is 100 (include/asm-generic/param.h).
const NS_OF_CLOCK_TICK: u64 = 10_000_000;

/// Whether there are cgroups of version 1 that may tell a workload, from the texts of /proc/cgroups and /proc/PID/cgroup (cgroups(7)):
/// a container has one of each controller. Memory does not count, whose cgroups stay for long after they were removed.
fn uses_other_hierarchies(controllers: &str, of_process: &str) -> bool {
    let has_cgroups =
        controllers.lines().filter(|line| !line.starts_with("#") && !line.starts_with("memory")).any(|line| {
            let mut numbers = line.split_whitespace().skip(1).map(|number| number.parse::<u32>().unwrap_or_default());
            let (hierarchy, cgroups) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
            hierarchy != 0 && cgroups > 1
        });
    has_cgroups || of_process.lines().any(|line| !line.starts_with("0::") && !line.ends_with(":/"))
}

/// The offset of the clock of the time since boot in ns, from the text of /proc/PID/timens_offsets (time_namespaces(7)).
fn boottime(text: &str) -> i64 {
    let offset = |line: &str| -> Option<i64> {
        let mut fields = line.split_whitespace();
        let (_, seconds, ns) = (fields.next().filter(|clock| *clock == "boottime")?, fields.next()?, fields.next()?);
        seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(ns.parse().ok()?)
    };
    text.lines().find_map(offset).unwrap_or_default()
}

/// A path from its names, which come from its end to its beginning, each with a NUL behind it; `None` if there are none.
fn path(names: &[u8]) -> Option<Vec<u8>> {
    let names: Vec<&[u8]> = names.strip_suffix(b"\0")?.split(|&byte| byte == 0).collect();
    Some(names.iter().rev().flat_map(|name| [b"/", *name].concat()).collect())
}

/// The descriptors of the maps, as the program has them.
#[derive(Debug)]
struct Fds {
    notes: i32,
    /// One note of zeros.
    empty: i32,
    room: room::Fds,
}

/// Where the running kernel has what the program reads.
#[derive(Debug)]
struct Layout {
    /// The tracepoint `sched_process_exec`.
    started: Function,
    task: Task,
    arg_start: i16,
    arg_end: i16,
    exe_file: i16,
    euid: i16,
    /// In struct file, the two fields of its struct path, and its inode.
    file_mount: i16,
    file_dentry: i16,
    file_inode: i16,
    inode_mode: i16,
    dentry_name: i16,
    dentry_parent: i16,
    /// In struct vfsmount.
    mount_root: i16,
    /// In struct mount, which has a struct vfsmount at `mount`.
    mount: i16,
    mount_parent: i16,
    mount_point: i16,
    /// In struct css_set, struct cgroup and struct kernfs_node.
    cgroup: i16,
    cgroup_node: i16,
    node_name: i16,
    node_parent: i16,
    /// In struct files_struct and struct fdtable.
    table: i16,
    most_descriptors: i16,
    descriptors: i16,
    open_descriptors: i16,
}

/// struct task_struct.
#[derive(Debug)]
struct Task {
    mm: i16,
    cred: i16,
    comm: i16,
    start_time: i16,
    cgroups: i16,
    files: i16,
}

impl Layout {
    fn of_kernel() -> io::Result<Self> {
        let btf = Btf::of_kernel()?;
        let task = |member| btf.offset("task_struct", member);
        let file_path = btf.offset("file", "f_path")?;
        Ok(Self {
            started: btf.tracepoint("sched_process_exec")?,
            task: Task {
                mm: task("mm")?,
                cred: task("cred")?,
                comm: task("comm")?,
                start_time: task("start_boottime")?,
                cgroups: task("cgroups")?,
                files: task("files")?,
            },
            arg_start: btf.offset("mm_struct", "arg_start")?,
            arg_end: btf.offset("mm_struct", "arg_end")?,
            exe_file: btf.offset("mm_struct", "exe_file")?,
            euid: btf.offset("cred", "euid")?,
            file_mount: file_path + btf.offset("path", "mnt")?,
            file_dentry: file_path + btf.offset("path", "dentry")?,
            file_inode: btf.offset("file", "f_inode")?,
            inode_mode: btf.offset("inode", "i_mode")?,
            dentry_name: btf.offset("dentry", "d_name")? + btf.offset("qstr", "name")?,
            dentry_parent: btf.offset("dentry", "d_parent")?,
            mount_root: btf.offset("vfsmount", "mnt_root")?,
            mount: btf.offset("mount", "mnt")?,
            mount_parent: btf.offset("mount", "mnt_parent")?,
            mount_point: btf.offset("mount", "mnt_mountpoint")?,
            cgroup: btf.offset("css_set", "dfl_cgrp")?,
            cgroup_node: btf.offset("cgroup", "kn")?,
            node_name: btf.offset("kernfs_node", "name")?,
            // Since Linux 6.15 with two underscores.
            node_parent: btf.offset("kernfs_node", "parent").or_else(|_| btf.offset("kernfs_node", "__parent"))?,
            table: btf.offset("files_struct", "fdt")?,
            most_descriptors: btf.offset("fdtable", "max_fds")?,
            descriptors: btf.offset("fdtable", "fd")?,
            open_descriptors: btf.offset("fdtable", "open_fds")?,
        })
    }
}

// What the program keeps in the registers that calls leave alone.
const TASK: Register = R6;
/// The note, once there is one.
const NOTE: Register = R7;
/// The length of what was noted of a path.
const LENGTH: Register = R8;
/// What it has followed to.
const AT: Register = R9;
// Offsets from the end of the stack.
const KEY: i16 = -(key::SIZE as i16);
/// 16 bytes for what is read of the kernel's memory.
const READ: i16 = KEY - 16;
/// A struct vfsmount.
const MOUNT: i16 = READ - 8;

/// The program.
fn note_program(layout: &Layout, fds: &Fds, of: Of) -> io::Result<Vec<Instruction>> {
    use Instruction as I;
    let mut code = Assembler::default();
    code.push([I::load_double(TASK, R1, 0)]);
    room::take(&mut code, fds.room, of, READ);
    code.push([I::call(Helper::GetCurrentPidTgid), I::shift_right(R0, 32)]);
    code.push([I::store_double(STACK, KEY + key::PID as i16, R0), I::call(Helper::KtimeGetNs)]);
    code.push([I::store_double(STACK, KEY + key::TIME as i16, R0)]);
    code.push(I::load_map(R1, fds.notes));
    code.push(I::load_map_value(R3, fds.empty));
    code.push([I::copy(R2, STACK), I::add(R2, KEY.into()), I::set(R4, 0), I::call(Helper::MapUpdateElem)]);
    code.push(I::load_map(R1, fds.notes));
    code.push([I::copy(R2, STACK), I::add(R2, KEY.into()), I::call(Helper::MapLookupElem)]);
    code.jump_if_equal(R0, 0, "end");
    code.push([I::copy(NOTE, R0)]);
    note_field(&mut code, note::START_TIME, 8, TASK, layout.task.start_time);
    note_field(&mut code, note::COMM, COMM_SIZE as i32 - 1, TASK, layout.task.comm);
    follow(&mut code, TASK, layout.task.cred);
    note_field(&mut code, note::USER, 4, AT, layout.euid);
    note_sockets(&mut code, layout);
    note_arguments(&mut code, layout);
    note_executable(&mut code, layout);
    note_cgroup(&mut code, layout);
    code.scope(0);
    code.label("full");
    code.label("end");
    code.push([I::set(R0, 0), I::exit()]);
    code.assemble()
}

/// Copies `length` bytes of the kernel's memory, from `offset` behind the address in `base` on, to a field of the note.
fn note_field(code: &mut Assembler, field: usize, length: i32, base: Register, offset: i16) {
    use Instruction as I;
    code.push([I::copy(R3, base), I::add(R3, offset.into()), I::copy(R1, NOTE), I::add(R1, field as i32)]);
    code.push([I::set(R2, length), I::call(Helper::ProbeReadKernel)]);
}

/// `AT` = the pointer that is `offset` behind the address in `base`; 0 where the kernel has no memory.
fn follow(code: &mut Assembler, base: Register, offset: i16) {
    code.read_kernel(READ, base, offset, 8);
    code.push([Instruction::load_double(AT, STACK, READ)]);
}

/// Notes whether the process has a socket among its first descriptors, or any descriptor of a higher number.
fn note_sockets(code: &mut Assembler, layout: &Layout) {
    use Instruction as I;
    // The bitmap of open descriptors, and then the files, go to where the paths and the arguments will be.
    let scratch = note::EXECUTABLE as i16;
    follow(code, TASK, layout.task.files);
    follow(code, AT, layout.table);
    code.read_kernel(READ, AT, layout.most_descriptors, 4);
    code.push([I::load(LENGTH, STACK, READ)]);
    code.jump_if_less(LENGTH, FIRST_DESCRIPTORS + 1, "all");
    code.jump_if_less(LENGTH, DESCRIPTORS + 1, "bitmap");
    code.jump("sockets");
    code.label("bitmap");
    code.read_kernel(READ, AT, layout.open_descriptors, 8);
    code.push([I::copy(R1, NOTE), I::add(R1, scratch.into()), I::load_double(R3, STACK, READ)]);
    code.push([I::copy(R2, LENGTH), I::shift_right(R2, 3), I::call(Helper::ProbeReadKernel), I::set(R1, 0)]);
    for word in FIRST_DESCRIPTORS / 64..DESCRIPTORS / 64 {
        code.push([I::load_double(R2, NOTE, scratch + 8 * word as i16), I::or_register(R1, R2)]);
    }
    code.jump_unless_equal(R1, 0, "sockets");
    code.push([I::set(LENGTH, FIRST_DESCRIPTORS)]);
    code.label("all");
    code.read_kernel(READ, AT, layout.descriptors, 8);
    code.push([I::copy(R1, NOTE), I::add(R1, scratch.into()), I::load_double(R3, STACK, READ)]);
    code.push([I::copy(R2, LENGTH), I::shift_left(R2, 3), I::call(Helper::ProbeReadKernel)]);
    code.push([I::set(LENGTH, 0)]);
    code.label("file");
    code.push([I::copy(R1, NOTE), I::add_register(R1, LENGTH), I::load_double(R3, R1, scratch)]);
    code.jump_if_equal(R3, 0, "no socket");
    code.read_kernel(READ, R3, layout.file_inode, 8);
    code.push([I::load_double(R3, STACK, READ)]);
    code.read_kernel(READ, R3, layout.inode_mode, 2);
    code.push([I::load_half(R1, STACK, READ), I::and(R1, FILE_TYPE)]);
    code.jump_if_equal(R1, SOCKET, "sockets");
    code.label("no socket");
    code.push([I::add(LENGTH, 8)]);
    code.jump_if_less(LENGTH, 8 * FIRST_DESCRIPTORS, "file");
    code.jump("no sockets");
    code.label("sockets");
    code.push([I::store_value(NOTE, note::HAS_SOCKETS as i16, 1)]);
    code.label("no sockets");
}

fn note_arguments(code: &mut Assembler, layout: &Layout) {
    use Instruction as I;
    follow(code, TASK, layout.task.mm);
    code.read_kernel(READ, AT, layout.arg_start, 8);
    code.read_kernel(READ + 8, AT, layout.arg_end, 8);
    code.push([I::load_double(R3, STACK, READ), I::load_double(R2, STACK, READ + 8), I::subtract_register(R2, R3)]);
    code.jump_if_less(R2, ARGUMENTS_ROOM as i32, "not cut off");
    code.push([I::set(R2, ARGUMENTS_ROOM as i32)]);
    code.label("not cut off");
    code.push([I::store(NOTE, note::ARGUMENTS_LENGTH as i16, R2), I::copy(R1, NOTE)]);
    code.push([I::add(R1, note::ARGUMENTS as i32), I::call(Helper::ProbeReadUser)]);
    code.jump_if_equal(R0, 0, "arguments");
    code.push([I::store_value(NOTE, note::ARGUMENTS_LENGTH as i16, 0)]);
    code.label("arguments");
}

/// Notes the path of the file, from mount to mount.
fn note_executable(code: &mut Assembler, layout: &Layout) {
    use Instruction as I;
    follow(code, TASK, layout.task.mm);
    follow(code, AT, layout.exe_file);
    code.read_kernel(MOUNT, AT, layout.file_mount, 8);
    follow(code, AT, layout.file_dentry);
    code.push([I::set(LENGTH, 0)]);
    for step in 0..DEEPEST {
        code.scope(100 + step);
        code.push([I::load_double(R3, STACK, MOUNT)]);
        code.read_kernel(READ, R3, layout.mount_root, 8);
        code.push([I::load_double(R1, STACK, READ), I::subtract_register(R1, AT)]);
        code.jump_unless_equal(R1, 0, "name");
        // The mount itself is mounted somewhere, unless it is its own parent.
        let parent = layout.mount_parent - layout.mount;
        code.push([I::load_double(R3, STACK, MOUNT)]);
        code.read_kernel(READ + 8, R3, parent, 8);
        code.push([I::load_double(R1, STACK, READ + 8), I::add(R1, layout.mount.into())]);
        code.push([I::load_double(R2, STACK, MOUNT), I::store_double(STACK, MOUNT, R1), I::copy(R3, R2)]);
        code.push([I::subtract_register(R1, R2)]);
        code.jump_if_equal(R1, 0, "executable");
        code.read_kernel(READ, R3, layout.mount_point - layout.mount, 8);
        code.push([I::load_double(AT, STACK, READ)]);
        code.jump("next");
        code.label("name");
        note_name(code, note::EXECUTABLE, layout.dentry_name, "cgroup");
        code.read_kernel(READ, AT, layout.dentry_parent, 8);
        // What is on no mount: a file of memfd_create(2).
        code.push([I::load_double(R1, STACK, READ), I::copy(R2, AT), I::copy(AT, R1), I::subtract_register(R1, R2)]);
        code.jump_if_equal(R1, 0, "executable");
        code.label("next");
    }
    code.scope(0);
    code.jump("cgroup");
    code.label("executable");
    code.push([I::store(NOTE, note::EXECUTABLE_LENGTH as i16, LENGTH)]);
    code.label("cgroup");
}

fn note_cgroup(code: &mut Assembler, layout: &Layout) {
    use Instruction as I;
    follow(code, TASK, layout.task.cgroups);
    follow(code, AT, layout.cgroup);
    follow(code, AT, layout.cgroup_node);
    code.push([I::set(LENGTH, 0)]);
    for step in 0..DEEPEST {
        code.scope(200 + step);
        // The root has no name.
        code.read_kernel(READ + 8, AT, layout.node_parent, 8);
        code.push([I::load_double(R1, STACK, READ + 8)]);
        code.jump_if_equal(R1, 0, "whole");
        note_name(code, note::CGROUP, layout.node_name, "end");
        code.push([I::load_double(AT, STACK, READ + 8)]);
    }
    code.scope(0);
    code.jump("end");
    code.label("whole");
    code.push([I::store(NOTE, note::CGROUP_LENGTH as i16, LENGTH), I::store_value(NOTE, note::CGROUP_WHOLE as i16, 1)]);
}

/// Appends the name that is `offset` behind `AT` to a path; jumps to `too_long` if there is no room for a further one.
fn note_name(code: &mut Assembler, to: usize, offset: i16, too_long: &'static str) {
    use Instruction as I;
    code.read_kernel(READ, AT, offset, 8);
    code.push([I::copy(R1, NOTE), I::add_register(R1, LENGTH), I::add(R1, to as i32)]);
    code.push([I::set(R2, LONGEST_NAME), I::load_double(R3, STACK, READ), I::call(Helper::ProbeReadKernelStr)]);
    // An error is a number below 0, which is a large one without sign.
    code.jump_if_less(R0, LONGEST_NAME + 1, "read");
    code.jump(too_long);
    code.label("read");
    code.push([I::add_register(LENGTH, R0)]);
    code.jump_if_less(LENGTH, PATH_ROOM as i32 - LONGEST_NAME, "has room for more");
    code.jump(too_long);
    code.label("has room for more");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_together_from_their_names() {
        assert_eq!(path(b"curl\0bin\0usr\0").unwrap(), b"/usr/bin/curl");
        assert_eq!(path(b""), None);
    }

    #[test]
    fn the_offset_of_a_time_namespace_is_read() {
        assert_eq!(
            boottime("monotonic           0         0\nboottime         -86400       500\n"),
            -86_399_999_999_500
        );
        for text in ["", "boottime", "boottime x 1", "boottime 99999999999999999 1"] {
            assert_eq!(boottime(text), 0);
        }
    }

    #[test]
    fn hierarchies_of_version_1_count_if_anything_is_in_them() {
        let controllers = |cgroups: u32| {
            format!(
                "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t{cgroups}\t1\nio\t0\t7\t1\nmemory\t4\t5\t1\n"
            )
        };
        assert!(!uses_other_hierarchies(&controllers(1), "1:cpu:/\n0::/system.slice\n"));
        assert!(uses_other_hierarchies(&controllers(2), "0::/\n"));
        assert!(uses_other_hierarchies(&controllers(1), "1:name=systemd:/init.scope\n0::/\n"));
    }
}
