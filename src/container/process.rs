//! What a container runs: the image's configuration and the user's options, merged as Docker does.
//!
//! A pure function: nothing is looked up on the host, and users and programs are resolved in the guest.

use oci_spec::image::Config;
use protocol::{Capabilities, Limits, Process, Resolver, Setup, Upper};

use crate::network::port::PortError;

use super::{
    capability::{self, UnknownCapability},
    options::{EnvChange, ExecOptions, Options},
    signal::UnknownSignal,
    spec::Spec,
};

/// `PATH` where the image sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Most bytes that arguments and environment may have together: what Linux takes by default, a quarter
/// of an 8 MiB stack.
const MAX_STRINGS: usize = 2 << 20;

/// Why image and options do not make a process.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ProcessError {
    #[error("the image names no command: give one after the image, such as `sh`")]
    NoCommand,
    #[error("the working directory {0:?} is not an absolute path")]
    WorkingDirectory(String),
    #[error("{0} contains a NUL byte")]
    Nul(&'static str),
    #[error("arguments and environment have {0} bytes, above the limit of {MAX_STRINGS}")]
    TooLong(usize),
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    #[error("the image's stop signal cannot be used")]
    StopSignal(#[from] UnknownSignal),
    #[error("the image's health check is {0:?}, which is none of CMD, CMD-SHELL and NONE")]
    Health(String),
    #[error("the times of a health check cannot be less than 1ms")]
    HealthTime,
    #[error("a port that the image exposes cannot be published")]
    ExposedPort(#[source] PortError),
}

/// The process of a container whose host name is `hostname`.
///
/// # Errors
///
/// [`ProcessError`]: no command, or a value that no Linux process can have.
pub fn process(image: &Config, options: &Options, hostname: &str) -> Result<Process, ProcessError> {
    let process = Process {
        args: arguments(image, options)?,
        env: environment(image, options, hostname),
        cwd: working_directory(image, options)?,
        user: options
            .user
            .clone()
            .or_else(|| image.user().clone())
            .unwrap_or_default(),
        additional_groups: Vec::new(),
        terminal: options.terminal,
        capabilities: capabilities(options)?,
        no_new_privileges: false,
        rlimits: options.ulimits.clone(),
        init: options.init,
    };
    check_strings(&process)?;
    Ok(process)
}

/// A process that joins the container `spec`: in its environment and as its user, but for what `options` say. Limits and
/// capabilities are the container's.
///
/// # Errors
///
/// [`ProcessError`], as above.
pub fn exec(spec: &Spec, options: &ExecOptions) -> Result<Process, ProcessError> {
    let container = &spec.process;
    let mut env = Environment::of(&container.env);
    if options.terminal.is_some() && container.terminal.is_none() {
        env.set("TERM", Some("xterm"));
    }
    env.apply(&options.env);
    let cwd = match options.working_directory.as_deref() {
        None => container.cwd.clone(),
        Some(path) if path.starts_with('/') => path.into(),
        Some(path) => return Err(ProcessError::WorkingDirectory(path.into())),
    };
    let process = Process {
        args: options.command.clone(),
        env: env.into_strings(),
        cwd,
        user: options
            .user
            .clone()
            .unwrap_or_else(|| container.user.clone()),
        terminal: options.terminal,
        capabilities: if options.privileged {
            capability::all()
        } else {
            container.capabilities
        },
        init: false,
        ..container.clone()
    };
    check_strings(&process)?;
    Ok(process)
}

/// The sandbox around that process; `upper` is its writable layer.
#[must_use]
pub fn setup(options: &Options, hostname: &str, upper: Upper) -> Setup {
    Setup {
        lower_device: "/dev/vda".into(),
        upper,
        read_only_root: options.read_only,
        hostname: hostname.into(),
        extra_hosts: options.extra_hosts.clone(),
        // What is known when it starts is added then.
        interfaces: Vec::new(),
        resolver: Resolver {
            servers: Vec::new(),
            search: options.dns_search.clone(),
            options: options.dns_options.clone(),
            relay: false,
        },
        mounts: options.tmpfs.clone(),
        shm_bytes: options.limits.shm.0,
        limits: Limits {
            nano_cpus: options.limits.cpus.throttle(options.limits.cpus.vcpus()),
            memory_bytes: None,
            pids: options.limits.pids,
        },
        sysctls: options.limits.sysctls.clone(),
        privileged: options.privileged,
    }
}

/// Program and arguments; an entry point given by the user resets the image's command.
///
/// # Errors
///
/// [`ProcessError::NoCommand`].
pub fn arguments(image: &Config, options: &Options) -> Result<Vec<String>, ProcessError> {
    let (entrypoint, image_command) = match &options.entrypoint {
        Some(given) => (given.clone(), Vec::new()),
        None => (
            image.entrypoint().clone().unwrap_or_default(),
            image.cmd().clone().unwrap_or_default(),
        ),
    };
    let command = if options.command.is_empty() {
        image_command
    } else {
        options.command.clone()
    };
    let arguments = [entrypoint, command].concat();
    match arguments.first() {
        Some(program) if !program.is_empty() => Ok(arguments),
        _ => Err(ProcessError::NoCommand),
    }
}

fn environment(image: &Config, options: &Options, hostname: &str) -> Vec<String> {
    let mut env = Environment(vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    env.set("HOSTNAME", Some(hostname));
    if options.terminal.is_some() {
        env.set("TERM", Some("xterm"));
    }
    for variable in image.env().iter().flatten() {
        // An entry without `=` is none that a process could read.
        if let Some((name, value)) = variable.split_once('=') {
            env.set(name, Some(value));
        }
    }
    env.apply(&options.env);
    env.into_strings()
}

/// Variables in order, each once.
struct Environment(Vec<(String, String)>);

impl Environment {
    fn of(strings: &[String]) -> Self {
        let pairs = strings
            .iter()
            .filter_map(|variable| variable.split_once('='));
        Self(
            pairs
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }

    fn set(&mut self, name: &str, value: Option<&str>) {
        let position = self.0.iter().position(|(known, _)| known == name);
        match (position, value) {
            (Some(position), Some(value)) => self.0[position].1 = value.into(),
            (Some(position), None) => drop(self.0.remove(position)),
            (None, Some(value)) => self.0.push((name.into(), value.into())),
            (None, None) => {}
        }
    }

    fn apply(&mut self, changes: &[EnvChange]) {
        for change in changes {
            match change {
                EnvChange::Set(name, value) => self.set(name, Some(value)),
                EnvChange::Unset(name) => self.set(name, None),
            }
        }
    }

    fn into_strings(self) -> Vec<String> {
        self.0
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

fn working_directory(image: &Config, options: &Options) -> Result<String, ProcessError> {
    let given = options
        .working_directory
        .as_ref()
        .or(image.working_dir().as_ref());
    match given.map_or("", String::as_str) {
        "" => Ok("/".into()),
        path if path.starts_with('/') => Ok(path.into()),
        // An image's relative one is taken from the root, as Docker does when it builds.
        path if options.working_directory.is_none() => Ok(format!("/{path}")),
        path => Err(ProcessError::WorkingDirectory(path.into())),
    }
}

fn capabilities(options: &Options) -> Result<Capabilities, ProcessError> {
    if options.privileged {
        return Ok(capability::all());
    }
    Ok(capability::select(&options.cap_add, &options.cap_drop)?)
}

fn check_strings(process: &Process) -> Result<(), ProcessError> {
    let fields = [
        ("an argument", process.args.as_slice()),
        ("an environment variable", process.env.as_slice()),
        ("the working directory", std::slice::from_ref(&process.cwd)),
        ("the user", std::slice::from_ref(&process.user)),
    ];
    for (name, strings) in fields {
        if strings.iter().any(|string| string.contains('\0')) {
            return Err(ProcessError::Nul(name));
        }
    }
    // Linux counts the terminating NUL and the pointer of each string too.
    let length = process
        .args
        .iter()
        .chain(&process.env)
        .map(|string| string.len() + 9)
        .sum();
    if length > MAX_STRINGS {
        Err(ProcessError::TooLong(length))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ConfigBuilder;

    use super::*;

    fn image() -> Config {
        ConfigBuilder::default()
            .entrypoint(vec!["/entry".to_owned()])
            .cmd(vec!["default".to_owned()])
            .env(vec!["PATH=/image".to_owned(), "A=1".to_owned()])
            .build()
            .unwrap()
    }

    fn merged(options: &Options) -> Process {
        process(&image(), options, "host").unwrap()
    }

    #[test]
    fn the_users_command_replaces_the_images() {
        assert_eq!(merged(&Options::default()).args, ["/entry", "default"]);
        let command = vec!["x".to_owned()];
        assert_eq!(
            merged(&Options {
                command,
                ..Options::default()
            })
            .args,
            ["/entry", "x"]
        );
    }

    #[test]
    fn an_entry_point_resets_the_images_command() {
        let options = Options {
            entrypoint: Some(vec!["/bin/sh".into()]),
            ..Options::default()
        };
        assert_eq!(merged(&options).args, ["/bin/sh"]);
        let options = Options {
            entrypoint: Some(Vec::new()),
            ..Options::default()
        };
        assert_eq!(
            process(&image(), &options, "h"),
            Err(ProcessError::NoCommand)
        );
    }

    #[test]
    fn later_variables_win_and_keep_their_place() {
        let options = Options {
            env: vec![
                EnvChange::Set("A".into(), "2 init=/x\n".into()),
                EnvChange::Unset("HOSTNAME".into()),
            ],
            ..Options::default()
        };
        assert_eq!(merged(&options).env, ["PATH=/image", "A=2 init=/x\n"]);
    }

    #[test]
    fn a36_a_working_directory_is_kept_as_it_is() {
        let path = "/a b\ninit=/bin/sh =";
        let options = Options {
            working_directory: Some(path.into()),
            ..Options::default()
        };
        assert_eq!(merged(&options).cwd, path);
        let options = Options {
            working_directory: Some("a".into()),
            ..Options::default()
        };
        let error = process(&image(), &options, "h").unwrap_err();
        assert_eq!(error, ProcessError::WorkingDirectory("a".into()));
    }

    #[test]
    fn what_no_process_can_have_is_refused() {
        let options = Options {
            command: vec!["a\0b".into()],
            ..Options::default()
        };
        assert_eq!(
            process(&image(), &options, "h"),
            Err(ProcessError::Nul("an argument"))
        );
        let options = Options {
            command: vec!["a".repeat(3 << 20)],
            ..Options::default()
        };
        assert!(matches!(
            process(&image(), &options, "h"),
            Err(ProcessError::TooLong(_))
        ));
    }

    #[test]
    fn a_joining_process_is_as_the_containers_but_for_what_is_asked() {
        let mut spec = super::super::spec::example("web");
        spec.process = merged(&Options {
            user: Some("app".into()),
            init: true,
            ..Options::default()
        });
        let options = ExecOptions {
            command: vec!["id".into()],
            env: vec![EnvChange::Set("A".into(), "3".into())],
            ..ExecOptions::default()
        };
        let joined = exec(&spec, &options).unwrap();
        assert_eq!(joined.args, ["id"]);
        assert_eq!(joined.env, ["PATH=/image", "HOSTNAME=host", "A=3"]);
        assert_eq!((joined.user.as_str(), joined.init), ("app", false));
        let options = ExecOptions {
            working_directory: Some("x".into()),
            ..ExecOptions::default()
        };
        assert!(exec(&spec, &options).is_err());
    }
}
