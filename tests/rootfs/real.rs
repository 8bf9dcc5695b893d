//! Real images, as tests/images makes them from Debian's packages.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::mount::run;
use crate::{assert_equal_to_umoci, is_root, layout, mount};

/// The folder with the layouts of an image.
fn real_image(name: &str) -> PathBuf {
    let output = run(Command::new("tests/images/build.sh").arg(name)).unwrap();
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

fn assert_real_image(name: &str, form: &str) {
    if is_root() {
        let layout = real_image(name).join(form);
        assert_equal_to_umoci(
            &layout,
            &format!("{name}:latest"),
            &layout::layers_of(&layout),
        );
    }
}

#[test]
fn busybox_is_as_umoci_unpacks_it() {
    assert_real_image("busybox", "oci");
}

#[test]
fn debian_is_as_umoci_unpacks_it() {
    assert_real_image("debian", "oci");
}

#[test]
fn python_on_debian_is_as_umoci_unpacks_it() {
    assert_real_image("python", "oci");
}

#[test]
fn a_converted_image_is_hardly_larger_than_its_archives() {
    if !is_root() {
        return;
    }
    let layout = real_image("python").join("oci");
    let scratch = tempfile::tempdir().unwrap();
    let converted = mount::convert(&layout::layers_of(&layout), scratch.path()).unwrap();
    let folders: Vec<_> = converted.iter().map(|(folder, _)| folder.clone()).collect();
    let metadata = scratch.path().join("metadata");
    let summary = pillbug::image::rootfs::build(&folders, &metadata).unwrap();
    let stored: u64 = summary.rootfs.parts.iter().map(|(_, bytes)| bytes).sum();
    let archives: u64 = converted
        .iter()
        .map(|(_, summary)| summary.archive_bytes)
        .sum();
    assert!(
        stored * 100 < archives * 115,
        "{stored} bytes for {archives}"
    );
    // The same layers give the same bytes.
    let again = scratch.path().join("again");
    pillbug::image::rootfs::build(&folders, &again).unwrap();
    assert!(fs::read(metadata).unwrap() == fs::read(again).unwrap());
}
