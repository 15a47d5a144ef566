//! As much of ELF as says which other files a program needs (System V ABI, "Object Files" and "Dynamic Linking"; 64 bits, little-endian: what
//! images are made of). Untrusted: every number is checked against the bytes that are there.

use std::ops::Range;

/// Bytes at the beginning of a file that have its program headers, as linkers lay files out.
pub(crate) const HEAD: u32 = 4096;
/// Largest dynamic section that is read, bytes.
const MAX_DYNAMIC: u64 = 64 << 10;
/// Of the table of names, no more than this is read, bytes: what lies between the names that count.
const MAX_NAMES: u64 = 512 << 10;
/// Longest of these names, bytes.
const MAX_NAME: u64 = 4096;
/// Libraries of one file that are looked for.
const MAX_NEEDED: usize = 256;

const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const PROGRAM_HEADER: usize = 56;

/// What the program headers say. Ranges are of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elf {
    machine: u16,
    /// The path of the program that loads it.
    pub(crate) interpreter: Option<Range<u64>>,
    pub(crate) dynamic: Option<Range<u64>>,
    loads: Vec<Load>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Load {
    file: Range<u64>,
    address: u64,
    writable: bool,
}

/// What the dynamic section says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dynamic {
    /// The part of the table of names that has those below, in the file.
    pub(crate) names: Range<u64>,
    /// Places in that part: libraries.
    pub(crate) needed: Vec<u64>,
    /// Where to look for them first, between colons.
    pub(crate) run_path: Option<u64>,
}

/// Whether a file that begins with these bytes may be one of ours.
pub(crate) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

impl Elf {
    /// From the first [`HEAD`] bytes of a file.
    pub(crate) fn parse(head: &[u8]) -> Option<Self> {
        if !is_elf(head) {
            return None;
        }
        let machine = u16_at(head, 18)?;
        let at = usize::try_from(u64_at(head, 32)?).ok()?;
        let (size, count) = (usize::from(u16_at(head, 54)?), usize::from(u16_at(head, 56)?));
        if size != PROGRAM_HEADER {
            return None;
        }
        let mut elf = Self { machine, interpreter: None, dynamic: None, loads: Vec::new() };
        for header in 0..count {
            let start = header.checked_mul(size)?.checked_add(at)?;
            // Those behind the first bytes are done without.
            let Some(header) = head.get(start..start.checked_add(size)?) else { break };
            let (kind, flags, offset) = (u32_at(header, 0)?, u32_at(header, 4)?, u64_at(header, 8)?);
            let file = offset..offset.checked_add(u64_at(header, 32)?)?;
            match kind {
                1 => elf.loads.push(Load { file, address: u64_at(header, 16)?, writable: flags & 2 != 0 }),
                2 => {
                    elf.dynamic = Some(file).filter(|file| file.end.saturating_sub(file.start) <= MAX_DYNAMIC)
                }
                3 => {
                    elf.interpreter =
                        Some(file).filter(|file| file.end.saturating_sub(file.start) <= u64::from(HEAD));
                }
                _ => {}
            }
        }
        Some(elf)
    }

    /// What is read of it before its code runs: the tables of names, symbols and relocations, and the data that these are about.
    pub(crate) fn read_at_start(&self) -> impl Iterator<Item = Range<u64>> {
        let first = self.loads.first().map(|load| load.file.clone());
        let data = self.loads.iter().filter(|load| load.writable).map(|load| load.file.clone());
        first.into_iter().chain(data)
    }

    /// Where libraries are that are named without a directory, besides those of the C library's configuration.
    pub(crate) fn directories(&self) -> impl Iterator<Item = String> {
        let triple = match self.machine {
            62 => "x86_64-linux-gnu",
            183 => "aarch64-linux-gnu",
            243 => "riscv64-linux-gnu",
            21 => "powerpc64le-linux-gnu",
            _ => "",
        };
        let multiarch = ["/usr/lib/", "/lib/", "/usr/local/lib/"].map(|lib| format!("{lib}{triple}"));
        let plain = ["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"].map(str::to_owned);
        multiarch.into_iter().filter(move |_| !triple.is_empty()).chain(plain)
    }

    /// The dynamic section, from its bytes.
    pub(crate) fn dynamic(&self, section: &[u8]) -> Option<Dynamic> {
        let (mut names, mut size, mut run_path, mut needed) = (None, None, None, Vec::new());
        for entry in section.chunks_exact(16) {
            let (tag, value) = (u64_at(entry, 0)?, u64_at(entry, 8)?);
            match tag {
                0 => break,
                1 if needed.len() < MAX_NEEDED => needed.push(value),
                5 => names = Some(value),
                10 => size = Some(value),
                15 if run_path.is_none() => run_path = Some(value),
                29 => run_path = Some(value),
                _ => {}
            }
        }
        let first = needed.iter().chain(&run_path).min().copied()?;
        let last = needed.iter().chain(&run_path).max().copied()?;
        let end = last.saturating_add(MAX_NAME).min(size?).min(first.saturating_add(MAX_NAMES));
        let start = self.place(names?)?;
        let names = start.checked_add(first)?..start.checked_add(end)?;
        let moved = |at: u64| at.saturating_sub(first);
        Some(Dynamic {
            names,
            needed: needed.into_iter().map(moved).collect(),
            run_path: run_path.map(moved),
        })
    }

    /// Where in the file an address is.
    fn place(&self, address: u64) -> Option<u64> {
        self.loads.iter().find_map(|load| {
            let behind = address.checked_sub(load.address)?;
            let place = load.file.start.checked_add(behind)?;
            load.file.contains(&place).then_some(place)
        })
    }
}

/// A name in a table of names; not empty.
pub(crate) fn name(names: &[u8], at: u64) -> Option<&[u8]> {
    let name = names.get(usize::try_from(at).ok()?..)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    name.get(..end).filter(|name| !name.is_empty())
}

/// The program that a script's first line names, and its argument.
pub(crate) fn script(head: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let line = head.strip_prefix(b"#!")?;
    let line = line.get(..line.iter().position(|byte| *byte == b'\n')?)?;
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    Some((words.next()?, words.next()))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_says_what_it_needs() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let elf = Elf::parse(&file[..4096]).unwrap();
        let part = |range: &Range<u64>| &file[range.start as usize..range.end as usize];
        let interpreter = part(elf.interpreter.as_ref().unwrap());
        let interpreter = std::str::from_utf8(interpreter.strip_suffix(b"\0").unwrap()).unwrap();
        assert!(std::path::Path::new(interpreter).exists(), "{interpreter}");
        let dynamic = elf.dynamic(part(elf.dynamic.as_ref().unwrap())).unwrap();
        let names: Vec<&[u8]> =
            dynamic.needed.iter().map(|at| name(part(&dynamic.names), *at).unwrap()).collect();
        // The kernel's word for it.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!names.is_empty());
        for name in names {
            assert!(maps.contains(std::str::from_utf8(name).unwrap()), "{name:?}");
        }
    }

    #[test]
    fn damaged_files_are_no_programs() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let head = &file[..4096];
        assert_eq!(Elf::parse(b""), None);
        assert_eq!(Elf::parse(b"#!/bin/sh\n"), None);
        for end in 0..head.len() {
            let _ = Elf::parse(&head[..end]);
        }
        for at in 0..512 {
            for value in [0, 0x7f, 0xff] {
                let mut head = head.to_vec();
                head[at] = value;
                if let Some(elf) = Elf::parse(&head) {
                    let _ = elf.dynamic(&file[..4096]);
                    elf.read_at_start().for_each(drop);
                }
            }
        }
    }

    #[test]
    fn scripts_name_their_program() {
        assert_eq!(script(b"#!/bin/sh\nexit"), Some((&b"/bin/sh"[..], None)));
        assert_eq!(
            script(b"#! /usr/bin/env python3 -x\n"),
            Some((&b"/usr/bin/env"[..], Some(&b"python3"[..])))
        );
        assert_eq!(script(b"#!/bin/sh"), None);
        assert_eq!(script(b"#!\n"), None);
    }
}
