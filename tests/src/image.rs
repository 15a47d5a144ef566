//! Images out of folders: GNU tar makes the layers, gzip and zstd pack them, `ctr image import` takes the archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::process::{run, say};

/// How a layer is compressed, and the media type that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// One gzip member, docker's media type.
    Gzip,
    /// Several gzip members behind each other, docker's media type.
    GzipMembers,
    /// Not compressed, docker's media type.
    Tar,
    /// zstd, OCI's media type (docker has none).
    Zstd,
}

impl Packing {
    /// The media type of such a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Packing::Gzip | Packing::GzipMembers => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Packing::Tar => "application/vnd.docker.image.rootfs.diff.tar",
            Packing::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layer in the layout.
#[derive(Debug, Clone)]
pub struct Layer {
    /// `sha256:…` of the blob.
    pub digest: String,
    /// `sha256:…` of the tar.
    pub diff_id: String,
    /// Bytes of the blob.
    pub size: u64,
    /// How it is compressed.
    pub packing: Packing,
    /// The tar itself, for comparisons.
    pub tar: PathBuf,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The OCI-layout archive.
    pub archive: PathBuf,
    /// Name inside the archive.
    pub name: String,
    /// `sha256:…` of the manifest.
    pub manifest: String,
    /// Bytes of the manifest.
    pub manifest_size: u64,
    /// Layers, the lowest first.
    pub layers: Vec<Layer>,
}

impl Image {
    /// Name of the top snapshot.
    pub fn chain_id(&self) -> String {
        let mut diff_ids = self.layers.iter().map(|layer| layer.diff_id.clone());
        let lowest = diff_ids.next().expect("an image has a layer");
        diff_ids.fold(lowest, |chain, diff_id| digest(format!("{chain} {diff_id}").as_bytes()))
    }

    /// Bytes of all layers.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// Gathers layers in a folder.
#[derive(Debug)]
pub struct ImageBuilder {
    folder: PathBuf,
    layers: Vec<Layer>,
}

impl ImageBuilder {
    /// An image without layers yet; `folder` is made.
    pub fn new(folder: &Path) -> ImageBuilder {
        fs::create_dir_all(folder.join("layout/blobs/sha256")).unwrap();
        ImageBuilder { folder: folder.to_owned(), layers: Vec::new() }
    }

    /// The tree below `root` becomes the next layer.
    pub fn layer(mut self, root: &Path, packing: Packing) -> ImageBuilder {
        let tar = self.folder.join(format!("layer{}.tar", self.layers.len()));
        let mut command = Command::new("tar");
        command
            .arg("--create")
            .arg(format!("--file={}", tar.display()))
            .arg(format!("--directory={}", root.display()))
            .args(["--sort=name", "--format=posix", "--numeric-owner", "--xattrs", "--xattrs-include=*"])
            .args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "."]);
        say(&mut command).ok();
        let blob = pack(&fs::read(&tar).unwrap(), packing, &self.folder);
        let layer = Layer {
            digest: self.store(&blob),
            diff_id: digest(&fs::read(&tar).unwrap()),
            size: blob.len() as u64,
            packing,
            tar,
        };
        self.layers.push(layer);
        self
    }

    /// Writes config, manifest and archive; `config` is the "config" object of the image.
    pub fn finish(self, name: &str, config: Value) -> Image {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2025-01-01T00:00:00Z",
            "config": config, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| json!({ "mediaType": layer.packing.media_type(), "size": layer.size, "digest": layer.digest }))
            .collect();
        let oci = self.layers.iter().any(|layer| layer.packing == Packing::Zstd);
        let manifest_type = match oci {
            true => "application/vnd.oci.image.manifest.v1+json",
            false => "application/vnd.docker.distribution.manifest.v2+json",
        };
        let config_type = match oci {
            true => "application/vnd.oci.image.config.v1+json",
            false => "application/vnd.docker.container.image.v1+json",
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": { "mediaType": config_type, "size": config.len(), "digest": self.store(&config) },
            "layers": layers,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let manifest_digest = self.store(&manifest);
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": manifest_type, "size": manifest.len(), "digest": manifest_digest,
            "platform": { "architecture": "amd64", "os": "linux" },
            "annotations": { "io.containerd.image.name": name },
        }]});
        let layout = self.folder.join("layout");
        fs::write(layout.join("index.json"), index.to_string()).unwrap();
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let archive = self.folder.join("image.tar");
        run(
            "tar",
            &[
                "-cf",
                archive.to_str().unwrap(),
                "-C",
                layout.to_str().unwrap(),
                "oci-layout",
                "index.json",
                "blobs",
            ],
        );
        Image {
            archive,
            name: name.to_owned(),
            manifest: manifest_digest,
            manifest_size: manifest.len() as u64,
            layers: self.layers,
        }
    }

    fn store(&self, blob: &[u8]) -> String {
        let digest = digest(blob);
        let hex = digest.trim_start_matches("sha256:");
        fs::write(self.folder.join("layout/blobs/sha256").join(hex), blob).unwrap();
        digest
    }
}

fn pack(tar: &[u8], packing: Packing, folder: &Path) -> Vec<u8> {
    match packing {
        Packing::Tar => tar.to_vec(),
        Packing::Gzip => filter("gzip", &["-n", "-6"], tar, folder),
        Packing::Zstd => filter("zstd", &["-q", "-3", "-c"], tar, folder),
        // Cut where no tar header begins: members know nothing of entries.
        Packing::GzipMembers => tar
            .chunks((tar.len() / 5).max(1) + 321)
            .flat_map(|part| filter("gzip", &["-n", "-6"], part, folder))
            .collect(),
    }
}

/// `program` from standard input to standard output.
fn filter(program: &str, arguments: &[&str], input: &[u8], folder: &Path) -> Vec<u8> {
    let file = folder.join("filter.in");
    fs::write(&file, input).unwrap();
    let output =
        Command::new(program).args(arguments).stdin(fs::File::open(&file).unwrap()).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}
