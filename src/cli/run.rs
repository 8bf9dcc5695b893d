//! `pillbug run`: an image in a virtual machine of its own.

mod person;
mod terminal;

use std::{
    collections::BTreeMap,
    fs, io,
    io::IsTerminal,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{ArgAction, Args, ValueEnum};
use protocol::{Mount, Rlimit};

use super::pull::{self, PlatformArg};
use crate::{
    container::{
        self,
        options::{self, EnvChange, Memory, OptionError, Options, Vcpus},
        run::Streams,
        timeline::{self, Timeline},
    },
    state_root,
};
use person::Person;
use terminal::RawTerminal;

const EXAMPLES: &str = "\
Examples:
  pillbug run -it debian                      a shell in a Debian of its own
  pillbug run --rm ./layout python3 -c 'print(6*7)'
                                              an OCI layout folder, gone afterwards
  echo hi | pillbug run --rm -i busybox cat   standard input reaches the process
  pillbug run --rm --timing busybox true      where the start time goes

IMAGE is an image in the store, pulled where it is not there, or, with a path that begins with `/`, `./` or `../`,
an OCI layout folder, an OCI archive or a `docker save` archive.

The exit code is the process's own; 128 and the signal's number if one killed it; 127 if there is no such
program, 126 if it cannot be executed, 125 for a failure of pillbug.";

/// Run an image in a virtual machine of its own
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
#[command(override_usage = "pillbug run [OPTIONS] IMAGE [COMMAND]...")]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct RunArgs {
    /// Keep standard input connected
    #[arg(short, long)]
    interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// Remove the container when it ends
    #[arg(long)]
    rm: bool,
    /// Name of the container
    #[arg(long)]
    name: Option<String>,
    /// Set an environment variable; without a value, pass on this process's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file, one NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory of the process
    #[arg(short, long, value_name = "FOLDER")]
    workdir: Option<String>,
    /// User, and group, of the process: names of the image or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Program to run in place of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Host name of the container
    #[arg(short = 'h', long, value_parser = options::hostname)]
    hostname: Option<String>,
    /// Virtual CPUs, 1 to 32
    #[arg(
        long,
        default_value = "1",
        value_name = "COUNT",
        allow_negative_numbers = true
    )]
    cpus: Vcpus,
    /// Memory of the virtual machine, such as 512m or 2g
    #[arg(short, long, default_value = "512m", value_name = "SIZE")]
    memory: Memory,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Mount a tmpfs, such as /run:size=64m
    #[arg(long, value_parser = options::tmpfs, value_name = "FOLDER[:OPTIONS]")]
    tmpfs: Vec<Mount>,
    /// Run a small init that forwards signals and reaps processes
    #[arg(long)]
    init: bool,
    /// Give the process every capability and device of its virtual machine
    #[arg(long)]
    privileged: bool,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Set a resource limit, such as nofile=1024:2048
    #[arg(long, value_parser = options::ulimit, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<Rlimit>,
    /// Keep a label with the container
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t)]
    pull: pull::When,
    /// Do not tell about pulling
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    platform: PlatformArg,
    /// Boot this guest kernel, an ELF vmlinux, in place of the installed one
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Write the guest kernel's messages, through a slow serial console, to this file
    #[arg(long, value_name = "FILE")]
    kernel_console: Option<PathBuf>,
    /// Print where the start time went, to standard error
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    timing: Option<TimingFormat>,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    // One list, so that everything behind the image belongs to the command, flags too.
    #[arg(
        hide = true,
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = false,
        value_name = "IMAGE"
    )]
    image_and_command: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TimingFormat {
    /// For people.
    Table,
    /// One line of JSON: moments in nanoseconds of the monotonic clock.
    Json,
}

/// Runs the container to its end; the exit code is its process's.
pub fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
    let mut timeline = Timeline {
        command_ns: timeline::now_ns(),
        ..Timeline::default()
    };
    let timing = arguments.timing;
    let source = arguments.image_and_command[0].clone();
    let (when, quiet) = (arguments.pull, arguments.quiet);
    let options = arguments.into_options()?;
    if options.terminal.is_some() && options.interactive && !io::stdin().is_terminal() {
        bail!("-t with -i needs a terminal as standard input: leave -t out");
    }
    // While signals still end this process: what was pulled by then stays for the next attempt.
    let source = pull::ensure(&source, when, quiet)?;
    // Before any thread starts, so that all of them leave the signals to one reader.
    let mut person = Person::new(options.terminal.is_some())?;
    let streams = streams(&options)?;
    let raw = (options.terminal.is_some() && options.interactive)
        .then(RawTerminal::enter)
        .transpose()?;
    let result = container::create_and_run(
        &state_root::locate()?,
        &source,
        &options,
        streams,
        &mut person,
        &mut timeline,
    );
    drop(raw);
    match timing.filter(|_| timeline.exec_ns > 0) {
        Some(TimingFormat::Table) => print_table(&timeline),
        Some(TimingFormat::Json) => eprintln!("{}", serde_json::to_string(&timeline)?),
        None => {}
    }
    match result {
        Ok(outcome) => {
            if outcome.oom_killed {
                eprintln!(
                    "pillbug: the guest ran out of memory and killed a process: give more with -m"
                );
            }
            Ok(ExitCode::from(outcome.code))
        }
        Err(error) => {
            let code = error.exit_code();
            super::report(&error.into());
            Ok(ExitCode::from(code))
        }
    }
}

impl RunArgs {
    fn into_options(self) -> anyhow::Result<Options> {
        let mut env = Vec::new();
        let of_host = |name: &str| std::env::var(name).ok();
        for path in &self.env_file {
            env.extend(read_env_file(path)?);
        }
        for text in &self.env {
            env.push(options::env(text, of_host)?);
        }
        Ok(Options {
            name: self.name,
            entrypoint: self.entrypoint.map(|program| match program.as_str() {
                "" => Vec::new(),
                _ => vec![program],
            }),
            command: self.image_and_command[1..].to_vec(),
            env,
            working_directory: self.workdir,
            user: self.user,
            hostname: self.hostname,
            vcpus: self.cpus,
            memory: self.memory,
            read_only: self.read_only,
            tmpfs: self.tmpfs,
            init: self.init,
            privileged: self.privileged,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            ulimits: self.ulimit,
            labels: labels(&self.label),
            remove: self.rm,
            interactive: self.interactive,
            terminal: self.tty.then(terminal::size),
            kernel: self.kernel,
            kernel_console: self.kernel_console,
        })
    }
}

/// Docker's format: lines, no quoting, `#` begins a comment.
fn read_env_file(path: &PathBuf) -> anyhow::Result<Vec<EnvChange>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the environment file {}", path.display()))?;
    let lines = text.lines().map(str::trim_start);
    let variables = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    variables
        .map(|line| options::env(line, |name| std::env::var(name).ok()))
        .collect::<Result<_, OptionError>>()
        .with_context(|| format!("in the environment file {}", path.display()))
}

fn labels(given: &[String]) -> BTreeMap<String, String> {
    given
        .iter()
        .map(|label| label.split_once('=').unwrap_or((label, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn streams(options: &Options) -> anyhow::Result<Streams> {
    let duplicate =
        |stream: &dyn AsFd| -> io::Result<OwnedFd> { stream.as_fd().try_clone_to_owned() };
    let streams = || -> io::Result<Streams> {
        Ok(Streams {
            stdin: options
                .interactive
                .then(|| duplicate(&io::stdin()))
                .transpose()?,
            stdout: Some(duplicate(&io::stdout())?),
            stderr: options
                .terminal
                .is_none()
                .then(|| duplicate(&io::stderr()))
                .transpose()?,
        })
    };
    streams().context("cannot use the standard streams")
}

fn print_table(timeline: &Timeline) {
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
}
