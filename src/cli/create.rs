//! `pillbug create`: a container that does not run yet; and the flags that it shares with `run`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use protocol::Rlimit;

use super::{
    health_flags::HealthFlags,
    limit_flags::LimitFlags,
    mount_flags::MountFlags,
    network_flags::NetworkFlags,
    pull::{self, PlatformArg},
    terminal,
};
use crate::{
    container::{
        self,
        log::LogConfig,
        name::Id,
        options::{self, EnvChange, OptionError, Options},
        restart::RestartPolicy,
        signal,
        status::Status,
        timeline::Timeline,
    },
    state_root,
};

const EXAMPLES: &str = "\
Examples:
  pillbug create --name web nginx      prints the ID; `pillbug start web` runs it
  pillbug create -it --name box debian
  pillbug start -ai box                a shell in it";

/// Create a container, to be started later
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
#[command(override_usage = "pillbug create [OPTIONS] IMAGE [COMMAND]...")]
pub struct CreateArgs {
    #[command(flatten)]
    flags: ContainerFlags,
}

/// What a container is made with.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct ContainerFlags {
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
    /// Write the container's ID to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
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
    #[command(flatten)]
    limits: LimitFlags,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    mounts: MountFlags,
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
    #[command(flatten)]
    network: NetworkFlags,
    /// Signal that asks the process to end
    #[arg(long, value_name = "SIGNAL", value_parser = signal::parse)]
    stop_signal: Option<u8>,
    /// Seconds until a process that was asked to end is killed; -1 waits for ever
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    stop_timeout: Option<i64>,
    #[command(flatten)]
    health: HealthFlags,
    /// When to start it again: no, on-failure[:RETRIES], always, unless-stopped
    #[arg(
        long,
        value_name = "POLICY",
        default_value = "no",
        hide_default_value = true
    )]
    restart: RestartPolicy,
    /// How output is kept: max-size=SIZE (10m) for each of max-file=COUNT (3) files
    #[arg(long, value_name = "NAME=VALUE")]
    log_opt: Vec<String>,
    /// Keep output in a file, or not at all
    #[arg(long, value_name = "DRIVER", value_parser = ["json-file", "none"], default_value = "json-file")]
    log_driver: String,
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

/// Creates it and prints its ID.
pub fn run(arguments: CreateArgs) -> anyhow::Result<ExitCode> {
    let request = arguments.flags.into_request(false)?;
    let image = request.pull.ensure(&request.image)?;
    let created = Status::Created { error: None };
    let result = container::create(
        &state_root::locate()?,
        &image,
        &request.options,
        &created,
        &mut Timeline::default(),
    );
    match result {
        Ok(container) => {
            let id = &container.spec().id;
            request.cidfile.write(id)?;
            super::print(&format!("{id}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Ok(super::failure(error)),
    }
}

/// What the flags ask for.
pub struct ContainerRequest {
    /// The image.
    pub image: String,
    /// What to make of it.
    pub options: Options,
    /// Where its ID goes.
    pub cidfile: CidFile,
    /// Whether to pull the image.
    pub pull: Pull,
}

/// When and how to pull.
pub struct Pull {
    when: pull::When,
    quiet: bool,
}

impl Pull {
    /// Brings an image into the store, where that is asked for; what to find it by there.
    pub fn ensure(&self, image: &str) -> anyhow::Result<String> {
        pull::ensure(image, self.when, self.quiet)
    }
}

/// The file for the ID, which this process has made, or none.
pub struct CidFile(Option<(File, PathBuf)>);

impl CidFile {
    fn create(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self(None));
        };
        let file = File::create_new(&path).with_context(|| {
            format!(
                "cannot create the ID file {}: another container may be using it",
                path.display()
            )
        })?;
        Ok(Self(Some((file, path))))
    }

    /// Writes the ID.
    pub fn write(mut self, id: &Id) -> anyhow::Result<()> {
        let Some((mut file, path)) = self.0.take() else {
            return Ok(());
        };
        file.write_all(id.as_str().as_bytes())
            .with_context(|| format!("cannot write the ID file {}", path.display()))
    }
}

impl Drop for CidFile {
    /// There is no container: neither is there its ID.
    fn drop(&mut self) {
        if let Some((_, path)) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

impl ContainerFlags {
    /// Whether it goes when it ends.
    pub fn removes(&self) -> bool {
        self.rm
    }

    /// As meant.
    pub fn into_request(self, detach: bool) -> anyhow::Result<ContainerRequest> {
        if self.rm && self.restart != RestartPolicy::No {
            bail!("conflicting options: cannot specify both --restart and --rm");
        }
        let mut env = Vec::new();
        let of_host = |name: &str| std::env::var(name).ok();
        for path in &self.env_file {
            env.extend(read_env_file(path)?);
        }
        for text in &self.env {
            env.push(options::env(text, of_host)?);
        }
        let log = log_config(&self.log_driver, &self.log_opt)?;
        let network = self.network.into_request()?;
        let mounts = self.mounts.into_mounts()?;
        let options = Options {
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
            limits: self.limits.into_options(),
            read_only: self.read_only,
            tmpfs: mounts.tmpfs,
            mounts: mounts.shared,
            volumes_from: mounts.from,
            dangerous_mounts: mounts.dangerous,
            init: self.init,
            privileged: self.privileged,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            ulimits: self.ulimit,
            labels: labels(&self.label),
            network: network.network,
            dns_search: network.dns_search,
            dns_options: network.dns_options,
            extra_hosts: network.extra_hosts,
            remove: self.rm,
            detach,
            log,
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout,
            health: self.health.into_options()?,
            restart: self.restart,
            interactive: self.interactive,
            terminal: self.tty.then(terminal::size),
            kernel: self.kernel.as_ref().map(absolute).transpose()?,
            kernel_console: self.kernel_console.as_ref().map(absolute).transpose()?,
        };
        Ok(ContainerRequest {
            image: self.image_and_command[0].clone(),
            options,
            cidfile: CidFile::create(self.cidfile)?,
            pull: Pull {
                when: self.pull,
                quiet: self.quiet,
            },
        })
    }
}

/// What a supervisor opens does not depend on the folder that the command was given in.
fn absolute(path: &PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot use the path {}", path.display()))
}

/// Docker's format: lines, no quoting, `#` begins a comment.
pub fn read_env_file(path: &Path) -> anyhow::Result<Vec<EnvChange>> {
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

fn log_config(driver: &str, settings: &[String]) -> anyhow::Result<LogConfig> {
    let mut config = LogConfig::default();
    for setting in settings {
        match setting.split_once('=') {
            Some(("max-size", size)) => config.max_bytes = options::size(size)?,
            Some(("max-file", count)) => {
                config.max_files = count
                    .parse()
                    .ok()
                    .filter(|count| (1..=1000).contains(count))
                    .with_context(|| {
                        format!("{count:?} is not a number of log files: give 1 to 1000")
                    })?;
            }
            _ => bail!("{setting:?} is no log option: give max-size=SIZE or max-file=COUNT"),
        }
    }
    if driver == "none" {
        config.max_files = 0;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_options_are_read() {
        let set = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
            log_config("json-file", &settings)
        };
        let config = set(&["max-size=1m", "max-file=2"]).unwrap();
        assert_eq!((config.max_bytes, config.max_files), (1 << 20, 2));
        for setting in ["max-file=0", "max-file=x", "max-size=-1", "mode=x", ""] {
            assert!(set(&[setting]).is_err(), "{setting}");
        }
        assert_eq!(log_config("none", &[]).unwrap().max_files, 0);
    }
}
