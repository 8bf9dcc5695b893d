//! Images made to hurt: each is refused or harmless, and the host is as before.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use predicates::{prelude::*, str::contains};
use serde_json::json;
use tar::EntryType;
use tempfile::TempDir;

use crate::{
    command::{output_of, pillbug, run, state_root, traces},
    image::{Image, Layer, Layout, digest},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Loading `layout` fails with a reason and leaves nothing.
fn refused(layout: &str) {
    let before = traces(&state_root());
    pillbug()
        .args(["load", "-i", layout])
        .assert()
        .code(125)
        .stdout("")
        .stderr(contains("pillbug: ").and(contains("panicked").not()));
    assert_eq!(traces(&state_root()), before);
}

#[test]
fn a23_names_that_climb_out_are_confined() {
    let folder = TempDir::new().expect("a temporary folder");
    let canary = folder.path().join("canary");
    fs::write(&canary, "untouched").expect("the folder is writable");
    let canary_name = canary.to_str().expect("a plain name");
    let names = [
        "../escaped",
        "a/../../../escaped",
        "/absolute",
        "./",
        "/.",
        "..",
        canary_name,
    ];
    for name in names {
        let layer = Layer::busybox().file(name, 0o644, b"evil");
        let layout = Image::new()
            .layer(layer)
            .write(&folder.path().join("layout"));
        let before = traces(&state_root());
        // Either all of the image is refused or the name means something inside.
        run([&*layout, "echo", "inside"])
            .assert()
            .code(predicate::in_iter([0, 125]))
            .stderr(contains("panicked").not());
        assert_eq!(
            fs::read_to_string(&canary).expect("it is there"),
            "untouched",
            "{name}"
        );
        assert!(!folder.path().join("escaped").exists());
        assert!(!Path::new("/escaped").exists() && !Path::new("/absolute").exists());
        let appeared: Vec<_> = traces(&state_root())
            .difference(&before)
            .filter(|path| path.to_string_lossy().contains("escaped"))
            .cloned()
            .collect();
        assert!(appeared.is_empty(), "{name}: {appeared:?}");
        fs::remove_dir_all(folder.path().join("layout")).expect("it is ours");
    }
}

#[test]
fn a24_links_lead_nowhere_outside() {
    let folder = TempDir::new().expect("a temporary folder");
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).expect("the folder is writable");
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let target = outside.to_str().expect("a plain name");
    let layer = Layer::busybox()
        .symbolic_link("swap", target)
        .entry("swap", EntryType::Directory, 0o777, "", &[])
        .symbolic_link("through", target)
        .file("through/written", 0o644, b"evil")
        .hard_link("linked", "through/written");
    let layout = Image::new()
        .layer(layer)
        .write(&folder.path().join("layout"));
    run([&*layout, "echo", "inside"])
        .assert()
        .code(predicate::in_iter([0, 125]));
    assert_eq!(fs::read_dir(&outside).expect("it is there").count(), 0);
    let mode = fs::metadata(&outside)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn a27_nothing_dangerous_is_live_on_the_host() {
    let folder = TempDir::new().expect("a temporary folder");
    // VFS_CAP_REVISION_2, effective, CAP_NET_RAW permitted.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let layer = Layer::busybox()
        .entry("null", EntryType::Char, 0o666, "", &[])
        .file("setuid", 0o4755, b"#!/bin/sh\n")
        .attributes(&[("SCHILY.xattr.security.capability", &capability)])
        .file("capable", 0o755, b"#!/bin/sh\n")
        .attributes(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .folder("opaque");
    let layout = Image::new().layer(layer).write(folder.path());
    let script = "stat -c '%a %F' null setuid; cd /opaque && ls -a | head -n 3 && echo there";
    let output = output_of(["-w", "/", &*layout, "sh", "-c", script]);
    assert!(
        output.starts_with("666 character special file\n4755 regular file\n"),
        "{output}"
    );
    assert!(output.ends_with("there\n"), "{output}");

    assert_eq!(
        mode(&state_root()) & 0o077,
        0,
        "the store is its owner's alone"
    );
    for path in traces(&state_root()) {
        if path.starts_with("/proc") {
            continue;
        }
        let kind = fs::symlink_metadata(&path).expect("it is there");
        assert!(
            kind.is_file() || kind.is_dir() || kind.is_symlink(),
            "{}",
            path.display()
        );
        assert_eq!(kind.mode() & 0o6000, 0, "{} is setuid", path.display());
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").mode()
}

/// A layout whose parts `change` has had its way with before they are tied together.
fn tampered(
    folder: &Path,
    change: impl FnOnce(&Layout, &mut serde_json::Value, &mut serde_json::Value),
) -> String {
    let layout = Layout::new(folder);
    let bytes = Layer::busybox().finish();
    let mut layer = layout.blob(LAYER, &bytes);
    let mut config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [digest(&bytes)] },
    });
    change(&layout, &mut layer, &mut config);
    let config = layout.blob(CONFIG, config.to_string().as_bytes());
    layout.manifest(&json!({ "schemaVersion": 2, "config": config, "layers": [layer] }));
    layout.path()
}

#[test]
fn a30_a_blob_that_is_not_what_its_digest_says_is_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    refused(&tampered(folder.path(), |layout, layer, _| {
        let path = layout.blob_path(layer["digest"].as_str().expect("a digest"));
        let mut bytes = fs::read(&path).expect("it was just written");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).expect("the folder is writable");
    }));
}

#[test]
fn a30_a_layer_that_is_not_what_the_configuration_says_is_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    refused(&tampered(folder.path(), |_, _, config| {
        config["rootfs"]["diff_ids"] = json!([digest(b"another")]);
    }));
}

#[test]
fn a30_wrong_sizes_are_refused() {
    for size in [
        json!(1),
        json!(u64::MAX),
        json!(-1),
        json!("1"),
        json!(1_u64 << 40),
    ] {
        let folder = TempDir::new().expect("a temporary folder");
        refused(&tampered(folder.path(), |_, layer, _| {
            layer["size"] = size.clone();
        }));
    }
}

#[test]
fn a32_digests_that_are_paths_or_unknown_are_refused() {
    for bad in [
        "sha256:../../x",
        "sha256:",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "../x:y",
        "sha256:ABCDEF",
        "",
    ] {
        let folder = TempDir::new().expect("a temporary folder");
        refused(&tampered(folder.path(), |_, layer, _| {
            layer["digest"] = json!(bad);
        }));
        let folder = TempDir::new().expect("a temporary folder");
        let layout = Layout::new(folder.path());
        layout.index(&json!({ "schemaVersion": 2, "manifests": [{ "mediaType": MANIFEST, "digest": bad, "size": 2 }] }));
        refused(&layout.path());
    }
}

#[test]
fn a33_a_manifest_that_is_an_index_as_well_is_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    let layout = Layout::new(folder.path());
    let config = layout.blob(CONFIG, b"{}");
    layout
        .manifest(&json!({ "schemaVersion": 2, "config": config, "layers": [], "manifests": [] }));
    refused(&layout.path());
}

#[test]
fn a33_an_index_of_indexes_without_end_is_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    let layout = Layout::new(folder.path());
    let mut entry = layout.blob(MANIFEST, b"{}");
    for _ in 0..1000 {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        entry = layout.blob(INDEX, index.to_string().as_bytes());
    }
    layout.index(&json!({ "schemaVersion": 2, "manifests": [entry] }));
    refused(&layout.path());
}

#[test]
fn a33_an_image_without_layers_is_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    refused(&Image::new().write(folder.path()));
}

#[test]
fn a33_blobs_that_are_links_are_not_followed() {
    let folder = TempDir::new().expect("a temporary folder");
    refused(&tampered(folder.path(), |layout, layer, _| {
        let path = layout.blob_path(layer["digest"].as_str().expect("a digest"));
        let elsewhere = path.with_extension("elsewhere");
        fs::rename(&path, &elsewhere).expect("the folder is writable");
        std::os::unix::fs::symlink(elsewhere, path).expect("the folder is writable");
    }));
}

#[test]
fn a35_an_images_passwd_of_any_size_makes_nobody_root() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut large = b"root:x:0:0::/:/bin/sh\n".to_vec();
    large.extend(b"filler:x:1:1:a name of some length:/:/bin/sh\n".repeat(200_000));
    large.extend(b"last:x:77:77::/:/bin/sh\n");
    let layer = Layer::busybox().file("etc/passwd", 0o644, &large);
    let layout = Image::new().layer(layer).write(folder.path());
    // Bounded reading may miss the user; it never takes it for another.
    run(["-u", "last", &*layout, "id", "-u"])
        .assert()
        .code(predicate::in_iter([0, 125]))
        .stdout(predicate::in_iter(["77\n", ""]));
}
