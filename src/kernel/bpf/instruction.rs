//! BPF's machine language: its instructions, and an assembler that turns labels into the distances of jumps.
//!
//! ```text
//! struct bpf_insn { code: u8, dst_reg: 4 bits, src_reg: 4 bits, off: i16, imm: i32 }   in host byte order, 8 bytes
//! ```
//! The code is a class (the arithmetic ALU64, the jumps JMP, the loads LD and LDX, the stores ST and STX), an
//! operation, and an operand: for ALU64 and JMP `imm` (K) or the source register (X), for loads and stores a size (B: 8
//! bits, H: 16, W: 32, DW: 64). A jump skips `off` instructions beyond the next. See Documentation/bpf/standardization/
//! instruction-set.rst, include/uapi/linux/bpf.h and bpf_common.h.

use std::collections::HashMap;
use std::io;

// Classes.
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const JMP: u8 = 0x05;
const ALU64: u8 = 0x07;
// Operands and sizes.
const K: u8 = 0x00;
const X: u8 = 0x08;
const W: u8 = 0x00;
const H: u8 = 0x08;
const B: u8 = 0x10;
const DW: u8 = 0x18;
// Modes of loads and stores: a constant, or memory at a register plus `off`.
const IMM: u8 = 0x00;
const MEM: u8 = 0x60;
const ATOMIC: u8 = 0xc0;
// Operations of ALU64.
const ADD: u8 = 0x00;
const SUB: u8 = 0x10;
const MUL: u8 = 0x20;
const OR: u8 = 0x40;
const AND: u8 = 0x50;
const LSH: u8 = 0x60;
const RSH: u8 = 0x70;
const MOV: u8 = 0xb0;
// Operations of JMP.
const JA: u8 = 0x00;
const JEQ: u8 = 0x10;
const JNE: u8 = 0x50;
const JLT: u8 = 0xa0;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// As the source register of a 64-bit load, makes its constant the descriptor of a map.
const BPF_PSEUDO_MAP_FD: Register = Register(1);
/// The same, for the address of the first value in an array map.
const BPF_PSEUDO_MAP_VALUE: Register = Register(2);

/// A register of 64 bits.
///
/// A program begins with its context in r1 and ends with its result in r0. A call takes its arguments in r1 to r5,
/// which it overwrites, and returns in r0; r6 to r9 keep their values across calls. r10 points to the end of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(u8);

pub const R0: Register = Register(0);
pub const R1: Register = Register(1);
pub const R2: Register = Register(2);
pub const R3: Register = Register(3);
pub const R4: Register = Register(4);
pub const R6: Register = Register(6);
pub const R7: Register = Register(7);
pub const R8: Register = Register(8);
pub const R9: Register = Register(9);
/// r10: the end of the stack, from which it grows downwards.
pub const STACK: Register = Register(10);

/// The functions that the kernel offers to programs, enum bpf_func_id; bpf-helpers(7).
#[derive(Debug, Clone, Copy)]
pub enum Helper {
    /// BPF_FUNC_map_lookup_elem(map, key): the address of the value, or 0.
    MapLookupElem = 1,
    /// BPF_FUNC_map_update_elem(map, key, value, flags).
    MapUpdateElem = 2,
    /// BPF_FUNC_map_delete_elem(map, key).
    MapDeleteElem = 3,
    /// BPF_FUNC_ktime_get_ns(): the time of CLOCK_MONOTONIC, in ns.
    KtimeGetNs = 5,
    /// BPF_FUNC_get_current_pid_tgid().
    GetCurrentPidTgid = 14,
    /// BPF_FUNC_get_current_uid_gid(): the real user in the lower half, and the group, in the initial user namespace.
    GetCurrentUidGid = 15,
    /// BPF_FUNC_skb_load_bytes(skb, offset, to, length): 0, or an error if the packet is shorter.
    SkbLoadBytes = 26,
    /// BPF_FUNC_get_socket_cookie(context): the cookie by which sock_diag(7) knows the socket, 0 without one.
    GetSocketCookie = 46,
    /// BPF_FUNC_get_socket_uid(skb): the user of the socket, as the user namespace of its network namespace has it.
    GetSocketUid = 47,
    /// BPF_FUNC_sock_ops_cb_flags_set(context, flags).
    SockOpsCbFlagsSet = 59,
    /// BPF_FUNC_skb_ancestor_cgroup_id(skb, level): the id of the cgroup of the socket, or of the one above it, that is this many
    /// levels below the root; 0 where there is none.
    SkbAncestorCgroupId = 83,
    /// BPF_FUNC_sk_fullsock(sk): the same struct bpf_sock with all fields, or 0 for a socket that has not all of them.
    SkFullsock = 95,
    /// BPF_FUNC_probe_read_user(to, length, from): 0, or an error if the process has no such memory, or it is swapped out.
    ProbeReadUser = 112,
    /// BPF_FUNC_probe_read_kernel(to, length, from): 0, or an error if the kernel has no memory there.
    ProbeReadKernel = 113,
    /// BPF_FUNC_probe_read_kernel_str(to, most, from): the length of the string with its NUL, or an error.
    ProbeReadKernelStr = 115,
    /// BPF_FUNC_get_current_ancestor_cgroup_id(level): as `SkbAncestorCgroupId`, for the process that runs.
    GetCurrentAncestorCgroupId = 123,
}

/// One instruction, as the kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction(pub [u8; 8]);

impl Instruction {
    fn new(code: u8, destination: Register, source: Register, offset: i16, constant: i32) -> Self {
        // Bit fields take their bits in the byte order of the host.
        let registers =
            if cfg!(target_endian = "little") { destination.0 | source.0 << 4 } else { destination.0 << 4 | source.0 };
        let (offset, [i0, i1, i2, i3]) = (offset.to_ne_bytes(), constant.to_ne_bytes());
        Self([code, registers, offset[0], offset[1], i0, i1, i2, i3])
    }

    /// `destination = source`
    pub fn copy(destination: Register, source: Register) -> Self {
        Self::new(ALU64 | X | MOV, destination, source, 0, 0)
    }

    /// `destination = value`
    pub fn set(destination: Register, value: i32) -> Self {
        Self::new(ALU64 | K | MOV, destination, R0, 0, value)
    }

    /// `destination += value`
    pub fn add(destination: Register, value: i32) -> Self {
        Self::new(ALU64 | K | ADD, destination, R0, 0, value)
    }

    /// `destination += source`
    pub fn add_register(destination: Register, source: Register) -> Self {
        Self::new(ALU64 | X | ADD, destination, source, 0, 0)
    }

    /// `destination -= source`
    pub fn subtract_register(destination: Register, source: Register) -> Self {
        Self::new(ALU64 | X | SUB, destination, source, 0, 0)
    }

    /// `destination *= source`
    pub fn multiply(destination: Register, source: Register) -> Self {
        Self::new(ALU64 | X | MUL, destination, source, 0, 0)
    }

    /// `destination &= bits`
    pub fn and(destination: Register, bits: i32) -> Self {
        Self::new(ALU64 | K | AND, destination, R0, 0, bits)
    }

    /// `destination <<= bits`
    pub fn shift_left(destination: Register, bits: i32) -> Self {
        Self::new(ALU64 | K | LSH, destination, R0, 0, bits)
    }

    /// `destination |= bits`
    pub fn or(destination: Register, bits: i32) -> Self {
        Self::new(ALU64 | K | OR, destination, R0, 0, bits)
    }

    /// `destination |= source`
    pub fn or_register(destination: Register, source: Register) -> Self {
        Self::new(ALU64 | X | OR, destination, source, 0, 0)
    }

    /// `destination >>= bits`, without sign
    pub fn shift_right(destination: Register, bits: i32) -> Self {
        Self::new(ALU64 | K | RSH, destination, R0, 0, bits)
    }

    /// `destination = *(u32 *)(base + offset)`
    pub fn load(destination: Register, base: Register, offset: i16) -> Self {
        Self::new(LDX | MEM | W, destination, base, offset, 0)
    }

    /// `destination = *(u16 *)(base + offset)`
    pub fn load_half(destination: Register, base: Register, offset: i16) -> Self {
        Self::new(LDX | MEM | H, destination, base, offset, 0)
    }

    /// `destination = *(u8 *)(base + offset)`
    pub fn load_byte(destination: Register, base: Register, offset: i16) -> Self {
        Self::new(LDX | MEM | B, destination, base, offset, 0)
    }

    /// `destination = *(u64 *)(base + offset)`
    pub fn load_double(destination: Register, base: Register, offset: i16) -> Self {
        Self::new(LDX | MEM | DW, destination, base, offset, 0)
    }

    /// `*(u64 *)(base + offset) = source`
    pub fn store_double(base: Register, offset: i16, source: Register) -> Self {
        Self::new(STX | MEM | DW, base, source, offset, 0)
    }

    /// `*(u64 *)(base + offset) = value`
    pub fn store_double_value(base: Register, offset: i16, value: i32) -> Self {
        Self::new(ST | MEM | DW, base, R0, offset, value)
    }

    /// `*(u64 *)(base + offset) += source`, atomically
    pub fn atomic_add(base: Register, offset: i16, source: Register) -> Self {
        Self::new(STX | ATOMIC | DW, base, source, offset, 0)
    }

    /// `*(u32 *)(base + offset) += source`, atomically
    pub fn atomic_add_word(base: Register, offset: i16, source: Register) -> Self {
        Self::new(STX | ATOMIC | W, base, source, offset, 0)
    }

    /// `*(u32 *)(base + offset) = source`
    pub fn store(base: Register, offset: i16, source: Register) -> Self {
        Self::new(STX | MEM | W, base, source, offset, 0)
    }

    /// `*(u32 *)(base + offset) = value`
    pub fn store_value(base: Register, offset: i16, value: i32) -> Self {
        Self::new(ST | MEM | W, base, R0, offset, value)
    }

    /// `destination = map`, the map with this descriptor. A constant of 64 bits takes two instructions.
    pub fn load_map(destination: Register, fd: i32) -> [Self; 2] {
        [Self::new(LD | IMM | DW, destination, BPF_PSEUDO_MAP_FD, 0, fd), Self::new(0, R0, R0, 0, 0)]
    }

    /// `destination = ` the address of the first value in the array map of a descriptor.
    pub fn load_map_value(destination: Register, fd: i32) -> [Self; 2] {
        [Self::new(LD | IMM | DW, destination, BPF_PSEUDO_MAP_VALUE, 0, fd), Self::new(0, R0, R0, 0, 0)]
    }

    /// `r0 = helper(r1, r2, ...)`
    pub fn call(helper: Helper) -> Self {
        Self::new(JMP | CALL, R0, R0, 0, helper as i32)
    }

    /// `return r0`
    pub fn exit() -> Self {
        Self::new(JMP | EXIT, R0, R0, 0, 0)
    }
}

/// Builds a program from instructions, labels, and jumps to labels, forward or backward.
#[derive(Debug, Default)]
pub struct Assembler {
    instructions: Vec<Instruction>,
    /// The place of each label in its scope: the index of the instruction that follows it.
    labels: HashMap<(u32, &'static str), usize>,
    /// The jumps, by index, whose offsets the labels decide, and the scopes that they are in.
    jumps: Vec<(usize, (u32, &'static str))>,
    scope: u32,
}

/// The scope of labels that jumps in all scopes reach.
const WHOLE_PROGRAM: u32 = 0;

impl Assembler {
    /// Appends instructions.
    pub fn push(&mut self, instructions: impl IntoIterator<Item = Instruction>) {
        self.instructions.extend(instructions);
    }

    /// Begins another scope: labels from here on have nothing to do with equal ones of other scopes. A jump goes to the
    /// label of its own scope, otherwise to that of scope 0.
    pub fn scope(&mut self, scope: u32) {
        self.scope = scope;
    }

    /// Names the current place. No other place in this scope may have this name.
    pub fn label(&mut self, name: &'static str) {
        let earlier = self.labels.insert((self.scope, name), self.instructions.len());
        debug_assert!(earlier.is_none(), "two places in a BPF program have the label {name:?}");
    }

    /// `goto label`
    pub fn jump(&mut self, label: &'static str) {
        self.push_jump(JMP | JA, R0, 0, label);
    }

    /// `if (register == value) goto label`
    pub fn jump_if_equal(&mut self, register: Register, value: i32, label: &'static str) {
        self.push_jump(JMP | K | JEQ, register, value, label);
    }

    /// `if (register != value) goto label`
    pub fn jump_unless_equal(&mut self, register: Register, value: i32, label: &'static str) {
        self.push_jump(JMP | K | JNE, register, value, label);
    }

    /// `if (register < value) goto label`, without sign
    pub fn jump_if_less(&mut self, register: Register, value: i32, label: &'static str) {
        self.push_jump(JMP | K | JLT, register, value, label);
    }

    /// Copies `length` bytes, 8 at most, of the kernel's memory to the offset `to` from the end of the stack, before zeros: from `offset`
    /// behind the address in `base` on. Zeros where there is no such memory. Overwrites r0 to r5.
    pub fn read_kernel(&mut self, to: i16, base: Register, offset: i16, length: i32) {
        use Instruction as I;
        self.push([I::store_double_value(STACK, to, 0), I::copy(R3, base), I::add(R3, offset.into())]);
        self.push([I::copy(R1, STACK), I::add(R1, to.into()), I::set(R2, length), I::call(Helper::ProbeReadKernel)]);
    }

    fn push_jump(&mut self, code: u8, register: Register, value: i32, label: &'static str) {
        self.jumps.push((self.instructions.len(), (self.scope, label)));
        self.push([Instruction::new(code, register, R0, 0, value)]);
    }

    /// The program, each jump with the distance to its label.
    ///
    /// # Errors
    /// InvalidInput where a jump has no label to go to, or one that is too far away.
    pub fn assemble(self) -> io::Result<Vec<Instruction>> {
        let mut program = self.instructions;
        for (at, (scope, label)) in self.jumps {
            let target = self.labels.get(&(scope, label)).or_else(|| self.labels.get(&(WHOLE_PROGRAM, label)));
            let offset = target.and_then(|&target| {
                let distance = target.cast_signed().checked_sub_unsigned(at + 1)?;
                i16::try_from(distance).ok()
            });
            let (Some(offset), Some(jump)) = (offset, program.get_mut(at)) else {
                let message = format!("a jump in a BPF program does not reach the label {label:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            };
            jump.0[2..4].copy_from_slice(&offset.to_ne_bytes());
        }
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(instruction: Instruction) -> i16 {
        i16::from_ne_bytes([instruction.0[2], instruction.0[3]])
    }

    #[test]
    #[cfg_attr(target_endian = "big", ignore = "the expected bytes are those of a little-endian host")]
    fn instructions_have_the_bytes_that_the_kernel_expects() {
        let bytes = |instruction: Instruction| instruction.0;
        assert_eq!(bytes(Instruction::copy(R6, R1)), [0xbf, 0x16, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(Instruction::set(R8, 1)), [0xb7, 0x08, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes(Instruction::add(R2, -40)), [0x07, 0x02, 0, 0, 0xd8, 0xff, 0xff, 0xff]);
        assert_eq!(bytes(Instruction::or(R2, 4)), [0x47, 0x02, 0, 0, 4, 0, 0, 0]);
        assert_eq!(bytes(Instruction::shift_right(R0, 32)), [0x77, 0x00, 0, 0, 32, 0, 0, 0]);
        assert_eq!(bytes(Instruction::load(R7, R6, 8)), [0x61, 0x67, 8, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(Instruction::load_half(R7, R6, 8)), [0x69, 0x67, 8, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(Instruction::subtract_register(R7, R6)), [0x1f, 0x67, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(Instruction::store(STACK, -4, R1)), [0x63, 0x1a, 0xfc, 0xff, 0, 0, 0, 0]);
        assert_eq!(bytes(Instruction::store_value(STACK, -4, 7)), [0x62, 0x0a, 0xfc, 0xff, 7, 0, 0, 0]);
        assert_eq!(Instruction::load_map(R1, 5).map(bytes), [[0x18, 0x11, 0, 0, 5, 0, 0, 0], [0; 8]]);
        assert_eq!(bytes(Instruction::call(Helper::GetCurrentPidTgid)), [0x85, 0, 0, 0, 14, 0, 0, 0]);
        assert_eq!(bytes(Instruction::exit()), [0x95, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_jump_skips_what_stands_between_it_and_its_label() {
        let mut code = Assembler::default();
        code.label("start");
        code.jump_if_equal(R0, 7, "end");
        code.push(Instruction::load_map(R1, 3));
        code.jump("start");
        code.jump_unless_equal(R0, 8, "next");
        code.label("next");
        code.label("end");
        code.push([Instruction::exit()]);
        let program = code.assemble().unwrap();
        assert_eq!(program.len(), 6);
        assert_eq!([0, 3, 4].map(|at: usize| offset(program[at])), [4, -4, 0]);
        assert_eq!([0, 3, 4].map(|at: usize| program[at].0[0]), [0x15, 0x05, 0x55]);
    }

    #[test]
    fn a_jump_to_nowhere_or_too_far_is_an_error() {
        let mut code = Assembler::default();
        code.jump("end");
        assert!(code.assemble().unwrap_err().to_string().contains("\"end\""));

        let distant = |instructions| {
            let mut code = Assembler::default();
            code.jump("end");
            code.push(std::iter::repeat_n(Instruction::exit(), instructions));
            code.label("end");
            code.assemble()
        };
        assert!(distant(i16::MAX as usize).is_ok());
        assert!(distant(i16::MAX as usize + 1).is_err());
    }
}
