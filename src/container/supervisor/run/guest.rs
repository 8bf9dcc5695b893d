//! What the machine and the agent say.

use protocol::{AgentMessage, Exit, HostMessage, ProcessId, Stdio};
use vmm::Ending;

use super::{
    super::super::{
        error::RunError,
        log::Stream,
        session::{Channel, Outcome, Reply},
        timeline::now_ns,
    },
    super::health::Prober,
    FIRST, GUEST_LIMIT, Phase, Run, examine_kvm,
};
use crate::{
    agent_client::{AgentClient, AgentError, stream},
    network::names::Transport,
    sandbox::SandboxEvent,
};
use std::{os::unix::net::UnixStream, time::Instant};

impl Run<'_> {
    pub(super) fn hear_agent(&mut self) -> Result<(), RunError> {
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        let messages = match agent.receive() {
            Ok(messages) => messages,
            // The sandbox says why, presently.
            Err(AgentError::Closed) => {
                self.agent = None;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for message in messages {
            self.take_in(message)?;
        }
        Ok(())
    }

    pub(super) fn take_in(&mut self, message: AgentMessage) -> Result<(), RunError> {
        match message {
            AgentMessage::Ready {
                started_ns,
                ready_ns,
                ..
            } => self.start_container(started_ns, ready_ns),
            AgentMessage::Filled => self.start_filled(),
            AgentMessage::FillFailed {
                stage,
                errno,
                subject,
            } => Err(RunError::fill(stage, errno, subject)),
            AgentMessage::Started {
                id: FIRST,
                setup_ns,
                exec_ns,
            } => {
                self.phase = Phase::Running;
                self.supervisor.timeline.setup_ns = self.on_host(setup_ns);
                self.supervisor.timeline.exec_ns = self.on_host(exec_ns);
                self.supervisor.record("start", &[]);
                self.begin_health();
                self.supervisor.clients.tell_started();
                for (client, order) in std::mem::take(&mut self.early_files) {
                    self.work_on_files(client, order)?;
                }
                Ok(())
            }
            AgentMessage::StartFailed {
                id: FIRST,
                stage,
                errno,
                subject,
            } => Err(RunError::start(stage, errno, subject)),
            AgentMessage::Exited {
                id: FIRST,
                exit,
                oom_killed,
            } => {
                self.supervisor.timeline.exited_ns = now_ns();
                self.supervisor.streams.drain();
                self.prober.iter_mut().for_each(Prober::stop);
                self.kill_at = None;
                // An agent that has more to send than it may have is none of ours.
                self.end_at = Some(Instant::now() + GUEST_LIMIT);
                self.phase = Phase::Draining(self.outcome(exit, oom_killed));
                Ok(())
            }
            AgentMessage::Usage(usage) => {
                self.hear_usage(usage);
                Ok(())
            }
            AgentMessage::Processes(list) => {
                self.hear_processes(list);
                Ok(())
            }
            AgentMessage::Started { id, .. } if self.is_probe(id) => Ok(()),
            AgentMessage::StartFailed {
                id,
                stage,
                errno,
                subject,
            } if self.is_probe(id) => {
                let error = RunError::start(stage, errno, subject);
                self.finish_probe(id, |prober| prober.fail(&error.to_string()));
                Ok(())
            }
            AgentMessage::Exited {
                id,
                exit,
                oom_killed,
            } if self.is_probe(id) => {
                self.hear_sandbox_now()?;
                self.connect_streams()?;
                let code = self.outcome(exit, oom_killed).code;
                self.finish_probe(id, |prober| prober.end(code.into()));
                Ok(())
            }
            AgentMessage::Started { id, .. } => {
                self.record_exec(id, "exec_start", &[]);
                self.execs.started(id);
                self.reply_to_exec(id, &Reply::Started);
                Ok(())
            }
            AgentMessage::StartFailed {
                id,
                stage,
                errno,
                subject,
            } => {
                let error = RunError::start(stage, errno, subject);
                self.fail_exec(id, &error.to_string(), error.exit_code());
                Ok(())
            }
            AgentMessage::Exited {
                id,
                exit,
                oom_killed,
            } => {
                // Its connections came before this, and their tokens with them.
                self.hear_sandbox_now()?;
                self.connect_streams()?;
                let outcome = self.outcome(exit, oom_killed);
                self.record_exec(id, "exec_die", &[("exitCode", outcome.code.to_string())]);
                self.reply_to_exec(id, &Reply::Exited(outcome));
                self.forget_exec(id);
                Ok(())
            }
        }
    }

    pub(super) fn outcome(&self, exit: Exit, oom_killed: bool) -> Outcome {
        Outcome {
            code: match exit {
                Exit::Code(code) => code,
                Exit::Signal(signal) => 128 + (signal & 0x7f),
            },
            oom_killed,
            timeline: self.supervisor.timeline,
        }
    }

    /// The agent is ready: it is told what to run.
    pub(super) fn start_container(
        &mut self,
        started_ns: u64,
        ready_ns: u64,
    ) -> Result<(), RunError> {
        let Phase::Booting { start, .. } = std::mem::replace(&mut self.phase, Phase::Starting)
        else {
            return Err(AgentError::Unexpected("Ready").into());
        };
        let (setup, process) = *start;
        self.clock_offset_ns = now_ns().saturating_sub(ready_ns);
        self.supervisor.timeline.agent_ns = self.on_host(started_ns);
        self.supervisor.timeline.ready_ns = self.on_host(ready_ns);
        let mut channels = vec![Channel::Output(Stream::Stdout)];
        if process.terminal.is_none() {
            channels.push(Channel::Output(Stream::Stderr));
        }
        if self.supervisor.container.spec().streams.interactive {
            channels.push(Channel::Input);
        }
        for channel in &channels {
            if let Channel::Output(stream) = channel {
                self.supervisor.streams.expect(*stream);
            }
        }
        self.tell_agent(&HostMessage::Setup(Box::new(setup)))?;
        let stdio = self.expect(FIRST, &channels)?;
        let start = HostMessage::Start {
            id: FIRST,
            process: Box::new(process),
            stdio,
        };
        if self.filling.is_empty() {
            return self.tell_agent(&start);
        }
        self.phase = Phase::Filling(Box::new(start));
        Ok(())
    }

    /// New volumes have what the image has in their place: from here on they are the container's.
    fn start_filled(&mut self) -> Result<(), RunError> {
        let Phase::Filling(start) = std::mem::replace(&mut self.phase, Phase::Starting) else {
            return Err(AgentError::Unexpected("Filled").into());
        };
        for volume in self.filling.drain(..) {
            volume.done()?;
        }
        self.tell_agent(&start)
    }

    /// Tokens for the streams of a process.
    pub(super) fn expect(
        &mut self,
        id: ProcessId,
        channels: &[Channel],
    ) -> Result<Stdio, RunError> {
        let mut stdio = Stdio {
            stdin: None,
            stdout: None,
            stderr: None,
        };
        for channel in channels {
            let token = stream::token().map_err(|error| RunError::Streams(error.into()))?;
            self.expected.push((token, id, *channel));
            let place = match channel {
                Channel::Input => &mut stdio.stdin,
                Channel::Output(Stream::Stdout) => &mut stdio.stdout,
                Channel::Output(Stream::Stderr) => &mut stdio.stderr,
            };
            *place = Some(token);
        }
        Ok(stdio)
    }

    /// A moment of the guest's clock on the host's, never after now: the guest only says so.
    pub(super) fn on_host(&self, guest_ns: u64) -> u64 {
        self.clock_offset_ns.saturating_add(guest_ns).min(now_ns())
    }

    pub(super) fn connect_streams(&mut self) -> Result<(), RunError> {
        for (token, connection) in self.unknown.identify() {
            // A connection that nobody asked for is dropped.
            let position = self.expected.iter().position(|(known, ..)| *known == token);
            let Some(position) = position else { continue };
            let (_, id, channel) = self.expected.swap_remove(position);
            if id == FIRST {
                self.supervisor
                    .streams
                    .connect(channel, connection)
                    .map_err(RunError::Streams)?;
            } else if let Some(prober) = self.prober.as_mut().filter(|prober| prober.is(id)) {
                prober.connect(connection);
            } else {
                self.hand_on(id, channel, connection);
            }
        }
        Ok(())
    }

    /// Takes in what the machine has said so far, without waiting.
    pub(super) fn hear_sandbox_now(&mut self) -> Result<(), RunError> {
        while !self.gone && self.hear_sandbox()? {}
        Ok(())
    }

    /// Takes in the next thing that it has said; `false` where there is none.
    pub(super) fn hear_sandbox(&mut self) -> Result<bool, RunError> {
        let Some(event) = self.sandbox.next_event()? else {
            return Ok(false);
        };
        match event {
            SandboxEvent::Running {
                process_started_ns,
                built_ns,
            } => {
                self.supervisor.timeline.vmm_ns = process_started_ns;
                self.supervisor.timeline.built_ns = built_ns;
            }
            SandboxEvent::Connected {
                port: protocol::STREAM_PORT,
                stream,
            } => self.unknown.add(stream).map_err(RunError::Streams)?,
            SandboxEvent::Connected {
                port: protocol::CONTROL_PORT,
                stream,
            } if !self.agent_connected => {
                self.agent_connected = true;
                self.agent = Some(AgentClient::new(stream)?);
            }
            SandboxEvent::Connected {
                port: protocol::NAMES_PORT,
                stream,
            } => self.serve_names(stream, Transport::Connection),
            SandboxEvent::Connected {
                port: protocol::NAME_PACKETS_PORT,
                stream,
            } => self.serve_names(stream, Transport::Packets),
            SandboxEvent::Connected {
                port: protocol::FORWARD_PORT,
                stream,
            } => self.forwarding.add(stream).map_err(RunError::Streams)?,
            // Only the first control connection is the agent's: it is there before any other program.
            SandboxEvent::Connected { .. } => {}
            SandboxEvent::Counters(counters) => self.hear_counters(counters),
            SandboxEvent::Ended(ending) => self.end(ending)?,
        }
        Ok(true)
    }

    /// Answers the agent's questions for names, where there is anybody to ask; else it is closed.
    fn serve_names(&self, connection: UnixStream, transport: Transport) {
        let names = self.attachment.as_ref().and_then(|one| one.names.as_ref());
        if let Some(names) = names {
            names.serve(connection, transport);
        }
    }

    pub(super) fn end(&mut self, ending: Ending) -> Result<(), RunError> {
        match (&self.phase, ending) {
            (Phase::PoweringOff(outcome), Ending::PowerOff) => {
                self.powered_off = true;
                self.phase = Phase::Over(*outcome);
                Ok(())
            }
            // Without a disk nothing is lost: what was said before the end is with the streams already, and they end
            // with the machine's process.
            (Phase::Draining(_), _) if !self.syncs => {
                self.gone = true;
                self.supervisor.streams.give_up_expected();
                Ok(())
            }
            (phase, ending) => {
                if matches!(phase, Phase::Booting { .. }) {
                    examine_kvm()?;
                }
                Err(RunError::Ended {
                    ending,
                    log: String::new(),
                })
            }
        }
    }
}
