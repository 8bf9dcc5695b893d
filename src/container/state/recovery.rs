//! What killed processes left behind, found and put right by whoever comes next.

use std::{fs, path::Path, time::SystemTime};

use super::{
    super::{name::Id, status::Status, volumes},
    Containers, Record, StateError,
    file::failed,
};

impl Containers {
    /// Clears what killed processes left: half-made and half-removed folders, and orphans. Cheap when
    /// there is nothing.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read or an orphan's end cannot be written.
    pub fn sweep(&self) -> Result<(), StateError> {
        let leftover = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("new-") || name.starts_with("old-")
        };
        let entries = fs::read_dir(&self.folder).map_err(failed("read", &self.folder))?;
        let leftovers: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| leftover(path))
            .collect();
        if !leftovers.is_empty() {
            // Who makes a folder holds the names meanwhile, so none of these is in the making. One in
            // removal has no more use for anybody: its remover may be at it too, and win.
            let _names = self.lock_names()?;
            for path in leftovers {
                let _ = fs::remove_dir_all(path);
            }
        }
        for id in self.ids()? {
            self.repair(&id)?;
        }
        Ok(())
    }

    fn repair(&self, id: &Id) -> Result<(), StateError> {
        let Ok(Record { spec, status, .. }) = self.record(id) else {
            return Ok(());
        };
        let stays = match status {
            Status::Created { .. } => true,
            Status::Exited(_) => !spec.remove,
            Status::Starting | Status::Running(_) | Status::Restarting(_) => false,
        };
        if stays {
            return Ok(());
        }
        let Some(container) = self.hold(id)? else {
            return Ok(());
        };
        // It may have gone on until it was held.
        let status = container.status()?;
        match status.orphaned(SystemTime::now()) {
            Some(end) if !spec.remove => container.set_status(&end),
            None if !spec.remove && status != Status::Starting => Ok(()),
            _ => {
                self.remove_held(container)?;
                // What nobody removes now is anonymous, and pruned some day.
                let _ = volumes::remove_anonymous(self, &spec.mounts);
                Ok(())
            }
        }
    }
}
