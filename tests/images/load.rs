//! What `load` accepts, and what `images` then shows.

use std::{
    fs::{self, File},
    process::Stdio,
};

use pillbug::image::store::Store;

use crate::fixture::{Fixture, Packing, Place, archive, succeed};

#[test]
fn every_packing_of_layers_and_archives_loads() {
    let image = Fixture::new("all", &Packing::ALL).named("busy:1");
    for packing in Packing::ALL {
        let place = Place::new();
        let path = place.write("image", &packing.pack(&image.archive()));
        assert_eq!(place.load_well(&path), "Loaded image: busy:1\n");
        assert_eq!(place.images()[0][..3], ["busy", "1", &image.id()]);
    }
}

#[test]
fn a_layout_folder_loads() {
    let place = Place::new();
    let image = Fixture::new("layout", &[Packing::Gzip]).named("localhost:5000/a/b:1");
    image.write_layout(&place.path("layout"));
    assert_eq!(
        place.load_well(&place.path("layout")),
        "Loaded image: localhost:5000/a/b:1\n"
    );
}

#[test]
fn standard_input_loads_from_a_file_and_from_a_pipe() {
    let image = Fixture::new("stdin", &Packing::ALL).named("busy:1");
    let place = Place::new();
    let path = place.write("image", &image.archive());
    let from_file = place
        .pillbug(&["load"])
        .stdin(File::open(&path).unwrap())
        .output()
        .unwrap();
    assert_eq!(succeed(from_file), "Loaded image: busy:1\n");

    let place = Place::new();
    let mut cat = std::process::Command::new("cat")
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let from_pipe = place
        .pillbug(&["load"])
        .stdin(cat.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(cat.wait().unwrap().success());
    assert_eq!(succeed(from_pipe), "Loaded image: busy:1\n");
}

#[test]
fn archives_of_docker_save_load_in_any_order() {
    let image = Fixture::new("docker", &[Packing::Plain, Packing::Plain]);
    let files = image.docker_files(&["a:1", "docker.io/library/b:2"]);
    let mut reversed = files.clone();
    reversed.reverse();
    for (files, packing) in [
        (&files, Packing::Plain),
        (&reversed, Packing::Plain),
        (&files, Packing::Gzip),
        (&reversed, Packing::Zstd),
    ] {
        let place = Place::new();
        let path = place.write("image", &packing.pack(&archive(files)));
        assert_eq!(
            place.load_well(&path),
            "Loaded image: a:1\nLoaded image: b:2\n"
        );
        let ids: Vec<_> = place
            .images()
            .into_iter()
            .map(|line| line[2].clone())
            .collect();
        assert_eq!(ids, [image.id(), image.id()]);
    }
}

#[test]
fn an_archive_that_is_both_loads_as_its_layout() {
    let place = Place::new();
    let image = Fixture::new("both", &[Packing::Gzip]).named("docker.io/library/new:1");
    let mut files = image.docker_files(&["old:1"]);
    files.extend(image.files());
    let path = place.write("image", &archive(&files));
    assert_eq!(place.load_well(&path), "Loaded image: new:1\n");
}

#[test]
fn an_image_without_a_name_is_shown_by_its_id() {
    let place = Place::new();
    // A bare word is a tag, and whose is not told.
    let image = Fixture::new("unnamed", &[Packing::Gzip]).named("latest");
    let path = place.write("image", &image.archive());
    assert_eq!(
        place.load_well(&path),
        format!("Loaded image ID: {}\n", image.id())
    );
    assert_eq!(place.images()[0][..3], ["<none>", "<none>", &image.id()]);
}

#[test]
fn quiet_prints_nothing() {
    let place = Place::new();
    let path = place.write("image", &Fixture::new("quiet", &[Packing::Gzip]).archive());
    let printed = succeed(
        place
            .pillbug(&["load", "-q", "-i", path.to_str().unwrap()])
            .output()
            .unwrap(),
    );
    assert_eq!(printed, "");
}

#[test]
fn a42_a_name_moves_in_its_own_store_alone_and_not_unsaid() {
    let (place, tenant) = (Place::new(), Place::new());
    let (old, new) = (
        Fixture::new("old", &[Packing::Gzip]).named("a:1"),
        Fixture::new("new", &[Packing::Gzip]).named("a:1"),
    );
    tenant.load_well(&tenant.write("image", &old.archive()));
    let load = |image: &Fixture| place.load_well(&place.write("image", &image.archive()));
    assert_eq!(load(&old), "Loaded image: a:1\n");
    let moved = format!(
        "The image a:1 already exists, renaming the old one with ID {} to empty string\n",
        old.id()
    );
    assert_eq!(load(&new), format!("{moved}Loaded image: a:1\n"));
    let images = place.images();
    assert_eq!(images[0][..3], ["a", "1", &new.id()]);
    assert_eq!(images[1][..3], ["<none>", "<none>", &old.id()]);
    assert_eq!(tenant.images()[0][2], old.id());
}

#[test]
fn shared_layers_are_stored_once() {
    let place = Place::new();
    let base = Fixture::new("shared", &[Packing::Gzip]);
    let mut derived = base.clone();
    derived.config["config"]["Cmd"] = serde_json::json!(["true"]);
    derived.seal();
    place.load_well(&place.write("base", &base.named("base:1").archive()));
    place.load_well(&place.write("derived", &derived.named("derived:1").archive()));
    let data = place
        .content()
        .iter()
        .filter(|path| path.ends_with("/data"))
        .count();
    assert_eq!((data, place.images().len()), (1, 2));
}

#[test]
fn images_prints_as_docker_does() {
    let place = Place::new();
    let image = Fixture::new("list", &[Packing::Gzip]).named("busy:1");
    place.load_well(&place.write("image", &image.archive()));
    let list = |arguments: &[&str]| succeed(place.pillbug(arguments).output().unwrap());

    let short = &image.id()["sha256:".len()..][..12];
    let table = list(&["images"]);
    assert!(
        table.starts_with(
            "REPOSITORY   TAG   IMAGE ID       CREATED       SIZE\nbusy         1     "
        ),
        "{table}"
    );
    assert!(
        table.contains(short) && table.contains(" years ago "),
        "{table}"
    );
    assert_eq!(list(&["image", "ls", "-q"]), format!("{short}\n"));
    assert_eq!(
        list(&["images", "-q", "--no-trunc"]),
        format!("{}\n", image.id())
    );
    assert!(list(&["images", "--digests"]).contains("sha256:"));
    let json: serde_json::Value =
        serde_json::from_str(&list(&["images", "--format", "json"])).unwrap();
    assert_eq!(
        (
            json["Repository"].as_str(),
            json["Tag"].as_str(),
            json["ID"].as_str()
        ),
        (Some("busy"), Some("1"), Some(short))
    );
    assert_eq!(list(&["images", "-q", "other"]), "");
    assert_eq!(
        list(&["images", "-q", "docker.io/library/busy"])
            .lines()
            .count(),
        1
    );
}

#[test]
fn rmi_removes_names_first_and_the_image_last() {
    let place = Place::new();
    let image = Fixture::new("rmi", &[Packing::Plain]);
    let path = place.write("image", &archive(&image.docker_files(&["a:1", "b:1"])));
    place.load_well(&path);

    let by_id = place.pillbug(&["rmi", &image.id()]).output().unwrap();
    assert_eq!(by_id.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&by_id.stderr).contains("a:1, b:1"));

    let rmi = |name: &str| succeed(place.pillbug(&["rmi", name]).output().unwrap());
    assert_eq!(rmi("a:1"), "Untagged: a:1\n");
    assert_eq!(
        rmi("b:1"),
        format!("Untagged: b:1\nDeleted: {}\n", image.id())
    );
    assert_eq!(place.content(), [""; 0]);
}

#[test]
fn a_source_is_found_by_name_id_and_path() {
    let place = Place::new();
    let store = Store::open(&place.state()).unwrap();
    let image = Fixture::new("source", &[Packing::Gzip]).named("busy:1");
    image.write_layout(&place.path("layout"));
    let layout = place.path("layout").to_str().unwrap().to_owned();
    let open = |source: &str| {
        store.open_source(source, &|_| {}).map(|image| {
            (
                image.id.to_string(),
                image.reference.map(|name| name.familiar()),
            )
        })
    };

    assert!(open("busy:1").is_err());
    for source in [
        layout.clone(),
        format!("oci:{layout}"),
        format!("{layout}:busy:1"),
        format!("{layout}:1"),
    ] {
        assert_eq!(open(&source).unwrap(), (image.id(), None), "{source}");
    }
    let error = open(&format!("{layout}:2")).unwrap_err().to_string();
    assert!(error.contains("busy:1"), "{error}");
    // Only `load` gives names.
    assert!(open("busy:1").is_err());
    place.load_well(&place.path("layout"));
    assert_eq!(open("busy:1").unwrap(), (image.id(), Some("busy:1".into())));
    assert_eq!(open(&image.id()).unwrap().0, image.id());
    assert_eq!(
        open(&image.id()["sha256:".len()..][..6]).unwrap().0,
        image.id()
    );
}

#[test]
fn one_of_several_images_must_be_chosen() {
    let place = Place::new();
    let store = Store::open(&place.state()).unwrap();
    let (one, two) = (
        Fixture::new("1", &[Packing::Plain]),
        Fixture::new("2", &[Packing::Plain]),
    );
    let mut both = two.clone();
    both.blobs.extend(one.blobs.clone());
    let mut entries = Vec::new();
    for (image, name) in [(&one, "x:1"), (&two, "x:2")] {
        let mut entry = both.put(
            "application/vnd.oci.image.manifest.v1+json",
            image.manifest.to_string().into_bytes(),
        );
        entry["annotations"] =
            serde_json::json!({"io.containerd.image.name": format!("docker.io/library/{name}")});
        entries.push(entry);
    }
    both.entries = Some(entries.into());
    let path = place.write("both.tar", &both.archive());
    let path = path.to_str().unwrap();

    let error = store.open_source(path, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("x:1, x:2"), "{error}");
    let chosen = store
        .open_source(&format!("oci-archive:{path}:x:2"), &|_| {})
        .unwrap();
    assert_eq!(chosen.id.to_string(), two.id());
    assert_eq!(
        place.load_well(path.as_ref()),
        "Loaded image: x:1\nLoaded image: x:2\n"
    );
}

#[test]
fn a_file_that_was_meant_is_pointed_at() {
    let place = Place::new();
    let store = Store::open(&place.state()).unwrap();
    // Relative to the test's own folder, where cargo runs it.
    let error = store.open_source("tests", &|_| {}).unwrap_err();
    assert!(error.to_string().ends_with("write ./tests"), "{error}");
    assert!(fs::metadata("tests").unwrap().is_dir());
}
