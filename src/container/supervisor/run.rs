//! One run of a container's machine, from its boot to its end: what the machine, the agent, the commands and the clock
//! say, one thing at a time.

mod commands;
mod forward;
mod guest;
mod pause;
mod probe;
mod usage;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use protocol::{HostMessage, Process, ProcessId, Setup, StreamToken, files::FilesOrder};
use vmm::probe::ProbeError;

use super::{
    super::{
        error::{RunError, chain},
        session::{Channel, Outcome},
        status::{Running, Status},
        timeline::now_ns,
        volumes,
    },
    Stopped, Supervisor,
    exec::Execs,
    health::Prober,
    streams::End,
};
use crate::{
    agent_client::{AgentClient, AgentError, stream::Unknown},
    deadline::timeout,
    image::store::Image,
    network::Attachment,
    sandbox::{self, Sandbox, SandboxConfig, SandboxError},
    volume::Filling,
};

use forward::Forwarding;
use usage::Questions;

/// A guest that is not ready by then makes the host look whether its KVM can run one at all.
const DOUBT_AFTER: Duration = Duration::from_millis(600);

/// How long a guest may take to report the end of a process that was killed, and to power off, before it is ended.
const GUEST_LIMIT: Duration = Duration::from_secs(10);

/// Signals that end a process which does nothing about them, and are sent for that: HUP, INT, QUIT, KILL, TERM.
const ENDING: [u8; 5] = [1, 2, 3, 9, 15];

/// The container's process.
const FIRST: ProcessId = ProcessId(0);

/// All that a run needs.
#[derive(Debug)]
pub struct Plan {
    /// Its machine.
    pub sandbox: SandboxConfig,
    /// What its network devices are linked to.
    pub links: Vec<OwnedFd>,
    /// Kept as long as it runs.
    pub attachment: Option<Attachment>,
    /// What surrounds its process.
    pub setup: Setup,
    /// Its process.
    pub process: Process,
    /// Volumes that the agent fills first.
    pub filling: Vec<Filling>,
    /// Kept in the store meanwhile.
    pub image: Image,
}

/// One run.
pub struct Run<'a> {
    supervisor: &'a mut Supervisor,
    sandbox: Sandbox,
    agent: Option<AgentClient>,
    agent_connected: bool,
    unknown: Unknown,
    expected: Vec<(StreamToken, ProcessId, Channel)>,
    forwarding: Forwarding,
    execs: Execs,
    prober: Option<Prober>,
    paused: bool,
    questions: Questions,
    /// What the machine was started with.
    booted: Booted,
    /// Work on files that was asked for before the container ran.
    early_files: Vec<(u32, FilesOrder)>,
    phase: Phase,
    /// When a container that shall end is killed, and when its machine is ended.
    kill_at: Option<Instant>,
    end_at: Option<Instant>,
    /// Host clock minus guest clock in nanoseconds.
    clock_offset_ns: u64,
    /// Whether what the guest wrote must reach a disk.
    syncs: bool,
    /// The machine has ended.
    gone: bool,
    /// The guest has written everything to its disk.
    powered_off: bool,
    filling: Vec<Filling>,
    attachment: Option<Attachment>,
    _image: Image,
}

/// The size of a machine, which does not change while it runs.
#[derive(Debug, Clone, Copy)]
struct Booted {
    vcpus: u8,
    memory_bytes: u64,
}

/// How far it is.
enum Phase {
    /// The agent has not come up.
    Booting {
        start: Box<(Setup, Process)>,
        doubt: Option<Instant>,
    },
    /// The agent fills new volumes; what it is told when it has.
    Filling(Box<HostMessage>),
    /// The agent knows what to do.
    Starting,
    /// The container's process is executed.
    Running,
    /// It has ended, and there may be output of it under way.
    Draining(Outcome),
    /// The guest writes everything to its disk and powers off.
    PoweringOff(Outcome),
    /// All is done.
    Over(Outcome),
}

/// Something that is waited for.
#[derive(Debug, Clone, Copy)]
enum Source {
    Sandbox,
    Shares,
    Agent,
    Unknown,
    Switch(usize),
    Rules,
    Wanted,
    Forwarded,
    Signals,
    Listener,
    Client(u32),
    Stream(End),
    Unread(ProcessId),
    Probe,
}

impl<'a> Run<'a> {
    /// Starts the machine and writes down that it runs.
    ///
    /// # Errors
    ///
    /// [`RunError`]; nothing runs then.
    pub fn start(plan: Plan, supervisor: &'a mut Supervisor) -> Result<Self, RunError> {
        let Plan {
            sandbox: config,
            links,
            attachment,
            setup,
            process,
            filling,
            image,
        } = plan;
        let syncs = config.disk.is_some();
        let sandbox = Sandbox::start(&config, links)?;
        supervisor.timeline.spawned_ns = now_ns();
        supervisor.container.set_status(&Status::Running(Running {
            since: SystemTime::now(),
            supervisor_pid: std::process::id(),
            vmm_pid: sandbox.vmm_pid(),
            restarts: supervisor.restarts,
            paused: false,
        }))?;
        let prober = supervisor.container.spec().health.clone().map(Prober::new);
        Ok(Self {
            supervisor,
            sandbox,
            agent: None,
            agent_connected: false,
            unknown: Unknown::default(),
            expected: Vec::new(),
            forwarding: Forwarding::default(),
            execs: Execs::default(),
            prober,
            paused: false,
            questions: Questions::default(),
            booted: Booted {
                vcpus: config.vcpus,
                memory_bytes: config.memory_bytes,
            },
            early_files: Vec::new(),
            phase: Phase::Booting {
                start: Box::new((setup, process)),
                doubt: Some(Instant::now() + DOUBT_AFTER),
            },
            kill_at: None,
            end_at: None,
            clock_offset_ns: 0,
            syncs,
            gone: false,
            powered_off: false,
            filling,
            attachment,
            _image: image,
        })
    }

    /// Writes down what becomes of its volumes.
    pub fn record_mounts(&self, action: &str) {
        let supervisor = &*self.supervisor;
        let spec = supervisor.container.spec();
        volumes::record_mounts(supervisor.containers.events(), spec, action);
    }

    /// Until its end.
    ///
    /// # Errors
    ///
    /// [`RunError`], which knows its exit code.
    pub fn serve(&mut self) -> Result<Outcome, RunError> {
        let log = self.supervisor.container.folder().join(super::LOG);
        loop {
            match self.turn() {
                Ok(()) => {}
                Err(error) => return Err(error.with_log(&log)),
            }
            if let Phase::Over(outcome) = self.phase {
                return Ok(outcome);
            }
        }
    }

    /// Ends the machine for good: nothing of it touches its disk any more when this returns.
    pub fn finish(mut self) {
        if self.syncs && !self.powered_off {
            self.sandbox.end();
        }
    }

    fn turn(&mut self) -> Result<(), RunError> {
        let deadline = self.deadline();
        let ready = self.wait(deadline)?;
        for (source, flags) in &ready {
            match source {
                // Last: what the agent said before counts, even if the machine is gone by now.
                Source::Sandbox => {}
                Source::Shares => self.hear_shares()?,
                Source::Agent => self.hear_agent()?,
                Source::Unknown => self.connect_streams()?,
                Source::Switch(number) => self.hear_switch(*number)?,
                Source::Rules => self.attachment.iter_mut().for_each(Attachment::hear_rules),
                Source::Wanted => self.ask_for_connections()?,
                Source::Forwarded => self.forwarding.connect(),
                Source::Signals => self.hear_signal()?,
                Source::Listener => self.supervisor.accept(),
                Source::Client(id) => self.hear_client(*id)?,
                Source::Stream(end) => self.supervisor.streams.handle(*end, *flags),
                Source::Unread(id) => self.execs.discard(*id),
                Source::Probe => self.prober.iter_mut().for_each(Prober::read),
            }
        }
        let from_sandbox = |source: &Source| matches!(source, Source::Sandbox);
        if ready.iter().any(|(source, _)| from_sandbox(source)) {
            self.hear_sandbox()?;
        }
        self.look_at_the_clock()?;
        self.go_on(ready.is_empty())
    }

    /// From the end of the process to the end of the machine.
    fn go_on(&mut self, idle: bool) -> Result<(), RunError> {
        if let Phase::Draining(outcome) = self.phase {
            // The agent connects a process's streams before it starts it, so by now each is at least waiting to
            // be read; what is not there when nothing waits any more, never comes.
            if idle {
                self.supervisor.streams.give_up_expected();
            }
            if !self.supervisor.streams.outputs_ended() {
                return Ok(());
            }
            if self.syncs && !self.gone {
                self.tell_agent(&HostMessage::PowerOff)?;
                self.end_at = Some(Instant::now() + GUEST_LIMIT);
                self.phase = Phase::PoweringOff(outcome);
            } else {
                self.phase = Phase::Over(outcome);
            }
        }
        Ok(())
    }

    /// When to look at the clock.
    fn deadline(&self) -> Option<Instant> {
        let doubt = match &self.phase {
            Phase::Booting { doubt, .. } => *doubt,
            // Once, without waiting: see `go_on`.
            Phase::Draining(_) if self.supervisor.streams.is_expecting() => Some(Instant::now()),
            _ => None,
        };
        [
            doubt,
            self.kill_at,
            self.end_at,
            self.execs.deadline(),
            self.prober.as_ref().and_then(Prober::deadline),
            self.questions.deadline(),
            self.attachment.as_ref().and_then(Attachment::rules_due),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn look_at_the_clock(&mut self) -> Result<(), RunError> {
        let now = Instant::now();
        let passed = |moment: Option<Instant>| moment.is_some_and(|moment| moment <= now);
        if let Phase::Booting { doubt, .. } = &mut self.phase
            && passed(*doubt)
        {
            *doubt = None;
            examine_kvm()?;
        }
        if passed(self.end_at) {
            return Err(match self.phase {
                Phase::PoweringOff(_) => RunError::PowerOff(GUEST_LIMIT),
                Phase::Draining(_) => RunError::Silent,
                _ => RunError::Killed,
            });
        }
        if passed(self.kill_at) {
            self.kill_at = None;
            self.signal(9)?;
        }
        self.look_after_rules(now);
        self.give_up_answers(now);
        self.look_after_health(now)?;
        for id in self.execs.overdue(now) {
            self.fail_exec(id, "the guest agent does not answer", 125);
        }
        Ok(())
    }

    /// Waits for something to happen; what is ready, or nothing past the deadline.
    fn wait(&self, deadline: Option<Instant>) -> Result<Vec<(Source, PollFlags)>, RunError> {
        let supervisor = &*self.supervisor;
        let read = PollFlags::POLLIN;
        let mut watched: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![
            (Source::Signals, supervisor.signals.as_fd(), read),
            (Source::Listener, supervisor.listener.as_fd(), read),
        ];
        if !self.gone {
            watched.push((Source::Sandbox, self.sandbox.as_fd(), read));
        }
        watched.extend(
            self.sandbox
                .shares_fd()
                .map(|shares| (Source::Shares, shares, read)),
        );
        watched.extend(
            self.agent
                .iter()
                .map(|agent| (Source::Agent, agent.as_fd(), read)),
        );
        watched.extend(
            self.unknown
                .descriptors()
                .map(|connection| (Source::Unknown, connection, read)),
        );
        let switches = self.attachment.iter().flat_map(Attachment::switches);
        let switches = switches.enumerate();
        watched.extend(switches.map(|(number, switch)| (Source::Switch(number), switch, read)));
        let rules = self.attachment.iter().filter_map(Attachment::rules);
        watched.extend(rules.map(|notices| (Source::Rules, notices, read)));
        let wanted = self.attachment.iter().filter_map(Attachment::wanted);
        watched.extend(wanted.map(|queue| (Source::Wanted, queue, read)));
        let forwarded = self.forwarding.descriptors();
        watched.extend(forwarded.map(|connection| (Source::Forwarded, connection, read)));
        watched.extend(
            supervisor
                .clients
                .sessions()
                .map(|(id, session)| (Source::Client(id), session, read)),
        );
        watched.extend(
            supervisor
                .streams
                .watched()
                .map(|(end, descriptor, flags)| (Source::Stream(end), descriptor, flags)),
        );
        watched.extend(
            self.execs
                .unread()
                .map(|(id, stream)| (Source::Unread(id), stream, read)),
        );
        let probe = self.prober.iter().flat_map(Prober::streams);
        watched.extend(probe.map(|stream| (Source::Probe, stream, read)));
        let mut descriptors: Vec<PollFd<'_>> = watched
            .iter()
            .map(|(_, descriptor, flags)| PollFd::new(*descriptor, *flags))
            .collect();
        match poll(&mut descriptors, timeout(deadline)) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(RunError::Streams(error.into())),
        }
        let ready = watched.iter().zip(&descriptors);
        Ok(ready
            .map(|((source, ..), descriptor)| (*source, descriptor.revents()))
            .map(|(source, flags)| (source, flags.unwrap_or(PollFlags::POLLERR)))
            .filter(|(_, flags)| !flags.is_empty())
            .collect())
    }

    /// Without its folders a container is not what it was: it ends, and says why.
    fn hear_shares(&mut self) -> Result<(), RunError> {
        match self.sandbox.shares() {
            Some(shares) => Ok(shares.hear().map_err(SandboxError::from)?),
            None => Ok(()),
        }
    }

    /// A container that was on a network and is no more ends in the same way.
    fn hear_switch(&self, number: usize) -> Result<(), RunError> {
        match &self.attachment {
            Some(attachment) => Ok(attachment.hear_switch(number)?),
            None => Ok(()),
        }
    }

    /// Rules that cannot be put back now may be with the next change to them: until then the container goes on.
    fn look_after_rules(&mut self, now: Instant) {
        if let Some(attachment) = &mut self.attachment
            && let Err(error) = attachment.look_after_rules(now)
        {
            eprintln!("supervisor: {}", chain(&error));
        }
    }

    fn hear_signal(&mut self) -> Result<(), RunError> {
        // An error means that there is nothing to read after all.
        match self.supervisor.signals.read_signal() {
            Ok(Some(_)) => {
                self.supervisor.stopped.get_or_insert(Stopped::WithHost);
                self.stop(None, None)
            }
            _ => Ok(()),
        }
    }

    /// Begins to end the container.
    fn stop(&mut self, signal: Option<u8>, timeout: Option<i64>) -> Result<(), RunError> {
        let stop = self.supervisor.container.spec().stop;
        let seconds = u64::try_from(timeout.unwrap_or(stop.timeout)).ok();
        let signal = signal.unwrap_or(stop.signal);
        if matches!(
            self.phase,
            Phase::Booting { .. } | Phase::Filling(_) | Phase::Starting
        ) {
            return Err(RunError::Interrupted { signal });
        }
        self.signal(signal)?;
        if self.end_at.is_none() {
            let kill_at = seconds
                .and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
            self.kill_at = match (self.kill_at, kill_at) {
                (Some(before), Some(now)) => Some(before.min(now)),
                (before, now) => before.or(now),
            };
        }
        Ok(())
    }

    /// Sends the container's process a signal.
    fn signal(&mut self, signal: u8) -> Result<(), RunError> {
        match self.phase {
            // One that would not end a process by itself has nobody yet to be handled by.
            Phase::Booting { .. } | Phase::Filling(_) | Phase::Starting
                if ENDING.contains(&signal) =>
            {
                Err(RunError::Interrupted { signal })
            }
            Phase::Running => {
                self.wake()?;
                let name = [("signal", signal.to_string())];
                self.supervisor.record("kill", &name);
                if signal == 9 && self.end_at.is_none() {
                    self.end_at = Some(Instant::now() + GUEST_LIMIT);
                }
                self.tell_agent(&HostMessage::Signal { id: FIRST, signal })
            }
            _ => Ok(()),
        }
    }

    fn tell_agent(&mut self, message: &HostMessage) -> Result<(), RunError> {
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        match agent.send(message) {
            // The sandbox says why, presently.
            Err(AgentError::Closed) => {
                self.agent = None;
                Ok(())
            }
            sent => Ok(sent?),
        }
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
