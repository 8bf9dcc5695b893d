//! Checking the store: every byte of every image against its digest, and what was made of it against what is made of
//! it now.
//!
//! Repair makes again what can be made from blobs and fetches what cannot from where the image's name says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use crate::image::{
    digest::{Digest, Hasher},
    import::{Import, ImportError, Observer, Source, SourceError, sniff},
    layer::{self, LayerLimits},
    manifest::{self, Blob, Document},
    pull::PullError,
    reference::Reference,
    registry::Client,
    rootfs,
    store::{FileError, Kind, NameRecord, Record, Store, StoreError, Transaction, name_place},
};

/// Why the store could not be checked or repaired.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CheckError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the image store is not readable or writable")]
    File(#[from] FileError),
}

/// What is wrong with something in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not there.
    Missing,
    /// It is something else than it should be.
    Damaged,
    /// It cannot be judged, since what it is made of is missing or damaged.
    Unknown,
}

/// Something in the store that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it lies in the store.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
    /// Names of the images that need it, or the digests of their manifests where they have none.
    pub needed_by: Vec<String>,
    images: Vec<Digest>,
    object: Object,
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Object {
    Content(Kind, Digest),
    Name(Reference),
}

/// Blobs that are in the store already, as a source.
struct Own<'s>(&'s Store);

impl Source for Own<'_> {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        Ok(Box::new(self.0.open_blob(&blob.digest)?.0))
    }
}

impl Store {
    /// Reads everything that images need and gives what is not as it should be.
    ///
    /// # Errors
    ///
    /// Where the store's own records cannot be read.
    pub fn check(&self) -> Result<Vec<Finding>, CheckError> {
        let transaction = Transaction::begin(self)?;
        let mut needed: BTreeMap<(Kind, Digest), Vec<Digest>> = BTreeMap::new();
        let mut findings: BTreeMap<(Kind, Digest), Fault> = BTreeMap::new();
        let mut records = BTreeMap::new();
        let (names, lost): (Vec<_>, Vec<_>) = self
            .names_as_they_are()?
            .into_iter()
            .partition(|(_, record)| record.is_ok());
        let named = names.iter().filter_map(|(_, record)| record.as_ref().ok());
        let mut manifests: BTreeSet<Digest> = named.map(|record| record.manifest).collect();
        manifests.extend(self.digests(Kind::Images)?);
        for manifest in manifests {
            let object = (Kind::Images, manifest);
            let (record, fault) = self.judge_record(&manifest);
            findings.extend(fault.map(|fault| (object, fault)));
            let mut objects = vec![object, (Kind::Blobs, manifest)];
            if let Some(record) = record {
                objects.extend(record.objects(&manifest).into_iter().skip(1));
                records.insert(manifest, record);
            }
            transaction.pin(&objects)?;
            for object in objects {
                needed.entry(object).or_default().push(manifest);
            }
        }
        for (kind, digest) in needed.keys().filter(|(kind, _)| *kind == Kind::Blobs) {
            findings.extend(
                self.judge_blob(digest)
                    .map(|fault| ((*kind, *digest), fault)),
            );
        }
        for record in records.values() {
            self.judge_made(&transaction, record, &mut findings)?;
        }
        let called = |image: &Digest| {
            let name = names.iter().find(|(_, record)| {
                record
                    .as_ref()
                    .is_ok_and(|record| record.manifest == *image)
            });
            name.map_or_else(|| image.to_string(), |(name, _)| name.familiar())
        };
        let finding = |(object, fault): (_, _)| {
            let images = needed.get(&object).cloned().unwrap_or_default();
            Finding {
                path: Kind::place(object.0, &object.1),
                fault,
                needed_by: images.iter().map(called).collect(),
                images,
                object: Object::Content(object.0, object.1),
            }
        };
        let lost = lost.into_iter().map(|(name, _)| Finding {
            path: name_place(&name),
            fault: Fault::Damaged,
            needed_by: vec![name.familiar()],
            images: Vec::new(),
            object: Object::Name(name),
        });
        Ok(findings.into_iter().map(finding).chain(lost).collect())
    }

    /// The record of an image, and what is wrong with it. Where something is, what the image's documents say instead,
    /// if they can be read.
    fn judge_record(&self, manifest: &Digest) -> (Option<Record>, Option<Fault>) {
        match (self.record(manifest), self.derive_record(manifest)) {
            (Ok(Some(record)), expected) if expected.as_ref().is_none_or(|it| *it == record) => {
                (Some(record), None)
            }
            (Ok(None), expected) => (expected, Some(Fault::Missing)),
            (_, expected) => (expected, Some(Fault::Damaged)),
        }
    }

    fn derive_record(&self, digest: &Digest) -> Option<Record> {
        let whole = |digest: &Digest| {
            let bytes = self.read_document(digest).ok()?;
            let mut hasher = Hasher::new(digest.algorithm());
            hasher.update(&bytes);
            (hasher.finish() == *digest).then_some(bytes)
        };
        let Document::Manifest(manifest) = Document::parse(&whole(digest)?).ok()? else {
            return None;
        };
        let config = whole(&manifest.config.digest)?;
        let (_, diff_ids) = manifest::parse_config(&config, manifest.layers.len()).ok()?;
        Record::new(&manifest, &diff_ids)
    }

    fn judge_blob(&self, digest: &Digest) -> Option<Fault> {
        let Ok((mut file, _)) = self.open_blob(digest) else {
            return Some(Fault::Missing);
        };
        let mut hasher = Hasher::new(digest.algorithm());
        match io::copy(&mut file, &mut hasher) {
            Ok(_) if hasher.finish() == *digest => None,
            _ => Some(Fault::Damaged),
        }
    }

    /// Judges the layers and the root file system of an image by making them again.
    fn judge_made(
        &self,
        transaction: &Transaction<'_>,
        record: &Record,
        findings: &mut BTreeMap<(Kind, Digest), Fault>,
    ) -> Result<(), CheckError> {
        let mut is_whole = true;
        for layer in &record.layers {
            let object = (Kind::Layers, layer.diff_id);
            if !findings.contains_key(&object) {
                let fault = match findings.contains_key(&(Kind::Blobs, layer.blob)) {
                    true => Some(Fault::Unknown),
                    false => self.judge_layer(transaction, &layer.blob, &layer.diff_id)?,
                };
                findings.extend(fault.map(|fault| (object, fault)));
            }
            is_whole &= !findings.contains_key(&object);
        }
        let object = (Kind::Rootfs, record.rootfs);
        if !findings.contains_key(&object) {
            let fault = if is_whole {
                self.judge_rootfs(transaction, record)?
            } else {
                Some(Fault::Unknown)
            };
            findings.extend(fault.map(|fault| (object, fault)));
        }
        Ok(())
    }

    fn judge_layer(
        &self,
        transaction: &Transaction<'_>,
        blob: &Digest,
        diff_id: &Digest,
    ) -> Result<Option<Fault>, CheckError> {
        let Some(stored) = transaction.find(Kind::Layers, diff_id) else {
            return Ok(Some(Fault::Missing));
        };
        let (file, _) = self.open_blob(blob)?;
        let again = transaction.new_folder()?;
        let made = sniff_file(&file).map_err(|source| FileError::Read(stored.clone(), source))?;
        let converted = layer::convert(
            BufReader::new(file),
            made,
            diff_id,
            &LayerLimits::default(),
            &again,
        );
        let is_same = converted.is_ok()
            && [layer::DATA, layer::INDEX]
                .iter()
                .all(|name| are_same(&stored.join(name), &again.join(name)));
        transaction.discard(&again)?;
        Ok((!is_same).then_some(Fault::Damaged))
    }

    fn judge_rootfs(
        &self,
        transaction: &Transaction<'_>,
        record: &Record,
    ) -> Result<Option<Fault>, CheckError> {
        let Some(stored) = transaction.find(Kind::Rootfs, &record.rootfs) else {
            return Ok(Some(Fault::Missing));
        };
        let layers = record
            .layers
            .iter()
            .filter_map(|layer| transaction.find(Kind::Layers, &layer.diff_id));
        let layers: Vec<_> = layers.collect();
        let again = transaction.new_path();
        let is_same = rootfs::build(&layers, &again).is_ok() && are_same(&stored, &again);
        transaction.discard(&again)?;
        Ok((!is_same).then_some(Fault::Damaged))
    }

    /// Removes what is damaged and makes or fetches it and what is missing again. Gives what could not be had.
    ///
    /// # Errors
    ///
    /// Where the store cannot be written.
    pub fn repair(
        &self,
        findings: &[Finding],
        client: &Client,
        observer: Observer<'_>,
    ) -> Result<Vec<(Finding, PullError)>, CheckError> {
        let damaged = findings.iter().filter_map(|finding| match finding.object {
            Object::Content(kind, digest) if finding.fault != Fault::Missing => {
                Some((kind, digest))
            }
            _ => None,
        });
        self.discard_all(damaged)?;
        let mut failures = Vec::new();
        let lost = findings.iter().filter_map(|finding| match &finding.object {
            Object::Name(name) => Some((finding, name)),
            Object::Content(..) => None,
        });
        for (_, name) in lost.clone() {
            self.discard_name(name)?;
        }
        let names = self.names()?;
        let mut outcome: BTreeMap<Digest, bool> = BTreeMap::new();
        for finding in findings {
            for image in &finding.images {
                if outcome.contains_key(image) {
                    continue;
                }
                let mut result = self.remake(image, observer);
                for (name, NameRecord { target, .. }) in
                    names.iter().filter(|(_, record)| record.manifest == *image)
                {
                    if result.is_err() {
                        result = self.pull_again(client, &name.pinned(*target), observer);
                    }
                }
                outcome.insert(*image, result.is_ok());
                if let Err(error) = result {
                    failures.push((finding.clone(), error));
                }
            }
        }
        // What a name meant only its registry knows.
        for (finding, name) in lost {
            if let Err(error) = self.pull(client, name, observer) {
                failures.push((finding.clone(), error));
            }
        }
        Ok(failures)
    }

    /// Makes again what an image lacks, from its blobs.
    fn remake(&self, manifest: &Digest, observer: Observer<'_>) -> Result<(), PullError> {
        let failed = |source| PullError::Import {
            name: manifest.to_string(),
            source: Box::new(source),
        };
        let mut transaction = Transaction::begin(self)?;
        let (_, size) = self
            .open_blob(manifest)
            .map_err(|source| failed(ImportError::Store(source)))?;
        let root = Blob {
            media_type: oci_spec::image::MediaType::ImageManifest,
            digest: *manifest,
            size,
        };
        let import = Import {
            transaction: &transaction,
            source: &Own(self),
            observer,
        };
        let (imported, record) = import.run(&root).map_err(failed)?;
        transaction.add_image(imported.manifest, record);
        Ok(transaction.commit()?)
    }
}

fn sniff_file(file: &File) -> io::Result<layer::Compression> {
    use std::os::unix::fs::FileExt;
    let mut magic = [0; 4];
    let count = file.read_at(&mut magic, 0)?;
    Ok(sniff(&magic[..count]))
}

/// Whether two files hold the same; a file that cannot be read holds nothing like any other.
fn are_same(one: &Path, other: &Path) -> bool {
    const PIECE: usize = 128 << 10;
    let (Ok(one), Ok(other)) = (File::open(one), File::open(other)) else {
        return false;
    };
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        let read = Read::by_ref(&mut one)
            .take(PIECE as u64)
            .read_to_end(&mut left);
        let read_other = Read::by_ref(&mut other)
            .take(PIECE as u64)
            .read_to_end(&mut right);
        match (read, read_other) {
            (Ok(_), Ok(_)) if left != right => return false,
            (Ok(0), Ok(0)) => return true,
            (Ok(_), Ok(_)) => {}
            _ => return false,
        }
    }
}
