//! `pillbug load`: images from an archive or a layout into the store.

use std::{
    io::{self, IsTerminal},
    os::fd::AsFd,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::bail;
use clap::Args;

use crate::{container::event::Kind, image::load::Input};

const EXAMPLES: &str = "\
Examples:
  pillbug load -i busybox.tar           an OCI archive or what `docker save` wrote
  docker save nginx | pillbug load      the same from standard input
  pillbug load -i ./layout              an OCI layout folder

Archives may be compressed with gzip or zstd. An image for this machine is chosen where there are several. Images
that come without a name are shown with their IDs.";

/// Load images from an archive or an OCI layout
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LoadArgs {
    /// Archive or layout folder to read instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

/// Loads and says what was loaded.
pub fn run(arguments: &LoadArgs) -> anyhow::Result<ExitCode> {
    let input = match &arguments.input {
        Some(path) => Input::Path(path),
        None if io::stdin().is_terminal() => {
            bail!("nothing to load: name an archive with -i, or redirect standard input")
        }
        None => Input::Stream(io::stdin().as_fd().try_clone_to_owned()?.into()),
    };
    let loaded = super::image_store()?.load(input, &|_| {})?;
    for image in &loaded {
        let name = match &image.reference {
            Some(reference) => reference.familiar(),
            None => image.id.to_string(),
        };
        super::record(Kind::Image, "load", &name);
    }
    if !arguments.quiet {
        let lines = loaded.iter().map(|image| match &image.reference {
            Some(reference) => {
                let name = reference.familiar();
                let moved = image.taken_from.map_or_else(String::new, |id| {
                    format!("The image {name} already exists, renaming the old one with ID {id} to empty string\n")
                });
                format!("{moved}Loaded image: {name}\n")
            }
            None => format!("Loaded image ID: {}\n", image.id),
        });
        super::print(&lines.collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}
