//! A blob while it arrives: counted, hashed, and in the end compared with what it should be.

use std::io::{self, Read};

use super::{ImportError, PIECE};
use crate::image::{digest::Hasher, manifest::Blob};

/// What has arrived of a blob.
pub(super) struct Arrived<'b> {
    /// What it should be.
    pub blob: &'b Blob,
    /// Bytes so far.
    pub bytes: u64,
    hasher: Hasher,
}

impl<'b> Arrived<'b> {
    /// Nothing yet.
    pub fn new(blob: &'b Blob) -> Self {
        Self {
            blob,
            hasher: Hasher::new(blob.digest.algorithm()),
            bytes: 0,
        }
    }

    /// Takes in what `reader` gives, piece by piece, up to its end. No more is taken than there should be.
    pub fn take_from(
        &mut self,
        reader: &mut dyn Read,
        take: &mut dyn FnMut(&[u8]) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let digest = self.blob.digest;
        let mut buffer = vec![0; PIECE];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ImportError::Read { digest, source }),
            };
            if count as u64 > self.blob.size - self.bytes {
                return Err(self.size("more".into()));
            }
            self.bytes += count as u64;
            self.hasher.update(&buffer[..count]);
            take(&buffer[..count])?;
        }
    }

    /// Fails unless it is exactly what it should be.
    pub fn check(self) -> Result<(), ImportError> {
        let expected = self.blob.digest;
        if self.bytes != self.blob.size {
            return Err(self.size(format!("{} bytes", self.bytes)));
        }
        match self.hasher.finish() {
            found if found == expected => Ok(()),
            found => Err(ImportError::Digest {
                expected,
                found: found.to_string(),
            }),
        }
    }

    fn size(&self, found: String) -> ImportError {
        ImportError::Size {
            digest: self.blob.digest,
            expected: self.blob.size,
            found,
        }
    }
}
