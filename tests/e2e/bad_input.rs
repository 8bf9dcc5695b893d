//! Mistakes on the command line and in files: a clear error at once, and nothing left behind.

use std::fs;

use predicates::{prelude::*, str::contains};
use tempfile::TempDir;

use crate::{
    command::{output_of, pillbug, run, state_root, traces},
    image::{Image, archive},
};

/// `run ARGUMENTS` is refused with a reason that contains `reason`, and leaves nothing.
fn refused(arguments: &[&str], reason: &str) {
    let before = traces(&state_root());
    run(arguments)
        .assert()
        .code(125)
        .stdout("")
        .stderr(contains(reason).and(contains("panicked").not()));
    assert_eq!(traces(&state_root()), before, "{arguments:?}");
}

#[test]
fn a_missing_source() {
    refused(&["./no/such/file.tar", "true"], "./no/such/file.tar");
    refused(&["no-such-image", "true"], "no-such-image");
}

#[test]
fn a65_cpus_out_of_range() {
    for cpus in ["0", "33", "10000", "-1", "99999999999999999999", "x", ""] {
        refused(&["--cpus", cpus, "busybox", "true"], "CPU");
    }
}

#[test]
fn a65_memory_out_of_range() {
    for memory in [
        "1m",
        "31m",
        "0",
        "10t",
        "18446744073709551616",
        "17179869184g",
        "-1",
        "x",
    ] {
        refused(&["-m", memory, "busybox", "true"], "");
    }
}

#[test]
fn a35_users_that_do_not_exist_or_fit() {
    refused(
        &["-u", "nobody-of-that-name", "busybox", "true"],
        "nobody-of-that-name",
    );
    refused(
        &["-u", "root:no-such-group", "busybox", "true"],
        "no-such-group",
    );
    for user in [
        "4294967296",
        "4294967295",
        "-1",
        "99999999999999999999",
        "0x0",
        "+0",
        " 0",
    ] {
        refused(&["-u", user, "busybox", "id"], "");
    }
}

#[test]
fn a35_an_images_user_is_checked_as_well() {
    for user in ["4294967296", "-1", "0:4294967296"] {
        let folder = TempDir::new().expect("a temporary folder");
        let layout = Image::busybox().config("User", user).write(folder.path());
        // In the store beforehand, where an image that was run from a path stays.
        pillbug().args(["load", "-i", &layout]).assert().success();
        refused(&[&layout, "id"], "");
    }
}

#[test]
fn a36_hostile_values_stay_values() {
    let plain = output_of(["busybox", "cat", "/proc/cmdline"]);
    let evil = "a b=c\nd init=/bin/evil console=ttyS0 \"quoted\" 'and' $HOME \\";
    let folder = TempDir::new().expect("a temporary folder");
    let layout = Image::busybox()
        .config(
            "Env",
            vec![
                "PATH=/bin".to_owned(),
                format!("EVIL={evil}"),
                "init=/bin/x=y".into(),
            ],
        )
        .config("WorkingDir", format!("/{evil}"))
        .config(
            "Entrypoint",
            vec![
                "sh",
                "-c",
                "cat /proc/cmdline; printf '%s|' \"$EVIL\" \"$PWD\" \"$@\"",
            ],
        )
        .config("Cmd", vec!["sh", evil])
        .write(folder.path());
    let options = |line: &str| -> Vec<String> {
        // The command line names the devices, and nothing else may differ.
        line.split_whitespace()
            .filter(|word| !word.starts_with("virtio_mmio"))
            .map(Into::into)
            .collect()
    };
    let output = output_of([&*layout]);
    let (command_line, values) = output.split_once('\n').expect("two lines at least");
    assert_eq!(options(command_line), options(&plain));
    assert_eq!(values, format!("{evil}|/{evil}|{evil}|"));
}

#[test]
fn flags_that_are_none() {
    for flags in [
        &["--no-such-flag"][..],
        &["-e", "=x"],
        &["--ulimit", "nofile=x"],
        &["--cap-add", "NO_SUCH"],
        &["--tmpfs", "relative"],
        &["-w", "relative"],
        &["--env-file", "/no/such/file"],
    ] {
        let arguments = [flags, &["busybox", "true"]].concat();
        refused(&arguments, "");
    }
}

#[test]
fn archives_that_are_none_or_end_early() {
    let folder = TempDir::new().expect("a temporary folder");
    let archive = archive(&Image::busybox().write(&folder.path().join("layout")));
    let path = folder.path().join("image.tar");
    for (content, what) in [
        (&b"this is no archive"[..], "text"),
        (&[][..], "nothing"),
        (&archive[..archive.len() / 2], "half"),
        (&archive[..600], "a header"),
    ] {
        fs::write(&path, content).expect("the folder is writable");
        let before = traces(&state_root());
        pillbug()
            .args(["load", "-i"])
            .arg(&path)
            .assert()
            .code(125)
            .stdout("")
            .stderr(contains("image.tar").and(contains("panicked").not()));
        assert_eq!(traces(&state_root()), before, "{what}");
        refused(&[path.to_str().expect("a plain name"), "true"], "image.tar");
    }
}
