//! Saving: images of the store as an archive that everybody reads.
//!
//! It is an OCI layout and what `docker load` reads, in one; `load` reads it back as it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use serde_json::{Value, json};

use crate::image::{
    digest::Digest,
    layout, manifest,
    store::{Contents, FileError, Store, StoreError},
};

/// Why images were not saved.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SaveError {
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the image store is not readable")]
    File(#[from] FileError),
}

impl Store {
    /// Writes the images of these names or IDs to `output`, an image with several of the names once.
    ///
    /// # Errors
    ///
    /// Where there is no such image, and where `output` cannot be written.
    pub fn save(&self, names: &[String], output: impl Write) -> Result<(), SaveError> {
        let images = names
            .iter()
            .map(|name| self.contents(name))
            .collect::<Result<Vec<_>, _>>()?;
        let mut archive = tar::Builder::new(output);
        let mut written = BTreeSet::new();
        for image in &images {
            for digest in image.layers().chain([image.config(), image.manifest]) {
                if written.insert(digest) {
                    let (file, size) = self.open_blob(&digest)?;
                    append(&mut archive, &layout::blob_path(&digest), size, file)?;
                }
            }
        }
        let index = self.index(&images)?;
        for (name, document) in [
            (layout::INDEX, index),
            ("manifest.json", manifest_json(&images)),
            (layout::MARKER, json!({"imageLayoutVersion": "1.0.0"})),
        ] {
            let bytes = document.to_string();
            append(&mut archive, name, bytes.len() as u64, bytes.as_bytes())?;
        }
        let mut output = archive.into_inner().map_err(SaveError::Write)?;
        output.flush().map_err(SaveError::Write)
    }

    /// index.json: an entry for each name.
    fn index(&self, images: &[Contents]) -> Result<Value, SaveError> {
        let mut entries = Vec::new();
        for image in images {
            let media_type = manifest::media_type(&self.read_document(&image.manifest)?);
            let (_, size) = self.open_blob(&image.manifest)?;
            let mut entry = json!({
                "mediaType": media_type.as_ref(),
                "digest": image.manifest,
                "size": size,
                "platform": {"architecture": "amd64", "os": "linux"},
            });
            if let Some(reference) = image
                .reference
                .as_ref()
                .filter(|reference| reference.digest().is_none())
            {
                entry["annotations"] = json!({
                    layout::FULL_NAME: reference.to_string(),
                    layout::REF_NAME: reference.tag(),
                });
            }
            entries.push(entry);
        }
        Ok(json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        }))
    }
}

/// What `docker load` reads: an item for each image, with its names.
fn manifest_json(images: &[Contents]) -> Value {
    let mut items: BTreeMap<Digest, (Vec<String>, Vec<String>, String)> = BTreeMap::new();
    for image in images {
        let (tags, ..) = items.entry(image.manifest).or_insert_with(|| {
            let layers = image.layers().map(|layer| layout::blob_path(&layer));
            (
                Vec::new(),
                layers.collect(),
                layout::blob_path(&image.config()),
            )
        });
        tags.extend(
            image
                .reference
                .iter()
                .filter(|name| name.digest().is_none())
                .map(super::reference::Reference::familiar),
        );
    }
    items
        .into_values()
        .map(|(tags, layers, config)| json!({"Config": config, "RepoTags": tags, "Layers": layers}))
        .collect()
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    content: impl io::Read,
) -> Result<(), SaveError> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, name, content)
        .map_err(SaveError::Write)
}
