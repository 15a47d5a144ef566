//! The tools of `scripts/bench.sh`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Parser;
use soci_tests::bench::chart::{self, Timeline};
use soci_tests::bench::link::{Link, Rate, Shape, Totals};
use soci_tests::bench::results::Results;
use soci_tests::bench::{files, probe, table};

/// Tools of scripts/bench.sh.
#[derive(Debug, Parser)]
#[command(name = "soci-bench")]
enum Tool {
    /// Forward TCP connections over a link that is longer and narrower than loopback
    Link {
        /// Where to listen
        #[arg(long)]
        listen: SocketAddr,
        /// The server
        #[arg(long)]
        to: SocketAddr,
        /// Milliseconds from one end to the other and back
        #[arg(long, default_value_t = 20)]
        round_trip: u64,
        /// Megabits per second towards the clients, all connections together
        #[arg(long, default_value_t = 400)]
        megabits: u64,
        /// A line each time that something has passed: milliseconds since 1970, bytes down, bytes up, connections, all since the start
        #[arg(long)]
        log: PathBuf,
    },
    /// Write the tar of a layer to standard output
    Files {
        /// How many files
        #[arg(long)]
        count: u64,
        /// Bytes of each, which cannot be compressed
        #[arg(long, default_value_t = 100)]
        bytes: u64,
        /// Path of the only file; without it they are numbered
        #[arg(long)]
        name: Option<String>,
    },
    /// Read one page of each span of a file; print the seconds that half of the reads and that 99 of 100 did not exceed
    Probe {
        /// Threads that read
        #[arg(long, default_value_t = 1)]
        readers: usize,
        /// The file
        file: PathBuf,
    },
    /// Print what `report` makes a picture of
    Timeline {
        /// Lines of seconds and, behind a tab, the answer of `soci image status --json`
        samples: PathBuf,
    },
    /// Write table.md and the charts, and print the table
    Report {
        /// Folder with results.tsv and, if there is one, timeline.tsv; gets what is written, too
        folder: PathBuf,
        /// Where and of what the figures are
        #[arg(long)]
        about: String,
        /// What timeline.tsv shows
        #[arg(long, default_value = "One start: bytes over time")]
        timeline: String,
    },
}

fn main() {
    match Tool::parse() {
        Tool::Link { listen, to, round_trip, megabits, log } => {
            let shape =
                Shape { round_trip: Duration::from_millis(round_trip), rate: Rate::from_megabits(megabits) };
            let link = Link::start(listen, to, shape).expect("cannot listen");
            keep_log(&link, File::create(log).expect("cannot write the log"));
        }
        Tool::Files { count, bytes, name } => {
            let to = std::io::BufWriter::new(std::io::stdout().lock());
            files::write(count, bytes, name.as_deref(), to).expect("cannot write");
        }
        Tool::Timeline { samples } => {
            let samples = fs::read_to_string(samples).expect("cannot read the samples");
            print!("{}", Timeline::sampled(&samples).lines());
        }
        Tool::Report { folder, about, timeline } => report(&folder, &about, &timeline),
        Tool::Probe { readers, file } => {
            let sorted = probe::latencies(&file, readers).expect("cannot read");
            for percent in [50, 99] {
                println!("p{percent} {:.4}", probe::percentile(&sorted, percent).as_secs_f64());
            }
        }
    }
}

fn report(folder: &Path, about: &str, timeline: &str) {
    let read = |name: &str| fs::read_to_string(folder.join(name));
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("cannot write the report");
    let results = Results::parse(&read("results.tsv").expect("no results.tsv"));
    let table = table::markdown(&results, about);
    write("table.md", &table);
    write("cold-start.svg", &chart::cold_starts(&results));
    if let Ok(points) = read("timeline.tsv") {
        write("timeline.svg", &chart::timeline(timeline, &Timeline::parse(&points)));
    }
    print!("{table}");
}

/// Looks a hundred times a second whether something has passed.
fn keep_log(link: &Link, mut log: File) {
    let mut written = None;
    loop {
        let totals = link.totals();
        if written.replace(totals) != Some(totals) {
            let Totals { down, up, connections } = totals;
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
            log.write_all(format!("{now} {down} {up} {connections}\n").as_bytes()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
