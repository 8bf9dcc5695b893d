//! What a command and a container's supervisor say to each other: frames of the guest protocol's codec over a Unix
//! stream socket in the container's folder, and descriptors beside them.
//!
//! One connection is one session. It begins with a [`Request`]; the streams that this gives come as descriptors,
//! each with a [`Reply::Stream`]; after that the command may send [`Order`]s. Both ends belong to the same user,
//! and are the same program, or nearly so.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use protocol::{
    Process, ProcessList, WindowSize,
    files::FilesOrder,
    frame::{self, FrameError},
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{limits::Later, log::Stream, name::Id, timeline::Timeline, usage::Measured};

/// Most descriptors that come with one message.
const MAX_DESCRIPTORS: usize = 2;

/// What a session is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To a new supervisor, from who started it: run this container. Descriptors: its lock, its listening socket.
    Launch(Launch),
    /// Connect to the container's streams.
    Attach(Attach),
    /// Run another process in the container.
    Exec(Box<Exec>),
    /// Have the guest do something with the container's files.
    Files(Box<FilesOrder>),
    /// Tell the end of the container, when it comes.
    Wait,
    /// End the container, and tell.
    Stop {
        /// In place of its own signal.
        signal: Option<u8>,
        /// In place of its own seconds until it is killed; negative: never.
        timeout: Option<i64>,
    },
    /// Send the container's process a signal.
    Signal(u8),
    /// Let its machine stand still, or go on.
    Pause(bool),
    /// Tell what the container uses.
    Measure,
    /// Tell its processes.
    ListProcesses,
    /// What the container may use was changed on disk, or its name: have it so.
    Reload,
    /// End the virtual machine at once, whatever is lost; and tell.
    Kill,
}

/// The first start of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The state folder.
    pub state_root: String,
    /// Which container.
    pub id: Id,
    /// Whether the one who asks is attached from the beginning.
    pub attach: Option<Attach>,
    /// What happened so far.
    pub timeline: Timeline,
}

/// How to be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Standard input too, where the container has one.
    pub stdin: bool,
    /// The terminal at the other end, where the container has one.
    pub size: Option<WindowSize>,
    /// The container does not outlive the session, unless that is detached.
    pub owner: bool,
    /// When the reader of an output has gone, so has the container's: what writes there gets SIGPIPE.
    pub pipeline: bool,
}

/// Another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// What to run.
    pub process: Process,
    /// Connect standard input.
    pub stdin: bool,
    /// Connect output.
    pub output: bool,
}

/// What may follow a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Send a signal; before the container's process started, end the run.
    Signal(u8),
    /// Resize the terminal.
    Resize(WindowSize),
    /// The session ends here, and what it was for goes on.
    Detach,
    /// End the virtual machine at once.
    Kill,
}

/// From the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromCommand {
    /// The first.
    Request(Request),
    /// All others.
    Order(Order),
}

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// One of the streams; with a descriptor.
    Stream(Channel),
    /// The process was executed.
    Started,
    /// What was asked is done.
    Done,
    /// What the container uses.
    Measured(Measured),
    /// Its processes.
    Processes(ProcessList),
    /// The change holds, but for this.
    Reloaded(Later),
    /// The process ended, and all of its output is on the way.
    Exited(Outcome),
    /// It never ran, or its end is not known.
    Failed {
        /// Why, with all causes.
        message: String,
        /// Exit code in Docker's sense.
        code: u8,
        /// What happened so far.
        timeline: Timeline,
    },
}

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    /// Standard input.
    Input,
    /// One of the outputs; standard output stands also for a stream of files.
    Output(Stream),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its exit code, or 128 and the number of the signal that killed it.
    pub code: u8,
    /// The guest ran out of memory and killed a process of the container.
    pub oom_killed: bool,
    /// Where the time went.
    pub timeline: Timeline,
}

/// One end of a session.
#[derive(Debug)]
pub struct Session {
    socket: UnixStream,
    received: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Session {
    /// Speaks over `socket`. Where that does not block, neither does anything here.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            received: Vec::new(),
            descriptors: VecDeque::new(),
        }
    }

    /// Sends one message, and descriptors with it.
    ///
    /// # Errors
    ///
    /// Where the other end is gone; `WouldBlock` where it does not read and this end does not wait.
    pub fn send<M: Serialize>(
        &mut self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FrameError> {
        let bytes = frame::encode(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(
                &self.socket,
                &[IoSlice::new(&bytes)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )
        })
        .map_err(io::Error::from)?;
        Ok(self.socket.write_all(&bytes[sent..])?)
    }

    /// Reads once what has arrived; `false` at the end of the session.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn receive(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut chunk)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let length = match received {
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::AGAIN) => return Ok(true),
            Err(rustix::io::Errno::CONNRESET) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.received.extend_from_slice(&chunk[..length]);
        Ok(length > 0)
    }

    /// The next message that has arrived as a whole.
    ///
    /// # Errors
    ///
    /// For what is no message.
    pub fn take<M: DeserializeOwned>(&mut self) -> Result<Option<M>, FrameError> {
        frame::take(&mut self.received)
    }

    /// Waits for the next message; `None` at the end of the session.
    ///
    /// # Errors
    ///
    /// Those of the socket, and of what is no message.
    pub fn wait<M: DeserializeOwned>(&mut self) -> Result<Option<M>, FrameError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
    }

    /// The next descriptor that came with a message.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// Makes this end wait, or not.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut ours, mut theirs) = (Session::new(ours), Session::new(theirs));
        let mut ends = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (reader, writer) = io::pipe().unwrap();
            let message = Reply::Stream(Channel::Output(stream));
            ours.send(&message, &[writer.as_fd()]).unwrap();
            ends.push(reader);
        }
        ours.send(&Reply::Done, &[]).unwrap();
        drop(ours);

        for (reader, text) in ends.iter_mut().zip(["out", "err"]) {
            let Some(Reply::Stream(Channel::Output(_))) = theirs.wait().unwrap() else {
                panic!("no stream");
            };
            let mut sink = std::fs::File::from(theirs.descriptor().unwrap());
            sink.write_all(text.as_bytes()).unwrap();
            drop(sink);
            let mut seen = String::new();
            reader.read_to_string(&mut seen).unwrap();
            assert_eq!(seen, text);
        }
        assert_eq!(theirs.wait().unwrap(), Some(Reply::Done));
        assert_eq!(theirs.wait::<Reply>().unwrap(), None);
    }

    #[test]
    fn a_request_longer_than_a_socket_holds_arrives() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut ours, mut theirs) = (Session::new(ours), Session::new(theirs));
        let text = "x".repeat(2 << 20);
        std::thread::scope(|scope| {
            scope.spawn(|| ours.send(&text, &[]).unwrap());
            assert_eq!(theirs.wait::<String>().unwrap().unwrap().len(), text.len());
        });
    }
}
