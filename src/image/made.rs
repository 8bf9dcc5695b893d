//! Images that are made on this machine: documents, and one new layer, packed with gzip as every registry and engine takes
//! it. From there on it is taken in and verified as any other image.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::PathBuf,
};

use flate2::{Compression, write::GzEncoder};
use oci_spec::image::MediaType;
use serde_json::{Value, json};

use crate::image::{
    digest::{Algorithm, Digest, Hashed},
    import::{Source, SourceError},
    manifest::Blob,
    store::{FileError, Transaction},
};

/// Everything that is new of an image: configuration, manifest and the uppermost layer.
pub(super) struct Made {
    /// Configuration and manifest.
    pub documents: [(Blob, Vec<u8>); 2],
    /// The layer.
    pub layer: Blob,
    /// Its file.
    pub path: PathBuf,
}

impl Made {
    /// The manifest.
    pub fn manifest(&self) -> &Blob {
        &self.documents[1].0
    }
}

impl Source for Made {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let document = self
            .documents
            .iter()
            .find(|(made, _)| made.digest == blob.digest);
        Ok(match document {
            Some((_, bytes)) => Box::new(bytes.as_slice()),
            None if blob.digest == self.layer.digest => Box::new(File::open(&self.path)?),
            None => return Err("the image that it is made of is damaged".into()),
        })
    }

    fn spooled(&self, blob: &Blob) -> Option<PathBuf> {
        (blob.digest == self.layer.digest).then(|| self.path.clone())
    }
}

/// A layer in the making: what is written to it is its archive.
pub(super) struct Packer {
    archive: Hashed<GzEncoder<Hashed<BufWriter<File>>>>,
    path: PathBuf,
}

/// A layer that is packed.
pub(super) struct Packed {
    /// As registries know it.
    pub layer: Blob,
    /// Digest of the archive.
    pub diff_id: Digest,
    /// Its file, which is the transaction's.
    pub path: PathBuf,
}

impl Packer {
    /// A new layer in a file of the transaction.
    pub fn new(transaction: &Transaction<'_>) -> Result<Self, FileError> {
        let (file, path) = transaction.new_file()?;
        let packed = Hashed::new(BufWriter::new(file), Algorithm::Sha256);
        let encoder = GzEncoder::new(packed, Compression::default());
        Ok(Self {
            archive: Hashed::new(encoder, Algorithm::Sha256),
            path,
        })
    }

    /// Ends it.
    pub fn finish(self, media_type: MediaType) -> Result<Packed, FileError> {
        let (encoder, diff_id, _) = self.archive.finish();
        let path = self.path;
        let written = |source| FileError::Write(path.clone(), source);
        let (mut file, digest, size) = encoder.finish().map_err(written)?.finish();
        file.flush().map_err(written)?;
        let layer = Blob {
            media_type,
            digest,
            size,
        };
        Ok(Packed {
            layer,
            diff_id,
            path,
        })
    }
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.archive.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.archive.flush()
    }
}

/// A document as it is kept.
pub(super) fn document(media_type: MediaType, content: &Value) -> (Blob, Vec<u8>) {
    let bytes = content.to_string().into_bytes();
    let blob = Blob {
        media_type,
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    (blob, bytes)
}

/// How a manifest speaks of a blob.
pub(super) fn descriptor(blob: &Blob) -> Value {
    json!({"mediaType": blob.media_type.as_ref(), "digest": blob.digest, "size": blob.size})
}
