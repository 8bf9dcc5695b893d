//! Trees of files on their way between a container and its host: read from folders ([`tree`]), put into folders
//! ([`place`]), and carried as `protocol::files` says ([`stream`]).
//!
//! The guest agent and the host's commands use the same code, each for its own side. Nobody here trusts the other side or
//! whoever else works on the same folders: what is opened is opened below an open folder, names are never followed
//! where they were not meant to be, and what arrives is checked before it is used.
#![forbid(unsafe_code)]

mod describe;
pub mod place;
pub mod stream;
pub mod tree;

use std::io;

use protocol::{
    files::{Action, Item, MAX_PATH, MalformedEntry},
    frame::FrameError,
};
use rustix::io::Errno;

/// Why files could not be carried.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Something that was done to a file.
    #[error("cannot {action} {}{}", text(path), if *.remote { " in the container" } else { "" })]
    File {
        /// What was tried.
        action: Action,
        /// On what.
        path: Vec<u8>,
        /// Whether that is at the other end.
        remote: bool,
        /// How it failed.
        source: io::Error,
    },
    /// The stream broke.
    #[error("the stream of files broke off")]
    Stream(#[from] FrameError),
    /// An entry that is none.
    #[error("an entry in the stream of files is malformed")]
    Malformed(#[from] MalformedEntry),
    /// Something else than what was due.
    #[error("the stream of files holds what does not belong there")]
    Unexpected,
}

impl FilesError {
    /// As the other end is told; `None` where there is no talking to it.
    #[must_use]
    pub fn as_item(&self) -> Option<Item> {
        let (action, path, errno) = match self {
            Self::File { remote: true, .. } | Self::Stream(_) => return None,
            Self::File {
                action,
                path,
                source,
                ..
            } => (*action, path.clone(), source.raw_os_error().unwrap_or(0)),
            Self::Malformed(_) | Self::Unexpected => (Action::Receive, Vec::new(), 0),
        };
        let mut path = path;
        path.truncate(MAX_PATH);
        Some(Item::Failed {
            action,
            path,
            errno,
        })
    }
}

/// A path as it is shown.
fn text(path: &[u8]) -> String {
    match path {
        [] => "/".into(),
        path => String::from_utf8_lossy(path).into_owned(),
    }
}

/// Says what was tried, and on what.
trait To<T> {
    fn to(self, action: Action, path: &[u8]) -> Result<T, FilesError>;
}

impl<T> To<T> for Result<T, Errno> {
    fn to(self, action: Action, path: &[u8]) -> Result<T, FilesError> {
        self.map_err(|error| FilesError::File {
            action,
            path: path.to_vec(),
            remote: false,
            source: error.into(),
        })
    }
}
