//! Files copied between a container and the host, by Docker's rules for what goes where.

use std::{
    fs::{self, File},
    io::{self, BufReader, Write},
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use files::{
    FilesError,
    place::{Placed, Rules, place},
    stream::{Receiver, Sender},
    tree::{self, Manner},
};
use protocol::files::{FilesOrder, Found, Item, Kind};
use rustix::fs::ResolveFlags;

use super::{
    FileWorkError, Work,
    archive::{self, ArchiveWriter},
};
use crate::{
    container::{error::RunError, name::Id, state::Containers},
    image::archive::Input,
};

/// How a guest's files come to this host: nowhere but below the target, through no link, and without what would lend
/// somebody the rights of their owner.
const HOST: Rules = Rules {
    resolve: ResolveFlags::BENEATH
        .union(ResolveFlags::NO_SYMLINKS)
        .union(ResolveFlags::NO_MAGICLINKS),
    owners: false,
    privileges: false,
};

/// How files are copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Keep owners and groups.
    pub archive: bool,
    /// Copy what a link at the end of the source leads to.
    pub follow: bool,
}

/// One container's side of a copy.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The state folder.
    pub state_root: &'a Path,
    /// All containers in it.
    pub containers: &'a Containers,
    /// Which one.
    pub id: &'a Id,
    /// A path in it.
    pub path: &'a str,
}

impl<'a> Side<'a> {
    fn begin(&self, order: FilesOrder) -> Result<Work<'a>, FileWorkError> {
        Work::begin(self.state_root, self.containers, self.id, order)
    }

    fn read(&self, options: CopyOptions) -> Result<Work<'a>, FileWorkError> {
        self.begin(FilesOrder::Read {
            path: self.path.into(),
            follow: options.follow,
        })
    }

    fn write(&self) -> Result<Work<'a>, FileWorkError> {
        self.begin(FilesOrder::Write {
            path: self.path.into(),
        })
    }
}

/// Copies from a container to a path on the host.
///
/// # Errors
///
/// Where one cannot be read or the other not be written; what was copied whole before that stays.
pub fn from_container(
    side: &Side<'_>,
    target: &Path,
    options: CopyOptions,
) -> Result<Placed, FileWorkError> {
    let destination = Destination::find(target)?;
    let work = side.read(options)?;
    let mut receiver = work.receiver()?;
    let placed = put(&mut receiver, &destination, side.path, options);
    work.finish(placed)
}

fn put(
    receiver: &mut Receiver<UnixStream>,
    destination: &Destination,
    source: &str,
    options: CopyOptions,
) -> Result<Placed, FileWorkError> {
    let is_folder = matches!(receiver.first()?.kind, Kind::Folder { .. });
    let name = base_name(source.as_bytes());
    let name = destination.name_for(is_folder, name)?;
    let rules = Rules {
        owners: options.archive,
        ..HOST
    };
    Ok(place(destination.folder.as_fd(), name, rules, receiver)?)
}

/// Writes what is at a path in a container to `output`, as a tar archive.
///
/// # Errors
///
/// Where it cannot be read, or `output` cannot be written.
pub fn from_container_as_archive(
    side: &Side<'_>,
    output: &mut dyn Write,
    options: CopyOptions,
) -> Result<(), FileWorkError> {
    let work = side.read(options)?;
    let mut receiver = work.receiver()?;
    let write = || {
        let mut archive = ArchiveWriter::new(output);
        let name = base_name(side.path.as_bytes());
        let below = |path: &[u8]| match (name, path) {
            (b"", path) => path.to_vec(),
            (name, b"") => name.to_vec(),
            (name, path) => [name, b"/", path].concat(),
        };
        while let Ok(mut entry) = receiver.next_entry()? {
            entry.path = below(&entry.path);
            if let Kind::HardLink(target) = &mut entry.kind {
                *target = below(target);
            }
            archive.append(&entry, &mut receiver)?;
        }
        archive.finish()
    };
    let written = write();
    work.finish(written)
}

/// Copies from a path on the host to a container; the bytes copied.
///
/// # Errors
///
/// Where one cannot be read or the other not be written; what was copied whole before that stays.
pub fn to_container(
    source: &Path,
    side: &Side<'_>,
    options: CopyOptions,
) -> Result<Placed, FileWorkError> {
    let bytes = source.as_os_str().as_bytes();
    let follow = options.follow || bytes.ends_with(b"/");
    let found = if follow {
        fs::metadata(source)
    } else {
        fs::symlink_metadata(source)
    };
    let is_folder = found.map_err(host("read", source))?.is_dir();
    let here = File::open(".").map_err(host("open", Path::new(".")))?;
    let work = side.write()?;
    let send = |found, sender: &mut Sender<UnixStream>| {
        let prefix = match (found, is_folder) {
            (Found::Folder, _) => base_name(bytes),
            (Found::Other, true) => return Err(FileWorkError::FolderToFile(side.path.into())),
            (Found::Nothing, false) if side.path.ends_with('/') => {
                return Err(FileWorkError::NoFolder(side.path.into()));
            }
            (Found::Other | Found::Nothing, _) => b"",
        };
        let manner = Manner {
            prefix: prefix.to_vec(),
            owner: (!options.archive).then_some((0, 0)),
            xattrs: false,
        };
        let resolve = ResolveFlags::empty();
        Ok(tree::send(
            here.as_fd(),
            bytes,
            options.follow,
            resolve,
            manner,
            sender,
        )?)
    };
    let sent = exchange(&work, send);
    work.finish(sent)
}

/// Unpacks a tar archive, which may be compressed, into a folder of a container; the bytes unpacked.
///
/// # Errors
///
/// Where it is no archive, or there is no such folder; what was unpacked before that stays.
pub fn archive_to_container(input: File, side: &Side<'_>) -> Result<Placed, FileWorkError> {
    let input = Input::open(input).map_err(FileWorkError::ArchiveInput)?;
    let mut input = BufReader::new(input.into_reader());
    let work = side.write()?;
    let send = |found, sender: &mut Sender<UnixStream>| match found {
        Found::Folder => archive::send(&mut input, sender).map(|()| 0),
        _ => Err(FileWorkError::NoFolder(side.path.into())),
    };
    let sent = exchange(&work, send);
    work.finish(sent)
}

/// Has entries sent, and waits until the guest has put all of them in their places.
fn exchange(
    work: &Work<'_>,
    send: impl FnOnce(Found, &mut Sender<UnixStream>) -> Result<u64, FileWorkError>,
) -> Result<Placed, FileWorkError> {
    let mut receiver = work.receiver()?;
    let stream = work.stream.try_clone().map_err(RunError::Streams)?;
    let mut sender = Sender::new(stream);
    let found = receiver.found()?;
    let sent = send(found, &mut sender).and_then(|left_out| {
        sender.send(&Item::End { left_out: 0 })?;
        sender.flush()?;
        Ok(left_out)
    });
    // Whatever comes after this is an answer; one that could not be sent to has given it before.
    let _ = work.stream.shutdown(Shutdown::Write);
    let answer = receiver.next_entry();
    match (sent, answer) {
        (Ok(left_out), Ok(Err(more))) => Ok(Placed {
            bytes: sender.sent(),
            left_out: left_out + more,
        }),
        (Err(FileWorkError::Files(FilesError::Stream(_))) | Ok(_), Err(error)) => Err(error.into()),
        (Err(error), _) => Err(error),
        (Ok(_), Ok(Ok(_))) => Err(FilesError::Unexpected.into()),
    }
}

/// Where on the host something is copied to.
struct Destination {
    /// The folder that it will be in.
    folder: File,
    found: Found,
    /// Its name there; none where it keeps its own.
    name: Vec<u8>,
    path: PathBuf,
}

impl Destination {
    fn find(path: &Path) -> Result<Self, FileWorkError> {
        let open = |folder: &Path| File::open(folder).map_err(host("open", folder));
        let wants_folder = path.as_os_str().as_bytes().ends_with(b"/");
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => Ok(Self {
                folder: open(path)?,
                found: Found::Folder,
                name: Vec::new(),
                path: path.into(),
            }),
            Ok(_) if wants_folder => Err(FileWorkError::NoFolder(path.display().to_string())),
            Ok(_) => {
                let real = fs::canonicalize(path).map_err(host("find", path))?;
                Self::beside(&real, Found::Other, &open)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::beside(path, Found::Nothing, &open)
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                Err(FileWorkError::NoFolder(path.display().to_string()))
            }
            Err(error) => Err(host("find", path)(error)),
        }
    }

    fn beside(
        path: &Path,
        found: Found,
        open: &dyn Fn(&Path) -> Result<File, FileWorkError>,
    ) -> Result<Self, FileWorkError> {
        let name = path.file_name().unwrap_or_default();
        let above = match path.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        Ok(Self {
            folder: open(above)?,
            found,
            name: name.as_bytes().to_vec(),
            path: path.into(),
        })
    }

    /// The name that something of this name gets.
    fn name_for<'a>(&'a self, is_folder: bool, own: &'a [u8]) -> Result<&'a [u8], FileWorkError> {
        let shown = || self.path.display().to_string();
        match self.found {
            Found::Folder => Ok(own),
            Found::Other if is_folder => Err(FileWorkError::FolderToFile(shown())),
            Found::Nothing if !is_folder && self.path.as_os_str().as_bytes().ends_with(b"/") => {
                Err(FileWorkError::NoFolder(shown()))
            }
            Found::Other | Found::Nothing => Ok(&self.name),
        }
    }
}

/// The name that a thing keeps when it is copied into a folder; none for `/`, and where only what is in it is meant (`x/.`).
fn base_name(path: &[u8]) -> &[u8] {
    let end = path
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(0, |last| last + 1);
    let name = path[..end].rsplit(|byte| *byte == b'/').next();
    match name {
        None | Some(b"." | b"..") => b"",
        Some(name) => name,
    }
}

fn host(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileWorkError {
    let path = path.to_owned();
    move |source| FileWorkError::Host {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_keeps_its_name_unless_only_its_content_is_meant() {
        for (path, name) in [
            ("/a/b", "b"),
            ("/a/b/", "b"),
            ("b", "b"),
            ("/a/b/.", ""),
            (".", ""),
            ("/a/..", ""),
            ("/", ""),
            ("", ""),
            ("/a/...", "..."),
        ] {
            assert_eq!(base_name(path.as_bytes()), name.as_bytes(), "{path}");
        }
    }

    #[test]
    fn destinations_are_those_of_docker() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "x").unwrap();
        fs::create_dir(path("folder")).unwrap();
        std::os::unix::fs::symlink("folder", path("link")).unwrap();
        let name = |target: &str, is_folder| {
            let destination = Destination::find(&path(target))?;
            let name = destination.name_for(is_folder, b"own")?;
            Ok::<_, FileWorkError>(String::from_utf8(name.to_vec()).unwrap())
        };
        for (target, is_folder, expected) in [
            ("file", false, Some("file")),
            ("file", true, None),
            ("file/", false, None),
            ("folder", false, Some("own")),
            ("folder/", true, Some("own")),
            ("link", true, Some("own")),
            ("new", false, Some("new")),
            ("new", true, Some("new")),
            ("new/", true, Some("new")),
            ("new/", false, None),
            ("missing/new", false, None),
            ("file/new", false, None),
        ] {
            assert_eq!(
                name(target, is_folder).ok().as_deref(),
                expected,
                "{target} {is_folder}"
            );
        }
    }
}
