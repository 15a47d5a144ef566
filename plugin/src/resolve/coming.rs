//! The layers of an image between the moment in which its index is known and their Prepares.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use lazy_layer::{Attachment, Layer};
use oci_spec::image::Digest;
use parking_lot::Mutex;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Coming {
    /// Whether they are being made ahead.
    begun: AtomicBool,
    layers: Mutex<HashMap<Digest, Stage>>,
    /// Those that are going to be layer files.
    all: OnceLock<All>,
    /// Whether all of them could be read at the same time.
    whole: AtomicBool,
}

#[derive(Debug)]
struct All {
    /// The lowest first.
    coming: Vec<Digest>,
    /// Those that have been there, of another image, the uppermost first.
    below: Vec<Weak<Layer>>,
}

/// How far a layer is.
#[derive(Debug)]
enum Stage {
    /// Made before its Prepare came: open, so that it is not made or opened a second time, and with its source.
    Held(Arc<Layer>, Attachment),
    /// Its Prepare has come; nobody else is to hold the file open, so that its disk space is freed with its last snapshot.
    Taken,
    /// Its Prepare has given it a source.
    Ready(Weak<Layer>),
}

impl Coming {
    /// True the first time that it is called.
    pub(super) fn begin(&self) -> bool {
        !self.begun.swap(true, Ordering::Relaxed)
    }

    /// These layers of the image are going to be layer files, the lowest first, on top of those `below`, the uppermost first.
    pub(super) fn expect(&self, coming: Vec<Digest>, below: &[Arc<Layer>]) {
        let _ = self.all.set(All { coming, below: below.iter().map(Arc::downgrade).collect() });
    }

    /// Keeps a layer file open until its Prepare comes, unless it has.
    pub(super) fn hold(&self, layer: Arc<Layer>, source: Attachment) {
        let mut layers = self.layers.lock();
        if let Entry::Vacant(place) = layers.entry(layer.key().layer.clone()) {
            place.insert(Stage::Held(layer, source));
        }
    }

    /// The Prepare of a layer comes: the file and its source, if it was made ahead.
    pub(super) fn take(&self, layer: &Digest) -> Option<(Arc<Layer>, Attachment)> {
        match self.layers.lock().insert(layer.clone(), Stage::Taken) {
            Some(Stage::Held(layer, source)) => Some((layer, source)),
            Some(Stage::Taken | Stage::Ready(_)) | None => None,
        }
    }

    /// The Prepare of a layer has given it a source.
    pub(super) fn ready(&self, layer: &Arc<Layer>) {
        self.layers.lock().insert(layer.key().layer.clone(), Stage::Ready(Arc::downgrade(layer)));
    }

    pub(super) fn is_taken(&self, layer: &Digest) -> bool {
        matches!(self.layers.lock().get(layer), Some(Stage::Taken | Stage::Ready(_)))
    }

    /// The layer files, the uppermost first, as soon as all of them can be read; once.
    pub(super) fn whole(&self) -> Option<Vec<Arc<Layer>>> {
        let all = self.all.get()?;
        let mut from_above: Vec<_> = {
            let layers = self.layers.lock();
            let readable = |layer: &Digest| match layers.get(layer)? {
                Stage::Held(layer, _) => Some(Arc::clone(layer)),
                Stage::Ready(layer) => layer.upgrade(),
                Stage::Taken => None,
            };
            all.coming.iter().rev().map(readable).collect::<Option<_>>()?
        };
        from_above.extend(all.below.iter().filter_map(Weak::upgrade));
        (!self.whole.swap(true, Ordering::Relaxed)).then_some(from_above)
    }

    /// No Prepare is expected any more.
    pub(super) fn let_go(&self) {
        self.layers.lock().retain(|_, stage| !matches!(stage, Stage::Held(..)));
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::path::Path;
    use std::str::FromStr as _;

    use lazy_layer::{BlobSource, ByteStream, LayerKey, LayerStore, StoreOptions};
    use sha2::{Digest as _, Sha256};
    use ztoc::CompressedOffset;

    use super::*;

    /// Never answers.
    #[derive(Debug)]
    struct Silent;

    impl BlobSource for Silent {
        fn host(&self) -> Arc<str> {
            "nowhere".into()
        }

        fn read(&self, _: Range<CompressedOffset>) -> ByteStream {
            Box::pin(futures_util::stream::pending())
        }
    }

    fn golden(name: &str) -> (Vec<u8>, Digest) {
        let bytes =
            std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)).unwrap();
        let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        (bytes, Digest::from_str(&format!("sha256:{hex}")).unwrap())
    }

    #[test]
    fn an_image_is_whole_once_whether_its_layers_are_held_or_mounted() {
        let root = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = LayerStore::open(StoreOptions::new(root.path()), runtime.handle().clone()).unwrap();
        let make = |name: &str| {
            let ((_, layer), (ztoc, digest)) =
                (golden(&format!("layers/{name}.tgz")), golden(&format!("ztoc/head/{name}.s65536.ztoc")));
            store.create_layer(&LayerKey { layer, ztoc: digest }, &ztoc).unwrap()
        };
        let (lower, upper, base) = (make("gnu-gzip6"), make("pax-gzip9"), make("whiteouts"));
        let (below, above) = (&lower.key().layer, &upper.key().layer);
        let coming = Coming::default();
        assert!(coming.begin() && !coming.begin());

        assert!(coming.take(below).is_none() && coming.is_taken(below));
        coming.hold(Arc::clone(&upper), upper.attach(Arc::new(Silent)));
        coming.expect(vec![below.clone(), above.clone()], std::slice::from_ref(&base));
        assert!(coming.whole().is_none(), "the lower one has no source yet");
        // Its file is not held beside whoever mounts it.
        coming.hold(Arc::clone(&lower), lower.attach(Arc::new(Silent)));
        assert!(coming.whole().is_none());

        let source = lower.attach(Arc::new(Silent));
        coming.ready(&lower);
        let whole = coming.whole().unwrap();
        let expected = [&upper, &lower, &base];
        assert!(whole.len() == 3 && whole.iter().zip(expected).all(|(a, b)| Arc::ptr_eq(a, b)));
        assert!(coming.whole().is_none(), "once");

        assert!(coming.take(above).is_some_and(|(held, _)| Arc::ptr_eq(&held, &upper)));
        coming.let_go();
        assert!(coming.is_taken(above) && coming.is_taken(below));
        drop((whole, source));
        assert_eq!([&lower, &upper, &base].map(Arc::strong_count), [1; 3], "nobody else holds them");
    }
}
