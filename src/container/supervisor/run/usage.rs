//! What commands want to know of a running container, and change: each question goes to the agent and to the VMM, and
//! its answers come back when they come.

use std::time::{Duration, Instant};

use protocol::{HostMessage, ProcessList};
use vmm::{Command, Counters};

use super::{
    super::super::{error::RunError, limits::Later, session::Reply, usage::Measured},
    Phase, Run,
};
use crate::network::Attachment;

/// How long a guest may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Who asks what. All who ask while a question is under way get its answer.
#[derive(Debug, Default)]
pub struct Questions {
    /// Sessions that want to know what the container uses.
    measuring: Vec<u32>,
    guest: Option<Option<protocol::Usage>>,
    counters: Option<Counters>,
    /// Sessions that want its processes.
    listing: Vec<u32>,
    until: Option<Instant>,
}

impl Questions {
    /// When an answer is no longer waited for.
    pub fn deadline(&self) -> Option<Instant> {
        self.until
    }

    fn is_open(&self) -> bool {
        !self.measuring.is_empty() || !self.listing.is_empty()
    }
}

impl Run<'_> {
    pub(super) fn ask_usage(&mut self, client: u32) -> Result<(), RunError> {
        self.questions.measuring.push(client);
        if self.questions.measuring.len() == 1 {
            self.questions.guest = None;
            self.questions.counters = None;
            self.sandbox.tell(&Command::Count)?;
            match self.phase {
                Phase::Running if !self.paused => self.tell_agent(&HostMessage::Measure)?,
                _ => self.questions.guest = Some(None),
            }
        }
        self.wait_for_answers();
        Ok(())
    }

    pub(super) fn ask_processes(&mut self, client: u32) -> Result<(), RunError> {
        if !matches!(self.phase, Phase::Running) {
            let error = RunError::from(super::super::super::state::StateError::NotRunning(
                self.supervisor.container.spec().id.short().into(),
            ));
            self.refuse(client, &error);
            return Ok(());
        }
        if self.refuse_paused(client) {
            return Ok(());
        }
        self.questions.listing.push(client);
        if self.questions.listing.len() == 1 {
            self.tell_agent(&HostMessage::ListProcesses)?;
        }
        self.wait_for_answers();
        Ok(())
    }

    fn wait_for_answers(&mut self) {
        let later = Instant::now() + ANSWER_LIMIT;
        self.questions.until = self
            .questions
            .is_open()
            .then(|| self.questions.until.unwrap_or(later));
    }

    pub(super) fn hear_usage(&mut self, usage: Option<protocol::Usage>) {
        self.questions.guest = Some(usage);
        self.answer_usage();
    }

    pub(super) fn hear_counters(&mut self, counters: Counters) {
        self.questions.counters = Some(counters);
        self.answer_usage();
    }

    fn answer_usage(&mut self) {
        let (Some(guest), Some(counters)) = (self.questions.guest, &self.questions.counters) else {
            return;
        };
        let attachment = self.attachment.as_ref();
        let reply = Reply::Measured(Measured {
            guest,
            counters: counters.clone(),
            carried: attachment.map(Attachment::carried).unwrap_or_default(),
            memory_bytes: self.booted.memory_bytes,
            supervisor_pid: std::process::id(),
        });
        for client in std::mem::take(&mut self.questions.measuring) {
            self.supervisor.clients.send(client, &reply, &[]);
        }
        self.wait_for_answers();
    }

    pub(super) fn hear_processes(&mut self, mut list: ProcessList) {
        list.processes.truncate(ProcessList::MAX_COUNT);
        let reply = Reply::Processes(list);
        for client in std::mem::take(&mut self.questions.listing) {
            self.supervisor.clients.send(client, &reply, &[]);
        }
        self.wait_for_answers();
    }

    /// A guest that does not answer: what is known without it is told.
    pub(super) fn give_up_answers(&mut self, now: Instant) {
        if self.questions.until.is_none_or(|until| until > now) {
            return;
        }
        self.questions.until = None;
        self.questions.guest.get_or_insert(None);
        self.questions.counters.get_or_insert_default();
        self.answer_usage();
        for client in std::mem::take(&mut self.questions.listing) {
            self.refuse(client, &RunError::NoAnswer);
        }
    }

    pub(super) fn refuse(&mut self, client: u32, error: &RunError) {
        let reply = Reply::Failed {
            message: error.to_string(),
            code: error.exit_code(),
            timeline: self.supervisor.timeline,
        };
        self.supervisor.clients.send(client, &reply, &[]);
    }

    /// What the container may use was changed on disk, or its name.
    pub(super) fn reload(&mut self, client: u32) -> Result<(), RunError> {
        self.supervisor.container.reload()?;
        let spec = self.supervisor.container.spec().clone();
        if let Some(attachment) = &mut self.attachment {
            // Where that cannot be written down, it is found by its old name until its next start.
            let _ = attachment.rename(&spec.name);
        }
        let machine = &spec.machine;
        let nano_cpus = machine.cpus.throttle(self.booted.vcpus);
        self.sandbox.tell(&Command::Throttle { nano_cpus })?;
        if let Some(cpuset) = &machine.cpuset {
            self.sandbox.set_affinity(cpuset.cpus())?;
        }
        let less = self
            .booted
            .memory_bytes
            .saturating_sub(machine.memory_bytes);
        self.sandbox.tell(&Command::Balloon { bytes: less })?;
        let mut limits = spec.setup.limits;
        limits.nano_cpus = nano_cpus;
        limits.memory_bytes = (less > 0).then_some(machine.memory_bytes);
        self.tell_agent(&HostMessage::Limit(limits))?;
        let later = Later {
            cpus: machine.cpus.vcpus() > self.booted.vcpus,
            memory: machine.memory_bytes > self.booted.memory_bytes,
        };
        self.supervisor
            .clients
            .send(client, &Reply::Reloaded(later), &[]);
        Ok(())
    }
}
