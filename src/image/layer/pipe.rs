//! A bounded pipe between two threads, so that a layer is decompressed while it is hashed and taken apart.
//!
//! Buffers go round: the pipe never holds more than [`PIECES`] of them.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::image::digest::{Digest, Hasher};

/// Bytes of a piece: large enough that waking the other thread costs nothing, small enough for the cache.
const PIECE: usize = 256 << 10;
/// Pieces in flight.
const PIECES: usize = 4;

/// The writing end.
pub struct Writer {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
}

/// The reading end, which hashes what passes.
pub struct Reader {
    full: Receiver<Vec<u8>>,
    empty: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    used: usize,
    hasher: Hasher,
    bytes: u64,
}

/// Makes a pipe whose reader hashes with `hasher`.
#[must_use]
pub fn pipe(hasher: Hasher) -> (Writer, Reader) {
    let (full_in, full_out) = sync_channel(PIECES);
    let (empty_in, empty_out) = sync_channel(PIECES);
    for _ in 0..PIECES {
        // There is room for all of them, and the other end is right here.
        let _ = empty_in.send(Vec::new());
    }
    let writer = Writer {
        full: full_in,
        empty: empty_out,
    };
    let reader = Reader {
        full: full_out,
        empty: empty_in,
        piece: Vec::new(),
        used: 0,
        hasher,
        bytes: 0,
    };
    (writer, reader)
}

impl Writer {
    /// Fills a piece from `source` and passes it on. `None` when the reader is gone.
    ///
    /// # Errors
    ///
    /// When `source` fails.
    pub fn fill(&mut self, source: &mut impl Read) -> io::Result<Option<u64>> {
        let Ok(mut piece) = self.empty.recv() else {
            return Ok(None);
        };
        piece.resize(PIECE, 0);
        let mut length = 0;
        while length < PIECE {
            match source.read(&mut piece[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        piece.truncate(length);
        let sent = length == 0 || self.full.send(piece).is_ok();
        Ok(sent.then_some(length as u64))
    }
}

impl Reader {
    /// Reads and hashes what is left; the digest of everything and its length.
    #[must_use]
    pub fn drain(mut self) -> (Digest, u64) {
        while self.next_piece() {}
        (self.hasher.finish(), self.bytes)
    }

    fn next_piece(&mut self) -> bool {
        let Ok(piece) = self.full.recv() else {
            self.piece.clear();
            self.used = 0;
            return false;
        };
        self.hasher.update(&piece);
        self.bytes += piece.len() as u64;
        let done = std::mem::replace(&mut self.piece, piece);
        self.used = 0;
        // The writer may be through and gone.
        let _ = self.empty.try_send(done);
        true
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.piece.len() {
            self.next_piece();
        }
        Ok(&self.piece[self.used..])
    }

    fn consume(&mut self, count: usize) {
        self.used = self.piece.len().min(self.used + count);
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let count = ready.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ready[..count]);
        self.consume(count);
        Ok(count)
    }
}
