//! `pillbug import`: an image out of a root file system.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::fd::AsFd,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::{
    container::event::Kind,
    image::{change::Change, reference::Reference, root_archive::Recipe},
};

const EXAMPLES: &str = "\
Examples:
  pillbug import rootfs.tar.gz mine:1
  mmdebstrap --variant=minbase bookworm - | pillbug import -c 'CMD [\"bash\"]' - debian:mine
  pillbug import -c 'ENV LANG=C.UTF-8' -c 'USER 1000' -m 'from the old machine' rootfs.tar app";

/// Make an image of an archive that holds a root file system
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImportArgs {
    /// The archive, a tar file that may be compressed with gzip or zstd; - for standard input
    file: PathBuf,
    /// Name of the image
    #[arg(value_parser = super::reference, value_name = "REPOSITORY[:TAG]")]
    name: Option<Reference>,
    /// A line of a Dockerfile to apply: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long = "change", value_name = "LINE")]
    changes: Vec<Change>,
    /// What `history` says of it
    #[arg(short, long)]
    message: Option<String>,
}

/// Imports and prints the image's ID.
pub fn run(arguments: ImportArgs) -> anyhow::Result<ExitCode> {
    let is_stream = arguments.file.as_os_str() == "-";
    let archive = if !is_stream {
        File::open(&arguments.file)
            .with_context(|| format!("cannot open {}", arguments.file.display()))?
    } else if io::stdin().is_terminal() {
        bail!("nothing to import: name an archive, or redirect standard input")
    } else {
        io::stdin().as_fd().try_clone_to_owned()?.into()
    };
    if let Some(name) = &arguments.name {
        ensure!(
            name.digest().is_none(),
            "{name} has a digest, which only a registry can give"
        );
    }
    let recipe = Recipe {
        name: arguments.name,
        changes: arguments.changes,
        message: arguments
            .message
            .unwrap_or_else(|| format!("Imported from {}", arguments.file.display())),
    };
    let id = super::image_store()?.import(archive, recipe, &|_| {})?;
    super::record(Kind::Image, "import", &id.to_string());
    super::print(&format!("{id}\n"))?;
    Ok(ExitCode::SUCCESS)
}
