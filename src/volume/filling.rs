//! The first use of a volume: an image's files are copied into it, all of them or none.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use super::{VolumeError, Volumes, failed, lock, sync, tree};

/// A volume that is being filled. Dropped before it is [`done`](Self::done), it counts as empty.
#[derive(Debug)]
pub struct Filling {
    folder: PathBuf,
    mark: PathBuf,
    /// Whoever else wants to use the volume waits.
    _lock: File,
}

impl Volumes {
    /// Begins to fill a volume, where there is nothing in it yet; waits for somebody else who does.
    ///
    /// # Errors
    ///
    /// Where it cannot be looked at, or written.
    pub fn fill(&self, name: &str) -> Result<Option<Filling>, VolumeError> {
        let folder = self.path(name);
        let lock = lock(&folder.join("lock"))?;
        let (data, mark) = (self.data(name), folder.join("filling"));
        if mark.exists() {
            tree::clear(&data).map_err(failed("clear", &data))?;
        }
        if !tree::is_empty(&data).map_err(failed("read", &data))? {
            return Ok(None);
        }
        File::create(&mark).map_err(failed("create", &mark))?;
        sync(&folder)?;
        Ok(Some(Filling {
            folder,
            mark,
            _lock: lock,
        }))
    }
}

impl Filling {
    /// Everything is in it, and stays.
    ///
    /// # Errors
    ///
    /// Where that cannot be made to last.
    pub fn done(self) -> Result<(), VolumeError> {
        // Not the data's own folder, which may be somebody else's by now.
        File::open(&self.folder)
            .and_then(|folder| Ok(rustix::fs::syncfs(folder)?))
            .map_err(failed("write", &self.folder))?;
        fs::remove_file(&self.mark).map_err(failed("remove", &self.mark))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_volume_is_filled_whole_or_again() {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(root.path()).unwrap();
        let held = volumes.hold().unwrap();
        volumes
            .create(&held, Some("data"), &BTreeMap::new())
            .unwrap();
        let file = volumes.data("data").join("file");

        let filling = volumes.fill("data").unwrap();
        fs::write(&file, "half").unwrap();
        fs::create_dir(volumes.data("data").join("folder")).unwrap();
        drop(filling);
        let filling = volumes.fill("data").unwrap().expect("it begins again");
        assert!(!file.exists());
        fs::write(&file, "whole").unwrap();
        filling.done().unwrap();

        assert!(volumes.fill("data").unwrap().is_none());
        assert_eq!(fs::read(&file).unwrap(), b"whole");
    }
}
