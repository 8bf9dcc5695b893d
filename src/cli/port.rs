//! `pillbug port`: where a container's ports are published.

use std::process::ExitCode;

use clap::Args;

use crate::{container::state::Containers, network::Networks, state_root};

const EXAMPLES: &str = "\
Examples:
  pillbug port web            all of them
  pillbug port web 80         of port 80/tcp
  pillbug port web 53/udp";

/// Show where a container's ports are published
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PortArgs {
    /// The container
    container: String,
    /// This port of the container only
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

/// Prints one line a port.
pub fn run(arguments: &PortArgs) -> anyhow::Result<ExitCode> {
    let root = state_root::locate()?;
    let id = Containers::open(&root)?.find(&arguments.container)?;
    let published = Networks::open(&root)?.published(id.as_str())?;
    let wanted = arguments
        .port
        .as_ref()
        .map(|port| match port.contains('/') {
            true => port.clone(),
            false => format!("{port}/tcp"),
        });
    let mut text = String::new();
    for port in published {
        let container = format!("{}/{}", port.container, port.protocol);
        match &wanted {
            None => text += &format!("{container} -> {}\n", port.host),
            Some(wanted) if *wanted == container => text += &format!("{}\n", port.host),
            Some(_) => {}
        }
    }
    if let (Some(wanted), true) = (wanted, text.is_empty()) {
        anyhow::bail!(
            "port {wanted} of {:?} is not published",
            arguments.container
        );
    }
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
