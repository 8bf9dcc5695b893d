//! Taking an image into the store from wherever its blobs come from: every byte verified on the way in, layers
//! taken apart, the root file system made.
//!
//! A [`Source`] only hands out bytes; nothing it says is believed. What a name shall mean is the caller's business.

mod arrived;
mod download;

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    fs::File,
    io::{self, BufReader, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use arrived::Arrived;

use crate::image::{
    digest::Digest,
    layer::{self, Compression, LayerError, LayerLimits},
    manifest::{self, Blob, Document, MAX_DOCUMENT, MAX_INDEX_DEPTH, Manifest, ManifestError},
    rootfs::{self, RootfsError},
    store::{FileError, Kind, Record, Transaction},
};

/// Where the blobs of an image come from.
pub(crate) trait Source: Sync {
    /// Begins to read a blob. The reader may give anything, also without end.
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>, SourceError>;

    /// The blob as a file of the running transaction that may be moved, where it is one.
    fn spooled(&self, _blob: &Blob) -> Option<PathBuf> {
        None
    }

    /// This source as one that is far away, where it is.
    fn remote(&self) -> Option<&dyn Remote> {
        None
    }
}

/// A source whose transfers break, are resumed, and are worth keeping when they are not finished.
pub(crate) trait Remote: Source {
    /// Begins to read a blob at its byte number `from`.
    fn open_at(&self, blob: &Blob, from: u64) -> Result<Box<dyn Read + Send + '_>, SourceError>;

    /// Waits until a transfer may be resumed that broke for the time number `retry` without progress in between,
    /// 0 being the first; false to give up.
    fn wait(&self, retry: u32) -> bool;

    /// Most layers to transfer at once.
    fn parallel(&self) -> usize;

    /// Ends all waiting: one layer has failed.
    fn give_up(&self);

    /// Whether a layer has failed, so that the others are of no use.
    fn is_over(&self) -> bool;
}

/// Why a source has no such blob; its text names the source.
pub(crate) type SourceError = Box<dyn Error + Send + Sync>;

/// Something that happened during an import; digests are those of blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A layer is part of the image; each is told before anything is done about any, lowest first.
    Found(Digest),
    /// A layer was in the store already.
    Present(Digest),
    /// So many of the bytes of a layer have arrived.
    Received {
        /// Which layer.
        layer: Digest,
        /// Bytes so far.
        bytes: u64,
        /// Bytes there will be.
        total: u64,
    },
    /// Another process is fetching a layer that is waited for.
    Waiting(Digest),
    /// A layer arrived whole; so many of its bytes have been taken apart.
    Converting {
        /// Which layer.
        layer: Digest,
        /// Bytes so far.
        bytes: u64,
        /// Bytes there are.
        total: u64,
    },
    /// A layer is ready.
    Ready(Digest),
}

/// Whoever wants to know; called from several threads.
pub type Observer<'a> = &'a (dyn Fn(Progress) + Sync);

/// Why an image cannot be taken into the store.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ImportError {
    #[error("cannot get {digest}")]
    Open { digest: Digest, source: SourceError },
    #[error("{0} is not fetched, since another layer cannot be had")]
    GivenUp(Digest),
    #[error("cannot read {digest}")]
    Read { digest: Digest, source: io::Error },
    #[error("{digest} has {found}, its manifest says {expected} bytes")]
    Size {
        digest: Digest,
        expected: u64,
        found: String,
    },
    #[error("{expected} has other content, of digest {found}")]
    Digest { expected: Digest, found: String },
    #[error("document {digest} has {size} bytes, more than the {MAX_DOCUMENT} allowed")]
    DocumentSize { digest: Digest, size: u64 },
    #[error("{digest} cannot be used")]
    Manifest {
        digest: Digest,
        source: ManifestError,
    },
    #[error("indexes within indexes, more than {MAX_INDEX_DEPTH} deep, at {0}")]
    IndexDepth(Digest),
    #[error("layer {digest} cannot be used")]
    Layer { digest: Digest, source: LayerError },
    #[error("cannot make the root file system of image {digest}")]
    Rootfs { digest: Digest, source: RootfsError },
    #[error("the image store is not writable")]
    Store(#[from] FileError),
}

impl ImportError {
    /// Whether another attempt may go better, so that what has arrived is worth keeping for it.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Open { .. } | Self::Read { .. } | Self::GivenUp(_)
        )
    }
}

/// An image whose content is complete within a transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Imported {
    /// Its manifest.
    pub manifest: Digest,
    /// Its configuration.
    pub id: Digest,
}

/// One import under way.
pub(crate) struct Import<'a> {
    /// What it is part of.
    pub transaction: &'a Transaction<'a>,
    /// Where the blobs come from.
    pub source: &'a dyn Source,
    /// Who is told.
    pub observer: Observer<'a>,
}

impl Import<'_> {
    /// Takes in the image that `root`, a manifest or an index, leads to on this platform, and gives its record.
    pub fn run(&self, root: &Blob) -> Result<(Imported, Record), ImportError> {
        let result = self.take_in(root);
        if result.as_ref().is_err_and(|error| !error.may_pass()) {
            self.transaction.forget_downloads();
        }
        result
    }

    fn take_in(&self, root: &Blob) -> Result<(Imported, Record), ImportError> {
        let (manifest_blob, manifest, bytes) = self.manifest(root)?;
        let config_bytes = self.document(&manifest.config)?;
        let (_, diff_ids) = manifest::parse_config(&config_bytes, manifest.layers.len())
            .map_err(|source| refused(&manifest.config, source))?;
        let record = Record::new(&manifest, &diff_ids)
            .ok_or_else(|| refused(&manifest_blob, ManifestError::NoLayers))?;
        let chain = record.rootfs;
        self.transaction
            .pin(&record.objects(&manifest_blob.digest))?;
        self.keep(&manifest_blob, &bytes)?;
        self.keep(&manifest.config, &config_bytes)?;
        let folders = self.layers(&manifest.layers, &diff_ids)?;
        if self.transaction.find(Kind::Rootfs, &chain).is_none() {
            let path = self.transaction.new_path();
            rootfs::build(&folders, &path).map_err(|source| ImportError::Rootfs {
                digest: manifest_blob.digest,
                source,
            })?;
            self.transaction.stage(Kind::Rootfs, &chain, &path)?;
        }
        let imported = Imported {
            manifest: manifest_blob.digest,
            id: manifest.config.digest,
        };
        Ok((imported, record))
    }

    /// Follows indexes to the manifest for this platform.
    fn manifest(&self, root: &Blob) -> Result<(Blob, Manifest, Vec<u8>), ImportError> {
        let mut blob = root.clone();
        for _ in 0..=MAX_INDEX_DEPTH {
            let bytes = self.document(&blob)?;
            match Document::parse(&bytes).map_err(|source| refused(&blob, source))? {
                Document::Manifest(manifest) => return Ok((blob, manifest, bytes)),
                Document::Index(index) => {
                    blob = manifest::select(&index).map_err(|source| refused(&blob, source))?;
                }
            }
        }
        Err(ImportError::IndexDepth(blob.digest))
    }

    /// A verified document in memory.
    fn document(&self, blob: &Blob) -> Result<Vec<u8>, ImportError> {
        if blob.size > MAX_DOCUMENT {
            return Err(ImportError::DocumentSize {
                digest: blob.digest,
                size: blob.size,
            });
        }
        let mut bytes = Vec::new();
        self.receive(blob, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Puts a verified document into the store.
    fn keep(&self, blob: &Blob, bytes: &[u8]) -> Result<(), ImportError> {
        if self.transaction.find(Kind::Blobs, &blob.digest).is_none() {
            let (mut file, path) = self.transaction.new_file()?;
            write(&mut file, &path, bytes)?;
            self.settle(&file, blob, &path)?;
        }
        Ok(())
    }

    /// Makes every layer ready, a few at once, and gives their folders, lowest first.
    fn layers(&self, blobs: &[Blob], diff_ids: &[Digest]) -> Result<Vec<PathBuf>, ImportError> {
        let mut distinct: Vec<(&Blob, &Digest)> = blobs.iter().zip(diff_ids).collect();
        let mut seen = HashSet::new();
        distinct.retain(|(blob, diff_id)| seen.insert((blob.digest, **diff_id)));
        for (blob, _) in &distinct {
            (self.observer)(Progress::Found(blob.digest));
        }
        let next = AtomicUsize::new(0);
        let ready = Mutex::new(Ok(HashMap::new()));
        let work = || {
            while let Some((blob, diff_id)) = distinct.get(next.fetch_add(1, Ordering::Relaxed)) {
                let layer = self.layer(blob, diff_id);
                let mut ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
                match (layer, &mut *ready) {
                    (Ok(folder), Ok(folders)) => {
                        folders.insert(**diff_id, folder);
                    }
                    (Err(error), Ok(_)) => {
                        *ready = Err(error);
                        // Nobody begins another layer, or goes on with one.
                        next.store(distinct.len(), Ordering::Relaxed);
                        if let Some(remote) = self.source.remote() {
                            remote.give_up();
                        }
                    }
                    (_, Err(_)) => {}
                }
            }
        };
        let workers = match self.source.remote() {
            Some(remote) => remote.parallel(),
            None => thread::available_parallelism().map_or(1, usize::from),
        };
        let workers = workers.clamp(1, MAX_WORKERS);
        thread::scope(|scope| {
            for _ in 1..workers.min(distinct.len()) {
                scope.spawn(work);
            }
            work();
        });
        let folders = ready.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        Ok(diff_ids
            .iter()
            .filter_map(|diff_id| folders.get(diff_id).cloned())
            .collect())
    }

    /// Makes one layer ready, its blob in the store and taken apart, and gives its folder.
    fn layer(&self, blob: &Blob, diff_id: &Digest) -> Result<PathBuf, ImportError> {
        let transaction = self.transaction;
        if self.source.remote().is_some() {
            transaction.claim_download(&blob.digest);
        }
        let stored = transaction.find(Kind::Blobs, &blob.digest);
        let folder = transaction.find(Kind::Layers, diff_id);
        match (stored, folder, self.source.remote()) {
            (Some(_), Some(folder), _) => {
                (self.observer)(Progress::Present(blob.digest));
                Ok(folder)
            }
            (_, _, Some(remote)) => self.download(remote, blob, diff_id),
            (stored, folder, None) => {
                let path = stored.map_or_else(|| self.read(blob), Ok)?;
                let folder = match folder {
                    Some(folder) => folder,
                    None => {
                        let made = self.convert(blob, &path, diff_id)?;
                        transaction.stage(Kind::Layers, diff_id, &made)?
                    }
                };
                (self.observer)(Progress::Ready(blob.digest));
                Ok(folder)
            }
        }
    }

    /// Takes the blob at `path` apart into a new folder.
    fn convert(&self, blob: &Blob, path: &Path, diff_id: &Digest) -> Result<PathBuf, ImportError> {
        let read = |source| ImportError::Read {
            digest: blob.digest,
            source,
        };
        let mut file = File::open(path).map_err(read)?;
        let compression = compression(&mut file).map_err(read)?;
        let folder = self.transaction.new_folder()?;
        let watched = Watched {
            file,
            blob,
            bytes: 0,
            observer: self.observer,
        };
        let converted = layer::convert(
            BufReader::with_capacity(PIECE, watched),
            compression,
            diff_id,
            &LayerLimits::default(),
            &folder,
        );
        converted.map_err(|source| ImportError::Layer {
            digest: blob.digest,
            source,
        })?;
        Ok(folder)
    }

    /// Brings a blob of a source on this machine into the transaction.
    fn read(&self, blob: &Blob) -> Result<PathBuf, ImportError> {
        let mut bytes = 0;
        let mut arrived = |piece: &[u8]| {
            bytes += piece.len() as u64;
            let (layer, total) = (blob.digest, blob.size);
            (self.observer)(Progress::Received {
                layer,
                bytes,
                total,
            });
        };
        if let Some(path) = self.source.spooled(blob) {
            self.receive(blob, |piece| {
                arrived(piece);
                Ok(())
            })?;
            let file = File::open(&path).map_err(|source| FileError::Open(path.clone(), source))?;
            return self.settle(&file, blob, &path);
        }
        let (mut file, path) = self.transaction.new_file()?;
        self.receive(blob, |piece| {
            arrived(piece);
            write(&mut file, &path, piece)
        })?;
        self.settle(&file, blob, &path)
    }

    fn settle(&self, file: &File, blob: &Blob, path: &Path) -> Result<PathBuf, ImportError> {
        file.sync_all()
            .map_err(|source| FileError::Sync(path.into(), source))?;
        Ok(self.transaction.stage(Kind::Blobs, &blob.digest, path)?)
    }

    /// Reads a blob piece by piece; fails unless it is exactly what it should be.
    fn receive(
        &self,
        blob: &Blob,
        mut take: impl FnMut(&[u8]) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let digest = blob.digest;
        let mut reader = self
            .source
            .open(blob)
            .map_err(|source| ImportError::Open { digest, source })?;
        let mut arrived = Arrived::new(blob);
        arrived.take_from(&mut *reader, &mut take)?;
        arrived.check()
    }
}

/// A blob that is taken apart, and who is told how far that is.
struct Watched<'a> {
    file: File,
    blob: &'a Blob,
    bytes: u64,
    observer: Observer<'a>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.bytes += count as u64;
        (self.observer)(Progress::Converting {
            layer: self.blob.digest,
            bytes: self.bytes,
            total: self.blob.size,
        });
        Ok(count)
    }
}

/// Bytes read at once.
const PIECE: usize = 128 << 10;
/// Most layers in work at once; each may need the window of a decompressor.
const MAX_WORKERS: usize = 16;

fn refused(blob: &Blob, source: ManifestError) -> ImportError {
    ImportError::Manifest {
        digest: blob.digest,
        source,
    }
}

fn write(file: &mut File, path: &Path, bytes: &[u8]) -> Result<(), ImportError> {
    file.write_all(bytes)
        .map_err(|source| FileError::Write(path.into(), source).into())
}

/// How a blob is packed; `file` stays at its beginning.
fn compression(file: &mut File) -> io::Result<Compression> {
    let mut magic = Vec::new();
    Read::by_ref(file).take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(sniff(&magic))
}

/// How something is packed, by its first four bytes: media types are wrong often enough that every engine looks.
/// What comes out of a layer must have its diff_id in any case.
pub(crate) fn sniff(magic: &[u8]) -> Compression {
    match magic {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A frame (RFC 8878, 3.1.1) or a skippable frame before it (3.1.2).
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Compression::Zstd,
        _ => Compression::None,
    }
}
