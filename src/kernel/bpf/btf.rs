//! BTF, the types of the running kernel: which function has which id and parameters, and where the fields of structures are.
//!
//! ```text
//! btf_header { magic: u16, version: u8, flags: u8, hdr_len, type_off, type_len, str_off, str_len: u32 }
//! btf_type   { name_off: u32, info: u32, size or type: u32 }, and what its kind adds; the first one has the id 1
//!            info: bits 0-15 vlen, 24-28 kind, 31 kind_flag
//! ```
//! Numbers are in host byte order. See Documentation/bpf/btf.rst and include/uapi/linux/btf.h.

use std::io;
use std::ops::Range;

/// The kernel's own types, where it is built with CONFIG_DEBUG_INFO_BTF.
const KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// The first number of a header.
const MAGIC: u16 = 0xeb9f;
/// The size of a struct btf_type, of a member of a structure, and of a parameter of a function.
const TYPE: usize = 12;
const MEMBER: usize = 12;
const PARAMETER: usize = 8;
// Kinds of types: BTF_KIND_….
const PTR: u32 = 2;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;

/// The most members of a structure, those of the structures in it included, that are searched for one name.
const MOST_MEMBERS: usize = 10_000;

/// The types of a kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    /// Where each type begins, by its id less 1.
    types: Vec<usize>,
    strings: Range<usize>,
}

/// A function of the kernel, or a tracepoint.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// The id of its type.
    pub id: u32,
    /// The names of its parameters, empty where the kernel does not give them.
    pub parameters: Vec<String>,
}

/// The common part of a type.
struct Type {
    name: u32,
    kind: u32,
    /// The number of its members, parameters or other parts.
    parts: usize,
    /// Whether the offsets of its members share a number with the widths of bit fields.
    has_bit_fields: bool,
    /// The id of the type that it refers to, or its size.
    refers_to: u32,
    /// Where its parts begin.
    parts_at: usize,
}

impl Btf {
    /// The types of the running kernel.
    ///
    /// # Errors
    /// NotFound where the kernel does not describe its types, InvalidData where it does so in another way.
    pub fn of_kernel() -> io::Result<Self> {
        Self::parse(std::fs::read(KERNEL)?)
    }

    fn parse(bytes: Vec<u8>) -> io::Result<Self> {
        let malformed = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{KERNEL}: {what}"));
        let (types, strings) = sections(&bytes).ok_or_else(|| malformed("no BTF header"))?;
        let mut btf = Self { bytes, types: Vec::new(), strings };
        let mut at = types.start;
        while at < types.end {
            let size = btf.read_type(at).and_then(|found| size_of_parts(&found));
            let size = size.ok_or_else(|| malformed("a type of an unknown kind"))?;
            btf.types.push(at);
            at += TYPE + size;
        }
        Ok(btf)
    }

    /// The function with this name.
    ///
    /// # Errors
    /// NotFound where the kernel has none, or has inlined it.
    pub fn function(&self, name: &str) -> io::Result<Function> {
        let find = || {
            let (id, function) = self.named(FUNC, name).next()?;
            Some(Function { id, parameters: self.parameters(function.refers_to)? })
        };
        find().ok_or_else(|| not_found(name))
    }

    /// The tracepoint with this name. Its first parameter is none of the event.
    ///
    /// # Errors
    /// NotFound where the kernel has none.
    pub fn tracepoint(&self, name: &str) -> io::Result<Function> {
        let find = || {
            // A typedef of a pointer to a function.
            let (id, tracepoint) = self.named(TYPEDEF, &format!("btf_trace_{name}")).next()?;
            let pointer = self.get(tracepoint.refers_to).filter(|found| found.kind == PTR)?;
            Some(Function { id, parameters: self.parameters(pointer.refers_to)? })
        };
        find().ok_or_else(|| not_found(name))
    }

    fn parameters(&self, prototype: u32) -> Option<Vec<String>> {
        let prototype = self.get(prototype).filter(|found| found.kind == FUNC_PROTO)?;
        let name_of = |n: usize| self.string(u32_at(&self.bytes, prototype.parts_at + n * PARAMETER)?);
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        (0..prototype.parts).map(|n| name_of(n).map(text)).collect()
    }

    /// The offset in bytes of the member `name` of a structure, also of one in a structure without a name in it.
    ///
    /// # Errors
    /// NotFound where there is no such member, or where it is a bit field.
    pub fn offset(&self, structure: &str, name: &str) -> io::Result<i16> {
        let offset = self.named(STRUCT, structure).find_map(|(id, _)| self.offset_in(id, name));
        offset.and_then(|offset| i16::try_from(offset).ok()).ok_or_else(|| not_found(&format!("{structure}.{name}")))
    }

    fn offset_in(&self, structure: u32, name: &str) -> Option<usize> {
        let mut left = MOST_MEMBERS;
        let mut structures = vec![(structure, 0)];
        while let Some((id, base)) = structures.pop() {
            let Some(found) = self.get(id).filter(|found| matches!(found.kind, STRUCT | UNION)) else { continue };
            for n in 0..found.parts {
                left = left.checked_sub(1)?;
                let word = |nth: usize| u32_at(&self.bytes, found.parts_at + n * MEMBER + nth * 4);
                let (member, inner, mut bits) = (self.string(word(0)?)?, word(1)?, word(2)?);
                if found.has_bit_fields {
                    bits &= 0x00ff_ffff;
                }
                let offset = base + (bits / 8) as usize;
                if member == name.as_bytes() {
                    return (bits % 8 == 0).then_some(offset);
                }
                if member.is_empty() {
                    structures.push((inner, offset));
                }
            }
        }
        None
    }

    /// The types of a kind with this name, with their ids.
    fn named<'a>(&'a self, kind: u32, name: &'a str) -> impl Iterator<Item = (u32, Type)> + 'a {
        let types = (1..).zip(&self.types).filter_map(|(id, &at)| Some((id, self.read_type(at)?)));
        types.filter(move |(_, found)| found.kind == kind && self.string(found.name) == Some(name.as_bytes()))
    }

    fn get(&self, id: u32) -> Option<Type> {
        self.read_type(*self.types.get((id as usize).checked_sub(1)?)?)
    }

    fn read_type(&self, at: usize) -> Option<Type> {
        let word = |nth: usize| u32_at(&self.bytes, at + nth * 4);
        let info = word(1)?;
        Some(Type {
            name: word(0)?,
            kind: info >> 24 & 0x1f,
            parts: (info & 0xffff) as usize,
            has_bit_fields: info >> 31 == 1,
            refers_to: word(2)?,
            parts_at: at + TYPE,
        })
    }

    /// The string at this offset, which ends in NUL.
    fn string(&self, offset: u32) -> Option<&[u8]> {
        let rest = self.bytes.get(self.strings.clone())?.get(offset as usize..)?;
        rest.split(|&byte| byte == 0).next()
    }
}

/// Where the types and the strings are.
fn sections(bytes: &[u8]) -> Option<(Range<usize>, Range<usize>)> {
    if bytes.get(..2)? != MAGIC.to_ne_bytes() {
        return None;
    }
    let word = |nth: usize| u32_at(bytes, nth * 4).map(|word| word as usize);
    let header = word(1)?;
    let section = |offset: usize, length: usize| -> Option<Range<usize>> {
        let start = header.checked_add(offset)?;
        let end = start.checked_add(length)?;
        bytes.get(start..end).map(|_| start..end)
    };
    Some((section(word(2)?, word(3)?)?, section(word(4)?, word(5)?)?))
}

/// The bytes that follow the common part of a type; `None` for a kind that is not known here.
fn size_of_parts(found: &Type) -> Option<usize> {
    Some(match found.kind {
        // INT, VAR and DECL_TAG.
        1 | 14 | 17 => 4,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT and TYPE_TAG.
        PTR | 7..=FUNC | 16 | 18 => 0,
        // ARRAY.
        3 => 12,
        // STRUCT, UNION, DATASEC and ENUM64.
        STRUCT | UNION | 15 | 19 => found.parts * MEMBER,
        // ENUM.
        6 => found.parts * 8,
        FUNC_PROTO => found.parts * PARAMETER,
        _ => return None,
    })
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{KERNEL} has no {name}"))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STRINGS: &[u8] = b"\0process\0tw\0skb\0sock\0len\0cookie\0flag\0btf_trace_drop\0";
    // Where each begins.
    const PROCESS: u32 = 1;
    const TW: u32 = 9;
    const SKB: u32 = 12;
    const SOCK: u32 = 16;
    const LEN: u32 = 21;
    const COOKIE: u32 = 25;
    const FLAG: u32 = 32;
    const DROP: u32 = 37;

    fn btf(types: &[&[u32]]) -> Vec<u8> {
        let types: Vec<u8> = types.concat().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let lengths = [24, 0, types.len() as u32, types.len() as u32, STRINGS.len() as u32];
        let mut bytes = [&MAGIC.to_ne_bytes()[..], &[1, 0]].concat();
        lengths.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        [bytes, types, STRINGS.to_vec()].concat()
    }

    /// A function of two parameters, a structure with another in it that has no name, and a tracepoint.
    fn example() -> Vec<u8> {
        let info = |kind: u32, parts: u32| kind << 24 | parts;
        btf(&[
            &[0, info(1, 0), 4, 32],
            &[0, info(FUNC_PROTO, 2), 1, TW, 1, SKB, 1],
            &[PROCESS, info(FUNC, 1), 2],
            &[0, info(UNION, 1), 4, COOKIE, 1, 32],
            &[SOCK, info(STRUCT, 3) | 1 << 31, 12, LEN, 1, 32 << 24 | 8, 0, 4, 64, FLAG, 1, 1 << 24 | 99],
            &[0, info(PTR, 0), 2],
            &[DROP, info(TYPEDEF, 0), 6],
        ])
    }

    #[test]
    fn a_function_has_its_id_and_its_parameters() {
        let btf = Btf::parse(example()).unwrap();
        let parameters = ["tw", "skb"].map(String::from).to_vec();
        assert_eq!(btf.tracepoint("drop").unwrap(), Function { id: 7, parameters: parameters.clone() });
        assert_eq!(btf.function("process").unwrap(), Function { id: 3, parameters });
        let error = btf.function("sock").unwrap_err();
        assert_eq!(error.to_string(), "/sys/kernel/btf/vmlinux has no sock");
    }

    #[test]
    fn a_member_of_a_structure_without_a_name_belongs_to_the_one_around_it() {
        let btf = Btf::parse(example()).unwrap();
        assert_eq!(btf.offset("sock", "len").unwrap(), 1);
        assert_eq!(btf.offset("sock", "cookie").unwrap(), 8 + 4);
        // A bit field, a member of nothing, and a structure that is not there.
        for (structure, member) in [("sock", "flag"), ("sock", "tw"), ("process", "len")] {
            assert_eq!(btf.offset(structure, member).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn truncated_bytes_and_unknown_kinds_are_errors() {
        let whole = example();
        for length in 0..whole.len() {
            assert_eq!(
                Btf::parse(whole[..length].to_vec()).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{length}"
            );
        }
        assert_eq!(Btf::parse(btf(&[&[0, 31 << 24, 0]])).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_structure_in_itself_is_not_searched_for_ever() {
        let inside_itself = btf(&[&[SOCK, STRUCT << 24 | 2, 8, 0, 1, 0, 0, 1, 0]]);
        assert!(Btf::parse(inside_itself).unwrap().offset("sock", "len").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut bytes = example();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(btf) = Btf::parse(bytes) {
                let _ = (btf.function("process"), btf.tracepoint("drop"), btf.offset("sock", "len"), btf.offset("sock", "-"));
            }
        }
    }
}
