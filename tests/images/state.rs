//! Stores that somebody else controls.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
};

use crate::fixture::{Fixture, Packing, Place, fail};

/// Expects that no command works in the store, and that none changes it.
fn refused(place: &Place, word: &str) {
    let path = place.write(
        "image",
        &Fixture::new("state", &[Packing::Gzip])
            .named("a:1")
            .archive(),
    );
    let before = place.content();
    let images = place.pillbug(&["images"]).output().unwrap();
    for output in [images, place.load(&path)] {
        let error = fail(&output);
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(place.content(), before);
}

fn used() -> Place {
    let place = Place::new();
    let path = place.write("image", &Fixture::new("used", &[Packing::Gzip]).archive());
    place.load_well(&path);
    place
}

#[test]
fn a64_a_store_that_is_a_link_is_refused() {
    let place = used();
    let images = place.state().join("images");
    fs::rename(&images, place.path("elsewhere")).unwrap();
    symlink(place.path("elsewhere"), &images).unwrap();
    refused(&place, "not a folder");
}

#[test]
fn a64_a_linked_folder_in_the_store_is_refused() {
    for folder in ["blobs", "layers", "rootfs", "images", "names", "temp"] {
        let place = used();
        let path = place.state().join("images").join(folder);
        fs::rename(&path, place.path("elsewhere")).unwrap();
        symlink(place.path("elsewhere"), &path).unwrap();
        refused(&place, "not a folder");
    }
}

#[test]
fn a64_a_store_that_others_may_enter_is_refused() {
    let place = used();
    fs::set_permissions(place.state().join("images"), Permissions::from_mode(0o770)).unwrap();
    refused(&place, "chmod 700");
}

#[test]
fn a64_a_store_of_another_user_is_refused() {
    let place = used();
    let images = place.state().join("images");
    if nix::unistd::Uid::effective().is_root() {
        std::os::unix::fs::chown(&images, Some(65534), None).unwrap();
        refused(&place, "belongs to user 65534");
    } else {
        // Nobody but root can give a folder away; root's own serve as well.
        let output = place
            .pillbug(&["images"])
            .env("PILLBUG_ROOT", "/usr")
            .output()
            .unwrap();
        assert!(fail(&output).contains("belongs to user 0"));
    }
}

#[test]
fn a27_nobody_else_can_look_into_the_store() {
    let place = used();
    let mut folders = vec![place.state().join("images")];
    while let Some(folder) = folders.pop() {
        assert_eq!(
            fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
            0o700,
            "{}",
            folder.display()
        );
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
}
