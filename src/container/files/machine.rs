//! A machine that is started for a container that does not run, to work on its files and nothing else: no process of
//! the container's is executed, it has no network, and how the container is stays as it was.
//!
//! The command that wants it runs it, and holds the container's lock meanwhile.

use std::{
    collections::VecDeque,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use protocol::{AgentMessage, HostMessage, ProcessId, Setup, files::FilesOrder};
use vmm::Ending;

use crate::{
    agent_client::{
        AgentClient, AgentError,
        stream::{self, Unknown},
    },
    container::{
        error::{RunError, check_memory},
        state::Container,
        supervisor::{LOG, sandbox},
        volumes,
    },
    deadline::timeout,
    image::store::{Image, Store},
    sandbox::{Sandbox, SandboxError, SandboxEvent, kernel},
    volume::Filling,
};

/// Longest from the start of the machine to the first byte of the stream. An emulated host takes seconds, a busy one more.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Longest that the guest may take to write everything to its disk and power off.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(30);

/// The work; there is no other.
const WORK: ProcessId = ProcessId(1);

/// The machine.
#[derive(Debug)]
pub struct Machine {
    sandbox: Sandbox,
    agent: Option<AgentClient>,
    /// What the agent has said that nobody has heard.
    said: VecDeque<AgentMessage>,
    container: Container,
    /// Volumes that the agent fills first.
    filling: Vec<Filling>,
    _image: Image,
}

/// What it says next.
enum Heard {
    Agent(AgentMessage),
    Stream(UnixStream),
    Ended(Ending),
}

impl Machine {
    /// Starts it and has it do this.
    ///
    /// # Errors
    ///
    /// Where it does not start, and where the guest cannot prepare the root file system.
    pub fn start(
        state_root: &Path,
        container: Container,
        order: FilesOrder,
    ) -> Result<(Self, UnixStream), RunError> {
        let spec = container.spec();
        check_memory(spec.machine.memory_bytes)?;
        let kernel = kernel::find(spec.machine.kernel.as_deref())?;
        let image = Store::open(state_root)?.image(&spec.image_digest, None)?;
        let mut config = sandbox(spec, &container, &image, kernel)?;
        let mut setup = Box::new(spec.setup.clone());
        let mut filling = Vec::new();
        // The others leave out what is mounted.
        if matches!(order, FilesOrder::Read { .. } | FilesOrder::Write { .. }) {
            let shared = volumes::share(state_root, spec)?;
            config.shares = shared.shares;
            setup.mounts = shared.mounts;
            filling = shared.filling;
        }
        let mut machine = Self {
            sandbox: Sandbox::start(&config, Vec::new())?,
            agent: None,
            said: VecDeque::new(),
            container,
            filling,
            _image: image,
        };
        let log = machine.container.folder().join(LOG);
        let stream = machine
            .connect(setup, order)
            .map_err(|error| error.with_log(&log))?;
        Ok((machine, stream))
    }

    /// Until the stream is there.
    fn connect(&mut self, setup: Box<Setup>, order: FilesOrder) -> Result<UnixStream, RunError> {
        let until = Instant::now() + BOOT_LIMIT;
        let token = stream::token().map_err(|error| RunError::Streams(error.into()))?;
        let mut unknown = Unknown::default();
        let mut setup = Some(setup);
        let mut order = Some(HostMessage::Files {
            id: WORK,
            order,
            stream: token,
        });
        loop {
            match self.hear(&mut unknown, Some(token), until)? {
                Heard::Agent(AgentMessage::Ready { .. }) => {
                    let setup = setup.take().ok_or(AgentError::Unexpected("Ready"))?;
                    self.tell(&HostMessage::Setup(setup))?;
                    if self.filling.is_empty() {
                        self.tell_once(&mut order)?;
                    }
                }
                Heard::Agent(AgentMessage::Filled) => {
                    for volume in self.filling.drain(..) {
                        volume.done()?;
                    }
                    self.tell_once(&mut order)?;
                }
                Heard::Agent(AgentMessage::StartFailed {
                    stage,
                    errno,
                    subject,
                    ..
                }) => return Err(RunError::start(stage, errno, subject)),
                Heard::Agent(AgentMessage::FillFailed {
                    stage,
                    errno,
                    subject,
                }) => return Err(RunError::fill(stage, errno, subject)),
                Heard::Agent(_) => {}
                Heard::Stream(stream) => return Ok(stream),
                Heard::Ended(ending) => return Err(ended(ending)),
            }
        }
    }

    fn tell_once(&mut self, message: &mut Option<HostMessage>) -> Result<(), RunError> {
        match message.take() {
            Some(message) => self.tell(&message),
            None => Err(AgentError::Unexpected("Filled").into()),
        }
    }

    fn tell(&mut self, message: &HostMessage) -> Result<(), RunError> {
        match &mut self.agent {
            Some(agent) => Ok(agent.send(message)?),
            None => Err(AgentError::Closed.into()),
        }
    }

    /// Ends it; what was put on its disk is there then.
    ///
    /// # Errors
    ///
    /// Where it ended before, or does not end.
    pub fn power_off(mut self) -> Result<(), RunError> {
        let until = Instant::now() + POWER_OFF_LIMIT;
        match self.tell(&HostMessage::PowerOff) {
            // Its end says more.
            Err(RunError::Agent(AgentError::Closed)) => {}
            told => told?,
        }
        let mut unknown = Unknown::default();
        loop {
            match self.hear(&mut unknown, None, until) {
                Ok(Heard::Ended(Ending::PowerOff)) => return Ok(()),
                Ok(Heard::Ended(ending)) => {
                    let log = self.container.folder().join(LOG);
                    return Err(ended(ending).with_log(&log));
                }
                Ok(_) => {}
                Err(RunError::Silent) => return Err(RunError::PowerOff(POWER_OFF_LIMIT)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the next thing that it says; of streams, for the one with this token.
    fn hear(
        &mut self,
        unknown: &mut Unknown,
        token: Option<protocol::StreamToken>,
        until: Instant,
    ) -> Result<Heard, RunError> {
        loop {
            if let Some(message) = self.said.pop_front() {
                return Ok(Heard::Agent(message));
            }
            let ready = self.wait(unknown, until)?;
            if ready.shares
                && let Some(shares) = self.sandbox.shares()
            {
                shares.hear().map_err(SandboxError::from)?;
            }
            if ready.stream {
                let known = unknown.identify().into_iter();
                if let Some((_, stream)) =
                    known.into_iter().find(|(known, _)| Some(*known) == token)
                {
                    return Ok(Heard::Stream(stream));
                }
            }
            if ready.agent
                && let Some(agent) = &mut self.agent
            {
                match agent.receive() {
                    Ok(messages) => self.said.extend(messages),
                    // The sandbox says why, presently.
                    Err(AgentError::Closed) => self.agent = None,
                    Err(error) => return Err(error.into()),
                }
            }
            if ready.sandbox {
                match self.sandbox.next_event()? {
                    Some(SandboxEvent::Connected {
                        port: protocol::STREAM_PORT,
                        stream,
                    }) => unknown.add(stream).map_err(RunError::Streams)?,
                    Some(SandboxEvent::Connected {
                        port: protocol::CONTROL_PORT,
                        stream,
                    }) if self.agent.is_none() => self.agent = Some(AgentClient::new(stream)?),
                    Some(SandboxEvent::Ended(ending)) => return Ok(Heard::Ended(ending)),
                    _ => {}
                }
            }
        }
    }

    fn wait(&self, unknown: &Unknown, until: Instant) -> Result<Ready, RunError> {
        let read = PollFlags::POLLIN;
        let mut watched = vec![PollFd::new(self.sandbox.as_fd(), read)];
        watched.extend(
            self.agent
                .iter()
                .map(|agent| PollFd::new(agent.as_fd(), read)),
        );
        watched.extend(
            self.sandbox
                .shares_fd()
                .map(|shares| PollFd::new(shares, read)),
        );
        watched.extend(
            unknown
                .descriptors()
                .map(|stream| PollFd::new(stream, read)),
        );
        match poll(&mut watched, timeout(Some(until))) {
            Ok(0) => return Err(RunError::Silent),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(RunError::Streams(error.into())),
        }
        let ready: Vec<bool> = watched
            .iter()
            .map(|descriptor| descriptor.any().unwrap_or(true))
            .collect();
        let mut ready = ready.into_iter();
        let mut next = |is_watched: bool| is_watched && ready.next().unwrap_or(false);
        Ok(Ready {
            sandbox: next(true),
            agent: next(self.agent.is_some()),
            shares: next(self.sandbox.shares_fd().is_some()),
            stream: ready.any(|is_ready| is_ready),
        })
    }
}

/// Who has said something.
struct Ready {
    sandbox: bool,
    agent: bool,
    shares: bool,
    stream: bool,
}

fn ended(ending: Ending) -> RunError {
    RunError::Ended {
        ending,
        log: String::new(),
    }
}
