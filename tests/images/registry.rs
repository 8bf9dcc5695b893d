//! Pulling from and pushing to a real registry.

use std::{fs, process::Command, process::Stdio};

use crate::{
    fixture::{Fixture, Packing, Place, succeed},
    server::{Demand, Registry},
};

pub fn run(place: &Place, arguments: &[&str]) -> String {
    succeed(place.pillbug(arguments).output().unwrap())
}

/// A place with an image of this name.
pub fn place_with(image: &Fixture, name: &str) -> Place {
    let place = Place::new();
    place.load_well(&place.write("image", &image.clone().named(name).archive()));
    place
}

#[test]
fn what_is_pushed_is_pulled() {
    let registry = Registry::start(Demand::Nothing);
    let image = Fixture::new("round trip", &Packing::ALL);
    let place = place_with(&image, "app:1");
    let name = format!("{}/team/app:1", registry.address);
    run(&place, &["tag", "app:1", &name]);
    let pushed = run(&place, &["push", &name]);
    assert!(
        pushed.starts_with(&format!(
            "The push refers to repository [{}/team/app]\n1: digest: sha256:",
            registry.address
        )),
        "{pushed}"
    );

    let other = Place::new();
    let pulled = other.pillbug(&["pull", &name]).output().unwrap();
    let told = String::from_utf8_lossy(&pulled.stderr).into_owned();
    let pulled = succeed(pulled);
    assert!(
        pulled.contains("Status: Downloaded newer image for ")
            && pulled.ends_with(&format!("{name}\n")),
        "{pulled}"
    );
    assert_eq!(told.matches("Pull complete").count(), 3, "{told}");
    assert_eq!(other.images()[0][2], image.id());
    assert!(run(&other, &["pull", &name]).contains("Status: Image is up to date"));
    assert_eq!(run(&other, &["pull", "-q", &name]), format!("{name}\n"));

    let digest = pushed
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"))
        .unwrap();
    let pinned = format!("{}/team/app@{digest}", registry.address);
    assert!(run(&Place::new(), &["pull", &pinned]).contains(&format!("Digest: {digest}\n")));
    // A digest is known by the tag that it came with.
    assert!(run(&other, &["image", "inspect", &pinned]).contains(digest));
}

#[test]
fn what_is_there_is_not_sent_again() {
    let registry = Registry::start(Demand::Nothing);
    let place = place_with(
        &Fixture::new("again", &[Packing::Gzip, Packing::Zstd]),
        "app:1",
    );
    let names = ["one/app:1", "two/app:1"].map(|name| format!("{}/{name}", registry.address));
    let push = |name: &str| {
        run(&place, &["tag", "app:1", name]);
        let output = place.pillbug(&["push", name]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        succeed(output);
        told
    };
    assert_eq!(push(&names[0]).matches(": Pushed").count(), 2);
    assert_eq!(push(&names[0]).matches("Layer already exists").count(), 2);
    assert_eq!(push(&names[1]).matches("Mounted from one/app").count(), 2);
    run(&Place::new(), &["pull", &names[1]]);
}

#[test]
fn every_tag_is_pulled_at_once() {
    let registry = Registry::start(Demand::Nothing);
    let place = place_with(&Fixture::new("tags", &[Packing::Gzip]), "app:1");
    let name = format!("{}/app", registry.address);
    for tag in ["a", "b"] {
        let tagged = format!("{name}:{tag}");
        run(&place, &["tag", "app:1", &tagged]);
        run(&place, &["push", "-q", &tagged]);
    }
    let other = Place::new();
    assert_eq!(
        run(&other, &["pull", "-q", "-a", &name]),
        format!("{name}:a\n{name}:b\n")
    );
    assert_eq!(other.images().len(), 2);
}

#[test]
fn run_pulls_what_is_absent_when_it_may() {
    let registry = Registry::start(Demand::Nothing);
    let image = Fixture::new("run", &[Packing::Gzip]);
    let place = place_with(&image, "app:1");
    let name = format!("{}/app:1", registry.address);
    run(&place, &["tag", "app:1", &name]);
    run(&place, &["push", &name]);

    let other = Place::new();
    // There is no kernel to boot, so that every run ends before it has begun.
    let told = |arguments: &[&str]| {
        let run = ["run", "--rm", "--kernel", "/nonexistent"];
        let output = other.pillbug(&[&run, arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    told(&["--pull", "never", &name, "true"]);
    assert!(other.images().is_empty());

    let pulled = told(&[&name, "true"]);
    assert!(
        pulled.starts_with(&format!("Unable to find image '{name}' locally\n"))
            && pulled.contains("Pull complete\n")
            && pulled.contains("Status: Downloaded newer image for "),
        "{pulled}"
    );
    assert_eq!(other.images()[0][2], image.id());
    let before = registry.requests("GET", "/manifests/1");
    assert!(!told(&[&name, "true"]).contains("Pulling"));
    assert!(!told(&["--pull", "always", &image.id()[7..19], "true"]).contains("Pulling"));
    assert_eq!(registry.requests("GET", "/manifests/1"), before);
    assert!(told(&["--pull", "always", &name, "true"]).contains("Image is up to date"));
    assert!(!told(&["--pull", "always", "-q", &name, "true"]).contains("Pulling"));

    let foreign = told(&["--platform", "linux/arm64", &name, "true"]);
    assert!(
        foreign.contains("this machine runs linux/amd64"),
        "{foreign}"
    );
}

#[test]
fn short_names_mean_what_was_settled() {
    let registry = Registry::start(Demand::Nothing);
    let image = Fixture::new("short", &[Packing::Gzip]);
    let place = place_with(&image, "app:1");
    let settings = format!("[short-names]\nregistry = \"{}\"\n", registry.address);
    fs::write(place.path("registries.toml"), settings).unwrap();
    let whole = format!("{}/team/app:1", registry.address);
    run(&place, &["tag", &image.id(), "team/app:1"]);
    run(&place, &["push", "-q", "team/app:1"]);
    assert_eq!(
        place.images()[0][0],
        format!("{}/team/app", registry.address)
    );
    run(&place, &["rmi", "team/app:1"]);
    assert_eq!(
        run(&place, &["pull", "-q", "team/app:1"]),
        format!("{whole}\n")
    );
    let id = &image.id()[7..19];
    for name in ["team/app:1", &whole, "docker.io/app:1", id] {
        let format = ["image", "inspect", "-f", "{{.Id}}", name];
        assert_eq!(run(&place, &format).trim_end(), image.id(), "{name}");
    }
}

#[test]
fn large_blobs_are_sent_in_chunks() {
    let registry = Registry::start(Demand::Nothing);
    let image = Fixture::new(&"chunks ".repeat(10_000), &[Packing::Plain]);
    let mut image = image;
    image.config["config"]["Labels"]["seed"] = "".into();
    image.seal();
    let place = place_with(&image, "app:1");
    fs::write(
        place.path("registries.toml"),
        "[transfer]\nchunk-bytes = 30000\n",
    )
    .unwrap();
    let name = format!("{}/app:1", registry.address);
    run(&place, &["tag", "app:1", &name]);
    run(&place, &["push", "-q", &name]);
    // Of 70 KiB and the archive around them, the last goes with the end.
    assert_eq!(registry.requests("PATCH", "/uploads/"), 2);
    let other = Place::new();
    run(&other, &["pull", "-q", &name]);
    assert_eq!(other.images()[0][2], image.id());
}

#[test]
fn podman_reads_what_is_pushed_and_saved_and_we_read_what_it_saves() {
    let registry = Registry::start(Demand::Nothing);
    let image = Fixture::new("podman", &[Packing::Gzip, Packing::Plain]);
    let place = place_with(&image, "app:1");
    let name = format!("{}/app:1", registry.address);
    run(&place, &["tag", "app:1", &name]);
    run(&place, &["push", "-q", &name]);
    let saved = place.path("saved.tar");
    run(&place, &["save", "-o", saved.to_str().unwrap(), "app:1"]);

    let podman = |arguments: &[&str]| {
        let output = Command::new("podman")
            .args(["--storage-driver", "vfs", "--root"])
            .arg(place.path("podman"))
            .arg("--runroot")
            .arg(place.path("podman-run"))
            .args(arguments)
            .output()
            .unwrap();
        succeed(output)
    };
    podman(&["pull", "-q", "--tls-verify=false", &name]);
    podman(&["load", "-q", "-i", saved.to_str().unwrap()]);
    let id = |name: &str| podman(&["image", "inspect", "--format", "{{.Id}}", name]);
    for name in [&name[..], "app:1"] {
        assert_eq!(format!("sha256:{}", id(name).trim()), image.id(), "{name}");
    }
    for format in ["oci-archive", "docker-archive"] {
        let path = place.path(format);
        let path = path.to_str().unwrap();
        podman(&["save", "-q", "--format", format, "-o", path, &name]);
        let other = Place::new();
        let loaded = other.load_well(path.as_ref());
        assert_eq!(loaded, format!("Loaded image: {name}\n"), "{format}");
    }
}

#[test]
fn peers_read_what_is_pushed_and_we_read_theirs() {
    let registry = Registry::start(Demand::Nothing);
    let image = Fixture::new("peers", &[Packing::Gzip]);
    let place = place_with(&image, "app:1");
    let ours = format!("{}/ours:1", registry.address);
    run(&place, &["tag", "app:1", &ours]);
    run(&place, &["push", &ours]);
    let theirs = format!("{}/theirs:1", registry.address);
    let copied = Command::new("skopeo")
        .args([
            "copy",
            "-q",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
        ])
        .args([format!("docker://{ours}"), format!("docker://{theirs}")])
        .output()
        .unwrap();
    succeed(copied);
    let other = Place::new();
    run(&other, &["pull", &theirs]);
    assert_eq!(other.images()[0][2], image.id());
}

#[test]
fn a71_a_layer_that_several_want_is_fetched_once() {
    let registry = Registry::start(Demand::Nothing);
    let image = Fixture::new("many", &Packing::ALL);
    let place = place_with(&image, "app:1");
    let name = format!("{}/app:1", registry.address);
    run(&place, &["tag", "app:1", &name]);
    run(&place, &["push", &name]);

    let shared = Place::new();
    let pulls: Vec<_> = (0..8)
        .map(|_| {
            shared
                .pillbug(&["pull", "-q", &name])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for pull in pulls {
        succeed(pull.wait_with_output().unwrap());
    }
    for layer in &image.layers {
        assert_eq!(
            registry.requests("GET", layer["digest"].as_str().unwrap()),
            1,
            "{layer}"
        );
    }
    assert_eq!(shared.images()[0][2], image.id());
}

#[test]
fn what_is_saved_is_what_was_loaded() {
    let image = Fixture::new("save", &Packing::ALL);
    let place = place_with(&image, "app:1");
    run(&place, &["tag", "app:1", "app:2"]);
    let path = place.path("saved.tar");
    run(
        &place,
        &["save", "-o", path.to_str().unwrap(), "app:1", "app:2"],
    );
    let other = Place::new();
    assert_eq!(
        other.load_well(&path),
        "Loaded image: app:1\nLoaded image: app:2\n"
    );
    assert!(other.images().iter().all(|line| line[2] == image.id()));
    let store = |place: &Place| {
        place
            .content()
            .into_iter()
            .filter(|path| path.starts_with("blobs"))
            .collect::<Vec<_>>()
    };
    assert_eq!(store(&other), store(&place));

    // As an OCI archive it is the same image to others; as a Docker archive it has the same layers.
    run(&place, &["save", "-o", path.to_str().unwrap(), "app:1"]);
    for source in ["oci-archive:{}", "docker-archive:{}:app:1"] {
        let source = source.replace("{}", path.to_str().unwrap());
        let copy = place.path(source.split(':').next().unwrap());
        let copied = Command::new("skopeo")
            .args(["copy", "-q", &source, &format!("oci:{}", copy.display())])
            .output()
            .unwrap();
        succeed(copied);
        let other = Place::new();
        other.load_well(&copy);
        let id = &other.images()[0][2];
        assert_eq!(*id == image.id(), source.starts_with("oci"));
        let inspected = run(&other, &["image", "inspect", id]);
        let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
        assert_eq!(
            inspected[0]["RootFS"]["Layers"],
            image.config["rootfs"]["diff_ids"]
        );
    }
}

#[test]
fn prune_takes_what_has_lost_its_name() {
    let place = place_with(&Fixture::new("old", &[Packing::Gzip]), "app:1");
    let new = Fixture::new("new", &[Packing::Gzip]);
    place.load_well(&place.write("image", &new.clone().named("app:1").archive()));
    let pruned = run(&place, &["image", "prune", "-f"]);
    assert!(
        pruned.starts_with("Deleted Images:\ndeleted: sha256:")
            && pruned.contains("Total reclaimed space: "),
        "{pruned}"
    );
    assert_eq!(place.images().len(), 1);
    run(&place, &["image", "prune", "-a", "-f"]);
    assert_eq!(place.content(), [""; 0]);
}

#[test]
fn history_and_inspect_tell_what_the_configuration_says() {
    let mut image = Fixture::new("history", &[Packing::Gzip]);
    image.config["history"] = serde_json::json!([
        {"created": "2020-01-02T03:04:05Z", "created_by": "ADD rootfs \u{1b}[31m"},
        {"created": "2020-01-02T03:04:06Z", "created_by": "CMD [\"sh\"]", "empty_layer": true},
    ]);
    image.config["config"]["Healthcheck"] = serde_json::json!({"Test": ["NONE"]});
    image.seal();
    let place = place_with(&image, "app:1");
    let history = run(&place, &["history", "--no-trunc", "app:1"]);
    let lines: Vec<_> = history.lines().collect();
    assert!(
        lines[1].starts_with(&image.id())
            && lines[1].contains("CMD [\"sh\"]")
            && lines[1].contains(" 0B"),
        "{history}"
    );
    assert!(
        lines[2].starts_with("<missing>") && lines[2].contains("ADD rootfs \\u{1b}[31m"),
        "{history}"
    );
    let inspected: serde_json::Value =
        serde_json::from_str(&run(&place, &["image", "inspect", "app:1"])).unwrap();
    assert_eq!(inspected[0]["Id"], image.id());
    assert_eq!(inspected[0]["Config"]["Healthcheck"]["Test"][0], "NONE");
    assert_eq!(inspected[0]["RepoTags"][0], "app:1");
}

#[test]
fn check_finds_damage_and_repairs_it() {
    let registry = Registry::start(Demand::Nothing);
    let image = Fixture::new("check", &[Packing::Gzip, Packing::Plain]);
    let place = place_with(&image, "app:1");
    let name = format!("{}/app:1", registry.address);
    run(&place, &["tag", "app:1", &name]);
    run(&place, &["push", &name]);
    let whole = place.content();
    assert_eq!(
        run(&place, &["system", "check"]),
        "The image store is sound.\n"
    );
    let check = |arguments: &[&str]| {
        let output = place.pillbug(arguments).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };

    for path in &whole {
        // Of two names of an image, only one can be had again.
        if path.ends_with("app/:1") && !path.contains("127.0.0.1") {
            continue;
        }
        let file = place.state().join("images").join(path);
        let sound = fs::read(&file).unwrap();
        let mut flipped = sound.clone();
        match flipped.get_mut(sound.len() / 2) {
            Some(byte) => *byte ^= 1,
            // The data of a layer whose files all lie in its index.
            None => flipped.push(0),
        }
        let truncated = (!sound.is_empty()).then_some(Some(&sound[..sound.len() / 2]));
        // That a name is gone nobody can see.
        let gone = (!path.starts_with("names")).then_some(None);
        let damages = [Some(&flipped[..])].into_iter().chain(gone);
        for damage in damages.chain(truncated) {
            match damage {
                Some(bytes) => fs::write(&file, bytes).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            let (code, found) = check(&["system", "check"]);
            assert_eq!(code, Some(1), "{path}: {found}");
            assert!(found.contains("needed by"), "{path}: {found}");
            let (code, told) = check(&["system", "check", "--repair"]);
            assert_eq!(code, Some(0), "{path}: {told}");
            assert_eq!(fs::read(&file).unwrap(), sound, "{path}");
        }
    }
    assert_eq!(place.content(), whole);
}
