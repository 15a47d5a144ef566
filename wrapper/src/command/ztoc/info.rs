//! `soci ztoc info`.

use serde::Serialize;
use ztoc::{UncompressedOffset, Ztoc};

use crate::context::Context;
use crate::error::Error;
use crate::terminal;

/// Arguments of `soci ztoc info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  soci ztoc info $(soci ztoc ls -q | head -n 1)")]
pub(crate) struct Args {
    /// Digest of the zTOC.
    digest: String,
}

/// Fields and order as upstream prints them; scripts parse this.
#[derive(Debug, Serialize)]
struct Info {
    version: String,
    build_tool: String,
    size: u64,
    span_size: i64,
    num_spans: u32,
    num_files: usize,
    num_multi_span_files: usize,
    files: Vec<FileInfo>,
}

#[derive(Debug, Serialize)]
struct FileInfo {
    filename: String,
    offset: u64,
    size: u64,
    r#type: &'static str,
    start_span: u32,
    end_span: u32,
}

/// Runs `soci ztoc info`.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let (record, ztoc) = super::load(context, &args.digest).await?;
    let info = info(&ztoc, record.size);
    terminal::line(&serde_json::to_string_pretty(&info).map_err(Error::command)?)
}

fn info(ztoc: &Ztoc, size: u64) -> Info {
    let files: Vec<FileInfo> = ztoc
        .entries
        .iter()
        .map(|entry| {
            // Upstream's end is the span of the byte behind the last one.
            let end = UncompressedOffset(entry.data_offset.0.saturating_add(entry.size));
            FileInfo {
                filename: String::from_utf8_lossy(&entry.name).into_owned(),
                offset: entry.data_offset.0,
                size: entry.size,
                r#type: entry.kind.as_str(),
                start_span: ztoc.spans.at(entry.data_offset).0,
                end_span: ztoc.spans.at(end).0,
            }
        })
        .collect();
    Info {
        version: String::from_utf8_lossy(&ztoc.version).into_owned(),
        build_tool: String::from_utf8_lossy(&ztoc.build_tool).into_owned(),
        size,
        span_size: ztoc.span_size(),
        num_spans: ztoc.spans.count(),
        num_files: files.len(),
        num_multi_span_files: files.iter().filter(|file| file.start_span != file.end_span).count(),
        files,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ztoc::{BuildOptions, Builder, Compression};

    /// A ustar header: name, mode, ids, size, time, checksum, type flag, magic.
    fn header(name: &str, size: usize) -> Vec<u8> {
        let mut header = vec![0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    #[test]
    fn fields_are_upstreams() {
        let mut tar = header("a", 3);
        tar.extend_from_slice(b"abc");
        tar.resize(1024, 0);
        tar.extend(header("b", 2000));
        tar.resize(1536 + 2048, b'x');
        tar.resize(1536 + 2048 + 1024, 0);
        let options = BuildOptions { span_size: 2048, ..BuildOptions::default() };
        let mut builder = Builder::new(Compression::Uncompressed, options).unwrap();
        builder.write(&tar).unwrap();
        let ztoc = builder.finish().unwrap().ztoc;
        let json = serde_json::to_value(info(&ztoc, 77)).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "version",
                "build_tool",
                "size",
                "span_size",
                "num_spans",
                "num_files",
                "num_multi_span_files",
                "files"
            ]
        );
        assert_eq!(json["num_files"], 2);
        assert_eq!(json["num_multi_span_files"], 1);
        assert_eq!(json["span_size"], 2048);
        let b = &json["files"][1];
        assert_eq!(
            b.to_string(),
            r#"{"filename":"b","offset":1536,"size":2000,"type":"reg","start_span":0,"end_span":1}"#
        );
    }
}
