//! Where Python finds what a module imports.
//!
//! Nobody says where that is looked for, but the modules themselves: each lies in a directory that packages begin in, and where one was found, the next will be looked
//! for, too.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Step, Walk};
use crate::layer::MAX_READ;
use crate::python::{Import, Module};
use crate::stack::{Directory, Entry, Found, Stack};

/// Directories that packages begin in.
const MAX_ROOTS: usize = 16;
/// Names that are remembered for an image; then all are forgotten.
const MAX_PLACES: usize = 8192;
/// Where there is one below such a directory, it is another one.
const BELOW: [&[u8]; 3] = [b"lib-dynload", b"site-packages", b"dist-packages"];
const CACHE: &[u8] = b"__pycache__";
const PACKAGE: &[u8] = b"__init__";

/// A directory's path, name for name.
type Path = Vec<Vec<u8>>;

/// What is known of the modules of an image. Some hundred kilobytes at most.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    roots: Vec<Path>,
    /// What an interpreter puts into the names of compiled files.
    tag: Option<&'static str>,
    /// By directory and name.
    places: HashMap<(Path, Vec<u8>), Place>,
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

impl Walk {
    /// Goes on with what a module imports when it is here as a whole.
    pub(super) fn module(self: &Arc<Self>, found: &Found, form: Form) {
        if found.inode.size > u64::from(MAX_READ) {
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
            Some(source) => Some(directory_of(source)),
            None => found.directory.clone(),
        };
        {
            let mut modules = self.stack.modules.lock();
            modules.tag = module.tag.or(modules.tag);
        }
        if let Some(directory) = &directory {
            self.learn_root(directory);
        }
        for import in &module.imports {
            self.import(directory.as_ref(), import);
        }
    }

    fn import(self: &Arc<Self>, directory: Option<&Path>, import: &Import) {
        let Some(bases) = self.bases(directory, import.level) else { return };
        let names: Vec<&[u8]> =
            import.module.split(|byte| *byte == b'.').filter(|name| !name.is_empty()).collect();
        // Where the first is decides; the others are below it.
        let Some(mut package) = self.base(&bases, names.first().copied()) else { return };
        for name in names {
            if !matches!(self.place(&package, name), Place::Package | Place::Directory) {
                return;
            }
            package.push(name.to_vec());
        }
        for name in &import.names {
            self.place(&package, name);
        }
    }

    /// Where the first name of an import is: a directory without a sign that it is a package counts only where there is nothing better.
    fn base(self: &Arc<Self>, bases: &[Path], name: Option<&[u8]>) -> Option<Path> {
        let Some(name) = name else { return bases.first().cloned() };
        let mut directory = None;
        for base in bases {
            match self.place(base, name) {
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
    fn place(self: &Arc<Self>, directory: &Path, name: &[u8]) -> Place {
        let key = (directory.clone(), name.to_vec());
        let tag = {
            let modules = self.stack.modules.lock();
            if let Some(place) = modules.places.get(&key) {
                return *place;
            }
            modules.tag
        };
        let place = match self.stack.directory(directory) {
            Some(entries) => self.look(directory, &entries, name, tag),
            None => Place::Nothing,
        };
        let mut modules = self.stack.modules.lock();
        if modules.places.len() >= MAX_PLACES {
            modules.places.clear();
        }
        modules.places.insert(key, place);
        place
    }

    /// In the order in which Python looks: packages, binaries, sources.
    fn look(
        self: &Arc<Self>,
        directory: &Path,
        entries: &Directory,
        name: &[u8],
        tag: Option<&str>,
    ) -> Place {
        let below = match entries.entry(name) {
            Some(Entry::Directory(below)) => Some(below),
            _ => None,
        };
        if let Some(below) = &below {
            let mut path = directory.clone();
            path.push(name.to_vec());
            if self.visit_module(&path, below, PACKAGE, tag) {
                return Place::Package;
            }
        }
        if self.visit_module(directory, entries, name, tag) {
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
    ) -> bool {
        let visit = |from: &[Vec<u8>], file: &[u8], form: Option<Form>| {
            self.stack.file(from, file).is_some_and(|found| {
                match form {
                    Some(form) if self.takes(&found) => self.module(&found, form),
                    Some(_) => {}
                    None => self.visit(found),
                }
                true
            })
        };
        let binary = binaries(tag).into_iter().map(|ending| [name, ending.as_bytes()].concat());
        if let Some(file) = binary.into_iter().find(|file| entries.entry(file).is_some()) {
            return visit(directory, &file, None);
        }
        let compiled = tag.map(|tag| [name, b".", tag.as_bytes(), b".pyc"].concat());
        if let Some(file) = compiled
            && let Some(Entry::Directory(cache)) = entries.entry(CACHE)
            && cache.entry(&file).is_some()
        {
            return visit(directory, &[CACHE, b"/", &file].concat(), Some(Form::Compiled));
        }
        [(&b".py"[..], Form::Source), (b".pyc", Form::Compiled)].into_iter().any(|(ending, form)| {
            let file = [name, ending].concat();
            entries.entry(&file).is_some() && visit(directory, &file, Some(form))
        })
    }

    /// Remembers where the packages begin that a module in this directory belongs to.
    fn learn_root(&self, directory: &Path) {
        let modules = &self.stack.modules;
        if modules.lock().roots.contains(directory) {
            return;
        }
        let mut root = directory.clone();
        while is_package(&self.stack, &root) && root.pop().is_some() {}
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
        roots.retain(|root| self.stack.directory(root).is_some());
        let mut modules = modules.lock();
        for root in roots {
            if modules.roots.len() < MAX_ROOTS && !modules.roots.contains(&root) {
                modules.roots.push(root);
            }
        }
    }
}

fn is_package(stack: &Stack, directory: &Path) -> bool {
    let Some(entries) = stack.directory(directory) else { return false };
    entries.entry(b"__init__.py").is_some() || entries.entry(b"__init__.pyc").is_some()
}

/// How the names of binary modules end, on this machine: what runs here was built for it.
fn binaries(tag: Option<&str>) -> Vec<String> {
    let arch = std::env::consts::ARCH;
    let of_version =
        tag.into_iter().flat_map(|tag| ["gnu", "musl"].map(|libc| format!(".{tag}-{arch}-linux-{libc}.so")));
    of_version.chain([".abi3.so".to_owned(), ".so".to_owned()]).collect()
}

/// The directory of a module with this path. What is compiled lies below it.
fn directory_of(source: &[u8]) -> Path {
    let mut path: Path =
        source.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    path.pop();
    path
}
