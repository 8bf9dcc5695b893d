//! The event loop: everything that the host asks for and everything that happens in the container
//! comes through here, one event at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use protocol::{
    AgentMessage, HostMessage, PROTOCOL_VERSION, Process as ProcessConfig, ProcessId, ProcessList,
    StartStage, Stdio, StreamToken, Transport, files::FilesOrder, frame::FrameError,
};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    io::Errno,
    process::{WaitOptions, wait},
};

use crate::{
    control::Control,
    failure::{At, Failure},
    forward::Forwards,
    now_ns, power,
    process::{Channel, Process, Streams},
    sandbox::{Base, Sandbox},
    spawn::Spawn,
    stream::{self, Progress},
    sys,
    transfer::Transfer,
    usage,
};

/// Events taken from the kernel at once.
const BATCH: usize = 32;

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No way to the host.
    #[error("cannot connect to the host")]
    Connect(#[source] io::Error),
    /// The control connection broke, or carried what is no message.
    #[error("control connection failed")]
    Control(#[from] FrameError),
    /// A descriptor cannot be waited for.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
    /// The container is prepared once.
    #[error("the host sent a second Setup")]
    SecondSetup,
}

/// What an event is about; fits into epoll's 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Control,
    Names,
    Forwards,
    End(ProcessId),
    Report(ProcessId),
    /// A stream, and whether it is the side that is written to.
    Stream(ProcessId, Channel, bool),
}

impl Subject {
    fn encode(self) -> EventData {
        let (ProcessId(id), kind) = match self {
            Self::Control => (ProcessId(0), 0),
            Self::Names => (ProcessId(0), 9),
            Self::Forwards => (ProcessId(0), 10),
            Self::End(id) => (id, 1),
            Self::Report(id) => (id, 2),
            Self::Stream(id, channel, sink) => (id, 3 + 2 * channel as u64 + u64::from(sink)),
        };
        EventData::new_u64(u64::from(id) << 8 | kind)
    }

    fn decode(data: EventData) -> Self {
        let bits = data.u64();
        let [kind, ..] = bits.to_le_bytes();
        let id = ProcessId((bits >> 8) as u32);
        match kind {
            0 => Self::Control,
            1 => Self::End(id),
            2 => Self::Report(id),
            3 | 4 => Self::Stream(id, Channel::Stdin, kind == 4),
            5 | 6 => Self::Stream(id, Channel::Stdout, kind == 6),
            7 | 8 => Self::Stream(id, Channel::Stderr, kind == 8),
            9 => Self::Names,
            _ => Self::Forwards,
        }
    }
}

/// How far the container is.
enum Stage {
    /// The host has not said which one.
    Waiting(Result<Base, Failure>),
    Prepared(Box<Sandbox>),
    /// It cannot be; every start is answered with this.
    Failed(Failure),
}

/// All state of the agent.
struct Agent {
    epoll: OwnedFd,
    control: Control,
    stage: Stage,
    processes: BTreeMap<ProcessId, Process>,
    /// The first one ever started.
    container: Option<ProcessId>,
    /// Work on files that the container stands still for.
    pausing: BTreeSet<ProcessId>,
    /// Once the host has asked for one.
    forwards: Option<Forwards>,
    /// For whatever is read.
    buffer: Vec<u8>,
}

/// Serves the host until it asks for the end, or closes the control connection; after that nothing
/// runs in the container, and its disk is clean.
///
/// # Errors
///
/// What the agent cannot do its work without.
pub fn run(started_ns: u64) -> Result<(), AgentError> {
    let mut control = Control::connect().map_err(AgentError::Connect)?;
    // While the host answers.
    let base = Base::prepare();
    control.wait_connected().map_err(AgentError::Connect)?;
    let epoll =
        epoll::create(CreateFlags::CLOEXEC).map_err(|error| AgentError::Wait(error.into()))?;
    let mut agent = Agent {
        epoll,
        control,
        stage: Stage::Waiting(base),
        processes: BTreeMap::new(),
        container: None,
        pausing: BTreeSet::new(),
        forwards: None,
        buffer: vec![0; stream::BUFFER],
    };
    agent.watch(
        agent.control.socket(),
        Subject::Control,
        EventFlags::IN | EventFlags::OUT | EventFlags::ET,
    )?;
    let ready = AgentMessage::Ready {
        protocol_version: PROTOCOL_VERSION,
        started_ns,
        ready_ns: now_ns(),
    };
    agent.control.send(&ready)?;
    let result = agent.serve();
    agent.shut_down();
    result
}

impl Agent {
    fn watch(
        &self,
        fd: BorrowedFd<'_>,
        subject: Subject,
        flags: EventFlags,
    ) -> Result<(), AgentError> {
        let added = epoll::add(&self.epoll, fd, subject.encode(), flags);
        added.map_err(|error| AgentError::Wait(error.into()))
    }

    fn serve(&mut self) -> Result<(), AgentError> {
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(AgentError::Wait(error.into())),
            }
            for event in &events {
                let goes_on = self.handle(Subject::decode(event.data), event.flags)?;
                if !goes_on {
                    return Ok(());
                }
            }
        }
    }

    /// One event; `false` when it was the last.
    fn handle(&mut self, subject: Subject, flags: EventFlags) -> Result<bool, AgentError> {
        match subject {
            Subject::Control => {
                self.control.flush()?;
                while let Some(message) = self.control.receive(&mut self.buffer)? {
                    if message == HostMessage::PowerOff {
                        return Ok(false);
                    }
                    self.obey(message)?;
                }
                return Ok(!self.control.at_end());
            }
            Subject::Names => {
                if let Stage::Prepared(sandbox) = &mut self.stage
                    && let Some(names) = &mut sandbox.names
                {
                    names.serve(&mut self.buffer);
                }
            }
            Subject::Forwards => {
                if let Some(forwards) = &mut self.forwards {
                    forwards.serve(&mut self.buffer);
                }
            }
            Subject::Report(id) => {
                let message = self.processes.get_mut(&id).and_then(Process::read_report);
                if let Some(message) = message {
                    self.control.send(&message)?;
                }
                self.finish(id)?;
            }
            Subject::End(id) => {
                let Some(process) = self.processes.get_mut(&id) else {
                    return Ok(true);
                };
                process.reap().map_err(AgentError::Wait)?;
                for channel in Channel::ALL {
                    self.advance(id, channel)?;
                }
                self.finish(id)?;
            }
            Subject::Stream(id, channel, sink) => {
                let gone =
                    flags.contains(EventFlags::ERR) || sink && flags.contains(EventFlags::HUP);
                if gone {
                    // The host never took the connection or has reset it, or nobody reads any more.
                    if let Some(process) = self.processes.get_mut(&id) {
                        process.streams.close(channel);
                    }
                } else {
                    self.advance(id, channel)?;
                }
                self.finish(id)?;
            }
        }
        Ok(true)
    }

    fn obey(&mut self, message: HostMessage) -> Result<(), AgentError> {
        match message {
            HostMessage::Setup(setup) => {
                let later = Failure::refused(StartStage::Rootfs, "Setup");
                let Stage::Waiting(base) = mem::replace(&mut self.stage, Stage::Failed(later))
                else {
                    return Err(AgentError::SecondSetup);
                };
                let must_fill = setup.mounts.iter().any(|mount| mount.fill);
                self.stage = match base.and_then(|base| Sandbox::prepare(base, *setup)) {
                    Ok(sandbox) => Stage::Prepared(Box::new(sandbox)),
                    Err(failure) => Stage::Failed(failure),
                };
                if let Stage::Prepared(sandbox) = &self.stage
                    && let Some(names) = &sandbox.names
                {
                    self.watch(names.as_fd(), Subject::Names, EventFlags::IN)?;
                }
                if must_fill {
                    let told = match &self.stage {
                        Stage::Failed(failure) => failure.clone().into_fill_failed(),
                        _ => AgentMessage::Filled,
                    };
                    self.control.send(&told)?;
                }
            }
            HostMessage::Start { id, process, stdio } => match self.start(id, &process, &stdio) {
                Ok(process) => {
                    self.container.get_or_insert(id);
                    self.admit(id, process)?;
                }
                Err(failure) => self.control.send(&failure.into_message(id))?,
            },
            HostMessage::Signal { id, signal } => {
                if let Some(process) = self.processes.get(&id) {
                    // One that has ended is no error, and a number that is no signal does nothing.
                    let _ = sys::send_signal(process.pidfd(), signal);
                }
            }
            HostMessage::Resize { id, size } => {
                if let Some(process) = self.processes.get(&id) {
                    process.resize(size);
                }
            }
            HostMessage::Limit(limits) => {
                // What the kernel refuses stays as it was; the host's own limits hold.
                if let Stage::Prepared(sandbox) = &self.stage {
                    let _ = sandbox.cgroup().limit(&limits);
                }
            }
            HostMessage::Measure => {
                let usage = match &self.stage {
                    Stage::Prepared(sandbox) => usage::measure(sandbox.cgroup()).ok(),
                    _ => None,
                };
                self.control.send(&AgentMessage::Usage(usage))?;
            }
            HostMessage::ListProcesses => {
                let none = ProcessList {
                    at_ticks: 0,
                    processes: Vec::new(),
                };
                let list = usage::processes().unwrap_or(none);
                self.control.send(&AgentMessage::Processes(list))?;
            }
            HostMessage::Files { id, order, stream } => match self.transfer(id, &order, stream) {
                Ok(process) => self.admit(id, process)?,
                Err(failure) => self.control.send(&failure.into_message(id))?,
            },
            HostMessage::Forward {
                transport,
                to,
                stream,
            } => self.forward(transport, to, stream)?,
            // Told apart by the caller.
            HostMessage::PowerOff => {}
        }
        Ok(())
    }

    /// Connects the host with a port.
    fn forward(
        &mut self,
        transport: Transport,
        to: SocketAddr,
        stream: StreamToken,
    ) -> Result<(), AgentError> {
        if self.forwards.is_none() {
            let forwards = Forwards::new().map_err(AgentError::Wait)?;
            self.watch(forwards.as_fd(), Subject::Forwards, EventFlags::IN)?;
            self.forwards = Some(forwards);
        }
        if let Some(forwards) = &mut self.forwards {
            forwards.add(transport, to, stream);
        }
        Ok(())
    }

    /// Forks a process: the container's first one, or one that joins it.
    fn start(
        &self,
        id: ProcessId,
        process: &ProcessConfig,
        stdio: &Stdio,
    ) -> Result<Process, Failure> {
        let sandbox = self.sandbox()?;
        let container = self.running()?;
        let (streams, stdio) = Streams::open(stdio, process, sandbox)?;
        let spawned = Spawn {
            id,
            process,
            stdio,
            sandbox,
            container,
        }
        .start()?;
        Ok(Process::new(id, spawned, streams))
    }

    /// Forks a process that does something with the container's files.
    fn transfer(
        &mut self,
        id: ProcessId,
        order: &FilesOrder,
        token: StreamToken,
    ) -> Result<Process, Failure> {
        let sandbox = self.sandbox()?;
        let transfer = Transfer {
            id,
            order,
            token,
            sandbox,
            container: self.running()?,
        };
        let pauses = transfer.pauses();
        if pauses {
            let paused = sandbox.cgroup().freeze(true);
            paused.at(StartStage::Fork, "pause")?;
        }
        let spawned = transfer.start();
        if pauses {
            self.pausing.insert(id);
            if spawned.is_err() {
                self.go_on_without(id);
            }
        }
        Ok(Process::new(id, spawned?, Streams::default()))
    }

    /// The container goes on, once nobody wants it to stand still any more.
    fn go_on_without(&mut self, id: ProcessId) {
        if self.pausing.remove(&id)
            && self.pausing.is_empty()
            && let Stage::Prepared(sandbox) = &self.stage
            && let Err(error) = sandbox.cgroup().freeze(false)
        {
            power::report("cannot let the container go on", &error);
        }
    }

    fn sandbox(&self) -> Result<&Sandbox, Failure> {
        match &self.stage {
            Stage::Prepared(sandbox) => Ok(sandbox),
            Stage::Waiting(_) => Err(Failure::refused(StartStage::Rootfs, "Setup")),
            Stage::Failed(failure) => Err(failure.clone()),
        }
    }

    /// The container's first process; `None` before there is one.
    fn running(&self) -> Result<Option<BorrowedFd<'_>>, Failure> {
        let Some(first) = self.container else {
            return Ok(None);
        };
        let first = self
            .processes
            .get(&first)
            .filter(|first| first.is_running());
        let first = first.ok_or_else(|| Failure {
            stage: StartStage::Fork,
            errno: libc::ESRCH,
            subject: "container".to_owned(),
        })?;
        Ok(Some(first.pidfd()))
    }

    /// Waits for everything of a process that was just forked.
    fn admit(&mut self, id: ProcessId, mut process: Process) -> Result<(), AgentError> {
        let both = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        self.watch(
            process.pidfd(),
            Subject::End(id),
            EventFlags::IN | EventFlags::ET,
        )?;
        if let Some(report) = process.report() {
            self.watch(report, Subject::Report(id), EventFlags::IN)?;
        }
        for channel in Channel::ALL {
            if let Some(stream) = process.streams.get(channel) {
                let to_host = stream.writes_to_host();
                self.watch(stream.local(), Subject::Stream(id, channel, !to_host), both)?;
                if let Some(host) = stream.host() {
                    self.watch(host, Subject::Stream(id, channel, to_host), both)?;
                }
            }
        }
        self.processes.insert(id, process);
        Ok(())
    }

    fn advance(&mut self, id: ProcessId, channel: Channel) -> Result<(), AgentError> {
        let Some(process) = self.processes.get_mut(&id) else {
            return Ok(());
        };
        let Some(stream) = process.streams.get(channel) else {
            return Ok(());
        };
        match stream.advance(&mut self.buffer) {
            Progress::Waiting => {}
            Progress::Ended => process.streams.close(channel),
            Progress::Unfinished => {
                // Arming it again makes the kernel look again, after the events of others.
                let data = Subject::Stream(id, channel, !stream.writes_to_host()).encode();
                let both = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                let armed = epoll::modify(&self.epoll, stream.local(), data, both);
                armed.map_err(|error| AgentError::Wait(error.into()))?;
            }
        }
        Ok(())
    }

    /// Reports a process of which nothing is outstanding any more, and forgets it.
    fn finish(&mut self, id: ProcessId) -> Result<(), AgentError> {
        let Some(process) = self.processes.get(&id) else {
            return Ok(());
        };
        let Some(exit) = process.ended() else {
            return Ok(());
        };
        let failed = process.failed();
        self.processes.remove(&id);
        self.go_on_without(id);
        if failed {
            return Ok(());
        }
        let oom_killed = match &self.stage {
            Stage::Prepared(sandbox) => sandbox.cgroup().oom_killed(),
            _ => false,
        };
        Ok(self.control.send(&AgentMessage::Exited {
            id,
            exit,
            oom_killed,
        })?)
    }

    /// Ends what runs and leaves the disk clean.
    fn shut_down(&mut self) {
        let Stage::Prepared(sandbox) = &self.stage else {
            return;
        };
        if !sandbox.rootfs.is_durable() {
            return;
        }
        for process in self.processes.values() {
            // With its first process the whole container ends.
            let _ = sys::send_signal(process.pidfd(), libc::SIGKILL as u8);
        }
        // All that are left are children of the agent; no more children is the end of it.
        while wait(WaitOptions::empty()).is_ok() {}
        if let Err(error) = sandbox.rootfs.make_read_only() {
            power::report("the disk may not be clean", &error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_survives_the_kernel() {
        let id = ProcessId(u32::MAX);
        let mut subjects = vec![
            Subject::Control,
            Subject::Names,
            Subject::Forwards,
            Subject::End(id),
            Subject::Report(id),
        ];
        for channel in Channel::ALL {
            subjects.extend([
                Subject::Stream(id, channel, false),
                Subject::Stream(id, channel, true),
            ]);
        }
        for subject in subjects {
            assert_eq!(Subject::decode(subject.encode()), subject);
        }
    }
}
