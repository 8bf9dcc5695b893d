//! An image made of one archive that holds a root file system: what `import` takes.
//!
//! The archive becomes the only layer, packed with gzip as every registry and engine takes it; from there on it is
//! taken in and verified as any other image.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::PathBuf,
};

use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use oci_spec::image::{Config, MediaType};
use serde_json::{Value, json};

use crate::image::{
    archive::Input,
    change::Change,
    digest::{Algorithm, Digest, Hashed},
    import::{Import, ImportError, Observer, Source, SourceError},
    manifest::Blob,
    reference::Reference,
    store::{FileError, NameRecord, Store, StoreError, Transaction},
};

/// Why no image was made of an archive.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RootArchiveError {
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
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

/// Everything the image consists of, before it is taken in.
struct Made {
    documents: [(Blob, Vec<u8>); 2],
    layer: Blob,
    path: PathBuf,
}

impl Source for Made {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let document = self
            .documents
            .iter()
            .find(|(made, _)| made.digest == blob.digest);
        Ok(match document {
            Some((_, bytes)) => Box::new(bytes.as_slice()),
            None => Box::new(File::open(&self.path)?),
        })
    }

    fn spooled(&self, blob: &Blob) -> Option<PathBuf> {
        (blob.digest == self.layer.digest).then(|| self.path.clone())
    }
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
            .run(&made.documents[1].0)
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
    let (file, path) = transaction.new_file()?;
    let (layer, diff_id) = pack(input.into_reader(), file, &path)?;
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

/// Packs a tar file as a layer and gives the layer and its diff_id.
fn pack(
    archive: impl Read,
    file: File,
    path: &std::path::Path,
) -> Result<(Blob, Digest), RootArchiveError> {
    let written = |source| FileError::Write(path.into(), source);
    let mut archive = Hashed::new(archive, Algorithm::Sha256);
    let blob = Hashed::new(BufWriter::new(file), Algorithm::Sha256);
    let mut encoder = GzEncoder::new(blob, Compression::default());
    let mut piece = vec![0; 128 << 10];
    loop {
        match archive.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => encoder.write_all(&piece[..count]).map_err(written)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(RootArchiveError::Read(error)),
        }
    }
    let (mut file, digest, size) = encoder.finish().map_err(written)?.finish();
    file.flush().map_err(written)?;
    let (_, diff_id, _) = archive.finish();
    let media_type = MediaType::ImageLayerGzip;
    let blob = Blob {
        media_type,
        digest,
        size,
    };
    Ok((blob, diff_id))
}

fn document(media_type: MediaType, content: &Value) -> (Blob, Vec<u8>) {
    let bytes = content.to_string().into_bytes();
    let blob = Blob {
        media_type,
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    (blob, bytes)
}

fn descriptor(blob: &Blob) -> Value {
    json!({"mediaType": blob.media_type.as_ref(), "digest": blob.digest, "size": blob.size})
}
