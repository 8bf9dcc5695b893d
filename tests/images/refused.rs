//! What `load` refuses: with a reason that names what is wrong, and nothing left behind.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::fixture::{Fixture, Packing, Place, archive, fail, tar_of};

/// Expects that `path` is refused for a reason that holds all of `words`, and that nothing remains.
fn refused(place: &Place, path: &Path, words: &[&str]) {
    let error = fail(&place.load(path));
    for word in words {
        assert!(error.contains(word), "no {word:?} in {error}");
    }
    assert_eq!(place.content(), [""; 0], "{error}");
}

/// The same for an image, as a layout folder and as an archive.
fn refused_image(image: &Fixture, words: &[&str]) {
    let place = Place::new();
    let image = image.clone().named("bad:1");
    image.write_layout(&place.path("layout"));
    refused(&place, &place.path("layout"), words);
    let archive = place.write("archive", &image.archive());
    refused(&place, &archive, words);
    let packed = place.write("archive.gz", &Packing::Gzip.pack(&image.archive()));
    refused(&place, &packed, words);
}

fn good() -> Fixture {
    Fixture::new("refused", &[Packing::Gzip, Packing::Zstd])
}

#[test]
fn a30_a_blob_with_another_digest_is_refused() {
    let mut image = good();
    let digest = image.first_layer();
    image.blobs.get_mut(&digest).unwrap()[20] ^= 1;
    refused_image(&image, &[&digest, "other content"]);
}

#[test]
fn a30_a_configuration_with_another_digest_is_refused() {
    let mut image = good();
    let digest = image.id();
    image.blobs.get_mut(&digest).unwrap().push(b' ');
    image.manifest["config"]["size"] = image.blobs[&digest].len().into();
    refused_image(&image, &[&digest, "other content"]);
}

#[test]
fn a30_wrong_sizes_are_refused() {
    for change in [-1, 1, 1 << 40] {
        let mut image = good();
        let size = image.layers[0]["size"].as_i64().unwrap() + change;
        image.layers[0]["size"] = size.into();
        image.seal();
        refused_image(&image, &[&image.first_layer(), &size.to_string()]);
    }
    let mut image = good();
    image.layers[0]["size"] = (-1).into();
    image.seal();
    refused_image(&image, &["not a valid image manifest", "-1"]);
}

#[test]
fn a30_a_layer_with_another_diff_id_is_refused() {
    let mut image = good();
    image.config["rootfs"]["diff_ids"][0] = image.config["rootfs"]["diff_ids"][1].clone();
    image.seal();
    refused_image(&image, &[&image.first_layer()]);
}

#[test]
fn a30_a_docker_layer_with_another_diff_id_is_refused() {
    let place = Place::new();
    let mut image = good();
    image.tars[0] = tar_of("other", "content");
    let path = place.write("image", &archive(&image.docker_files(&["bad:1"])));
    refused(&place, &path, &["other content"]);
}

#[test]
fn a30_another_number_of_diff_ids_is_refused() {
    let mut image = good();
    image.config["rootfs"]["diff_ids"]
        .as_array_mut()
        .unwrap()
        .pop();
    image.seal();
    refused_image(&image, &["2 layers", "the configuration 1"]);
}

#[test]
fn a30_a_missing_blob_is_named() {
    let mut image = good();
    let digest = image.first_layer();
    image.blobs.remove(&digest);
    refused_image(&image, &[&digest]);
}

#[test]
fn a30_truncated_archives_are_refused() {
    let place = Place::new();
    let image = good().named("bad:1");
    let whole = image.archive();
    let packed = Packing::Zstd.pack(&whole);
    for length in [0, 1, 511, 513, 700, whole.len() / 2, whole.len() - 1520] {
        let path = place.write("image", &whole[..length]);
        refused(&place, &path, &["cannot load"]);
    }
    for length in [4, packed.len() / 2, packed.len() - 1] {
        let path = place.write("image", &packed[..length]);
        refused(&place, &path, &["cannot load"]);
    }
}

#[test]
fn a30_of_several_images_all_or_none_are_loaded() {
    let place = Place::new();
    let (one, mut two) = (good(), Fixture::new("two", &[Packing::Gzip]));
    two.layers[0]["size"] = 1.into();
    two.seal();
    let mut both = one.clone();
    both.blobs.extend(two.blobs.clone());
    let entries: Vec<_> = [&one, &two]
        .map(|image| {
            both.put(
                "application/vnd.oci.image.manifest.v1+json",
                image.manifest.to_string().into_bytes(),
            )
        })
        .into();
    both.entries = Some(entries.into());
    let path = place.write("image", &both.archive());
    refused(&place, &path, &[&two.first_layer()]);
}

#[test]
fn a32_digests_that_are_paths_are_refused() {
    for digest in [
        "sha256:../../../../etc/passwd",
        "../../etc/passwd",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "sha256:",
    ] {
        let mut image = good();
        image.layers[0]["digest"] = digest.into();
        image.seal();
        refused_image(&image, &["cannot be used"]);
        let mut image = good();
        image.entries = Some(
            json!([{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1}]),
        );
        refused_image(&image, &["index.json"]);
    }
}

#[test]
fn a33_a_manifest_that_is_also_an_index_is_refused() {
    let mut image = good();
    image.manifest["manifests"] = json!([]);
    refused_image(&image, &["both `manifests` and `layers`"]);
}

#[test]
fn a33_an_image_without_layers_is_refused() {
    let mut image = good();
    image.layers.clear();
    image.config["rootfs"]["diff_ids"] = json!([]);
    image.seal();
    refused_image(&image, &["no layers"]);
}

#[test]
fn a33_indexes_nested_without_end_are_refused() {
    let mut image = good();
    let mut entry = image.put(
        "application/vnd.oci.image.manifest.v1+json",
        image.manifest.to_string().into_bytes(),
    );
    for _ in 0..8 {
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        entry = image.put(
            "application/vnd.oci.image.index.v1+json",
            index.to_string().into_bytes(),
        );
    }
    image.entries = Some(json!([entry]));
    refused_image(&image, &["indexes within indexes"]);
}

#[test]
fn a33_an_index_that_names_itself_is_refused() {
    // No index can hold its own digest; one that claims to has other content.
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let mut image = good();
    let entry = json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": 300});
    let mut index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    index.push_str(&" ".repeat(300 - index.len()));
    image.blobs.insert(digest.into(), index.into_bytes());
    image.entries = Some(json!([entry]));
    refused_image(&image, &[digest, "other content"]);
}

#[test]
fn an_image_for_another_machine_is_refused_by_name() {
    let mut image = good();
    image.config["architecture"] = "arm64".into();
    image.seal();
    refused_image(&image, &["linux/arm64", "linux/amd64"]);
}

#[test]
fn documents_of_any_size_take_bounded_memory() {
    let mut image = good();
    image.manifest["config"]["size"] = (5 << 20).into();
    refused_image(&image, &["more than the 4194304 allowed"]);
}

#[test]
fn a24_links_in_a_layout_do_not_lead_out_of_it() {
    let place = Place::new();
    let image = good().named("bad:1");
    let digest = image.first_layer();
    let blob = |layout: &Path| layout.join("blobs").join(digest.replace(':', "/"));
    let layout = |name: &str| -> PathBuf {
        let path = place.path(name);
        image.write_layout(&path);
        path
    };

    // The very content that is asked for, but somewhere else.
    let linked_blob = layout("linked-blob");
    let outside = place.path("outside");
    fs::rename(blob(&linked_blob), &outside).unwrap();
    symlink(&outside, blob(&linked_blob)).unwrap();
    refused(&place, &linked_blob, &[&digest, "symbolic links"]);

    let linked_folder = layout("linked-folder");
    fs::rename(linked_folder.join("blobs"), place.path("blobs")).unwrap();
    symlink(place.path("blobs"), linked_folder.join("blobs")).unwrap();
    refused(&place, &linked_folder, &["symbolic links"]);

    let linked_index = layout("linked-index");
    fs::rename(linked_index.join("index.json"), place.path("index.json")).unwrap();
    symlink(place.path("index.json"), linked_index.join("index.json")).unwrap();
    refused(&place, &linked_index, &["index.json", "symbolic links"]);
}

#[test]
fn a_pipe_in_a_layout_is_not_waited_for() {
    let place = Place::new();
    let image = good().named("bad:1");
    image.write_layout(&place.path("layout"));
    let blob = place
        .path("layout/blobs")
        .join(image.first_layer().replace(':', "/"));
    fs::remove_file(&blob).unwrap();
    nix::unistd::mkfifo(&blob, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&place, &place.path("layout"), &["not a regular file"]);
}

#[test]
fn a24_links_in_an_archive_do_not_lead_out_of_it() {
    for (kind, target) in [
        (tar::EntryType::Symlink, "/etc/hostname"),
        (tar::EntryType::Link, "/etc/hostname"),
        (
            tar::EntryType::Symlink,
            "../../../../../../../../etc/hostname",
        ),
        (tar::EntryType::Link, "../../../etc/hostname"),
        (tar::EntryType::Symlink, "layer.tar"),
    ] {
        let place = Place::new();
        let image = Fixture::new("links", &[Packing::Plain]);
        let mut files = image.docker_files(&["bad:1"]);
        files.retain(|(name, _)| name != "0/layer.tar");
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder
                .append_data(&mut header, name, bytes.as_slice())
                .unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.as_gnu_mut().unwrap().name[..11].copy_from_slice(b"0/layer.tar");
        header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        let path = place.write("image", &builder.into_inner().unwrap());
        refused(&place, &path, &["no file \"0/layer.tar\""]);
    }
}

#[test]
fn a42_names_that_claim_too_much_are_refused() {
    for name in [
        "../../x:1",
        "a:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "A:1",
        "",
    ] {
        let place = Place::new();
        let image = Fixture::new("names", &[Packing::Plain]);
        let path = place.write("image", &archive(&image.docker_files(&[name])));
        refused(&place, &path, &["manifest.json names an image"]);
    }
}

#[test]
fn other_files_are_told_apart() {
    let place = Place::new();
    refused(&place, &place.write("text", b"hello"), &["tar file"]);
    refused(
        &place,
        &place.write("long", &[b'x'; 4096]),
        &["not a tar file"],
    );
    refused(
        &place,
        &place.write("other", &tar_of("readme", "no image")),
        &["no index.json and no manifest.json"],
    );
    fs::create_dir(place.path("folder")).unwrap();
    refused(&place, &place.path("folder"), &["no file oci-layout"]);
    refused(&place, &place.path("absent"), &["cannot open", "absent"]);
}

#[test]
fn a28_an_archive_that_expands_without_end_stops() {
    let place = Place::new();
    // A member of 8 EiB that nobody asks for, in 3 MiB.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_path("x").unwrap();
    header.set_size(1 << 62);
    header.set_cksum();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::Write::write_all(&mut encoder, header.as_bytes()).unwrap();
    std::io::copy(
        &mut std::io::Read::take(std::io::repeat(0), 3 << 29),
        &mut encoder,
    )
    .unwrap();
    let path = place.write("bomb", &encoder.finish().unwrap());
    refused(&place, &path, &["expands more than"]);
}
