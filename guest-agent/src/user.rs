//! Users and groups: who `user[:group]` is, by the container's own `/etc/passwd` and `/etc/group`.
//!
//! These files are the image's, so they are read up to a limit and believed only where they are well
//! formed: a number that does not parse, or is out of range, never turns into 0.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
};

use protocol::StartStage;

use crate::failure::{At, Failure};

/// Largest `passwd` or `group` that is read, in bytes.
const FILE_LIMIT: u64 = 4 << 20;

/// Largest user or group ID: the one after the last, 2³² - 1, means "leave it" to setuid(2), and
/// Docker refuses all that are not positive in 32 bits.
const ID_LIMIT: u32 = i32::MAX.cast_unsigned();

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User ID.
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// Supplementary group IDs.
    pub groups: Vec<u32>,
    /// Home folder; `/` where nothing names one.
    pub home: String,
}

/// Finds out who `user` and the `additional` groups are, in the current root.
///
/// # Errors
///
/// At [`StartStage::User`], with the name as its subject where that is unknown or out of range, or
/// the file where it cannot be read.
pub fn lookup(user: &str, additional: &[String]) -> Result<Identity, Failure> {
    let passwd = read("/etc/passwd")?;
    let group = read("/etc/group")?;
    resolve(user, additional, &passwd, &group)
}

/// The text of a regular file of limited size; empty where it is absent.
fn read(path: &str) -> Result<String, Failure> {
    let read = || {
        // Not blocking: the image may have put a FIFO there.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut bytes = Vec::new();
        file.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result.at(StartStage::User, path),
    }
}

/// A line of `/etc/passwd` (passwd(5)).
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// A line of `/etc/group` (group(5)).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id(fields.nth(1)?)?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    })
}

fn resolve(
    user: &str,
    additional: &[String],
    passwd: &str,
    group: &str,
) -> Result<Identity, Failure> {
    let unknown = |name: &str| Failure::refused(StartStage::User, name);
    let (user, explicit_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    // As Docker has it, what looks like a number is one, even where a user has it as a name.
    let entry = match user {
        "" => users(passwd).find(|entry| entry.uid == 0),
        _ if is_number(user) => {
            let uid = id(user).ok_or_else(|| unknown(user))?;
            users(passwd).find(|entry| entry.uid == uid)
        }
        _ => Some(
            users(passwd)
                .find(|entry| entry.name == user)
                .ok_or_else(|| unknown(user))?,
        ),
    };
    let uid = match &entry {
        Some(entry) => entry.uid,
        None if user.is_empty() => 0,
        None => id(user).ok_or_else(|| unknown(user))?,
    };
    let find_group = |name: &str| {
        if is_number(name) {
            return id(name);
        }
        groups(group)
            .find(|entry| entry.name == name)
            .map(|entry| entry.gid)
    };

    let mut supplementary = Vec::new();
    let gid = match (explicit_group, &entry) {
        (Some(name), _) => find_group(name).ok_or_else(|| unknown(name))?,
        (None, Some(entry)) => {
            let is_member = |group: &Group<'_>| group.members.split(',').any(|it| it == entry.name);
            supplementary.extend(groups(group).filter(is_member).map(|group| group.gid));
            entry.gid
        }
        (None, None) => 0,
    };
    for name in additional {
        supplementary.push(find_group(name).ok_or_else(|| unknown(name))?);
    }
    supplementary.sort_unstable();
    supplementary.dedup();
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty())
        .unwrap_or("/");
    Ok(Identity {
        uid,
        gid,
        groups: supplementary,
        home: home.to_owned(),
    })
}

/// Whether a name is meant as an ID; a sign counts, so that `-1` is a bad number and not a name.
fn is_number(name: &str) -> bool {
    let digits = name.strip_prefix(['-', '+']).unwrap_or(name);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// An ID in range, in digits only.
fn id(text: &str) -> Option<u32> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id <= ID_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        app:x:1000:1001:App,,,:/srv/app:/bin/false\n\
        1234:x:0:0:digits as a name:/root:/bin/sh\n\
        huge:x:4294967296:0::/:\n\
        minus:x:-1:0::/:\n\
        last:x:4294967295:0::/:\n\
        empty:x:::::\n\
        plus:x:+0:+0::/:\n\
        torn:x\n";
    const GROUP: &str =
        "root:x:0:\nstaff:x:50:app,other\naudio:x:29:other,app\nvideo:x:44:apple\nbad:x:-5:app\n";

    fn found(user: &str) -> Identity {
        resolve(user, &[], PASSWD, GROUP).unwrap()
    }

    fn refused(user: &str) -> Failure {
        resolve(user, &[], PASSWD, GROUP).unwrap_err()
    }

    #[test]
    fn nobody_named_is_root() {
        let root = Identity {
            uid: 0,
            gid: 0,
            groups: vec![],
            home: "/root".into(),
        };
        assert_eq!(found(""), root);
        assert_eq!(found("0"), root);
        assert_eq!(found("root"), root);
    }

    #[test]
    fn root_needs_no_files() {
        let root = Identity {
            uid: 0,
            gid: 0,
            groups: vec![],
            home: "/".into(),
        };
        assert_eq!(resolve("", &[], "", ""), Ok(root));
    }

    #[test]
    fn a_user_has_home_and_groups_from_the_files() {
        let app = Identity {
            uid: 1000,
            gid: 1001,
            groups: vec![29, 50],
            home: "/srv/app".into(),
        };
        assert_eq!(found("app"), app);
        assert_eq!(found("1000"), app);
    }

    #[test]
    fn an_explicit_group_stands_alone() {
        assert_eq!(found("app:video").gid, 44);
        assert_eq!(found("app:video").groups, []);
        assert_eq!(found("app:7").gid, 7);
        assert_eq!(found(":staff").gid, 50);
    }

    #[test]
    fn a_number_without_an_entry_is_that_user_in_the_root_group() {
        let stranger = Identity {
            uid: 4242,
            gid: 0,
            groups: vec![],
            home: "/".into(),
        };
        assert_eq!(found("4242"), stranger);
    }

    #[test]
    fn additional_groups_join() {
        let additional = ["7".to_owned(), "staff".to_owned()];
        let app = resolve("app", &additional, PASSWD, GROUP).unwrap();
        assert_eq!(app.groups, [7, 29, 50]);
        let unknown = resolve("app", &["nosuch".to_owned()], PASSWD, GROUP).unwrap_err();
        assert_eq!(unknown.subject, "nosuch");
    }

    #[test]
    fn a35_a_number_that_is_also_a_name_is_a_number() {
        assert_eq!(found("1234").uid, 1234);
    }

    #[test]
    fn a35_numbers_out_of_range_are_refused() {
        for user in [
            "4294967296",
            "4294967295",
            "2147483648",
            "-1",
            "-0",
            "+0",
            "99999999999999999999",
        ] {
            assert_eq!(refused(user), Failure::refused(StartStage::User, user));
        }
        assert_eq!(refused("app:4294967296").subject, "4294967296");
        assert_eq!(refused("app:-1").subject, "-1");
    }

    #[test]
    fn a35_entries_with_bad_numbers_do_not_exist() {
        for user in ["huge", "minus", "last", "empty", "plus", "torn", "nosuch"] {
            assert_eq!(refused(user), Failure::refused(StartStage::User, user));
        }
        assert_eq!(refused("app:bad").subject, "bad");
    }

    #[test]
    fn a35_a_file_without_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passwd");
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(read(path).unwrap_err().errno, libc::EFBIG);
        assert_eq!(read("/dev/zero").unwrap_err().errno, libc::EINVAL);
        assert_eq!(read("/nonexistent/passwd"), Ok(String::new()));
    }
}
