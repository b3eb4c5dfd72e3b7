//! The room of a map, of which each user and each container has a share: nobody's entries keep those of others out.
//!
//! A program takes room before it makes an entry. The last eighth of the map is for shares that have few entries.
//!
//! A share is a cgroup at the second level, with all below it: systemd has those of a user there, or of a service, and
//! container runtimes those of a container. What is in the root cgroup has a share for each user.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::instruction::{Assembler, Helper, Instruction, R0, R1, R2, R3, R4, R7, R8, Register, STACK};
use super::{Map, MapType};

/// Shares that are told apart.
const SHARES: u32 = 4096;
/// BPF_NOEXIST: another CPU may have made the share meanwhile.
const NOEXIST: i32 = 1;

// What the code keeps in the registers that calls leave alone: the address of the number of entries, and that of those of the
// share, or 0.
const TOTAL: Register = R7;
const OF_SHARE: Register = R8;

/// How many entries a map has, and how many of them each share has.
#[derive(Debug)]
pub struct Room {
    total: Map<4, 8>,
    shares: Map<8, 8>,
    limits: Limits,
}

/// How many entries there may be.
#[derive(Debug, Default, Clone, Copy)]
pub struct Limits {
    /// In the map.
    pub entries: u32,
    /// Of a share, if the map is nearly full.
    pub few: u32,
}

/// The descriptors of the maps, as programs have them.
#[derive(Debug, Default, Clone, Copy)]
pub struct Fds {
    total: i32,
    shares: i32,
    limits: Limits,
}

/// What a program makes an entry for: how it asks whose that is.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    /// The socket of the packet whose struct __sk_buff this register has.
    Packet(Register),
    /// The process that runs: only by its user where the kernel has not yet got the helper that tells its cgroup to programs of the
    /// type Tracing (before Linux 5.16).
    Process { with_cgroup: bool },
}

impl Room {
    /// Room for as many entries as the map has.
    ///
    /// # Errors
    /// As [`Map::create`].
    pub fn create(limits: Limits) -> io::Result<Self> {
        Ok(Self { total: Map::create(MapType::Array, 1)?, shares: Map::create(MapType::Hash, SHARES)?, limits })
    }

    pub fn fds(&self) -> Fds {
        let (total, shares) = (self.total.as_fd().as_raw_fd(), self.shares.as_fd().as_raw_fd());
        Fds { total, shares, limits: self.limits }
    }

    /// Whether no entry was made since the map was emptied.
    pub fn is_empty(&self) -> bool {
        self.total.lookup(&[0; 4]) == Some([0; 8])
    }

    /// Takes note that the map is empty.
    ///
    /// # Errors
    /// What bpf(2) gives.
    pub fn clear(&self) -> io::Result<()> {
        self.shares.drain(true, |_, _| ())?;
        self.total.update(&[0; 4], &[0; 8])
    }
}

/// Counts one entry more, for the share of the packet or process; jumps to `full` if it may not have one more. `at` is the offset of 16
/// free bytes from the end of the stack. Overwrites r0 to r5, r7 and r8.
pub fn take(code: &mut Assembler, room: Fds, of: Of, at: i16) {
    use Instruction as I;
    for level in [2, 1] {
        code.push(match of {
            Of::Packet(context) => {
                vec![I::copy(R1, context), I::set(R2, level), I::call(Helper::SkbAncestorCgroupId)]
            }
            Of::Process { with_cgroup: true } => vec![I::set(R1, level), I::call(Helper::GetCurrentAncestorCgroupId)],
            Of::Process { with_cgroup: false } => break,
        });
        code.jump_unless_equal(R0, 0, "share");
    }
    code.push(match of {
        Of::Packet(context) => vec![I::copy(R1, context), I::call(Helper::GetSocketUid)],
        // The upper half is the group.
        Of::Process { .. } => vec![I::call(Helper::GetCurrentUidGid)],
    });
    // In the upper half, where ids of cgroups have nothing on a host of 64 bits.
    code.push([I::shift_left(R0, 32)]);
    code.label("share");
    code.push([I::store_double(STACK, at, R0), I::store_double_value(STACK, at + 8, 0)]);
    look_up_share(code, room, at);
    code.jump_unless_equal(R0, 0, "has share");
    code.push(I::load_map(R1, room.shares));
    code.push([I::copy(R2, STACK), I::add(R2, at.into()), I::copy(R3, STACK), I::add(R3, (at + 8).into())]);
    code.push([I::set(R4, NOEXIST), I::call(Helper::MapUpdateElem)]);
    look_up_share(code, room, at);
    code.label("has share");
    code.push([I::copy(OF_SHARE, R0)]);
    code.push(I::load_map_value(TOTAL, room.total));
    code.push([I::load_double(R1, TOTAL, 0)]);
    code.jump_if_less(R1, (room.limits.entries / 8 * 7).cast_signed(), "has room");
    // There are more shares than can be told apart.
    code.jump_if_equal(OF_SHARE, 0, "full");
    code.push([I::load_double(R1, OF_SHARE, 0)]);
    code.jump_if_less(R1, room.limits.few.cast_signed(), "has room");
    code.jump("full");
    code.label("has room");
    code.push([I::set(R1, 1), I::atomic_add(TOTAL, 0, R1)]);
    code.jump_if_equal(OF_SHARE, 0, "counted share");
    code.push([I::atomic_add(OF_SHARE, 0, R1)]);
    code.label("counted share");
}

/// r0 = the address of the number of entries of the share whose key is at the offset `at` from the end of the stack, or 0.
fn look_up_share(code: &mut Assembler, room: Fds, at: i16) {
    use Instruction as I;
    code.push(I::load_map(R1, room.shares));
    code.push([I::copy(R2, STACK), I::add(R2, at.into()), I::call(Helper::MapLookupElem)]);
}
