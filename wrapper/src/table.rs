//! Tables as Go's `text/tabwriter` lays them out.

use std::io::{self, Write};

/// How wide columns are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Least width of a column, padding included.
    pub(crate) min_width: usize,
    /// Blanks behind the widest cell of a column.
    pub(crate) padding: usize,
}

/// `ctr`'s tables.
pub(crate) const CTR: Layout = Layout { min_width: 1, padding: 1 };
/// `soci`'s own tables.
pub(crate) const SOCI: Layout = Layout { min_width: 8, padding: 4 };

/// Writes rows with columns aligned; the last cell of a row is as long as its text.
pub(crate) fn write(mut out: impl Write, layout: Layout, rows: &[Vec<String>]) -> io::Result<()> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (n, cell) in row.iter().enumerate().take(row.len().saturating_sub(1)) {
            let width = cell.chars().count().saturating_add(layout.padding).max(layout.min_width);
            match widths.get_mut(n) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    for row in rows {
        let mut line = String::new();
        for (n, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if n.saturating_add(1) < row.len() {
                let width = widths.get(n).copied().unwrap_or_default();
                line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
            }
        }
        writeln!(out, "{line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["REF".to_owned(), "TYPE".to_owned(), "LABELS".to_owned()],
            vec!["docker.io/x".to_owned(), "t".to_owned(), "-".to_owned()],
        ];
        let mut out = Vec::new();
        write(&mut out, CTR, &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "REF         TYPE LABELS\ndocker.io/x t    -\n");
        let mut out = Vec::new();
        write(&mut out, SOCI, &rows).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "REF            TYPE    LABELS\ndocker.io/x    t       -\n"
        );
    }
}
