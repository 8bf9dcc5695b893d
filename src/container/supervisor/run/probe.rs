//! The container's health while it runs: probes are processes in the guest that belong to no command.

use std::time::Instant;

use protocol::{HostMessage, ProcessId};

use super::{
    super::super::{
        error::{RunError, chain},
        health::HealthStatus,
        log::Stream,
        options::ExecOptions,
        process,
        session::Channel,
    },
    super::health::Prober,
    Phase, Run,
};

const OUTPUTS: [Channel; 2] = [
    Channel::Output(Stream::Stdout),
    Channel::Output(Stream::Stderr),
];

impl Run<'_> {
    /// The container's process runs.
    pub(super) fn begin_health(&mut self) {
        if let Some(prober) = &mut self.prober {
            prober.start();
            self.tell_health(None);
        }
    }

    /// Starts the probe that is due, and ends the one that takes too long.
    pub(super) fn look_after_health(&mut self, now: Instant) -> Result<(), RunError> {
        let Some(prober) = &self.prober else {
            return Ok(());
        };
        if let Some(id) = prober.overdue(now) {
            self.tell_agent(&HostMessage::Signal { id, signal: 9 })?;
            self.finish_probe(id, Prober::time_out);
        } else if prober.is_due(now) && matches!(self.phase, Phase::Running) {
            self.probe()?;
        }
        Ok(())
    }

    fn probe(&mut self) -> Result<(), RunError> {
        let id = self.execs.next_id();
        let Some(prober) = &mut self.prober else {
            return Ok(());
        };
        prober.begin(id);
        let options = ExecOptions {
            command: prober.command().to_vec(),
            ..ExecOptions::default()
        };
        match process::exec(self.supervisor.container.spec(), &options) {
            Ok(process) => {
                let stdio = self.expect(id, &OUTPUTS)?;
                self.tell_agent(&HostMessage::Start {
                    id,
                    process: Box::new(process),
                    stdio,
                })
            }
            Err(error) => {
                self.finish_probe(id, |prober| prober.fail(&chain(&error)));
                Ok(())
            }
        }
    }

    /// Whether a process is the probe of now.
    pub(super) fn is_probe(&self, id: ProcessId) -> bool {
        self.prober.as_ref().is_some_and(|prober| prober.is(id))
    }

    /// The probe is over, in this way.
    pub(super) fn finish_probe(
        &mut self,
        id: ProcessId,
        end: impl FnOnce(&mut Prober) -> Option<HealthStatus>,
    ) {
        if let Some(prober) = &mut self.prober {
            let changed = end(prober);
            self.expected.retain(|(_, of, _)| *of != id);
            self.tell_health(changed);
        }
    }

    /// Writes down how the container's health is, and that it changed.
    fn tell_health(&self, changed: Option<HealthStatus>) {
        let Some(prober) = &self.prober else {
            return;
        };
        if let Err(error) = self.supervisor.container.set_health(prober.health()) {
            // The next probe tries again.
            eprintln!("supervisor: {}", chain(&error));
        }
        if let Some(status) = changed {
            let action = format!("health_status: {}", status.word());
            self.supervisor.record(&action, &[]);
        }
    }
}
