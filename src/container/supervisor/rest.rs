//! A supervisor while its machine does not run: between two runs, and after the last one.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};

use super::{
    super::session::{FromCommand, Reply, Request, Session},
    Stopped, Supervisor,
    clients::{Clients, Role},
    streams::{End, Streams},
};
use crate::deadline::timeout;

/// Something that is waited for.
#[derive(Debug, Clone, Copy)]
enum Waited {
    Signals,
    Listener,
    Stream(End),
    Client(u32),
}

impl Supervisor {
    /// Waits before the next run, and serves meanwhile; `false` where somebody wants that there is none.
    pub(super) fn rest(&mut self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        while Instant::now() < until {
            let own = [
                (Waited::Signals, self.signals.as_fd()),
                (Waited::Listener, self.listener.as_fd()),
            ];
            // Without a way to wait there is none to wait for the right moment either.
            let Some(ready) = ready(&self.streams, &self.clients, &own, Some(until)) else {
                return false;
            };
            for (what, flags) in ready {
                match what {
                    Waited::Signals => {
                        if matches!(self.signals.read_signal(), Ok(Some(_))) {
                            self.stopped = Some(Stopped::WithHost);
                            return false;
                        }
                    }
                    Waited::Listener => self.accept(),
                    Waited::Stream(end) => self.streams.handle(end, flags),
                    Waited::Client(id) => {
                        if self.hear_at_rest(id) {
                            self.stopped = Some(Stopped::ByUser);
                            return false;
                        }
                    }
                }
            }
        }
        true
    }

    /// Takes in a new session.
    pub(super) fn accept(&mut self) {
        // One that is gone already, or that there are no descriptors for, is not served.
        if let Ok((socket, _)) = self.listener.accept()
            && socket.set_nonblocking(true).is_ok()
        {
            self.clients.admit(Session::new(socket));
        }
    }

    /// Grants what can be granted without a machine; whether the container shall not run again.
    fn hear_at_rest(&mut self, id: u32) -> bool {
        let Some(messages) = self.clients.read(id) else {
            self.clients.forget(id);
            return false;
        };
        let stop = self.container.spec().stop.signal;
        let mut ends = false;
        for message in messages {
            let FromCommand::Request(request) = message else {
                continue;
            };
            match request {
                Request::Wait => self.clients.set_role(id, Role::Waiting),
                Request::Stop { .. } | Request::Kill => {
                    self.clients.set_role(id, Role::Waiting);
                    ends = true;
                }
                Request::Signal(signal) => {
                    self.clients.send(id, &Reply::Done, &[]);
                    ends |= signal == 9 || signal == stop;
                }
                _ => {
                    let reply = Reply::Failed {
                        message: "the container is restarting: wait until it runs".into(),
                        code: 1,
                        timeline: self.timeline,
                    };
                    self.clients.send(id, &reply, &[]);
                    self.clients.forget(id);
                }
            }
        }
        ends
    }
}

/// Until everybody who is still attached has taken the last of the output, or gone.
pub(super) fn deliver(clients: &mut Clients, streams: &mut Streams) {
    while streams.is_owed() {
        clients.keep(|id| streams.owes(id));
        let Some(ready) = ready(streams, clients, &[], None) else {
            return;
        };
        for (what, flags) in ready {
            match what {
                Waited::Stream(end) => streams.handle(end, flags),
                // Orders come too late now; a session that is closed wants no more.
                Waited::Client(id) => {
                    if !clients.is_alive(id) {
                        streams.detach(id);
                        clients.forget(id);
                    }
                }
                Waited::Signals | Waited::Listener => {}
            }
        }
    }
}

/// Waits for streams, clients and `others`; what is ready, or `None` where that cannot be waited for.
fn ready(
    streams: &Streams,
    clients: &Clients,
    others: &[(Waited, BorrowedFd<'_>)],
    until: Option<Instant>,
) -> Option<Vec<(Waited, PollFlags)>> {
    let read = PollFlags::POLLIN;
    let others = others
        .iter()
        .map(|(what, other)| (*what, PollFd::new(*other, read)));
    let (whats, mut descriptors): (Vec<_>, Vec<_>) = streams
        .watched()
        .map(|(end, stream, flags)| (Waited::Stream(end), PollFd::new(stream, flags)))
        .chain(
            clients
                .sessions()
                .map(|(id, session)| (Waited::Client(id), PollFd::new(session, read))),
        )
        .chain(others)
        .unzip();
    match poll(&mut descriptors, timeout(until)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(_) => return None,
    }
    let ready = whats.into_iter().zip(&descriptors);
    Some(
        ready
            .filter_map(|(what, descriptor)| Some((what, descriptor.revents()?)))
            .filter(|(_, flags)| !flags.is_empty())
            .collect(),
    )
}
