//! What a container has mounted besides its root: what a user asked for, and what it came to.

mod parse;
mod source;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use parse::{Given, MountSyntaxError, from, long, short, target};
pub use source::{SourceError, check as check_source};

/// A mount that a user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// What is mounted.
    pub source: RequestedSource,
    /// Where: an absolute path, not the root, without `.` and `..`.
    pub target: String,
    /// Refuse whatever changes it.
    pub read_only: bool,
}

/// What a user wants to have mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestedSource {
    /// A folder or file of the host.
    Bind {
        /// Absolute.
        path: PathBuf,
        /// Make a folder of it where there is nothing.
        create: bool,
    },
    /// A volume.
    Volume {
        /// A new, anonymous one where there is none.
        name: Option<String>,
        /// Copy what the image has at the target into it where it is empty.
        copy: bool,
        /// For one that is made.
        labels: BTreeMap<String, String>,
    },
}

/// The volumes of another container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumesFrom {
    /// Its name, ID or start of an ID.
    pub container: String,
    /// Take them read-only.
    pub read_only: bool,
}

/// A mount of a container, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// What is mounted.
    pub source: MountSource,
    /// Where.
    pub target: String,
    /// Refuse whatever changes it.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A folder or file of the host: an absolute path as it was given, links and all.
    Bind(PathBuf),
    /// A volume.
    Volume {
        /// Its name.
        name: String,
        /// It was made for this container, and goes with it where that is asked for.
        anonymous: bool,
        /// Copy what the image has at the target into it where it is empty.
        copy: bool,
    },
}

impl MountPoint {
    /// Name of the volume.
    #[must_use]
    pub fn volume(&self) -> Option<&str> {
        match &self.source {
            MountSource::Volume { name, .. } => Some(name),
            MountSource::Bind(_) => None,
        }
    }
}
