//! Which folders of the host a guest gets only when somebody says that this is meant.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Everything below these is the host itself, not files.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Whoever can talk to one of these rules the host.
const SOCKETS: [&str; 5] = [
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/dbus/system_bus_socket",
];

/// Why a folder or file of the host is not mounted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SourceError {
    #[error("invalid mount config for type \"bind\": bind source path does not exist: {0}")]
    Missing(PathBuf),
    #[error("cannot use {path}")]
    Unusable { path: PathBuf, source: io::Error },
    #[error(
        "mounting {path} would give the container {what}: if that is meant, say \
         --allow-dangerous-mounts"
    )]
    Dangerous { path: PathBuf, what: &'static str },
}

/// The path of what is mounted, without links in it.
///
/// # Errors
///
/// [`SourceError`]; dangerous ones are errors unless `allow_dangerous`.
pub fn check(
    path: &Path,
    state_root: &Path,
    allow_dangerous: bool,
) -> Result<PathBuf, SourceError> {
    let real = real_path(path).map_err(|source| SourceError::Unusable {
        path: path.to_owned(),
        source,
    })?;
    let state_root = fs::canonicalize(state_root).unwrap_or_else(|_| state_root.to_owned());
    match danger(&real, &state_root) {
        Some(what) if !allow_dangerous => Err(SourceError::Dangerous {
            path: path.to_owned(),
            what,
        }),
        _ if real.exists() => Ok(real),
        _ => Err(SourceError::Missing(path.to_owned())),
    }
}

/// A path without links in it; what is not there yet has none.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Err(error), Some(parent), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            Ok(real_path(parent)?.join(name))
        }
        (real, ..) => real,
    }
}

/// What somebody gets with this folder or file.
fn danger(path: &Path, state_root: &Path) -> Option<&'static str> {
    let is_socket = |socket: &str| {
        let real = fs::canonicalize(socket).unwrap_or_else(|_| PathBuf::from(socket));
        real == path || Path::new(socket) == path || real.exists() && real.starts_with(path)
    };
    if path == Path::new("/") {
        return Some("every file of this host");
    }
    if KERNEL.iter().any(|folder| path.starts_with(folder)) {
        return Some("this host's kernel and devices");
    }
    if path.starts_with(state_root) || state_root.starts_with(path) {
        return Some("the images, volumes and containers of everybody else");
    }
    SOCKETS
        .iter()
        .any(|socket| is_socket(socket))
        .then_some("a socket through which this host is ruled")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a61_what_rules_the_host_is_mounted_only_when_that_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("state");
        let data = folder.path().join("data");
        for folder in [&root, &data] {
            fs::create_dir(folder).unwrap();
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        fs::create_dir(root.join("volumes")).unwrap();
        for path in [
            Path::new("/"),
            Path::new("/proc/1"),
            Path::new("/sys"),
            &root,
            folder.path(),
            &link,
            &root.join("volumes"),
        ] {
            let error = check(path, &root, false).unwrap_err();
            assert!(matches!(error, SourceError::Dangerous { .. }), "{path:?}");
            check(path, &root, true).unwrap();
        }
        assert_eq!(
            check(&data, &root, false).unwrap(),
            fs::canonicalize(&data).unwrap()
        );
        let missing = check(&folder.path().join("missing"), &root, true);
        assert!(matches!(missing, Err(SourceError::Missing(_))));
        let socket = Path::new("/run/docker.sock");
        assert!(danger(socket, &root).is_some());
    }
}
