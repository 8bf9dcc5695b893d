//! Layers made to do harm, and what they must get: an error that names the entry, nothing left behind, and no
//! file of the host touched.

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::write::GzEncoder;
use pillbug::image::digest::{Algorithm, Digest};
use pillbug::image::layer::{self, Compression, LayerError, LayerLimits, LayerSummary};
use pillbug::image::rootfs::{self, RootfsError, RootfsSummary};
use tar::EntryType;

use crate::archive::Archive;
use crate::mount::{Mounted, chain};
use crate::{is_root, listing};

pub fn convert_with(
    blob: &[u8],
    compression: Compression,
    archive: &[u8],
    limits: &LayerLimits,
    into: &Path,
) -> Result<LayerSummary, LayerError> {
    fs::create_dir_all(into).unwrap();
    let diff_id = Digest::of(archive);
    let result = layer::convert(Cursor::new(blob), compression, &diff_id, limits, into);
    if result.is_err() {
        assert_eq!(
            fs::read_dir(into).unwrap().count(),
            0,
            "something was left behind"
        );
    }
    result
}

pub fn convert(archive: &[u8], into: &Path) -> Result<LayerSummary, LayerError> {
    convert_with(
        archive,
        Compression::None,
        archive,
        &LayerLimits::default(),
        into,
    )
}

/// Why a layer is refused.
fn refusal(archive: &[u8]) -> String {
    let scratch = tempfile::tempdir().unwrap();
    chain(&convert(archive, scratch.path()).unwrap_err())
}

fn build(archives: &[Vec<u8>], scratch: &Path) -> Result<RootfsSummary, RootfsError> {
    let mut folders = Vec::new();
    for (number, archive) in archives.iter().enumerate() {
        folders.push(scratch.join(number.to_string()));
        convert(archive, &folders[number]).unwrap();
    }
    rootfs::build(&folders, &scratch.join("metadata"))
}

#[test]
fn a23_names_that_leave_the_root_are_refused_and_canaries_stay() {
    let scratch = tempfile::tempdir().unwrap();
    let canary = scratch.path().join("canary");
    fs::write(&canary, "alive").unwrap();
    let into = scratch.path().join("layers/one");
    for name in [
        "../canary",
        "../../canary",
        "a/../../canary",
        "/../canary",
        "..",
    ] {
        let error = chain(
            &convert(Archive::new().file(name, b"dead").finish().as_ref(), &into).unwrap_err(),
        );
        assert!(
            error.contains("leaves the root") && error.contains(name),
            "{error}"
        );
        let link = Archive::new().hard_link("x", name).finish();
        assert!(chain(&convert(&link, &into).unwrap_err()).contains("leaves the root"));
    }
    let absolute = canary.to_str().unwrap();
    convert(&Archive::new().file(absolute, b"dead").finish(), &into).unwrap();
    assert_eq!(fs::read_to_string(&canary).unwrap(), "alive");
}

#[test]
fn a23_names_that_no_file_has_are_refused() {
    assert!(
        refusal(
            &Archive::new()
                .record("path", b"a\0b")
                .file("x", b"")
                .finish()
        )
        .contains("zero byte")
    );
    assert!(refusal(&Archive::new().file("x".repeat(256), b"").finish()).contains("component"));
    assert!(refusal(&Archive::new().file("/.", b"").finish()).contains("root folder"));
    assert!(refusal(&Archive::new().symlink("x", "").finish()).contains("empty target"));
    assert!(refusal(&Archive::new().file(".wh.", b"").finish()).contains("whiteout"));
    assert!(refusal(&Archive::new().file("a/.wh...", b"").finish()).contains("whiteout"));
}

#[test]
fn a24_links_lead_through_the_image_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "alive").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o700)).unwrap();
    let path = outside.to_str().unwrap();
    let mut tar = Archive::new();
    tar.folder("./")
        .symlink("link", path)
        .file("link/file", b"dead");
    tar.mode(0o777).folder("link").file("link/file", b"dead");
    tar.symlink("up", "../../../../..")
        .hard_link("stolen", format!("up{path}/file"));
    let summary = build(&[tar.finish()], &scratch.path().join("work")).unwrap();
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "alive");
    assert_eq!(
        fs::metadata(&outside).unwrap().permissions().mode() & 0o777,
        0o700
    );
    if is_root() {
        let mounted = Mounted::new(&summary.rootfs, scratch.path());
        assert_eq!(fs::read(mounted.folder.join("stolen")).unwrap(), b"dead");
        assert!(mounted.folder.join("link/file").is_file());
    }
}

#[test]
fn a24_hard_links_to_nothing_and_to_folders_are_refused() {
    let cases = [
        (Archive::new().hard_link("x", "y").finish(), "not there"),
        (
            Archive::new().folder("y").hard_link("x", "y").finish(),
            "a folder",
        ),
        (
            Archive::new().file("y", b"").file("y/z", b"").finish(),
            "no folder",
        ),
    ];
    for (archive, reason) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let error = chain(&build(&[archive], scratch.path()).unwrap_err());
        assert!(error.contains(reason), "{error}");
        assert!(!scratch.path().join("metadata").exists());
    }
}

#[test]
fn a27_an_image_cannot_steer_the_overlay_and_nothing_of_it_is_live() {
    let scratch = tempfile::tempdir().unwrap();
    let mut tar = Archive::new();
    tar.folder("./").file("hidden", b"below");
    tar.record("SCHILY.xattr.trusted.overlay.opaque", "y")
        .record("SCHILY.xattr.trusted.kept", "y");
    tar.record("SCHILY.xattr.user.overlay.redirect", "/")
        .record("SCHILY.xattr.com.other", "x");
    tar.mode(0o7777).file("file", &[b'#'; 5000]);
    tar.device(EntryType::Block, "disk", 8, 0);
    let above = Archive::new()
        .device(EntryType::Char, "hidden", 0, 0)
        .finish();
    let summary = build(&[tar.finish(), above], scratch.path()).unwrap();
    for (part, _) in &summary.rootfs.parts {
        let metadata = fs::metadata(part).unwrap();
        assert!(metadata.is_file() && metadata.permissions().mode() & 0o7111 == 0);
    }
    if is_root() {
        let mounted = Mounted::new(&summary.rootfs, scratch.path());
        let items = listing::walk(&mounted.folder);
        let names: Vec<_> = items[Path::new("file")].xattrs.keys().collect();
        assert_eq!(names, ["trusted.kept"]);
        assert!(
            !items.contains_key(Path::new("hidden")),
            "a device 0/0 is overlayfs's whiteout"
        );
        assert!(items.contains_key(Path::new("disk")));
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a28_bombs_stop_at_the_byte_budget() {
    let limits = LayerLimits {
        bytes: 8 << 20,
        ..LayerLimits::default()
    };
    let zeros = vec![0; 16 << 20];
    let archive = Archive::new().file("bomb", &zeros).finish();
    let scratch = tempfile::tempdir().unwrap();
    let members = gzip(&zeros[..1 << 20]).repeat(16);
    let zstd = zstd::encode_all(&archive[..], 19).unwrap();
    for (blob, compression) in [
        (&archive, Compression::None),
        (&gzip(&archive), Compression::Gzip),
        (&members, Compression::Gzip),
        (&zstd, Compression::Zstd),
    ] {
        let error = convert_with(blob, compression, &archive, &limits, scratch.path());
        // Zeros alone are an empty archive with trailing bytes, which count all the same.
        assert!(
            matches!(error, Err(LayerError::TooLarge(_))),
            "{compression}: {error:?}"
        );
    }
    let small = LayerLimits {
        bytes: 64 << 10,
        ..LayerLimits::default()
    };
    let mut many = Archive::new();
    for number in 0..32 {
        many.file(number.to_string(), &[1; 1025]);
    }
    let many = many.finish();
    let error = convert_with(&many, Compression::None, &many, &small, scratch.path());
    assert!(
        matches!(error, Err(LayerError::TooLarge(_))),
        "blocks count, not bytes: {error:?}"
    );
}

#[test]
fn a28_implausible_ratios_are_refused() {
    let blob = gzip(&vec![0; 16 << 20]);
    let scratch = tempfile::tempdir().unwrap();
    let limits = LayerLimits {
        ratio_from: 8 << 20,
        ..LayerLimits::default()
    };
    let error = convert_with(&blob, Compression::Gzip, b"", &limits, scratch.path());
    assert!(matches!(error, Err(LayerError::Ratio(200))), "{error:?}");
}

#[test]
fn a28_a_huge_window_is_refused() {
    // A frame header alone: magic, no checksum and no content size, a window of 2^31 bytes.
    let blob = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    let scratch = tempfile::tempdir().unwrap();
    let error = convert_with(
        &blob,
        Compression::Zstd,
        b"",
        &LayerLimits::default(),
        scratch.path(),
    );
    assert!(
        matches!(error, Err(LayerError::Decompress(..))),
        "{error:?}"
    );
}

#[test]
fn a28_many_members_and_frames_are_one_archive() {
    let archive = Archive::new().file("file", &[7; 10_000]).finish();
    let halves = archive.split_at(5000);
    let members = [gzip(halves.0), gzip(halves.1)].concat();
    let frame = |bytes| zstd::encode_all(bytes, 3).unwrap();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
    let frames = [frame(halves.0), skippable.to_vec(), frame(halves.1)].concat();
    for (blob, compression) in [(members, Compression::Gzip), (frames, Compression::Zstd)] {
        let scratch = tempfile::tempdir().unwrap();
        let limits = LayerLimits::default();
        let summary = convert_with(&blob, compression, &archive, &limits, scratch.path()).unwrap();
        assert_eq!(summary.archive_bytes, archive.len() as u64);
    }
}

#[test]
fn a29_entries_and_depth_are_capped() {
    let limits = LayerLimits {
        entries: 100,
        index_bytes: 64 << 10,
        ..LayerLimits::default()
    };
    let scratch = tempfile::tempdir().unwrap();
    let mut many = Archive::new();
    let mut long = Archive::new();
    for number in 0..101 {
        many.folder(number.to_string());
        long.folder(format!("{}{number}", "long/".repeat(200)));
    }
    let (many, long) = (many.finish(), long.finish());
    let error = convert_with(&many, Compression::None, &many, &limits, scratch.path());
    assert!(
        matches!(error, Err(LayerError::TooManyEntries(100))),
        "{error:?}"
    );
    let error = convert_with(&long, Compression::None, &long, &limits, scratch.path());
    assert!(
        matches!(error, Err(LayerError::IndexTooLarge(_))),
        "{error:?}"
    );
    assert!(refusal(&Archive::new().folder("d/".repeat(4000)).finish()).contains("longer than"));
    build(
        &[Archive::new().folder("d/".repeat(2000)).finish()],
        scratch.path(),
    )
    .unwrap();
}

/// Each of these would take minutes if its time grew with the square of its entries.
#[test]
fn a29_time_grows_with_the_entries_alone() {
    const MANY: usize = 20_000;
    let mut links = Archive::new();
    links.file("0", b"x");
    let mut whiteouts = Archive::new();
    let mut nested = Archive::new();
    for number in 1..MANY {
        links.hard_link(number.to_string(), "0");
        whiteouts
            .file(format!("folder/{number}"), b"")
            .file(".wh.folder", b"");
        nested.file(format!("nested/{number}/.wh..wh..opq"), b"");
        nested
            .file(format!("nested/{number}/x"), b"")
            .file("nested/.wh..wh..opq", b"");
    }
    let archives = [links.finish(), whiteouts.finish(), nested.finish()];
    let scratch = tempfile::tempdir().unwrap();
    let summary = build(&archives, scratch.path()).unwrap();
    assert_eq!(summary.inodes, 4 + 3 * (MANY as u64 - 1));
}

#[test]
fn a29_long_chains_of_links_are_cut_short() {
    let mut tar = Archive::new();
    tar.folder("end");
    let slow = |next: &str| format!("{}{next}", "./".repeat(2000));
    tar.symlink("0", slow("end"));
    for number in 1..39 {
        tar.symlink(number.to_string(), slow(&(number - 1).to_string()));
    }
    for number in 0..20_000 {
        tar.file(format!("38/{number}"), b"");
    }
    let scratch = tempfile::tempdir().unwrap();
    let error = chain(&build(&[tar.finish()], scratch.path()).unwrap_err());
    assert!(error.contains("too many symbolic links"), "{error}");
}

#[test]
fn a30_an_archive_other_than_promised_is_refused() {
    let archive = Archive::new().file("file", &[7; 10_000]).finish();
    let other = Archive::new().file("file", &[8; 10_000]).finish();
    let trailing = [&archive[..], b"more"].concat();
    let scratch = tempfile::tempdir().unwrap();
    let limits = LayerLimits::default();
    for blob in [&other, &trailing] {
        let error = convert_with(blob, Compression::None, &archive, &limits, scratch.path());
        assert!(matches!(error, Err(LayerError::DiffId { .. })), "{error:?}");
    }
    // What follows the end marker is part of what was hashed.
    convert(&trailing, scratch.path()).unwrap();
}

#[test]
fn a30_a_sha512_diff_id_is_checked_too() {
    let archive = Archive::new().file("file", b"x").finish();
    let mut hashed = pillbug::image::digest::Hasher::new(Algorithm::Sha512);
    hashed.update(&archive);
    let scratch = tempfile::tempdir().unwrap();
    let limits = LayerLimits::default();
    let diff_id = hashed.finish();
    layer::convert(
        &archive[..],
        Compression::None,
        &diff_id,
        &limits,
        scratch.path(),
    )
    .unwrap();
}

#[test]
fn a30_truncated_archives_are_refused() {
    let archive = Archive::new()
        .record("SCHILY.xattr.user.x", [7; 600])
        .file("file", &[7; 3000])
        .finish();
    let packed = gzip(&archive);
    let limits = LayerLimits::default();
    let scratch = tempfile::tempdir().unwrap();
    for length in (0..archive.len()).step_by(100) {
        let cut = convert_with(
            &archive[..length],
            Compression::None,
            &archive,
            &limits,
            scratch.path(),
        );
        assert!(cut.is_err(), "{length} bytes were taken for all");
    }
    for length in 0..packed.len() {
        let cut = convert_with(
            &packed[..length],
            Compression::Gzip,
            &archive,
            &limits,
            scratch.path(),
        );
        assert!(cut.is_err(), "{length} packed bytes were taken for all");
    }
}

#[test]
fn a30_a_layer_that_changed_on_disk_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let archive = Archive::new().file("file", &[7; 10_000]).finish();
    let layer = scratch.path().join("0");
    let summary = build(&[archive], scratch.path()).unwrap();
    let parts: Vec<_> = summary
        .rootfs
        .parts
        .iter()
        .map(|(_, bytes)| *bytes)
        .collect();
    assert_eq!(parts, [4096, 12_288]);
    let folders = [layer.clone()];
    let data = fs::File::options()
        .write(true)
        .open(layer.join("data"))
        .unwrap();
    data.set_len(8192).unwrap();
    let error = rootfs::build(&folders, &scratch.path().join("again")).unwrap_err();
    assert!(matches!(error, RootfsError::Size { .. }), "{error:?}");
    fs::write(layer.join("index"), "nonsense").unwrap();
    let error = rootfs::build(&folders, &scratch.path().join("again")).unwrap_err();
    assert!(matches!(error, RootfsError::Index(..)), "{error:?}");
}
