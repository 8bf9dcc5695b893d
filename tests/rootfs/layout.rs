//! OCI layouts: written for made-up layers, read for real images.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use pillbug::image::digest::{Algorithm, Digest, Hashed};
use pillbug::image::layer::Compression;
use serde_json::{Value, json};

/// A layer's blob.
pub struct Layer {
    pub blob: PathBuf,
    pub digest: Digest,
    pub compression: Compression,
    pub diff_id: Digest,
}

/// Writes an image of plain tar layers, tagged `image`, and returns its layers.
pub fn write(layout: &Path, archives: &[Vec<u8>]) -> Vec<Layer> {
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blob(layout, &digest.to_string()), bytes).unwrap();
        json!({ "digest": digest.to_string(), "size": bytes.len() })
    };
    let typed = |mut descriptor: Value, kind: &str| {
        descriptor["mediaType"] = json!(format!("application/vnd.oci.image.{kind}"));
        descriptor
    };
    let diff_ids: Vec<_> = archives
        .iter()
        .map(|bytes| Digest::of(bytes).to_string())
        .collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let layers: Vec<_> = archives
        .iter()
        .map(|bytes| typed(put(bytes), "layer.v1.tar"))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "config": typed(put(config.to_string().as_bytes()), "config.v1+json"),
        "layers": layers,
    });
    let mut descriptor = typed(put(manifest.to_string().as_bytes()), "manifest.v1+json");
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": "image" });
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    layers_of(layout)
}

/// The layers of a layout's only image, from the lowest to the topmost.
pub fn layers_of(layout: &Path) -> Vec<Layer> {
    let index = read(&layout.join("index.json"));
    let manifest = document(layout, &index["manifests"][0]);
    let config = document(layout, &manifest["config"]);
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(diff_ids.len(), layers.len());
    let layer = |(descriptor, diff_id): (&Value, &Value)| Layer {
        blob: blob(layout, descriptor["digest"].as_str().unwrap()),
        digest: descriptor["digest"].as_str().unwrap().parse().unwrap(),
        compression: match descriptor["mediaType"].as_str().unwrap() {
            kind if kind.ends_with("gzip") => Compression::Gzip,
            kind if kind.ends_with("zstd") => Compression::Zstd,
            _ => Compression::None,
        },
        diff_id: diff_id.as_str().unwrap().parse().unwrap(),
    };
    layers.iter().zip(diff_ids).map(layer).collect()
}

/// A blob, opened so that its digest can be compared when it has been read.
pub fn open(layer: &Layer) -> Hashed<File> {
    Hashed::new(File::open(&layer.blob).unwrap(), Algorithm::Sha256)
}

fn document(layout: &Path, descriptor: &Value) -> Value {
    read(&blob(layout, descriptor["digest"].as_str().unwrap()))
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}
