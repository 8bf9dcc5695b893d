//! An image made of another and one more layer: what `commit` gives.

use std::io::Write;

use jiff::Timestamp;
use oci_spec::image::{Config, MediaType};
use serde_json::{Value, json};

use crate::image::{
    digest::Digest,
    import::{Import, ImportError},
    made::{Made, Packed, Packer, descriptor, document},
    manifest,
    reference::Reference,
    store::{FileError, NameRecord, Store, StoreError, Transaction},
};

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CommitError {
    #[error("{0} is damaged")]
    Document(Digest, #[source] serde_json::Error),
    #[error("{0} is no image that can be built upon")]
    Malformed(Digest),
    #[error("the new layer cannot be used")]
    Import(#[source] Box<ImportError>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the image store is not writable")]
    File(#[from] FileError),
}

/// What is said of an image besides its content.
#[derive(Debug)]
pub struct CommitRecipe {
    /// Its name.
    pub name: Option<Reference>,
    /// Its configuration.
    pub config: Config,
    /// Who made it.
    pub author: Option<String>,
    /// What is new in it.
    pub message: String,
    /// What made the layer.
    pub command: String,
}

impl Store {
    /// Makes an image of the one with this manifest and a layer above its own, whose archive `write` gives; returns its ID.
    ///
    /// # Errors
    ///
    /// Where `write` fails, the layer holds what no image may, or the store cannot be written; it is then as it was.
    pub fn commit<E: From<CommitError>>(
        &self,
        base: &Digest,
        recipe: CommitRecipe,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<Digest, E> {
        let image = self.image(base, None).map_err(CommitError::from)?;
        let mut transaction = Transaction::begin(self).map_err(CommitError::from)?;
        let mut packer = Packer::new(&transaction).map_err(CommitError::from)?;
        write(&mut packer)?;
        let imported = self
            .finish_commit(base, &recipe, packer, &mut transaction)
            .and_then(|(manifest, id)| {
                if let Some(name) = recipe.name {
                    let target = manifest;
                    transaction.add_name(name, NameRecord { manifest, target });
                }
                transaction.commit()?;
                Ok(id)
            })?;
        drop(image);
        Ok(imported)
    }

    /// Takes the new image into the transaction; its manifest and its ID.
    fn finish_commit(
        &self,
        base: &Digest,
        recipe: &CommitRecipe,
        packer: Packer,
        transaction: &mut Transaction<'_>,
    ) -> Result<(Digest, Digest), CommitError> {
        let mut manifest = self.document(base)?;
        let record = self
            .record(base)?
            .ok_or_else(|| StoreError::Unknown(base.to_string()))?;
        let mut config = self.document(&record.config)?;
        let base_type = manifest::media_type(&self.read_document(base)?);
        let layer_type = match base_type.as_ref() {
            DOCKER_MANIFEST => MediaType::Other(DOCKER_LAYER.into()),
            _ => MediaType::ImageLayerGzip,
        };
        let Packed {
            layer,
            diff_id,
            path,
        } = packer.finish(layer_type)?;

        let malformed = || CommitError::Malformed(*base);
        add_step(&mut config, recipe, &diff_id).ok_or_else(malformed)?;
        let config_type = manifest["config"]["mediaType"]
            .as_str()
            .ok_or_else(malformed)?;
        let config = document(MediaType::from(config_type), &config);
        manifest["config"] = descriptor(&config.0);
        push(&mut manifest["layers"], descriptor(&layer)).ok_or_else(malformed)?;
        if let Some(manifest) = manifest.as_object_mut() {
            // They speak of the image that this one is made of.
            manifest.remove("annotations");
            manifest.remove("subject");
        }
        let made = Made {
            documents: [config, document(base_type, &manifest)],
            layer,
            path,
        };
        let import = Import {
            transaction,
            source: &made,
            observer: &|_| {},
        };
        let (imported, record) = import
            .run(made.manifest())
            .map_err(|error| CommitError::Import(Box::new(error)))?;
        transaction.add_image(imported.manifest, record);
        Ok((imported.manifest, imported.id))
    }

    fn document(&self, digest: &Digest) -> Result<Value, CommitError> {
        let bytes = self.read_document(digest)?;
        serde_json::from_slice(&bytes).map_err(|error| CommitError::Document(*digest, error))
    }
}

/// Media types of images in Docker's own format.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Adds a layer and what is said of it to an image's configuration; `None` where that is no configuration.
fn add_step(config: &mut Value, recipe: &CommitRecipe, diff_id: &Digest) -> Option<()> {
    let created = Timestamp::now().to_string();
    push(&mut config["rootfs"]["diff_ids"], json!(diff_id))?;
    let mut step = json!({
        "created": created,
        "created_by": recipe.command,
        "comment": recipe.message,
    });
    let object = config.as_object_mut()?;
    object.insert("created".into(), created.into());
    object.insert("comment".into(), recipe.message.clone().into());
    object.insert("config".into(), serde_json::to_value(&recipe.config).ok()?);
    // What Docker's own builder keeps of the container that made the image before.
    object.remove("container");
    object.remove("container_config");
    match &recipe.author {
        Some(author) => {
            step["author"] = author.clone().into();
            object.insert("author".into(), author.clone().into());
        }
        None => _ = object.remove("author"),
    }
    let history = object.entry("history").or_insert_with(|| json!([]));
    push(history, step)
}

fn push(array: &mut Value, value: Value) -> Option<()> {
    array.as_array_mut()?.push(value);
    Some(())
}
