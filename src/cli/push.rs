//! `pillbug push`: an image of the store to a registry.

use std::process::ExitCode;

use clap::Args;

use super::progress::Transfers;
use crate::{
    container::event::Kind,
    image::{reference::Reference, registry::Client},
};

const EXAMPLES: &str = "\
Examples:
  pillbug tag app localhost:5000/app
  pillbug push localhost:5000/app       to the registry that the name begins with";

/// Push an image to a registry
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PushArgs {
    /// Name of the image
    #[arg(value_parser = super::reference, value_name = "NAME[:TAG]")]
    image: Reference,
    /// Print the name only
    #[arg(short, long)]
    quiet: bool,
}

/// Pushes and says under which digest.
pub fn run(arguments: &PushArgs) -> anyhow::Result<ExitCode> {
    let reference = &arguments.image;
    let transfers = Transfers::new(arguments.quiet);
    if !arguments.quiet {
        let (domain, path) = (reference.domain(), reference.path());
        super::print(&format!(
            "The push refers to repository [{domain}/{path}]\n"
        ))?;
    }
    let observer = |progress| transfers.pushing(progress);
    let pushed = super::image_store()?.push(&Client::new()?, reference, &observer)?;
    super::record(Kind::Image, "push", &reference.familiar());
    super::print(&if arguments.quiet {
        format!("{reference}\n")
    } else {
        let tag = reference.tag().unwrap_or_default();
        format!("{tag}: digest: {} size: {}\n", pushed.digest, pushed.size)
    })?;
    Ok(ExitCode::SUCCESS)
}
