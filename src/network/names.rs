//! The name service of a machine: names of containers from the leases of its networks, all others from the name servers
//! that it was given or the host has.
//!
//! Messages come from the machine's agent over connections of its own, so that nobody else can ask, and go out of this
//! process: what a machine reaches is not what it resolves. A thread for each connection and for each message that is
//! asked elsewhere, both bounded; there is none until somebody asks.

mod answer;
mod directory;
mod upstream;

use std::{
    io::{self, Read, Write},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use answer::{Answer, Known};
use directory::Directory;

use super::definition::Definition;

/// Most connections of a machine at once: more than its agent makes.
const MAX_CONNECTIONS: usize = 32;
/// Most messages of a machine that are asked elsewhere at once; further ones fail.
const MAX_FORWARDED: usize = 64;
/// Longest that a machine may leave an answer unread.
const PATIENCE: Duration = Duration::from_secs(5);
/// Address space of a thread's stack in bytes.
const STACK: usize = 128 << 10;

/// What the messages of a connection came over at the machine: it decides how long answers may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Packets,
    /// TCP.
    Connection,
}

/// What a machine may ask for.
#[derive(Debug)]
pub struct Scope {
    /// Networks whose containers it finds by name.
    pub networks: Vec<Definition>,
    /// Who knows all other names, the host's name servers where the list is empty; `None` where nobody is asked.
    pub upstream: Option<Vec<Ipv4Addr>>,
}

/// The name service of one machine.
#[derive(Debug, Clone)]
pub struct Names(Arc<Service>);

#[derive(Debug)]
struct Service {
    scope: Scope,
    directory: Directory,
    connections: AtomicUsize,
    forwarded: AtomicUsize,
}

impl Names {
    pub(super) fn new(folder: &Path, scope: Scope) -> Self {
        Self(Arc::new(Service {
            scope,
            directory: Directory::new(folder),
            connections: AtomicUsize::new(0),
            forwarded: AtomicUsize::new(0),
        }))
    }

    /// Answers what comes over a connection, until its end. One too many is closed.
    pub fn serve(&self, connection: UnixStream, transport: Transport) {
        let Some(taken) = Place::take(&self.0, |service| &service.connections, MAX_CONNECTIONS)
        else {
            return;
        };
        let service = self.0.clone();
        // Without a thread for it, it is closed.
        let _ = thread::Builder::new()
            .name("names".into())
            .stack_size(STACK)
            .spawn(move || {
                let _taken = taken;
                // However it ends, it is the machine's affair.
                let _ = service.converse(connection, transport);
            });
    }
}

/// One of a bounded number of places; given back when dropped.
struct Place {
    service: Arc<Service>,
    counter: fn(&Service) -> &AtomicUsize,
}

impl Place {
    fn take(
        service: &Arc<Service>,
        counter: fn(&Service) -> &AtomicUsize,
        limit: usize,
    ) -> Option<Self> {
        let place = Self {
            service: service.clone(),
            counter,
        };
        // One too many goes again at once.
        (counter(service).fetch_add(1, Ordering::Relaxed) < limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.counter)(&self.service).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service {
    /// Messages come, and answers go, as over TCP (RFC 1035, 4.2.2): in any order (RFC 7766, 7).
    fn converse(
        self: &Arc<Self>,
        mut connection: UnixStream,
        transport: Transport,
    ) -> io::Result<()> {
        connection.set_nonblocking(false)?;
        connection.set_write_timeout(Some(PATIENCE))?;
        let answers = Arc::new(Mutex::new(connection.try_clone()?));
        loop {
            let mut prefix = [0; 2];
            connection.read_exact(&mut prefix)?;
            let mut message = vec![0; usize::from(u16::from_be_bytes(prefix))];
            connection.read_exact(&mut message)?;
            match self.answer(&message, transport) {
                Answer::Silence => {}
                Answer::Message(answer) => send(&answers, &answer)?,
                Answer::Elsewhere => self.forward(message, transport, answers.clone())?,
            }
        }
    }

    fn answer(&self, message: &[u8], transport: Transport) -> Answer {
        let known = Known {
            leases: &self.directory.leases(),
            networks: &self.scope.networks,
            is_all: self.scope.upstream.is_none(),
            is_alive: &|lease| self.directory.is_alive(lease),
        };
        answer::answer(message, &known, transport)
    }

    fn forward(
        self: &Arc<Self>,
        message: Vec<u8>,
        transport: Transport,
        answers: Arc<Mutex<UnixStream>>,
    ) -> io::Result<()> {
        let Some(taken) = Place::take(self, |service| &service.forwarded, MAX_FORWARDED) else {
            return send(&answers, &answer::failure(&message));
        };
        let service = self.clone();
        thread::Builder::new()
            .name("names".into())
            .stack_size(STACK)
            .spawn(move || {
                let _taken = taken;
                let given = service.scope.upstream.as_deref().unwrap_or_default();
                let answer = upstream::ask(&message, given, transport)
                    .unwrap_or_else(|| answer::failure(&message));
                // Who has gone wants none.
                let _ = send(&answers, &answer);
            })?;
        Ok(())
    }
}

fn send(to: &Mutex<UnixStream>, answer: &[u8]) -> io::Result<()> {
    let Ok(length) = u16::try_from(answer.len()) else {
        return Ok(());
    };
    let whole = [&length.to_be_bytes(), answer].concat();
    let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
    let sent = to.write_all(&whole);
    if sent.is_err() {
        // What was cut off cannot be continued.
        let _ = to.shutdown(std::net::Shutdown::Both);
    }
    sent
}

#[cfg(test)]
mod tests;
