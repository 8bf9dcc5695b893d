//! From a layer's blob to the bytes of its archive, under a budget.

use std::cell::Cell;
use std::io::{self, BufReader, Read};

use super::pipe::Writer;
use super::{Compression, LayerError, LayerLimits};

/// Bytes read from the blob at a time.
const READ: usize = 128 << 10;
/// Largest zstd window, 128 MiB: what the zstd tool itself accepts unasked. It is allocated only as it fills.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Writes the archive in `blob` to `output` until either end stops.
///
/// # Errors
///
/// When the blob cannot be read, is damaged, or unpacks to more than `limits` allow.
pub fn decompress(
    blob: impl Read,
    compression: Compression,
    limits: &LayerLimits,
    output: Writer,
) -> Result<(), LayerError> {
    let taken = Cell::new(0);
    let blob = Counted {
        inner: blob,
        taken: &taken,
    };
    let failed = |error| LayerError::Decompress(compression, error);
    match compression {
        Compression::None => pump(blob, compression, limits, &taken, output),
        Compression::Gzip => {
            let blob = BufReader::with_capacity(READ, blob);
            let archive = flate2::bufread::MultiGzDecoder::new(blob);
            pump(archive, compression, limits, &taken, output)
        }
        Compression::Zstd => {
            let blob = BufReader::with_capacity(READ, blob);
            let mut archive = zstd::stream::read::Decoder::with_buffer(blob).map_err(failed)?;
            archive.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
            pump(archive, compression, limits, &taken, output)
        }
    }
}

fn pump(
    mut archive: impl Read,
    compression: Compression,
    limits: &LayerLimits,
    taken: &Cell<u64>,
    mut output: Writer,
) -> Result<(), LayerError> {
    let mut written = 0;
    loop {
        let filled = output.fill(&mut archive);
        let Some(count) = filled.map_err(|error| LayerError::Decompress(compression, error))?
        else {
            return Ok(());
        };
        if count == 0 {
            return Ok(());
        }
        written += count;
        if written > limits.bytes {
            return Err(LayerError::TooLarge(limits.bytes));
        }
        if written > limits.ratio_from && written / limits.ratio.max(1) > taken.get() {
            return Err(LayerError::Ratio(limits.ratio));
        }
    }
}

struct Counted<'a, R> {
    inner: R,
    taken: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.taken.set(self.taken.get() + count as u64);
        Ok(count)
    }
}
