//! Media types and annotation names of SOCI artifacts.

/// Config media type (and so artifact type) of a v1 index.
pub const ARTIFACT_TYPE_V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// Config media type (and so artifact type) of a v2 index.
pub const ARTIFACT_TYPE_V2: &str = "application/vnd.amazon.soci.index.v2+json";
/// Media type of a zTOC.
pub const ZTOC_MEDIA_TYPE: &str = "application/octet-stream";
/// Media type of a prefetch artifact.
pub const PREFETCH_MEDIA_TYPE: &str = "application/vnd.amazon.soci.prefetch.v1+json";
/// Media type of an OCI image manifest, which a SOCI index is.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image index.
pub const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// On a zTOC or prefetch descriptor: digest of the (compressed) image layer that it describes.
pub const ANNOTATION_LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
/// On a zTOC descriptor: media type of the image layer.
pub const ANNOTATION_LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
/// On a zTOC descriptor: span size in uncompressed bytes, decimal. Absent before soci 0.12.
pub const ANNOTATION_SPAN_SIZE: &str = "com.amazon.soci.span-size";
/// On a zTOC descriptor: `true` where no entry of the layer has an extended attribute.
pub const ANNOTATION_DISABLE_XATTRS: &str = "com.amazon.soci.disable-xattrs";
/// On an index: the tool that made it.
pub const ANNOTATION_BUILD_TOOL: &str = "com.amazon.soci.build-tool-identifier";
/// On an image manifest: digest of its v2 index.
pub const ANNOTATION_INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
/// On a v2 index's descriptor in an image index: digest of the image manifest that it belongs to.
pub const ANNOTATION_IMAGE_MANIFEST_DIGEST: &str = "com.amazon.soci.image-manifest-digest";
/// Time of creation, RFC 3339. Not written by us, since equal input has to give equal bytes.
pub const ANNOTATION_CREATED: &str = "org.opencontainers.image.created";

/// Content of an index's config blob.
pub const EMPTY_CONFIG: &[u8] = b"{}";
/// Digest of [`EMPTY_CONFIG`].
pub const EMPTY_CONFIG_DIGEST: &str =
    "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// What upstream's CLI calls itself since 0.10; part of the index's bytes, and so of its digest.
pub const BUILD_TOOL: &str = "AWS SOCI CLI v0.2";
