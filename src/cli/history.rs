//! `pillbug history`: how an image was built.

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::{escape, table, units};

/// Longest command that is shown unless --no-trunc is given, in characters.
const SHOWN: usize = 45;

const EXAMPLES: &str = "\
Examples:
  pillbug history debian
  pillbug history --no-trunc debian     whole commands";

/// Show how an image was built, newest step first
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct HistoryArgs {
    /// Name or ID of the image
    image: String,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole IDs and commands
    #[arg(long)]
    no_trunc: bool,
}

/// Prints the steps. Only the last is known by an ID; the others were never images here.
pub fn run(arguments: &HistoryArgs) -> anyhow::Result<ExitCode> {
    let image = super::image_store()?.describe(&arguments.image)?;
    let steps = image.config["history"].as_array();
    let mut sizes = image.layers.iter().map(|(_, bytes)| *bytes);
    let mut rows: Vec<Vec<String>> = steps
        .into_iter()
        .flatten()
        .map(|step| {
            let is_empty = step["empty_layer"].as_bool().unwrap_or(false);
            let size = if is_empty {
                0
            } else {
                sizes.next().unwrap_or(0)
            };
            row(step, size, arguments.no_trunc)
        })
        .collect();
    rows.reverse();
    if let Some(last) = rows.first_mut() {
        last[0] = if arguments.no_trunc {
            image.id.to_string()
        } else {
            image.id.short()
        };
    }
    super::print(&if arguments.quiet {
        rows.iter().map(|row| format!("{}\n", row[0])).collect()
    } else {
        table(
            &["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"],
            rows.into_iter(),
        ) + "\n"
    })?;
    Ok(ExitCode::SUCCESS)
}

fn row(step: &Value, size: u64, no_trunc: bool) -> Vec<String> {
    let text = |key: &str| {
        escape(
            &step[key]
                .as_str()
                .unwrap_or_default()
                .replace(['\n', '\t'], " "),
        )
    };
    let created = step["created"]
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok());
    let mut command = text("created_by");
    if !no_trunc && command.chars().count() > SHOWN {
        command = command
            .chars()
            .take(SHOWN - 1)
            .chain(['\u{2026}'])
            .collect();
    }
    vec![
        "<missing>".into(),
        units::ago(created),
        command,
        units::size(size),
        text("comment"),
    ]
}
