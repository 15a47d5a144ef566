//! The configuration file: every key of upstream's with upstream's spelling, and a few of our own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

mod keys;
mod read;
mod write;

pub use keys::*;

/// Everything that is wrong with a configuration file.
#[derive(Debug)]
pub struct ConfigError {
    file: PathBuf,
    mistakes: Vec<Mistake>,
}

/// A configuration file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read, or is not there although it was asked for.
    #[error("failed to open config file {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It can be read, but says things that make no sense.
    #[error(transparent)]
    Mistakes(#[from] ConfigError),
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Dotted; empty for the file as a whole.
    pub path: String,
    /// In words.
    pub problem: String,
}

/// A number of bytes as it is written: `8mb`, `1.5 gb`, `4096`; units are 1024-based.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// Text that is no size.
#[derive(Debug, thiserror::Error)]
#[error("invalid size format: {0:?} (a number with b, kb, mb or gb)")]
pub struct SizeError(String);

// === impl Config ===

impl Config {
    /// What `path` says. A missing file is no error unless it was `asked_for`: everything then has its default.
    ///
    /// # Errors
    /// [`LoadError`]; all mistakes at once.
    pub fn load(path: &Path, asked_for: bool) -> Result<Config, LoadError> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                Ok(Config::parse(&text)
                    .map_err(|mistakes| ConfigError { file: path.to_owned(), mistakes })?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !asked_for => Ok(Config::default()),
            Err(source) => Err(LoadError::Open { path: path.to_owned(), source }),
        }
    }

    /// From TOML text.
    ///
    /// # Errors
    /// Every mistake, in the order of the keys.
    pub fn parse(text: &str) -> Result<Config, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let config = read::read(text, &mut mistakes);
        config.check(&mut mistakes);
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// As TOML, a key a line; `explained` puts a line of meaning above each.
    #[must_use]
    pub fn to_toml(&self, explained: bool) -> String {
        write::write(self, explained)
    }

    /// What no single key can be blamed for.
    fn check(&self, mistakes: &mut Vec<Mistake>) {
        let parallel = &self.parallel;
        let table = "pull_modes.parallel_pull_unpack";
        for (name, one, all) in [
            (
                "max_concurrent_downloads",
                parallel.max_concurrent_downloads_per_image,
                parallel.max_concurrent_downloads,
            ),
            (
                "max_concurrent_unpacks",
                parallel.max_concurrent_unpacks_per_image,
                parallel.max_concurrent_unpacks,
            ),
        ] {
            if all >= 0 && (one > all || one < 0) {
                mistakes.push(Mistake::new(
                    &format!("{table}.{name}_per_image"),
                    format!("{one} is more than {name}, which is {all}"),
                ));
            }
        }
        read::known_streams(&parallel.decompress_streams, &format!("{table}.decompress_streams"), mistakes);
    }

    /// How long finding an image's index may take.
    #[must_use]
    pub fn resolve_deadline(&self) -> Duration {
        seconds(self.deadlines.resolve_sec)
    }

    /// How long mounting one layer may take, its index being known.
    #[must_use]
    pub fn mount_deadline(&self) -> Duration {
        seconds(or(self.general.mount_timeout_sec, 30))
    }

    /// How long the kernel front end of one layer may take to come up.
    #[must_use]
    pub fn attach_deadline(&self) -> Duration {
        seconds(self.deadlines.attach_sec)
    }

    /// How long a layer that has left FUSE keeps its loop device for new containers.
    #[must_use]
    pub fn shared_cache(&self) -> Duration {
        seconds(self.fuse.shared_cache_sec)
    }

    /// How long a blocked read may take.
    #[must_use]
    pub fn read_deadline(&self) -> Duration {
        seconds(or(self.blob.fetching_timeout_sec, 300))
    }

    /// How long containerd may take to answer.
    #[must_use]
    pub fn containerd_deadline(&self) -> Duration {
        seconds(self.deadlines.containerd_sec)
    }

    /// How long unpacking may go without a byte.
    #[must_use]
    pub fn unpack_stall(&self) -> Duration {
        seconds(self.deadlines.unpack_stall_sec)
    }

    /// How long stopping may take.
    #[must_use]
    pub fn drain_deadline(&self) -> Duration {
        seconds(self.deadlines.drain_sec)
    }

    /// How long each part of an unmount may take.
    #[must_use]
    pub fn unmount_deadline(&self) -> Duration {
        seconds(self.deadlines.unmount_sec)
    }

    /// How long an unmount waits for the last users.
    #[must_use]
    pub fn in_use_patience(&self) -> Duration {
        millis(self.deadlines.in_use_msec)
    }

    /// How long what is still under way is waited for at an end.
    #[must_use]
    pub fn release_patience(&self) -> Duration {
        millis(self.deadlines.release_msec)
    }

    /// How long a negative answer is believed.
    #[must_use]
    pub fn negative_ttl(&self) -> Duration {
        seconds(self.deadlines.negative_ttl_sec)
    }

    /// How long a found index is believed to be the newest.
    #[must_use]
    pub fn found_ttl(&self) -> Duration {
        seconds(self.deadlines.found_ttl_sec)
    }

    /// Bytes of disk that layer files may take; 0 for any number.
    #[must_use]
    pub fn max_disk(&self) -> u64 {
        bytes(&self.cache.max_size)
    }

    /// Bytes of the file system that layer files leave free.
    #[must_use]
    pub fn min_free(&self) -> u64 {
        bytes(&self.cache.min_free)
    }

    /// The largest zTOC that is read, in bytes.
    #[must_use]
    pub fn max_ztoc_bytes(&self) -> u64 {
        match bytes(&self.limits.ztoc_bytes) {
            0 => 512 << 20,
            bytes => bytes,
        }
    }
}

/// A size that was checked to be one; 0 if it is empty.
#[must_use]
pub fn bytes(size: &str) -> u64 {
    size.parse().map_or(0, |Size(bytes)| bytes)
}

/// `value`, or upstream's default where it takes 0 to mean that.
#[must_use]
pub fn or(value: i64, default: i64) -> i64 {
    if value == 0 { default } else { value }
}

/// A count out of a key that was checked to be in range; 0 if it is negative.
#[must_use]
pub fn count(value: i64) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// Negative counts as none.
#[must_use]
pub fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

/// The same in milliseconds.
#[must_use]
pub fn millis(value: i64) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or(0))
}

// === impl Mistake ===

impl Mistake {
    fn new(path: &str, problem: impl Into<String>) -> Mistake {
        Mistake { path: path.to_owned(), problem: problem.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.problem)
        } else {
            write!(f, "{}: {}", self.path, self.problem)
        }
    }
}

// === impl ConfigError ===

impl ConfigError {
    /// All of them.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "config file {} cannot be used:", self.file.display())?;
        for mistake in &self.mistakes {
            write!(f, "\n  {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

// === impl Size ===

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok(Size(0));
        }
        let wrong = || SizeError(text.to_owned());
        let lower = trimmed.to_ascii_lowercase();
        let (number, unit) = [("kb", 1_u64 << 10), ("mb", 1 << 20), ("gb", 1 << 30), ("b", 1), ("", 1)]
            .into_iter()
            .find_map(|(suffix, unit)| {
                lower.strip_suffix(suffix).map(|number| (number.trim_end().to_owned(), unit))
            })
            .ok_or_else(wrong)?;
        if !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
            return Err(wrong());
        }
        let value: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = value * unit as f64;
        // Far above any size that means something, and exact below 2^53.
        if bytes.is_finite() && bytes <= 9e15 { Ok(Size(bytes as u64)) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../config.toml.example");

    #[test]
    fn the_example_file_is_what_the_keys_say() {
        let generated = format!(
            "# Configuration of soci-snapshotter-grpc: every key with its default. A file needs only the keys that differ.\n\n{}",
            Config::default().to_toml(true)
        );
        if std::env::var_os("UPDATE_CONFIG_EXAMPLE").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../config.toml.example"), &generated)
                .unwrap();
        }
        assert_eq!(EXAMPLE, generated, "run this test with UPDATE_CONFIG_EXAMPLE=1");
        assert_eq!(Config::parse(EXAMPLE).unwrap(), Config::default());
    }

    #[test]
    fn what_is_dumped_is_read_back() {
        let text = r#"
            max_concurrency = -1
            [http]
            maxretries = 3
            [resolver.host."docker.io"]
            mirrors = [{host = "m:5000", insecure = true}]
            [pull_modes.parallel_pull_unpack.decompress_streams.gzip]
            path = "/usr/bin/unpigz"
            args = ["-d", "-c"]
            [no.such]
            table = 1
        "#;
        let config = Config::parse(text).unwrap();
        assert_eq!(config.http.max_retries, 3);
        assert_eq!(
            config.resolver.host["docker.io"],
            [Mirror { host: "m:5000".into(), insecure: true, request_timeout_sec: 0 }]
        );
        assert_eq!(Config::parse(&config.to_toml(false)).unwrap(), config);
        assert_eq!(Config::parse(&config.to_toml(true)).unwrap(), config);
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let text = r#"
            no_prometheus = "yes"
            mount_timeout_sec = -4
            metadata_store = "sqlite"
            blob = 3
            [http]
            MaxRetries = "many"
            [pull_modes.soci_v1]
            enable = 1
            [pull_modes.parallel_pull_unpack]
            concurrent_download_chunk_size = "8 parsec"
            max_concurrent_downloads = 1
            decompress_streams.xz = { path = "xz" }
            [resolver.host."h"]
            mirrors = [{insecure = "no"}, 5]
        "#;
        let mistakes: Vec<String> =
            Config::parse(text).unwrap_err().iter().map(ToString::to_string).collect();
        for path in [
            "no_prometheus: expected true or false, found string \"yes\"",
            "mount_timeout_sec: -4 is not within",
            "metadata_store: \"sqlite\" is none of db, db-multi",
            "blob: expected a table, found integer 3",
            "http.MaxRetries: expected a whole number",
            "pull_modes.soci_v1.enable: expected true or false",
            "concurrent_download_chunk_size: invalid size format",
            "max_concurrent_downloads_per_image: 3 is more than",
            "decompress_streams.xz.path: \"xz\" is not an absolute path",
            "decompress_streams.xz: only gzip and zstd",
            "resolver.host.\"h\".mirrors[0].insecure",
            "resolver.host.\"h\".mirrors[0]: no host",
            "resolver.host.\"h\".mirrors[1]: expected a table",
        ] {
            assert_eq!(mistakes.iter().filter(|m| m.contains(path)).count(), 1, "{path} in {mistakes:#?}");
        }
        assert_eq!(mistakes.len(), 13, "{mistakes:#?}");
    }

    #[test]
    fn text_that_is_no_toml_is_one_mistake() {
        assert_eq!(Config::parse("a = = 3").unwrap_err().len(), 1);
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("", 0), ("4096", 4096), ("8mb", 8 << 20), ("1.5 GB", 3 << 29), ("10B", 10), ("0.5kb", 512)]
        {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
        for bad in ["mb", "-1", "1e3", "8 parsec", "1.2.3", "nan", "9999999999999gb"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_missing_file_is_only_an_error_when_asked_for() {
        let path = Path::new("/nonexistent/soci/config.toml");
        assert_eq!(Config::load(path, false).unwrap(), Config::default());
        let text = Config::load(path, true).unwrap_err().to_string();
        assert!(text.starts_with("failed to open config file /nonexistent/soci/config.toml: "), "{text}");
    }
}
