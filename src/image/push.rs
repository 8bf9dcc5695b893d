//! Pushing: an image of the store to a registry, byte for byte as it came.

use std::{
    fs::File,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::image::{
    digest::Digest,
    manifest,
    reference::Reference,
    registry::{Access, Arrival, Client, RegistryError, Repository},
    store::{FileError, Store, StoreError},
};

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PushError {
    #[error("{0} has a digest: push a name with a tag")]
    Pinned(String),
    #[error("cannot push {name}")]
    Registry { name: String, source: RegistryError },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the image store is not readable")]
    File(#[from] FileError),
}

/// Something that happened to a layer on its way; digests are those of blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushProgress {
    /// So many of its bytes were sent.
    Sending {
        /// Which layer.
        layer: Digest,
        /// Bytes so far.
        bytes: u64,
        /// Bytes there are.
        total: u64,
    },
    /// It is at the registry, by way of this.
    Done(Digest, PushedBy),
}

/// How a layer came to be at the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushedBy {
    /// It was there.
    Presence,
    /// The registry had it in this other repository.
    Mount(String),
    /// It was sent.
    Sending,
}

/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Bytes of the manifest.
    pub size: u64,
}

impl Store {
    /// Pushes the image that `reference` names to the registry in that name.
    ///
    /// # Errors
    ///
    /// Where there is no such image, and where the registry does not take it; what it took it keeps for the next
    /// attempt.
    pub fn push(
        &self,
        client: &Client,
        reference: &Reference,
        observer: &(dyn Fn(PushProgress) + Sync),
    ) -> Result<Pushed, PushError> {
        let name = reference.familiar();
        let (Some(tag), None) = (reference.tag(), reference.digest()) else {
            return Err(PushError::Pinned(name));
        };
        let failed = |source| PushError::Registry {
            name: name.clone(),
            source,
        };
        let image = self.contents(&name)?;
        let repository = client.repository(reference, Access::Push).map_err(failed)?;
        let mut blobs = Vec::new();
        for digest in image.layers().chain([image.config()]) {
            blobs.push((digest, self.open_blob(&digest)?));
        }
        blobs.sort_by_key(|(digest, _)| *digest);
        blobs.dedup_by_key(|(digest, _)| *digest);
        let others = self.neighbours(reference)?;
        let config = image.config();
        let send = |(digest, (file, total)): &(Digest, (File, u64))| {
            let told = |progress| {
                if *digest != config {
                    observer(progress);
                }
            };
            send_one(&repository, digest, (file, *total), &others, &told)
        };
        let parallel = client.transfer().parallel.into();
        each(&blobs, parallel, send, || repository.give_up()).map_err(failed)?;
        let manifest = self.read_document(&image.manifest)?;
        repository
            .put_manifest(tag, &manifest::media_type(&manifest), &manifest)
            .map_err(failed)?;
        Ok(Pushed {
            digest: image.manifest,
            size: manifest.len() as u64,
        })
    }

    /// Other repositories at the registry of `reference` that images here are named after.
    fn neighbours(&self, reference: &Reference) -> Result<Vec<String>, StoreError> {
        /// More would cost more requests than they spare.
        const MOST: usize = 2;
        let mut paths: Vec<String> = self
            .list()?
            .into_iter()
            .flat_map(|image| image.names)
            .filter(|(name, _)| {
                name.domain() == reference.domain() && name.path() != reference.path()
            })
            .map(|(name, _)| name.path().into())
            .collect();
        paths.dedup();
        paths.truncate(MOST);
        Ok(paths)
    }
}

fn send_one(
    repository: &Repository<'_>,
    digest: &Digest,
    (file, total): (&File, u64),
    others: &[String],
    observer: &(dyn Fn(PushProgress) + Sync),
) -> Result<(), RegistryError> {
    let layer = *digest;
    let arrival = repository.upload(digest, (file, total), others, &|bytes| {
        observer(PushProgress::Sending {
            layer,
            bytes,
            total,
        });
    })?;
    let by = match arrival {
        Arrival::Present => PushedBy::Presence,
        Arrival::Mounted(from) => PushedBy::Mount(from),
        Arrival::Sent => PushedBy::Sending,
    };
    observer(PushProgress::Done(layer, by));
    Ok(())
}

/// Does `work` on all items, `parallel` at once; after a failure begins no more and says `give_up`.
fn each<T: Sync, E: Send>(
    items: &[T],
    parallel: usize,
    work: impl Fn(&T) -> Result<(), E> + Sync,
    give_up: impl Fn() + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..parallel.clamp(1, 16).min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = work(item) {
                        next.store(items.len(), Ordering::Relaxed);
                        failure
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .get_or_insert(error);
                        give_up();
                    }
                }
            });
        }
    });
    failure
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .map_or(Ok(()), Err)
}
