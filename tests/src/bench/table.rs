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

/// What the daemon may take of memory that is its own, bytes.
const MEMORY: f64 = 60e6;

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

/// A row of the table of everything else.
#[derive(Debug, Clone, Copy)]
struct Other {
    /// What was measured: the row and the quantity in the results.
    of: (&'static str, &'static str),
    /// What it is divided by, where the two say nothing alone.
    by: Option<(&'static str, &'static str)>,
    title: &'static str,
    unit: Unit,
    /// Ours must not be above this.
    goal: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Unit {
    Seconds,
    Milliseconds,
    Megabytes,
    Times,
}

const OTHERS: [Other; 22] = [
    Other::new(("read", "cpu-per-gb"), Unit::Seconds, "CPU of the daemon for each GB that `tar` reads"),
    Other::new(("containers-1", "command"), Unit::Seconds, "python: 1 container, pulled before"),
    Other::new(("containers-10", "command"), Unit::Seconds, "python: 10 containers at once, pulled before"),
    Other::new(
        ("containers-1", "bytes"),
        Unit::Megabytes,
        "downloaded for 1, with the pull (background off)",
    ),
    Other::new(("containers-10", "bytes"), Unit::Megabytes, "downloaded for 10 (background off)"),
    Other::new(("containers-10", "bytes"), Unit::Times, "10 containers, compared with 1")
        .divided_by(("containers-1", "bytes"))
        .goal(1.05),
    Other::new(("files-1000", "pull"), Unit::Seconds, "pull of a layer with 10³ files"),
    Other::new(("files-10000", "pull"), Unit::Seconds, "the same, 10⁴ files"),
    Other::new(("files-100000", "pull"), Unit::Seconds, "the same, 10⁵ files"),
    Other::new(("files-1000000", "pull"), Unit::Seconds, "the same, 10⁶ files"),
    Other::new(("files-1000", "mount"), Unit::Milliseconds, "mounting it from its zTOC, 10³ files"),
    Other::new(("files-10000", "mount"), Unit::Milliseconds, "the same, 10⁴ files"),
    Other::new(("files-100000", "mount"), Unit::Milliseconds, "the same, 10⁵ files").goal(0.150),
    Other::new(("files-1000000", "mount"), Unit::Milliseconds, "the same, 10⁶ files"),
    Other::new(
        ("files-1000", "mount-again"),
        Unit::Milliseconds,
        "mounting its file that is there, 10³ files",
    ),
    Other::new(("files-10000", "mount-again"), Unit::Milliseconds, "the same, 10⁴ files"),
    Other::new(("files-100000", "mount-again"), Unit::Milliseconds, "the same, 10⁵ files").goal(0.010),
    Other::new(("files-1000000", "mount-again"), Unit::Milliseconds, "the same, 10⁶ files"),
    Other::new(("latency-1", "p50"), Unit::Milliseconds, "read of an absent page, 1 reader: p50"),
    Other::new(("latency-1", "p99"), Unit::Milliseconds, "the same: p99"),
    Other::new(("latency-4", "p50"), Unit::Milliseconds, "read of an absent page, 4 readers: p50"),
    Other::new(("latency-4", "p99"), Unit::Milliseconds, "the same: p99"),
];
/// The tables, with nothing in them that was not measured.
pub fn markdown(results: &Results, about: &str) -> String {
    let mut text = String::new();
    let systems = results.systems();
    section(&mut text, results, "Pull and run, cold: seconds (MB downloaded)", &STARTS);
    section(&mut text, results, "Run again: seconds", &AGAIN);
    let others: Vec<_> = OTHERS
        .iter()
        .filter(|row| systems.iter().any(|system| row.spread(results, system).is_some()))
        .collect();
    if !others.is_empty() || systems.iter().any(|system| results.spread_of_all(system, "anon").is_some()) {
        head(&mut text, "Else", systems);
        for row in others {
            line(&mut text, row.title, systems.iter().map(|system| row.cell(results, system)));
        }
        for (quantity, title, goal) in [
            ("anon", "memory of the daemon after any of these, RssAnon: the largest", Some(MEMORY)),
            ("rss", "the same, VmRSS: the largest", None),
        ] {
            let cells = systems.iter().map(|system| {
                results.spread_of_all(system, quantity).map_or("–".to_owned(), |all| {
                    format!(
                        "{:.0} MB{}",
                        all.most / 1e6,
                        verdict(system, all.most, goal, |goal| format!("{:.0}", goal / 1e6))
                    )
                })
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

/// Whether one of our systems is where it should be.
fn verdict(system: &str, value: f64, goal: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    match goal.filter(|_| system.starts_with("soci")) {
        Some(goal) => format!(" (goal {}: {})", shown(goal), if value <= goal { "met" } else { "missed" }),
        None => String::new(),
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
        let goal = if system == "soci" { self.goal } else { self.fuse_goal };
        let baseline = results.spread(self.key, BASELINE, "total").filter(|_| system != BASELINE);
        if let Some(baseline) = baseline {
            let ratio = seconds.median / baseline.median;
            let verdict = verdict(system, ratio, goal, |goal| format!("{goal:.2}"));
            write!(cell, "; **{ratio:.2} ×**{verdict}").unwrap();
        }
        cell
    }
}

// === impl Other ===

impl Other {
    const fn new(of: (&'static str, &'static str), unit: Unit, title: &'static str) -> Other {
        Other { of, by: None, title, unit, goal: None }
    }

    const fn divided_by(self, by: (&'static str, &'static str)) -> Other {
        Other { by: Some(by), ..self }
    }

    const fn goal(self, goal: f64) -> Other {
        Other { goal: Some(goal), ..self }
    }

    fn spread(&self, results: &Results, system: &str) -> Option<Spread> {
        let spread = results.spread(self.of.0, system, self.of.1)?;
        match self.by {
            None => Some(spread),
            Some(by) => Some(spread.scaled(1.0 / results.spread(by.0, system, by.1)?.median)),
        }
    }

    fn cell(&self, results: &Results, system: &str) -> String {
        let Some(spread) = self.spread(results, system) else { return "–".to_owned() };
        let (factor, digits, unit) = match self.unit {
            Unit::Seconds => (1.0, 2, "s"),
            Unit::Milliseconds => (1e3, 1, "ms"),
            Unit::Megabytes => (1e-6, 1, "MB"),
            Unit::Times => (1.0, 3, "×"),
        };
        let verdict =
            verdict(system, spread.median, self.goal, |goal| format!("{:.*}", digits, goal * factor));
        format!("{} {unit}{verdict}", range(spread.scaled(factor), digits))
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
             | memory of the daemon after any of these, RssAnon: the largest | – | 41 MB (goal 60: met) |\n\
             | the same, VmRSS: the largest | – | – |\n\
             \n\
             Medians of 2 runs (least–most). Here.\n"
        );
    }

    #[test]
    fn fuse_alone_has_goals_of_its_own_and_others_have_none() {
        let results = Results::parse(
            "find\toverlayfs\t1\ttotal\t1\nfind\tsoci\t1\ttotal\t1.2\nfind\tsoci-fuse\t1\ttotal\t1.2\nfind\tupstream\t1\ttotal\t3\n",
        );
        let table = markdown(&results, "Here.");
        let row = table.lines().find(|line| line.contains("`find`")).unwrap();
        assert!(
            row.ends_with("| 1.00 | 1.20; **1.20 ×** (goal 1.00: missed) | 1.20; **1.20 ×** (goal 1.50: met) | 3.00; **3.00 ×** |"),
            "{row}"
        );
    }

    #[test]
    fn ten_containers_are_compared_with_one_and_mounts_with_their_goals() {
        let results = Results::parse(
            "containers-1\tsoci\t1\tbytes\t100000000\ncontainers-10\tsoci\t1\tbytes\t104000000\n\
             containers-1\tupstream\t1\tbytes\t100000000\ncontainers-10\tupstream\t1\tbytes\t200000000\n\
             files-100000\tsoci\t1\tmount\t0.1512\nfiles-100000\tsoci\t1\tmount-again\t0.0055\n",
        );
        let table = markdown(&results, "Here.");
        for line in [
            "| 10 containers, compared with 1 | 1.040 × (goal 1.050: met) | 2.000 × |",
            "| the same, 10⁵ files | 151.2 ms (goal 150.0: missed) | – |",
            "| the same, 10⁵ files | 5.5 ms (goal 10.0: met) | – |",
        ] {
            assert!(table.contains(line), "{line} in {table}");
        }
    }
}
