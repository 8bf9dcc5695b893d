//! Content digests: `algorithm:hex`, as the OCI image specification's descriptor page has them.
//!
//! A [`Digest`] can only be made by parsing or by hashing, and holds the raw hash: whatever a manifest or a
//! registry called a digest is either a value of this type, whose text holds nothing but its algorithm, a colon
//! and lower-case hex digits, or an error. So it may be part of a path. No file is touched here.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// Why a text is no digest.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum DigestError {
    /// No colon in it.
    #[error("{0:?} is not a digest: a digest looks like sha256:<64 hex digits>")]
    Shape(String),
    /// An algorithm other than sha256 and sha512.
    #[error("unknown digest algorithm {0:?}: sha256 and sha512 are supported")]
    Algorithm(String),
    /// The part behind the colon is not the right number of lower-case hex digits.
    #[error("{algorithm} digest {text:?} is not {digits} lower-case hex digits")]
    Encoding {
        /// Which algorithm it claims.
        algorithm: Algorithm,
        /// How many digits that algorithm has.
        digits: usize,
        /// The text behind the colon, cut short.
        text: String,
    },
}

/// The registered algorithms that the OCI image specification lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, which every implementation must know.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Name as it stands before the colon; a safe path component.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A validated digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Digest {
    /// SHA-256.
    Sha256([u8; 32]),
    /// SHA-512.
    Sha512([u8; 64]),
}

impl Digest {
    /// SHA-256 of some bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// Which algorithm it is of.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The lower-case hex digits behind the colon; a safe path component.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.bytes())
    }

    /// The first twelve hex digits, as lists show them.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.bytes()[..6])
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, encoded) = text
            .split_once(':')
            .ok_or_else(|| DigestError::Shape(excerpt(text)))?;
        match algorithm {
            "sha256" => Ok(Self::Sha256(decode(Algorithm::Sha256, encoded)?)),
            "sha512" => Ok(Self::Sha512(decode(Algorithm::Sha512, encoded)?)),
            _ => Err(DigestError::Algorithm(excerpt(algorithm))),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Lower case only: two spellings of one digest would be two files.
fn decode<const N: usize>(algorithm: Algorithm, encoded: &str) -> Result<[u8; N], DigestError> {
    let error = || DigestError::Encoding {
        algorithm,
        digits: 2 * N,
        text: excerpt(encoded),
    };
    if encoded.len() != 2 * N || encoded.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(error());
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(encoded, &mut bytes).map_err(|_| error())?;
    Ok(bytes)
}

/// Enough of a hostile text to recognise it by.
fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A running hash.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(sha2::Sha256),
    /// SHA-512.
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// A hash of nothing yet.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
        }
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of everything taken in.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::Sha256(hash.finalize().into()),
            Self::Sha512(hash) => Digest::Sha512(hash.finalize().into()),
        }
    }
}

impl Write for Hasher {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.update(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader or writer that hashes and counts everything that passes through it.
pub struct Hashed<T> {
    inner: T,
    hasher: Hasher,
    bytes: u64,
}

impl<T> Hashed<T> {
    /// Wraps `inner`, with nothing hashed yet.
    pub fn new(inner: T, algorithm: Algorithm) -> Self {
        Self {
            inner,
            hasher: Hasher::new(algorithm),
            bytes: 0,
        }
    }

    /// Number of bytes that passed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The inner reader or writer, the digest and the number of bytes that passed.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, self.hasher.finish(), self.bytes)
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.passed(&buffer[..count]);
        Ok(count)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.passed(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashes_and_prints() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
    }

    #[test]
    fn a32_only_exact_digests_are_accepted() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let long = format!("{EMPTY}0");
        let hostile = [
            "",
            ":",
            "sha256",
            "sha256:",
            "sha256:../../x",
            "sha256:..",
            &EMPTY[..70],
            &upper,
            &long,
            "md5:00",
            "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "SHA256:e3b0",
            "sha256+b64:e3b0",
            "../sha256:e3b0",
            "sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ];
        for text in hostile {
            assert!(text.parse::<Digest>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a32_errors_stay_short() {
        let error = format!("sha256:{}", "é".repeat(1 << 20))
            .parse::<Digest>()
            .unwrap_err();
        assert!(error.to_string().len() < 400);
    }

    proptest! {
        #[test]
        fn text_and_value_agree(bytes: [u8; 32], more: [u8; 32]) {
            let mut long = [0; 64];
            long[..32].copy_from_slice(&bytes);
            long[32..].copy_from_slice(&more);
            for digest in [Digest::Sha256(bytes), Digest::Sha512(long)] {
                prop_assert_eq!(digest.to_string().parse(), Ok(digest));
            }
        }

        #[test]
        fn a32_accepted_text_is_a_plain_name(text: String) {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn pieces_hash_as_the_whole(pieces: Vec<Vec<u8>>) {
            let mut hashed = Hashed::new(io::sink(), Algorithm::Sha256);
            for piece in &pieces {
                hashed.write_all(piece).unwrap();
            }
            let whole = pieces.concat();
            let (_, digest, bytes) = hashed.finish();
            prop_assert_eq!((digest, bytes), (Digest::of(&whole), whole.len() as u64));
        }
    }
}
