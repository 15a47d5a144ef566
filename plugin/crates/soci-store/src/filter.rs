//! Expressions of containerd's filter language.

/// `labels."KEY"==VALUE`.
#[must_use]
pub fn equals(label: &str, value: &str) -> String {
    format!("labels.{}=={}", quote(label), quote(value))
}

/// `labels."KEY"`: the label is there.
#[must_use]
pub fn present(label: &str) -> String {
    format!("labels.{}", quote(label))
}

/// A Go string literal.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len().saturating_add(2));
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted() {
        assert_eq!(equals("a.b/c", "x\"y\\z\n"), r#"labels."a.b/c"=="x\"y\\z\u000a""#);
        assert_eq!(present("a"), r#"labels."a""#);
    }
}
