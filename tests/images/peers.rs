//! Real images, written by skopeo and umoci.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::fixture::{Place, succeed};

fn run(program: &str, arguments: &[&str]) {
    succeed(
        Command::new(program)
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}")),
    );
}

/// A busybox image that umoci made, as the tag `1` of an OCI layout.
fn busybox(place: &Place) -> PathBuf {
    let layout = place.path("busybox");
    let tools = place.path("bin");
    fs::create_dir(&tools).unwrap();
    fs::copy("/bin/busybox", tools.join("busybox")).unwrap();
    symlink("busybox", tools.join("sh")).unwrap();
    let image = format!("{}:1", layout.display());
    run("umoci", &["init", "--layout", layout.to_str().unwrap()]);
    run("umoci", &["new", "--image", &image]);
    run(
        "umoci",
        &[
            "insert",
            "--rootless",
            "--image",
            &image,
            tools.to_str().unwrap(),
            "/bin",
        ],
    );
    run(
        "umoci",
        &["config", "--image", &image, "--config.cmd", "sh"],
    );
    layout
}

/// The ID of the one image of a layout.
fn id(layout: &Path) -> String {
    let read =
        |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let digest = |value: &Value| value["digest"].as_str().unwrap().to_owned();
    let manifest = digest(&read(layout.join("index.json"))["manifests"][0]);
    digest(&read(layout.join("blobs").join(manifest.replace(':', "/")))["config"])
}

#[test]
fn what_umoci_and_skopeo_write_is_the_same_image() {
    let place = Place::new();
    let layout = busybox(&place);
    let id = id(&layout);
    let from = format!("oci:{}:1", layout.display());
    let at = |name: &str| place.path(name).to_str().unwrap().to_owned();
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            &from,
            &format!("oci-archive:{}:busybox:oci", at("oci.tar")),
        ],
    );
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            &from,
            &format!("docker-archive:{}:busybox:docker", at("docker.tar")),
        ],
    );
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            "--dest-compress-format",
            "zstd",
            &from,
            &format!("oci:{}:busybox:zstd", at("zstd")),
        ],
    );

    assert_eq!(place.load_well(&layout), format!("Loaded image ID: {id}\n"));
    for (name, tag) in [
        ("oci.tar", "oci"),
        ("docker.tar", "docker"),
        ("zstd", "zstd"),
    ] {
        assert_eq!(
            place.load_well(&place.path(name)),
            format!("Loaded image: busybox:{tag}\n")
        );
    }
    let images = place.images();
    assert_eq!(images.len(), 3, "{images:?}");
    assert!(
        images
            .iter()
            .all(|line| line[0] == "busybox" && line[2] == id),
        "{images:?}"
    );
    // However it was packed, it is one layer.
    let layers = place
        .content()
        .iter()
        .filter(|path| path.ends_with("/data"))
        .count();
    assert_eq!(layers, 1);
}
