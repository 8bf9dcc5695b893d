//! Lists of the system calls that a process may make from now on. All others fail.

use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// Why the filter is not there.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// It cannot be made.
    #[error("the filter is no program")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel does not take it.
    #[error("the kernel does not take the filter")]
    Apply(#[from] seccompiler::Error),
}

/// Forbids all but `allowed` to this thread and those that it makes, and new privileges with them.
///
/// # Errors
///
/// [`SeccompError`].
pub fn enter(allowed: &[i64]) -> Result<(), SeccompError> {
    let rules = allowed.iter().map(|&call| (call, Vec::new())).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    let program: BpfProgram = filter.try_into()?;
    Ok(apply_filter(&program)?)
}
