//! `pillbug exec`: another process in a container that runs.

use std::{path::PathBuf, process::ExitCode};

use anyhow::bail;
use clap::Args;

use super::{
    create::read_env_file,
    foreground::{self, Foreground},
    terminal,
};
use crate::{
    container::{
        attach::keys::DetachKeys,
        launch, lifecycle,
        options::{self, ExecOptions},
        process,
        session::Exec,
        state::Containers,
    },
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug exec -it web sh                          a shell beside the service
  pillbug exec web cat /etc/hosts
  pillbug exec -u postgres -w /tmp db psql -c 'select 1'
  pillbug exec -d web touch /tmp/flag              does not wait

The exit code is the process's own, as with `pillbug run`. The keys ctrl-p ctrl-q leave a process with a terminal and let
it go on.";

/// Run another process in a container that runs
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "pillbug exec [OPTIONS] CONTAINER COMMAND...")]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct ExecArgs {
    /// Keep standard input connected
    #[arg(short, long)]
    interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// Do not wait for it
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the process, such as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<DetachKeys>,
    /// Set an environment variable; without a value, pass on this process's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file, one NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// User, and group, of the process: names of the image or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory of the process
    #[arg(short, long, value_name = "FOLDER")]
    workdir: Option<String>,
    /// Give the process every capability
    #[arg(long)]
    privileged: bool,
    // One list, so that everything behind the container belongs to the command, flags too.
    #[arg(
        hide = true,
        required = true,
        num_args = 2..,
        trailing_var_arg = true,
        allow_hyphen_values = false,
        value_name = "CONTAINER"
    )]
    container_and_command: Vec<String>,
}

/// Runs it; the exit code is its own.
pub fn run(arguments: ExecArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    let id = containers.find(&arguments.container_and_command[0])?;
    let spec = containers.record(&id)?.spec;
    let (detach, stdin) = (arguments.detach, arguments.interactive && !arguments.detach);
    let front = Foreground {
        stdin,
        terminal: arguments.tty,
        owner: false,
        pipeline: true,
        keys: arguments.detach_keys.clone(),
        sig_proxy: !arguments.tty,
    };
    if front.terminal && stdin && !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        bail!("-t with -i needs a terminal as standard input: leave -t out");
    }
    let exec = Exec {
        process: process::exec(&spec, &options(arguments)?)?,
        stdin,
        output: !detach,
    };
    if detach {
        let started = lifecycle::exec(&containers, &id, exec)
            .and_then(|mut session| launch::wait_started(&mut session));
        return Ok(match started {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => super::failure(error),
        });
    }
    let front = front.enter()?;
    let finish = lifecycle::exec(&containers, &id, exec).and_then(|session| front.relay(session));
    match finish {
        Ok(finish) => Ok(foreground::exit_code(finish)),
        Err(error) => Ok(super::failure(error)),
    }
}

fn options(arguments: ExecArgs) -> anyhow::Result<ExecOptions> {
    let mut env = Vec::new();
    for path in &arguments.env_file {
        env.extend(read_env_file(path)?);
    }
    for text in &arguments.env {
        env.push(options::env(text, |name| std::env::var(name).ok())?);
    }
    let mut command = arguments.container_and_command;
    command.remove(0);
    Ok(ExecOptions {
        command,
        env,
        user: arguments.user,
        working_directory: arguments.workdir,
        terminal: arguments.tty.then(terminal::size),
        privileged: arguments.privileged,
    })
}
