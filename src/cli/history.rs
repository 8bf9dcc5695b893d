//! `pillbug history`: how an image was built.

use std::process::ExitCode;

use clap::{ArgAction, Args};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{
    format::{self, Format},
    units,
};

/// Longest command that is shown unless --no-trunc is given, in characters.
const SHOWN: usize = 45;

const EXAMPLES: &str = "\
Examples:
  pillbug history debian
  pillbug history --no-trunc debian                         whole commands
  pillbug history --format '{{.Size}}: {{.CreatedBy}}' debian

Fields: .ID .CreatedAt .CreatedSince .CreatedBy .Size .Comment";

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
    /// Print sizes and times for people; =false for machines
    #[arg(
        short = 'H', long, action = ArgAction::Set, default_value_t = true, default_missing_value = "true",
        num_args = 0..=1, require_equals = true, hide_default_value = true, hide_possible_values = true
    )]
    human: bool,
    #[arg(long, default_value_t, hide_default_value = true, help = format::LIST_HELP)]
    format: Format,
}

/// One step. The fields are those of Docker's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    #[serde(rename = "ID")]
    id: String,
    created_at: String,
    created_since: String,
    created_by: String,
    size: String,
    comment: String,
}

/// Prints the steps. Only the last is known by an ID; the others were never images here.
pub fn run(arguments: &HistoryArgs) -> anyhow::Result<ExitCode> {
    let image = super::image_store()?.describe(&arguments.image)?;
    let steps = image.config["history"].as_array();
    let mut sizes = image.layers.iter().map(|(_, bytes)| *bytes);
    let mut lines: Vec<Line> = steps
        .into_iter()
        .flatten()
        .map(|step| {
            let is_empty = step["empty_layer"].as_bool().unwrap_or(false);
            let size = if is_empty { None } else { sizes.next() };
            line(step, size.unwrap_or(0), arguments)
        })
        .collect();
    lines.reverse();
    if let Some(last) = lines.first_mut() {
        last.id = if arguments.no_trunc {
            image.id.to_string()
        } else {
            image.id.short()
        };
    }
    super::print(&if arguments.quiet {
        lines.iter().map(|line| format!("{}\n", line.id)).collect()
    } else {
        let created = if arguments.human {
            "CreatedSince"
        } else {
            "CreatedAt"
        };
        let columns = [
            ("ID", "IMAGE"),
            (created, "CREATED"),
            ("CreatedBy", "CREATED BY"),
            ("Size", "SIZE"),
            ("Comment", "COMMENT"),
        ];
        let further = [("CreatedSince", "CREATED"), ("CreatedAt", "CREATED AT")];
        arguments.format.list(&columns, &further, &lines)?
    })?;
    Ok(ExitCode::SUCCESS)
}

fn line(step: &Value, size: u64, arguments: &HistoryArgs) -> Line {
    let text = |key: &str| {
        let text = step[key].as_str().unwrap_or_default();
        text.replace(['\n', '\t'], " ")
    };
    let created = step["created"]
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok());
    let mut created_by = text("created_by");
    if !arguments.no_trunc && created_by.chars().count() > SHOWN {
        let start = created_by.chars().take(SHOWN - 1);
        created_by = start.chain(['\u{2026}']).collect();
    }
    Line {
        id: "<missing>".into(),
        created_at: created.map_or_else(|| "N/A".into(), |created| created.to_string()),
        created_since: units::ago(created),
        created_by,
        size: if arguments.human {
            units::size(size)
        } else {
            size.to_string()
        },
        comment: text("comment"),
    }
}
