//! One run of a container, from its options to its exit code, in the calling process.

use std::{
    fs::File,
    io::{self, PipeReader},
    iter,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use protocol::{
    AgentMessage, Exit, HostMessage, Process, ProcessId, Setup, Stdio, StreamToken, WindowSize,
};
use vmm::{Ending, probe::ProbeError};

use super::{
    error::RunError,
    state::{Container, Status},
    timeline::{Timeline, now_ns},
};
use crate::{
    agent_client::{
        AgentClient, AgentError,
        stream::{self, Output, Unknown},
    },
    sandbox::{self, Sandbox, SandboxConfig, SandboxEvent},
};

/// A guest that is not ready by then makes the host look whether its KVM can run one at all.
const DOUBT_AFTER: Duration = Duration::from_millis(600);

/// How long a guest may take to power off after its process ended, before it is killed.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);

/// The container's process; others come with `exec`.
const FIRST: ProcessId = ProcessId(0);

/// What the process's standard streams are connected to.
#[derive(Debug, Default)]
pub struct Streams {
    /// `None`: the process reads `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// `None`: output is dropped.
    pub stdout: Option<OwnedFd>,
    /// `None`: output is dropped; always so with a terminal.
    pub stderr: Option<OwnedFd>,
}

/// What somebody outside wants of a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Send a signal; before the process started, end the run.
    Signal(u8),
    /// Resize the terminal.
    Resize(WindowSize),
    /// End the VM at once.
    Kill,
}

/// Where orders come from. Its descriptor is readable when there is one.
pub trait Orders: AsFd {
    /// The next order, without waiting.
    fn next(&mut self) -> Option<Order>;
}

/// How a container's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code, or 128 and the number of the signal that killed it.
    pub code: u8,
    /// The guest ran out of memory and killed a process of the container.
    pub oom_killed: bool,
}

/// A container ready to run.
#[derive(Debug)]
pub struct Run {
    /// Its machine.
    pub sandbox: SandboxConfig,
    /// What surrounds its process.
    pub setup: Setup,
    /// Its process.
    pub process: Process,
}

/// Runs `run` in `container` to its end.
///
/// # Errors
///
/// [`RunError`], which knows its exit code; the VM is gone then.
pub fn run(
    run: Run,
    container: &Container,
    streams: Streams,
    orders: &mut dyn Orders,
    timeline: &mut Timeline,
) -> Result<Outcome, RunError> {
    let log = run.sandbox.log.clone();
    let sandbox = Sandbox::start(&run.sandbox)?;
    timeline.spawned_ns = now_ns();
    let running = Status::Running {
        since: SystemTime::now(),
        vmm_pid: sandbox.vmm_pid(),
    };
    container.set_status(&running)?;
    let syncs = run.sandbox.disk.is_some();
    let mut session = Session::new(sandbox, streams, timeline)?;
    let result = session.serve(run, orders).and_then(|exit| {
        session.deliver_output(orders)?;
        if syncs {
            session.power_off()?;
        }
        Ok(exit)
    });
    drop(session);
    timeline.gone_ns = now_ns();
    result.map_err(|error| error.with_log(&log))
}

/// A sandbox, its agent, and the streams between.
struct Session<'a> {
    sandbox: Sandbox,
    agent: Option<AgentClient>,
    agent_connected: bool,
    unknown: Unknown,
    expected: Vec<(StreamToken, Stream)>,
    outputs: Vec<Output>,
    /// Closed by the last output.
    outputs_done: PipeReader,
    started: bool,
    /// Host clock minus guest clock in nanoseconds.
    clock_offset_ns: u64,
    stdio: Stdio,
    timeline: &'a mut Timeline,
}

/// One standard stream that is waiting for the guest's connection.
enum Stream {
    Input(OwnedFd),
    Output(OwnedFd, io::PipeWriter),
}

/// What [`Session::wait`] is to watch besides the sandbox, unknown connections and orders. What is ready and not
/// taken in would end every wait at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    Agent,
    Outputs,
    Nothing,
}

/// What [`Session::wait`] saw.
struct Ready {
    sandbox: bool,
    agent: bool,
    unknown: bool,
    orders: bool,
    outputs_done: bool,
}

impl<'a> Session<'a> {
    fn new(
        sandbox: Sandbox,
        streams: Streams,
        timeline: &'a mut Timeline,
    ) -> Result<Self, RunError> {
        let (outputs_done, done) = io::pipe().map_err(RunError::Streams)?;
        let mut expected = Vec::new();
        let mut expect = |stream: Option<Stream>| -> Result<Option<StreamToken>, RunError> {
            let Some(stream) = stream else {
                return Ok(None);
            };
            let token = stream::token().map_err(|error| RunError::Streams(error.into()))?;
            expected.push((token, stream));
            Ok(Some(token))
        };
        let output = |sink: Option<OwnedFd>| -> Result<Option<Stream>, RunError> {
            let Some(sink) = sink else { return Ok(None) };
            Ok(Some(Stream::Output(
                sink,
                done.try_clone().map_err(RunError::Streams)?,
            )))
        };
        let stdio = Stdio {
            stdin: expect(streams.stdin.map(Stream::Input))?,
            stdout: expect(output(streams.stdout)?)?,
            stderr: expect(output(streams.stderr)?)?,
        };
        Ok(Self {
            sandbox,
            agent: None,
            agent_connected: false,
            unknown: Unknown::default(),
            expected,
            outputs: Vec::new(),
            outputs_done,
            started: false,
            clock_offset_ns: 0,
            stdio,
            timeline,
        })
    }

    /// From boot to the end of the container's process.
    fn serve(&mut self, run: Run, orders: &mut dyn Orders) -> Result<Outcome, RunError> {
        let mut pending = Some((run.setup, run.process));
        let mut doubt = Some(Instant::now() + DOUBT_AFTER);
        loop {
            let deadline = doubt.filter(|_| pending.is_some());
            let Some(ready) = self.wait(Watch::Agent, Some(orders), deadline)? else {
                doubt = None;
                examine_kvm()?;
                continue;
            };
            if ready.orders {
                self.obey(orders)?;
            }
            // Before the sandbox: what the agent said last counts, even if the VM is gone by now.
            if ready.agent
                && let Some(outcome) = self.hear_agent(&mut pending)?
            {
                return Ok(outcome);
            }
            if ready.unknown {
                self.connect_streams()?;
            }
            if ready.sandbox
                && let Some(ending) = self.hear_sandbox()?
            {
                if pending.is_some() {
                    examine_kvm()?;
                }
                return Err(RunError::Ended {
                    ending,
                    log: String::new(),
                });
            }
        }
    }

    /// After the process's end: until the host has taken all of its output.
    fn deliver_output(&mut self, orders: &mut dyn Orders) -> Result<(), RunError> {
        // The agent connects a process's streams before it starts it, so by now each is at least
        // waiting to be read; what is not there when nothing waits any more, never comes.
        let mut settled = false;
        loop {
            let (watch, deadline) = match settled {
                false => (Watch::Nothing, Some(Instant::now())),
                true => (Watch::Outputs, None),
            };
            let Some(ready) = self.wait(watch, Some(orders), deadline)? else {
                settled = true;
                self.expected.clear();
                continue;
            };
            if ready.orders && orders.next() == Some(Order::Kill) {
                return Err(RunError::Killed);
            }
            if ready.unknown {
                self.connect_streams()?;
            }
            // The VM may end meanwhile; what it said is with the streams already.
            let ended = ready.sandbox && self.hear_sandbox()?.is_some();
            if ended || ready.outputs_done {
                break;
            }
        }
        self.expected.clear();
        for output in self.outputs.drain(..) {
            output.join().map_err(RunError::Streams)?;
        }
        Ok(())
    }

    /// Has the guest write everything to its disk and power off.
    fn power_off(&mut self) -> Result<(), RunError> {
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        agent.send(&HostMessage::PowerOff)?;
        let deadline = Instant::now() + POWER_OFF_LIMIT;
        loop {
            match self.wait(Watch::Agent, None, Some(deadline))? {
                None => return Err(RunError::PowerOff(POWER_OFF_LIMIT)),
                // Its agent has nothing more to say; that it hangs up is expected.
                Some(ready) if ready.agent => self.agent = None,
                Some(ready) if ready.sandbox => match self.hear_sandbox()? {
                    None => {}
                    Some(Ending::PowerOff) => return Ok(()),
                    Some(ending) => {
                        return Err(RunError::Ended {
                            ending,
                            log: String::new(),
                        });
                    }
                },
                Some(_) => {}
            }
        }
    }

    fn obey(&mut self, orders: &mut dyn Orders) -> Result<(), RunError> {
        let message = match orders.next() {
            None => return Ok(()),
            Some(Order::Kill) => return Err(RunError::Killed),
            Some(Order::Signal(signal)) if !self.started => {
                return Err(RunError::Interrupted { signal });
            }
            Some(Order::Signal(signal)) => HostMessage::Signal { id: FIRST, signal },
            Some(Order::Resize(_)) if !self.started => return Ok(()),
            Some(Order::Resize(size)) => HostMessage::Resize { id: FIRST, size },
        };
        match &mut self.agent {
            Some(agent) => Ok(agent.send(&message)?),
            None => Ok(()),
        }
    }

    fn hear_agent(
        &mut self,
        pending: &mut Option<(Setup, Process)>,
    ) -> Result<Option<Outcome>, RunError> {
        let Some(agent) = &mut self.agent else {
            return Ok(None);
        };
        let messages = match agent.receive() {
            Ok(messages) => messages,
            // The sandbox says why, presently.
            Err(AgentError::Closed) => {
                self.agent = None;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        for message in messages {
            match message {
                AgentMessage::Ready {
                    started_ns,
                    ready_ns,
                    ..
                } => {
                    let Some((setup, process)) = pending.take() else {
                        return Err(AgentError::Unexpected("Ready").into());
                    };
                    self.clock_offset_ns = now_ns().saturating_sub(ready_ns);
                    self.timeline.agent_ns = self.on_host(started_ns);
                    self.timeline.ready_ns = self.on_host(ready_ns);
                    self.order_start(setup, process)?;
                }
                AgentMessage::Started {
                    id: FIRST,
                    setup_ns,
                    exec_ns,
                } => {
                    self.started = true;
                    self.timeline.setup_ns = self.on_host(setup_ns);
                    self.timeline.exec_ns = self.on_host(exec_ns);
                }
                AgentMessage::StartFailed {
                    id: FIRST,
                    stage,
                    errno,
                    subject,
                } => {
                    return Err(RunError::start(stage, errno, subject));
                }
                AgentMessage::Exited {
                    id: FIRST,
                    exit,
                    oom_killed,
                } => {
                    self.timeline.exited_ns = now_ns();
                    let code = match exit {
                        Exit::Code(code) => code,
                        Exit::Signal(signal) => 128 + (signal & 0x7f),
                    };
                    return Ok(Some(Outcome { code, oom_killed }));
                }
                AgentMessage::Started { .. }
                | AgentMessage::StartFailed { .. }
                | AgentMessage::Exited { .. } => {
                    return Err(AgentError::Unexpected("news of another process").into());
                }
            }
        }
        Ok(None)
    }

    fn order_start(&mut self, setup: Setup, process: Process) -> Result<(), RunError> {
        let start = HostMessage::Start {
            id: FIRST,
            process: Box::new(process),
            stdio: self.stdio.clone(),
        };
        if let Some(agent) = &mut self.agent {
            agent.send(&HostMessage::Setup(setup))?;
            agent.send(&start)?;
        }
        Ok(())
    }

    /// A moment of the guest's clock on the host's, never after now: the guest only says so.
    fn on_host(&self, guest_ns: u64) -> u64 {
        self.clock_offset_ns.saturating_add(guest_ns).min(now_ns())
    }

    fn connect_streams(&mut self) -> Result<(), RunError> {
        for (token, connection) in self.unknown.identify() {
            // A connection that nobody asked for is dropped.
            if let Some(position) = self.expected.iter().position(|(known, _)| *known == token) {
                let (_, stream) = self.expected.swap_remove(position);
                self.connect(stream, connection)?;
            }
        }
        Ok(())
    }

    fn connect(&mut self, stream: Stream, connection: UnixStream) -> Result<(), RunError> {
        match stream {
            Stream::Input(input) => stream::carry_input(input, connection),
            Stream::Output(sink, done) => Output::carry(connection, File::from(sink), done)
                .map(|output| self.outputs.push(output)),
        }
        .map_err(RunError::Streams)
    }

    /// Takes in one event; returns the ending if it is that.
    fn hear_sandbox(&mut self) -> Result<Option<Ending>, RunError> {
        match self.sandbox.next_event()? {
            SandboxEvent::Running {
                process_started_ns,
                built_ns,
            } => {
                self.timeline.vmm_ns = process_started_ns;
                self.timeline.built_ns = built_ns;
            }
            SandboxEvent::Connected {
                port: protocol::STREAM_PORT,
                stream,
            } => {
                self.unknown.add(stream).map_err(RunError::Streams)?;
            }
            SandboxEvent::Connected {
                port: protocol::CONTROL_PORT,
                stream,
            } if !self.agent_connected => {
                self.agent_connected = true;
                self.agent = Some(AgentClient::new(stream)?);
            }
            // Only the first control connection is the agent's: it is there before any other program.
            SandboxEvent::Connected { .. } => {}
            SandboxEvent::Ended(ending) => return Ok(Some(ending)),
        }
        Ok(None)
    }

    /// Waits until something can be read; `None` past the deadline.
    fn wait(
        &self,
        watch: Watch,
        orders: Option<&mut dyn Orders>,
        deadline: Option<Instant>,
    ) -> Result<Option<Ready>, RunError> {
        let orders = orders.map(|orders| &*orders);
        let optional = [
            self.agent
                .as_ref()
                .filter(|_| watch == Watch::Agent)
                .map(AsFd::as_fd),
            Some(self.outputs_done.as_fd()).filter(|_| watch == Watch::Outputs),
            orders.map(|orders| orders.as_fd()),
        ];
        let descriptors = iter::once(self.sandbox.as_fd())
            .chain(optional.into_iter().flatten())
            .chain(self.unknown.descriptors());
        let mut watched: Vec<_> = descriptors
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up, so as not to spin through the last millisecond.
                let milliseconds = left.as_nanos().div_ceil(1_000_000);
                PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
            }
        };
        let count = loop {
            match poll(&mut watched, timeout) {
                Err(Errno::EINTR) => {}
                result => break result.map_err(|error| RunError::Streams(error.into()))?,
            }
        };
        if count == 0 {
            return Ok(None);
        }
        let mut ready = watched
            .iter()
            .map(|descriptor| descriptor.any().unwrap_or(true));
        let mut next = |watched: bool| watched && ready.next().unwrap_or(false);
        Ok(Some(Ready {
            sandbox: next(true),
            agent: next(optional[0].is_some()),
            outputs_done: next(optional[1].is_some()),
            orders: next(optional[2].is_some()),
            unknown: ready.any(|ready| ready),
        }))
    }
}

/// Looks whether this host's KVM can run a guest at all. One that is only slow, as on a host that is overloaded, may
/// yet come to it.
fn examine_kvm() -> Result<(), RunError> {
    match vmm::probe::probe(sandbox::open_kvm()?) {
        Ok(_) | Err(ProbeError::TooSlow { .. }) => Ok(()),
        Err(error) => Err(RunError::Kvm(error)),
    }
}
