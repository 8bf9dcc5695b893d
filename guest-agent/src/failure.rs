//! Why a process could not be started: the stage, the error number and what it was about, as the
//! host is told.

use std::io;

use protocol::{AgentMessage, ProcessId, StartStage};

/// Longest subject that is sent, in bytes.
const SUBJECT_LIMIT: usize = 1024;

/// One failed step of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the agent was doing.
    pub stage: StartStage,
    /// `errno` of the failed call; 0 where no call failed.
    pub errno: i32,
    /// What it was done to.
    pub subject: String,
}

impl Failure {
    /// A failure that is no system call's.
    pub fn refused(stage: StartStage, subject: impl Into<String>) -> Self {
        Self {
            stage,
            errno: 0,
            subject: subject.into(),
        }
    }

    /// As the message that reports it of a process.
    pub fn into_message(self, id: ProcessId) -> AgentMessage {
        AgentMessage::StartFailed {
            id,
            stage: self.stage,
            errno: self.errno,
            subject: self.cut_subject(),
        }
    }

    /// As the message that reports it of mounts to fill.
    pub fn into_fill_failed(self) -> AgentMessage {
        AgentMessage::FillFailed {
            stage: self.stage,
            errno: self.errno,
            subject: self.cut_subject(),
        }
    }

    fn cut_subject(mut self) -> String {
        if self.subject.len() > SUBJECT_LIMIT {
            self.subject
                .truncate(self.subject.floor_char_boundary(SUBJECT_LIMIT));
        }
        self.subject
    }
}

/// Says at which stage, and on what, a call failed.
pub trait At<T> {
    /// # Errors
    ///
    /// The error of `self` with its stage and subject.
    fn at(self, stage: StartStage, subject: &str) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, stage: StartStage, subject: &str) -> Result<T, Failure> {
        self.map_err(|error| {
            let error = error.into();
            // A NUL in a string is found before the kernel could say so.
            let nul = (error.kind() == io::ErrorKind::InvalidInput).then_some(libc::EINVAL);
            Failure {
                stage,
                errno: error.raw_os_error().or(nul).unwrap_or(0),
                subject: subject.to_owned(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_subject_is_cut_between_characters() {
        let failure = Failure::refused(StartStage::User, "ü".repeat(1000) + "x");
        let AgentMessage::StartFailed {
            subject, errno: 0, ..
        } = failure.into_message(ProcessId(1))
        else {
            panic!("a failure is a StartFailed");
        };
        assert_eq!(subject, "ü".repeat(512));
    }
}
