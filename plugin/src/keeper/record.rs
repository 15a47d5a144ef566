//! What is kept beside a mount's descriptor: a memory file of JSON lines, which only ever grows, so that a process that dies while it writes
//! leaves what was there.
//!
//! | line | when |
//! |---|---|
//! | `{"mount":{"format":1,"snapshot":7,"lazy":{…},"layer_file":true}}` | before mount(2) |
//! | `{"ready":{"flags":…,"major":7,"minor":45}}` | after the hand-shake |
//!
//! A line without its end does not count, one that is not understood is skipped: a newer daemon may write more.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use crate::snapshot::{Id, LazyRecord};

/// Of the lines.
const FORMAT: u32 = 1;
/// Bytes of the longest record that is read.
const MAX: usize = 1 << 20;

/// What kernel and daemon agreed on when the mount was made; holds as long as the mount does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// `FUSE_INIT` flags that the kernel offered and the file system goes by.
    pub flags: u64,
    /// Version of the protocol, as the kernel gave it.
    pub major: u32,
    /// Its second part.
    pub minor: u32,
}

/// What is known of a kept mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRecord {
    /// Its snapshot, which names its directory.
    pub snapshot: Id,
    /// What it was made from; layer and zTOC name the layer file whose inode numbers the kernel knows.
    pub lazy: LazyRecord,
    /// Whether it shows the layer file by name.
    pub layer_file: bool,
    /// None while it is being made.
    pub agreed: Option<Agreed>,
}

/// What a memory file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A record.
    Record(MountRecord),
    /// A record that only a later version of this program understands.
    Later(u32),
    /// No record.
    Nothing,
}

/// What every format has.
#[derive(Deserialize)]
struct Head {
    mount: Format,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Mount { format: u32, snapshot: Id, lazy: LazyRecord, layer_file: bool },
    Ready(Agreed),
}

/// The memory file of one mount.
#[derive(Debug)]
pub(super) struct RecordFile(File);

// === impl RecordFile ===

impl RecordFile {
    /// One for a mount that is being made.
    pub(super) fn begin(snapshot: Id, lazy: &LazyRecord, layer_file: bool) -> io::Result<RecordFile> {
        let file = RecordFile(File::from(memory("soci-mount")?));
        file.append(&Line::Mount { format: FORMAT, snapshot, lazy: lazy.clone(), layer_file })?;
        Ok(file)
    }

    pub(super) fn ready(&self, agreed: Agreed) -> io::Result<()> {
        self.append(&Line::Ready(agreed))
    }

    fn append(&self, line: &Line) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.0.write_all_at(&bytes, self.0.metadata()?.len())
    }

    /// Reads one.
    pub(super) fn read(&self) -> io::Result<Content> {
        let bytes = read(&self.0, MAX)?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        let mut record = None;
        for line in bytes.get(..end).unwrap_or_default().split(|byte| *byte == b'\n') {
            match serde_json::from_slice::<Head>(line) {
                Ok(Head { mount: Format { format } }) if format > FORMAT => {
                    return Ok(Content::Later(format));
                }
                Ok(_) | Err(_) => {}
            }
            match serde_json::from_slice(line) {
                Ok(Line::Mount { snapshot, lazy, layer_file, .. }) => {
                    record = Some(MountRecord { snapshot, lazy, layer_file, agreed: None });
                }
                Ok(Line::Ready(agreed)) => {
                    if let Some(record) = &mut record {
                        record.agreed = Some(agreed);
                    }
                }
                Err(_) => {}
            }
        }
        Ok(record.map_or(Content::Nothing, Content::Record))
    }

    pub(super) fn descriptor(&self) -> &File {
        &self.0
    }
}

impl From<OwnedFd> for RecordFile {
    fn from(descriptor: OwnedFd) -> RecordFile {
        RecordFile(File::from(descriptor))
    }
}

/// An empty file in memory.
pub(super) fn memory(name: &str) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC;
    match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(rustix::io::Errno::INVAL) => Ok(rustix::fs::memfd_create(name, flags)?),
        made => Ok(made?),
    }
}

/// All of a file that has at most `max` bytes.
pub(super) fn read(file: &File, max: usize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len()).ok().filter(|length| *length <= max);
    let length =
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a file that is too long"))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lazy() -> LazyRecord {
        let text = |text: &str| text.to_owned();
        LazyRecord {
            image: text("host/image:1"),
            manifest: text("sha256:m"),
            layer: text("sha256:l"),
            ztoc: text("sha256:z"),
            namespace: text("default"),
        }
    }

    #[test]
    fn a_mount_is_being_made_until_it_is_ready() {
        let file = RecordFile::begin(Id(7), &lazy(), true).unwrap();
        let expected = MountRecord { snapshot: Id(7), lazy: lazy(), layer_file: true, agreed: None };
        assert_eq!(file.read().unwrap(), Content::Record(expected.clone()));
        let agreed = Agreed { flags: 1 << 63 | 5, major: 7, minor: 45 };
        file.ready(agreed).unwrap();
        let ready = MountRecord { agreed: Some(agreed), ..expected };
        assert_eq!(file.read().unwrap(), Content::Record(ready));
    }

    #[test]
    fn half_a_line_does_not_count_and_a_new_one_is_skipped() {
        let file = RecordFile::begin(Id(7), &lazy(), true).unwrap();
        let before = file.read().unwrap();
        let end = file.0.metadata().unwrap().len();
        file.0.write_all_at(b"{\"ready\":{\"flags\":1,\"major\":7,\"minor\":45}}", end).unwrap();
        assert_eq!(file.read().unwrap(), before);
        file.0.write_all_at(b"{\"news\":{}}\n{\"ready\":7}\n", end).unwrap();
        assert_eq!(file.read().unwrap(), before);
    }

    #[test]
    fn what_is_no_record_is_none() {
        let later = b"{\"mount\":{\"format\":2,\"snapshot\":1,\"lazy\":{}}}\n";
        for (text, content) in [
            (&b""[..], Content::Nothing),
            (b"\n", Content::Nothing),
            (b"nonsense\n", Content::Nothing),
            (later, Content::Later(2)),
        ] {
            let file = RecordFile::from(memory("test").unwrap());
            file.0.write_all_at(text, 0).unwrap();
            assert_eq!(file.read().unwrap(), content);
        }
        let file = RecordFile::from(memory("test").unwrap());
        file.0.set_len(MAX as u64 + 1).unwrap();
        assert!(file.read().is_err());
    }
}
