//! `pillbug save`: images of the store as an archive.

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;

const EXAMPLES: &str = "\
Examples:
  pillbug save -o busybox.tar busybox         for `load` here, of Docker and of podman, and for skopeo
  pillbug save busybox nginx | zstd > both.tar.zst";

/// Save images to an archive
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SaveArgs {
    /// File to write instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Names or IDs of images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Saves. A file appears when it is complete.
pub fn run(arguments: &SaveArgs) -> anyhow::Result<ExitCode> {
    let store = super::image_store()?;
    let Some(path) = &arguments.output else {
        if io::stdout().is_terminal() {
            bail!(
                "an archive is nothing for a terminal: name a file with -o, or redirect standard output"
            );
        }
        store.save(&arguments.images, BufWriter::new(io::stdout().lock()))?;
        return Ok(ExitCode::SUCCESS);
    };
    to_file(path, |output| Ok(store.save(&arguments.images, output)?))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a file that appears when it is complete.
pub fn to_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let failed = || format!("cannot write {}", path.display());
    let mut file = tempfile::Builder::new()
        .prefix(".pillbug-save-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .with_context(failed)?;
    let mut output = BufWriter::new(&mut file);
    write(&mut output)?;
    output.flush().with_context(failed)?;
    drop(output);
    file.as_file().sync_all().with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}
