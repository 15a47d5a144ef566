//! As much of Python as says which other modules a module imports when it is run: from its source, or compiled as CPython leaves it beside that.
//!
//! A source is known by its name only: it is looked into when a compiled module, or a script, led to it.
//! What functions import when they are called is left out; what a condition leaves out is not. Untrusted: every number is checked against the bytes that are there.

mod arguments;
mod compiled;
mod marshal;
mod source;

pub(crate) use arguments::{Main, main};

/// Longest dotted name, bytes.
const MAX_NAME: usize = 512;
/// Import statements of one module that count.
const MAX_IMPORTS: usize = 1024;
/// Names that these take from modules, altogether.
const MAX_NAMES: usize = 4096;
/// Longest path of a source, bytes.
const MAX_PATH: usize = 4096;

/// What a module says of itself and others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Module {
    /// The path of its source when it was compiled.
    pub(crate) source: Option<Vec<u8>>,
    /// What the interpreter that compiled it puts into the names of such files: `cpython-311`.
    pub(crate) tag: Option<&'static str>,
    pub(crate) imports: Vec<Import>,
}

/// One import statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// 0 for a name that is looked for everywhere; else it counts from this many packages up, its own being the first.
    pub(crate) level: u32,
    /// Names between dots; empty where only packages are counted.
    pub(crate) module: Vec<u8>,
    /// What is taken from it, which may be modules in it.
    pub(crate) names: Vec<Vec<u8>>,
}

/// The imports of one module, as far as they count.
#[derive(Debug, Default)]
struct Imports {
    list: Vec<Import>,
    /// What they take from modules, altogether.
    names: usize,
}

impl Imports {
    /// How many names one more may take; nothing if no more counts.
    fn room(&self) -> Option<usize> {
        let room = MAX_NAMES.saturating_sub(self.names);
        (self.list.len() < MAX_IMPORTS && room > 0).then_some(room)
    }

    fn push(&mut self, import: Import) {
        self.names = self.names.saturating_add(import.names.len());
        self.list.push(import);
    }
}

/// Whether a program of this path runs Python.
pub(crate) fn is_interpreter(path: &[u8]) -> bool {
    path.rsplit(|byte| *byte == b'/').next().is_some_and(|name| name.starts_with(b"python"))
}

/// What every interpreter imports before it runs anything, and has not in itself (`Python/codecs.c`, `Lib/site.py`); with the encoding of all usual locales.
pub(crate) fn first_imports() -> Vec<Import> {
    let import = |module: &str, names: &[&str]| Import {
        level: 0,
        module: module.as_bytes().to_vec(),
        names: names.iter().map(|name| name.as_bytes().to_vec()).collect(),
    };
    vec![import("encodings", &["aliases", "utf_8"]), import("site", &[]), import("sitecustomize", &[])]
}

/// What an interpreter with this file name puts into the names of compiled files, and the directory below `lib` that its modules are in: of `python3.11`,
/// `cpython-311` and `python3.11`.
pub(crate) fn release(name: &[u8]) -> Option<(&'static str, String)> {
    let minor = std::str::from_utf8(name.strip_prefix(b"python3.")?).ok()?;
    compiled::tag(minor).map(|tag| (tag, format!("python3.{minor}")))
}

/// Whether a file that begins with these bytes may be a compiled module of a version that is known.
pub(crate) fn is_compiled(head: &[u8]) -> bool {
    compiled::version(head).is_some()
}

impl Module {
    /// From a whole compiled module.
    pub(crate) fn compiled(bytes: &[u8]) -> Option<Self> {
        compiled::module(bytes)
    }

    /// From a whole source.
    pub(crate) fn source(bytes: &[u8]) -> Self {
        Self { source: None, tag: None, imports: source::imports(bytes) }
    }

    /// From what stands on a command line, with `;` between statements.
    pub(crate) fn code(bytes: &[u8]) -> Self {
        let line = |byte: &u8| if *byte == b';' { b'\n' } else { *byte };
        Self::source(&bytes.iter().map(line).collect::<Vec<u8>>())
    }

    /// Bytes of memory that it takes.
    pub(crate) fn size(&self) -> usize {
        let names = self.imports.iter().flat_map(|import| import.names.iter().chain([&import.module]));
        let names = names.map(|name| name.len().saturating_add(size_of::<Vec<u8>>()));
        names.fold(self.source.as_ref().map_or(0, Vec::len), usize::saturating_add)
    }
}

/// Whether these are identifiers between dots, as far as that matters for files.
fn is_dotted_name(name: &[u8]) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80;
    name.len() <= MAX_NAME
        && name.split(|byte| *byte == b'.').all(|part| !part.is_empty() && part.iter().all(is_letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &[u8] = include_bytes!("../tests/python/sample.py");
    /// As CPython's `py_compile` made them of that, at [`PATH`].
    const COMPILED: [(&str, &[u8]); 4] = [
        ("cpython-39", include_bytes!("../tests/python/sample.cpython-39.pyc")),
        ("cpython-311", include_bytes!("../tests/python/sample.cpython-311.pyc")),
        ("cpython-313", include_bytes!("../tests/python/sample.cpython-313.pyc")),
        ("cpython-314", include_bytes!("../tests/python/sample.cpython-314.pyc")),
    ];
    const PATH: &[u8] = b"/usr/lib/python3/dist-packages/pkg/sub/sample.py";

    /// What a reader of the source finds.
    fn expected() -> Vec<Import> {
        let import = |level, module: &str, names: &[&str]| Import {
            level,
            module: module.as_bytes().to_vec(),
            names: names.iter().map(|name| name.as_bytes().to_vec()).collect(),
        };
        vec![
            import(0, "alpha", &[]),
            import(0, "beta.gamma.delta", &[]),
            import(0, "epsilon", &[]),
            import(1, "", &["sibling"]),
            import(2, "", &["uncle"]),
            import(1, "near", &["one", "two"]),
            import(3, "far.away", &[]),
            import(0, "zeta.eta", &["theta", "iota"]),
            import(0, "kappa", &[]),
            import(0, "mu", &["nu"]),
            import(0, "omega", &[]),
            import(1, "last", &["final"]),
        ]
    }

    #[test]
    fn sources_say_what_they_import() {
        assert_eq!(Module::source(SOURCE), Module { imports: expected(), ..Module::default() });
    }

    #[test]
    fn compiled_modules_say_the_same() {
        for (tag, compiled) in COMPILED {
            assert!(is_compiled(compiled.get(..16).unwrap()), "{tag}");
            let module = Module::compiled(compiled).unwrap();
            assert_eq!(
                module,
                Module { source: Some(PATH.to_vec()), tag: Some(tag), imports: expected() },
                "{tag}"
            );
        }
    }

    #[test]
    fn other_files_are_none() {
        for head in
            [&b""[..], b"\xa7\r", b"\x7fELF\x02\x01", b"\xa7\x0d\x0d\x00", b"\x03\xf3\x0d\x0a", b"PK\r\n"]
        {
            assert!(!is_compiled(head), "{head:?}");
            assert_eq!(Module::compiled(head), None);
        }
    }

    #[test]
    fn damaged_modules_are_survived() {
        for (_, compiled) in COMPILED {
            for end in (0..compiled.len()).step_by(97) {
                assert_eq!(Module::compiled(&compiled[..end]), None, "the file of a module ends with it");
            }
            for at in (16..1000).chain((1000..compiled.len()).step_by(31)) {
                for value in [0x00, 0x5b, 0x72, 0xa9, 0xe3, 0xff] {
                    let mut damaged = compiled.to_vec();
                    damaged[at] = value;
                    let _ = Module::compiled(&damaged);
                }
            }
        }
        // Tuples in tuples, and in a tuple that refers to itself.
        let deep = [&COMPILED[1].1[..16], &[b')', 1].repeat(100_000)].concat();
        assert_eq!(Module::compiled(&deep), None);
        let wide = [&COMPILED[1].1[..16], b"(\xff\xff\xff\x7f"].concat();
        assert_eq!(Module::compiled(&wide), None);
        for end in 0..SOURCE.len().min(1000) {
            let _ = Module::source(&SOURCE[..end]);
        }
    }

    /// A module of CPython 3.11 with this bytecode, these constants and names (marshalled), and this path.
    fn made_of(bytecode: &[u8], consts: &[u8], names: &[u8], path: &[u8]) -> Vec<u8> {
        let sized =
            |kind: u8, bytes: &[u8]| [&[kind], &(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
        [
            &COMPILED[1].1[..16],
            b"c",
            &[0; 20],
            &sized(b's', bytecode),
            consts,
            names,
            b"NN",
            &sized(b'u', path),
            b"NN",
            &[0; 4],
            b"NN",
        ]
        .concat()
    }

    /// A marshalled tuple.
    fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
        [b"(", &(items.len() as u32).to_le_bytes()[..], &items.concat()].concat()
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [b"u", &(text.len() as u32).to_le_bytes()[..], text].concat()
    }

    /// `import beta`, with constants 0 and nothing in this place.
    fn import_with(nothing: u8) -> [u8; 6] {
        [100, 0, 100, nothing, 108, 0]
    }

    const ZERO: &[u8] = b"i\0\0\0\0";

    #[test]
    fn values_in_values_by_reference_are_survived() {
        // Tuples of one item, which is the tuple before.
        let chain = |links: u32| -> Vec<Vec<u8>> {
            let link = |number: u32| match number.checked_sub(1) {
                None => b"\xa9\0".to_vec(),
                Some(before) => [&b"\xa9\x01r"[..], &before.to_le_bytes()].concat(),
            };
            (0..links).map(link).collect()
        };
        for (links, is_read) in [(50_000, true), (1_000_000, false)] {
            let consts = [vec![ZERO.to_vec(), b"N".to_vec()], chain(links)].concat();
            let bytes = made_of(&import_with(1), &tuple(&consts), &tuple(&[text(b"beta")]), b"/a.py");
            let imports = Module::compiled(&bytes).map(|module| module.imports.len());
            assert_eq!(imports, is_read.then_some(1), "{links} links");
            // The same with an end that cannot be read.
            assert_eq!(Module::compiled(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn names_that_imports_share_are_bounded() {
        let name = vec![b'n'; MAX_NAME];
        let names = tuple(&vec![text(&name); MAX_IMPORTS]);
        let bytecode = import_with(1).repeat(MAX_IMPORTS);
        let bytes = made_of(&bytecode, &tuple(&[ZERO.to_vec(), names]), &tuple(&[text(b"beta")]), b"/a.py");
        let module = Module::compiled(&bytes).unwrap();
        let taken: usize = module.imports.iter().map(|import| import.names.len()).sum();
        assert_eq!((module.imports.len(), taken), (MAX_NAMES / MAX_IMPORTS, MAX_NAMES));
        let source = [b"from beta import ", &[&name[..], b", "].concat().repeat(500)[..], b"\n"].concat();
        let imports = Module::source(&source.repeat(20)).imports;
        assert_eq!(imports.iter().map(|import| import.names.len()).sum::<usize>(), MAX_NAMES);
    }

    #[test]
    fn imports_of_one_line_are_bounded() {
        let line = [&b"import a"[..], &b",a".repeat(100_000)].concat();
        assert_eq!(Module::source(&line).imports.len(), MAX_IMPORTS);
        assert_eq!(Module::code(&b"import a;".repeat(100_000)).imports.len(), MAX_IMPORTS);
    }

    #[test]
    fn paths_of_any_length_are_survived() {
        for (len, is_kept) in [(4096, true), (4097, false), (1 << 20, false)] {
            let path = b"/a".repeat(len).split_off(len);
            let bytes = made_of(b"", &tuple(&[]), &tuple(&[]), &path);
            assert_eq!(Module::compiled(&bytes).unwrap().source, is_kept.then_some(path), "{len}");
        }
    }
}
