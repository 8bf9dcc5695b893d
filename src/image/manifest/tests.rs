//! Documents that are accepted, refused, and arbitrary.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn descriptor(media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": DIGEST, "size": 1})
}

fn manifest() -> Value {
    json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(OCI_LAYER)],
    })
}

fn with(mut document: Value, key: &str, value: Value) -> Value {
    document[key] = value;
    document
}

fn parse(document: &Value) -> Result<Document, ManifestError> {
    Document::parse(document.to_string().as_bytes())
}

fn entry(os: &str, architecture: &str, size: u64) -> Value {
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["platform"] = json!({"os": os, "architecture": architecture});
    entry["size"] = json!(size);
    entry
}

fn chosen(entries: &[Value]) -> Result<u64, ManifestError> {
    let document = parse(&json!({"schemaVersion": 2, "manifests": entries})).unwrap();
    let Document::Index(index) = document else {
        panic!("an index was taken for a manifest");
    };
    select(&index).map(|blob| blob.size)
}

#[test]
fn images_of_oci_and_docker_are_accepted() {
    let docker = json!({
        "schemaVersion": 2,
        "mediaType": docker::MANIFEST,
        "config": descriptor(docker::CONFIG),
        "layers": [descriptor(docker::LAYER_GZIP), descriptor(docker::LAYER)],
    });
    for (document, layers) in [(manifest(), 1), (docker, 2)] {
        let parsed = parse(&document).unwrap();
        assert!(matches!(parsed, Document::Manifest(manifest) if manifest.layers.len() == layers));
    }
}

#[test]
fn a33_documents_that_are_two_things_or_none_are_refused() {
    let index = json!({"schemaVersion": 2, "manifests": []});
    let both = with(manifest(), "manifests", json!([]));
    assert!(matches!(parse(&both), Err(ManifestError::Ambiguous)));
    assert!(matches!(
        parse(&json!({"schemaVersion": 2})),
        Err(ManifestError::Neither)
    ));
    assert!(matches!(
        parse(&json!({"fsLayers": []})),
        Err(ManifestError::Schema1)
    ));
    assert!(matches!(
        parse(&with(manifest(), "layers", json!([]))),
        Err(ManifestError::NoLayers)
    ));
    let many = vec![descriptor(OCI_LAYER); MAX_LAYERS + 1];
    assert!(matches!(
        parse(&with(manifest(), "layers", json!(many))),
        Err(ManifestError::TooManyLayers(128))
    ));
    for (document, claim) in [
        (index, docker::MANIFEST),
        (manifest(), docker::LIST),
        (manifest(), "text/html"),
    ] {
        let claimed = with(document, "mediaType", json!(claim));
        assert!(
            matches!(parse(&claimed), Err(ManifestError::MediaType { .. })),
            "{claim}"
        );
    }
}

#[test]
fn a30_sizes_and_digests_that_cannot_be_are_refused() {
    for (key, value) in [
        ("size", json!(-1)),
        ("size", json!("1")),
        ("size", json!(1.5)),
        ("digest", json!("sha256:../../x")),
        ("digest", json!("md5:00")),
    ] {
        let layer = with(descriptor(OCI_LAYER), key, value.clone());
        assert!(
            parse(&with(manifest(), "layers", json!([layer]))).is_err(),
            "{key} {value}"
        );
    }
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let foreign = descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    assert!(matches!(
        parse(&with(manifest(), "layers", json!([foreign]))),
        Err(ManifestError::NonDistributable { .. })
    ));
    let strange = descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
    assert!(matches!(
        parse(&with(manifest(), "layers", json!([strange]))),
        Err(ManifestError::Layer { .. })
    ));
    let artifact = with(
        manifest(),
        "config",
        descriptor("application/vnd.oci.empty.v1+json"),
    );
    assert!(matches!(parse(&artifact), Err(ManifestError::Artifact(_))));
}

#[test]
fn the_entry_for_this_machine_is_chosen() {
    let attestation = entry("unknown", "unknown", 4);
    let unspecific = descriptor("application/vnd.oci.image.manifest.v1+json");
    assert_eq!(
        chosen(&[
            entry("linux", "arm64", 2),
            entry("linux", "amd64", 3),
            entry("linux", "amd64", 5)
        ])
        .unwrap(),
        3
    );
    assert_eq!(
        chosen(&[entry("linux", "arm64", 2), unspecific]).unwrap(),
        1
    );
    let error = chosen(&[entry("linux", "arm64", 2), attestation]).unwrap_err();
    assert!(
        error.to_string().ends_with("offered: linux/arm64"),
        "{error}"
    );
    assert!(chosen(&[]).is_err());
}

#[test]
fn a30_configurations_must_fit() {
    let config = |os: &str, diff_ids: &[&str]| {
        json!({"os": os, "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string()
    };
    assert!(parse_config(config("linux", &[DIGEST]).as_bytes(), 1).is_ok());
    assert!(matches!(
        parse_config(config("linux", &[DIGEST]).as_bytes(), 2),
        Err(ManifestError::DiffIds {
            layers: 2,
            diff_ids: 1
        })
    ));
    assert!(matches!(
        parse_config(config("windows", &[DIGEST]).as_bytes(), 1),
        Err(ManifestError::Platform { .. })
    ));
    assert!(matches!(
        parse_config(config("linux", &["sha256:.."]).as_bytes(), 1),
        Err(ManifestError::Digest(_))
    ));
}

#[test]
fn chain_ids_follow_the_specification() {
    let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
    assert_eq!(chain_id(&[]), None);
    assert_eq!(chain_id(&[one]), Some(one));
    assert_eq!(
        chain_id(&[one, two]),
        Some(Digest::of(format!("{one} {two}").as_bytes()))
    );
}

/// JSON that has the right keys and anything behind them.
fn hostile_json() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "schemaVersion",
        "mediaType",
        "manifests",
        "layers",
        "config",
        "digest",
        "size",
        "platform",
        "os",
        "rootfs",
        "diff_ids",
        "type",
        "architecture",
    ]);
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::from),
        Just(json!(2)),
        Just(json!(DIGEST)),
        Just(Value::Null),
        "[a-z/+.]{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(String::from), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_an_answer(document in hostile_json(), layers in 0usize..3) {
        let text = document.to_string();
        if let Ok(Document::Index(index)) = Document::parse(text.as_bytes()) {
            let _ = select(&index);
        }
        let _ = parse_config(text.as_bytes(), layers);
    }

    #[test]
    fn any_bytes_are_an_answer(bytes: Vec<u8>) {
        prop_assert!(Document::parse(&bytes).is_err());
    }
}

#[test]
fn only_platforms_that_run_here_are_accepted() {
    for text in [
        "linux/amd64",
        "linux",
        "amd64",
        "Linux/x86_64",
        "linux/amd64/v1",
    ] {
        assert_eq!(text.parse(), Ok(Platform::HOST), "{text}");
    }
    for text in [
        "",
        "linux/arm64",
        "windows/amd64",
        "linux/",
        "/amd64",
        "linux/amd64/v9",
    ] {
        assert!(text.parse::<Platform>().is_err(), "{text}");
    }
}
