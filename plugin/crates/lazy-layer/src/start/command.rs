//! What a container's command line names.
//!
//! A command line is read as who executes it will: programs in front (`tini -- env A=b python3`), looked for in `PATH`, then files, looked for where the
//! process begins. What Python is told to run says what it imports. A guess, as all of [`super`].

use std::sync::Arc;

use super::modules::Form;
use super::{PATH, Rank, Walk, joined};
use crate::python::{self, Import, Main, Module};
use crate::stack::{Found, Path, names};

/// Words that are looked at.
const MAX_WORDS: usize = 64;
/// Directories of a `PATH`.
const MAX_PATH: usize = 32;

/// What a container's first process executes, as the runtime specification has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments.
    pub words: Vec<Vec<u8>>,
    /// The directory that it begins in, absolute.
    pub directory: Vec<u8>,
    /// Directories with `:` between them, where programs are looked for; none for the usual ones.
    pub path: Option<Vec<u8>>,
}

impl Command {
    /// The paths that a word may stand for: as a program's name, or as a file's.
    fn places(&self, word: &[u8], is_program: bool) -> Vec<Vec<u8>> {
        if word.starts_with(b"/") {
            return vec![word.to_vec()];
        }
        let mut places = Vec::new();
        if is_program && !word.contains(&b'/') {
            match &self.path {
                Some(path) => {
                    let directories = path.split(|byte| *byte == b':').take(MAX_PATH);
                    let absolute = directories.filter(|directory| directory.starts_with(b"/"));
                    places.extend(absolute.map(|directory| joined(directory, word)));
                }
                None => places.extend(PATH.map(|directory| joined(directory, word))),
            }
        }
        places.push(joined(&self.directory, word));
        places
    }
}

impl Walk {
    /// Asks for what a command line names, and what that needs.
    pub(super) fn command(self: &Arc<Self>, command: &Command) {
        tracing::debug!(words = command.words.len(), "a command line is followed");
        let words: Vec<&[u8]> = command.words.iter().take(MAX_WORDS).map(Vec::as_slice).collect();
        let mut programs = true;
        for (number, word) in words.iter().enumerate() {
            let rank = self.rank.within(number, words.len());
            if word.is_empty() || word.starts_with(b"-") {
                continue;
            }
            let Some((path, found)) = self.named(command, word, programs, rank) else {
                // What sets a variable can stand before a program.
                programs &= number > 0 && word.contains(&b'=');
                continue;
            };
            self.visit(Found { rank: rank.within(0, 2), ..found });
            if programs && python::is_interpreter(&path) {
                let behind = words.get(number.saturating_add(1)..).unwrap_or_default();
                self.begin_python(&path, rank.within(1, 2));
                self.python(command, behind, self.rank.within(number.saturating_add(1), words.len()));
                return;
            }
        }
    }

    /// The first file that a word may stand for.
    fn named(
        &self,
        command: &Command,
        word: &[u8],
        is_program: bool,
        rank: Rank,
    ) -> Option<(Vec<u8>, Found)> {
        let mut places = command.places(word, is_program).into_iter();
        places.find_map(|path| self.stack.file(&[], &path, rank, &self.lookups).map(|found| (path, found)))
    }

    /// Asks for what Python is told to run, and what that imports.
    fn python(self: &Arc<Self>, command: &Command, words: &[&[u8]], rank: Rank) {
        let imports = match python::main(words.iter().copied()) {
            Some(Main::Script(path)) => {
                let Some((_, script)) = self.named(command, path, false, rank) else { return };
                self.add_roots(script.directory().map(<[_]>::to_vec));
                if self.takes(&script) {
                    self.module(&script, Form::Source);
                }
                return;
            }
            Some(Main::Code(code)) => Module::code(code).imports,
            Some(Main::Module(name)) => {
                vec![Import { level: 0, module: name.to_vec(), names: vec![b"__main__".to_vec()] }]
            }
            None => return,
        };
        let directory: Path = names(&command.directory).collect();
        self.add_roots([directory]);
        self.import_all(None, &imports, rank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_for_paths() {
        let command = Command {
            words: Vec::new(),
            directory: b"/app".to_vec(),
            path: Some(b"/opt/bin::relative:/bin".to_vec()),
        };
        let places = |word: &str, is_program| -> Vec<String> {
            let places = command.places(word.as_bytes(), is_program).into_iter();
            places.map(|path| String::from_utf8(path).unwrap()).collect()
        };
        assert_eq!(places("run", true), ["/opt/bin/run", "/bin/run", "/app/run"]);
        assert_eq!(places("run", false), ["/app/run"]);
        assert_eq!(places("./run", true), ["/app/./run"]);
        assert_eq!(places("/usr/bin/run", true), ["/usr/bin/run"]);
        let usual = Command { path: None, ..command.clone() };
        assert!(usual.places(b"run", true).contains(&b"/usr/bin/run".to_vec()));
    }
}
