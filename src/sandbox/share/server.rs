//! Answers a guest's requests for files: FUSE, as Linux speaks it (`include/uapi/linux/fuse.h`).
//!
//! The library does the work. What is settled here is what it leaves open: which of FUSE's features the guest may
//! use, and what never reaches it. Data are not kept back: what a guest writes is the host's at once, and what
//! somebody else writes a guest sees when it opens the file, or a second later.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use fuse_backend_rs::{
    abi::fuse_abi::FsOptions,
    api::{
        filesystem::{Context, FileSystem},
        server,
    },
    passthrough::{CachePolicy, Config, PassthroughFs},
    transport::{FuseBuf, FuseDevWriter, Reader, Writer},
};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{MsgFlags, recv, send},
};

/// Bytes of `struct fuse_in_header` and `struct fuse_out_header`.
const HEADER: usize = 40;
const ANSWER_HEADER: usize = 16;

/// Most bytes of data in one request or answer: 32 pages, Linux's own limit where it is not given another.
const MAX_DATA: u32 = 128 << 10;
/// Longest request and answer in bytes, as the device has it.
const LONGEST: usize = MAX_DATA as usize + 4096;

/// How long a guest may go on without asking what it knows.
const FRESH: Duration = Duration::from_secs(1);

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const CREATE: u32 = 35;

/// Where `WRITE` has its flags, and the one that asks for set-user-ID bits to be cleared.
const WRITE_FLAGS: usize = HEADER + 20;
const KILL_PRIVILEGES: u32 = 1 << 2;

/// FUSE's version 7, and the minor one that the library speaks.
const VERSION: (u32, u32) = (7, 33);
/// Bytes of `struct fuse_init_out`.
const INIT_ANSWER: usize = 64;
/// Requests of readahead and the like at once, and from where on they count as too many.
const BACKGROUND: (u16, u16) = (64, 48);

/// Serves one tree of files to one guest.
pub struct Server {
    files: server::Server<Arc<PassthroughFs>>,
    passthrough: Arc<PassthroughFs>,
}

impl Server {
    /// For the tree at `root`. `/proc` must be there.
    ///
    /// # Errors
    ///
    /// Where one of the two is not.
    pub fn new(root: &str) -> io::Result<Self> {
        let passthrough = Arc::new(PassthroughFs::new(Config {
            root_dir: root.to_owned(),
            entry_timeout: FRESH,
            attr_timeout: FRESH,
            cache_policy: CachePolicy::Auto,
            xattr: true,
            no_opendir: true,
            killpriv_v2: true,
            enable_mntid: true,
            // Buffers here are not aligned as the host's files would want them.
            allow_direct_io: false,
            ..Config::default()
        })?);
        passthrough.import()?;
        Ok(Self {
            files: server::Server::new(passthrough.clone()),
            passthrough,
        })
    }

    /// Answers until the socket closes. Any number of threads may do so at once.
    pub fn serve(&self, socket: &OwnedFd) {
        let mut request = vec![0; LONGEST];
        let mut answer = vec![0; LONGEST];
        loop {
            match recv(socket.as_raw_fd(), &mut request, MsgFlags::empty()) {
                Ok(length) if length >= HEADER => {
                    self.answer(socket, &mut request[..length], &mut answer);
                }
                Err(Errno::EINTR) => {}
                _ => return,
            }
        }
    }

    fn answer(&self, socket: &OwnedFd, request: &mut [u8], buffer: &mut [u8]) {
        // A device that is gone wants no answer.
        let say = |answer: &[u8]| {
            let _ = send(socket.as_raw_fd(), answer, MsgFlags::MSG_NOSIGNAL);
        };
        match number(request, 4) {
            INIT => {
                return match self.init(request) {
                    Some(answer) => say(&answer),
                    None => say(&plain(request, libc::EPROTO)),
                };
            }
            // Nothing is kept back that a close would have to wait for. The guest asks once.
            FLUSH => return say(&plain(request, libc::ENOSYS)),
            // The guest's kernel walks up by itself.
            LOOKUP if matches!(&request[HEADER..], b".\0" | b"..\0") => {
                return say(&plain(request, libc::ESTALE));
            }
            OPEN | CREATE => clear_direct(request, HEADER),
            READ => clear_direct(request, HEADER + 32),
            WRITE => {
                clear_direct(request, HEADER + 32);
                self.spare_privileges(request);
            }
            _ => {}
        }
        let failed = plain(request, libc::EIO);
        let Ok(reader) = Reader::<()>::from_fuse_buffer(FuseBuf::new(request)) else {
            return;
        };
        let Ok(writer) = FuseDevWriter::<()>::new(socket.as_raw_fd(), buffer) else {
            return;
        };
        let handled = self
            .files
            .handle_message(reader, Writer::FuseDev(writer), None, None);
        if handled.is_err() {
            // It may have answered all the same; then nobody waits for this one.
            say(&failed);
        }
    }

    /// Guests want set-user-ID bits cleared by every write of somebody who is not root. For files that have none the
    /// library need not give up a capability and take it back each time.
    fn spare_privileges(&self, request: &mut [u8]) {
        let flags = number(request, WRITE_FLAGS);
        if flags & KILL_PRIVILEGES == 0 {
            return;
        }
        let handle =
            u64::from(number(request, HEADER)) | u64::from(number(request, HEADER + 4)) << 32;
        let node = u64::from(number(request, 16)) | u64::from(number(request, 20)) << 32;
        let attributes = self
            .passthrough
            .getattr(&Context::default(), node, Some(handle));
        let is_plain = attributes.is_ok_and(|(attributes, _)| attributes.st_mode & 0o6000 == 0);
        if let Some(place) = request
            .get_mut(WRITE_FLAGS..WRITE_FLAGS + 4)
            .filter(|_| is_plain)
        {
            place.copy_from_slice(&(flags & !KILL_PRIVILEGES).to_le_bytes());
        }
    }

    /// The answer to `INIT`; `None` for a version that nobody speaks. The library's own would allow no more than a
    /// page a write.
    fn init(&self, request: &[u8]) -> Option<[u8; ANSWER_HEADER + INIT_ANSWER]> {
        if request.len() < HEADER + 16 || number(request, HEADER) != VERSION.0 {
            return None;
        }
        let mut offered = FsOptions::from_bits_truncate(number(request, HEADER + 12).into());
        let chosen = self.passthrough.init(offered).ok()?
            | FsOptions::ASYNC_READ
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::BIG_WRITES
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::ASYNC_DIO
            | FsOptions::PARALLEL_DIROPS;
        offered &= chosen;
        let mut answer = [0; ANSWER_HEADER + INIT_ANSWER];
        let mut put = |at: usize, bytes: &[u8]| answer[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &((ANSWER_HEADER + INIT_ANSWER) as u32).to_le_bytes());
        put(8, &request[8..16]);
        let body = ANSWER_HEADER;
        put(body, &VERSION.0.to_le_bytes());
        put(body + 4, &VERSION.1.to_le_bytes());
        put(
            body + 8,
            &number(request, HEADER + 8).min(MAX_DATA).to_le_bytes(),
        );
        put(body + 12, &(offered.bits() as u32).to_le_bytes());
        put(body + 16, &BACKGROUND.0.to_le_bytes());
        put(body + 18, &BACKGROUND.1.to_le_bytes());
        put(body + 20, &MAX_DATA.to_le_bytes());
        // Times in nanoseconds.
        put(body + 24, &1u32.to_le_bytes());
        Some(answer)
    }
}

/// A number of a request; 0 past its end.
fn number(request: &[u8], at: usize) -> u32 {
    let bytes = request.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Takes `O_DIRECT` out of the flags at `at`.
fn clear_direct(request: &mut [u8], at: usize) {
    let flags = number(request, at) & !(libc::O_DIRECT as u32);
    if let Some(place) = request.get_mut(at..at + 4) {
        place.copy_from_slice(&flags.to_le_bytes());
    }
}

/// An error and no more.
fn plain(request: &[u8], errno: i32) -> [u8; ANSWER_HEADER] {
    let mut answer = [0; ANSWER_HEADER];
    answer[0] = ANSWER_HEADER as u8;
    answer[4..8].copy_from_slice(&(-errno).to_le_bytes());
    answer[8..].copy_from_slice(&request[8..16]);
    answer
}

#[cfg(test)]
mod tests;
