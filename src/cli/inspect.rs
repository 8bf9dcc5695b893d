//! `pillbug image inspect`: everything about images, as JSON in Docker's shape.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::image::store::Description;

const EXAMPLES: &str = "\
Examples:
  pillbug image inspect debian
  pillbug image inspect debian | jq '.[0].Config.Env'";

/// Show everything about images
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// Names or IDs of images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
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
    super::print(&(serde_json::to_string_pretty(&objects)? + "\n"))?;
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
