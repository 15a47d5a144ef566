//! What an interpreter's command line has it run (`Python/getopt.c`, `Python/initconfig.c`).

/// Options that have a value, in the same word or the next: of these two, it is what is run.
const CODE: u8 = b'c';
const MODULE: u8 = b'm';
const WITH_VALUE: &[u8] = b"WX";
const LONG_WITH_VALUE: &[u8] = b"--check-hash-based-pycs";

/// What Python is told to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Main<'a> {
    /// A source, on the command line itself.
    Code(&'a [u8]),
    /// A module, looked for as an import is.
    Module(&'a [u8]),
    /// A path.
    Script(&'a [u8]),
}

/// The words behind the interpreter's own; none of what it reads from somewhere else.
pub(crate) fn main<'a>(words: impl IntoIterator<Item = &'a [u8]>) -> Option<Main<'a>> {
    let mut words = words.into_iter();
    loop {
        let word = words.next()?;
        if word.starts_with(b"--") {
            if word == LONG_WITH_VALUE {
                words.next()?;
            }
            continue;
        }
        let Some(letters) = word.strip_prefix(b"-") else { return Some(Main::Script(word)) };
        if letters.is_empty() {
            return None;
        }
        let mut letters = letters.iter();
        while let Some(letter) = letters.next() {
            let mut value =
                || Some(letters.as_slice()).filter(|rest| !rest.is_empty()).or_else(|| words.next());
            let _ = match *letter {
                CODE => return value().map(Main::Code),
                MODULE => return value().map(Main::Module),
                letter if WITH_VALUE.contains(&letter) => value()?,
                _ => continue,
            };
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<Main<'_>> {
        main(line.split(' ').map(str::as_bytes))
    }

    #[test]
    fn what_is_run_is_found_behind_the_options() {
        assert_eq!(of("-c pass more"), Some(Main::Code(b"pass")));
        assert_eq!(of("-Bsc pass"), Some(Main::Code(b"pass")));
        assert_eq!(of("-Wc app.py -c"), Some(Main::Script(b"app.py")), "the value of another option");
        assert_eq!(of("-X dev -W error -m http.server 80"), Some(Main::Module(b"http.server")));
        assert_eq!(of("-uImhttp.server"), Some(Main::Module(b"http.server")));
        assert_eq!(of("--check-hash-based-pycs never app.py"), Some(Main::Script(b"app.py")));
        assert_eq!(of("-u /app/main.py -c x"), Some(Main::Script(b"/app/main.py")));
        for nothing in ["-", "-i -u", "-c", "-m", "-X"] {
            assert_eq!(of(nothing), None, "{nothing}");
        }
    }
}
