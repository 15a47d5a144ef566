//! Which manifest of a list is for this machine: names and order of preference as in containerd's `platforms`.

use oci_spec::image::Descriptor;
use std::fmt;

/// An operating system and a processor, normalised: `arm64` without its `v8`, `amd64` without its `v1`, `arm` always
/// with a variant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

/// A text that names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform (os/architecture or os/architecture/variant)")]
pub struct InvalidPlatform(String);

impl Platform {
    /// Linux on the processor that this was compiled for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "mips64" if cfg!(target_endian = "little") => "mips64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture, "")
    }

    /// Normalises the three names, which may be those of `uname` too (`x86_64`, `aarch64`).
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let (architecture, variant) = (architecture.to_ascii_lowercase(), variant.to_ascii_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("amd64" | "x86_64" | "x86-64", "v1") => ("amd64", ""),
            ("amd64" | "x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self { architecture: architecture.to_owned(), variant: variant.to_owned(), os }
    }

    /// Reads `linux/arm64`, `linux/arm/v7`, or an architecture alone (`amd64`, on Linux).
    ///
    /// # Errors
    /// Other shapes, and parts with characters other than letters, digits, `.`, `_` and `-`.
    pub fn parse(text: &str) -> Result<Self, InvalidPlatform> {
        let parts: Vec<&str> = text.split('/').collect();
        let valid = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        if !parts.iter().all(valid) {
            return Err(InvalidPlatform(text.to_owned()));
        }
        match parts.as_slice() {
            ["linux"] => Ok(Self::host()),
            [architecture] => Ok(Self::new("linux", architecture, "")),
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(InvalidPlatform(text.to_owned())),
        }
    }

    /// Operating system, as Go names it.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Architecture, as Go names it.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Variant of the processor; empty where none is to be told.
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// Everything that runs here, best first: this, then what the processor runs as well.
    fn accepted(&self) -> Vec<Self> {
        let with = |architecture: &str, variant: String| Self {
            os: self.os.clone(),
            architecture: architecture.to_owned(),
            variant,
        };
        let number = self.variant.strip_prefix('v').and_then(|number| number.parse::<u32>().ok());
        let mut accepted = vec![self.clone()];
        match self.architecture.as_str() {
            "amd64" => {
                if let Some(number) = number.filter(|number| *number <= 9) {
                    let lower = (1..number).rev();
                    accepted.extend(lower.map(|n| Self::new(&self.os, "amd64", &format!("v{n}"))));
                }
                accepted.push(with("386", String::new()));
            }
            "arm" => {
                if let Some(number) = number.filter(|number| *number <= 9) {
                    accepted.extend((5..number).rev().map(|n| with("arm", format!("v{n}"))));
                }
            }
            "arm64" => {
                if !self.variant.is_empty() {
                    accepted.push(with("arm64", String::new()));
                }
                accepted.extend((5..=8).rev().map(|n| with("arm", format!("v{n}"))));
            }
            _ => {}
        }
        accepted
    }

    /// How good a manifest for `other` is here: 0 is best, none does not run.
    pub fn rank(&self, other: &Platform) -> Option<usize> {
        self.accepted().iter().position(|accepted| accepted == other)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl From<&oci_spec::image::Platform> for Platform {
    fn from(platform: &oci_spec::image::Platform) -> Self {
        let variant = platform.variant().as_deref().unwrap_or_default();
        Self::new(&platform.os().to_string(), &platform.architecture().to_string(), variant)
    }
}

/// The manifest of a list that is best for `wanted`; the first of equals.
///
/// SOCI indices in the list carry their image's platform and are no images; they are passed over. An entry without a
/// platform is taken where none with one fits, as containerd does.
pub fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    let accepted = wanted.accepted();
    let rank = |descriptor: &Descriptor| match descriptor.platform() {
        Some(platform) => {
            let platform = Platform::from(platform);
            accepted.iter().position(|accepted| *accepted == platform)
        }
        None => Some(accepted.len()),
    };
    let is_artifact = |descriptor: &Descriptor| {
        descriptor
            .artifact_type()
            .as_ref()
            .is_some_and(|t| soci_index::Version::from_artifact_type(t.as_ref()).is_some())
    };
    let images = manifests.iter().filter(|descriptor| !is_artifact(descriptor));
    images
        .filter_map(|descriptor| Some((rank(descriptor)?, descriptor)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, d)| d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{MediaType, PlatformBuilder};

    fn entry(platform: &str) -> Descriptor {
        let mut descriptor =
            Descriptor::new(MediaType::ImageManifest, 1, soci_index::digest_of(platform.as_bytes()));
        if !platform.is_empty() {
            let parts: Vec<&str> = platform.split('/').collect();
            let mut builder = PlatformBuilder::default().os(parts[0]).architecture(parts[1]);
            if let Some(variant) = parts.get(2) {
                builder = builder.variant(*variant);
            }
            descriptor.set_platform(Some(builder.build().unwrap()));
        }
        descriptor
    }

    fn chosen(list: &[&str], wanted: &str) -> Option<usize> {
        let list: Vec<Descriptor> = list.iter().map(|platform| entry(platform)).collect();
        let found = choose(&list, &Platform::parse(wanted).unwrap())?;
        list.iter().position(|descriptor| std::ptr::eq(descriptor, found))
    }

    #[test]
    fn normalises() {
        for (text, full) in [
            ("linux/amd64", "linux/amd64"),
            ("x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/arm64/v8", "linux/arm64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("armel", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
            ("linux/s390x", "linux/s390x"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), full);
        }
        for bad in ["", "/", "linux/", "a/b/c/d", "linux/am d64", "linux/*"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Platform::host().os(), "linux");
    }

    #[test]
    fn chooses_the_best_that_runs() {
        let usual =
            ["linux/386", "linux/arm/v5", "linux/arm/v7", "linux/arm64/v8", "linux/amd64", "windows/amd64"];
        assert_eq!(chosen(&usual, "linux/amd64"), Some(4));
        assert_eq!(chosen(&usual, "linux/arm64"), Some(3));
        assert_eq!(chosen(&usual, "linux/arm64/v9"), Some(3));
        assert_eq!(chosen(&usual, "linux/arm/v7"), Some(2));
        assert_eq!(chosen(&usual, "linux/arm/v6"), Some(1));
        assert_eq!(chosen(&usual, "windows/amd64"), Some(5));
        assert_eq!(chosen(&usual, "linux/riscv64"), None);
        assert_eq!(chosen(&["linux/386"], "linux/amd64"), Some(0));
        assert_eq!(chosen(&["linux/arm/v6"], "linux/arm64"), Some(0));
        assert_eq!(chosen(&["linux/arm/v8"], "linux/arm/v7"), None);
        assert_eq!(chosen(&["linux/amd64/v3"], "linux/amd64"), None);
        assert_eq!(chosen(&["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3"), Some(1));
        assert_eq!(chosen(&["linux/amd64", "linux/amd64"], "linux/amd64"), Some(0));
        assert_eq!(chosen(&["unknown/unknown", "", "linux/amd64"], "linux/amd64"), Some(2));
        assert_eq!(chosen(&[""], "linux/amd64"), Some(0));
        assert_eq!(chosen(&[], "linux/amd64"), None);
    }

    #[test]
    fn passes_over_soci_indices() {
        let mut index = entry("linux/amd64");
        index.set_artifact_type(Some(MediaType::from(soci_index::ARTIFACT_TYPE_V2)));
        let list = [index, entry("linux/amd64")];
        assert!(std::ptr::eq(choose(&list, &Platform::parse("amd64").unwrap()).unwrap(), &list[1]));
        assert!(choose(&list[..1], &Platform::parse("amd64").unwrap()).is_none());
    }
}
