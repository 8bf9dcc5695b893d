//! Real images from Debian's packages (`build.sh` in this folder), through everything that is done with images short of
//! running them, with skopeo at the other end.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    fixture::{Place, succeed},
    server::{Demand, Registry},
};

/// The folder with the forms of an image, made where it is absent.
fn real_image(name: &str) -> PathBuf {
    let made = Command::new("tests/images/build.sh").arg(name).output();
    PathBuf::from(succeed(made.unwrap()).trim_end())
}

fn run(place: &Place, arguments: &[&str]) -> String {
    succeed(place.pillbug(arguments).output().unwrap())
}

fn skopeo(arguments: &[&str]) -> String {
    let mut command = Command::new("skopeo");
    succeed(command.args(arguments).output().unwrap())
}

fn copy(from: &str, to: &str) {
    skopeo(&[
        "copy",
        "-q",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        from,
        to,
    ]);
}

/// The digest of the manifest that skopeo finds.
fn digest(at: &str) -> String {
    skopeo(&[
        "inspect",
        "--tls-verify=false",
        "--format",
        "{{.Digest}}",
        at,
    ])
}

/// The digest of the configuration that skopeo finds, which is the image's ID.
fn id(at: &str) -> String {
    let manifest = skopeo(&["inspect", "--raw", "--tls-verify=false", at]);
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    manifest["config"]["digest"].as_str().unwrap().into()
}

/// Pulls, tags, pushes, saves, loads and removes an image, one layout of which is at `layout`.
fn round_trip(name: &str, layout: &Path, registry: &Registry, here: &Place, there: &Place) {
    let theirs = format!("{}/theirs/{name}:1", registry.address);
    copy(
        &format!("oci:{}:{name}:latest", layout.display()),
        &format!("docker://{theirs}"),
    );

    run(here, &["pull", "-q", &theirs]);
    let image = run(here, &["inspect", "-f", "{{.Id}}", &theirs]);
    let image = image.trim_end();
    assert_eq!(image, id(&format!("docker://{theirs}")));

    let ours = format!("{}/ours/{name}:2", registry.address);
    run(here, &["tag", &theirs, &ours]);
    run(here, &["push", "-q", &ours]);
    assert_eq!(
        digest(&format!("docker://{ours}")),
        digest(&format!("docker://{theirs}"))
    );

    let saved = here.path("saved.tar");
    let archive = saved.to_str().unwrap();
    run(here, &["save", "-o", archive, &ours]);
    for transport in ["oci-archive", "docker-archive"] {
        assert_eq!(id(&format!("{transport}:{archive}")), image, "{transport}");
    }
    assert_eq!(there.load_well(&saved), format!("Loaded image: {ours}\n"));
    assert_eq!(
        run(there, &["inspect", "-f", "{{.Id}}", &ours]).trim_end(),
        image
    );

    let one = run(here, &["rmi", &ours]);
    assert_eq!(one, format!("Untagged: {ours}\n"));
    let last = run(here, &["rmi", &theirs]);
    assert_eq!(last, format!("Untagged: {theirs}\nDeleted: {image}\n"));
}

#[test]
fn real_images_come_and_go_with_skopeo_at_the_other_end() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let registry = Registry::start(Demand::Nothing);
    let (here, there) = (Place::new(), Place::new());
    // Debian stays, so that what is on it is all that comes with the others.
    let debian = format!("{}/debian:12", registry.address);
    let layout = real_image("debian").join("oci");
    copy(
        &format!("oci:{}:debian:latest", layout.display()),
        &format!("docker://{debian}"),
    );
    for place in [&here, &there] {
        run(place, &["pull", "-q", &debian]);
    }
    for name in [
        "busybox",
        "smallfiles",
        "python",
        "nginx",
        "postgresql",
        "openjdk",
    ] {
        round_trip(
            name,
            &real_image(name).join("oci"),
            &registry,
            &here,
            &there,
        );
    }
    round_trip(
        "redis",
        &real_image("redis").join("zstd"),
        &registry,
        &here,
        &there,
    );

    run(&here, &["rmi", &debian]);
    round_trip("debian", &layout, &registry, &here, &there);
    assert!(here.content().is_empty(), "{:?}", here.content());
}

#[test]
fn a_base_that_two_images_share_is_stored_once() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let place = Place::new();
    for name in ["nginx", "redis"] {
        place.load_well(&real_image(name).join("oci"));
    }
    let layers = place.content();
    let layers = layers.iter().filter(|path| path.ends_with("/data"));
    // Debian's, and two of each image's own.
    assert_eq!(layers.count(), 5);
    let shared = run(
        &place,
        &[
            "system",
            "df",
            "-v",
            "--format",
            "{{range .Images}}{{.SharedSize}} {{end}}",
        ],
    );
    let sizes: Vec<&str> = shared.split_whitespace().collect();
    assert!(sizes[0] == sizes[1] && sizes[0].ends_with("MB"), "{shared}");
}
