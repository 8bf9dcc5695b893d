//! An archive as a stream or as a file that need not be read through, whatever it is compressed with.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::image::{import, layer::Compression};

/// How many bytes one compressed byte may become, judged once a GiB came out.
const MAX_RATIO: u64 = 200;
const RATIO_FROM: u64 = 1 << 30;

/// Where a tar file is read from.
pub(crate) enum Input {
    /// A file that can be read anywhere.
    File(File),
    /// Anything else.
    Stream(Box<dyn Read + Send>),
}

impl Input {
    /// A file or a pipe as a tar file: a file that is one is read in place.
    pub fn open(mut input: File) -> io::Result<Self> {
        let mut magic = Vec::new();
        Read::by_ref(&mut input).take(4).read_to_end(&mut magic)?;
        let compression = import::sniff(&magic);
        if input.metadata()?.is_file() {
            input.rewind()?;
            magic.clear();
            if compression == Compression::None {
                return Ok(Self::File(input));
            }
        }
        let went_in = Arc::new(AtomicU64::new(0));
        let input = BufReader::with_capacity(
            128 << 10,
            Counted {
                inner: io::Cursor::new(magic).chain(input),
                count: Arc::clone(&went_in),
            },
        );
        let inner: Box<dyn Read + Send> = match compression {
            Compression::None => return Ok(Self::Stream(Box::new(input))),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        };
        Ok(Self::Stream(Box::new(Expanded {
            inner,
            came_out: 0,
            went_in,
        })))
    }

    /// As a stream from its beginning.
    pub fn into_reader(self) -> Box<dyn Read + Send> {
        match self {
            Self::File(file) => Box::new(file),
            Self::Stream(stream) => stream,
        }
    }
}

/// Counts what it reads for somebody else.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// A decompressor that stops where so little becomes so much.
struct Expanded {
    inner: Box<dyn Read + Send>,
    came_out: u64,
    went_in: Arc<AtomicU64>,
}

impl Read for Expanded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.came_out += count as u64;
        let allowed = self
            .went_in
            .load(Ordering::Relaxed)
            .saturating_mul(MAX_RATIO);
        if self.came_out > RATIO_FROM && self.came_out > allowed {
            let message = format!("the archive expands more than {MAX_RATIO} times");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(count)
    }
}
