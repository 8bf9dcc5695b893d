//! The leases as the name service reads them: without the lock of the networks, and from memory where nothing changed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use super::super::lease::{self, Lease};

/// A folder that changed less than this ago may change again without looking any newer.
const SETTLED: Duration = Duration::from_secs(1);

/// All leases.
#[derive(Debug)]
pub struct Directory {
    folder: PathBuf,
    read: Mutex<Option<(SystemTime, Arc<[Lease]>)>>,
}

impl Directory {
    /// Of the networks' folder.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.into(),
            read: Mutex::new(None),
        }
    }

    /// Every lease there is; none where they cannot be read.
    pub fn leases(&self) -> Arc<[Lease]> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = fs::metadata(lease::folder(&self.folder)).and_then(|found| found.modified());
        if let (Some((then, leases)), Ok(now)) = (&*read, &changed)
            && then == now
        {
            return leases.clone();
        }
        let leases: Arc<[Lease]> = lease::all(&self.folder).unwrap_or_default().into();
        let is_settled =
            |changed: &SystemTime| changed.elapsed().is_ok_and(|since| since > SETTLED);
        *read = changed
            .ok()
            .filter(is_settled)
            .map(|changed| (changed, leases.clone()));
        leases
    }

    /// Whether the lease is a living process's.
    pub fn is_alive(&self, lease: &Lease) -> bool {
        lease::is_held(&self.folder, lease)
    }
}
