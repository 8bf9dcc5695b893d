//! Damaged archives: whatever becomes of them, nothing panics.

use pillbug::image::layer::{Compression, LayerLimits};
use pillbug::image::rootfs;
use proptest::prelude::*;
use tar::EntryType;

use crate::archive::Archive;
use crate::hostile::{convert, convert_with};

/// A sound archive with a few bytes of its headers changed and their checksums made right again.
fn damaged(changes: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut tar = Archive::new();
    tar.folder("d")
        .record("SCHILY.xattr.user.x", "y")
        .record("mtime", "1.5")
        .file("d/f", &[1; 2000]);
    tar.symlink("d/l", "f")
        .hard_link("d/h", "d/f")
        .device(EntryType::Char, "c", 1, 3);
    tar.record("GNU.sparse.major", "1")
        .record("GNU.sparse.minor", "0");
    tar.record("GNU.sparse.realsize", "9000")
        .file("s", &[&b"1\n8000\n5\n"[..], &[0; 503], b"12345"].concat());
    let mut archive = tar.finish();
    for (at, value) in changes {
        let at = at.index(archive.len());
        archive[at] = *value;
    }
    for header in archive
        .chunks_exact_mut(512)
        .filter(|block| &block[257..262] == b"ustar")
    {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(blob: Vec<u8>, kind in 0..3) {
        let compression = [Compression::None, Compression::Gzip, Compression::Zstd][kind as usize];
        let scratch = tempfile::tempdir().unwrap();
        let _ = convert_with(&blob, compression, &blob, &LayerLimits::default(), scratch.path());
    }

    #[test]
    fn damaged_archives_never_panic(changes: Vec<(prop::sample::Index, u8)>) {
        let archive = damaged(&changes);
        let scratch = tempfile::tempdir().unwrap();
        let layer = scratch.path().join("layer");
        if convert(&archive, &layer).is_ok() {
            let _ = rootfs::build(&[layer], &scratch.path().join("metadata"));
        }
    }
}
