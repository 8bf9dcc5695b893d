//! `pillbug commit`: an image of what a container has changed.

use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;

use crate::{
    container::{
        files::commit::{Commit, commit},
        state::Containers,
    },
    image::{change::Change, reference::Reference},
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug commit web web:patched
  pillbug commit -a 'A. Person' -m 'with curl' web team/web:1
  pillbug commit -c 'CMD [\"nginx\", \"-g\", \"daemon off;\"]' -c 'ENV DEBUG=1' web web:debug

The image has the layers of the container's own and one more. Nothing in the container runs while its files are read, unless
--pause=false says so.";

/// Make an image of a container's changes
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CommitArgs {
    /// Who made the image
    #[arg(short, long)]
    author: Option<String>,
    /// A line of a Dockerfile to apply: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long = "change", value_name = "LINE")]
    changes: Vec<Change>,
    /// What `history` says of it
    #[arg(short, long)]
    message: Option<String>,
    /// Let nothing in the container run meanwhile
    #[arg(short, long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    /// Name, ID, or start of an ID
    container: String,
    /// Name of the image
    #[arg(value_parser = super::reference, value_name = "REPOSITORY[:TAG]")]
    name: Option<Reference>,
}

/// Commits and prints the image's ID.
pub fn run(arguments: CommitArgs) -> anyhow::Result<ExitCode> {
    if let Some(name) = &arguments.name {
        ensure!(
            name.digest().is_none(),
            "{name} has a digest, which only a registry can give"
        );
    }
    let state_root = state_root::locate()?;
    let containers = Containers::open(&state_root)?;
    let id = containers.find(&arguments.container)?;
    let wanted = Commit {
        name: arguments.name,
        author: arguments.author,
        message: arguments.message.unwrap_or_default(),
        changes: arguments.changes,
        pause: arguments.pause,
    };
    let image = commit(
        &state_root,
        &containers,
        &super::image_store()?,
        &id,
        wanted,
    )?;
    super::print(&format!("{image}\n"))?;
    Ok(ExitCode::SUCCESS)
}
