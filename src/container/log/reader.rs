//! The reading end of a log: what there is, the last lines of it, and what comes while somebody follows. The writer knows
//! of no reader.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader},
    marker::PhantomData,
    os::{fd::BorrowedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::de::DeserializeOwned;

use super::{Entry, FILE};

/// Longest line of the file that is taken for an entry, in bytes: a piece with every byte escaped.
const MAX_LINE: u64 = 256 << 10;

/// Reads the entries of one container, oldest first.
#[derive(Debug)]
pub struct LogReader<T = Entry> {
    path: PathBuf,
    /// The file being read; the newer ones come after it.
    file: Option<BufReader<File>>,
    /// A line whose end is not written yet.
    begun: Vec<u8>,
    /// Numbers of the older files that are still to be read, in that order.
    older: VecDeque<u32>,
    entries: PhantomData<T>,
}

impl LogReader {
    /// Begins with the oldest file in `folder`.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read.
    pub fn open(folder: &Path) -> io::Result<Self> {
        Self::open_file(&folder.join(FILE))
    }
}

impl<T: DeserializeOwned> LogReader<T> {
    /// Begins with the oldest of the files that were `path` at their time.
    ///
    /// # Errors
    ///
    /// Where its folder cannot be read.
    pub fn open_file(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.into(),
            file: None,
            begun: Vec::new(),
            older: numbers(path)?.into(),
            entries: PhantomData,
        })
    }

    /// The next entry there is; `None` when there are no more now.
    ///
    /// # Errors
    ///
    /// Where a file cannot be read. What is no entry is passed over.
    pub fn read(&mut self) -> io::Result<Option<T>> {
        loop {
            if self.file.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some(file) = &mut self.file else {
                continue;
            };
            let mut limited = io::Read::take(&mut *file, MAX_LINE);
            limited.read_until(b'\n', &mut self.begun)?;
            if self.begun.ends_with(b"\n") || self.begun.len() as u64 >= MAX_LINE {
                let entry = serde_json::from_slice(&self.begun);
                self.begun.clear();
                match entry {
                    Ok(entry) => return Ok(Some(entry)),
                    Err(_) => continue,
                }
            }
            // The end of the file, and perhaps of its time.
            if !self.is_left_behind()? {
                return Ok(None);
            }
            self.leave()?;
        }
    }

    /// Opens the next file; `false` where there is none.
    fn open_next(&mut self) -> io::Result<bool> {
        while let Some(number) = self.older.pop_front() {
            match File::open(self.path.with_added_extension(number.to_string())) {
                Ok(file) => {
                    self.file = Some(BufReader::new(file));
                    return Ok(true);
                }
                // Rotated away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        match File::open(&self.path) {
            Ok(file) => {
                self.file = Some(BufReader::new(file));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the writer has gone on to another file. What it wrote to this one before was read, as the other one appears
    /// after that.
    fn is_left_behind(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        if !self.older.is_empty() {
            return Ok(true);
        }
        let newest = match std::fs::metadata(&self.path) {
            Ok(newest) => newest,
            // Between two renames.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let read = file.get_ref().metadata()?;
        if identity(&newest) == identity(&read) {
            return Ok(false);
        }
        // Something may have come between the last read and the rotation.
        Ok(file.fill_buf()?.is_empty())
    }

    /// Leaves the file that was read for those that were begun since.
    fn leave(&mut self) -> io::Result<()> {
        self.begun.clear();
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        if !self.older.is_empty() {
            return Ok(());
        }
        let read = identity(&file.get_ref().metadata()?);
        let numbers = numbers(&self.path)?;
        let is_it = |number: &u32| {
            let path = self.path.with_added_extension(number.to_string());
            std::fs::metadata(path).is_ok_and(|found| identity(&found) == read)
        };
        let after = numbers.iter().position(is_it).map_or(0, |place| place + 1);
        self.older = numbers[after..].iter().copied().collect();
        Ok(())
    }
}

/// The numbers of the older files of a log, oldest first.
fn numbers(path: &Path) -> io::Result<Vec<u32>> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let mut numbers: Vec<u32> = std::fs::read_dir(folder)?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_prefix(&*file)?.strip_prefix('.')?.parse().ok()
        })
        .collect();
    numbers.sort_unstable_by(|one, other| other.cmp(one));
    Ok(numbers)
}

/// Which file it is.
fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Tells when a log may have grown.
#[derive(Debug)]
pub struct LogWatch(Inotify);

impl LogWatch {
    /// Watches the log in `folder`.
    ///
    /// # Errors
    ///
    /// Those of inotify(7).
    pub fn new(folder: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let changes =
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(folder, changes)?;
        Ok(Self(inotify))
    }

    /// Readable when it may have.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    /// Forgets what was told so far.
    pub fn clear(&self) {
        // The next read of the log finds whatever it was.
        while self.0.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Log, LogConfig, Stream},
        *,
    };

    fn all(reader: &mut LogReader) -> Vec<String> {
        std::iter::from_fn(|| reader.read().unwrap())
            .map(|entry| entry.log)
            .collect()
    }

    #[test]
    fn a_reader_follows_through_rotations() {
        let folder = tempfile::tempdir().unwrap();
        let config = LogConfig {
            max_bytes: 1000,
            max_files: 3,
        };
        let mut log = Log::open(folder.path(), config).unwrap();
        let watch = LogWatch::new(folder.path()).unwrap();
        let mut reader = LogReader::open(folder.path()).unwrap();
        let mut seen = Vec::new();
        for number in 0..200 {
            log.write(Stream::Stdout, format!("{number}\n").as_bytes());
            // Two files are passed at times, and never three.
            if number % 30 == 0 {
                seen.extend(all(&mut reader));
            }
        }
        seen.extend(all(&mut reader));
        let expected: Vec<String> = (0..200).map(|number| format!("{number}\n")).collect();
        assert_eq!(seen, expected);
        watch.clear();

        // From the beginning only what was kept is there, in order.
        let kept = all(&mut LogReader::open(folder.path()).unwrap());
        assert!(kept.len() > 20 && expected.ends_with(&kept));
    }

    #[test]
    fn what_is_no_entry_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = b"not json\n".to_vec();
        bytes.extend(vec![b'x'; 1 << 20]);
        bytes.extend(b"\n");
        std::fs::write(folder.path().join(FILE), bytes).unwrap();
        let mut log = Log::open(folder.path(), LogConfig::default()).unwrap();
        log.write(Stream::Stderr, b"good\n");
        assert_eq!(
            all(&mut LogReader::open(folder.path()).unwrap()),
            ["good\n"]
        );
    }
}
