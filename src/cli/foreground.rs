//! A command in front of a container: its terminal, its streams and its signals are the container's until it ends or is
//! left.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

use anyhow::Context;

use super::{person::Person, terminal};
use crate::container::{
    attach::{self, Finish, Streams, keys::DetachKeys},
    error::RunError,
    session::{Attach, Session},
};

/// How a command wants to be connected.
#[derive(Debug, Clone, Default)]
pub struct Foreground {
    /// Standard input too.
    pub stdin: bool,
    /// The container's process has a terminal.
    pub terminal: bool,
    /// The container goes with the command.
    pub owner: bool,
    /// A reader of output that goes away ends the writer.
    pub pipeline: bool,
    /// In place of the default ones.
    pub keys: Option<DetachKeys>,
    /// Signals are the container's.
    pub sig_proxy: bool,
}

/// A command that is in front.
#[derive(Debug)]
pub struct Front {
    wanted: Foreground,
    person: Person,
    streams: Streams,
}

impl Foreground {
    /// Takes over signals, and the terminal, where there is one on both sides.
    pub fn enter(self) -> anyhow::Result<Front> {
        let raw = self.terminal && self.stdin;
        Ok(Front {
            // Before any thread starts, so that all of them leave the signals to one reader.
            person: Person::new(self.terminal, raw, self.sig_proxy)?,
            streams: self.streams().context("cannot use the standard streams")?,
            wanted: self,
        })
    }

    fn streams(&self) -> io::Result<Streams> {
        let duplicate =
            |stream: &dyn AsFd| -> io::Result<OwnedFd> { stream.as_fd().try_clone_to_owned() };
        Ok(Streams {
            stdin: self.stdin.then(|| duplicate(&io::stdin())).transpose()?,
            stdout: Some(duplicate(&io::stdout())?),
            stderr: (!self.terminal)
                .then(|| duplicate(&io::stderr()))
                .transpose()?,
            keys: self.terminal.then(|| self.keys.clone().unwrap_or_default()),
        })
    }
}

impl Front {
    /// What to ask the supervisor for.
    pub fn attach(&self) -> Attach {
        Attach {
            stdin: self.wanted.stdin,
            size: self.wanted.terminal.then(terminal::size),
            owner: self.wanted.owner,
            pipeline: self.wanted.pipeline,
        }
    }

    /// Until the session ends; the terminal is as before then.
    pub fn relay(mut self, session: Session) -> Result<Finish, RunError> {
        attach::relay(session, self.streams, &mut self.person)
    }
}

/// The exit code of a command whose session ended, and what else there is to say.
pub fn exit_code(finish: Finish) -> ExitCode {
    match finish {
        Finish::Exited(outcome) => {
            if outcome.oom_killed {
                eprintln!(
                    "pillbug: the guest ran out of memory and killed a process: give more with -m"
                );
            }
            ExitCode::from(outcome.code)
        }
        Finish::Detached => ExitCode::SUCCESS,
    }
}
