//! The supervisor: one small process for each container that runs. It holds the container's lock, its machine and
//! the agent's connection; it keeps the logs, serves the commands that concern the container, and writes down its
//! end. It outlives the command that started it, and the container does not outlive it.
//!
//! One thread, and one loop that waits for descriptors: see [`run`].

mod clients;
mod exec;
mod health;
mod rest;
mod run;
mod streams;

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::setsid,
};
use vmm::NetLimits;

use super::{
    disk_rate,
    error::{RunError, chain, check_memory},
    log::Log,
    restart::Backoff,
    session::{FromCommand, Launch, Reply, Request, Session},
    spec::Spec,
    state::{Container, Containers},
    status::{Exited, Restarting, Status},
    timeline::{Timeline, now_ns},
    volumes,
};
use crate::{
    image::store::{Image, Store},
    sandbox::{SandboxConfig, kernel},
};
use clients::Clients;
use rest::deliver;
use run::{Plan, Run};
use streams::Streams;

pub use super::session::Outcome;

/// First argument of a supervisor; whoever parses the command line hands over to it.
pub const SUPERVISE: &str = "supervise";

/// Name of the writable disk in the container's folder.
pub const DISK: &str = "disk.ext4";

/// Name of the listening socket in the container's folder.
pub const SOCKET: &str = "socket";

/// Name of the file for what this process and the VMM have to say.
pub const LOG: &str = "vmm.log";

/// Becomes the supervisor of the container that the command at the other end of standard input names.
#[must_use]
pub fn supervise() -> ExitCode {
    // Whoever hangs up the user's terminal or presses Ctrl-C there does not mean this process.
    let _ = setsid();
    match session().and_then(Supervisor::take_over) {
        Ok(supervisor) => {
            let sessions = supervisor.supervise();
            // Their end tells that this process is gone: it may not come before.
            std::mem::forget(sessions);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("supervisor: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
enum TakeOverError {
    #[error("cannot talk to the command that started this")]
    Session(#[from] protocol::frame::FrameError),
    #[error("the command that started this said nothing of use")]
    NoLaunch,
    #[error("cannot set up")]
    SetUp(#[from] io::Error),
    #[error(transparent)]
    State(#[from] super::state::StateError),
}

/// All that a supervisor holds whether its machine runs or not.
#[derive(Debug)]
struct Supervisor {
    state_root: PathBuf,
    containers: Containers,
    container: Container,
    listener: UnixListener,
    signals: SignalFd,
    clients: Clients,
    streams: Streams,
    timeline: Timeline,
    /// Who ended the container, where it did not end by itself.
    stopped: Option<Stopped>,
    /// It was asked to end, with time to do so.
    told_to_stop: bool,
    /// How often the container was started again.
    restarts: u32,
}

/// Why a container that ends is not to run again now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// A command said so.
    ByUser,
    /// The host, or this process, is to end.
    WithHost,
}

/// How a run ended.
#[derive(Debug)]
struct Ended {
    result: Result<Outcome, RunError>,
    since: SystemTime,
    /// How long the process ran; `None` where it was never executed.
    up: Option<Duration>,
}

/// Standard input, and nothing in its place: the session shall end when this lets go of it.
fn session() -> Result<Session, TakeOverError> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)?;
    Ok(Session::new(socket.into()))
}

impl Supervisor {
    fn take_over(mut session: Session) -> Result<Self, TakeOverError> {
        let Some(FromCommand::Request(Request::Launch(launch))) = session.wait()? else {
            return Err(TakeOverError::NoLaunch);
        };
        let (Some(lock), Some(listener)) = (session.descriptor(), session.descriptor()) else {
            return Err(TakeOverError::NoLaunch);
        };
        let Launch {
            state_root,
            id,
            attach,
            timeline,
        } = launch;
        let state_root = PathBuf::from(state_root);
        let containers = Containers::open(&state_root)?;
        let container = containers.adopt(&id, lock)?;
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        raise_file_limit();
        let spec = container.spec();
        let log = Log::open(container.folder(), spec.streams.log)?;
        let mut streams = Streams::new(log, spec.streams.stdin_once);
        let mut clients = Clients::default();
        session.set_nonblocking(true)?;
        clients.admit_launcher(session, attach, spec, &mut streams)?;
        Ok(Self {
            signals: signals()?,
            state_root,
            containers,
            container,
            listener,
            clients,
            streams,
            timeline,
            stopped: None,
            told_to_stop: false,
            restarts: 0,
        })
    }

    /// The container from its start to its end, with all restarts. What is left are sessions that were told of it.
    fn supervise(mut self) -> Clients {
        let before = self.container.status();
        let mut backoff = Backoff::default();
        let mut ended = self.run();
        while self.goes_on(&ended) {
            self.tell_restart(&ended);
            if !self.rest(backoff.after(ended.up.unwrap_or_default())) {
                break;
            }
            self.restarts += 1;
            self.timeline = Timeline {
                command_ns: now_ns(),
                ..Timeline::default()
            };
            ended = self.run();
        }
        let written = self.write_down(&ended, before.as_ref().ok());
        let result = ended.result;
        let Self {
            containers,
            container,
            listener,
            mut clients,
            mut streams,
            timeline,
            ..
        } = self;
        // Who asks from now on asks the disk. What was told to nobody yet is told after that is true.
        drop(listener);
        let _ = std::fs::remove_file(container.folder().join(SOCKET));
        let removed = match written {
            Ok(Fate::Stays) => {
                drop(container);
                Ok(())
            }
            Ok(Fate::Goes) => {
                let mounts = container.spec().mounts.clone();
                let removed = containers.remove_held(container);
                // What nobody removes now is anonymous, and pruned some day.
                let _ = volumes::remove_anonymous(&containers, &mounts);
                removed
            }
            Err(error) => Err(error),
        };
        let end = match (result, removed) {
            (Ok(outcome), Ok(())) => Reply::Exited(Outcome {
                timeline,
                ..outcome
            }),
            (Ok(_), Err(error)) => failed(&error.into(), timeline),
            (Err(error), _) => failed(&error, timeline),
        };
        clients.tell_end(&end);
        deliver(&mut clients, &mut streams);
        clients
    }

    /// One run of the container's machine.
    fn run(&mut self) -> Ended {
        let since = SystemTime::now();
        let result = self.plan().and_then(|plan| {
            let mut run = Run::start(plan, self)?;
            run.record_mounts("mount");
            let result = run.serve();
            run.record_mounts("unmount");
            run.finish();
            result
        });
        self.timeline.gone_ns = now_ns();
        self.streams.close_guest();
        let Timeline {
            exec_ns, gone_ns, ..
        } = self.timeline;
        let ended = Ended {
            result,
            since,
            up: (exec_ns > 0).then(|| Duration::from_nanos(gone_ns.saturating_sub(exec_ns))),
        };
        self.record_end(&ended);
        ended
    }

    /// Writes down what happened to the container.
    fn record(&self, action: &str, more: &[(&str, String)]) {
        let spec = self.container.spec();
        // It may have another name by now.
        let now = self.containers.record(&spec.id).map(|record| record.spec);
        let events = self.containers.events();
        events.record_container(now.as_ref().unwrap_or(spec), action, more);
    }

    /// Writes down how a run ended, of a process that was executed.
    fn record_end(&self, ended: &Ended) {
        let Some(up) = ended.up else {
            return;
        };
        let exited = self.exited(ended);
        if exited.oom_killed {
            self.record("oom", &[]);
        }
        let more = [
            ("exitCode", exited.code.to_string()),
            ("execDuration", up.as_secs().to_string()),
        ];
        self.record("die", &more);
        if self.stopped == Some(Stopped::ByUser) && self.told_to_stop {
            self.record("stop", &[]);
        }
    }

    /// Whether there is to be another run after this one. One that never was has no second.
    fn goes_on(&self, ended: &Ended) -> bool {
        let spec = self.container.spec();
        // As it is by now: it can be changed while the container runs.
        let policy = match self.containers.record(&spec.id) {
            Ok(record) => record.spec.restart,
            Err(_) => spec.restart,
        };
        let failed = !matches!(&ended.result, Ok(Outcome { code: 0, .. }));
        (ended.up.is_some() || self.restarts > 0)
            && self.stopped.is_none()
            && policy.restarts(failed, self.restarts)
    }

    /// Tells everybody that this run is over. Who waits for the container's end has seen one.
    fn tell_restart(&mut self, ended: &Ended) {
        let end = match &ended.result {
            Ok(outcome) => Reply::Exited(Outcome {
                timeline: self.timeline,
                ..*outcome
            }),
            Err(error) => failed(error, self.timeline),
        };
        let status = Status::Restarting(Restarting {
            last: self.exited(ended),
            supervisor_pid: std::process::id(),
        });
        if let Err(error) = self.container.set_status(&status) {
            // The next change may succeed; until then the old status is shown.
            eprintln!("supervisor: {}", chain(&error));
        }
        self.clients.tell_end(&end);
        for id in self.clients.dismiss() {
            self.streams.retire(id);
        }
    }

    /// What the machine is made of, its network included.
    fn plan(&self) -> Result<Plan, RunError> {
        let spec = self.container.spec();
        check_memory(spec.machine.memory_bytes)?;
        let kernel = kernel::find(spec.machine.kernel.as_deref())?;
        let image = Store::open(&self.state_root)?.image(&spec.image_digest, None)?;
        let mut sandbox = sandbox(spec, &self.container, &image, kernel)?;
        let shared = volumes::share(&self.state_root, spec)?;
        sandbox.shares = shared.shares;
        let mut setup = protocol::Setup {
            mounts: shared.mounts,
            ..spec.setup.clone()
        };
        let connection = spec.network.connect(
            &self.state_root,
            spec.id.as_str(),
            &spec.name,
            &self.container.folder().join(LOG),
            sandbox.vcpus,
        )?;
        let (links, attachment) = match connection {
            Some(connection) => {
                connection.complete(&mut setup);
                sandbox.nics.extend(connection.devices);
                sandbox.net_limits = spec.network.limits;
                (connection.links, Some(connection.attachment))
            }
            None => (Vec::new(), None),
        };
        Ok(Plan {
            sandbox,
            links,
            attachment,
            setup,
            process: spec.process.clone(),
            filling: shared.filling,
            image,
        })
    }

    fn write_down(
        &self,
        ended: &Ended,
        before: Option<&Status>,
    ) -> Result<Fate, super::state::StateError> {
        let ran = ended.up.is_some() || self.restarts > 0;
        // What `run` made and never ran has nothing to be looked at afterwards.
        if self.container.spec().remove || (!ran && before == Some(&Status::Starting)) {
            return Ok(Fate::Goes);
        }
        let status = match (ran, before) {
            (false, Some(before @ Status::Exited(_))) => before.clone(),
            (false, _) => Status::Created {
                error: ended.result.as_ref().err().map(|error| chain(error)),
            },
            (true, _) => Status::Exited(self.exited(ended)),
        };
        self.container.set_status(&status)?;
        Ok(Fate::Stays)
    }

    fn exited(&self, ended: &Ended) -> Exited {
        let result = &ended.result;
        Exited {
            since: ended.since,
            at: SystemTime::now(),
            code: match result {
                Ok(outcome) => outcome.code,
                Err(error) => error.exit_code(),
            },
            oom_killed: result.as_ref().is_ok_and(|outcome| outcome.oom_killed),
            host_oom_killed: matches!(
                result,
                Err(RunError::Ended {
                    ending: vmm::Ending::HostOom,
                    ..
                })
            ),
            error: result.as_ref().err().map(|error| chain(error)),
            restarts: self.restarts,
            stopped: self.stopped == Some(Stopped::ByUser),
        }
    }
}

/// What becomes of a container that has ended.
enum Fate {
    Stays,
    Goes,
}

fn failed(error: &RunError, timeline: Timeline) -> Reply {
    Reply::Failed {
        message: chain(error),
        code: error.exit_code(),
        timeline,
    }
}

/// A container's machine, without a network and shares.
pub(super) fn sandbox(
    spec: &Spec,
    container: &Container,
    image: &Image,
    kernel: PathBuf,
) -> Result<SandboxConfig, RunError> {
    let machine = &spec.machine;
    let disk_path = container.folder().join(DISK);
    let root: Vec<&Path> = image
        .rootfs
        .parts
        .iter()
        .map(|(path, _)| path.as_path())
        .collect();
    let mut disks = vec![root];
    disks.extend(machine.disk_bytes.map(|_| vec![disk_path.as_path()]));
    let disk_limits = disk_rate::resolve(&machine.disk_rates, &disks)?;
    Ok(SandboxConfig {
        label: spec.id.short().into(),
        vcpus: machine.cpus.vcpus(),
        nano_cpus: machine.cpus.throttle(machine.cpus.vcpus()),
        cpuset: machine.cpuset.as_ref().map(|set| set.cpus().to_vec()),
        oom_score_adj: machine.oom_score_adj,
        memory_bytes: machine.memory_bytes,
        kernel,
        root: image.rootfs.parts.clone(),
        disk: machine.disk_bytes.map(|bytes| (disk_path, bytes)),
        disk_limits,
        nics: Vec::new(),
        net_limits: NetLimits::default(),
        shares: Vec::new(),
        kernel_console: machine.kernel_console.clone(),
        log: container.folder().join(LOG),
    })
}

/// Signals that mean the supervisor itself: the host is going down, or somebody looked for a process to end.
fn signals() -> io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        mask.add(signal);
    }
    mask.thread_block()?;
    Ok(SignalFd::with_flags(
        &mask,
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )?)
}

/// Each process in the container takes up to seven descriptors here.
fn raise_file_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where it is refused there is room for fewer.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
