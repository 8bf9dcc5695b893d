//! Where the guest kernel is.

use std::{
    env,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Environment variable that names a kernel.
pub const VARIABLE: &str = "PILLBUG_KERNEL";

/// Why there is no kernel to boot.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum KernelError {
    #[error("there is no kernel at {path}, which {named_by} names")]
    Missing {
        path: PathBuf,
        named_by: &'static str,
    },
    #[error("cannot read the kernel {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not an ELF file: a guest kernel is an uncompressed vmlinux")]
    NotElf { path: PathBuf },
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
    let path = locate(given)?;
    let mut magic = [0; 4];
    File::open(&path)
        .and_then(|mut kernel| kernel.read_exact(&mut magic))
        .map_err(|source| KernelError::Read {
            path: path.clone(),
            source,
        })?;
    // e_ident, "Executable and Linkable Format", System V ABI.
    if magic == *b"\x7fELF" {
        Ok(path)
    } else {
        Err(KernelError::NotElf { path })
    }
}

fn locate(given: Option<&Path>) -> Result<PathBuf, KernelError> {
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
        assert!(matches!(find(Some(path)), Err(KernelError::Missing { .. })));
    }

    #[test]
    fn a_kernel_that_is_none_is_named() {
        let path = Path::new("/etc/passwd");
        assert!(matches!(find(Some(path)), Err(KernelError::NotElf { .. })));
    }
}
