//! A container that is paused: its machine's vCPUs do not run, and the guest is not asked. Whatever needs the guest is
//! refused meanwhile; what is to end it lets it go on first.

use std::time::Instant;

use vmm::Command;

use super::{
    super::super::{error::RunError, session::Reply, state::StateError, status::Status},
    Phase, Run,
};

impl Run<'_> {
    pub(super) fn pause(&mut self, client: u32, pause: bool) -> Result<(), RunError> {
        let id = self.supervisor.container.spec().id.short().to_owned();
        let error = match (&self.phase, self.paused) {
            (Phase::Running, was) if was != pause => {
                self.set_paused(pause)?;
                self.supervisor.clients.send(client, &Reply::Done, &[]);
                self.supervisor.clients.forget(client);
                return Ok(());
            }
            (Phase::Running, true) => StateError::Paused(id),
            (Phase::Running, false) => StateError::NotPaused(id),
            _ => StateError::NotRunning(id),
        };
        self.refuse(client, &error.into());
        self.supervisor.clients.forget(client);
        Ok(())
    }

    /// A container that is sent a signal is not paused any more.
    pub(super) fn wake(&mut self) -> Result<(), RunError> {
        match self.paused {
            true => self.set_paused(false),
            false => Ok(()),
        }
    }

    /// Whether what needs the guest has to be refused, which it is then.
    pub(super) fn refuse_paused(&mut self, client: u32) -> bool {
        if self.paused {
            let id = self.supervisor.container.spec().id.short().to_owned();
            self.refuse(client, &StateError::Paused(id).into());
            self.supervisor.clients.forget(client);
        }
        self.paused
    }

    fn set_paused(&mut self, paused: bool) -> Result<(), RunError> {
        let command = if paused {
            Command::Pause
        } else {
            Command::Resume
        };
        self.sandbox.tell(&command)?;
        self.paused = paused;
        if let Some(prober) = &mut self.prober {
            if paused {
                prober.suspend();
            } else {
                prober.resume();
            }
        }
        // A guest that did not run had no time to answer in.
        self.execs.postpone(Instant::now());
        let container = &self.supervisor.container;
        if let Status::Running(mut running) = container.status()? {
            running.paused = paused;
            container.set_status(&Status::Running(running))?;
        }
        let action = if paused { "pause" } else { "unpause" };
        self.supervisor.record(action, &[]);
        Ok(())
    }
}
