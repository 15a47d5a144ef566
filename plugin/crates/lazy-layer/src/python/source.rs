//! Import statements in sources: lines that begin with `import` or `from` and are not in a function, a string or a comment, as far as that can be told from
//! line to line.

use super::{Import, Imports, is_dotted_name};

/// The import statements of a source, but for those in functions.
pub(super) fn imports(source: &[u8]) -> Vec<Import> {
    let mut imports = Imports::default();
    // How far the line is indented that begins the function which the following lines are in.
    let mut function: Option<usize> = None;
    let mut quoted: Option<&[u8]> = None;
    let mut lines = source.split(|byte| *byte == b'\n');
    while let Some(line) = lines.next() {
        if let Some(quotes) = quoted {
            if count(line, quotes) % 2 == 1 {
                quoted = None;
            }
            continue;
        }
        let text = line.trim_ascii();
        if text.is_empty() || text.starts_with(b"#") {
            continue;
        }
        quoted = [&b"\"\"\""[..], b"'''"].into_iter().find(|quotes| count(text, quotes) % 2 == 1);
        let indent = line.len().saturating_sub(line.trim_ascii_start().len());
        function = function.filter(|function| indent > *function);
        if function.is_some() {
            continue;
        }
        let Some(room) = imports.room() else { break };
        if [&b"def "[..], b"async def "].iter().any(|keyword| text.starts_with(keyword)) {
            function = Some(indent);
        } else if let Some(modules) = text.strip_prefix(b"import ") {
            let modules = modules.split(|byte| *byte == b',').map(first_word);
            for module in modules.filter(|module| is_dotted_name(module)) {
                if imports.room().is_none() {
                    break;
                }
                imports.push(Import { level: 0, module: module.to_vec(), names: Vec::new() });
            }
        } else if let Some(rest) = text.strip_prefix(b"from ") {
            from(rest, room, &mut lines).into_iter().for_each(|import| imports.push(import));
        }
    }
    imports.list
}

/// `rest` is what follows `from`; up to `max` names can go on over the next lines, in parentheses or behind a backslash.
fn from<'a>(rest: &'a [u8], max: usize, lines: &mut impl Iterator<Item = &'a [u8]>) -> Option<Import> {
    let rest = rest.trim_ascii_start();
    let dots = rest.iter().take_while(|byte| **byte == b'.').count();
    let (module, mut names) = split_word(rest.get(dots..)?.trim_ascii_start());
    // `from . import x`
    let module = if module == b"import" && dots > 0 {
        &[][..]
    } else {
        names = names.trim_ascii_start().strip_prefix(b"import")?;
        module
    };
    if !(module.is_empty() || is_dotted_name(module)) {
        return None;
    }
    let mut import = Import { level: u32::try_from(dots).ok()?, module: module.to_vec(), names: Vec::new() };
    let mut names = names.trim_ascii();
    let in_parentheses = names.starts_with(b"(");
    names = names.strip_prefix(b"(").unwrap_or(names);
    loop {
        let part = names.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
        let is_last = if in_parentheses { part.ends_with(b")") } else { !part.ends_with(b"\\") };
        for name in part.split(|byte| matches!(byte, b',' | b')' | b'\\')).map(first_word) {
            if is_dotted_name(name) && import.names.len() < max {
                import.names.push(name.to_vec());
            }
        }
        if is_last {
            return Some(import);
        }
        let Some(line) = lines.next() else { return Some(import) };
        names = line;
    }
}

fn first_word(text: &[u8]) -> &[u8] {
    split_word(text.trim_ascii()).0
}

fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end =
        text.iter().position(|byte| matches!(byte, b' ' | b'\t' | b';' | b'#' | b'(')).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, &[]))
}

fn count(text: &[u8], what: &[u8]) -> usize {
    text.windows(what.len()).filter(|window| *window == what).count()
}
