//! Mounts as descriptors (fsopen(2), move_mount(2)): a file system is created detached, then attached
//! to an open file or folder, so that no path is looked up twice.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{CWD, Mode, OFlags, open},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_remount,
        move_mount, open_tree,
    },
};

/// A file system's option: its name, and a value where it takes one.
pub type FsOption<'a> = (&'a str, Option<&'a str>);

/// Creates a file system, attached nowhere yet. Where the options name no `source`, it is the type.
///
/// # Errors
///
/// Those of the kernel: `ENODEV` for an unknown type, `EINVAL` for an unknown option.
pub fn create(
    fs_type: &str,
    options: &[FsOption<'_>],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *name, *value)?,
            None => fsconfig_set_flag(&context, *name)?,
        }
    }
    if !options.iter().any(|(name, _)| *name == "source") {
        fsconfig_set_string(&context, "source", fs_type)?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// A second, detached mount of the file or folder at `path`, for a later [`attach`].
///
/// # Errors
///
/// Those of open_tree(2).
pub fn duplicate(path: &str) -> io::Result<OwnedFd> {
    Ok(open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?)
}

/// As [`duplicate`], of a file that is open.
///
/// # Errors
///
/// Those of open_tree(2).
pub fn duplicate_open(file: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(file, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?)
}

/// Attaches a detached mount on top of an open file or folder.
///
/// # Errors
///
/// Those of move_mount(2).
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let both_empty =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", both_empty)?)
}

/// As [`attach`], to a path that exists.
///
/// # Errors
///
/// Those of open(2) and move_mount(2).
pub fn attach_at(mount: impl AsFd, path: &str) -> io::Result<()> {
    attach(
        mount,
        open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
    )
}

/// Makes the mount at `path`, not its file system, read-only; `flags` are those that it keeps.
///
/// # Errors
///
/// Those of mount(2).
pub fn make_read_only(path: &str, flags: MountFlags) -> io::Result<()> {
    Ok(mount_remount(
        path,
        flags | MountFlags::BIND | MountFlags::RDONLY,
        "",
    )?)
}

/// What mount(8) options mean: attributes of the mount, and options of the file system.
///
/// Options that are about neither (`rw`, `bind`, propagation, which is always private here) are left
/// out, and of contradictory ones the last counts.
pub fn parse_options(options: &[String]) -> (MountAttrFlags, Vec<FsOption<'_>>) {
    let mut attributes = MountAttrFlags::empty();
    let mut of_fs = Vec::new();
    for option in options {
        let (flag, on) = match option.as_str() {
            "ro" => (MountAttrFlags::MOUNT_ATTR_RDONLY, true),
            "rw" => (MountAttrFlags::MOUNT_ATTR_RDONLY, false),
            "nosuid" => (MountAttrFlags::MOUNT_ATTR_NOSUID, true),
            "suid" => (MountAttrFlags::MOUNT_ATTR_NOSUID, false),
            "nodev" => (MountAttrFlags::MOUNT_ATTR_NODEV, true),
            "dev" => (MountAttrFlags::MOUNT_ATTR_NODEV, false),
            "noexec" => (MountAttrFlags::MOUNT_ATTR_NOEXEC, true),
            "exec" => (MountAttrFlags::MOUNT_ATTR_NOEXEC, false),
            "noatime" => (MountAttrFlags::MOUNT_ATTR_NOATIME, true),
            "atime" | "relatime" => (MountAttrFlags::MOUNT_ATTR__ATIME, false),
            "strictatime" => (MountAttrFlags::MOUNT_ATTR_STRICTATIME, true),
            "nodiratime" => (MountAttrFlags::MOUNT_ATTR_NODIRATIME, true),
            "diratime" => (MountAttrFlags::MOUNT_ATTR_NODIRATIME, false),
            "" | "defaults" | "bind" | "rbind" | "private" | "rprivate" | "shared" | "rshared"
            | "slave" | "rslave" => continue,
            other => {
                of_fs.push(match other.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (other, None),
                });
                continue;
            }
        };
        // How access times are kept is one of three values, not independent bits.
        if MountAttrFlags::MOUNT_ATTR__ATIME.contains(flag) {
            attributes.remove(MountAttrFlags::MOUNT_ATTR__ATIME);
        }
        attributes.set(flag, on);
    }
    (attributes, of_fs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> (MountAttrFlags, Vec<(String, Option<String>)>) {
        let options: Vec<String> = options.split(',').map(str::to_owned).collect();
        let (attributes, of_fs) = parse_options(&options);
        let owned = of_fs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        (attributes, owned.collect())
    }

    #[test]
    fn attributes_and_options_of_the_file_system_are_told_apart() {
        let (attributes, of_fs) =
            parse("rw,noexec,nosuid,nodev,size=64m,mode=1777,huge=never,rprivate");
        let expected = MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV;
        assert_eq!(attributes, expected);
        let names: Vec<_> = of_fs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["size", "mode", "huge"]);
        assert_eq!(of_fs[0].1.as_deref(), Some("64m"));
    }

    #[test]
    fn the_last_of_two_contradictory_options_counts() {
        assert_eq!(parse("noexec,exec").0, MountAttrFlags::empty());
        assert_eq!(parse("rw,ro").0, MountAttrFlags::MOUNT_ATTR_RDONLY);
        assert_eq!(
            parse("strictatime,noatime").0,
            MountAttrFlags::MOUNT_ATTR_NOATIME
        );
        assert_eq!(parse("noatime,relatime").0, MountAttrFlags::empty());
    }

    #[test]
    fn an_option_keeps_what_follows_its_first_equals_sign() {
        assert_eq!(
            parse("context=a=b").1,
            [("context".to_owned(), Some("a=b".to_owned()))]
        );
        assert_eq!(parse("inode32").1, [("inode32".to_owned(), None)]);
    }
}
