//! A command's side of a session: its standard streams connected to a container's, until that ends or is left.

mod carry;
pub mod keys;

use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    error::RunError,
    launch::wait_gone,
    log::Stream,
    session::{Channel, FromCommand, Order, Outcome, Reply, Session},
};
use carry::Output;
use keys::DetachKeys;

/// What a command's streams are.
#[derive(Debug, Default)]
pub struct Streams {
    /// Where input comes from.
    pub stdin: Option<OwnedFd>,
    /// `None`: output is dropped.
    pub stdout: Option<OwnedFd>,
    /// `None`: output is dropped.
    pub stderr: Option<OwnedFd>,
    /// What, typed as input, detaches.
    pub keys: Option<DetachKeys>,
}

/// Where orders come from. Its descriptor is readable when there is one.
pub trait Orders: AsFd {
    /// The next order, without waiting.
    fn next(&mut self) -> Option<Order>;
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// With the process.
    Exited(Outcome),
    /// By the user; the process goes on.
    Detached,
}

/// Carries streams and orders until the session ends, and all output was delivered.
///
/// # Errors
///
/// [`RunError::Supervisor`] with what the supervisor says, [`RunError::Lost`] where it is gone, or a stream of this
/// command's that failed.
pub fn relay(
    session: Session,
    streams: Streams,
    orders: &mut dyn Orders,
) -> Result<Finish, RunError> {
    let (outputs_done, done) = io::pipe().map_err(RunError::Streams)?;
    let (detached, detach) = io::pipe().map_err(RunError::Streams)?;
    let mut relay = Relay {
        session,
        streams,
        outputs: Vec::new(),
        done: Some(done),
        detach: Some(detach),
    };
    let end = relay.until_end(&detached, orders)?;
    relay.done = None;
    match end {
        None => return Ok(Finish::Detached),
        Some(_) if !relay.delivered(&outputs_done, orders)? => return Err(RunError::Killed),
        Some(_) => {}
    }
    wait_gone(&mut relay.session)?;
    for output in relay.outputs.drain(..) {
        output.join().map_err(RunError::Streams)?;
    }
    match end {
        Some(Reply::Exited(outcome)) => Ok(Finish::Exited(outcome)),
        Some(Reply::Failed { message, code, .. }) => Err(RunError::Supervisor { message, code }),
        _ => Err(RunError::Lost),
    }
}

struct Relay {
    session: Session,
    streams: Streams,
    outputs: Vec<Output>,
    /// Closed by the last output.
    done: Option<PipeWriter>,
    detach: Option<PipeWriter>,
}

impl Relay {
    /// The last reply; `None` when the user detached.
    fn until_end(
        &mut self,
        detached: &PipeReader,
        orders: &mut dyn Orders,
    ) -> Result<Option<Reply>, RunError> {
        let mut watches_keys = true;
        loop {
            let mut watched = vec![self.session.as_fd(), orders.as_fd()];
            watched.extend(watches_keys.then(|| detached.as_fd()));
            let ready = wait(&watched)?;
            if ready.get(2) == Some(&true) {
                let mut byte = [0];
                let mut reader = detached;
                if matches!(reader.read(&mut byte), Ok(1)) {
                    self.order(Order::Detach);
                    return Ok(None);
                }
                // The input has ended without them.
                watches_keys = false;
            }
            if ready[1]
                && let Some(order) = orders.next()
            {
                self.order(order);
            }
            if ready[0]
                && let Some(end) = self.hear()?
            {
                return Ok(Some(end));
            }
        }
    }

    /// A session that cannot take an order is about to say why.
    fn order(&mut self, order: Order) {
        let _ = self.session.send(&FromCommand::Order(order), &[]);
    }

    fn hear(&mut self) -> Result<Option<Reply>, RunError> {
        let lost = |error: io::Error| RunError::Session(error.into());
        if !self.session.receive().map_err(lost)? {
            return Err(RunError::Lost);
        }
        while let Some(reply) = self.session.take().map_err(RunError::Session)? {
            match reply {
                Reply::Stream(channel) => {
                    if let Some(stream) = self.session.descriptor() {
                        self.connect(channel, stream.into())
                            .map_err(RunError::Streams)?;
                    }
                }
                end @ (Reply::Exited(_) | Reply::Failed { .. }) => return Ok(Some(end)),
                // Said to others, or of no matter here.
                _ => {}
            }
        }
        Ok(None)
    }

    fn connect(&mut self, channel: Channel, connection: UnixStream) -> io::Result<()> {
        let sink = match channel {
            Channel::Input => {
                if let Some(input) = self.streams.stdin.take() {
                    let keys = self.streams.keys.take().zip(self.detach.take());
                    carry::carry_input(input, connection, keys)?;
                }
                return Ok(());
            }
            Channel::Output(Stream::Stdout) => self.streams.stdout.take(),
            Channel::Output(Stream::Stderr) => self.streams.stderr.take(),
        };
        let done = self.done.as_ref().map(PipeWriter::try_clone).transpose()?;
        let output = match sink {
            Some(sink) => Output::carry(connection, File::from(sink), done)?,
            None => Output::carry(connection, io::sink(), done)?,
        };
        self.outputs.push(output);
        Ok(())
    }

    /// Waits until all outputs have ended; `false` when the user would not wait.
    fn delivered(&self, done: &PipeReader, orders: &mut dyn Orders) -> Result<bool, RunError> {
        loop {
            let ready = wait(&[done.as_fd(), orders.as_fd()])?;
            if ready[0] {
                return Ok(true);
            }
            if let Some(Order::Kill | Order::Signal(_)) = orders.next() {
                return Ok(false);
            }
        }
    }
}

/// Waits until one of them can be read.
fn wait(descriptors: &[std::os::fd::BorrowedFd<'_>]) -> Result<Vec<bool>, RunError> {
    let mut watched: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN))
        .collect();
    match poll(&mut watched, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(RunError::Streams(error.into())),
    }
    Ok(watched
        .iter()
        .map(|descriptor| descriptor.any().unwrap_or(true))
        .collect())
}
