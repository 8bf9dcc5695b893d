//! What commands ask of a container that runs.

use std::os::{fd::AsFd, unix::net::UnixStream};

use protocol::{HostMessage, ProcessId, files::FilesOrder};

use crate::agent_client::stream;

use super::{
    super::{
        super::{
            error::RunError,
            log::Stream,
            session::{Attach, Channel, Exec, FromCommand, Order, Reply, Request},
        },
        Stopped, Supervisor,
        clients::Role,
    },
    FIRST, Phase, Run,
};

impl Run<'_> {
    pub(super) fn hear_client(&mut self, id: u32) -> Result<(), RunError> {
        let Some(messages) = self.supervisor.clients.read(id) else {
            return self.lose_client(id);
        };
        for message in messages {
            match message {
                FromCommand::Request(request) => self.grant(id, request)?,
                FromCommand::Order(order) => self.obey(id, order)?,
            }
        }
        Ok(())
    }

    /// A session ended without a word.
    pub(super) fn lose_client(&mut self, id: u32) -> Result<(), RunError> {
        let role = self.supervisor.clients.role(id);
        self.supervisor.clients.forget(id);
        match role {
            Role::Attached { owner } => {
                self.supervisor.streams.detach(id);
                if owner {
                    return Err(RunError::Killed);
                }
            }
            Role::Exec(process) => self.execs.abandon(process),
            Role::None | Role::Waiting => {}
        }
        Ok(())
    }

    pub(super) fn grant(&mut self, id: u32, request: Request) -> Result<(), RunError> {
        match request {
            // Only ever the first of a supervisor's life.
            Request::Launch(_) => self.supervisor.clients.forget(id),
            Request::Attach(_) if self.refuse_paused(id) => {}
            Request::Attach(attach) => {
                let supervisor = &mut *self.supervisor;
                let Supervisor {
                    clients,
                    streams,
                    container,
                    ..
                } = supervisor;
                clients
                    .attach(id, attach, container.spec(), streams)
                    .map_err(RunError::Streams)?;
                self.resize_for(attach)?;
            }
            Request::Exec(_) if self.refuse_paused(id) => {}
            Request::Exec(exec) => self.exec(id, *exec)?,
            Request::Files(_) if self.refuse_paused(id) => {}
            Request::Files(order) => self.work_on_files(id, *order)?,
            Request::Pause(pause) => self.pause(id, pause)?,
            Request::Wait => self.supervisor.clients.set_role(id, Role::Waiting),
            Request::Stop { signal, timeout } => {
                let supervisor = &mut *self.supervisor;
                supervisor.clients.set_role(id, Role::Waiting);
                supervisor.stopped = Some(Stopped::ByUser);
                supervisor.told_to_stop = true;
                self.stop(signal, timeout)?;
            }
            Request::Signal(signal) => {
                self.supervisor.clients.send(id, &Reply::Done, &[]);
                self.signal_by_user(signal)?;
            }
            Request::Measure => self.ask_usage(id)?,
            Request::ListProcesses => self.ask_processes(id)?,
            Request::Reload => self.reload(id)?,
            Request::Kill => {
                let supervisor = &mut *self.supervisor;
                supervisor.record("kill", &[("signal", "9".into())]);
                supervisor.stopped = Some(Stopped::ByUser);
                supervisor.clients.set_role(id, Role::Waiting);
                return Err(RunError::Killed);
            }
        }
        Ok(())
    }

    /// A signal that is meant to end the container is not followed by a restart.
    fn signal_by_user(&mut self, signal: u8) -> Result<(), RunError> {
        if signal == 9 || signal == self.supervisor.container.spec().stop.signal {
            self.supervisor.stopped = Some(Stopped::ByUser);
        }
        self.signal(signal)
    }

    pub(super) fn resize_for(&mut self, attach: Attach) -> Result<(), RunError> {
        match (attach.size, &self.phase) {
            (Some(size), Phase::Running) => {
                self.tell_agent(&HostMessage::Resize { id: FIRST, size })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn obey(&mut self, id: u32, order: Order) -> Result<(), RunError> {
        match (order, self.supervisor.clients.role(id)) {
            (Order::Detach, Role::Attached { .. }) => {
                self.supervisor.streams.detach(id);
                self.supervisor.clients.forget(id);
                Ok(())
            }
            (Order::Detach, Role::Exec(process)) => {
                self.execs.detach(process);
                self.supervisor.clients.forget(id);
                Ok(())
            }
            (Order::Signal(signal), Role::Attached { .. }) => self.signal_by_user(signal),
            (Order::Kill, Role::Attached { .. }) => {
                self.supervisor.stopped = Some(Stopped::ByUser);
                Err(RunError::Killed)
            }
            (Order::Resize(size), Role::Attached { .. }) => match self.phase {
                Phase::Running => self.tell_agent(&HostMessage::Resize { id: FIRST, size }),
                _ => Ok(()),
            },
            (Order::Signal(signal), Role::Exec(id)) => {
                self.tell_agent(&HostMessage::Signal { id, signal })
            }
            (Order::Kill, Role::Exec(id)) => {
                self.tell_agent(&HostMessage::Signal { id, signal: 9 })
            }
            (Order::Resize(size), Role::Exec(id)) => {
                self.tell_agent(&HostMessage::Resize { id, size })
            }
            (_, Role::None | Role::Waiting) => Ok(()),
        }
    }

    pub(super) fn exec(&mut self, client: u32, exec: Exec) -> Result<(), RunError> {
        if !matches!(self.phase, Phase::Running) {
            let reply = Reply::Failed {
                message: "the container is not running".into(),
                code: 125,
                timeline: self.supervisor.timeline,
            };
            self.supervisor.clients.send(client, &reply, &[]);
            self.supervisor.clients.forget(client);
            return Ok(());
        }
        let id = self.execs.add(client, Some(exec.process.args.join(" ")));
        self.record_exec(id, "exec_create", &[]);
        self.supervisor.clients.set_role(client, Role::Exec(id));
        let has_terminal = exec.process.terminal.is_some();
        let channels = [
            (Channel::Input, exec.stdin),
            (Channel::Output(Stream::Stdout), exec.output),
            (
                Channel::Output(Stream::Stderr),
                exec.output && !has_terminal,
            ),
        ];
        let channels: Vec<Channel> = channels
            .into_iter()
            .filter_map(|(channel, wanted)| wanted.then_some(channel))
            .collect();
        let stdio = self.expect(id, &channels)?;
        self.tell_agent(&HostMessage::Start {
            id,
            process: Box::new(exec.process),
            stdio,
        })
    }

    /// Writes down what happened to another process.
    pub(super) fn record_exec(&self, id: ProcessId, action: &str, more: &[(&str, String)]) {
        let Some(command) = self.execs.command(id) else {
            return;
        };
        let action = match action {
            "exec_die" => action.to_owned(),
            _ => format!("{action}: {command}"),
        };
        let more = [&[("execID", id.0.to_string())], more].concat();
        self.supervisor.record(&action, &more);
    }

    /// Has the guest do something with the container's files. A container that is about to start is waited for.
    pub(super) fn work_on_files(&mut self, client: u32, order: FilesOrder) -> Result<(), RunError> {
        match self.phase {
            Phase::Running => {}
            Phase::Booting { .. } | Phase::Starting => {
                self.early_files.push((client, order));
                return Ok(());
            }
            _ => {
                let reply = Reply::Failed {
                    message: "the container is about to end: try again when it has".into(),
                    code: 125,
                    timeline: self.supervisor.timeline,
                };
                self.supervisor.clients.send(client, &reply, &[]);
                self.supervisor.clients.forget(client);
                return Ok(());
            }
        }
        let id = self.execs.add(client, None);
        self.supervisor.clients.set_role(client, Role::Exec(id));
        let token = stream::token().map_err(|error| RunError::Streams(error.into()))?;
        self.expected
            .push((token, id, Channel::Output(Stream::Stdout)));
        self.tell_agent(&HostMessage::Files {
            id,
            order,
            stream: token,
        })
    }

    /// Gives a stream of another process to the command that wants it, and keeps a copy.
    pub(super) fn hand_on(&mut self, id: ProcessId, channel: Channel, connection: UnixStream) {
        let Some(client) = self.execs.client(id) else {
            // Detached before it was there: read by nobody else.
            return self.execs.keep(id, channel, connection);
        };
        self.supervisor
            .clients
            .send(client, &Reply::Stream(channel), &[connection.as_fd()]);
        self.execs.keep(id, channel, connection);
    }

    pub(super) fn reply_to_exec(&mut self, id: ProcessId, reply: &Reply) {
        if let Some(client) = self.execs.client(id) {
            self.supervisor.clients.send(client, reply, &[]);
        }
    }

    pub(super) fn fail_exec(&mut self, id: ProcessId, message: &str, code: u8) {
        let reply = Reply::Failed {
            message: message.into(),
            code,
            timeline: self.supervisor.timeline,
        };
        self.reply_to_exec(id, &reply);
        self.forget_exec(id);
    }

    pub(super) fn forget_exec(&mut self, id: ProcessId) {
        if let Some(client) = self.execs.client(id) {
            self.supervisor.clients.forget(client);
        }
        self.execs.remove(id);
        self.expected.retain(|(_, of, _)| *of != id);
    }
}
