//! The commands that are connected to a supervisor. They are the same user's; one that does not read what it is told,
//! or is gone, is forgotten and holds up nothing.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use protocol::ProcessId;

use super::{
    super::{
        log::Stream,
        session::{Attach, Channel, FromCommand, Outcome, Reply, Session},
        spec::Spec,
        status::ORPHANED,
        timeline::Timeline,
    },
    streams::Streams,
};

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It has not said, or is done.
    None,
    /// It is connected to the container's streams.
    Attached {
        /// The container goes with it.
        owner: bool,
    },
    /// It is connected to another process.
    Exec(ProcessId),
    /// It waits for the container's end.
    Waiting,
}

/// All of them, by numbers that are never used twice.
#[derive(Debug, Default)]
pub struct Clients {
    all: BTreeMap<u32, Client>,
    next: u32,
}

#[derive(Debug)]
struct Client {
    session: Session,
    role: Role,
}

impl Clients {
    /// Takes in a new session.
    pub fn admit(&mut self, session: Session) -> u32 {
        let id = self.next;
        self.next += 1;
        self.all.insert(
            id,
            Client {
                session,
                role: Role::None,
            },
        );
        id
    }

    /// Takes in the one that started this process, attached where it asked for that.
    ///
    /// # Errors
    ///
    /// Where no streams can be made.
    pub fn admit_launcher(
        &mut self,
        session: Session,
        attach: Option<Attach>,
        spec: &Spec,
        streams: &mut Streams,
    ) -> io::Result<()> {
        let id = self.admit(session);
        match attach {
            Some(attach) => self.attach(id, attach, spec, streams),
            None => {
                self.set_role(id, Role::Waiting);
                Ok(())
            }
        }
    }

    /// Connects a session to the container's streams.
    ///
    /// # Errors
    ///
    /// Where no streams can be made.
    pub fn attach(
        &mut self,
        id: u32,
        how: Attach,
        spec: &Spec,
        streams: &mut Streams,
    ) -> io::Result<()> {
        let has_terminal = spec.process.terminal.is_some();
        let channels = [
            (Channel::Input, how.stdin && spec.streams.interactive),
            (Channel::Output(Stream::Stdout), true),
            (Channel::Output(Stream::Stderr), !has_terminal),
        ];
        let channels: Vec<Channel> = channels
            .into_iter()
            .filter_map(|(channel, wanted)| wanted.then_some(channel))
            .collect();
        self.set_role(id, Role::Attached { owner: how.owner });
        for (channel, descriptor) in streams.attach(id, how, &channels)? {
            self.send(id, &Reply::Stream(channel), &[descriptor.as_fd()]);
        }
        Ok(())
    }

    /// What to wait for, readable when there is something to [read](Self::read).
    pub fn sessions(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.all
            .iter()
            .map(|(id, client)| (*id, client.session.as_fd()))
    }

    /// Reads once; `None` where the session has ended.
    pub fn read(&mut self, id: u32) -> Option<Vec<FromCommand>> {
        let client = self.all.get_mut(&id)?;
        if !client.session.receive().unwrap_or(false) {
            return None;
        }
        let mut messages = Vec::new();
        loop {
            match client.session.take() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return Some(messages),
                Err(_) => return None,
            }
        }
    }

    /// Reads, and says whether there will be more.
    pub fn is_alive(&mut self, id: u32) -> bool {
        self.read(id).is_some()
    }

    /// What a session is for.
    #[must_use]
    pub fn role(&self, id: u32) -> Role {
        self.all.get(&id).map_or(Role::None, |client| client.role)
    }

    /// Says what it is for.
    pub fn set_role(&mut self, id: u32, role: Role) {
        if let Some(client) = self.all.get_mut(&id) {
            client.role = role;
        }
    }

    /// Tells one session; one that cannot be told ends by itself.
    pub fn send(&mut self, id: u32, reply: &Reply, descriptors: &[BorrowedFd<'_>]) {
        if let Some(client) = self.all.get_mut(&id)
            && client.session.send(reply, descriptors).is_err()
        {
            client.role = Role::None;
        }
    }

    /// Tells all who have to do with the container's own process that it was executed.
    pub fn tell_started(&mut self) {
        self.tell(&Reply::Started, |role| {
            matches!(role, Role::Attached { .. } | Role::Waiting)
        });
    }

    /// Tells everybody the end of the container.
    pub fn tell_end(&mut self, end: &Reply) {
        let killed = Reply::Exited(Outcome {
            code: ORPHANED,
            oom_killed: false,
            timeline: Timeline::default(),
        });
        self.tell(&killed, |role| matches!(role, Role::Exec(_)));
        self.tell(end, |role| {
            matches!(role, Role::Attached { .. } | Role::Waiting)
        });
    }

    fn tell(&mut self, reply: &Reply, whom: impl Fn(Role) -> bool) {
        for client in self.all.values_mut().filter(|client| whom(client.role)) {
            // One that is gone is noticed when it is read from.
            let _ = client.session.send(reply, &[]);
        }
    }

    /// Ends the sessions that were told the end of a run; those that are attached, by number.
    pub fn dismiss(&mut self) -> Vec<u32> {
        let attached = |(id, client): (&u32, &Client)| {
            matches!(client.role, Role::Attached { .. }).then_some(*id)
        };
        let ids = self.all.iter().filter_map(attached).collect();
        self.all.retain(|_, client| client.role == Role::None);
        ids
    }

    /// Ends the sessions of all others.
    pub fn keep(&mut self, is_kept: impl Fn(u32) -> bool) {
        self.all.retain(|id, _| is_kept(*id));
    }

    /// Ends a session.
    pub fn forget(&mut self, id: u32) {
        self.all.remove(&id);
    }
}
