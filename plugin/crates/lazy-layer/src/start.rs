//! What a program that starts is going to read.
//!
//! A program says itself what it needs: a script its interpreter, a binary the program that loads it and its libraries, each of these its own. The
//! loader finds that out one file after another, and each file not here costs a round trip. So when the beginning of such a file is read, the same is found
//! out ahead of the loader, from the layers of the image together, and all of it is asked for at once. The same is done with the files that nearly
//! every start reads ([`crate::StoreOptions::start_files`]) when an image is mounted, and with what a container's command line names.
//!
//! A Python program says in its modules which others it imports; these are followed, too.
//!
//! It is a guess, and bounded: a program is followed to so many files and bytes, with so many looks at directories; what is read meanwhile goes first.

mod command;
mod modules;
mod rank;
pub(crate) mod steps;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use erofs_image::{Kind, Nid};

use crate::demand::Demand;
use crate::elf::{self, Dynamic, Elf};
use crate::engine::Engine;
use crate::layer::Layer;
use crate::python::{self, Module};
use crate::stack::{Found, Lookups, Stack};
pub use command::Command;
use modules::Form;
pub(crate) use modules::Modules;
pub(crate) use rank::Rank;
pub(crate) use steps::Steps;

/// A file of up to so many bytes is asked for as a whole: it is hardly more than a span, and most of it will be read.
const WHOLE: u64 = 8 << 20;
/// Of a larger one, no part that is longer.
const PART: u64 = 4 << 20;
/// The end of a larger one has what its beginning tells of, as linkers lay files out: it is asked for without waiting for that.
const TAIL: u64 = 64 << 10;
/// Directories of its own that a file is looked for in.
const MAX_RUN_PATH: usize = 16;
/// Names that are looked up in layers because of one beginning, for each file that it may be followed to. The modules of large Python packages take 500, in
/// an image whose ten layers share most directories.
const LOOKUPS: usize = 1024;
/// Where `env` looks, and a shell.
const PATH: [&[u8]; 6] =
    [b"/usr/local/sbin", b"/usr/local/bin", b"/usr/sbin", b"/usr/bin", b"/sbin", b"/bin"];

/// Programs followed from one beginning.
#[derive(Debug)]
pub(crate) struct Walk {
    stack: Arc<Stack>,
    /// How much it is wanted.
    demand: Demand,
    /// That of all.
    rank: Rank,
    /// How many more files and bytes, and looks for them.
    files: AtomicUsize,
    bytes: AtomicU64,
    lookups: Lookups,
}

/// Something that came, and what to do with it. Done by the thread that reads ahead.
#[derive(Debug)]
pub(crate) enum Step {
    /// An image is mounted.
    Image(Arc<Stack>),
    /// A container runs this.
    Command(Arc<Stack>, Box<Command>),
    /// The beginning of a file was read, at this place of the layer file, and looks like a program.
    Program(Arc<Layer>, u64),
    /// The first bytes of a file.
    Head(Arc<Walk>, Found, Vec<u8>),
    /// Its dynamic section.
    Dynamic(Arc<Walk>, Found, Elf, Vec<u8>),
    /// Its names.
    Names(Arc<Walk>, Found, Elf, Dynamic, Vec<u8>),
    /// The path of what loads it.
    Interpreter(Arc<Walk>, Rank, Vec<u8>),
    /// What a Python module imports.
    Module(Arc<Walk>, Found, Box<Module>),
}

impl Step {
    /// Bytes that came, as far as it keeps them.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Image(_) | Self::Command(..) | Self::Program(..) => 0,
            Self::Head(.., bytes)
            | Self::Dynamic(.., bytes)
            | Self::Names(.., bytes)
            | Self::Interpreter(.., bytes) => bytes.len(),
            Self::Module(_, _, module) => module.size(),
        }
    }

    pub(crate) fn take(self, engine: &Arc<Engine>) {
        match self {
            Step::Image(stack) => {
                let options = &engine.options;
                let lists =
                    [(&options.start_files, Demand::Trace), (&options.likely_files, Demand::ReadAhead)];
                for (paths, demand) in lists {
                    let walk = Walk::new(engine, Arc::clone(&stack), demand);
                    for (number, path) in paths.iter().enumerate() {
                        walk.visit_path(&[], path.as_bytes(), walk.rank.within(number, paths.len()));
                    }
                }
            }
            Step::Command(stack, command) => Walk::new(engine, stack, Demand::Trace).command(&command),
            // Who reads everything starts nothing, and needs what comes next more than what a program would load.
            Step::Program(layer, place) if layer.is_passed(place) => {}
            Step::Program(layer, place) => {
                let Some((nid, stack)) = layer.file_at(place).zip(layer.stack()) else { return };
                let Ok(inode) = layer.image().inode(nid) else { return };
                let walk = Walk::new(engine, stack, Demand::Trace);
                walk.visit(Found { layer, inode, path: None, rank: walk.rank });
            }
            Step::Head(walk, found, head) => walk.head(found, &head),
            Step::Dynamic(walk, found, elf, section) => {
                let Some(dynamic) = elf.dynamic(&section) else { return };
                let range = dynamic.names.clone();
                let next = {
                    let (walk, found) = (Arc::clone(&walk), found.clone());
                    |names: &[u8]| Step::Names(walk, found, elf, dynamic, names.to_vec())
                };
                walk.when_here(&found, &range, next);
            }
            Step::Names(walk, found, elf, dynamic, names) => walk.libraries(&found, &elf, &dynamic, &names),
            Step::Interpreter(walk, rank, path) => {
                let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
                walk.visit_path(&[], path, rank);
            }
            Step::Module(walk, found, module) => walk.imports(&found, &module),
        }
    }
}

impl Walk {
    fn new(engine: &Engine, stack: Arc<Stack>, demand: Demand) -> Arc<Self> {
        let (files, bytes) = (engine.options.max_start_files, engine.options.max_start_bytes);
        Arc::new(Self {
            stack,
            demand,
            rank: Rank::of_walk(engine.next_walk()),
            files: AtomicUsize::new(files),
            bytes: AtomicU64::new(bytes),
            lookups: Lookups::new(files.saturating_mul(LOOKUPS)),
        })
    }

    fn visit_path(self: &Arc<Self>, from: &[Vec<u8>], path: &[u8], rank: Rank) -> bool {
        let found = self.stack.file(from, path, rank, &self.lookups);
        let is_there = found.is_some();
        if let Some(found) = found {
            self.visit(found);
        }
        is_there
    }

    /// Asks for a file, unless that was done before, or was enough; whether to look into it.
    fn takes(&self, found: &Found) -> bool {
        if found.inode.kind != Kind::Regular || !found.layer.is_news(found.inode.nid, self.demand) {
            return false;
        }
        let one_less = |left: usize| left.checked_sub(1);
        if self.files.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
            return false;
        }
        let size = found.inode.size;
        if size <= WHOLE {
            self.ask(found, &(0..size));
        } else {
            self.ask(found, &(0..u64::from(elf::HEAD)));
            self.ask(found, &(size.saturating_sub(TAIL)..size));
        }
        true
    }

    /// Asks for a file, and looks into it.
    fn visit(self: &Arc<Self>, found: Found) {
        if !self.takes(&found) {
            return;
        }
        let walk = Arc::clone(self);
        let again = found.clone();
        self.when_here(&found, &(0..u64::from(elf::HEAD)), |head| Step::Head(walk, again, head.to_vec()));
    }

    fn head(self: &Arc<Self>, found: Found, head: &[u8]) {
        if python::is_compiled(head) {
            self.module(&found, Form::Compiled);
            return;
        }
        if let Some((interpreter, argument)) = elf::script(head) {
            let rank = found.rank.within(0, 3);
            let mut program = interpreter.to_vec();
            self.visit_path(&[], interpreter, rank);
            if interpreter.ends_with(b"/env")
                && let Some(name) = argument
            {
                program = name.to_vec();
                let mut places = PATH.iter().map(|directory| joined(directory, name));
                if let Some(path) = places.find(|path| self.visit_path(&[], path, rank)) {
                    program = path;
                }
            }
            if python::is_interpreter(&program) {
                self.begin_python(&program, found.rank.within(1, 3));
                self.module(&Found { rank: found.rank.within(2, 3), ..found }, Form::Source);
            }
            return;
        }
        let Some(elf) = Elf::parse(head) else { return };
        if found.inode.size > WHOLE {
            for part in elf.read_at_start() {
                self.ask(&found, &(part.start..part.end.min(part.start.saturating_add(PART))));
            }
        }
        if let Some(range) = &elf.interpreter {
            let (walk, rank) = (Arc::clone(self), found.rank.within(0, 2));
            self.when_here(&found, range, move |path| Step::Interpreter(walk, rank, path.to_vec()));
        }
        if let Some(range) = elf.dynamic.clone() {
            let (walk, again) = (Arc::clone(self), found.clone());
            self.when_here(&found, &range, |section| Step::Dynamic(walk, again, elf, section.to_vec()));
        }
    }

    /// Looks for libraries where the loader would, but for its configuration file.
    fn libraries(self: &Arc<Self>, found: &Found, elf: &Elf, dynamic: &Dynamic, names: &[u8]) {
        let run_path = dynamic.run_path.and_then(|at| elf::name(names, at)).unwrap_or_default();
        let needed = dynamic.needed.iter().enumerate();
        for (number, library) in needed.filter_map(|(number, at)| Some((number, elf::name(names, *at)?))) {
            // Behind what loads them.
            let rank = found.rank.within(number.saturating_add(1), dynamic.needed.len().saturating_add(1));
            if library.contains(&b'/') {
                self.visit_path(&[], library, rank);
                continue;
            }
            let own = run_path.split(|byte| *byte == b':').filter(|path| !path.is_empty()).take(MAX_RUN_PATH);
            let in_own = own.into_iter().any(|directory| {
                let origin =
                    directory.strip_prefix(b"$ORIGIN").or_else(|| directory.strip_prefix(b"${ORIGIN}"));
                match (origin, found.directory()) {
                    (None, _) => self.visit_path(&[], &joined(directory, library), rank),
                    (Some(rest), Some(from)) => {
                        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
                        self.visit_path(from, &relative(rest, library), rank)
                    }
                    (Some(_), None) => false,
                }
            });
            if !in_own {
                let _ = elf
                    .directories()
                    .any(|directory| self.visit_path(&[], &joined(directory.as_bytes(), library), rank));
            }
        }
    }

    /// Has a part of a file fetched.
    fn ask(&self, found: &Found, range: &Range<u64>) {
        let range = range.start..range.end.min(found.inode.size);
        let bytes = range.end.saturating_sub(range.start);
        let less = |left: u64| left.checked_sub(bytes);
        if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
            found.layer.fetch_soon(&found.inode, &range, self.demand, found.rank);
        }
    }

    /// Goes on when these bytes of a file are here.
    fn when_here(
        &self,
        found: &Found,
        range: &Range<u64>,
        next: impl FnOnce(&[u8]) -> Step + Send + 'static,
    ) {
        let range = range.start..range.end.min(found.inode.size);
        let Ok(len) = u32::try_from(range.end.saturating_sub(range.start)) else { return };
        found.layer.when_here(found.inode.nid, range.start, len, self.demand, next);
    }
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, b"/", name].concat()
}

/// As [`joined`], for a directory that may be empty and is not to become the root.
fn relative(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { joined(directory, name) }
}

/// Files that a layer's programs were followed to, and how much they were wanted, so that each is once. Some ten kilobytes.
#[derive(Debug, Default)]
pub(crate) struct Followed(HashMap<Nid, Demand>);

impl Followed {
    pub(crate) fn has(&self, nid: Nid) -> bool {
        self.0.contains_key(&nid)
    }

    /// Whether this file was not followed before, or was wanted less; with `max` remembered, none is any more.
    pub(crate) fn is_news(&mut self, nid: Nid, demand: Demand, max: usize) -> bool {
        match self.0.get_mut(&nid) {
            Some(known) => demand < std::mem::replace(known, demand.min(*known)),
            None => self.0.len() < max && self.0.insert(nid, demand).is_none(),
        }
    }
}
