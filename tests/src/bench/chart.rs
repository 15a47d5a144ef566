//! The measurements as SVG, readable on a light and on a dark page.

use std::fmt::Write;

use super::results::Results;
use super::table::STARTS;

const WIDTH: f64 = 800.0;
const LEFT: f64 = 290.0;
const RIGHT: f64 = 90.0;
const BAR: f64 = 16.0;
const GAP: f64 = 18.0;
const TOP: f64 = 44.0;

/// Systems and kinds of demand by name; what has no colour of its own is grey.
const COLOURS: [(&str, &str); 8] = [
    ("overlayfs", "#9a6700"),
    ("soci", "#1f6feb"),
    ("soci-fuse", "#6cb6ff"),
    ("upstream", "#8250df"),
    ("on demand", "#1f6feb"),
    ("read-ahead", "#2da44e"),
    ("fill", "#bf8700"),
    ("start-up trace", "#8250df"),
];

/// Bytes that had come by a moment, for one kind of demand after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// The kinds, lowest in the picture first.
    pub kinds: Vec<String>,
    /// Seconds since the start, and the bytes of each kind so far.
    pub points: Vec<(f64, Vec<f64>)>,
}

/// One bar for each start and system.
pub fn cold_starts(results: &Results) -> String {
    let mut groups = Vec::new();
    for row in STARTS {
        let bars: Vec<(&str, f64)> = results
            .systems()
            .iter()
            .filter_map(|system| Some((system.as_str(), results.spread(row.key, system, "total")?.median)))
            .collect();
        if !bars.is_empty() {
            groups.push((row.title.replace('`', ""), bars));
        }
    }
    let longest = groups.iter().flat_map(|(_, bars)| bars).map(|(_, seconds)| *seconds).fold(0.1, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / longest;
    let mut body = String::new();
    let mut y = TOP;
    for (title, bars) in &groups {
        let middle = y + bars.len() as f64 * BAR / 2.0 + 4.0;
        text(&mut body, LEFT - 10.0, middle, "end", title);
        for (system, seconds) in bars {
            let (width, height) = (seconds * scale, BAR - 2.0);
            let fill = colour(system);
            writeln!(
                body,
                r#"<rect x="{LEFT}" y="{y:.1}" width="{width:.1}" height="{height}" fill="{fill}"/>"#
            )
            .unwrap();
            text(&mut body, LEFT + width + 5.0, y + BAR - 4.5, "start", &format!("{seconds:.1} s"));
            y += BAR;
        }
        y += GAP;
    }
    let names: Vec<&str> = results.systems().iter().map(String::as_str).collect();
    page("Pull and run, cold: seconds", &names, &body, y)
}

/// Areas on top of each other.
pub fn timeline(title: &str, timeline: &Timeline) -> String {
    const HEIGHT: f64 = 220.0;
    const FROM: f64 = 70.0;
    let end = timeline.points.last().map_or(1.0, |(seconds, _)| seconds.max(0.1));
    let most = timeline.points.last().map_or(1.0, |(_, bytes)| bytes.iter().sum::<f64>().max(1.0));
    let x = |seconds: f64| FROM + seconds / end * (WIDTH - FROM - 30.0);
    let y = |bytes: f64| TOP + HEIGHT - bytes / most * HEIGHT;
    let mut body = String::new();
    for (number, kind) in timeline.kinds.iter().enumerate() {
        let edge = |upto: usize| {
            timeline.points.iter().map(move |(seconds, bytes)| (*seconds, bytes[..upto].iter().sum::<f64>()))
        };
        let mut path = String::new();
        let lower: Vec<(f64, f64)> = edge(number).collect();
        for (seconds, bytes) in edge(number + 1).chain(lower.into_iter().rev()) {
            write!(path, "{:.1},{:.1} ", x(seconds), y(bytes)).unwrap();
        }
        writeln!(body, r#"<polygon points="{}" fill="{}"/>"#, path.trim_end(), colour(kind)).unwrap();
    }
    for part in 0..=4 {
        let (seconds, bytes) = (end * f64::from(part) / 4.0, most * f64::from(part) / 4.0);
        text(&mut body, x(seconds), TOP + HEIGHT + 18.0, "middle", &format!("{seconds:.1} s"));
        text(&mut body, FROM - 8.0, y(bytes) + 4.0, "end", &format!("{:.0} MB", bytes / 1e6));
    }
    let names: Vec<&str> = timeline.kinds.iter().map(String::as_str).collect();
    page(title, &names, &body, TOP + HEIGHT + 30.0)
}

fn page(title: &str, names: &[&str], body: &str, height: f64) -> String {
    let mut svg = String::new();
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" font-family="sans-serif" font-size="12">"#
    )
    .unwrap();
    svg.push_str("<style>text { fill: #1f2328 } @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }</style>\n");
    text(&mut svg, 10.0, 20.0, "start", title);
    let mut x = WIDTH - 10.0 - names.len() as f64 * 105.0;
    for name in names {
        let fill = colour(name);
        writeln!(svg, r#"<rect x="{x:.0}" y="10" width="11" height="11" fill="{fill}"/>"#).unwrap();
        text(&mut svg, x + 16.0, 20.0, "start", name);
        x += 105.0;
    }
    svg.push_str(body);
    svg.push_str("</svg>\n");
    svg
}

fn colour(name: &str) -> &'static str {
    COLOURS.iter().find(|(known, _)| *known == name).map_or("#8c959f", |(_, colour)| colour)
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{words}</text>"#).unwrap();
}

// === impl Timeline ===

impl Timeline {
    /// From lines of seconds and one number of bytes for each kind, separated by tabs, with the kinds in the first line.
    pub fn parse(text: &str) -> Timeline {
        let mut lines = text.lines().map(|line| line.split('\t'));
        let kinds: Vec<String> = lines.next().unwrap().skip(1).map(str::to_owned).collect();
        let points = lines
            .map(|mut fields| {
                let seconds = fields.next().unwrap().parse().unwrap();
                let bytes: Vec<f64> = fields.map(|field| field.parse().unwrap()).collect();
                assert_eq!(bytes.len(), kinds.len(), "as many numbers as kinds");
                (seconds, bytes)
            })
            .collect();
        Timeline { kinds, points }
    }

    /// From lines of seconds and, behind a tab, the answer of `soci image status --json`. A kind that never came is left out.
    pub fn sampled(text: &str) -> Timeline {
        const KINDS: [(&str, &str); 4] = [
            ("on_demand", "on demand"),
            ("trace", "start-up trace"),
            ("read_ahead", "read-ahead"),
            ("fill", "fill"),
        ];
        let mut points = Vec::new();
        for line in text.lines() {
            let (seconds, status) = line.split_once('\t').unwrap();
            let layers: serde_json::Value = serde_json::from_str(status).unwrap();
            let sum = |kind: &str| -> f64 {
                let layers = layers.as_array().unwrap().iter();
                layers.map(|layer| layer["fetched"][kind].as_f64().unwrap()).sum()
            };
            points.push((seconds.parse().unwrap(), KINDS.map(|(key, _)| sum(key))));
        }
        let last = points.last().map_or([0.0; 4], |(_, bytes)| *bytes);
        let came = |number: &usize| last[*number] > 0.0;
        Timeline {
            kinds: (0..KINDS.len()).filter(came).map(|number| KINDS[number].1.to_owned()).collect(),
            points: points
                .into_iter()
                .map(|(seconds, bytes)| {
                    (seconds, (0..KINDS.len()).filter(came).map(|number| bytes[number]).collect())
                })
                .collect(),
        }
    }

    /// As `parse` reads it.
    pub fn lines(&self) -> String {
        let mut text = format!("seconds\t{}\n", self.kinds.join("\t"));
        for (seconds, bytes) in &self.points {
            let bytes: Vec<String> = bytes.iter().map(f64::to_string).collect();
            writeln!(text, "{seconds}\t{}", bytes.join("\t")).unwrap();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_the_seconds() {
        let svg = cold_starts(&Results::parse("node\toverlayfs\t1\ttotal\t10\nnode\tsoci\t1\ttotal\t2.5\n"));
        let widths: Vec<&str> = svg
            .lines()
            .filter(|line| line.contains(r#"x="290""#))
            .filter_map(|line| line.split('"').nth(5))
            .collect();
        assert_eq!(widths, ["420.0", "105.0"]);
        assert!(svg.contains("node: prints its version") && svg.contains("2.5 s"));
    }

    #[test]
    fn samples_become_a_timeline() {
        let status = |on_demand, fill| {
            let layer = |part| {
                format!(
                    r#"{{"fetched":{{"on_demand":{on_demand},"read_ahead":0,"trace":0,"fill":{}}}}}"#,
                    fill / part
                )
            };
            format!("[{},{}]", layer(1), layer(2))
        };
        let samples = format!("0.1\t{}\n0.25\t{}\n", status(1, 0), status(5, 20));
        let timeline = Timeline::sampled(&samples);
        assert_eq!(timeline.lines(), "seconds\ton demand\tfill\n0.1\t2\t0\n0.25\t10\t30\n");
        assert_eq!(Timeline::parse(&timeline.lines()), timeline);
    }

    #[test]
    fn kinds_lie_on_top_of_each_other() {
        let timeline_of = Timeline::parse("seconds\ton demand\tfill\n0\t0\t0\n2\t1000000\t3000000\n");
        assert_eq!(timeline_of.kinds, ["on demand", "fill"]);
        let svg = timeline("One start", &timeline_of);
        let areas: Vec<&str> = svg
            .lines()
            .filter(|line| line.contains("polygon"))
            .filter_map(|line| line.split('"').nth(1))
            .collect();
        assert_eq!(
            areas,
            ["70.0,264.0 770.0,209.0 770.0,264.0 70.0,264.0", "70.0,264.0 770.0,44.0 770.0,209.0 70.0,264.0"]
        );
        assert!(svg.contains("4 MB"));
    }
}
