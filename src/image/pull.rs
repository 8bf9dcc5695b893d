//! Pulling: an image from a registry into the store.
//!
//! Talks to a registry through `registry` and to the store through `import`; what a person sees of it is the command
//! line's business.

use std::io::Read;

use crate::image::{
    digest::Digest,
    import::{Import, ImportError, Imported, Observer, Remote, Source, SourceError},
    manifest::Blob,
    reference::Reference,
    registry::{Access, Client, FoundManifest, RegistryError, Repository},
    store::{FileError, NameRecord, Store, StoreError, Transaction},
};

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PullError {
    #[error("cannot pull {name}")]
    Registry { name: String, source: RegistryError },
    #[error("cannot pull {name}")]
    Import {
        name: String,
        source: Box<ImportError>,
    },
    #[error("{name} is another image at the registry: {found}")]
    OtherDigest { name: String, found: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the image store is not writable")]
    File(#[from] FileError),
}

/// What a pull came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// What was asked for.
    pub reference: Reference,
    /// Digest of the manifest or index that the reference means at the registry.
    pub target: Digest,
    /// The image's ID.
    pub id: Digest,
    /// Whether the reference means anything new here.
    pub is_new: bool,
}

/// A repository as the source of one image, the first document of which is there already.
struct Pull<'c> {
    repository: Repository<'c>,
    first: FoundManifest,
    parallel: usize,
}

impl Source for Pull<'_> {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        if blob.digest == self.first.blob.digest {
            return Ok(Box::new(self.first.bytes.as_slice()));
        }
        Ok(self.repository.open(blob, 0)?)
    }

    fn remote(&self) -> Option<&dyn Remote> {
        Some(self)
    }
}

impl Remote for Pull<'_> {
    fn open_at(&self, blob: &Blob, from: u64) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        Ok(self.repository.open(blob, from)?)
    }

    fn wait(&self, retry: u32) -> bool {
        self.repository.wait(retry, None)
    }

    fn parallel(&self) -> usize {
        self.parallel
    }

    fn give_up(&self) {
        self.repository.give_up();
    }

    fn is_over(&self) -> bool {
        self.repository.is_over()
    }
}

impl Store {
    /// Pulls the image that `reference` means at its registry, or a mirror of it, and gives it that name.
    ///
    /// # Errors
    ///
    /// Where the registry does not have it or does not give it, where it is not what it should be, and where the store
    /// cannot be written. Layers that arrived whole, and parts of others, are kept for the next attempt.
    pub fn pull(
        &self,
        client: &Client,
        reference: &Reference,
        observer: Observer<'_>,
    ) -> Result<Pulled, PullError> {
        let before = self.name(reference)?;
        let (mut transaction, fetched) = self.fetch(client, reference, observer)?;
        let named = NameRecord {
            manifest: fetched.imported.manifest,
            target: fetched.target,
        };
        let is_new = before.as_ref() != Some(&named);
        transaction.add_name(reference.clone(), named);
        transaction.commit()?;
        Ok(Pulled {
            reference: reference.clone(),
            target: fetched.target,
            id: fetched.imported.id,
            is_new,
        })
    }

    /// All tags of the repository of `reference` at its registry.
    ///
    /// # Errors
    ///
    /// Where the registry does not have it or does not say.
    pub fn remote_tags(
        client: &Client,
        reference: &Reference,
    ) -> Result<Vec<Reference>, PullError> {
        let failed = |source| PullError::Registry {
            name: reference.familiar_name(),
            source,
        };
        let repository = client.repository(reference, Access::Pull).map_err(failed)?;
        let tags = repository.tags().map_err(failed)?;
        // What is no tag cannot be pulled, whatever it is.
        let named = tags.iter().filter_map(|tag| reference.with_tag(tag).ok());
        let mut references: Vec<_> = named.collect();
        references.sort();
        Ok(references)
    }

    /// Pulls what is missing of an image that is in the store; no name changes.
    pub(crate) fn pull_again(
        &self,
        client: &Client,
        reference: &Reference,
        observer: Observer<'_>,
    ) -> Result<(), PullError> {
        let (transaction, _) = self.fetch(client, reference, observer)?;
        Ok(transaction.commit()?)
    }

    /// Begins a transaction with the image that `reference` means at its registry.
    fn fetch(
        &self,
        client: &Client,
        reference: &Reference,
        observer: Observer<'_>,
    ) -> Result<(Transaction<'_>, Fetched), PullError> {
        let name = reference.familiar();
        let failed = |source| PullError::Registry {
            name: name.clone(),
            source,
        };
        let wanted = reference.digest().map_or_else(
            || reference.tag().unwrap_or_default().into(),
            Digest::to_string,
        );
        let (repository, first) = find(client, reference, &wanted).map_err(failed)?;
        if reference
            .digest()
            .is_some_and(|digest| *digest != first.blob.digest)
        {
            return Err(PullError::OtherDigest {
                name,
                found: first.blob.digest.to_string(),
            });
        }
        let root = first.blob.clone();
        let parallel = client.transfer().parallel.into();
        let source = Pull {
            repository,
            first,
            parallel,
        };
        let mut transaction = Transaction::begin(self)?;
        let import = Import {
            transaction: &transaction,
            source: &source,
            observer,
        };
        let (imported, record) = match import.run(&root) {
            Ok(result) => result,
            Err(source) => {
                // Layers were published as they became ready; nobody may need them now.
                drop(transaction);
                self.sweep_all()?;
                let source = Box::new(source);
                return Err(PullError::Import { name, source });
            }
        };
        transaction.add_image(imported.manifest, record);
        Ok((
            transaction,
            Fetched {
                imported,
                target: root.digest,
            },
        ))
    }
}

/// What was fetched.
struct Fetched {
    imported: Imported,
    /// What the reference means at the registry.
    target: Digest,
}

/// The repository that has the image, and its first document. A mirror that does not have it, or is not reached, is
/// passed over.
fn find<'c>(
    client: &'c Client,
    reference: &Reference,
    wanted: &str,
) -> Result<(Repository<'c>, FoundManifest), RegistryError> {
    for mirror in client.mirrors(reference)? {
        if let Ok(found) = mirror.manifest(wanted) {
            return Ok((mirror, found));
        }
    }
    let repository = client.repository(reference, Access::Pull)?;
    let found = repository.manifest(wanted)?;
    Ok((repository, found))
}
