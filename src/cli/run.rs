//! `pillbug run`: an image in a virtual machine of its own.

use std::{io, io::IsTerminal, process::ExitCode};

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::{
    create::{ContainerFlags, ContainerRequest},
    foreground::{self, Foreground},
};
use crate::{
    container::{
        self,
        attach::{Finish, keys::DetachKeys},
        launch,
        status::Status,
        timeline::{self, Timeline},
    },
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug run -it debian                      a shell in a Debian of its own
  pillbug run -d --name web nginx             in the background; prints the ID
  pillbug run --rm ./layout python3 -c 'print(6*7)'
                                              an OCI layout folder, gone afterwards
  echo hi | pillbug run --rm -i busybox cat   standard input reaches the process
  pillbug run --rm --timing busybox true      where the start time goes

IMAGE is an image in the store, pulled where it is not there, or, with a path that begins with `/`, `./` or `../`,
an OCI layout folder, an OCI archive or a `docker save` archive.

The keys ctrl-p ctrl-q leave a container with a terminal and let it go on; `pillbug attach` comes back to it.
A container in the foreground with --rm goes with this command, however that ends; any other goes on.

The exit code is the process's own; 128 and the signal's number if one killed it; 127 if there is no such
program, 126 if it cannot be executed, 125 for a failure of pillbug.";

/// Run an image in a virtual machine of its own
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
#[command(override_usage = "pillbug run [OPTIONS] IMAGE [COMMAND]...")]
pub struct RunArgs {
    /// Run in the background and print the container's ID
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the container, such as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<DetachKeys>,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
    /// Print where the start time went, to standard error
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    timing: Option<TimingFormat>,
    #[command(flatten)]
    container: ContainerFlags,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TimingFormat {
    /// For people.
    Table,
    /// One line of JSON: moments in nanoseconds of the monotonic clock.
    Json,
}

/// Runs the container, in the foreground to its end; the exit code is its process's then.
pub fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
    let mut timeline = Timeline {
        command_ns: timeline::now_ns(),
        ..Timeline::default()
    };
    let foreground = Foreground {
        owner: arguments.container.removes(),
        pipeline: true,
        keys: arguments.detach_keys,
        sig_proxy: arguments.sig_proxy,
        ..Foreground::default()
    };
    let (detach, timing) = (arguments.detach, arguments.timing);
    let ContainerRequest {
        image,
        options,
        cidfile,
        pull,
    } = arguments.container.into_request(detach)?;
    let foreground = Foreground {
        stdin: options.interactive,
        terminal: options.terminal.is_some(),
        ..foreground
    };
    if !detach && foreground.terminal && foreground.stdin && !io::stdin().is_terminal() {
        bail!("-t with -i needs a terminal as standard input: leave -t out");
    }
    // While signals still end this process: what was pulled by then stays for the next attempt.
    let image = pull.ensure(&image)?;
    let root = state_root::locate()?;
    let created = container::create(&root, &image, &options, &Status::Starting, &mut timeline);
    let container = match created {
        Ok(container) => container,
        Err(error) => return Ok(super::failure(error)),
    };
    let id = container.spec().id.clone();
    cidfile.write(&id)?;
    let result = if detach {
        launch::launch(&root, container, None, timeline)
            .and_then(|mut session| launch::wait_started(&mut session))
            .map(|()| None)
    } else {
        let front = foreground.enter()?;
        let launched = launch::launch(&root, container, Some(front.attach()), timeline);
        launched.and_then(|session| front.relay(session)).map(Some)
    };
    match result {
        Ok(None) => {
            super::print(&format!("{id}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(Some(finish)) => {
            if let (Finish::Exited(outcome), Some(format)) = (finish, timing) {
                print_timing(&outcome.timeline, format)?;
            }
            Ok(foreground::exit_code(finish))
        }
        Err(error) => Ok(super::failure(error)),
    }
}

fn print_timing(timeline: &Timeline, format: TimingFormat) -> anyhow::Result<()> {
    if let TimingFormat::Json = format {
        eprintln!("{}", serde_json::to_string(timeline)?);
        return Ok(());
    }
    eprintln!("{:<28} {:>10}", "PHASE", "MS");
    for (name, took) in timeline.phases() {
        eprintln!("{name:<28} {:>10.2}", took.as_secs_f64() * 1e3);
    }
    if let Some(start) = timeline.start() {
        eprintln!(
            "{:<28} {:>10.2}",
            "command to process",
            start.as_secs_f64() * 1e3
        );
    }
    Ok(())
}
