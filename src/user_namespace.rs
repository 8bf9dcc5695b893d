//! User namespaces of an ordinary user's processes, for files that are not all that user's own: the user is root in there,
//! and all others are those of the ranges in `/etc/subuid` and `/etc/subgid`, where there are any (subuid(5)).
//!
//! A process makes its namespace itself, and who started it gives it its users, as only who is outside can.

use std::{
    fs, io,
    os::fd::BorrowedFd,
    process::{Child, Command},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Uid, User, getgid, getuid},
};

use crate::{
    own_process::{receive, send},
    program,
};

/// Why a process has no users.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum UserNamespaceError {
    #[error(
        "this host makes no user namespace for you: {0} (see the sysctls user.max_user_namespaces, \
         kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns)"
    )]
    Refused(String),
    #[error("cannot talk to the process")]
    Talk(#[source] io::Error),
    #[error("the process ended early")]
    Lost,
    #[error(
        "there is no program `{0}`, which gives you the users of your range in /etc/subuid and /etc/subgid: \
         install it (Debian's package `uidmap`)"
    )]
    NoProgram(&'static str),
    #[error("cannot run {program}")]
    Run {
        program: &'static str,
        source: io::Error,
    },
    #[error("{program} refused: {said}")]
    Program { program: &'static str, said: String },
    #[error("cannot write {path}")]
    Map { path: String, source: io::Error },
}

/// Enters a namespace, which has users when this returns. The process has one thread, and the other end of `control` is
/// with who [gives](give_users) them.
///
/// # Errors
///
/// Where the host allows no user namespaces, or nobody gives it users.
pub fn enter(control: BorrowedFd<'_>) -> Result<(), UserNamespaceError> {
    let unshared = unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| error.to_string());
    send(control, &unshared, None).map_err(UserNamespaceError::Talk)?;
    unshared.map_err(UserNamespaceError::Refused)?;
    match receive::<()>(control).map_err(UserNamespaceError::Talk)? {
        Some(_) => Ok(()),
        None => Err(UserNamespaceError::Lost),
    }
}

/// Gives users to a child of this process that [enters](enter) a namespace.
///
/// # Errors
///
/// Where it could not, and where newuidmap(1), newgidmap(1) or the kernel refuses.
pub fn give_users(child: &Child, control: BorrowedFd<'_>) -> Result<(), UserNamespaceError> {
    match receive::<Result<(), String>>(control).map_err(UserNamespaceError::Talk)? {
        Some((unshared, _)) => unshared.map_err(UserNamespaceError::Refused)?,
        None => return Err(UserNamespaceError::Lost),
    }
    map(child.id())?;
    send(control, &(), None).map_err(UserNamespaceError::Talk)
}

fn map(pid: u32) -> Result<(), UserNamespaceError> {
    let user = getuid();
    let name = User::from_uid(user).ok().flatten().map(|user| user.name);
    let range = |path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        range_of(&text, name.as_deref().unwrap_or_default(), user)
    };
    match (range("/etc/subuid"), range("/etc/subgid")) {
        (Some(users), Some(groups)) => {
            with_program("newuidmap", pid, user.as_raw(), users)?;
            with_program("newgidmap", pid, getgid().as_raw(), groups)
        }
        // Only this one user: the owner of everything, as it were root.
        _ => {
            let write = |name: &str, text: String| {
                let path = format!("/proc/{pid}/{name}");
                fs::write(&path, text).map_err(|source| UserNamespaceError::Map { path, source })
            };
            write("setgroups", "deny".into())?;
            write("uid_map", format!("0 {user} 1\n"))?;
            write("gid_map", format!("0 {} 1\n", getgid()))
        }
    }
}

fn with_program(
    name: &'static str,
    pid: u32,
    own: u32,
    (start, count): (u32, u32),
) -> Result<(), UserNamespaceError> {
    let program = program::find(name).ok_or(UserNamespaceError::NoProgram(name))?;
    let numbers = [pid, 0, own, 1, 1, start, count].map(|number| number.to_string());
    let output = Command::new(program).args(numbers).output();
    let output = output.map_err(|source| UserNamespaceError::Run {
        program: name,
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(UserNamespaceError::Program {
        program: name,
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// The first range of a user: where it starts, and how many.
fn range_of(text: &str, name: &str, user: Uid) -> Option<(u32, u32)> {
    let number = user.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let whose = fields.next()?;
        if whose != name && whose != number {
            return None;
        }
        let (start, count) = (
            fields.next()?.parse().ok()?,
            fields.next()?.trim().parse().ok()?,
        );
        (count > 0).then_some((start, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_belongs_to_a_name_or_a_number() {
        let text = "other:1:2\nme:100000:65536\n1000:5:6\nme:7:8\n";
        let find = |name, uid| range_of(text, name, Uid::from_raw(uid));
        assert_eq!(find("me", 7), Some((100_000, 65_536)));
        assert_eq!(find("x", 1000), Some((5, 6)));
        assert_eq!(find("", 7), None);
        assert_eq!(range_of("me:x:y\nme:1:0\n", "me", Uid::from_raw(1)), None);
    }
}
