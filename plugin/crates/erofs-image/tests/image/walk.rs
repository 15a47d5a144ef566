//! A whole tree as a map from paths to everything that can be seen of a file.

use std::collections::{BTreeMap, BTreeSet};

use erofs_image::{Image, Kind, Nid, ReadError};

pub type Files = BTreeMap<Vec<u8>, File>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub ino: u64,
    pub kind: Kind,
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub nlink: u64,
    pub rdev: (u32, u32),
    /// None for directories: their size is nobody's business.
    pub size: Option<u64>,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub data: Vec<u8>,
}

/// Compares two trees file by file, so that a difference is readable.
pub fn assert_same(left: &Files, right: &Files) {
    let names = |files: &Files| files.keys().cloned().collect::<BTreeSet<_>>();
    let (a, b) = (names(left), names(right));
    let show = |names: Vec<&Vec<u8>>| {
        names.iter().map(|n| String::from_utf8_lossy(n).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(show(a.difference(&b).collect()), show(b.difference(&a).collect()), "names differ");
    for (path, file) in left {
        assert_eq!(file, &right[path], "{}", String::from_utf8_lossy(path));
    }
}

/// Walks an image through our reader. `file` is the whole layer file. Ends at `limit` files, for damaged images.
pub fn image(image: &Image<&[u8]>, file: &[u8], limit: usize) -> Result<Files, ReadError> {
    let mut files = Files::new();
    let mut open = vec![(Vec::new(), image.root())];
    while let Some((path, nid)) = open.pop() {
        if files.len() >= limit {
            break;
        }
        let inode = image.inode(nid)?;
        assert_eq!(inode.nid, nid);
        let mut seen = File {
            ino: nid.0,
            kind: inode.kind,
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            mtime: (inode.mtime, inode.mtime_nsec),
            nlink: u64::from(inode.nlink),
            rdev: inode.rdev,
            size: Some(inode.size),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            data: Vec::new(),
        };
        for xattr in image.xattrs(nid)? {
            let xattr = xattr?;
            assert_eq!(image.xattr(nid, &xattr.name())?, Some(xattr.value));
            seen.xattrs.insert(xattr.name(), xattr.value.to_vec());
        }
        match inode.kind {
            Kind::Directory => {
                seen.size = None;
                entries(image, nid, &path, &mut open)?;
            }
            Kind::Symlink => seen.target = image.read_link(nid)?.to_vec(),
            Kind::Regular => {
                if let Some(range) = inode.tar_range {
                    seen.data =
                        file.get(range.start as usize..range.end as usize).unwrap_or_default().to_vec();
                }
            }
            _ => {}
        }
        files.insert(path, seen);
    }
    Ok(files)
}

fn entries(
    image: &Image<&[u8]>,
    directory: Nid,
    path: &[u8],
    open: &mut Vec<(Vec<u8>, Nid)>,
) -> Result<(), ReadError> {
    let mut cookie = 0;
    let mut last: Option<Vec<u8>> = None;
    // Each entry by a listing of its own from the last cookie, every other time.
    'listings: loop {
        for (number, entry) in image.read_dir(directory, cookie)?.enumerate() {
            let entry = entry?;
            assert!(entry.next_cookie > cookie);
            cookie = entry.next_cookie;
            if let Some(last) = &last {
                // A damaged image may have any order; then binary search finds what it finds.
                let _ = image.lookup(directory, last)?;
            }
            last = Some(entry.name.to_vec());
            if entry.name != b"." && entry.name != b".." {
                let child =
                    if path.is_empty() { entry.name.to_vec() } else { [path, b"/", entry.name].concat() };
                open.push((child, entry.nid));
            }
            if number == 100 {
                continue 'listings;
            }
        }
        return Ok(());
    }
}
