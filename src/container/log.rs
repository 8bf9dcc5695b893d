//! A container's output as it is kept: lines of JSON as Docker's `json-file` writes them, in files that are
//! rotated. Where output goes besides is not known here.
//!
//! ```text
//! {"log":"hello\n","stream":"stdout","time":"2026-11-21T02:33:03.123456789Z"}
//! ```
//!
//! `log.json` is the newest file, `log.json.1` the one before. A line without its end is kept back until the end comes,
//! the stream ends, or it has 16 KiB: then it is written in pieces, of which only the last ends with a newline.

mod reader;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use reader::{LogReader, LogWatch};

/// Name of the newest file in the container's folder.
pub const FILE: &str = "log.json";

/// Longest piece of a line in bytes, as in Docker.
const PIECE: usize = 16 << 10;

/// How output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// Largest file in bytes.
    pub max_bytes: u64,
    /// Most files; 0 keeps nothing.
    pub max_files: u32,
}

impl Default for LogConfig {
    /// 30 MiB at most, in three files.
    fn default() -> Self {
        Self {
            max_bytes: 10 << 20,
            max_files: 3,
        }
    }
}

/// Which of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line, or a piece of one, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The text with its newline; what is no UTF-8 was replaced.
    pub log: String,
    /// Where it was written to.
    pub stream: Stream,
    /// When it arrived.
    pub time: Timestamp,
}

/// The writing end. A disk that is full or broken costs lines and nothing else: what the container does goes on.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    config: LogConfig,
    file: Option<File>,
    /// Length of the file that holds whole entries.
    bytes: u64,
    /// Beginnings of lines, by stream.
    begun: [Vec<u8>; 2],
    entry: Vec<u8>,
}

impl Log {
    /// Goes on with the log in `folder`, or begins one.
    ///
    /// # Errors
    ///
    /// Where the file cannot be opened.
    pub fn open(folder: &Path, config: LogConfig) -> io::Result<Self> {
        let path = folder.join(FILE);
        let file = (config.max_files > 0).then(|| open(&path)).transpose()?;
        let bytes = match &file {
            Some(file) => file.metadata()?.len(),
            None => 0,
        };
        Ok(Self {
            path,
            config,
            file,
            bytes,
            begun: [Vec::new(), Vec::new()],
            entry: Vec::new(),
        })
    }

    /// Takes in what arrived on a stream.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8]) {
        if self.file.is_none() {
            return;
        }
        let time = Timestamp::now();
        while !bytes.is_empty() {
            let begun = &mut self.begun[stream as usize];
            let room = &bytes[..bytes.len().min(PIECE - begun.len())];
            let end = room.iter().position(|byte| *byte == b'\n');
            let (taken, rest) = bytes.split_at(end.map_or(room.len(), |end| end + 1));
            bytes = rest;
            begun.extend_from_slice(taken);
            if end.is_some() || begun.len() == PIECE {
                self.put(stream, time, end.is_some());
            }
        }
    }

    /// Writes what was kept back: the stream has ended.
    pub fn end(&mut self, stream: Stream) {
        if !self.begun[stream as usize].is_empty() {
            self.put(stream, Timestamp::now(), true);
        }
    }

    /// Writes the line that was begun, or all of it but half a character at the end.
    fn put(&mut self, stream: Stream, time: Timestamp, whole: bool) {
        let begun = &mut self.begun[stream as usize];
        let length = match std::str::from_utf8(begun) {
            Err(error) if !whole && error.error_len().is_none() && error.valid_up_to() > 0 => {
                error.valid_up_to()
            }
            _ => begun.len(),
        };
        let entry = Entry {
            log: String::from_utf8_lossy(&begun[..length]).into_owned(),
            stream,
            time,
        };
        begun.drain(..length);
        self.entry.clear();
        // Writing JSON of text to memory cannot fail, and what goes wrong on disk is not the container's.
        let _ = serde_json::to_writer(&mut self.entry, &entry).map_err(io::Error::from);
        self.entry.push(b'\n');
        let _ = self.append();
    }

    fn append(&mut self) -> io::Result<()> {
        let length = self.entry.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.config.max_bytes {
            self.rotate()?;
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let written = file.write_all_at(&self.entry, self.bytes);
        match written {
            Ok(()) => self.bytes += length,
            // Half an entry would spoil the next one.
            Err(_) => file.set_len(self.bytes)?,
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| match number {
            0 => self.path.clone(),
            number => self.path.with_added_extension(number.to_string()),
        };
        let last = self.config.max_files - 1;
        if last == 0 {
            fs::remove_file(&self.path)?;
        }
        for number in (0..last).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = Some(open(&self.path)?);
        self.bytes = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(path: &Path) -> Vec<Entry> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn texts(path: &Path) -> Vec<(Stream, String)> {
        let pair = |entry: Entry| (entry.stream, entry.log);
        entries(path).into_iter().map(pair).collect()
    }

    #[test]
    fn lines_are_kept_whole_and_apart_however_they_arrive() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(folder.path(), LogConfig::default()).unwrap();
        log.write(Stream::Stdout, b"one\ntw");
        log.write(Stream::Stderr, b"error \xff\n");
        log.write(Stream::Stdout, b"o\nlast");
        log.end(Stream::Stdout);
        log.end(Stream::Stderr);
        assert_eq!(
            texts(&folder.path().join(FILE)),
            [
                (Stream::Stdout, "one\n".into()),
                (Stream::Stderr, "error \u{fffd}\n".into()),
                (Stream::Stdout, "two\n".into()),
                (Stream::Stdout, "last".into()),
            ]
        );
    }

    #[test]
    fn a46_a_line_without_end_is_cut_between_characters_and_held_in_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(folder.path(), LogConfig::default()).unwrap();
        let line = "ü".repeat(20_000);
        log.write(Stream::Stdout, b"x");
        for piece in line.as_bytes().chunks(1001) {
            log.write(Stream::Stdout, piece);
            assert!(log.begun[0].len() < PIECE && log.entry.capacity() < 4 * PIECE);
        }
        log.write(Stream::Stdout, b"\n");
        let texts = texts(&folder.path().join(FILE));
        assert!(texts.len() > 2);
        let whole: String = texts.into_iter().map(|(_, text)| text).collect();
        assert_eq!(whole, format!("x{line}\n"));
    }

    #[test]
    fn a46_a_flood_stays_below_the_cap_and_keeps_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let config = LogConfig {
            max_bytes: 10_000,
            max_files: 3,
        };
        let mut log = Log::open(folder.path(), config).unwrap();
        for number in 0..5000 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes());
        }
        let sizes: Vec<u64> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= 10_000), "{sizes:?}");
        let newest = entries(&folder.path().join(FILE));
        assert_eq!(newest.last().unwrap().log, "line 4999\n");
        let before = entries(&folder.path().join("log.json.1"));
        let number = |entry: &Entry| entry.log[5..].trim().parse::<u32>().unwrap();
        assert_eq!(number(before.last().unwrap()) + 1, number(&newest[0]));
    }

    #[test]
    fn a_log_goes_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        for text in [b"one\n", b"two\n"] {
            let mut log = Log::open(folder.path(), LogConfig::default()).unwrap();
            log.write(Stream::Stdout, text);
        }
        assert_eq!(entries(&folder.path().join(FILE)).len(), 2);
    }

    #[test]
    fn a53_a_full_disk_costs_lines_and_leaves_whole_entries() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(folder.path(), LogConfig::default()).unwrap();
        log.write(Stream::Stdout, b"before\n");
        let good = log
            .file
            .replace(File::options().write(true).open("/dev/full").unwrap());
        log.write(Stream::Stdout, b"lost\n");
        log.file = good;
        log.write(Stream::Stdout, b"after\n");
        let texts = texts(&folder.path().join(FILE));
        let texts: Vec<&str> = texts.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["before\n", "after\n"]);
    }
}
