//! `pillbug tag`: another name for an image.

use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;

use crate::{container::event::Kind, image::reference::Reference};

const EXAMPLES: &str = "\
Examples:
  pillbug tag busybox localhost:5000/tools/busybox:1
  pillbug tag 3f57d9401f8d busybox:old";

/// Give an image another name
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TagArgs {
    /// Name or ID of the image
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    /// The new name, which is taken from the image that has it
    #[arg(value_parser = super::reference, value_name = "TARGET_IMAGE[:TAG]")]
    target: Reference,
}

/// Names it.
pub fn run(arguments: TagArgs) -> anyhow::Result<ExitCode> {
    ensure!(
        arguments.target.digest().is_none(),
        "{} has a digest, which only a registry can give",
        arguments.target
    );
    let name = arguments.target.familiar();
    super::image_store()?.tag(&arguments.source, arguments.target)?;
    super::record(Kind::Image, "tag", &name);
    Ok(ExitCode::SUCCESS)
}
