//! Which mounts make a snapshot.

use std::path::PathBuf;

use super::record::Kind;

/// One mount for containerd to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// What is mounted.
    pub source: String,
    /// In the order of upstream's.
    pub options: Vec<String>,
}

/// What a snapshot's mounts are made of.
#[derive(Clone, Debug)]
pub struct Layers {
    /// Of the snapshot: active or view.
    pub kind: Kind,
    /// Its own directory (`fs`).
    pub upper: PathBuf,
    /// overlay's scratch directory beside it.
    pub work: PathBuf,
    /// Directories of its ancestors, nearest first.
    pub lower: Vec<PathBuf>,
    /// Whether the nearest of them is a lazily loaded layer.
    pub lazy: bool,
}

/// What the kernel at hand wants to hear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// In a user namespace overlay keeps its own attributes under `user.overlay.` and has to be told.
    pub userxattr: bool,
    /// overlay keeps an index of hard links unless it is told not to. A layer may be another file system at the next start of its container
    /// (FUSE, EROFS), which an index does not bear.
    pub no_index: bool,
}

// === impl OverlayOptions ===

impl OverlayOptions {
    /// For this process: `userxattr` is needed, and allowed without privilege over the machine, exactly in a user namespace.
    #[must_use]
    pub fn of_this_system() -> OverlayOptions {
        let mapping = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let index = std::fs::read_to_string("/sys/module/overlay/parameters/index").unwrap_or_default();
        OverlayOptions { userxattr: in_user_namespace(&mapping), no_index: index.trim() == "Y" }
    }
}

/// The initial namespace maps all 2^32 - 1 ids onto themselves.
fn in_user_namespace(uid_map: &str) -> bool {
    let mut words = uid_map.split_whitespace();
    let whole = [Some("0"), Some("0"), Some("4294967295")];
    !uid_map.trim().is_empty() && [words.next(), words.next(), words.next()] != whole
}

// === impl Layers ===

impl Layers {
    /// A bind mount where there is nothing to overlay, else an overlay.
    ///
    /// A view of one lazy layer is an overlay too, with its own empty directory below: a FUSE mount without `default_permissions`
    /// leaves permission bits to its server, overlayfs has the kernel check them.
    #[must_use]
    pub fn mounts(&self, options: OverlayOptions) -> Vec<Mount> {
        let readonly = self.kind != Kind::Active;
        let bind = |source: &PathBuf| Mount {
            kind: "bind",
            source: source.display().to_string(),
            options: vec![if readonly { "ro".into() } else { "rw".into() }, "rbind".into()],
        };
        match self.lower.as_slice() {
            [] => return vec![bind(&self.upper)],
            [only] if readonly && !self.lazy => return vec![bind(only)],
            _ => {}
        }
        let mut list = Vec::new();
        if !readonly {
            list.push(format!("workdir={}", self.work.display()));
            list.push(format!("upperdir={}", self.upper.display()));
            if options.no_index {
                list.push("index=off".into());
            }
        }
        let mut lower: Vec<String> = self.lower.iter().map(|path| path.display().to_string()).collect();
        if readonly && lower.len() == 1 {
            lower.push(self.upper.display().to_string());
        }
        list.push(format!("lowerdir={}", lower.join(":")));
        if options.userxattr {
            list.push("userxattr".into());
        }
        vec![Mount { kind: "overlay", source: "overlay".into(), options: list }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(kind: Kind, lower: &[&str], userxattr: bool) -> Mount {
        mounts_of(kind, lower, false, userxattr)
    }

    fn mounts_of(kind: Kind, lower: &[&str], lazy: bool, userxattr: bool) -> Mount {
        let layers = Layers {
            kind,
            lazy,
            upper: "/s/9/fs".into(),
            work: "/s/9/work".into(),
            lower: lower.iter().map(PathBuf::from).collect(),
        };
        let mut list = layers.mounts(OverlayOptions { userxattr, ..OverlayOptions::default() });
        assert_eq!(list.len(), 1);
        list.remove(0)
    }

    #[test]
    fn as_upstream_makes_them() {
        let mount = mounts(Kind::Active, &[], false);
        assert_eq!((mount.kind, mount.source.as_str()), ("bind", "/s/9/fs"));
        assert_eq!(mount.options, ["rw", "rbind"]);
        let mount = mounts(Kind::View, &[], false);
        assert_eq!(
            (mount.source.as_str(), mount.options),
            ("/s/9/fs", vec!["ro".to_owned(), "rbind".to_owned()])
        );
        let mount = mounts(Kind::View, &["/s/1/fs"], true);
        assert_eq!((mount.kind, mount.source.as_str()), ("bind", "/s/1/fs"));
        let mount = mounts(Kind::View, &["/s/2/fs", "/s/1/fs"], false);
        assert_eq!((mount.kind, mount.source.as_str()), ("overlay", "overlay"));
        assert_eq!(mount.options, ["lowerdir=/s/2/fs:/s/1/fs"]);
        let mount = mounts(Kind::Active, &["/s/2/fs", "/s/1/fs"], true);
        assert_eq!(
            mount.options,
            ["workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/2/fs:/s/1/fs", "userxattr"]
        );
    }

    #[test]
    fn the_kernel_checks_permissions_of_a_view_of_one_lazy_layer() {
        let mount = mounts_of(Kind::View, &["/s/1/fs"], true, false);
        assert_eq!((mount.kind, mount.options), ("overlay", vec!["lowerdir=/s/1/fs:/s/9/fs".to_owned()]));
        let mount = mounts_of(Kind::Active, &["/s/1/fs"], true, false);
        assert_eq!(mount.options, ["workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/1/fs"]);
    }

    #[test]
    fn overlay_keeps_no_index() {
        let layers = Layers {
            kind: Kind::Active,
            lazy: true,
            upper: "/s/9/fs".into(),
            work: "/s/9/work".into(),
            lower: vec!["/s/1/erofs".into()],
        };
        let mounts = layers.mounts(OverlayOptions { no_index: true, ..OverlayOptions::default() });
        assert!(mounts[0].options.contains(&"index=off".to_owned()), "{mounts:?}");
    }

    #[test]
    fn user_namespaces_are_told_by_their_map() {
        assert!(!in_user_namespace("         0          0 4294967295\n"));
        assert!(in_user_namespace("         0     100000      65536\n"));
        assert!(!in_user_namespace(""));
    }
}
