//! Published ports of machines that only their agents lead into: who wants a connection, and which one is whose.

use std::os::{fd::BorrowedFd, unix::net::UnixStream};

use protocol::{HostMessage, StreamToken, Transport};

use super::{super::super::error::RunError, Run};
use crate::{
    agent_client::stream::{self, Unknown},
    network::{
        forward::{MAX_FORWARDS, Wanted},
        port::Protocol,
    },
};

/// What is under way between proxies and the agent.
#[derive(Debug)]
pub struct Forwarding {
    expected: Vec<(StreamToken, Wanted)>,
    unknown: Unknown,
}

impl Default for Forwarding {
    fn default() -> Self {
        Self {
            expected: Vec::new(),
            unknown: Unknown::with_limit(MAX_FORWARDS),
        }
    }
}

impl Forwarding {
    /// Takes in a connection of the guest's.
    pub fn add(&mut self, connection: UnixStream) -> std::io::Result<()> {
        self.unknown.add(connection)
    }

    /// What to poll for reading.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.unknown.descriptors()
    }

    /// Hands every connection that says whose it is to who waits for it. One that nobody asked for is dropped.
    pub fn connect(&mut self) {
        for (token, connection) in self.unknown.identify() {
            let mut expected = self.expected.iter();
            if let Some(position) = expected.position(|(known, _)| *known == token) {
                (self.expected.swap_remove(position).1.then)(connection);
            }
        }
    }
}

impl Run<'_> {
    /// Asks the agent for the connections that proxies want. Before there is an agent nobody is at a port.
    pub(super) fn ask_for_connections(&mut self) -> Result<(), RunError> {
        let Some(attachment) = &mut self.attachment else {
            return Ok(());
        };
        for wanted in attachment.take_wanted() {
            if self.agent.is_none() {
                continue;
            }
            let token = stream::token().map_err(|error| RunError::Streams(error.into()))?;
            let ask = HostMessage::Forward {
                transport: match wanted.protocol {
                    Protocol::Tcp => Transport::Connection,
                    Protocol::Udp => Transport::Packets,
                },
                to: wanted.to.into(),
                stream: token,
            };
            self.forwarding.expected.push((token, wanted));
            self.tell_agent(&ask)?;
        }
        Ok(())
    }
}
