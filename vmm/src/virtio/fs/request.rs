//! What the device has to know of FUSE's format (Linux, `include/uapi/linux/fuse.h`): the headers, and which
//! requests have no answer.

use crate::virtio::Buffers;

/// Bytes of `struct fuse_in_header` and `struct fuse_out_header`.
pub const HEADER: usize = 40;
pub const ANSWER_HEADER: usize = 16;

/// Longest request and answer in bytes: 32 pages of data, the most that Linux sends without being told
/// otherwise, and a page for what surrounds them.
pub const LONGEST: usize = 33 * 4096;

const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// What the driver names its request by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unique(pub u64);

/// What becomes of a request once it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is answered.
    Answered,
    /// It is not.
    Silent,
    /// The server says nothing to it, but the driver waits for a word.
    Confirmed,
    /// No server has to see it: what could be interrupted is done before.
    Needless,
}

/// The front of a request, copied out of guest memory once.
#[derive(Debug)]
pub struct Header {
    bytes: [u8; HEADER],
    pub unique: Unique,
    pub kind: Kind,
}

impl Header {
    /// Takes it from the front of a request; `None` where that is none, or too long.
    pub fn take(readable: &mut Buffers<'_>) -> Option<Self> {
        let length = readable.len();
        let mut bytes = [0; HEADER];
        if length > LONGEST || readable.read(&mut bytes).is_err() {
            return None;
        }
        let kind = match u32::from_le_bytes(part(&bytes, 4)) {
            FORGET | BATCH_FORGET => Kind::Silent,
            DESTROY => Kind::Confirmed,
            INTERRUPT => Kind::Needless,
            _ => Kind::Answered,
        };
        let unique = Unique(u64::from_le_bytes(part(&bytes, 8)));
        // What the guest says of the length need not be what there is.
        bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
        Some(Self {
            bytes,
            unique,
            kind,
        })
    }

    /// As the server sees it: named by what the device knows it by.
    pub fn renamed(mut self, unique: u64) -> [u8; HEADER] {
        self.bytes[8..16].copy_from_slice(&unique.to_le_bytes());
        self.bytes
    }
}

/// What the server calls the request that `answer` is for; `None` where it is no answer.
pub fn answered(answer: &[u8]) -> Option<u64> {
    let header: &[u8; ANSWER_HEADER] = answer.first_chunk()?;
    let length = u32::from_le_bytes(part(header, 0)) as usize;
    (length == answer.len()).then(|| u64::from_le_bytes(part(header, 8)))
}

/// Puts the driver's own name into an answer.
pub fn rename(answer: &mut [u8], Unique(unique): Unique) {
    if let Some(place) = answer.get_mut(8..ANSWER_HEADER) {
        place.copy_from_slice(&unique.to_le_bytes());
    }
}

/// An answer without data: `errno`, or success for 0.
pub fn plain(Unique(unique): Unique, errno: i32) -> [u8; ANSWER_HEADER] {
    let mut answer = [0; ANSWER_HEADER];
    answer[..4].copy_from_slice(&(ANSWER_HEADER as u32).to_le_bytes());
    answer[4..8].copy_from_slice(&(-errno).to_le_bytes());
    answer[8..].copy_from_slice(&unique.to_le_bytes());
    answer
}

/// Gives the driver an answer; how many bytes. One that does not fit is an error, where that fits.
pub fn put(writable: &mut Buffers<'_>, unique: Unique, answer: &[u8]) -> u32 {
    if writable.write(answer).is_ok() {
        return answer.len() as u32;
    }
    match writable.write(&plain(unique, libc::EIO)) {
        Ok(()) => ANSWER_HEADER as u32,
        Err(_) => 0,
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}
