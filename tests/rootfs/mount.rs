//! A root file system as the kernel's EROFS shows it, and the same image as umoci unpacks it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pillbug::image::layer::{self, LayerError, LayerLimits, LayerSummary};
use pillbug::image::rootfs::{self, Rootfs};

use crate::layout::{self, Layer};

/// An EROFS image that is mounted until this goes away.
pub struct Mounted {
    pub folder: PathBuf,
}

impl Mounted {
    /// Puts the parts of a root file system into one file under `scratch`, has it checked by `fsck.erofs`, and mounts it.
    pub fn new(rootfs: &Rootfs, scratch: &Path) -> Self {
        let path = scratch.join("rootfs.erofs");
        let mut image = File::create(&path).unwrap();
        for (part, bytes) in &rootfs.parts {
            assert_eq!(
                io::copy(&mut File::open(part).unwrap(), &mut image).unwrap(),
                *bytes
            );
        }
        run(Command::new("fsck.erofs").arg(&path)).unwrap();
        let folder = scratch.join("mounted");
        fs::create_dir(&folder).unwrap();
        run(Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .arg(&path)
            .arg(&folder))
        .unwrap();
        Self { folder }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.folder)).unwrap();
    }
}

/// Converts layers into numbered folders under `scratch`.
pub fn convert(
    layers: &[Layer],
    scratch: &Path,
) -> Result<Vec<(PathBuf, LayerSummary)>, LayerError> {
    let mut converted = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let into = scratch.join(format!("layer{number}"));
        fs::create_dir(&into).unwrap();
        let mut blob = layout::open(layer);
        let limits = LayerLimits::default();
        let summary = layer::convert(&mut blob, layer.compression, &layer.diff_id, &limits, &into)?;
        assert_eq!(
            blob.finish().1,
            layer.digest,
            "the blob was not read to its end"
        );
        converted.push((into, summary));
    }
    Ok(converted)
}

/// Converts and builds; the error of either as text with its causes.
pub fn build(layers: &[Layer], scratch: &Path) -> Result<Rootfs, String> {
    let folders: Vec<_> = match convert(layers, scratch) {
        Ok(converted) => converted.into_iter().map(|(folder, _)| folder).collect(),
        Err(error) => return Err(chain(&error)),
    };
    match rootfs::build(&folders, &scratch.join("metadata")) {
        Ok(summary) => Ok(summary.rootfs),
        Err(error) => Err(chain(&error)),
    }
}

/// Unpacks the image `reference` (`layout:tag`) and returns its root folder, or what umoci complains of.
pub fn unpack(reference: &str, scratch: &Path) -> Result<PathBuf, String> {
    let bundle = scratch.join("bundle");
    run(Command::new("umoci")
        .args(["unpack", "--image", reference])
        .arg(&bundle))?;
    Ok(bundle.join("rootfs"))
}

pub fn run(command: &mut Command) -> Result<Output, String> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    if output.status.success() {
        return Ok(output);
    }
    Err(format!(
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    ))
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
