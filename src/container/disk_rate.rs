//! Which of a container's disks lie on a block device of the host's, and how fast they may be used for that.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{major, minor};
use vmm::BlockLimits;

use super::limits::{DiskRate, RateKind};

/// Why a disk cannot be limited.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DiskRateError {
    #[error("cannot look at {path}")]
    Stat { path: PathBuf, source: io::Error },
    #[error("{0} is no block device")]
    NotADevice(PathBuf),
    #[error("no disk of the container lies on {0}: its rate would limit nothing")]
    Elsewhere(PathBuf),
}

/// The limits of each disk, which is a list of files.
///
/// # Errors
///
/// [`DiskRateError`]: a limit that would limit nothing is one.
pub fn resolve(
    rates: &[DiskRate],
    disks: &[Vec<&Path>],
) -> Result<Vec<BlockLimits>, DiskRateError> {
    let mut limits = vec![BlockLimits::default(); disks.len()];
    for rate in rates {
        let device = stat(&rate.device)?;
        if !device.file_type().is_block_device() {
            return Err(DiskRateError::NotADevice(rate.device.clone()));
        }
        let mut found = false;
        for (files, limits) in disks.iter().zip(&mut limits) {
            for file in files {
                if is_on(stat(file)?.dev(), device.rdev()) {
                    set(limits, rate);
                    found = true;
                }
            }
        }
        if !found {
            return Err(DiskRateError::Elsewhere(rate.device.clone()));
        }
    }
    Ok(limits)
}

fn set(limits: &mut BlockLimits, rate: &DiskRate) {
    let place = match rate.kind {
        RateKind::ReadBytes => &mut limits.read_bytes,
        RateKind::WriteBytes => &mut limits.write_bytes,
        RateKind::Reads => &mut limits.reads,
        RateKind::Writes => &mut limits.writes,
    };
    *place = Some(rate.rate);
}

fn stat(path: &Path) -> Result<fs::Metadata, DiskRateError> {
    fs::metadata(path).map_err(|source| DiskRateError::Stat {
        path: path.into(),
        source,
    })
}

/// Whether a file system's device is this one, or a partition of it.
fn is_on(file_system: u64, device: u64) -> bool {
    let name = |device| format!("{}:{}", major(device), minor(device));
    let whole = || {
        let folder = PathBuf::from(format!("/sys/dev/block/{}", name(file_system)));
        folder.join("partition").exists()
            && fs::read_to_string(folder.join("../dev"))
                .is_ok_and(|text| text.trim() == name(device))
    };
    file_system == device || whole()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_limits_nothing_is_refused() {
        let rate = |device: &str| DiskRate {
            device: device.into(),
            kind: RateKind::Reads,
            rate: 1,
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let disks = [vec![file.path()]];
        let resolve = |device| super::resolve(&[rate(device)], &disks);
        assert!(matches!(
            resolve("/dev/null"),
            Err(DiskRateError::NotADevice(_))
        ));
        assert!(matches!(
            resolve("/nowhere"),
            Err(DiskRateError::Stat { .. })
        ));
        assert!(super::resolve(&[], &disks).unwrap()[0] == BlockLimits::default());
    }
}
