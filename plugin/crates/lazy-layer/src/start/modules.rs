//! Where Python finds what a module imports.
//!
//! Nobody says where that is looked for, but the modules themselves: each lies in a directory that packages begin in, and where one was found, the next will be looked
//! for, too.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Rank, Step, WHOLE, Walk, joined};
use crate::python;
use crate::python::{Import, Module};
use crate::stack::{Directory, Entry, Found, MAX_DEPTH, Path, names};

/// Directories that packages begin in.
const MAX_ROOTS: usize = 16;
/// Names that are remembered for an image, and bytes of them with the directories that they are in; then all are forgotten.
const MAX_PLACES: usize = 8192;
const MAX_PLACES_BYTES: usize = 2 << 20;
/// Where there is one below such a directory, it is another one.
const BELOW: [&[u8]; 3] = [b"lib-dynload", b"site-packages", b"dist-packages"];
const CACHE: &[u8] = b"__pycache__";
const PACKAGE: &[u8] = b"__init__";

/// What is known of the modules of an image. Some megabytes at most.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    roots: Vec<Path>,
    /// What an interpreter puts into the names of compiled files.
    tag: Option<&'static str>,
    places: Places,
}

/// What names stand for, by directory and name as one path.
#[derive(Debug, Default)]
struct Places {
    known: HashMap<Vec<u8>, Place>,
    bytes: usize,
}

/// What a name stands for in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nothing,
    Module,
    /// A directory with others.
    Package,
    /// The same, but with nothing that says so: taken only where there is nothing else.
    Directory,
}

/// How a file says what it imports.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Compiled,
    Source,
}

impl Places {
    fn insert(&mut self, path: Vec<u8>, place: Place) {
        let bytes = self.bytes.saturating_add(path.len());
        if self.known.len() >= MAX_PLACES || bytes > MAX_PLACES_BYTES {
            *self = Self::default();
        }
        self.bytes = self.bytes.saturating_add(path.len());
        self.known.insert(path, place);
    }
}

impl Walk {
    /// Goes on with what a module imports when it is here as a whole.
    pub(super) fn module(self: &Arc<Self>, found: &Found, form: Form) {
        // No larger one is fetched as a whole, and none is known: generated ones have up to 5 MB.
        if found.inode.size > WHOLE {
            return;
        }
        let (walk, again) = (Arc::clone(self), found.clone());
        self.when_here(found, &(0..found.inode.size), move |bytes| {
            let module = match form {
                Form::Compiled => Module::compiled(bytes).unwrap_or_default(),
                Form::Source => Module::source(bytes),
            };
            Step::Module(walk, again, Box::new(module))
        });
    }

    /// Asks for what a module imports.
    pub(super) fn imports(self: &Arc<Self>, found: &Found, module: &Module) {
        let directory = match &module.source {
            Some(source) => directory_of(source),
            None => found.directory().map(<[_]>::to_vec),
        };
        {
            let mut modules = self.stack.modules.lock();
            modules.tag = module.tag.or(modules.tag);
        }
        if let Some(directory) = &directory {
            self.learn_root(directory);
        }
        self.import_all(directory.as_ref(), &module.imports, found.rank);
    }

    /// Asks for what is imported, one after the other.
    pub(super) fn import_all(self: &Arc<Self>, directory: Option<&Path>, imports: &[Import], rank: Rank) {
        for (number, import) in imports.iter().enumerate() {
            self.import(directory, import, rank.within(number, imports.len()));
        }
    }

    fn import(self: &Arc<Self>, directory: Option<&Path>, import: &Import, rank: Rank) {
        let Some(bases) = self.bases(directory, import.level) else { return };
        let names: Vec<&[u8]> =
            import.module.split(|byte| *byte == b'.').filter(|name| !name.is_empty()).collect();
        let count = names.len().saturating_add(import.names.len());
        let mut ranks = (0..count).map(|number| rank.within(number, count));
        // Where the first is decides; the others are below it.
        let first = rank.within(0, count);
        let Some(mut package) = self.base(&bases, names.first().copied(), first) else { return };
        for (name, rank) in names.into_iter().zip(&mut ranks) {
            if !matches!(self.place(&package, name, rank), Place::Package | Place::Directory) {
                return;
            }
            package.push(name.to_vec());
        }
        for (name, rank) in import.names.iter().zip(ranks) {
            self.place(&package, name, rank);
        }
    }

    /// Where the first name of an import is: a directory without a sign that it is a package counts only where there is nothing better.
    fn base(self: &Arc<Self>, bases: &[Path], name: Option<&[u8]>, rank: Rank) -> Option<Path> {
        let Some(name) = name else { return bases.first().cloned() };
        let mut directory = None;
        for base in bases {
            match self.place(base, name, rank) {
                Place::Nothing => {}
                Place::Directory => directory = directory.or(Some(base)),
                Place::Module | Place::Package => return Some(base.clone()),
            }
        }
        directory.cloned()
    }

    /// Where the first name of an import is looked for.
    fn bases(&self, directory: Option<&Path>, level: u32) -> Option<Vec<Path>> {
        let Some(up) = usize::try_from(level).unwrap_or(usize::MAX).checked_sub(1) else {
            return Some(self.stack.modules.lock().roots.clone());
        };
        let directory = directory?;
        Some(vec![directory.get(..directory.len().checked_sub(up)?)?.to_vec()])
    }

    /// What a name stands for in a directory; a module, and what a package is begun with, is asked for when it is met first.
    fn place(self: &Arc<Self>, directory: &Path, name: &[u8], rank: Rank) -> Place {
        if !self.lookups.take() {
            return Place::Nothing;
        }
        let key = joined(&directory.join(&b'/'), name);
        let tag = {
            let modules = self.stack.modules.lock();
            if let Some(place) = modules.places.known.get(&key) {
                return *place;
            }
            modules.tag
        };
        let place = match self.stack.directory(directory, &self.lookups) {
            Some(entries) => self.look(directory, &entries, name, tag, rank),
            None => Place::Nothing,
        };
        if !self.lookups.are_spent() {
            self.stack.modules.lock().places.insert(key, place);
        }
        place
    }

    /// In the order in which Python looks: packages, binaries, sources.
    fn look(
        self: &Arc<Self>,
        directory: &Path,
        entries: &Directory,
        name: &[u8],
        tag: Option<&str>,
        rank: Rank,
    ) -> Place {
        let below = match entries.entry(name, &self.lookups) {
            Some(Entry::Directory(below)) => Some(below),
            _ => None,
        };
        if let Some(below) = &below {
            let mut path = directory.clone();
            path.push(name.to_vec());
            if self.visit_module(&path, below, PACKAGE, tag, rank) {
                return Place::Package;
            }
        }
        if self.visit_module(directory, entries, name, tag, rank) {
            return Place::Module;
        }
        below.map_or(Place::Nothing, |_| Place::Directory)
    }

    /// Whether there is a module of that name, which is asked for.
    fn visit_module(
        self: &Arc<Self>,
        directory: &Path,
        entries: &Directory,
        name: &[u8],
        tag: Option<&str>,
        rank: Rank,
    ) -> bool {
        let visit = |from: &[Vec<u8>], file: &[u8], form: Option<Form>| {
            self.stack.file(from, file, rank, &self.lookups).is_some_and(|found| {
                match form {
                    Some(form) if self.takes(&found) => self.module(&found, form),
                    Some(_) => {}
                    None => self.visit(found),
                }
                true
            })
        };
        let binary = binaries(tag).into_iter().map(|ending| [name, ending.as_bytes()].concat());
        if let Some(file) = binary.into_iter().find(|file| entries.entry(file, &self.lookups).is_some()) {
            return visit(directory, &file, None);
        }
        let compiled = tag.map(|tag| [name, b".", tag.as_bytes(), b".pyc"].concat());
        if let Some(file) = compiled
            && let Some(Entry::Directory(cache)) = entries.entry(CACHE, &self.lookups)
            && cache.entry(&file, &self.lookups).is_some()
        {
            return visit(directory, &[CACHE, b"/", &file].concat(), Some(Form::Compiled));
        }
        [(&b".py"[..], Form::Source), (b".pyc", Form::Compiled)].into_iter().any(|(ending, form)| {
            let file = [name, ending].concat();
            entries.entry(&file, &self.lookups).is_some() && visit(directory, &file, Some(form))
        })
    }

    /// Remembers where the packages begin that a module in this directory belongs to.
    fn learn_root(&self, directory: &Path) {
        let modules = &self.stack.modules;
        if modules.lock().roots.contains(directory) {
            return;
        }
        let mut root = directory.clone();
        while self.is_package(&root) && root.pop().is_some() {}
        let is_new = !modules.lock().roots.contains(&root);
        if root.is_empty() || !is_new {
            return;
        }
        let mut roots = vec![root.clone()];
        roots.extend(BELOW.map(|name| {
            let mut below = root.clone();
            below.push(name.to_vec());
            below
        }));
        // What is installed lies below what came with the interpreter.
        if root.last().is_some_and(|name| BELOW.contains(&name.as_slice())) {
            root.pop();
            roots.push(root);
        }
        self.add_roots(roots);
    }

    fn is_package(&self, directory: &Path) -> bool {
        let entries = self.stack.directory(directory, &self.lookups);
        let has = |name: &[u8]| {
            entries.as_ref().is_some_and(|entries| entries.entry(name, &self.lookups).is_some())
        };
        has(b"__init__.py") || has(b"__init__.pyc")
    }

    /// Asks for what an interpreter imports before it runs anything, wherever that is not in itself.
    pub(super) fn begin_python(self: &Arc<Self>, path: &[u8], rank: Rank) {
        self.learn_interpreter(path);
        self.import_all(None, &python::first_imports(), rank);
    }

    /// Remembers where an interpreter looks, which is said by its own name and by the directories beside the one that it is in
    /// (`Modules/getpath.py`; Debian's are in its Python policy, 2.3): those of the name as given, which may belong to a virtual environment, and of the file.
    fn learn_interpreter(&self, path: &[u8]) {
        let Some(file) = self.stack.file(&[], path, Rank::default(), &self.lookups) else { return };
        let Some((tag, version)) = file.name().and_then(python::release) else { return };
        self.stack.modules.lock().tag = Some(tag);
        let given: Path = names(path).collect();
        for place in [Some(given.as_slice()), file.path.as_deref()].into_iter().flatten() {
            let Some(prefix) = place.len().checked_sub(2).and_then(|len| place.get(..len)) else { continue };
            let below =
                |path: &str| -> Path { prefix.iter().cloned().chain(names(path.as_bytes())).collect() };
            let own = format!("lib/{version}");
            let roots = ["", "/lib-dynload", "/site-packages", "/dist-packages"];
            let roots = roots.map(|name| below(&format!("{own}{name}")));
            let debian = [format!("local/{own}/dist-packages"), "lib/python3/dist-packages".to_owned()];
            self.add_roots(roots.into_iter().chain(debian.map(|path| below(&path))));
        }
    }

    /// Remembers those of these directories that there are.
    pub(super) fn add_roots(&self, roots: impl IntoIterator<Item = Path>) {
        for root in roots {
            if !root.is_empty() && self.stack.directory(&root, &self.lookups).is_some() {
                let mut modules = self.stack.modules.lock();
                if modules.roots.len() < MAX_ROOTS && !modules.roots.contains(&root) {
                    modules.roots.push(root);
                }
            }
        }
    }
}

/// How the names of binary modules end, on this machine: what runs here was built for it.
fn binaries(tag: Option<&str>) -> Vec<String> {
    let arch = std::env::consts::ARCH;
    let of_version =
        tag.into_iter().flat_map(|tag| ["gnu", "musl"].map(|libc| format!(".{tag}-{arch}-linux-{libc}.so")));
    of_version.chain([".abi3.so".to_owned(), ".so".to_owned()]).collect()
}

/// The directory of a module with this path. What is compiled lies below it. None if there can be no such directory.
fn directory_of(source: &[u8]) -> Option<Path> {
    let names = source.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    let mut path: Path = names.take(MAX_DEPTH.saturating_add(1)).map(<[u8]>::to_vec).collect();
    path.pop().filter(|_| path.len() < MAX_DEPTH)?;
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut places = Places::default();
        let largest = (0..MAX_PLACES * 2).map(|number| {
            places.insert(format!("{number}/{}", "a/".repeat(2000)).into_bytes(), Place::Nothing);
            places.known.keys().map(Vec::len).sum::<usize>()
        });
        assert!(largest.take(1500).all(|bytes| bytes <= MAX_PLACES_BYTES));
        let mut places = Places::default();
        for number in 0..MAX_PLACES * 2 {
            places.insert(number.to_le_bytes().to_vec(), Place::Nothing);
            assert!(places.known.len() <= MAX_PLACES);
        }
        places.insert(b"again".to_vec(), Place::Module);
        assert_eq!(places.known.get(&b"again"[..]), Some(&Place::Module));
    }

    #[test]
    fn paths_have_a_directory() {
        let directory = |path: &str| directory_of(path.as_bytes()).map(|path| path.join(&b'/'));
        assert_eq!(directory("/usr/lib//a.py"), Some(b"usr/lib".to_vec()));
        assert_eq!(directory("a.py"), Some(Vec::new()));
        assert_eq!(directory(""), None);
        assert_eq!(directory(&"a/".repeat(MAX_DEPTH)).map(|path| path.len()), Some(2 * MAX_DEPTH - 3));
        assert_eq!(directory(&"a/".repeat(100_000)), None);
    }
}
