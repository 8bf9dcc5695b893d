//! `pillbug rmi`: images out of the store.

use std::process::ExitCode;

use clap::Args;

use crate::{
    container::{event::Kind, state::Containers},
    image::{digest::Digest, store::Removed},
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug rmi busybox                   the name, and the image when it was its last
  pillbug rmi -f 3f57d9401f8d           the image with all its names";

/// Remove images
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RmiArgs {
    /// Names or IDs of images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove an image though it has several names, or a container that is not running is made of it
    #[arg(short, long)]
    force: bool,
}

/// Removes each image; goes on after a failure, as Docker does.
pub fn run(arguments: &RmiArgs) -> anyhow::Result<ExitCode> {
    let store = super::image_store()?;
    let containers = Containers::open(&state_root::locate()?)?;
    let user = |image: &Digest| match containers.made_of(image) {
        Ok(found) => found.map(|record| format!("container {}", record.spec.name)),
        Err(error) => Some(format!("a container that cannot be read ({error})")),
    };
    let mut code = ExitCode::SUCCESS;
    for name in &arguments.images {
        match store.remove(name, arguments.force, user) {
            Ok(removed) => {
                let lines = removed.iter().map(|removed| match removed {
                    Removed::Untagged(reference) => format!("Untagged: {}\n", reference.familiar()),
                    Removed::Deleted(id) => format!("Deleted: {id}\n"),
                });
                super::print(&lines.collect::<String>())?;
                for removed in &removed {
                    match removed {
                        Removed::Untagged(reference) => {
                            super::record(Kind::Image, "untag", &reference.familiar());
                        }
                        Removed::Deleted(id) => {
                            super::record(Kind::Image, "delete", &id.to_string());
                        }
                    }
                }
            }
            Err(error) => {
                super::report(&error.into());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
