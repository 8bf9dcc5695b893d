//! `pillbug inspect` and `image inspect`: everything about containers and images, as JSON in Docker's shape.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{container_inspect, format::Format};
use crate::{
    container::state::{Containers, StateError},
    image::store::Description,
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug image inspect debian
  pillbug image inspect -f '{{json .Config.Env}}' debian
  pillbug inspect --type image -f '{{range .RepoTags}}{{println .}}{{end}}' debian";

/// Show everything about images
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// 'json' for one line, or a Go template such as '{{.Id}}'
    #[arg(short, long)]
    format: Option<Format>,
    /// Names or IDs of images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Show everything about something
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AnyInspectArgs {
    /// What it has to be
    #[arg(long, value_enum)]
    r#type: Option<Kind>,
    /// 'json' for one line, or a Go template such as '{{.Id}}'
    #[arg(short, long)]
    format: Option<Format>,
    /// Names or IDs; of a container and an image with the same, the container
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// What can be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Container,
    Image,
}

/// Inspects what there is, of the kind that was asked for.
pub fn run_any(arguments: &AnyInspectArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    containers.sweep()?;
    let mut code = ExitCode::SUCCESS;
    let mut objects = Vec::new();
    for name in &arguments.names {
        match find(&containers, name, arguments.r#type) {
            Ok(found) => objects.push(found),
            Err(error) => {
                super::report(&error);
                code = ExitCode::FAILURE;
            }
        }
    }
    super::print(&Format::objects(arguments.format.as_ref(), &objects)?)?;
    Ok(code)
}

fn find(containers: &Containers, name: &str, kind: Option<Kind>) -> anyhow::Result<Value> {
    if kind != Some(Kind::Image) {
        match containers.find(name) {
            Ok(id) => {
                let record = containers.record(&id)?;
                return Ok(container_inspect::object(containers, &record));
            }
            Err(StateError::NotFound(_)) if kind.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(object(&super::image_store()?.describe(name)?))
}

/// Prints an array with an object for each image there is, and tells which there are not.
pub fn run(arguments: &InspectArgs) -> anyhow::Result<ExitCode> {
    let store = super::image_store()?;
    let mut code = ExitCode::SUCCESS;
    let mut objects = Vec::new();
    for name in &arguments.images {
        match store.describe(name) {
            Ok(image) => objects.push(object(&image)),
            Err(error) => {
                super::report(&error.into());
                code = ExitCode::FAILURE;
            }
        }
    }
    super::print(&Format::objects(arguments.format.as_ref(), &objects)?)?;
    Ok(code)
}

fn object(image: &Description) -> Value {
    let config = &image.config;
    let tagged = image.names.iter().filter(|(name, _)| name.tag().is_some());
    let tags: Vec<String> = tagged.map(|(name, _)| name.familiar()).collect();
    let pinned = image
        .names
        .iter()
        .map(|(name, target)| name.pinned(*target));
    let mut digests: Vec<String> = pinned.map(|name| name.familiar()).collect();
    digests.dedup();
    let layers: Vec<_> = image.layers.iter().map(|(diff_id, _)| diff_id).collect();
    json!({
        "Id": image.id,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Comment": config["comment"].as_str().unwrap_or_default(),
        "Created": config["created"],
        "Author": config["author"].as_str().unwrap_or_default(),
        "Architecture": config["architecture"],
        "Os": config["os"],
        "Config": config["config"],
        "Size": image.size,
        "RootFS": {"Type": "layers", "Layers": layers},
    })
}
