//! What was measured: lines of row, system, number of the run, quantity and value, separated by tabs.

use std::collections::BTreeMap;

/// What everything is compared with.
pub const BASELINE: &str = "overlayfs";

/// All measurements of a benchmark.
#[derive(Debug, Default, Clone)]
pub struct Results {
    values: BTreeMap<(String, String, String), Vec<f64>>,
    systems: Vec<String>,
    runs: usize,
}

/// The values of one quantity over all runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The one in the middle, or between the two in the middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

// === impl Results ===

impl Results {
    /// Reads the lines; a line that is none is a mistake of the script.
    pub fn parse(text: &str) -> Results {
        let mut results = Results::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [row, system, run, quantity, value] = fields[..] else {
                panic!("not a measurement: {line:?}")
            };
            results.runs = results.runs.max(run.parse().unwrap_or_else(|_| panic!("not a run: {line:?}")));
            let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line:?}"));
            let key = (row.to_owned(), system.to_owned(), quantity.to_owned());
            results.values.entry(key).or_default().push(value);
            if !results.systems.iter().any(|known| known == system) {
                results.systems.push(system.to_owned());
            }
        }
        results.systems.sort_by_key(|system| system != BASELINE);
        results
    }

    /// What everything is compared with first, then in the order in which they were measured.
    pub fn systems(&self) -> &[String] {
        &self.systems
    }

    /// One quantity of one row and system, if it was measured.
    pub fn spread(&self, row: &str, system: &str, quantity: &str) -> Option<Spread> {
        self.values
            .get(&(row.to_owned(), system.to_owned(), quantity.to_owned()))
            .map(|values| Spread::of(values))
    }

    /// One quantity of one system, whatever the row.
    pub fn spread_of_all(&self, system: &str, quantity: &str) -> Option<Spread> {
        let all: Vec<f64> = self
            .values
            .iter()
            .filter(|((_, of, what), _)| of == system && what == quantity)
            .flat_map(|(_, values)| values.iter().copied())
            .collect();
        (!all.is_empty()).then(|| Spread::of(&all))
    }

    /// How often everything was measured.
    pub fn runs(&self) -> usize {
        self.runs
    }
}

// === impl Spread ===

impl Spread {
    fn of(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Spread { median, least: sorted[0], most: sorted[sorted.len() - 1] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_extremes() {
        let results = Results::parse(
            "node\tsoci\t1\ttotal\t3\nnode\toverlayfs\t1\ttotal\t10\nnode\tsoci\t2\ttotal\t1\nnode\tsoci\t3\ttotal\t2.5\n\
             read\tsoci\t1\ttotal\t7\n",
        );
        assert_eq!(results.systems(), ["overlayfs", "soci"]);
        assert_eq!(
            results.spread("node", "soci", "total"),
            Some(Spread { median: 2.5, least: 1.0, most: 3.0 })
        );
        assert_eq!(results.spread("node", "soci", "bytes"), None);
        assert_eq!(
            results.spread_of_all("soci", "total"),
            Some(Spread { median: 2.75, least: 1.0, most: 7.0 })
        );
        assert_eq!(results.runs(), 3);
    }
}
