//! JSON as Go's `encoding/json` writes it.

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};
use std::io::{self, Write};

/// `value` in the bytes that Go's `encoding/json` would give: no white space, no final newline, and inside strings `<`,
/// `>`, `&`, U+2028 and U+2029 as `\u003c`, `\u003e`, `\u0026`, `\u2028` and `\u2029`; all else as it is.
///
/// Go writes a struct's fields in the order of its declaration and a map's keys sorted bytewise. So does this, for
/// structs and `BTreeMap`; a `HashMap` has no order and must not be in `value`. A type whose `Serialize` fails (none of
/// ours can) gives no bytes.
pub fn canonical_json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    match value.serialize(&mut Serializer::with_formatter(&mut out, GoFormatter(CompactFormatter))) {
        Ok(()) => out,
        Err(_) => Vec::new(),
    }
}

struct GoFormatter(CompactFormatter);

impl Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (plain, tail) = rest.split_at(at);
            self.0.write_string_fragment(writer, plain)?;
            let mut chars = tail.chars();
            if let Some(special) = chars.next() {
                write!(writer, "\\u{:04x}", u32::from(special))?;
            }
            rest = chars.as_str();
        }
        self.0.write_string_fragment(writer, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn text(value: &(impl Serialize + ?Sized)) -> String {
        String::from_utf8(canonical_json(value)).unwrap()
    }

    #[test]
    fn escapes_what_go_escapes() {
        assert_eq!(text("<a>&\u{2028}\u{2029}"), r#""\u003ca\u003e\u0026\u2028\u2029""#);
        assert_eq!(text("é\u{7f}日😀/"), "\"é\u{7f}日😀/\"");
        assert_eq!(text("\"\\\n\r\t\u{8}\u{c}\u{1}"), r#""\"\\\n\r\t\b\f\u0001""#);
        assert_eq!(text("<"), r#""\u003c""#);
        assert_eq!(text(""), r#""""#);
    }

    #[test]
    fn keys_are_escaped_and_sorted() {
        let map = BTreeMap::from([("b", 1), ("a<", 2), ("B", 3)]);
        assert_eq!(text(&map), r#"{"B":3,"a\u003c":2,"b":1}"#);
    }
}
