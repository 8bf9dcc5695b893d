//! Where the guest kernel is.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Environment variable that names a kernel.
pub const VARIABLE: &str = "PILLBUG_KERNEL";

/// Why there is no kernel to boot.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum KernelError {
    #[error("there is no kernel at {path}, which {named_by} names")]
    Missing {
        path: PathBuf,
        named_by: &'static str,
    },
    #[error(
        "no guest kernel found: run `make kernel` in pillbug's source once, or name one with \
         --kernel or {VARIABLE} (looked at {looked_at})"
    )]
    NotFound { looked_at: String },
}

/// The guest kernel: `given` (`--kernel`), else what the environment names, else the one installed with
/// this program, else the one last built.
///
/// # Errors
///
/// [`KernelError`], which says what to do.
pub fn find(given: Option<&Path>) -> Result<PathBuf, KernelError> {
    let named = given
        .map(|path| (path.to_owned(), "--kernel"))
        .or_else(|| set(VARIABLE).map(|path| (path, VARIABLE)));
    if let Some((path, named_by)) = named {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(KernelError::Missing { path, named_by })
        };
    }
    let candidates: Vec<PathBuf> = [installed(), built()].into_iter().flatten().collect();
    candidates
        .iter()
        .find(|path| path.is_file())
        .cloned()
        .ok_or_else(|| KernelError::NotFound {
            looked_at: candidates
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// `PREFIX/lib/pillbug/vmlinux` for a program in `PREFIX/bin`.
fn installed() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    Some(program.parent()?.parent()?.join("lib/pillbug/vmlinux"))
}

/// Where `kernel-config/build.sh` leaves its newest result.
fn built() -> Option<PathBuf> {
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("pillbug/kernel/vmlinux"))
}

fn set(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_kernel_that_is_missing_is_an_error_of_its_own() {
        let path = Path::new("/nowhere/vmlinux");
        let error = find(Some(path)).unwrap_err();
        assert_eq!(
            error,
            KernelError::Missing {
                path: path.into(),
                named_by: "--kernel"
            }
        );
    }
}
