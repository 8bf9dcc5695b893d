//! Names of images: one small file each, moved atomically from one image to another.
//!
//! The path of the file is the name itself. A tag's file begins with ':', a digest's with '@', which no component
//! of a repository can, so that `a:b` and `a/b:c` do not collide.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError,
    files::{self, FileError},
};
use crate::image::{digest::Digest, reference::Reference};

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// Manifest of the image.
    pub manifest: Digest,
    /// What the name denotes where it came from: the manifest, or the index that it was chosen from.
    pub target: Digest,
}

/// A name and what its file says.
pub(crate) type FoundName = (Reference, Result<NameRecord, FileError>);

/// Deeper than the 255 bytes of a repository's name can go.
const MAX_DEPTH: usize = 130;

/// Where a name lies in the store. A digest pins the image, so a tag beside it has no say.
pub(crate) fn place(reference: &Reference) -> PathBuf {
    let leaf = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("@{digest}"),
        (None, tag) => format!(":{}", tag.unwrap_or_default()),
    };
    repository(reference).join(leaf)
}

fn repository(reference: &Reference) -> PathBuf {
    Path::new("names")
        .join(reference.domain())
        .join(reference.path())
}

impl Store {
    /// What a name means, if it means anything. A digest is also found where only a tag was given to what it is
    /// the digest of.
    pub(super) fn find_name(
        &self,
        reference: &Reference,
    ) -> Result<Option<NameRecord>, StoreError> {
        if let Some(record) = self.read_name(&place(reference))? {
            return Ok(Some(record));
        }
        let Some(digest) = reference.digest() else {
            return Ok(None);
        };
        let folder = repository(reference);
        let leaves = match files::list(&self.root.join(&folder)) {
            Err(error) if error.is_missing() => return Ok(None),
            leaves => leaves?,
        };
        for leaf in leaves.iter().filter(|leaf| is_leaf(leaf)) {
            if let Some(record) = self.read_name(&folder.join(leaf))?
                && (record.target == *digest || record.manifest == *digest)
            {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// What this very name means, if anything.
    pub(crate) fn name(&self, reference: &Reference) -> Result<Option<NameRecord>, StoreError> {
        Ok(self.read_name(&place(reference))?)
    }

    /// Every name there is, sorted.
    pub(crate) fn names(&self) -> Result<Vec<(Reference, NameRecord)>, StoreError> {
        let names = self.names_as_they_are()?.into_iter();
        let names = names.map(|(name, record)| Ok((name, record?)));
        names.collect()
    }

    /// Every name there is, sorted, each with what it means or why that cannot be told.
    pub(crate) fn names_as_they_are(&self) -> Result<Vec<FoundName>, StoreError> {
        let mut names = Vec::new();
        for domain in files::list(&self.root.join("names"))? {
            self.names_below(&Path::new("names").join(&domain), &domain, 0, &mut names)?;
        }
        names.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(names)
    }

    fn names_below(
        &self,
        folder: &Path,
        name: &str,
        depth: usize,
        names: &mut Vec<FoundName>,
    ) -> Result<(), StoreError> {
        let leaves = match files::list(&self.root.join(folder)) {
            // Its last name was removed meanwhile.
            Err(error) if error.is_missing() => return Ok(()),
            leaves => leaves?,
        };
        for leaf in leaves {
            let path = folder.join(&leaf);
            if !is_leaf(&leaf) {
                if depth < MAX_DEPTH {
                    self.names_below(&path, &format!("{name}/{leaf}"), depth + 1, names)?;
                }
            } else if let Ok(reference) = format!("{name}{leaf}").parse()
                && let Some(record) = self.read_name(&path).transpose()
            {
                names.push((reference, record));
            }
        }
        Ok(())
    }

    fn read_name(&self, place: &Path) -> Result<Option<NameRecord>, FileError> {
        let path = self.root.join(place);
        match files::open(&path) {
            Ok(file) => files::read_record(&file, &path).map(Some),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a name that means nothing.
    pub(crate) fn discard_name(&self, reference: &Reference) -> Result<(), StoreError> {
        let _lock = self.lock_exclusive()?;
        self.remove_name(reference)
    }

    /// Removes a name and the folders that it leaves empty; under the exclusive lock.
    pub(super) fn remove_name(&self, reference: &Reference) -> Result<(), StoreError> {
        let path = self.root.join(place(reference));
        files::remove(&path)?;
        let names = self.root.join("names");
        let mut folder = path.parent();
        while let Some(path) = folder.filter(|path| **path != *names) {
            files::sync_folder(path)?;
            if std::fs::remove_dir(path).is_err() {
                return Ok(());
            }
            folder = path.parent();
        }
        Ok(files::sync_folder(&names)?)
    }
}

fn is_leaf(name: &str) -> bool {
    name.starts_with([':', '@'])
}
