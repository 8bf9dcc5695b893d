//! `pillbug pull`: an image from a registry into the store; and what `run` does of it on its way.

use std::{fs, process::ExitCode};

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::progress::Transfers;
use crate::{
    container::event::Kind,
    image::{
        load::Named, manifest::Platform, pull::Pulled, reference::Reference, registry::Client,
        store::Store,
    },
};

const EXAMPLES: &str = "\
Examples:
  pillbug pull debian                        docker.io/library/debian:latest
  pillbug pull quay.io/podman/hello:latest   of another registry
  pillbug pull localhost:5000/app            of one on this machine, over HTTP if need be
  pillbug pull debian@sha256:...             exactly this one
  pillbug pull -a localhost:5000/app         every tag

What was interrupted goes on where it stopped.";

/// Pull an image from a registry
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PullArgs {
    /// Name of the image
    #[arg(value_parser = super::reference, value_name = "NAME[:TAG][@DIGEST]")]
    image: Reference,
    /// Pull every tag of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Print the name only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    platform: PlatformArg,
}

/// `--platform` of every verb that gets images.
#[derive(Debug, Args)]
pub struct PlatformArg {
    /// Take the image for this platform; it must be one that this machine runs
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<Platform>,
}

/// When `run` pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum When {
    /// Also what is in the store, in case the registry has something newer.
    Always,
    /// What is not in the store.
    #[default]
    Missing,
    /// Nothing.
    Never,
}

/// Pulls and says what came.
pub fn run(arguments: &PullArgs) -> anyhow::Result<ExitCode> {
    let store = super::image_store()?;
    let client = Client::new()?;
    let references = if arguments.all_tags {
        Store::remote_tags(&client, &arguments.image)?
    } else {
        vec![arguments.image.clone()]
    };
    for reference in &references {
        let tell = |text: &str| match arguments.quiet {
            true => Ok(()),
            false => super::print(text),
        };
        pull(&store, &client, reference, arguments.quiet, &tell)?;
        super::print(&format!("{reference}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Brings into the store what `run` needs of it for `source`, tells about it on standard error, and gives the source
/// with its name completed.
pub fn ensure(source: &str, when: When, quiet: bool) -> anyhow::Result<String> {
    let store = super::image_store()?;
    let (reference, is_wanted) = match store.named(source)? {
        Named::Otherwise => return Ok(source.into()),
        Named::Held(reference) => (reference, when == When::Always),
        Named::Absent(reference) => (reference, when != When::Never),
    };
    if is_wanted {
        let tell = |text: &str| {
            if !quiet {
                super::tell(text);
            }
            Ok(())
        };
        if when == When::Missing {
            let familiar = reference.familiar();
            tell(&format!("Unable to find image '{familiar}' locally\n"))?;
        }
        let pulled = pull(&store, &Client::new()?, &reference, quiet, &tell);
        if pulled.is_err() && fs::symlink_metadata(source).is_ok() {
            pulled.context(format!(
                "there is a file {source}, for which write ./{source}"
            ))?;
        } else {
            pulled?;
        }
    }
    Ok(match source.parse() {
        Ok(plain) if reference == plain => source.into(),
        _ => reference.familiar(),
    })
}

/// Pulls one image and tells what Docker tells.
fn pull(
    store: &Store,
    client: &Client,
    reference: &Reference,
    quiet: bool,
    tell: &dyn Fn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Pulled> {
    let transfers = Transfers::new(quiet);
    let wanted = reference.digest().map_or_else(
        || reference.tag().unwrap_or_default().into(),
        ToString::to_string,
    );
    tell(&format!("{wanted}: Pulling from {}\n", reference.path()))?;
    let pulled = store.pull(client, reference, &|progress| transfers.pulling(progress))?;
    let familiar = reference.familiar();
    super::record(Kind::Image, "pull", &familiar);
    let status = if pulled.is_new {
        format!("Downloaded newer image for {familiar}")
    } else {
        format!("Image is up to date for {familiar}")
    };
    tell(&format!("Digest: {}\nStatus: {status}\n", pulled.target))?;
    Ok(pulled)
}
