//! The prefetch artifact: spans of a layer that its start-up reads.

use crate::canonical_json;
use serde::{Deserialize, Serialize};

const VERSION: &str = "1.0";
/// Largest artifact that is read, in bytes.
const MAX_SIZE: usize = 4 << 20;

/// Spans of one layer to fetch before anything asks for them. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefetchSpans {
    spans: Vec<PrefetchSpan>,
}

/// A run of spans.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PrefetchSpan {
    /// First span.
    pub start_span: u32,
    /// Last span, inclusive; not below the first.
    pub end_span: u32,
    /// Upstream's tools never write one, and 0 stands for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i64,
}

/// Why bytes (or spans) are not a prefetch artifact.
#[derive(Debug, thiserror::Error)]
pub enum PrefetchError {
    /// More than 4 MiB.
    #[error("the prefetch artifact has {0} bytes")]
    TooLarge(usize),
    /// Not JSON, or of another shape.
    #[error("the prefetch artifact is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// A version that is not known.
    #[error("unknown prefetch artifact version {0:?}")]
    Version(String),
    /// No spans.
    #[error("the prefetch artifact lists no spans")]
    Empty,
    /// A run that ends before it starts.
    #[error("the prefetch artifact lists spans {start} to {end}")]
    Reversed {
        /// First span.
        start: u32,
        /// Last span.
        end: u32,
    },
}

#[derive(Deserialize, Serialize)]
struct WirePrefetch {
    #[serde(default)]
    version: String,
    prefetch_spans: Option<Vec<PrefetchSpan>>,
}

impl PrefetchSpans {
    /// Sorts runs of spans and joins those that touch, as upstream does.
    ///
    /// # Errors
    /// [`PrefetchError::Empty`], [`PrefetchError::Reversed`].
    pub fn merged(mut spans: Vec<PrefetchSpan>) -> Result<Self, PrefetchError> {
        check(&spans)?;
        spans.sort_by_key(|span| (span.start_span, span.end_span));
        let mut merged: Vec<PrefetchSpan> = Vec::with_capacity(spans.len());
        for span in spans {
            match merged.last_mut() {
                Some(last) if span.start_span <= last.end_span.saturating_add(1) => {
                    last.end_span = last.end_span.max(span.end_span);
                }
                _ => merged.push(span),
            }
        }
        Ok(Self { spans: merged })
    }

    /// Reads an artifact.
    ///
    /// # Errors
    /// Any [`PrefetchError`]. Span numbers are not compared with a zTOC here.
    pub fn parse(bytes: &[u8]) -> Result<Self, PrefetchError> {
        if bytes.len() > MAX_SIZE {
            return Err(PrefetchError::TooLarge(bytes.len()));
        }
        let wire: WirePrefetch = serde_json::from_slice(bytes).map_err(PrefetchError::Json)?;
        if wire.version != VERSION {
            return Err(PrefetchError::Version(wire.version.chars().take(50).collect()));
        }
        let spans = wire.prefetch_spans.unwrap_or_default();
        check(&spans)?;
        Ok(Self { spans })
    }

    /// The runs, in the artifact's order.
    pub fn spans(&self) -> &[PrefetchSpan] {
        &self.spans
    }

    /// The artifact's bytes.
    pub fn to_json(&self) -> Vec<u8> {
        canonical_json(&WirePrefetch {
            version: VERSION.to_owned(),
            prefetch_spans: Some(self.spans.clone()),
        })
    }
}

fn check(spans: &[PrefetchSpan]) -> Result<(), PrefetchError> {
    if spans.is_empty() {
        return Err(PrefetchError::Empty);
    }
    match spans.iter().find(|span| span.end_span < span.start_span) {
        Some(span) => Err(PrefetchError::Reversed { start: span.start_span, end: span.end_span }),
        None => Ok(()),
    }
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start_span: u32, end_span: u32) -> PrefetchSpan {
        PrefetchSpan { start_span, end_span, priority: 0 }
    }

    #[test]
    fn merges_runs_that_touch() {
        let merged =
            PrefetchSpans::merged(vec![span(7, 9), span(0, 0), span(1, 2), span(8, 8), span(11, 11)]);
        assert_eq!(merged.unwrap().spans(), [span(0, 2), span(7, 9), span(11, 11)]);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for bad in [
            r#"{"version":"1.0","prefetch_spans":[]}"#,
            r#"{"version":"1.0"}"#,
            r#"{"version":"2.0","prefetch_spans":[{"start_span":0,"end_span":0}]}"#,
            r#"{"version":"1.0","prefetch_spans":[{"start_span":4,"end_span":3}]}"#,
            r#"{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":3}]}"#,
            "",
        ] {
            assert!(PrefetchSpans::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn writes_a_priority_only_where_there_is_one() {
        let text = r#"{"version":"1.0","prefetch_spans":[{"start_span":1,"end_span":2,"priority":3},{"start_span":4,"end_span":9}]}"#;
        assert_eq!(PrefetchSpans::parse(text.as_bytes()).unwrap().to_json(), text.as_bytes());
    }
}
