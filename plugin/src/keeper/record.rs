//! What is kept beside a mount's descriptor: a memory file of JSON lines, which only ever grows, so that a process that dies while it writes
//! leaves what was there.
//!
//! | line | when |
//! |---|---|
//! | `{"mount":{"format":1,"snapshot":7,"lazy":{…},"layer_file":true,"metadata":"…"}}` | before mount(2) |
//! | `{"ready":{"flags":…,"major":7,"minor":45}}` | after the hand-shake |
//! | `{"asked":"0000000000002000"}` | where the kernel cannot send requests again; the digits are written over when they rise |
//!
//! A line without its end does not count, one that is not understood is skipped: a newer daemon may write more. Of several of one kind the last counts.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use parking_lot::Mutex;
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
    /// [`Layer::metadata`](lazy_layer::Layer::metadata) of that file, which may be made anew, and by another version. None where the version that made the mount did
    /// not note it.
    pub metadata: Option<String>,
    /// None while it is being made.
    pub agreed: Option<Agreed>,
    /// No request that the daemon was given has a higher number, but for the few that it was given last. None where the kernel sends requests again.
    pub asked: Option<u64>,
}

impl MountRecord {
    /// Whether a layer file with this metadata can be the one that the mount was made with.
    #[must_use]
    pub fn may_have(&self, metadata: &str) -> bool {
        self.metadata.as_deref().is_none_or(|made_with| made_with == metadata)
    }
}

/// What a memory file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A record.
    Record(Box<MountRecord>),
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
    Mount {
        format: u32,
        snapshot: Id,
        lazy: LazyRecord,
        layer_file: bool,
        #[serde(default)]
        metadata: Option<String>,
    },
    Ready(Agreed),
    /// In hexadecimal digits, always as many.
    Asked(String),
}

/// The memory file of one mount.
#[derive(Debug)]
pub(super) struct RecordFile {
    file: File,
    /// Where this process has its line of what was asked.
    asked: Mutex<Option<u64>>,
}

// === impl RecordFile ===

impl RecordFile {
    /// One for a mount that is being made.
    pub(super) fn begin(
        snapshot: Id,
        lazy: &LazyRecord,
        layer_file: bool,
        metadata: &str,
    ) -> io::Result<RecordFile> {
        let file = RecordFile::from(memory("soci-mount")?);
        let (lazy, metadata) = (lazy.clone(), Some(metadata.to_owned()));
        file.append(&Line::Mount { format: FORMAT, snapshot, lazy, layer_file, metadata })?;
        Ok(file)
    }

    pub(super) fn ready(&self, agreed: Agreed) -> io::Result<()> {
        self.append(&Line::Ready(agreed)).map(|_| ())
    }

    /// Notes that requests have numbers up to this one.
    pub(super) fn asked(&self, number: u64) -> io::Result<()> {
        let line = Line::Asked(format!("{number:016x}"));
        let mut place = self.asked.lock();
        if let Some(place) = *place {
            return self.write(&line, place);
        }
        *place = Some(self.append(&line)?);
        Ok(())
    }

    fn append(&self, line: &Line) -> io::Result<u64> {
        let end = self.file.metadata()?.len();
        self.write(line, end)?;
        Ok(end)
    }

    fn write(&self, line: &Line, place: u64) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.file.write_all_at(&bytes, place)
    }

    /// Reads one.
    pub(super) fn read(&self) -> io::Result<Content> {
        let bytes = read(&self.file, MAX)?;
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
                Ok(Line::Mount { snapshot, lazy, layer_file, metadata, .. }) => {
                    let (agreed, asked) = (None, None);
                    record = Some(MountRecord { snapshot, lazy, layer_file, metadata, agreed, asked });
                }
                Ok(Line::Ready(agreed)) => {
                    if let Some(record) = &mut record {
                        record.agreed = Some(agreed);
                    }
                }
                Ok(Line::Asked(digits)) => {
                    if let (Some(record), Ok(number)) = (&mut record, u64::from_str_radix(&digits, 16)) {
                        record.asked = Some(number);
                    }
                }
                Err(_) => {}
            }
        }
        Ok(record.map_or(Content::Nothing, |record| Content::Record(Box::new(record))))
    }

    pub(super) fn descriptor(&self) -> &File {
        &self.file
    }
}

impl From<OwnedFd> for RecordFile {
    fn from(descriptor: OwnedFd) -> RecordFile {
        RecordFile { file: File::from(descriptor), asked: Mutex::new(None) }
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
            own_ztoc: None,
        }
    }

    #[test]
    fn a_mount_is_being_made_until_it_is_ready() {
        let file = RecordFile::begin(Id(7), &lazy(), true, "0f").unwrap();
        let expected = MountRecord {
            snapshot: Id(7),
            lazy: lazy(),
            layer_file: true,
            metadata: Some("0f".to_owned()),
            agreed: None,
            asked: None,
        };
        assert_eq!(file.read().unwrap(), Content::Record(Box::new(expected.clone())));
        let agreed = Agreed { flags: 1 << 63 | 5, major: 7, minor: 45 };
        file.ready(agreed).unwrap();
        assert!(expected.may_have("0f") && !expected.may_have("0e"));
        let ready = MountRecord { agreed: Some(agreed), ..expected };
        assert_eq!(file.read().unwrap(), Content::Record(Box::new(ready)));
    }

    /// As a version wrote it that did not note the metadata.
    #[test]
    fn an_earlier_record_is_understood() {
        let text = format!(
            r#"{{"mount":{{"format":1,"snapshot":7,"lazy":{},"layer_file":true}}}}"#,
            serde_json::to_string(&lazy()).unwrap()
        );
        let file = RecordFile::from(memory("test").unwrap());
        file.file.write_all_at(format!("{text}\n").as_bytes(), 0).unwrap();
        match file.read().unwrap() {
            Content::Record(record) => {
                assert_eq!((record.snapshot, &record.metadata), (Id(7), &None));
                assert!(record.may_have("0f"));
            }
            Content::Later(_) | Content::Nothing => panic!("no record"),
        }
    }

    #[test]
    fn what_was_asked_is_written_over() {
        let file = RecordFile::begin(Id(7), &lazy(), true, "0f").unwrap();
        file.ready(Agreed { flags: 5, major: 7, minor: 31 }).unwrap();
        let asked = |file: &RecordFile| match file.read().unwrap() {
            Content::Record(record) => record.asked,
            Content::Later(_) | Content::Nothing => panic!("no record"),
        };
        assert_eq!(asked(&file), None);
        file.asked(0x2000).unwrap();
        let length = file.file.metadata().unwrap().len();
        for number in [0x4000, u64::MAX] {
            file.asked(number).unwrap();
            assert_eq!((asked(&file), file.file.metadata().unwrap().len()), (Some(number), length));
        }
        // A successor has a line of its own.
        let successor = RecordFile::from(OwnedFd::from(file.file.try_clone().unwrap()));
        successor.asked(0x6000).unwrap();
        successor.asked(0x8000).unwrap();
        assert_eq!(asked(&file), Some(0x8000));
    }

    #[test]
    fn half_a_line_does_not_count_and_a_new_one_is_skipped() {
        let file = RecordFile::begin(Id(7), &lazy(), true, "0f").unwrap();
        let before = file.read().unwrap();
        let end = file.file.metadata().unwrap().len();
        file.file.write_all_at(b"{\"ready\":{\"flags\":1,\"major\":7,\"minor\":45}}", end).unwrap();
        assert_eq!(file.read().unwrap(), before);
        file.file.write_all_at(b"{\"news\":{}}\n{\"ready\":7}\n", end).unwrap();
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
            file.file.write_all_at(text, 0).unwrap();
            assert_eq!(file.read().unwrap(), content);
        }
        let file = RecordFile::from(memory("test").unwrap());
        file.file.set_len(MAX as u64 + 1).unwrap();
        assert!(file.read().is_err());
    }
}
