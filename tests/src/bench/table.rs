//! The measurements as Markdown.

use std::fmt::Write;

use super::results::{BASELINE, Results, Spread};

/// A row of the table that compares seconds.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name in the results.
    pub key: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// Ours divided by the baseline's must not be above this: with the kernel front end.
    goal: Option<f64>,
    /// The same with FUSE alone.
    fuse_goal: Option<f64>,
}

/// Pull and run to the end of the command, nothing there before.
pub const STARTS: [Row; 5] = [
    Row::start("rabbitmq", "rabbitmq: `erl` prints and halts", 0.25),
    Row::start("python", "python: `import numpy, scipy.stats, pandas`", 0.25),
    Row::start("node", "node: prints its version", 0.18),
    Row::start("postgres", "postgres: `initdb` and a query", 0.30),
    Row::start("read", "python: `tar` reads every file", 0.60),
];

/// Only the command.
const AGAIN: [Row; 3] = [
    Row { key: "read-warm", title: "the same, second run (warm)", goal: Some(1.1), fuse_goal: Some(1.3) },
    Row {
        key: "read-complete",
        title: "the same, everything on disk, page cache dropped",
        goal: Some(0.8),
        fuse_goal: None,
    },
    Row {
        key: "find",
        title: "python: `find` over the whole tree, second to sixth run",
        goal: Some(1.0),
        fuse_goal: Some(1.5),
    },
];

/// Everything else: key, quantity, title, unit.
const OTHERS: [(&str, &str, &str, &str); 22] = [
    ("read", "cpu-per-gb", "CPU of the daemon per GB read by `tar`", "s"),
    ("containers-1", "bytes", "python: downloaded for 1 container, background included", "MB"),
    ("containers-10", "bytes", "python: downloaded for 10 containers at once, background included", "MB"),
    ("containers-1", "command", "python: 1 container, pulled before", "s"),
    ("containers-10", "command", "python: 10 containers at once, pulled before", "s"),
    ("files-1000", "pull", "pull of a layer with 10³ files", "s"),
    ("files-10000", "pull", "pull of a layer with 10⁴ files", "s"),
    ("files-100000", "pull", "pull of a layer with 10⁵ files", "s"),
    ("files-1000000", "pull", "pull of a layer with 10⁶ files", "s"),
    ("files-1000", "mount", "of it mounting, with 10³ files", "s"),
    ("files-10000", "mount", "of it mounting, with 10⁴ files", "s"),
    ("files-100000", "mount", "of it mounting, with 10⁵ files (goal: < 0.150)", "s"),
    ("files-1000000", "mount", "of it mounting, with 10⁶ files", "s"),
    ("files-1000", "mount-again", "mounting it when the layer file is there, with 10³ files", "s"),
    ("files-10000", "mount-again", "mounting it when the layer file is there, with 10⁴ files", "s"),
    (
        "files-100000",
        "mount-again",
        "mounting it when the layer file is there, with 10⁵ files (goal: < 0.010)",
        "s",
    ),
    ("files-1000000", "mount-again", "mounting it when the layer file is there, with 10⁶ files", "s"),
    ("latency-1", "p50", "read of an absent page, 1 reader, half of them below", "s"),
    ("latency-1", "p99", "the same, 99 of 100 below", "s"),
    ("latency-4", "p50", "read of an absent page, 4 readers, half of them below", "s"),
    ("latency-4", "p99", "the same, 99 of 100 below", "s"),
    ("unpack", "total", "pull and unpack everything", "s"),
];

/// The tables, with nothing in them that was not measured.
pub fn markdown(results: &Results, about: &str) -> String {
    let mut text = String::new();
    let systems = results.systems();
    section(&mut text, results, "Pull and run, cold: seconds (MB downloaded)", &STARTS);
    section(&mut text, results, "Run again: seconds", &AGAIN);
    let others: Vec<_> = OTHERS
        .iter()
        .filter(|(key, quantity, ..)| {
            systems.iter().any(|system| results.spread(key, system, quantity).is_some())
        })
        .collect();
    if !others.is_empty() || systems.iter().any(|system| results.spread_of_all(system, "anon").is_some()) {
        head(&mut text, "Else", systems);
        for (key, quantity, title, unit) in others {
            let cells = systems.iter().map(|system| match results.spread(key, system, quantity) {
                Some(spread) if *unit == "MB" => range(spread.scaled(1e-6), 1),
                Some(spread) => format!("{} {unit}", range(spread, 3)),
                None => "–".to_owned(),
            });
            line(&mut text, title, cells);
        }
        for (quantity, title) in [
            ("anon", "memory of the daemon after any of these, RssAnon: MB, the largest (goal: ≤ 60)"),
            ("rss", "the same, VmRSS: MB, the largest"),
        ] {
            let cells = systems.iter().map(|system| {
                results
                    .spread_of_all(system, quantity)
                    .map_or("–".to_owned(), |all| format!("{:.0}", all.most / 1e6))
            });
            line(&mut text, title, cells);
        }
    }
    let runs = results.runs();
    writeln!(
        text,
        "\n{} {about}",
        if runs == 1 { "One run.".to_owned() } else { format!("Medians of {runs} runs (least–most).") }
    )
    .unwrap();
    text
}

fn section(text: &mut String, results: &Results, title: &str, rows: &[Row]) {
    let systems = results.systems();
    let measured =
        |row: &&Row| systems.iter().any(|system| results.spread(row.key, system, "total").is_some());
    if !rows.iter().any(|row| measured(&row)) {
        return;
    }
    head(text, title, systems);
    for row in rows.iter().filter(measured) {
        line(text, row.title, systems.iter().map(|system| row.cell(results, system)));
    }
    text.push('\n');
}

fn head(text: &mut String, title: &str, systems: &[String]) {
    line(text, title, systems.iter().cloned());
    writeln!(text, "|---|{}", "---|".repeat(systems.len())).unwrap();
}

fn line(text: &mut String, title: &str, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = cells.collect();
    writeln!(text, "| {title} | {} |", cells.join(" | ")).unwrap();
}

/// `median (least–most)`, or one number where there is but one.
fn range(spread: Spread, digits: usize) -> String {
    let Spread { median, least, most } = spread;
    if least == most {
        format!("{median:.digits$}")
    } else {
        format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
    }
}

// === impl Row ===

impl Row {
    const fn start(key: &'static str, title: &'static str, goal: f64) -> Row {
        Row { key, title, goal: Some(goal), fuse_goal: None }
    }

    /// Seconds, bytes, and how they compare.
    fn cell(&self, results: &Results, system: &str) -> String {
        let Some(seconds) = results.spread(self.key, system, "total") else { return "–".to_owned() };
        let mut cell = range(seconds, 2);
        if let Some(bytes) = results.spread(self.key, system, "bytes").filter(|bytes| bytes.median > 1e6) {
            write!(cell, ", {:.0} MB", bytes.median / 1e6).unwrap();
        }
        let goal = match system {
            "soci" => self.goal,
            "soci-fuse" => self.fuse_goal,
            _ => None,
        };
        let baseline = results.spread(self.key, BASELINE, "total").filter(|_| system != BASELINE);
        if let Some(baseline) = baseline {
            let ratio = seconds.median / baseline.median;
            write!(cell, "; **{ratio:.2} ×**").unwrap();
            if let Some(goal) = goal {
                write!(cell, " (goal {goal:.2}: {})", if ratio <= goal { "met" } else { "missed" }).unwrap();
            }
        }
        cell
    }
}

// === impl Spread ===

impl Spread {
    fn scaled(self, factor: f64) -> Spread {
        Spread { median: self.median * factor, least: self.least * factor, most: self.most * factor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_and_goals() {
        let results = Results::parse(
            "node\toverlayfs\t1\ttotal\t10\nnode\toverlayfs\t1\tbytes\t167000000\nnode\tsoci\t1\ttotal\t1.7\nnode\tsoci\t1\tbytes\t40000000\n\
             python\toverlayfs\t1\ttotal\t10\npython\tsoci\t1\ttotal\t3\npython\tsoci\t2\ttotal\t4\npython\tsoci\t1\tanon\t41000000\n",
        );
        assert_eq!(
            markdown(&results, "Here."),
            "| Pull and run, cold: seconds (MB downloaded) | overlayfs | soci |\n\
             |---|---|---|\n\
             | python: `import numpy, scipy.stats, pandas` | 10.00 | 3.50 (3.00–4.00); **0.35 ×** (goal 0.25: missed) |\n\
             | node: prints its version | 10.00, 167 MB | 1.70, 40 MB; **0.17 ×** (goal 0.18: met) |\n\
             \n\
             | Else | overlayfs | soci |\n\
             |---|---|---|\n\
             | memory of the daemon after any of these, RssAnon: MB, the largest (goal: ≤ 60) | – | 41 |\n\
             | the same, VmRSS: MB, the largest | – | – |\n\
             \n\
             Medians of 2 runs (least–most). Here.\n"
        );
    }
}
