//! Several processes in one store.

use std::{process::Stdio, thread};

use pillbug::image::store::{Store, StoreError};

use crate::fixture::{Fixture, Packing, Place, succeed};

#[test]
fn loads_of_one_image_at_once_all_succeed() {
    let place = Place::new();
    let image = Fixture::new("at once", &Packing::ALL).named("a:1");
    let path = place.write("image", &image.archive());
    let children: Vec<_> = (0..8)
        .map(|_| {
            let mut load = place.pillbug(&["load", "-i", path.to_str().unwrap()]);
            load.stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        assert_eq!(
            succeed(child.wait_with_output().unwrap()),
            "Loaded image: a:1\n"
        );
    }
    let alone = Place::new();
    alone.load_well(&path);
    assert_eq!(place.content(), alone.content());
}

#[test]
fn a67_an_image_in_use_is_not_removed() {
    let place = Place::new();
    let image = Fixture::new("in use", &[Packing::Gzip]).named("a:1");
    place.load_well(&place.write("image", &image.archive()));
    let before = place.content();
    let used = Store::open(&place.state()).unwrap().resolve("a:1").unwrap();
    for arguments in [&["rmi", "a:1"][..], &["rmi", "-f", "a:1"]] {
        let output = place.pillbug(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("in use"));
    }
    assert_eq!(place.content(), before);
    drop(used);
    succeed(place.pillbug(&["rmi", "a:1"]).output().unwrap());
    assert_eq!(place.content(), [""; 0]);
}

#[test]
fn a67_loads_and_removals_at_once_lose_no_live_layer() {
    let place = Place::new();
    let base = Fixture::new("churn", &[Packing::Gzip, Packing::Plain]);
    let paths: Vec<_> = (0..3)
        .map(|number| {
            let mut image = base.clone().named(&format!("churn:{number}"));
            image.config["config"]["Labels"]["number"] = number.to_string().into();
            image.seal();
            place.write(&format!("image{number}"), &image.archive())
        })
        .collect();
    thread::scope(|scope| {
        for (number, path) in paths.iter().enumerate() {
            let state = place.state();
            scope.spawn(move || {
                for _ in 0..12 {
                    let store = Store::open(&state).unwrap();
                    store
                        .load(pillbug::image::load::Input::Path(path), &|_| {})
                        .unwrap();
                    let name = format!("churn:{number}");
                    let image = store.resolve(&name).unwrap();
                    for (path, _) in &image.rootfs.parts {
                        assert!(path.exists(), "{} is gone", path.display());
                    }
                    assert!(matches!(
                        store.remove(&name, false, |_| None),
                        Err(StoreError::InUse(_))
                    ));
                    drop(image);
                    store.remove(&name, false, |_| None).unwrap();
                }
            });
        }
    });
    assert_eq!(place.content(), [""; 0]);
}
