//! A process of the container as the agent sees it: what it waits for, its streams, and when all that
//! it has to say is said.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use protocol::{
    AgentMessage, Exit, Process as ProcessConfig, ProcessId, StartStage, Stdio, StreamToken,
    WindowSize, frame,
};
use rustix::{
    fs::{Mode, OFlags, fcntl_setfl, open},
    io::read,
    pipe::{PipeFlags, pipe_with},
    process::{WaitId, WaitIdOptions, waitid},
};

use crate::{
    failure::{At, Failure},
    sandbox::Sandbox,
    spawn::{ChildStdio, Spawned},
    stream::{Direction, Stream},
    terminal::{self, Terminal},
};

/// Which of the standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard input.
    Stdin,
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Channel {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stdin, Self::Stdout, Self::Stderr];
}

/// The agent's ends of a process's streams.
#[derive(Default)]
pub struct Streams {
    open: [Option<Stream>; 3],
    /// For its size.
    terminal: Option<OwnedFd>,
}

impl Streams {
    /// Makes both ends of what `stdio` asks for and begins to connect the agent's.
    ///
    /// # Errors
    ///
    /// At [`StartStage::Stream`] or [`StartStage::Terminal`].
    pub fn open(
        stdio: &Stdio,
        process: &ProcessConfig,
        sandbox: &Sandbox,
    ) -> Result<(Self, ChildStdio), Failure> {
        match process.terminal {
            Some(size) => {
                let terminal =
                    Terminal::open(sandbox.devpts(), size).at(StartStage::Terminal, "/dev/pts")?;
                Self::over_terminal(stdio, terminal).at(StartStage::Stream, "terminal")
            }
            None => Self::over_pipes(stdio).at(StartStage::Stream, "pipe"),
        }
    }

    fn over_terminal(stdio: &Stdio, terminal: Terminal) -> io::Result<(Self, ChildStdio)> {
        let Terminal { master, slave } = terminal;
        let stdin = match stdio.stdin {
            Some(token) => Some(Stream::connect(
                dup_cloexec(&master)?,
                Direction::ToProcess,
                token,
            )?),
            None => None,
        };
        let output = dup_cloexec(&master)?;
        let stdout = match stdio.stdout {
            Some(token) => Stream::connect(output, Direction::ToHost, token)?,
            None => Stream::discard(output),
        };
        let streams = Self {
            open: [stdin, Some(stdout), None],
            terminal: Some(master),
        };
        Ok((streams, ChildStdio::Terminal(slave)))
    }

    fn over_pipes(stdio: &Stdio) -> io::Result<(Self, ChildStdio)> {
        let (stdin, stdin_end) = pipe(stdio.stdin, Direction::ToProcess)?;
        let (stdout, stdout_end) = pipe(stdio.stdout, Direction::ToHost)?;
        let (stderr, stderr_end) = pipe(stdio.stderr, Direction::ToHost)?;
        let streams = Self {
            open: [stdin, stdout, stderr],
            terminal: None,
        };
        Ok((
            streams,
            ChildStdio::Files([stdin_end, stdout_end, stderr_end]),
        ))
    }

    /// One of them, while it is open.
    pub fn get(&mut self, channel: Channel) -> Option<&mut Stream> {
        self.open[channel as usize].as_mut()
    }

    /// Closes one of them. A terminal without an output hangs up.
    pub fn close(&mut self, channel: Channel) {
        self.open[channel as usize] = None;
        if self.terminal.is_some() && channel == Channel::Stdout {
            *self = Self::default();
        }
    }

    fn outputs_ended(&self) -> bool {
        let [_, stdout, stderr] = &self.open;
        stdout.is_none() && stderr.is_none()
    }
}

fn dup_cloexec(fd: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

/// A pipe, or `/dev/null` where the host wants no stream: the agent's side, and the process's end.
fn pipe(token: Option<StreamToken>, direction: Direction) -> io::Result<(Option<Stream>, OwnedFd)> {
    let Some(token) = token else {
        return Ok((
            None,
            open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
        ));
    };
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (agent, process) = match direction {
        Direction::ToProcess => (writer, reader),
        Direction::ToHost => (reader, writer),
    };
    // The agent's end only: the process expects one that blocks.
    fcntl_setfl(&agent, OFlags::NONBLOCK)?;
    Ok((Some(Stream::connect(agent, direction, token)?), process))
}

/// What is known of how a start went.
enum Start {
    /// The report is still open, with this much of it read.
    Pending(Vec<u8>),
    Succeeded,
    Failed,
}

/// A process that was forked and whose end was not yet reported.
pub struct Process {
    id: ProcessId,
    pidfd: OwnedFd,
    report: Option<OwnedFd>,
    start: Start,
    /// Its streams.
    pub streams: Streams,
    exit: Option<Exit>,
}

impl Process {
    /// One that was just forked.
    pub fn new(id: ProcessId, spawned: Spawned, streams: Streams) -> Self {
        let Spawned { pidfd, report } = spawned;
        Self {
            id,
            pidfd,
            report: Some(report),
            start: Start::Pending(Vec::new()),
            streams,
            exit: None,
        }
    }

    /// Its process descriptor.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The report of its start, while that is open.
    pub fn report(&self) -> Option<BorrowedFd<'_>> {
        self.report.as_ref().map(AsFd::as_fd)
    }

    /// Whether it executes its program.
    pub fn is_running(&self) -> bool {
        matches!(self.start, Start::Succeeded) && self.exit.is_none()
    }

    /// Reads what has come of the report. At its end, says how the start went.
    pub fn read_report(&mut self) -> Option<AgentMessage> {
        let (Start::Pending(bytes), Some(report)) = (&mut self.start, &self.report) else {
            return None;
        };
        let mut buffer = [0; 2048];
        // The child writes well-formed frames or nothing; an error is as good as the end.
        let count = read(report, &mut buffer).unwrap_or(0);
        bytes.extend_from_slice(&buffer[..count]);
        if count > 0 {
            return None;
        }
        let message = outcome(self.id, bytes);
        self.report = None;
        self.start = match message {
            AgentMessage::Started { .. } => Start::Succeeded,
            _ => {
                self.streams = Streams::default();
                Start::Failed
            }
        };
        Some(message)
    }

    /// Collects how it ended, and gives up its input.
    ///
    /// # Errors
    ///
    /// Those of waitid(2).
    pub fn reap(&mut self) -> io::Result<()> {
        // The descriptor says so twice: when the process ends, and when it was collected.
        if self.exit.is_some() {
            return Ok(());
        }
        let status = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )?;
        let Some(status) = status else {
            return Ok(());
        };
        self.exit = Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code.to_le_bytes()[0]),
            (None, signal) => Exit::Signal(signal.unwrap_or(libc::SIGKILL).to_le_bytes()[0]),
        });
        self.streams.close(Channel::Stdin);
        for channel in [Channel::Stdout, Channel::Stderr] {
            if let Some(stream) = self.streams.get(channel) {
                stream.drain();
            }
        }
        Ok(())
    }

    /// How it ended, once nothing of its start and its output is outstanding.
    pub fn ended(&self) -> Option<Exit> {
        let reported = !matches!(self.start, Start::Pending(_));
        self.exit
            .filter(|_| reported && self.streams.outputs_ended())
    }

    /// Whether its program was never executed.
    pub fn failed(&self) -> bool {
        matches!(self.start, Start::Failed)
    }

    /// Sets the size of its terminal, where it has one.
    pub fn resize(&self, size: WindowSize) {
        if let Some(master) = &self.streams.terminal {
            // A terminal that has just hung up has no size.
            let _ = terminal::resize(master, size);
        }
    }
}

/// What a whole report says.
fn outcome(id: ProcessId, report: &mut Vec<u8>) -> AgentMessage {
    let mut last = None;
    while let Ok(Some(message)) = frame::take::<AgentMessage>(report) {
        last = Some(message);
    }
    match last {
        Some(AgentMessage::Started { setup_ns, .. }) => AgentMessage::Started {
            id,
            setup_ns,
            exec_ns: crate::now_ns(),
        },
        Some(message @ AgentMessage::StartFailed { .. }) => message,
        // Killed on the way: by the host, or for want of memory.
        _ => Failure::refused(StartStage::Fork, "killed").into_message(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(messages: &[AgentMessage]) -> AgentMessage {
        let mut bytes = messages
            .iter()
            .flat_map(|message| frame::encode(message).unwrap())
            .collect();
        outcome(ProcessId(7), &mut bytes)
    }

    #[test]
    fn a_report_without_a_failure_is_a_start() {
        let ready = AgentMessage::Started {
            id: ProcessId(7),
            setup_ns: 5,
            exec_ns: 0,
        };
        let AgentMessage::Started {
            id: ProcessId(7),
            setup_ns: 5,
            exec_ns,
        } = report(&[ready])
        else {
            panic!("not started");
        };
        assert!(exec_ns > 0);
    }

    #[test]
    fn a_failure_counts_wherever_it_comes() {
        let ready = AgentMessage::Started {
            id: ProcessId(7),
            setup_ns: 5,
            exec_ns: 0,
        };
        let failed = Failure::refused(StartStage::User, "nosuch").into_message(ProcessId(7));
        assert_eq!(report(&[ready, failed.clone()]), failed);
        assert_eq!(report(std::slice::from_ref(&failed)), failed);
    }

    #[test]
    fn a_child_that_says_nothing_was_killed() {
        let killed = Failure::refused(StartStage::Fork, "killed").into_message(ProcessId(7));
        assert_eq!(report(&[]), killed);
    }
}
