//! Compiled modules: 16 bytes with a number for the version of the interpreter, then a marshalled code object (`Lib/importlib/_bootstrap_external.py`; PEP 552).

use super::marshal::{Code, Value};
use super::{Import, Imports, MAX_PATH, Module, is_dotted_name};

/// Bytes before the code object.
const HEADER: usize = 16;

/// What differs between releases of CPython.
#[derive(Debug)]
pub(super) struct Version {
    /// As released (`Include/internal/pycore_magic_number.h`).
    magic: u16,
    tag: &'static str,
    layout: Layout,
    opcodes: &'static Opcodes,
}

/// How a code object is marshalled: numbers, bytecode, constants, names, then tuples about its variables, file, titles, a number, tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Of 4 bytes.
    pub(super) numbers: usize,
    pub(super) variables: u32,
    pub(super) titles: u32,
    pub(super) tables: u32,
}

/// Numbers of the instructions that an import is made of (`Lib/opcode.py`, `Lib/_opcode_metadata.py`).
#[derive(Debug)]
struct Opcodes {
    load_const: u8,
    /// Pushes its argument.
    load_small_int: Option<u8>,
    import_name: u8,
    /// Higher bits of the next instruction's argument.
    extended_arg: u8,
}

/// Up to 3.10.
const WITH_CELLS: Layout = Layout { numbers: 6, variables: 3, titles: 1, tables: 1 };
/// From 3.11 on.
const WITH_KINDS: Layout = Layout { numbers: 5, variables: 2, titles: 2, tables: 2 };
/// Up to 3.12.
const FIXED: Opcodes = Opcodes { load_const: 100, load_small_int: None, import_name: 108, extended_arg: 144 };
const OF_3_13: Opcodes = Opcodes { load_const: 83, load_small_int: None, import_name: 75, extended_arg: 71 };
const OF_3_14: Opcodes =
    Opcodes { load_const: 82, load_small_int: Some(94), import_name: 73, extended_arg: 69 };

const VERSIONS: [Version; 7] = [
    Version { magic: 3413, tag: "cpython-38", layout: WITH_CELLS, opcodes: &FIXED },
    Version { magic: 3425, tag: "cpython-39", layout: WITH_CELLS, opcodes: &FIXED },
    Version { magic: 3439, tag: "cpython-310", layout: WITH_CELLS, opcodes: &FIXED },
    Version { magic: 3495, tag: "cpython-311", layout: WITH_KINDS, opcodes: &FIXED },
    Version { magic: 3531, tag: "cpython-312", layout: WITH_KINDS, opcodes: &FIXED },
    Version { magic: 3571, tag: "cpython-313", layout: WITH_KINDS, opcodes: &OF_3_13 },
    Version { magic: 3627, tag: "cpython-314", layout: WITH_KINDS, opcodes: &OF_3_14 },
];

/// The version that wrote a file which begins with these bytes.
pub(super) fn version(head: &[u8]) -> Option<&'static Version> {
    let [low, high, b'\r', b'\n', ..] = *head else { return None };
    let magic = u16::from_le_bytes([low, high]);
    VERSIONS.iter().find(|version| version.magic == magic)
}

/// What CPython 3.`minor` puts into the names of compiled files.
pub(super) fn tag(minor: &str) -> Option<&'static str> {
    let mut tags = VERSIONS.iter().map(|version| version.tag);
    tags.find(|tag| tag.strip_prefix("cpython-3").is_some_and(|of| of == minor))
}

pub(super) fn module(bytes: &[u8]) -> Option<Module> {
    let version = version(bytes)?;
    let code = Code::read(bytes.get(HEADER..)?, version.layout)?;
    let source = code.file().filter(|path| path.len() <= MAX_PATH).map(<[u8]>::to_vec);
    Some(Module { source, tag: Some(version.tag), imports: imports(&code, version.opcodes) })
}

/// An instruction's argument on the stack.
#[derive(Clone, Copy)]
enum Pushed {
    Const(usize),
    Int(u32),
}

/// IMPORT_NAME takes a level and a tuple of names from the stack, which are pushed immediately before.
fn imports(code: &Code<'_>, opcodes: &Opcodes) -> Vec<Import> {
    let mut imports = Imports::default();
    let (mut level, mut taken) = (None, None);
    let mut argument = 0usize;
    for instruction in code.bytecode().chunks_exact(2) {
        let &[opcode, low] = instruction else { break };
        argument = argument << 8 | usize::from(low);
        if opcode == opcodes.extended_arg {
            // Three of them at most.
            argument &= 0x00ff_ffff;
            continue;
        }
        let pushed = if opcode == opcodes.load_const {
            Some(Pushed::Const(argument))
        } else if Some(opcode) == opcodes.load_small_int {
            u32::try_from(argument).ok().map(Pushed::Int)
        } else {
            None
        };
        if opcode == opcodes.import_name
            && let (Some(level), Some(Pushed::Const(taken)), Some(module)) =
                (level.and_then(|level| number(level, code)), taken, code.name(argument))
            && (module.is_empty() || is_dotted_name(module))
        {
            let Some(room) = imports.room() else { break };
            let names = code.constant(taken).into_iter().flat_map(|names| code.texts(names));
            let names = names.filter(|name| is_dotted_name(name)).take(room).map(<[u8]>::to_vec).collect();
            imports.push(Import { level, module: module.to_vec(), names });
        }
        (level, taken) = (taken, pushed);
        argument = 0;
    }
    imports.list
}

fn number(pushed: Pushed, code: &Code<'_>) -> Option<u32> {
    match pushed {
        Pushed::Int(number) => Some(number),
        Pushed::Const(place) => match code.constant(place)? {
            Value::Int(number) => u32::try_from(number).ok(),
            _ => None,
        },
    }
}
