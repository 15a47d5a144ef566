//! A damaged image is an error or another tree, never a panic or an endless walk.

use erofs_image::{Image, Nid, ReadError};

use crate::random::{self, Random};
use crate::round_trip::file;
use crate::walk;

#[test]
fn random_damage() {
    let mut random = Random::new("random_damage");
    let mut refused = 0;
    for _ in 0..20 {
        let good = file(&random::layer(&mut random, 40));
        let metadata = Image::open(good.as_slice()).unwrap().tar_start();
        for _ in 0..200 {
            let mut bad = good.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(metadata) as usize;
                bad[at] = match random.below(4) {
                    0 => 0,
                    1 => 0xff,
                    2 => bad[at] ^ (1 << random.below(8)),
                    _ => random.next() as u8,
                };
            }
            let walked = Image::open(bad.as_slice()).and_then(|image| walk::image(&image, &bad, 500));
            refused += usize::from(walked.is_err());
        }
    }
    assert!(refused > 100, "only {refused} of 4000 damaged images were refused");
}

#[test]
fn every_truncation_is_refused() {
    let mut random = Random::new("every_truncation_is_refused");
    let good = file(&random::layer(&mut random, 20));
    let metadata = Image::open(good.as_slice()).unwrap().tar_start() as usize;
    for length in 0..metadata {
        assert!(matches!(Image::open(&good[..length]), Err(ReadError::Truncated { .. })));
    }
    assert!(Image::open(&good[..metadata]).is_ok());
}

#[test]
fn every_nid_and_every_cookie() {
    let mut random = Random::new("every_nid_and_every_cookie");
    let good = file(&random::layer(&mut random, 60));
    let image = Image::open(good.as_slice()).unwrap();
    let nids = (0..image.tar_start() / 32 + 100).chain([u64::MAX, u64::MAX / 32, 1 << 59]);
    for nid in nids.map(Nid) {
        let _ = image.read_link(nid);
        let _ = image.lookup(nid, b"name");
        let _ = image.xattrs(nid).map(Iterator::count);
        for cookie in [0, 1, 63, 64, 1000, random.next(), u64::MAX] {
            let _ = image.read_dir(nid, cookie).map(Iterator::count);
        }
    }
    assert!(matches!(image.inode(Nid(0)), Err(ReadError::Inode { .. })));
    assert!(matches!(image.read_link(image.root()), Err(ReadError::NotASymlink { .. })));
}
