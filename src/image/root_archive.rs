//! An image made of one archive that holds a root file system: what `import` takes.
//!
//! The archive becomes the only layer, packed with gzip as every registry and engine takes it; from there on it is
//! taken in and verified as any other image.

use std::{
    fs::File,
    io::{self, Read, Write},
};

use jiff::Timestamp;
use oci_spec::image::{Config, MediaType};
use serde_json::json;

use crate::image::{
    archive::Input,
    change::Change,
    digest::Digest,
    import::{Import, ImportError, Observer},
    made::{Made, Packed, Packer, descriptor, document},
    reference::Reference,
    store::{FileError, NameRecord, Store, StoreError, Transaction},
};

/// Why no image was made of an archive.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RootArchiveError {
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    #[error("cannot import the archive")]
    Import(#[source] Box<ImportError>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the image store is not writable")]
    File(#[from] FileError),
}

/// What is said of the image besides its content.
#[derive(Debug, Default)]
pub struct Recipe {
    /// Its name.
    pub name: Option<Reference>,
    /// What its configuration says, in the order given.
    pub changes: Vec<Change>,
    /// Its only step in `history`.
    pub message: String,
}

impl Store {
    /// Makes an image of a tar file with a root file system, which may be compressed, and gives its ID.
    ///
    /// # Errors
    ///
    /// Where the archive is damaged or holds what no image may, and where the store cannot be written; it is then as
    /// it was.
    pub fn import(
        &self,
        archive: File,
        recipe: Recipe,
        observer: Observer<'_>,
    ) -> Result<Digest, RootArchiveError> {
        let mut transaction = Transaction::begin(self)?;
        let made = make(archive, &recipe, &transaction)?;
        let import = Import {
            transaction: &transaction,
            source: &made,
            observer,
        };
        let (imported, record) = import
            .run(made.manifest())
            .map_err(|error| RootArchiveError::Import(Box::new(error)))?;
        transaction.add_image(imported.manifest, record);
        if let Some(name) = recipe.name {
            let record = NameRecord {
                manifest: imported.manifest,
                target: imported.manifest,
            };
            transaction.add_name(name, record);
        }
        transaction.commit()?;
        Ok(imported.id)
    }
}

fn make(
    archive: File,
    recipe: &Recipe,
    transaction: &Transaction<'_>,
) -> Result<Made, RootArchiveError> {
    let input = Input::open(archive).map_err(RootArchiveError::Read)?;
    let mut packer = Packer::new(transaction)?;
    copy(input.into_reader(), &mut packer)?;
    let Packed {
        layer,
        diff_id,
        path,
    } = packer.finish(MediaType::ImageLayerGzip)?;
    let mut config = Config::default();
    for change in recipe.changes.clone() {
        change.apply(&mut config);
    }
    let created = Timestamp::now().to_string();
    let config = document(
        MediaType::ImageConfig,
        &json!({
            "created": created,
            "architecture": "amd64",
            "os": "linux",
            "comment": recipe.message,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "comment": recipe.message}],
        }),
    );
    let manifest = document(
        MediaType::ImageManifest,
        &json!({
            "schemaVersion": 2,
            "mediaType": MediaType::ImageManifest.as_ref(),
            "config": descriptor(&config.0),
            "layers": [descriptor(&layer)],
        }),
    );
    let documents = [config, manifest];
    Ok(Made {
        documents,
        layer,
        path,
    })
}

/// Copies a tar file into a layer.
fn copy(mut archive: impl Read, packer: &mut Packer) -> Result<(), RootArchiveError> {
    let mut piece = vec![0; 128 << 10];
    loop {
        match archive.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => packer
                .write_all(&piece[..count])
                .map_err(RootArchiveError::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(RootArchiveError::Read(error)),
        }
    }
}
