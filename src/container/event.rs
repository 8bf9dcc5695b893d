//! What happens to containers, images, networks and volumes: a file in the state root that every process appends to, and
//! that is begun anew when it has grown. Nobody is told anything: who wants to know reads.
//!
//! Events are for people and their scripts. Nothing here depends on them, so one that cannot be written is lost.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    log::{LogReader, LogWatch},
    spec::Spec,
};
use crate::state_root::{self, StateRootError};

/// The newest file; the one before it has `.1` after its name.
const FILE: &str = "events.json";

/// Held by who writes, shared, and alone by who begins another file.
const LOCK: &str = "lock";

/// Size of a file in bytes after which another is begun: some ten thousand events.
const MAX_FILE: u64 = 4 << 20;

/// Longest event that is written with everything that belongs to it, in bytes.
const MAX_EVENT: usize = 16 << 10;

/// What something happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A network.
    Network,
    /// A volume.
    Volume,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Network => "network",
            Self::Volume => "volume",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// To what.
    pub kind: Kind,
    /// What: Docker's word for it.
    pub action: String,
    /// Of a container its ID, of others their name.
    pub id: String,
    /// What else there is to say.
    pub attributes: BTreeMap<String, String>,
}

/// The events of one state root.
#[derive(Debug, Clone)]
pub struct Events {
    folder: PathBuf,
}

impl Events {
    /// Those below `state_root`; what is missing is made.
    ///
    /// # Errors
    ///
    /// Where there is no such folder of this user's alone, and none can be made.
    pub fn open(state_root: &Path) -> Result<Self, StateRootError> {
        let folder = state_root.join("events");
        state_root::private_folder(&folder)?;
        let events = Self { folder };
        // Whatever stays is there from the first command on.
        let _ = events.append(&[]);
        Ok(events)
    }

    /// Writes down what happened just now.
    pub fn record(&self, kind: Kind, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        let mut event = Event {
            time: Timestamp::now(),
            kind,
            action: action.into(),
            id: id.into(),
            attributes,
        };
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        if line.len() >= MAX_EVENT {
            // Labels may be of any length; what is left then is short.
            event.attributes.retain(|_, value| value.len() <= 128);
            event.attributes = event.attributes.into_iter().take(16).collect();
            event.action.truncate(event.action.floor_char_boundary(128));
            line = serde_json::to_vec(&event).unwrap_or_default();
        }
        line.push(b'\n');
        let _ = self.append(&line);
    }

    /// Writes down what just happened to a container, with its image, name and labels, as Docker does.
    pub fn record_container(&self, spec: &Spec, action: &str, more: &[(&str, String)]) {
        let mut attributes = spec.labels.clone();
        attributes.insert("image".into(), spec.image.clone());
        attributes.insert("name".into(), spec.name.clone());
        attributes.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone())),
        );
        self.record(Kind::Container, action, spec.id.as_str(), attributes);
    }

    /// One write to the end of the file: those of others come before or after it.
    fn append(&self, line: &[u8]) -> io::Result<()> {
        let mut create = OpenOptions::new();
        let create = create.append(true).create(true);
        let lock = create.open(self.folder.join(LOCK))?;
        lock.lock_shared()?;
        let path = self.folder.join(FILE);
        let mut file = create.open(&path)?;
        file.write_all(line)?;
        if file.metadata()?.len() < MAX_FILE {
            return Ok(());
        }
        // Whoever else is writing now begins the next file in its turn.
        lock.unlock()?;
        if lock.try_lock().is_ok() && is_full(&path) {
            fs::rename(&path, path.with_added_extension("1"))?;
            File::create(&path)?;
        }
        Ok(())
    }

    /// Reads them, oldest first.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read.
    pub fn read(&self) -> io::Result<LogReader<Event>> {
        LogReader::open_file(&self.folder.join(FILE))
    }

    /// Tells when there may be more.
    ///
    /// # Errors
    ///
    /// Those of inotify(7).
    pub fn watch(&self) -> io::Result<LogWatch> {
        LogWatch::new(&self.folder)
    }
}

fn is_full(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() >= MAX_FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(events: &Events) -> Vec<String> {
        let mut reader = events.read().unwrap();
        std::iter::from_fn(|| reader.read().unwrap())
            .map(|event| event.id)
            .collect()
    }

    #[test]
    fn many_writers_lose_nothing_and_what_is_damaged_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let events = Events::open(root.path()).unwrap();
        events.append(b"{\"half\n").unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let events = &events;
                scope.spawn(move || {
                    for number in 0..100 {
                        let id = format!("{writer}-{number}");
                        events.record(Kind::Image, "pull", &id, BTreeMap::new());
                    }
                });
            }
        });
        let mut seen = all(&events);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 400);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_newest() {
        let root = tempfile::tempdir().unwrap();
        let events = Events::open(root.path()).unwrap();
        let long = BTreeMap::from([("label".to_owned(), "x".repeat(MAX_EVENT - 200))]);
        for number in 0..600 {
            events.record(Kind::Volume, "create", &number.to_string(), long.clone());
        }
        assert!(state_root::disk_usage(&root.path().join("events")) <= 2 * MAX_FILE + (64 << 10));
        let seen = all(&events);
        assert_eq!(seen.last().map(String::as_str), Some("599"));
        assert!(seen.len() > 250 && seen.len() < 600);

        let huge = BTreeMap::from([("label".to_owned(), "x".repeat(1 << 20))]);
        events.record(Kind::Volume, "create", "huge", huge);
        assert_eq!(all(&events).last().map(String::as_str), Some("huge"));
    }
}
