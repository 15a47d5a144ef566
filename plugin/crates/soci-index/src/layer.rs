//! Which layers of an image get a zTOC.

/// Layers smaller than this many (compressed) bytes get no zTOC unless the user says otherwise.
pub const DEFAULT_MIN_LAYER_SIZE: u64 = 10 << 20;

/// How the tar of a layer is packed, so far as we can index it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerCompression {
    /// gzip, possibly of several members.
    Gzip,
    /// A plain tar. Docker's uncompressed types have been seen on compressed layers: building then fails.
    Tar,
}

/// What is to be done with one entry of an image manifest's `layers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerVerdict {
    /// Build a zTOC.
    Index(LayerCompression),
    /// Leave it out of the index; it is unpacked as usual.
    Skip(SkipReason),
}

/// Why a layer gets no zTOC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// Smaller than the minimum.
    TooSmall,
    /// zstd, which the format has no checkpoints for.
    Zstd,
    /// Encrypted, or a type of layer that is not known.
    Unsupported,
    /// Not a layer but a SOCI prefetch artifact.
    PrefetchArtifact,
}

/// The image lists something among its layers that is none, in-toto statements for example.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a layer: {media_type}")]
pub struct NotALayer {
    /// Its media type.
    pub media_type: String,
}

/// Decides on a layer by its media type, its compressed `size` in bytes and the least size worth a zTOC (equal is
/// indexed).
///
/// Upstream takes an encrypted gzip layer for gzip and fails; it is skipped here.
///
/// # Errors
/// [`NotALayer`] where the media type is not a layer's: the image as a whole is then not indexed.
pub fn classify(media_type: &str, size: u64, min_layer_size: u64) -> Result<LayerVerdict, NotALayer> {
    const DOCKER: &str = "application/vnd.docker.image.rootfs.";
    const OCI: &str = "application/vnd.oci.image.layer.";
    if media_type == crate::PREFETCH_MEDIA_TYPE {
        return Ok(LayerVerdict::Skip(SkipReason::PrefetchArtifact));
    }
    let not_a_layer = || NotALayer { media_type: media_type.to_owned() };
    let (base, suffixes) = media_type.split_once('+').unwrap_or((media_type, ""));
    let found = if let Some(kind) = base.strip_prefix(DOCKER) {
        let found = match kind {
            "diff.tar.gzip" | "foreign.diff.tar.gzip" => Ok(LayerCompression::Gzip),
            "diff.tar" | "foreign.diff.tar" => Ok(LayerCompression::Tar),
            "diff.tar.zstd" => Err(SkipReason::Zstd),
            _ => return Err(not_a_layer()),
        };
        if suffixes.is_empty() { found } else { Err(SkipReason::Unsupported) }
    } else if let Some(kind) = base.strip_prefix(OCI) {
        match (kind, suffixes) {
            ("v1.tar", "") => Ok(LayerCompression::Tar),
            ("v1.tar" | "nondistributable.v1.tar", "gzip") => Ok(LayerCompression::Gzip),
            (_, "zstd") => Err(SkipReason::Zstd),
            _ => Err(SkipReason::Unsupported),
        }
    } else {
        return Err(not_a_layer());
    };
    // In upstream's order: the size counts before the compression.
    if size < min_layer_size {
        return Ok(LayerVerdict::Skip(SkipReason::TooSmall));
    }
    Ok(found.map_or_else(LayerVerdict::Skip, LayerVerdict::Index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_media_type() {
        use LayerVerdict::{Index, Skip};
        let table = [
            ("application/vnd.oci.image.layer.v1.tar", Index(LayerCompression::Tar)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Index(LayerCompression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Skip(SkipReason::Zstd)),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", Skip(SkipReason::Unsupported)),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", Skip(SkipReason::Unsupported)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar", Skip(SkipReason::Unsupported)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Index(LayerCompression::Gzip)),
            ("application/vnd.oci.image.layer.v9.cpio", Skip(SkipReason::Unsupported)),
            ("application/vnd.docker.image.rootfs.diff.tar", Index(LayerCompression::Tar)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Index(LayerCompression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted", Skip(SkipReason::Unsupported)),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", Skip(SkipReason::Zstd)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar", Index(LayerCompression::Tar)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Index(LayerCompression::Gzip)),
            ("application/vnd.amazon.soci.prefetch.v1+json", Skip(SkipReason::PrefetchArtifact)),
        ];
        for (media_type, verdict) in table {
            assert_eq!(classify(media_type, 100, 100), Ok(verdict), "{media_type}");
        }
    }

    #[test]
    fn small_is_below_the_minimum() {
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        assert_eq!(classify(gzip, 99, 100), Ok(LayerVerdict::Skip(SkipReason::TooSmall)));
        assert_eq!(classify(gzip, 0, 0), Ok(LayerVerdict::Index(LayerCompression::Gzip)));
        let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
        assert_eq!(classify(zstd, 99, 100), Ok(LayerVerdict::Skip(SkipReason::TooSmall)));
    }

    #[test]
    fn others_are_no_layers_however_small() {
        for media_type in [
            "application/vnd.in-toto+json",
            "",
            "application/vnd.docker.image.rootfs.x",
            "application/octet-stream",
        ] {
            assert_eq!(classify(media_type, 1, 100), Err(NotALayer { media_type: media_type.to_owned() }));
        }
    }
}
