//! containerd's filter language, as far as snapshots go.
//!
//! A filter is a comma-separated list of selectors that must all hold: `field`, `field==value` or `field!=value`. Fields are `name`, `parent`,
//! `kind` and `labels.<key>`, parts quoted where they hold more than letters and digits. Values are bare (up to the next comma or blank) or
//! quoted. What containerd itself sends after a remote Prepare mixes both: `labels."containerd.io/snapshot.ref"==sha256:…,parent=="…"`.
//! The third operator, `~=` with a regular expression, is refused: nobody sends it to a snapshotter.

use super::record::Named;

/// Longest filter, in bytes.
const MAX_LENGTH: usize = 16 << 10;

/// One filter: selectors that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    selectors: Vec<Selector>,
}

/// Text that is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}: {problem} at byte {at}")]
pub struct FilterError {
    filter: String,
    problem: &'static str,
    at: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Selector {
    field: Field,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
    /// Never present, as in containerd.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Present,
    Equals(String),
    Differs(String),
}

// === impl Filter ===

impl Filter {
    /// From text; the empty filter lets everything through.
    ///
    /// # Errors
    /// [`FilterError`] with the place.
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        let mut scanner = Scanner { text, at: 0 };
        scanner.filter().map_err(|problem| FilterError {
            filter: text.chars().take(200).collect(),
            problem,
            at: scanner.at,
        })
    }

    /// Whether a snapshot is selected.
    #[must_use]
    pub fn matches(&self, snapshot: &Named) -> bool {
        self.selectors.iter().all(|selector| selector.matches(snapshot))
    }
}

/// Whether any of the filters selects a snapshot; without any, all are.
#[must_use]
pub fn any_matches(filters: &[Filter], snapshot: &Named) -> bool {
    filters.is_empty() || filters.iter().any(|filter| filter.matches(snapshot))
}

// === impl Selector ===

impl Selector {
    fn matches(&self, snapshot: &Named) -> bool {
        let value = match &self.field {
            Field::Name => Some(snapshot.key.as_str()),
            // A snapshot without a parent has an empty one, so `parent==""` selects it.
            Field::Parent => Some(snapshot.record.parent.as_str()),
            Field::Kind => Some(snapshot.record.kind.name()),
            Field::Label(key) => snapshot.record.labels.get(key).map(String::as_str),
            Field::Unknown => None,
        };
        match &self.test {
            Test::Present => match self.field {
                Field::Parent => value.is_some_and(|parent| !parent.is_empty()),
                _ => value.is_some(),
            },
            Test::Equals(wanted) => {
                value.unwrap_or_default() == wanted && (value.is_some() || !wanted.is_empty())
            }
            Test::Differs(wanted) => value.unwrap_or_default() != wanted,
        }
    }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

// === impl Scanner ===

impl Scanner<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn filter(&mut self) -> Result<Filter, &'static str> {
        if self.text.len() > MAX_LENGTH {
            return Err("it is too long");
        }
        let mut selectors = Vec::new();
        self.blanks();
        if self.rest().is_empty() {
            return Ok(Filter { selectors });
        }
        loop {
            selectors.push(self.selector()?);
            self.blanks();
            if self.rest().is_empty() {
                return Ok(Filter { selectors });
            }
            if !self.take(",") {
                return Err("expected a comma");
            }
            self.blanks();
        }
    }

    fn selector(&mut self) -> Result<Selector, &'static str> {
        let mut path = vec![self.field()?];
        while self.take(".") {
            path.push(self.field()?);
        }
        self.blanks();
        let test = if self.take("==") {
            Test::Equals(self.value()?)
        } else if self.take("!=") {
            Test::Differs(self.value()?)
        } else if self.rest().starts_with("~=") {
            return Err("regular expressions are not supported");
        } else {
            Test::Present
        };
        Ok(Selector { field: field_of(&path), test })
    }

    fn field(&mut self) -> Result<String, &'static str> {
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        match rest.get(..end) {
            Some(name) if !name.is_empty() => {
                let name = name.to_owned();
                self.at += end;
                Ok(name)
            }
            _ => Err("expected a field"),
        }
    }

    fn value(&mut self) -> Result<String, &'static str> {
        self.blanks();
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let rest = self.rest();
        let end = rest.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(rest.len());
        match rest.get(..end) {
            Some(value) if !value.is_empty() => {
                let value = value.to_owned();
                self.at += end;
                Ok(value)
            }
            _ => Err("expected a value"),
        }
    }

    /// Go's `%q`: backslash escapes for quotes, control characters, bytes and code points.
    fn quoted(&mut self) -> Result<String, &'static str> {
        self.take("\"");
        let mut bytes = Vec::new();
        loop {
            let next = self.character()?;
            match next {
                '"' => break,
                '\\' => {
                    let value = match self.character()? {
                        'a' => 7,
                        'b' => 8,
                        'f' => 12,
                        'n' => 10,
                        'r' => 13,
                        't' => 9,
                        'v' => 11,
                        '\\' => b'\\',
                        '"' => b'"',
                        '\'' => b'\'',
                        'x' => u8::try_from(self.hexadecimal(2)?).map_err(|_| "bad escape")?,
                        'u' | 'U' => {
                            let digits =
                                if self.text.get(..self.at).is_some_and(|before| before.ends_with('u')) {
                                    4
                                } else {
                                    8
                                };
                            let point = char::from_u32(self.hexadecimal(digits)?).ok_or("bad escape")?;
                            bytes.extend_from_slice(point.encode_utf8(&mut [0; 4]).as_bytes());
                            continue;
                        }
                        _ => return Err("unknown escape"),
                    };
                    bytes.push(value);
                }
                other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(bytes).map_err(|_| "not UTF-8")
    }

    fn character(&mut self) -> Result<char, &'static str> {
        let next = self.rest().chars().next().ok_or("the quotes are not closed")?;
        self.at += next.len_utf8();
        Ok(next)
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<u32, &'static str> {
        let text = self.rest().get(..digits).ok_or("bad escape")?;
        let value = u32::from_str_radix(text, 16).map_err(|_| "bad escape")?;
        self.at += digits;
        Ok(value)
    }
}

fn field_of(path: &[String]) -> Field {
    match path {
        [one] => match one.as_str() {
            "name" => Field::Name,
            "parent" => Field::Parent,
            "kind" => Field::Kind,
            _ => Field::Unknown,
        },
        // containerd joins the parts again: `labels.a.b` is the label `a.b`.
        [labels, key @ ..] if labels == "labels" => Field::Label(key.join(".")),
        _ => Field::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Id, Kind, Labels, Moment, Record, Usage};
    use super::*;

    fn snapshot() -> Named {
        Named {
            key: "default/3/sha256:aa".into(),
            record: Record {
                id: Id(3),
                parent: String::new(),
                kind: Kind::Committed,
                created: Moment(0),
                updated: Moment(0),
                labels: Labels::from([
                    ("containerd.io/snapshot.ref".into(), "sha256:aa".into()),
                    ("odd \"one\"".into(), "a,b c".into()),
                    ("empty".into(), String::new()),
                ]),
                usage: Usage::default(),
                lazy: None,
                committed_from: String::new(),
            },
        }
    }

    #[test]
    fn what_holds() {
        for text in [
            "",
            r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="""#,
            r#"labels."containerd.io/snapshot.ref"=="sha256:aa""#,
            r#" labels."containerd.io/snapshot.ref" == sha256:aa , kind==committed"#,
            "name==default/3/sha256:aa",
            "kind!=active",
            r#"labels."odd \"one\""=="a,b c""#,
            r#"labels."empty""#,
            r#"labels."empty"=="""#,
            "labels.nothing!=x",
            "name",
            r#"name=="\x64efault/3/sh\u0061256:aa""#,
        ] {
            assert!(Filter::parse(text).unwrap().matches(&snapshot()), "{text}");
        }
    }

    #[test]
    fn what_does_not() {
        for text in [
            r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="x""#,
            "kind==active",
            "labels.nothing",
            r#"labels.nothing=="""#,
            "parent",
            "nothing==x",
            "nothing.at.all",
        ] {
            assert!(!Filter::parse(text).unwrap().matches(&snapshot()), "{text}");
        }
    }

    #[test]
    fn what_is_no_filter() {
        for text in [
            "==x",
            "name==",
            "name==a b",
            "name,",
            r#"name=="x"#,
            r#"labels."a\q""#,
            "name~=x",
            ",",
            "labels.",
            "name=x",
        ] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
        assert!(Filter::parse(&"a".repeat(MAX_LENGTH + 1)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_much(text in "(labels|name|[\\\\\"=,.~! xuU0-9a\u{e9}])*") {
            if let Ok(filter) = Filter::parse(&text) {
                let _ = filter.matches(&snapshot());
            }
        }
    }
}
