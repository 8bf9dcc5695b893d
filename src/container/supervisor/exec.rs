//! Processes that joined the container. Their streams are the commands' that asked for them: connections of the guest
//! are handed on as they are, and a copy is kept, so that what a command detaches from has somebody who reads.

use std::{
    collections::BTreeMap,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use protocol::ProcessId;

use super::super::session::Channel;

/// Longest that a guest may take to start a process.
const START_LIMIT: Duration = Duration::from_secs(30);

/// All of them.
#[derive(Debug, Default)]
pub struct Execs {
    all: BTreeMap<ProcessId, Execution>,
    last: u32,
}

/// One of them.
#[derive(Debug)]
struct Execution {
    /// Whose it is; `None` once that was detached.
    client: Option<u32>,
    /// `None` for work on files, which is no process of the container's.
    command: Option<String>,
    streams: Vec<(Channel, UnixStream)>,
    /// Until it must have been executed.
    until: Option<Instant>,
}

impl Execs {
    /// A new process of this client's.
    pub fn add(&mut self, client: u32, command: Option<String>) -> ProcessId {
        let id = self.next_id();
        let execution = Execution {
            client: Some(client),
            command,
            streams: Vec::new(),
            until: Some(Instant::now() + START_LIMIT),
        };
        self.all.insert(id, execution);
        id
    }

    /// A number for another process, which is never used twice.
    pub fn next_id(&mut self) -> ProcessId {
        self.last += 1;
        ProcessId(self.last)
    }

    /// Gives those that are being started their time from now on.
    pub fn postpone(&mut self, now: Instant) {
        for until in self
            .all
            .values_mut()
            .filter_map(|execution| execution.until.as_mut())
        {
            *until = now + START_LIMIT;
        }
    }

    /// Whose a process is.
    #[must_use]
    pub fn client(&self, id: ProcessId) -> Option<u32> {
        self.all.get(&id)?.client
    }

    /// Its program and arguments.
    #[must_use]
    pub fn command(&self, id: ProcessId) -> Option<&str> {
        self.all.get(&id)?.command.as_deref()
    }

    /// It was executed.
    pub fn started(&mut self, id: ProcessId) {
        if let Some(execution) = self.all.get_mut(&id) {
            execution.until = None;
        }
    }

    /// Keeps a copy of one of its streams.
    pub fn keep(&mut self, id: ProcessId, channel: Channel, stream: UnixStream) {
        // Read from only when detached, and then never waited for.
        if let Some(execution) = self.all.get_mut(&id)
            && (execution.client.is_some() || stream.set_nonblocking(true).is_ok())
        {
            execution.streams.push((channel, stream));
        }
    }

    /// Its command wants no more of it, and it goes on.
    pub fn detach(&mut self, id: ProcessId) {
        if let Some(execution) = self.all.get_mut(&id) {
            execution.client = None;
            execution
                .streams
                .retain(|(_, stream)| stream.set_nonblocking(true).is_ok());
        }
    }

    /// Its command is gone: its streams are closed, and what becomes of it is its own business.
    pub fn abandon(&mut self, id: ProcessId) {
        if let Some(execution) = self.all.get_mut(&id) {
            execution.client = None;
            execution.streams.clear();
        }
    }

    /// It has ended.
    pub fn remove(&mut self, id: ProcessId) {
        self.all.remove(&id);
    }

    /// The next moment at which one of them is overdue.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.all
            .values()
            .filter_map(|execution| execution.until)
            .min()
    }

    /// Those that are overdue, which are waited for no longer.
    pub fn overdue(&mut self, now: Instant) -> Vec<ProcessId> {
        let overdue = |execution: &Execution| execution.until.is_some_and(|until| until <= now);
        let ids: Vec<ProcessId> = self
            .all
            .iter()
            .filter_map(|(id, execution)| overdue(execution).then_some(*id))
            .collect();
        for id in &ids {
            self.started(*id);
        }
        ids
    }

    /// Outputs that nobody else reads.
    pub fn unread(&self) -> impl Iterator<Item = (ProcessId, BorrowedFd<'_>)> {
        let detached = self
            .all
            .iter()
            .filter(|(_, execution)| execution.client.is_none());
        detached.flat_map(|(id, execution)| {
            let outputs = execution
                .streams
                .iter()
                .filter(|(channel, _)| *channel != Channel::Input);
            outputs.map(|(_, stream)| (*id, stream.as_fd()))
        })
    }

    /// Reads, and drops, what a detached process has written.
    pub fn discard(&mut self, id: ProcessId) {
        let Some(execution) = self.all.get_mut(&id) else {
            return;
        };
        execution.streams.retain_mut(|(channel, stream)| {
            let mut chunk = [0; 4096];
            *channel == Channel::Input
                || match stream.read(&mut chunk) {
                    Ok(length) => length > 0,
                    Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
                }
        });
    }
}
