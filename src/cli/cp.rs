//! `pillbug cp`: files between a container and the host.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal},
    os::fd::AsFd,
    path::Path,
    process::ExitCode,
};

use anyhow::bail;
use clap::Args;

use super::units;
use crate::{
    container::{
        files::copy::{self, CopyOptions, Side},
        state::Containers,
    },
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug cp web:/etc/nginx/nginx.conf .          one file into this folder
  pillbug cp page.html web:/usr/share/nginx/html/index.html
  pillbug cp site/. web:/usr/share/nginx/html     what is in the folder, and not the folder
  pillbug cp -a db:/var/lib/data backup           with owners, as root
  pillbug cp web:/var/log - | tar t               as a tar archive
  tar c site | pillbug cp - web:/srv              out of one

The container may run or not. A folder is copied into one that is there, and takes the name of one that is not; a file takes the
place of a file. What comes to the host belongs to who copies it, and has neither set-user-ID bits nor devices; what comes to
the container belongs to root.";

/// Copy files between a container and the host
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "pillbug cp [OPTIONS] CONTAINER:PATH HOST_PATH|-\n       pillbug cp [OPTIONS] HOST_PATH|- CONTAINER:PATH"
)]
pub struct CpArgs {
    /// Keep owners and groups
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link as the source leads to, and not the link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing of what was copied
    #[arg(short, long)]
    quiet: bool,
    /// What to copy
    source: String,
    /// Where to
    target: String,
}

/// Copies.
pub fn run(arguments: &CpArgs) -> anyhow::Result<ExitCode> {
    let state_root = state_root::locate()?;
    let containers = Containers::open(&state_root)?;
    let options = CopyOptions {
        archive: arguments.archive,
        follow: arguments.follow_link,
    };
    let (source, target) = (arguments.source.as_str(), arguments.target.as_str());
    let side = |id, path| Side {
        state_root: &state_root,
        containers: &containers,
        id,
        path,
    };
    let placed = match (in_container(source), in_container(target)) {
        (Some(_), Some(_)) => {
            bail!("cannot copy from container to container: copy to the host first")
        }
        (None, None) => bail!("one of the two must be in a container: CONTAINER:PATH"),
        (Some((container, path)), None) => {
            let id = containers.find(container)?;
            if target == "-" {
                if io::stdout().is_terminal() {
                    bail!("an archive is nothing for a terminal: redirect standard output");
                }
                let mut output = BufWriter::new(io::stdout().lock());
                copy::from_container_as_archive(&side(&id, path), &mut output, options)?;
                return Ok(ExitCode::SUCCESS);
            }
            copy::from_container(&side(&id, path), Path::new(target), options)?
        }
        (None, Some((container, path))) => {
            let id = containers.find(container)?;
            if source == "-" {
                if io::stdin().is_terminal() {
                    bail!("nothing to copy: redirect standard input from an archive");
                }
                let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
                copy::archive_to_container(input, &side(&id, path))?;
                return Ok(ExitCode::SUCCESS);
            }
            copy::to_container(Path::new(source), &side(&id, path), options)?
        }
    };
    if placed.left_out > 0 {
        super::tell(&format!(
            "pillbug: left out {} that cannot be copied: devices, sockets, or files that vanished meanwhile\n",
            placed.left_out
        ));
    }
    if !arguments.quiet {
        let size = units::size(placed.bytes);
        let told = format!("Successfully copied {size} to {target}\n");
        super::tell(&super::escape(&told));
    }
    Ok(ExitCode::SUCCESS)
}

/// `CONTAINER:PATH`; anything that begins like a path is one of the host.
fn in_container(text: &str) -> Option<(&str, &str)> {
    let (container, path) = text.split_once(':')?;
    let is_name = !container.is_empty() && !container.contains('/') && !container.starts_with('.');
    is_name.then_some((container, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_host_may_have_a_colon() {
        assert_eq!(in_container("web:/etc"), Some(("web", "/etc")));
        assert_eq!(in_container("web:etc:x"), Some(("web", "etc:x")));
        for path in [
            "/a:b", "./a:b", "../a:b", ".:b", "a/b:c", ":x", "plain", "-",
        ] {
            assert_eq!(in_container(path), None, "{path}");
        }
    }
}
