//! The rules of OCI layers.

use erofs_image::{Attributes, Content, Image, Kind, NewImage, NodeId, TreeBuilder, TreeError, Xattr};

use crate::walk::{self, Files};

fn with(permissions: u16) -> Attributes {
    Attributes { permissions, uid: 7, gid: 8, mtime: 9, ..Attributes::default() }
}

fn regular<'a>(builder: &mut TreeBuilder<'a>, path: &'a str) -> NodeId {
    builder.add(path.as_bytes(), with(0o644), Content::Regular { tar_offset: 0, size: 0 }).unwrap()
}

fn directory<'a>(builder: &mut TreeBuilder<'a>, path: &'a str) -> NodeId {
    builder.add(path.as_bytes(), with(0o700), Content::Directory).unwrap()
}

fn seen(builder: TreeBuilder<'_>) -> Files {
    let written = NewImage::of(builder.finish(), 0).unwrap();
    let metadata = written.metadata();
    walk::image(&Image::open(metadata.as_slice()).unwrap(), &[], usize::MAX).unwrap()
}

fn names(files: &Files) -> Vec<&str> {
    files.keys().map(|name| std::str::from_utf8(name).unwrap()).collect()
}

fn is_opaque(files: &Files, path: &str) -> bool {
    files[path.as_bytes()].xattrs.get(b"trusted.overlay.opaque".as_slice()).is_some_and(|value| value == b"y")
}

#[test]
fn names_are_cleaned() {
    let mut builder = TreeBuilder::new();
    regular(&mut builder, "./a");
    regular(&mut builder, "/b");
    regular(&mut builder, "x//y/./z/../c");
    regular(&mut builder, "../../d");
    directory(&mut builder, "e/");
    let files = seen(builder);
    assert_eq!(names(&files), ["", "a", "b", "d", "e", "x", "x/y", "x/y/c"]);
    assert_eq!(files[b"x/y".as_slice()].permissions, 0o755);
    assert_eq!((files[b"x".as_slice()].uid, files[b"x".as_slice()].mtime), (0, (0, 0)));
}

#[test]
fn the_root_takes_attributes() {
    let mut builder = TreeBuilder::new();
    let id = directory(&mut builder, "./");
    assert_eq!(builder.add(b"..", with(0o711), Content::Directory).unwrap(), id);
    let files = seen(builder);
    assert_eq!((files[b"".as_slice()].permissions, files[b"".as_slice()].uid), (0o711, 7));
    let mut builder = TreeBuilder::new();
    assert!(matches!(builder.add(b"/", with(0), Content::Fifo), Err(TreeError::RootNotDirectory { .. })));
}

#[test]
fn repeated_entries() {
    let mut builder = TreeBuilder::new();
    let first = directory(&mut builder, "d");
    regular(&mut builder, "d/child");
    let again = builder.add(b"d", with(0o711), Content::Directory).unwrap();
    assert_eq!(first, again);
    let old = regular(&mut builder, "f");
    let new = builder.add(b"f", with(0o600), Content::Fifo).unwrap();
    directory(&mut builder, "gone");
    let child = regular(&mut builder, "gone/child");
    regular(&mut builder, "gone");
    let written = NewImage::of(builder.finish(), 0).unwrap();
    let metadata = written.metadata();
    let image = Image::open(metadata.as_slice()).unwrap();
    let files = walk::image(&image, &[], usize::MAX).unwrap();
    assert_eq!(names(&files), ["", "d", "d/child", "f", "gone"]);
    assert_eq!(files[b"d".as_slice()].permissions, 0o711);
    assert_eq!(files[b"f".as_slice()].kind, Kind::Fifo);
    assert_eq!((written.nid(old), written.nid(child)), (None, None));
    assert_eq!(written.nid(new), image.lookup(image.root(), b"f").unwrap());
}

#[test]
fn hard_links() {
    let mut builder = TreeBuilder::new();
    let id = regular(&mut builder, "a/one");
    assert_eq!(builder.hard_link(b"b/two", b"./a/one").unwrap(), id);
    assert_eq!(builder.hard_link(b"/three", b"/b/two").unwrap(), id);
    // The first name goes, the file stays.
    builder.add(b"a/one", with(0o600), Content::Fifo).unwrap();
    let missing = builder.hard_link(b"x", b"later").unwrap_err();
    assert!(matches!(missing, TreeError::MissingTarget { .. }));
    assert!(matches!(builder.hard_link(b"x", b"a"), Err(TreeError::DirectoryTarget { .. })));
    assert!(matches!(builder.hard_link(b"x", b"/"), Err(TreeError::DirectoryTarget { .. })));
    assert!(matches!(builder.hard_link(b"three/x", b"three"), Err(TreeError::ParentNotDirectory { .. })));
    let files = seen(builder);
    assert_eq!(names(&files), ["", "a", "a/one", "b", "b/two", "three"]);
    let two = &files[b"b/two".as_slice()];
    assert_eq!((two.nlink, two.ino), (2, files[b"three".as_slice()].ino));
    assert_eq!(files[b"".as_slice()].nlink, 4);
}

#[test]
fn whiteouts() {
    let mut builder = TreeBuilder::new();
    regular(&mut builder, "d/.wh.gone");
    builder.hard_link(b".wh.linked", b"nothing").unwrap();
    // A file of this layer wins, whichever comes first.
    regular(&mut builder, ".wh.early");
    regular(&mut builder, "early");
    let late = regular(&mut builder, "late");
    let whiteout = regular(&mut builder, ".wh.late");
    assert_ne!(late, whiteout);
    // And a directory hides what it replaces.
    regular(&mut builder, ".wh.early-dir");
    directory(&mut builder, "early-dir");
    directory(&mut builder, "late-dir");
    regular(&mut builder, ".wh.late-dir");
    regular(&mut builder, ".wh.implicit");
    regular(&mut builder, "implicit/x");
    assert!(matches!(builder.hard_link(b"x", b"d/gone"), Err(TreeError::MissingTarget { .. })));
    for bad in [".wh.", ".wh..", ".wh...", "d/.wh."] {
        let error = builder.add(bad.as_bytes(), with(0), Content::Fifo).unwrap_err();
        assert!(matches!(error, TreeError::InvalidName { .. }), "{bad}");
    }
    let written = NewImage::of(builder.finish(), 0).unwrap();
    assert_eq!(written.nid(whiteout), None);
    let metadata = written.metadata();
    let files = walk::image(&Image::open(metadata.as_slice()).unwrap(), &[], usize::MAX).unwrap();
    let expected =
        ["", "d", "d/gone", "early", "early-dir", "implicit", "implicit/x", "late", "late-dir", "linked"];
    assert_eq!(names(&files), expected);
    let gone = &files[b"d/gone".as_slice()];
    assert_eq!((gone.kind, gone.rdev, gone.permissions, gone.uid), (Kind::CharDevice, (0, 0), 0, 7));
    assert_eq!(files[b"early".as_slice()].kind, Kind::Regular);
    for path in ["early-dir", "late-dir", "implicit"] {
        assert!(is_opaque(&files, path), "{path}");
    }
    assert!(!is_opaque(&files, "d"));
}

#[test]
fn opaque_directories() {
    let mut builder = TreeBuilder::new();
    regular(&mut builder, "a/.wh..wh..opq");
    builder.add(b"a", with(0o711), Content::Directory).unwrap();
    regular(&mut builder, ".wh..wh..opq");
    directory(&mut builder, "b");
    let files = seen(builder);
    assert_eq!(names(&files), ["", "a", "b"]);
    assert!(is_opaque(&files, "a") && is_opaque(&files, "") && !is_opaque(&files, "b"));
    assert_eq!(files[b"a".as_slice()].permissions, 0o711);
}

#[test]
fn what_aufs_left_behind() {
    let mut builder = TreeBuilder::new();
    directory(&mut builder, ".wh..wh.plnk");
    let id = regular(&mut builder, ".wh..wh.plnk/123");
    regular(&mut builder, ".wh..wh.aufs");
    builder.hard_link(b"bin/x", b".wh..wh.plnk/123").unwrap();
    regular(&mut builder, ".wh.dir/below");
    let written = NewImage::of(builder.finish(), 0).unwrap();
    let metadata = written.metadata();
    let files = walk::image(&Image::open(metadata.as_slice()).unwrap(), &[], usize::MAX).unwrap();
    assert_eq!(names(&files), ["", "bin", "bin/x"]);
    assert_eq!(files[b"bin/x".as_slice()].ino, written.nid(id).unwrap().0);
}

#[test]
fn attributes_that_an_image_must_not_have() {
    let xattr = |name: &str, value: &[u8]| Xattr { name: name.into(), value: value.into() };
    let mut attributes = with(0o4755);
    attributes.xattrs = vec![
        xattr("user.z", b"1"),
        xattr("trusted.overlay.redirect", b"/etc"),
        xattr("user.overlay.metacopy", b""),
        xattr("trusted.mark", b"root's"),
        xattr("com.apple.provenance", b"x"),
        xattr("system.other", b"x"),
        xattr("system.posix_acl_access", b"acl"),
        xattr("security.capability", b"cap"),
        xattr("user.z", b"2"),
        xattr("user.", b"no name"),
    ];
    let mut builder = TreeBuilder::new();
    builder.add(b"f", attributes, Content::Regular { tar_offset: 0, size: 0 }).unwrap();
    let files = seen(builder);
    let file = &files[b"f".as_slice()];
    assert_eq!(file.permissions, 0o4755);
    let xattrs: Vec<_> =
        file.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
    let expected: [(&[u8], &[u8]); 4] = [
        (b"security.capability", b"cap"),
        (b"system.posix_acl_access", b"acl"),
        (b"trusted.mark", b"root's"),
        (b"user.z", b"2"),
    ];
    assert_eq!(xattrs, expected);
}

#[test]
fn what_replaced_a_directory_is_no_parent() {
    let mut builder = TreeBuilder::new();
    regular(&mut builder, "a/b/first");
    regular(&mut builder, "a");
    let refused = builder.add(b"a/b/second", with(0o644), Content::Fifo).unwrap_err();
    assert!(matches!(refused, TreeError::ParentNotDirectory { .. }), "{refused:?}");
    directory(&mut builder, "a/");
    regular(&mut builder, "a/b/third");
    assert_eq!(names(&seen(builder)), ["", "a", "a/b", "a/b/third"]);
}

#[test]
fn bounds() {
    let add =
        |path: &[u8], attributes, content| TreeBuilder::new().add(path, attributes, content).unwrap_err();
    let fifo = || Content::Fifo;
    let xattrs = |name: &[u8], length| Attributes {
        xattrs: vec![Xattr { name: name.to_vec(), value: vec![0; length] }],
        ..with(0)
    };
    assert!(matches!(add(&b"x".repeat(256), with(0), fifo()), TreeError::NameTooLong { length: 256 }));
    assert!(matches!(add(&b"d/".repeat(2049), with(0), fifo()), TreeError::PathTooLong { .. }));
    assert!(matches!(add(b"a\0b", with(0), fifo()), TreeError::InvalidName { .. }));
    assert!(matches!(
        add(b"l", with(0), Content::Symlink(vec![])),
        TreeError::TargetLength { length: 0, .. }
    ));
    assert!(matches!(add(b"l", with(0), Content::Symlink(vec![b'x'; 4096])), TreeError::TargetLength { .. }));
    assert!(matches!(add(b"l", with(0), Content::Symlink(vec![0])), TreeError::InvalidName { .. }));
    let device = Content::CharDevice { major: 1 << 12, minor: 0 };
    assert!(matches!(add(b"c", with(0), device), TreeError::DeviceNumber { .. }));
    let device = Content::BlockDevice { major: 0, minor: 1 << 20 };
    assert!(matches!(add(b"c", with(0), device), TreeError::DeviceNumber { .. }));
    let late = Attributes { mtime_nsec: 1_000_000_000, ..with(0) };
    assert!(matches!(add(b"f", late, fifo()), TreeError::Time { .. }));
    assert!(matches!(add(b"f", xattrs(b"user.x", 65536), fifo()), TreeError::InvalidXattr { .. }));
    assert!(matches!(
        add(b"f", xattrs(&[b'u', b's', b'e', b'r', b'.', 0], 1), fifo()),
        TreeError::InvalidXattr { .. }
    ));
    let long = [b"user.".as_slice(), &[b'x'; 256]].concat();
    assert!(matches!(add(b"f", xattrs(&long, 1), fifo()), TreeError::InvalidXattr { .. }));
    let many = (0..5).map(|n| Xattr { name: format!("user.{n}").into(), value: vec![0; 65000] }).collect();
    assert!(matches!(
        add(b"f", Attributes { xattrs: many, ..with(0) }, fifo()),
        TreeError::InvalidXattr { .. }
    ));
}
