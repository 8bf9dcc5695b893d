//! Users and groups of a share process that is not root's: its own user as root, and the ranges of `/etc/subuid`
//! and `/etc/subgid` as all others, where there are any (subuid(5)).

use std::{fs, io, process::Command};

use nix::unistd::{Uid, User, getgid, getuid};

/// Gives the process users and groups.
///
/// # Errors
///
/// Where newuidmap(1) or newgidmap(1) fails, or the kernel refuses.
pub fn map(pid: u32) -> io::Result<()> {
    let user = getuid();
    let name = User::from_uid(user)?.map(|user| user.name);
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
            let file = |name: &str| format!("/proc/{pid}/{name}");
            fs::write(file("setgroups"), "deny")?;
            fs::write(file("uid_map"), format!("0 {user} 1\n"))?;
            fs::write(file("gid_map"), format!("0 {} 1\n", getgid()))
        }
    }
}

fn with_program(program: &str, pid: u32, own: u32, (start, count): (u32, u32)) -> io::Result<()> {
    let numbers = [pid, 0, own, 1, 1, start, count].map(|number| number.to_string());
    let output = Command::new(program).args(numbers).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{program}: {said}")))
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
