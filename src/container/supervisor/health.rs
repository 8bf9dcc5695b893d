//! The probe of a container's health: when one is due, what it wrote, and what became of it. The run that owns it starts
//! processes and ends them.

use std::{
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use protocol::ProcessId;

use super::super::health::{Health, HealthCheck, HealthStatus, MAX_OUTPUT, ProbeResult};

/// The probes of one run.
#[derive(Debug)]
pub struct Prober {
    check: HealthCheck,
    health: Health,
    /// When the container's process was executed; `None` before.
    started: Option<Instant>,
    due: Option<Instant>,
    probe: Option<Probe>,
}

/// One that runs.
#[derive(Debug)]
struct Probe {
    id: ProcessId,
    start: Timestamp,
    until: Instant,
    streams: Vec<UnixStream>,
    output: Vec<u8>,
}

impl Prober {
    /// Before the container's start.
    #[must_use]
    pub fn new(check: HealthCheck) -> Self {
        Self {
            check,
            health: Health::default(),
            started: None,
            due: None,
            probe: None,
        }
    }

    /// What is known by now.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What to run.
    #[must_use]
    pub fn command(&self) -> &[String] {
        &self.check.command
    }

    /// The container's process runs.
    pub fn start(&mut self) {
        self.started = Some(Instant::now());
        self.plan();
    }

    /// No probe runs, and none is due, until [`resume`](Self::resume).
    pub fn suspend(&mut self) {
        self.due = None;
        if let Some(probe) = &mut self.probe {
            probe.until += Duration::from_secs(u32::MAX.into());
        }
    }

    /// Goes on after [`suspend`](Self::suspend).
    pub fn resume(&mut self) {
        match &mut self.probe {
            Some(probe) => probe.until = Instant::now() + self.check.timeout,
            None => self.plan(),
        }
    }

    /// The container's process has ended: nothing is probed any more.
    pub fn stop(&mut self) {
        self.due = None;
        self.probe = None;
    }

    fn plan(&mut self) {
        let wait = self.check.wait(self.health.status, self.up());
        self.due = Instant::now().checked_add(wait);
    }

    fn up(&self) -> Duration {
        self.started
            .map_or(Duration::ZERO, |started| started.elapsed())
    }

    /// When something is to be done.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.probe.as_ref().map(|probe| probe.until).or(self.due)
    }

    /// Whether a probe is to be started.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.probe.is_none() && self.due.is_some_and(|due| due <= now)
    }

    /// The probe that has taken too long.
    #[must_use]
    pub fn overdue(&self, now: Instant) -> Option<ProcessId> {
        let probe = self.probe.as_ref().filter(|probe| probe.until <= now)?;
        Some(probe.id)
    }

    /// Whether a process is the probe.
    #[must_use]
    pub fn is(&self, id: ProcessId) -> bool {
        self.probe.as_ref().is_some_and(|probe| probe.id == id)
    }

    /// A probe is being started as this process.
    pub fn begin(&mut self, id: ProcessId) {
        let now = Instant::now();
        self.due = None;
        self.probe = Some(Probe {
            id,
            start: Timestamp::now(),
            until: now.checked_add(self.check.timeout).unwrap_or(now),
            streams: Vec::new(),
            output: Vec::new(),
        });
    }

    /// One of its outputs.
    pub fn connect(&mut self, stream: UnixStream) {
        if let Some(probe) = &mut self.probe
            && stream.set_nonblocking(true).is_ok()
        {
            probe.streams.push(stream);
        }
    }

    /// What to wait for.
    pub fn streams(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let streams = self.probe.iter().flat_map(|probe| &probe.streams);
        streams.map(AsFd::as_fd)
    }

    /// Reads what the probe has written.
    pub fn read(&mut self) {
        if let Some(probe) = &mut self.probe {
            probe.read();
        }
    }

    /// The probe ended with this code; the health where that changed.
    pub fn end(&mut self, exit_code: i32) -> Option<HealthStatus> {
        self.read();
        let output = match &self.probe {
            Some(probe) => String::from_utf8_lossy(&probe.output).into_owned(),
            None => String::new(),
        };
        self.finish(exit_code, output)
    }

    /// The probe has no exit code, for this reason; the health where that changed.
    pub fn fail(&mut self, reason: &str) -> Option<HealthStatus> {
        self.finish(-1, reason.into())
    }

    /// The probe was killed for the time that it took; the health where that changed.
    pub fn time_out(&mut self) -> Option<HealthStatus> {
        self.read();
        let probe = self.probe.as_ref()?;
        let written = String::from_utf8_lossy(&probe.output);
        let limit = self.check.timeout.as_secs_f64();
        let colon = if written.is_empty() { "" } else { ": " };
        let reason = format!("Health check exceeded timeout ({limit}s){colon}{written}");
        self.finish(-1, reason)
    }

    fn finish(&mut self, exit_code: i32, output: String) -> Option<HealthStatus> {
        let probe = self.probe.take()?;
        let before = self.health.status;
        let result = ProbeResult {
            start: probe.start,
            end: Timestamp::now(),
            exit_code,
            output,
        };
        self.health.take_in(result, self.up(), &self.check);
        self.plan();
        (self.health.status != before).then_some(self.health.status)
    }
}

impl Probe {
    /// Reads once of each stream; of what is beyond the limit nothing is kept.
    fn read(&mut self) {
        let output = &mut self.output;
        self.streams.retain_mut(|stream| {
            let mut chunk = [0; MAX_OUTPUT];
            match stream.read(&mut chunk) {
                Ok(0) => false,
                Ok(length) => {
                    let room = MAX_OUTPUT.saturating_sub(output.len());
                    output.extend_from_slice(&chunk[..length.min(room)]);
                    true
                }
                Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            }
        });
    }
}
