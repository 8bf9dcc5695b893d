//! A load that is killed at, or fails in, each of its system calls, one after the other, with `strace` as the fault.

use std::{
    path::Path,
    process::{Command, Output},
};

use pillbug::image::store::Store;

use crate::fixture::{Fixture, Packing, Place, succeed};

/// The system calls by which anything on disk changes.
const CHANGES: [&str; 8] = [
    "write",
    "pwrite64",
    "ftruncate",
    "fsync",
    "mkdir",
    "rename",
    "linkat",
    "unlink",
];

/// A call that no load makes this often.
const ENDLESS: usize = 400;

/// Loads `path` with a fault in the call number `when` of `call`.
fn faulty_load(place: &Place, path: &Path, call: &str, fault: &str, when: usize) -> Output {
    let load = place.pillbug(&["load", "-q", "-i", path.to_str().unwrap()]);
    let mut strace = Command::new("strace");
    strace
        .args([
            "-f",
            "-qqq",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={call}"),
        ])
        .args(["-e", &format!("inject={call}:{fault}:when={when}")])
        .arg(load.get_program())
        .args(load.get_args())
        .env("PILLBUG_ROOT", place.state());
    strace.output().unwrap()
}

/// Runs `check` after a fault in each call of `call` that a load makes, and gives how many there were.
fn each_fault(call: &str, fault: &str, check: impl Fn(&Place, &Path, &Output, &str)) -> usize {
    let image = Fixture::new("faults", &[Packing::Gzip, Packing::Plain]).named("a:1");
    for when in 1..ENDLESS {
        let place = Place::new();
        let path = place.write("image", &image.archive());
        let output = faulty_load(&place, &path, call, fault, when);
        if output.status.success() {
            return when - 1;
        }
        check(&place, &path, &output, &format!("{call} number {when}"));
    }
    panic!("{call} is called without end");
}

/// That whatever is in the store is a whole image, and that another load makes it so.
fn whole_or_absent(place: &Place, path: &Path, fault: &str) {
    let images = place.images();
    if images.is_empty() {
        assert_eq!(place.content(), [""; 0], "after {fault}");
    }
    place.load_well(path);
    let store = Store::open(&place.state()).unwrap();
    let image = store.resolve("a:1").unwrap();
    assert!(
        image
            .rootfs
            .parts
            .iter()
            .all(|(path, bytes)| path.metadata().unwrap().len() >= *bytes)
    );
    drop(image);
    store.remove("a:1", false).unwrap();
    assert_eq!(place.content(), [""; 0]);
}

#[test]
fn a51_a_load_killed_at_any_change_leaves_the_store_whole() {
    let mut kills = 0;
    for call in CHANGES {
        kills += each_fault(call, "signal=KILL", |place, path, _, fault| {
            whole_or_absent(place, path, fault);
        });
    }
    // Blobs, layers, metadata, record and name alone are more.
    assert!(kills > 20, "only {kills} calls were found");
}

#[test]
fn a51_a_removal_killed_at_any_change_leaves_the_store_whole() {
    let image = Fixture::new("removal", &[Packing::Gzip, Packing::Plain]).named("a:1");
    for call in ["rename", "unlink", "unlinkat", "rmdir", "fsync"] {
        for when in 1..ENDLESS {
            let place = Place::new();
            let path = place.write("image", &image.archive());
            place.load_well(&path);
            let rmi = place.pillbug(&["rmi", "a:1"]);
            let status = Command::new("strace")
                .args([
                    "-f",
                    "-qqq",
                    "-o",
                    "/dev/null",
                    "-e",
                    &format!("trace={call}"),
                ])
                .args(["-e", &format!("inject={call}:signal=KILL:when={when}")])
                .arg(rmi.get_program())
                .args(rmi.get_args())
                .env("PILLBUG_ROOT", place.state())
                .status()
                .unwrap();
            if status.success() {
                break;
            }
            let store = Store::open(&place.state()).unwrap();
            if let Ok(image) = store.resolve("a:1") {
                assert!(image.rootfs.parts.iter().all(|(path, _)| path.exists()));
            }
            place.load_well(&path);
            store.remove("a:1", false).unwrap();
            assert_eq!(place.content(), [""; 0], "{call} {when}");
        }
    }
}

#[test]
fn a53_a_full_disk_at_any_change_is_an_error_and_rolled_back() {
    for call in CHANGES {
        each_fault(call, "error=ENOSPC", |place, path, output, fault| {
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(125), "{error}");
            assert!(error.contains("No space left on device"), "{error}");
            assert_eq!(place.content(), [""; 0], "after {fault}: {error}");
            whole_or_absent(place, path, fault);
        });
    }
}

#[test]
fn a54_what_does_not_reach_the_disk_is_not_reported_as_done() {
    let failures = each_fault("fsync", "error=EIO", |place, _, output, fault| {
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{error}");
        assert!(error.contains("Input/output error"), "{error}");
        assert_eq!(place.content(), [""; 0], "after {fault}: {error}");
    });
    assert!(failures > 5, "only {failures} calls were found");
}

#[test]
fn a53_a_small_file_system_that_fills_up_is_left_as_it_was() {
    let place = Place::new();
    let content = "x".repeat(3 << 20);
    let mut image = Fixture::new(&content, &[Packing::Gzip]).named("big:1");
    image.config["config"]["Labels"]["seed"] = "".into();
    image.seal();
    let path = place.write("image", &image.archive());
    // The blob fits, the layer does not.
    let script = "mount -t tmpfs -o size=1m,mode=700 none \"$PILLBUG_ROOT\" && ! \"$1\" load -i \"$2\" && \
                  find \"$PILLBUG_ROOT/images\" -type f ! -name lock";
    let output = Command::new("unshare")
        .args([
            "-rm",
            "sh",
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_pillbug"),
        ])
        .arg(&path)
        .env("PILLBUG_ROOT", place.state())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(succeed(output), "");
    assert!(error.contains("No space left on device"), "{error}");
}
