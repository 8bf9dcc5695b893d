//! Writable disks: ext4 file systems of a limited size in sparse files, empty when they are made.
//!
//! Laying out a large file system takes longer than a virtual machine takes to start, so it is done once for each size,
//! into a template whose few used blocks every disk of that size is a copy of. What lies on a disk is its guest's
//! business and nothing here ever reads it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use mkext4::{FsBuilder, Options, sink::FileSink};
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};

/// Smallest disk in bytes (32 MiB).
pub const MIN_BYTES: u64 = 32 << 20;
/// Largest disk in bytes (1 TiB).
pub const MAX_BYTES: u64 = 1 << 40;
/// A disk's size is a multiple of this many bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// Blocks of the journal (16 MiB, or half that where the disk is small): a disk has one writer.
const JOURNAL_BLOCKS: u32 = 4096;
const SMALL_JOURNAL_BLOCKS: u32 = 1024;
const SMALL_DISK: u64 = 256 << 20;
/// Changed with everything that changes the bytes of a template.
const TEMPLATE_VERSION: u32 = 1;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DiskError {
    #[error(
        "a disk of {0} bytes is not supported: from {MIN_BYTES} to {MAX_BYTES}, in steps of {BLOCK_BYTES}"
    )]
    Size(u64),
    #[error("cannot create {0}")]
    Create(PathBuf, #[source] io::Error),
    #[error("cannot lay out a file system")]
    Layout(#[source] mkext4::Error),
    #[error("cannot keep the disk template {0}")]
    Template(PathBuf, #[source] io::Error),
    #[error("cannot copy the disk template {template} to {disk}")]
    Copy {
        template: PathBuf,
        disk: PathBuf,
        source: io::Error,
    },
}

/// Makes the disk `path`, which must not exist yet, mode 0600: an empty ext4 file system of `bytes` bytes that takes
/// under 1 MiB of each 10 GiB. `templates` is an existing folder on the same file system, best, to keep templates in.
///
/// # Errors
///
/// [`DiskError::Size`] before anything is touched; otherwise where a file cannot be written. No disk is left then.
pub fn create(path: &Path, bytes: u64, templates: &Path) -> Result<(), DiskError> {
    if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) || !bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(DiskError::Size(bytes));
    }
    let template_path = templates.join(format!("ext4-{TEMPLATE_VERSION}-{bytes}"));
    let template = match File::open(&template_path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_template(&template_path, bytes)?
        }
        Err(source) => return Err(DiskError::Template(template_path, source)),
    };
    let disk = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| DiskError::Create(path.into(), source))?;
    copy_sparse(&template, &disk, bytes).map_err(|source| {
        // The error is of more interest than what is left of the file.
        let _ = std::fs::remove_file(path);
        DiskError::Copy {
            template: template_path,
            disk: path.into(),
            source,
        }
    })
}

/// Lays a template out beside its place and moves it there: others may be doing the same.
fn make_template(path: &Path, bytes: u64) -> Result<File, DiskError> {
    let failed = |source| DiskError::Template(path.into(), source);
    let aside = tempfile::Builder::new()
        .prefix(".template-")
        .tempfile_in(path.parent().unwrap_or(Path::new(".")))
        .map_err(failed)?;
    let mut sink = FileSink::create(aside.path(), bytes).map_err(failed)?;
    lay_out(&mut sink, bytes).map_err(DiskError::Layout)?;
    // A template that a power cut hollowed out would spoil every disk to come.
    sink.into_file().sync_all().map_err(failed)?;
    let file = aside.persist(path).map_err(|error| failed(error.error))?;
    Ok(file)
}

fn lay_out(sink: &mut FileSink, bytes: u64) -> Result<(), mkext4::Error> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // Nothing finds these file systems by their UUID.
    let uuid = *b"pillbug-template";
    let mut options = Options::new(
        bytes,
        uuid,
        i64::try_from(now.as_secs()).unwrap_or_default(),
    );
    options.reserved_percent = 0;
    options.journal_blocks = Some(if bytes < SMALL_DISK {
        SMALL_JOURNAL_BLOCKS
    } else {
        JOURNAL_BLOCKS
    });
    FsBuilder::new(options)?.seal()?.writer(sink)?.finish()?;
    Ok(())
}

/// Makes the empty file `to` a copy of `from`, of `bytes` bytes: by sharing its blocks where the file system can,
/// else by copying what is no hole, to another file system too.
fn copy_sparse(mut from: &File, mut to: &File, bytes: u64) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(bytes)?;
    let mut position = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        from.seek(io::SeekFrom::Start(start))?;
        to.seek(io::SeekFrom::Start(start))?;
        if io::copy(&mut from.take(end - start), &mut to)? < end - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        position = end;
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt, process::Command};

    use super::*;

    #[test]
    fn disks_are_clean_sparse_and_private() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("small", MIN_BYTES),
            ("odd", MIN_BYTES + BLOCK_BYTES),
            ("default", 10 << 30),
            ("again", 10 << 30),
        ] {
            let path = folder.path().join(name);
            create(&path, bytes, folder.path()).unwrap();

            let metadata = path.metadata().unwrap();
            assert_eq!(
                (metadata.len(), metadata.mode() & 0o777),
                (bytes, 0o600),
                "{name}"
            );
            assert!(
                metadata.blocks() * 512 < 2 << 20,
                "{name} takes {} blocks",
                metadata.blocks()
            );
            let fsck = Command::new("/sbin/e2fsck")
                .args(["-fn"])
                .arg(&path)
                .output()
                .unwrap();
            assert!(
                fsck.status.success(),
                "{name}: {}",
                String::from_utf8_lossy(&fsck.stdout)
            );
        }
    }

    #[test]
    fn a_disk_never_replaces_anything() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        create(&path, MIN_BYTES, folder.path()).unwrap();
        assert!(matches!(
            create(&path, MIN_BYTES, folder.path()),
            Err(DiskError::Create(..))
        ));
    }

    #[test]
    fn a65_sizes_out_of_range_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [
            0,
            1,
            MIN_BYTES - BLOCK_BYTES,
            MIN_BYTES + 1,
            MAX_BYTES + BLOCK_BYTES,
            u64::MAX,
        ] {
            let result = create(&folder.path().join("disk"), bytes, folder.path());
            assert!(matches!(result, Err(DiskError::Size(_))), "{bytes}");
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn many_at_once_make_one_template() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let folder = folder.path();
                scope.spawn(move || {
                    create(&folder.join(number.to_string()), 1 << 30, folder).unwrap();
                });
            }
        });
        assert_eq!(folder.path().read_dir().unwrap().count(), 9);
    }
}
