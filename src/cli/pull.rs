//! `pillbug pull`: an image from a registry into the store.

use std::process::ExitCode;

use clap::Args;

use super::progress::Transfers;
use crate::image::{reference::Reference, registry::Client};

const EXAMPLES: &str = "\
Examples:
  pillbug pull debian                        docker.io/library/debian:latest
  pillbug pull quay.io/podman/hello:latest   of another registry
  pillbug pull localhost:5000/app            of one on this machine, over HTTP if need be
  pillbug pull debian@sha256:...             exactly this one

What was interrupted goes on where it stopped.";

/// Pull an image from a registry
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PullArgs {
    /// Name of the image
    #[arg(value_name = "NAME[:TAG][@DIGEST]")]
    image: Reference,
    /// Print the name only
    #[arg(short, long)]
    quiet: bool,
}

/// Pulls and says what came.
pub fn run(arguments: &PullArgs) -> anyhow::Result<ExitCode> {
    let reference = &arguments.image;
    let store = super::image_store()?;
    let transfers = Transfers::new(arguments.quiet);
    if !arguments.quiet {
        let wanted = reference.digest().map_or_else(
            || reference.tag().unwrap_or_default().into(),
            ToString::to_string,
        );
        super::print(&format!("{wanted}: Pulling from {}\n", reference.path()))?;
    }
    let pulled = store.pull(&Client::new()?, reference, &|progress| {
        transfers.pulling(progress);
    })?;
    if !arguments.quiet {
        let familiar = reference.familiar();
        let status = if pulled.is_new {
            format!("Downloaded newer image for {familiar}")
        } else {
            format!("Image is up to date for {familiar}")
        };
        super::print(&format!("Digest: {}\nStatus: {status}\n", pulled.target))?;
    }
    super::print(&format!("{reference}\n"))?;
    Ok(ExitCode::SUCCESS)
}
