//! The host's end of the guest protocol: the control connection, and which stream is which.
//!
//! Everything that arrives is from a guest that may be hostile: bounded, checked, and an error at most.
//! Nothing here waits for the guest but [`AgentClient::send`], and that not for long.

pub mod stream;

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use protocol::{
    AgentMessage, HostMessage, MAX_FRAME, PROTOCOL_VERSION,
    frame::{self, FrameError},
};

/// Longest that the agent may leave a message of ours unread.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest `subject` of a failed start that is kept, in bytes.
const MAX_SUBJECT: usize = 1024;

/// Why the agent cannot be talked to.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AgentError {
    #[error("cannot talk to the guest agent")]
    Io(#[from] io::Error),
    #[error("the guest agent broke the protocol")]
    Frame(#[from] FrameError),
    #[error(
        "the guest agent speaks version {0} of the protocol, not {PROTOCOL_VERSION}: \
         rebuild pillbug"
    )]
    Version(u32),
    #[error("the guest agent said {0} when it was not its turn")]
    Unexpected(&'static str),
    #[error("the guest agent closed its connection")]
    Closed,
}

/// The control connection.
#[derive(Debug)]
pub struct AgentClient {
    connection: UnixStream,
    received: Vec<u8>,
}

impl AgentClient {
    /// Speaks over `connection`, which the guest opened to [`protocol::CONTROL_PORT`].
    ///
    /// # Errors
    ///
    /// Where the socket cannot be configured.
    pub fn new(connection: UnixStream) -> Result<Self, AgentError> {
        connection.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self {
            connection,
            received: Vec::new(),
        })
    }

    /// Sends one message; waits for a slow agent, but not for long.
    ///
    /// # Errors
    ///
    /// [`AgentError::Closed`] where the agent is gone, and an error where it reads nothing for ten seconds.
    pub fn send(&mut self, message: &HostMessage) -> Result<(), AgentError> {
        match self.connection.write_all(&frame::encode(message)?) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Err(AgentError::Closed)
            }
            sent => Ok(sent?),
        }
    }

    /// Reads once what has arrived (call it when the connection is readable), and returns the messages
    /// that are complete now.
    ///
    /// # Errors
    ///
    /// [`AgentError::Closed`] at the end of the connection; otherwise what is wrong with it.
    pub fn receive(&mut self) -> Result<Vec<AgentMessage>, AgentError> {
        let mut chunk = [0; 4096];
        match self.connection.read(&mut chunk) {
            Ok(0) => return Err(AgentError::Closed),
            Ok(length) => self.received.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Vec::new()),
            // A reset of the connection is the guest's way to close it in a hurry.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(AgentError::Closed);
            }
            Err(error) => return Err(error.into()),
        }
        debug_assert!(self.received.len() <= MAX_FRAME + 2 * chunk.len());
        let mut messages = Vec::new();
        while let Some(message) = frame::take(&mut self.received)? {
            messages.push(checked(message)?);
        }
        Ok(messages)
    }
}

impl AsFd for AgentClient {
    /// Readable when there is something to [receive](AgentClient::receive).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// What holds for every message, whoever reads it.
fn checked(message: AgentMessage) -> Result<AgentMessage, AgentError> {
    match message {
        AgentMessage::Ready {
            protocol_version, ..
        } if protocol_version != PROTOCOL_VERSION => Err(AgentError::Version(protocol_version)),
        AgentMessage::StartFailed {
            id,
            stage,
            errno,
            mut subject,
        } => {
            subject.truncate(subject.floor_char_boundary(MAX_SUBJECT));
            Ok(AgentMessage::StartFailed {
                id,
                stage,
                errno,
                subject,
            })
        }
        message => Ok(message),
    }
}

#[cfg(test)]
mod tests {
    use protocol::{ProcessId, StartStage};

    use super::*;

    fn pair() -> (AgentClient, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (AgentClient::new(ours).unwrap(), theirs)
    }

    #[test]
    fn messages_arrive_whole_however_they_are_cut() {
        let (mut client, mut agent) = pair();
        let message = AgentMessage::StartFailed {
            id: ProcessId(1),
            stage: StartStage::Exec,
            errno: 2,
            subject: "x".repeat(2000),
        };
        let bytes = frame::encode(&message).unwrap();
        agent.write_all(&bytes[..10]).unwrap();
        assert_eq!(client.receive().unwrap(), []);
        agent.write_all(&bytes[10..]).unwrap();
        let subjects: Vec<usize> = client
            .receive()
            .unwrap()
            .into_iter()
            .map(|message| match message {
                AgentMessage::StartFailed { subject, .. } => subject.len(),
                _ => 0,
            })
            .collect();
        assert_eq!(subjects, [MAX_SUBJECT]);
    }

    #[test]
    fn a16_a_fake_agent_is_cut_off() {
        let (mut client, mut agent) = pair();
        agent.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(
            client.receive(),
            Err(AgentError::Frame(FrameError::TooLong(_)))
        ));

        let (mut client, mut agent) = pair();
        let ready = AgentMessage::Ready {
            protocol_version: 99,
            started_ns: 0,
            ready_ns: 0,
        };
        frame::write(&mut agent, &ready).unwrap();
        assert!(matches!(client.receive(), Err(AgentError::Version(99))));

        let (mut client, agent) = pair();
        drop(agent);
        assert!(matches!(client.receive(), Err(AgentError::Closed)));
    }
}
