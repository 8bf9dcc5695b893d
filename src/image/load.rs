//! Images from the outside on this machine: `load`, and the SOURCE of `run`.
//!
//! Decides what a text or a file is and which of its images are meant; reading them is `archive`'s and `layout`'s
//! business, taking them in `import`'s.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::image::{
    archive::{Archive, ArchiveError},
    digest::Digest,
    import::{Import, ImportError, Imported, Observer, Source},
    layout::{Candidate, Layout, LayoutError},
    reference::{Reference, ReferenceError},
    store::{FileError, Image, NameRecord, Store, StoreError, Transaction},
};

/// Why nothing was loaded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LoadError {
    #[error("cannot open {0}")]
    Open(PathBuf, #[source] io::Error),
    #[error("cannot load {origin}")]
    Layout { origin: String, source: LayoutError },
    #[error("cannot load {origin}")]
    Archive {
        origin: String,
        source: ArchiveError,
    },
    #[error("cannot load {origin}")]
    Import {
        origin: String,
        source: Box<ImportError>,
    },
    #[error("{0} holds no image for this machine")]
    Empty(String),
    #[error("{origin} holds no image {wanted:?}, but {offered}")]
    NoSuchImage {
        origin: String,
        wanted: String,
        offered: String,
    },
    #[error("{origin} holds several images: say which, as {origin}:NAME with one of {offered}")]
    SeveralImages { origin: String, offered: String },
    #[error(
        "no image {0} in the store, but there is a file of that name: for the file, write ./{0}"
    )]
    FileMeant(String),
    #[error(transparent)]
    Name(#[from] ReferenceError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the image store is not writable")]
    File(#[from] FileError),
}

/// What a load added to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The name it now has, if it came with one.
    pub reference: Option<Reference>,
    /// Its ID: the digest of its configuration.
    pub id: Digest,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The ID of the other image that had the name until now.
    pub taken_from: Option<Digest>,
}

/// Somewhere images are loaded from.
pub enum Input<'a> {
    /// An archive or the folder of a layout.
    Path(&'a Path),
    /// An archive, as from standard input.
    Stream(File),
}

/// What the SOURCE of `run` means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning<'a> {
    /// A path, and which image there.
    Path(&'a Path, Option<&'a str>),
    /// A name in the store.
    Name(&'a str),
}

/// What the SOURCE of `run` is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// A name that the store has.
    Held(Reference),
    /// A name that it does not have.
    Absent(Reference),
    /// A path, or the ID of an image of the store.
    Otherwise,
}

/// The transports that a path may be marked with, as skopeo and podman have them.
const TRANSPORTS: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

impl Store {
    /// Loads every image that `input` holds for this machine, all of them or none. A name that another image has
    /// moves.
    ///
    /// # Errors
    ///
    /// Where the input is no image, is damaged or cannot run here, and where the store cannot be written; it is then
    /// as it was.
    pub fn load(&self, input: Input<'_>, observer: Observer<'_>) -> Result<Vec<Loaded>, LoadError> {
        let mut transaction = Transaction::begin(self)?;
        let (origin, source, candidates) = open(input, &transaction)?;
        if candidates.is_empty() {
            return Err(LoadError::Empty(origin));
        }
        let mut loaded = Vec::new();
        for candidate in &candidates {
            let imported = take_in(&mut transaction, &*source, candidate, &origin, observer)?;
            let loaded_as = |reference, taken_from| Loaded {
                reference,
                id: imported.id,
                digest: imported.manifest,
                taken_from,
            };
            if candidate.names.is_empty() {
                loaded.push(loaded_as(None, None));
            }
            for name in &candidate.names {
                let before = self.name(name)?.map(|record| record.manifest);
                let before = before.map(|manifest| self.record(&manifest)).transpose()?;
                let before = before.flatten().map(|record| record.config);
                let taken_from = before.filter(|id| *id != imported.id);
                loaded.push(loaded_as(Some(name.clone()), taken_from));
            }
        }
        transaction.commit()?;
        Ok(loaded)
    }

    /// The image that the SOURCE of `run` means: something that begins with `/`, `./` or `../` or a transport
    /// (`oci:`, `oci-archive:`, `docker-archive:`) is a path, with `:NAME` behind it where it holds several images;
    /// anything else is a name in the store. An image at a path is kept in the store, without a name.
    ///
    /// # Errors
    ///
    /// Where there is no such image; [`LoadError::FileMeant`] where there is a file of that name instead.
    pub fn open_source(&self, source: &str, observer: Observer<'_>) -> Result<Image, LoadError> {
        match meaning(source) {
            Meaning::Path(path, wanted) => self.open_path(path, wanted, observer),
            Meaning::Name(name) => match self.resolve(name) {
                Err(StoreError::Unknown(_)) if fs::symlink_metadata(name).is_ok() => {
                    Err(LoadError::FileMeant(name.into()))
                }
                image => Ok(image?),
            },
        }
    }

    /// What the SOURCE of `run` is, before it is opened.
    ///
    /// # Errors
    ///
    /// Where it is neither a path nor a name, and where the store cannot be read.
    pub fn named(&self, source: &str) -> Result<Named, LoadError> {
        let Meaning::Name(name) = meaning(source) else {
            return Ok(Named::Otherwise);
        };
        match self.find(name) {
            Ok((.., Some(reference))) => Ok(Named::Held(reference)),
            Ok((.., None)) => Ok(Named::Otherwise),
            Err(StoreError::Unknown(_)) => Ok(Named::Absent(self.short_names.parse(name)?)),
            Err(error) => Err(error.into()),
        }
    }

    fn open_path(
        &self,
        path: &Path,
        wanted: Option<&str>,
        observer: Observer<'_>,
    ) -> Result<Image, LoadError> {
        let mut transaction = Transaction::begin(self)?;
        let (origin, source, mut candidates) = open(Input::Path(path), &transaction)?;
        let offered = offer(&candidates);
        if let Some(wanted) = wanted {
            candidates.retain(|candidate| candidate.is_called(wanted));
        }
        let all_the_same = candidates
            .windows(2)
            .all(|pair| pair[0].blob == pair[1].blob);
        let chosen = match (candidates.first_mut(), wanted) {
            (Some(chosen), _) if all_the_same => chosen,
            (Some(_), _) => return Err(LoadError::SeveralImages { origin, offered }),
            (None, Some(wanted)) => {
                let wanted = wanted.into();
                return Err(LoadError::NoSuchImage {
                    origin,
                    wanted,
                    offered,
                });
            }
            (None, None) => return Err(LoadError::Empty(origin)),
        };
        chosen.names.clear();
        let imported = take_in(&mut transaction, &*source, chosen, &origin, observer)?;
        drop(source);
        transaction.commit()?;
        Ok(self.image(&imported.manifest, None)?)
    }
}

/// Makes an image of `source` part of the transaction, with its names.
fn take_in<'s>(
    transaction: &mut Transaction<'s>,
    source: &dyn Source,
    candidate: &Candidate,
    origin: &str,
    observer: Observer<'_>,
) -> Result<Imported, LoadError> {
    let import = Import {
        transaction,
        source,
        observer,
    };
    let (imported, record) = import
        .run(&candidate.blob)
        .map_err(|source| LoadError::Import {
            origin: origin.into(),
            source: Box::new(source),
        })?;
    transaction.add_image(imported.manifest, record);
    for name in &candidate.names {
        let record = NameRecord {
            manifest: imported.manifest,
            target: candidate.blob.digest,
        };
        transaction.add_name(name.clone(), record);
    }
    Ok(imported)
}

type Opened = (String, Box<dyn Source>, Vec<Candidate>);

fn open(input: Input<'_>, transaction: &Transaction<'_>) -> Result<Opened, LoadError> {
    let (origin, file) = match input {
        Input::Path(path) if path.is_dir() => {
            let origin = path.display().to_string();
            let failed = |source| LoadError::Layout {
                origin: origin.clone(),
                source,
            };
            let layout = Layout::open(path).map_err(failed)?;
            let candidates = layout.candidates().map_err(failed)?;
            return Ok((origin, Box::new(layout), candidates));
        }
        Input::Path(path) => {
            let file = File::open(path).map_err(|source| LoadError::Open(path.into(), source))?;
            (path.display().to_string(), file)
        }
        Input::Stream(file) => ("standard input".into(), file),
    };
    match Archive::open(file, transaction) {
        Ok((archive, candidates)) => Ok((origin, Box::new(archive), candidates)),
        Err(source) => Err(LoadError::Archive { origin, source }),
    }
}

/// What images there are, for an error.
fn offer(candidates: &[Candidate]) -> String {
    const MOST: usize = 20;
    let mut offered: Vec<String> = candidates
        .iter()
        .map(
            |candidate| match (candidate.names.first(), &candidate.label) {
                (Some(name), _) => name.familiar(),
                (None, Some(label)) => label.chars().take(100).collect(),
                (None, None) => candidate.blob.digest.to_string(),
            },
        )
        .take(MOST)
        .collect();
    match candidates.len() {
        0 => offered.push("none".into()),
        count if count > MOST => offered.push(format!("{} more", count - MOST)),
        _ => {}
    }
    offered.join(", ")
}

fn meaning(source: &str) -> Meaning<'_> {
    let path = TRANSPORTS
        .iter()
        .find_map(|transport| source.strip_prefix(transport));
    let is_path = |text: &str| {
        text.starts_with(['/'])
            || text.starts_with("./")
            || text.starts_with("../")
            || text == "."
            || text == ".."
    };
    let path = match path {
        Some(path) => path,
        None if is_path(source) => source,
        None => return Meaning::Name(source),
    };
    if Path::new(path).exists() {
        return Meaning::Path(Path::new(path), None);
    }
    let splits = path
        .match_indices(':')
        .map(|(colon, _)| (&path[..colon], &path[colon + 1..]));
    for (path, wanted) in splits {
        if !path.is_empty() && Path::new(path).exists() {
            return Meaning::Path(Path::new(path), Some(wanted));
        }
    }
    Meaning::Path(Path::new(path), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_path_only_where_it_looks_like_one() {
        for name in [
            "busybox",
            "oci",
            "a/b:c",
            "localhost:5000/x",
            ".x",
            "sha256:00",
        ] {
            assert_eq!(meaning(name), Meaning::Name(name));
        }
        for path in ["/x", "./x", "../x:1", ".", ".."] {
            assert_eq!(meaning(path), Meaning::Path(Path::new(path), None));
        }
        for (text, path) in [
            ("oci:x", "x"),
            ("oci-archive:/x:1", "/x:1"),
            ("docker-archive:x", "x"),
        ] {
            assert_eq!(meaning(text), Meaning::Path(Path::new(path), None));
        }
    }

    #[test]
    fn what_follows_an_existing_path_chooses_an_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a:b");
        fs::create_dir(&path).unwrap();
        let text = path.to_str().unwrap();
        assert_eq!(meaning(text), Meaning::Path(&path, None));
        let chosen = format!("oci:{text}:docker.io/x:1");
        assert_eq!(
            meaning(&chosen),
            Meaning::Path(&path, Some("docker.io/x:1"))
        );
    }
}
