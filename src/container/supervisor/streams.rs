//! The container's standard streams: from the guest to the log and to whoever is attached, and from them to the
//! guest. Nothing here waits.
//!
//! What is attached gets every byte: while one of them has not taken what came last, no more is read from the guest, as
//! in a pipeline. Who reads the log holds up nobody. After the process's end all that it left is read at once, bounded
//! by what the agent sends then.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::poll::PollFlags;

use super::super::{
    log::{Log, Stream},
    session::{Attach, Channel},
};

/// Bytes read at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// Most that is read of one output after the process's end, in bytes: what the agent sends then at most, and what sockets
/// hold. More comes from no agent of ours.
const MAX_REST: usize = 4 << 20;

const OUTPUTS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// One end of a stream, as something to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest's end.
    Guest(Channel),
    /// That of an attached session.
    Attached(u32, Channel),
}

/// All of them.
#[derive(Debug)]
pub struct Streams {
    log: Log,
    stdin_once: bool,
    input: Input,
    outputs: [Output; 2],
    attached: BTreeMap<u32, Attached>,
    buffer: Vec<u8>,
}

#[derive(Debug, Default)]
struct Input {
    guest: Option<UnixStream>,
    pending: Vec<u8>,
    /// No more comes after what is pending.
    ending: bool,
}

#[derive(Debug, Default)]
struct Output {
    guest: Option<UnixStream>,
    /// The guest has yet to connect it.
    expected: bool,
    /// Bytes that may still be read; `None` while the process runs.
    rest: Option<usize>,
}

/// The session's ends of its streams.
#[derive(Debug, Default)]
struct Attached {
    input: Option<UnixStream>,
    outputs: [Option<UnixStream>; 2],
    pending: [Vec<u8>; 2],
    /// Outputs that end for the guest when they are lost here.
    pipeline: [bool; 2],
    /// Of an earlier run: it gets what it has not taken yet, and no more.
    retired: bool,
}

impl Streams {
    /// Those of a container, before its guest has connected any.
    #[must_use]
    pub fn new(log: Log, stdin_once: bool) -> Self {
        Self {
            log,
            stdin_once,
            input: Input::default(),
            outputs: Default::default(),
            attached: BTreeMap::new(),
            buffer: vec![0; CHUNK],
        }
    }

    /// The guest was asked to connect this output.
    pub fn expect(&mut self, stream: Stream) {
        self.outputs[stream as usize] = Output {
            expected: true,
            ..Output::default()
        };
    }

    /// The guest connected a stream.
    ///
    /// # Errors
    ///
    /// Where the socket cannot be configured.
    pub fn connect(&mut self, channel: Channel, guest: UnixStream) -> io::Result<()> {
        guest.set_nonblocking(true)?;
        match channel {
            Channel::Input => {
                self.input.guest = Some(guest);
                self.feed();
            }
            Channel::Output(stream) => {
                let output = &mut self.outputs[stream as usize];
                output.expected = false;
                output.guest = Some(guest);
            }
        }
        Ok(())
    }

    /// Connects a session; what it is given are the other ends.
    ///
    /// # Errors
    ///
    /// Where no sockets can be made.
    pub fn attach(
        &mut self,
        id: u32,
        how: Attach,
        channels: &[Channel],
    ) -> io::Result<Vec<(Channel, OwnedFd)>> {
        let mut attached = Attached::default();
        let mut given = Vec::new();
        for channel in channels {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            match channel {
                Channel::Input => attached.input = Some(ours),
                Channel::Output(stream) => {
                    attached.outputs[*stream as usize] = Some(ours);
                    attached.pipeline[*stream as usize] = how.pipeline;
                }
            }
            given.push((*channel, theirs.into()));
        }
        self.attached.insert(id, attached);
        Ok(given)
    }

    /// Forgets a session, with all that it has not taken.
    pub fn detach(&mut self, id: u32) {
        self.attached.remove(&id);
    }

    /// Lets a session have what it has not taken yet, and no more.
    pub fn retire(&mut self, id: u32) {
        if let Some(attached) = self.attached.get_mut(&id) {
            attached.input = None;
            attached.retired = true;
        }
        self.settle();
    }

    /// The process has ended: what is left is read, and then each output ends.
    pub fn drain(&mut self) {
        for output in &mut self.outputs {
            output.rest = Some(MAX_REST);
        }
        self.input = Input::default();
    }

    /// What the guest has not connected by now it never will.
    pub fn give_up_expected(&mut self) {
        for output in &mut self.outputs {
            output.expected = false;
        }
        self.settle();
    }

    /// Ends everything that comes from the guest.
    pub fn close_guest(&mut self) {
        self.input = Input::default();
        for stream in OUTPUTS {
            self.end_output(stream);
            self.outputs[stream as usize].expected = false;
        }
        self.settle();
    }

    /// Whether no more output will come.
    #[must_use]
    pub fn outputs_ended(&self) -> bool {
        self.outputs
            .iter()
            .all(|output| output.guest.is_none() && !output.expected)
    }

    /// Whether the guest has yet to connect an output.
    #[must_use]
    pub fn is_expecting(&self) -> bool {
        self.outputs.iter().any(|output| output.expected)
    }

    /// Whether some session has not taken all yet.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.attached.keys().any(|id| self.owes(*id))
    }

    /// Whether this session has not.
    #[must_use]
    pub fn owes(&self, id: u32) -> bool {
        let owed = |attached: &Attached| attached.pending.iter().any(|bytes| !bytes.is_empty());
        self.attached.get(&id).is_some_and(owed)
    }

    /// What to wait for.
    pub fn watched(&self) -> impl Iterator<Item = (End, BorrowedFd<'_>, PollFlags)> {
        let input = self.input.guest.iter().map(|guest| {
            let flags = wanted(PollFlags::POLLOUT, !self.input.pending.is_empty());
            (End::Guest(Channel::Input), guest.as_fd(), flags)
        });
        let outputs = OUTPUTS.into_iter().filter_map(|stream| {
            let guest = self.outputs[stream as usize].guest.as_ref()?;
            let flags = wanted(PollFlags::POLLIN, !self.is_held_up(stream));
            // Without interest, not even its end is of any: it is read in its turn.
            (!flags.is_empty()).then(|| (End::Guest(Channel::Output(stream)), guest.as_fd(), flags))
        });
        let takes_input = self.input.guest.is_some() && self.input.pending.is_empty();
        let attached = self.attached.iter().flat_map(move |(id, attached)| {
            let input = attached.input.iter().filter(move |_| takes_input);
            let input = input.map(|input| {
                let end = End::Attached(*id, Channel::Input);
                (end, input.as_fd(), PollFlags::POLLIN)
            });
            let outputs = OUTPUTS.into_iter().filter_map(|stream| {
                let sink = attached.outputs[stream as usize].as_ref()?;
                let owed = !attached.pending[stream as usize].is_empty();
                let end = End::Attached(*id, Channel::Output(stream));
                Some((end, sink.as_fd(), wanted(PollFlags::POLLOUT, owed)))
            });
            input.chain(outputs)
        });
        input.chain(outputs).chain(attached)
    }

    /// Moves what can be moved at one end.
    pub fn handle(&mut self, end: End, flags: PollFlags) {
        match end {
            End::Guest(Channel::Input)
                if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) =>
            {
                self.refuse_input();
            }
            End::Guest(Channel::Input) => self.feed(),
            End::Guest(Channel::Output(stream)) => self.read_output(stream),
            End::Attached(id, Channel::Input) => self.read_input(id),
            End::Attached(id, Channel::Output(stream)) => self.flush(id, stream, flags),
        }
        self.settle();
    }

    fn is_held_up(&self, stream: Stream) -> bool {
        self.outputs[stream as usize].rest.is_none()
            && self
                .attached
                .values()
                .filter(|attached| !attached.retired)
                .any(|attached| !attached.pending[stream as usize].is_empty())
    }

    fn read_output(&mut self, stream: Stream) {
        let output = &mut self.outputs[stream as usize];
        let Some(mut guest) = output.guest.as_ref() else {
            return;
        };
        let limit = output.rest.unwrap_or(CHUNK).min(CHUNK);
        let length = match guest.read(&mut self.buffer[..limit]) {
            Ok(length) => length,
            Err(error) if is_temporary(&error) => return,
            // The guest ended the stream in a hurry; what came before was read.
            Err(_) => 0,
        };
        if length == 0 {
            self.end_output(stream);
            return;
        }
        if let Some(rest) = &mut output.rest {
            *rest -= length;
        }
        let bytes = &self.buffer[..length];
        self.log.write(stream, bytes);
        let current = |attached: &&mut Attached| !attached.retired;
        for attached in self.attached.values_mut().filter(current) {
            attached.give(stream, bytes);
        }
    }

    fn end_output(&mut self, stream: Stream) {
        if self.outputs[stream as usize].guest.take().is_some() {
            self.log.end(stream);
        }
    }

    fn flush(&mut self, id: u32, stream: Stream, flags: PollFlags) {
        let Some(attached) = self.attached.get_mut(&id) else {
            return;
        };
        if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            attached.lose(stream);
        } else {
            let pending = std::mem::take(&mut attached.pending[stream as usize]);
            attached.give(stream, &pending);
        }
    }

    fn read_input(&mut self, id: u32) {
        let Some(attached) = self.attached.get_mut(&id) else {
            return;
        };
        let Some(mut input) = attached.input.as_ref() else {
            return;
        };
        match input.read(&mut self.buffer) {
            Ok(length) if length > 0 => {
                self.input.pending.extend_from_slice(&self.buffer[..length]);
            }
            Err(error) if is_temporary(&error) => return,
            _ => {
                attached.input = None;
                self.input.ending = self.stdin_once;
            }
        }
        self.feed();
    }

    /// Gives the guest what it takes of its input.
    fn feed(&mut self) {
        let Some(guest) = &self.input.guest else {
            return;
        };
        match write_some(guest, &self.input.pending) {
            Ok(written) => drop(self.input.pending.drain(..written)),
            Err(_) => return self.refuse_input(),
        }
        if self.input.pending.is_empty() {
            self.input.pending = Vec::new();
            if self.input.ending {
                // A guest that has gone has no input to end.
                let _ = guest.shutdown(Shutdown::Write);
                self.input.ending = false;
            }
        }
    }

    /// The process reads no more: neither need anybody else.
    fn refuse_input(&mut self) {
        self.input = Input::default();
        for attached in self.attached.values_mut() {
            attached.input = None;
        }
    }

    /// Ends for each session what has ended for all of them.
    fn settle(&mut self) {
        self.attached.retain(|_, attached| {
            !attached.retired || attached.pending.iter().any(|bytes| !bytes.is_empty())
        });
        for stream in OUTPUTS {
            let lost = |attached: &Attached| {
                attached.pipeline[stream as usize] && attached.outputs[stream as usize].is_none()
            };
            let mut current = self.attached.values().filter(|attached| !attached.retired);
            let lost = current.any(lost);
            let output = &mut self.outputs[stream as usize];
            if (lost || output.rest == Some(0)) && output.guest.take().is_some() {
                self.log.end(stream);
            }
            if output.guest.is_some() || output.expected {
                continue;
            }
            for attached in self.attached.values_mut() {
                if attached.pending[stream as usize].is_empty() {
                    attached.outputs[stream as usize] = None;
                }
            }
        }
    }
}

impl Attached {
    /// Writes what the session takes now and keeps the rest.
    fn give(&mut self, stream: Stream, bytes: &[u8]) {
        let stream = stream as usize;
        let Some(sink) = &self.outputs[stream] else {
            return;
        };
        let written = match self.pending[stream].is_empty() {
            true => write_some(sink, bytes),
            false => Ok(0),
        };
        match written {
            Ok(written) => self.pending[stream].extend_from_slice(&bytes[written..]),
            Err(_) => {
                self.pending[stream] = Vec::new();
                self.outputs[stream] = None;
            }
        }
    }

    fn lose(&mut self, stream: Stream) {
        self.pending[stream as usize] = Vec::new();
        self.outputs[stream as usize] = None;
    }
}

fn wanted(flags: PollFlags, is_wanted: bool) -> PollFlags {
    if is_wanted { flags } else { PollFlags::empty() }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// How much of `bytes` the other end takes without waiting.
fn write_some(mut sink: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match sink.write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) if is_temporary(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
