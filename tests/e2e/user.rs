//! An ordinary user of the host, with a program, a kernel and images of its own; there is one of them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use assert_cmd::assert::Assert;

use crate::command::{program, state_root};

/// nobody, of group nogroup.
pub const ID: u32 = 65534;
pub const HOME: &str = "/run/rootless";

/// The first of the users and groups that the user has in containers, beside itself as root.
pub const FIRST_OF_RANGE: u32 = 200_000;

/// Files below this are the user's own; larger ones are read where they are.
const SMALL: u64 = 4 << 20;

/// The user.
pub struct User;

/// A range of users and groups that is the user's, until this is dropped.
pub struct Range;

impl User {
    pub fn new() -> Self {
        let kvm = fs::Permissions::from_mode(0o666);
        fs::set_permissions("/dev/kvm", kvm).expect("it is root's to say");
        if !Path::new(HOME).exists() {
            make_folder(Path::new(HOME));
            let kernel = std::env::var_os("PILLBUG_KERNEL").expect("tests name one");
            for (from, name) in [(PathBuf::from(kernel), "vmlinux"), (program(), "pillbug")] {
                let to = Path::new(HOME).join(name);
                fs::copy(from, &to).expect("there is room");
                let all = fs::Permissions::from_mode(0o755);
                fs::set_permissions(to, all).expect("root may");
            }
            lend_images();
        }
        Self
    }

    /// Its `pillbug ARGUMENTS...`.
    pub fn process(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(Path::new(HOME).join("pillbug"))
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("PILLBUG_ROOT", self.state())
            .env("PILLBUG_KERNEL", Path::new(HOME).join("vmlinux"));
        command
    }

    pub fn command(&self, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::from_std(self.process(arguments));
        command.timeout(Duration::from_secs(600));
        command
    }

    pub fn does(&self, arguments: &[&str]) -> Assert {
        self.command(arguments).assert().success()
    }

    pub fn told(&self, arguments: &[&str]) -> String {
        let assert = self.does(arguments);
        String::from_utf8(assert.get_output().stdout.clone()).expect("output is text")
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        Path::new(HOME).join("state")
    }

    /// Gives it users and groups.
    pub fn with_range(&self) -> Range {
        for path in Range::FILES {
            let line = format!("{ID}:{FIRST_OF_RANGE}:65536\n");
            fs::write(path, line).expect("root may");
        }
        Range
    }
}

impl Range {
    const FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
}

impl Drop for Range {
    fn drop(&mut self) {
        for path in Self::FILES {
            let _ = fs::write(path, "");
        }
    }
}

fn make_folder(path: &Path) {
    fs::create_dir(path).expect("root may");
    give(path);
}

fn give(path: &Path) {
    chown(path, Some(ID), Some(ID)).expect("root may");
}

/// Gives the user the images of the tests without a copy of what is large in them.
fn lend_images() {
    let home = Path::new(HOME);
    for name in ["state", "state/images", "written", "work"] {
        make_folder(&home.join(name));
    }
    let option = |name: &str, path: &Path| format!("{name}={}", path.display());
    let options = [
        option("lowerdir", &state_root().join("images")),
        option("upperdir", &home.join("written")),
        option("workdir", &home.join("work")),
    ];
    let images = home.join("state/images");
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "-o", &options.join(","), "images"])
        .arg(&images)
        .stdin(Stdio::null())
        .status();
    assert!(mounted.expect("there is a mount").success());
    let mut folders = vec![images];
    while let Some(folder) = folders.pop() {
        give(&folder);
        for entry in fs::read_dir(&folder).expect("root may") {
            let path = entry.expect("it can be listed").path();
            let found = fs::symlink_metadata(&path).expect("it is there");
            if found.is_dir() {
                folders.push(path);
            } else if found.len() < SMALL {
                give(&path);
            }
        }
    }
}
