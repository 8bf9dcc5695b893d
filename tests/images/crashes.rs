//! Loads and pulls that are killed at, or fail in, each of their system calls, one after the other, with `strace` as the fault.

use std::{
    fs,
    process::{Command, Output},
    sync::Arc,
};

use pillbug::image::store::Store;

use crate::{
    faults::{IMPATIENT, good},
    fixture::{Fixture, Packing, Place, succeed},
    hostile::Hostile,
};

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

/// A call that nothing makes this often.
const ENDLESS: usize = 400;

/// What brings an image into the store.
enum Deed {
    Load,
    Pull(Hostile),
}

impl Deed {
    fn pull() -> Self {
        let image = image();
        Self::Pull(Hostile::start(move |request, _| good(&image, request)))
    }

    /// Gets a place ready and gives the command.
    fn prepare(&self, place: &Place) -> Command {
        let path = place.write("image", &image().archive());
        match self {
            Self::Load => place.pillbug(&["load", "-q", "-i", path.to_str().unwrap()]),
            Self::Pull(registry) => {
                fs::write(place.path("registries.toml"), IMPATIENT).unwrap();
                place.pillbug(&["pull", "-q", &format!("{}/a:1", registry.address)])
            }
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Load => "a:1".into(),
            Self::Pull(registry) => format!("{}/a:1", registry.address),
        }
    }
}

fn image() -> Arc<Fixture> {
    let mut image = Fixture::new("faults", &[Packing::Gzip, Packing::Plain]).named("a:1");
    let manifest = image.manifest.to_string().into_bytes();
    image.put("manifest", manifest);
    Arc::new(image)
}

/// `command` with a fault in the call number `when` of `call`.
fn faulty(command: &Command, call: &str, fault: &str, when: usize) -> Output {
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-qqq", "-o", "/dev/null"])
        .args(["-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:{fault}:when={when}")])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        strace.env(name, value.unwrap());
    }
    strace.output().unwrap()
}

/// Runs `check` after a fault in each call of `call` that a deed makes, and gives how many there were.
fn each_fault(
    deed: &Deed,
    call: &str,
    fault: &str,
    check: impl Fn(&Place, &Output, &str),
) -> usize {
    for when in 1..ENDLESS {
        let place = Place::new();
        let output = faulty(&deed.prepare(&place), call, fault, when);
        if output.status.success() {
            return when - 1;
        }
        check(&place, &output, &format!("{call} number {when}"));
    }
    panic!("{call} is called without end");
}

/// That whatever is in the store is a whole image, and that doing it again makes it so.
fn whole_or_absent(deed: &Deed, place: &Place, fault: &str) {
    let store = Store::open(&place.state()).unwrap();
    if store.list().unwrap().is_empty() {
        // What a pull has fetched stays for the next.
        let mut content = place.content();
        content.retain(|path| !path.starts_with("partial/"));
        assert_eq!(content, [""; 0], "after {fault}");
    }
    succeed(deed.prepare(place).output().unwrap());
    let image = store.resolve(&deed.name()).unwrap();
    assert!(
        image
            .rootfs
            .parts
            .iter()
            .all(|(path, bytes)| path.metadata().unwrap().len() >= *bytes)
    );
    drop(image);
    store.remove(&deed.name(), false, |_| None).unwrap();
    assert_eq!(place.content(), [""; 0], "after {fault}");
}

/// That an error says `cause` and has left nothing.
fn rolled_back(place: &Place, output: &Output, cause: &str, fault: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert!(error.contains(cause), "{error}");
    assert_eq!(place.content(), [""; 0], "after {fault}: {error}");
}

#[test]
fn a51_a_load_killed_at_any_change_leaves_the_store_whole() {
    let mut kills = 0;
    for call in CHANGES {
        kills += each_fault(&Deed::Load, call, "signal=KILL", |place, _, fault| {
            whole_or_absent(&Deed::Load, place, fault);
        });
    }
    // Blobs, layers, metadata, record and name alone are more.
    assert!(kills > 20, "only {kills} calls were found");
}

#[test]
fn a51_a_pull_killed_at_any_change_leaves_the_store_whole() {
    let (pull, mut kills) = (Deed::pull(), 0);
    for call in CHANGES {
        kills += each_fault(&pull, call, "signal=KILL", |place, _, fault| {
            whole_or_absent(&pull, place, fault);
        });
    }
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
            if faulty(&rmi, call, "signal=KILL", when).status.success() {
                break;
            }
            let store = Store::open(&place.state()).unwrap();
            if let Ok(image) = store.resolve("a:1") {
                assert!(image.rootfs.parts.iter().all(|(path, _)| path.exists()));
            }
            place.load_well(&path);
            store.remove("a:1", false, |_| None).unwrap();
            assert_eq!(place.content(), [""; 0], "{call} {when}");
        }
    }
}

#[test]
fn a53_a_full_disk_at_any_change_is_an_error_and_rolled_back() {
    let fault = "error=ENOSPC";
    for call in CHANGES {
        each_fault(&Deed::Load, call, fault, |place, output, fault| {
            rolled_back(place, output, "No space left on device", fault);
        });
    }
    let pull = Deed::pull();
    // `write` is also how requests are sent, which full disks do not fail.
    for call in CHANGES.into_iter().filter(|call| *call != "write") {
        each_fault(&pull, call, fault, |place, output, fault| {
            rolled_back(place, output, "No space left on device", fault);
        });
    }
}

#[test]
fn a54_what_does_not_reach_the_disk_is_not_reported_as_done() {
    for deed in [Deed::Load, Deed::pull()] {
        let failures = each_fault(&deed, "fsync", "error=EIO", |place, output, fault| {
            rolled_back(place, output, "Input/output error", fault);
        });
        assert!(failures > 5, "only {failures} calls were found");
    }
}

/// An image whose layer is 3 MiB, as a blob in that packing.
fn large(packing: Packing) -> Arc<Fixture> {
    let mut image = Fixture::new(&"x".repeat(3 << 20), &[packing]).named("big:1");
    image.config["config"]["Labels"]["seed"] = "".into();
    image.seal();
    let manifest = image.manifest.to_string().into_bytes();
    image.put("manifest", manifest);
    Arc::new(image)
}

/// Runs `command` behind `script` with its state on a small file system, and expects that nothing stays.
fn cramped(place: &Place, command: &Command, script: &str, cause: &str) {
    let script = format!(
        "mount -t tmpfs -o size=16m,mode=700 none \"$PILLBUG_ROOT\" && {script} && \
         ! \"$@\" && find \"$PILLBUG_ROOT/images\" -type f ! -name lock"
    );
    let mut shell = Command::new("unshare");
    shell
        .args(["-rm", "sh", "-c", &script, "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap());
    }
    let output = shell.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(succeed(output), "", "{error}");
    assert!(error.contains(cause), "{error}");
    assert!(place.content().is_empty());
}

/// Does it with both kinds of deed: with a blob that is too large, and with one that only is when it is taken apart.
fn too_large_in_all_ways(script: &str, cause: &str) {
    for packing in [Packing::Plain, Packing::Gzip] {
        let image = large(packing);
        let place = Place::new();
        let path = place.write("image", &image.archive());
        let load = place.pillbug(&["load", "-i", path.to_str().unwrap()]);
        cramped(&place, &load, script, cause);
        let registry = Hostile::start(move |request, _| good(&image, request));
        let name = format!("{}/big:1", registry.address);
        let pull = place.pillbug(&["pull", "-q", &name]);
        cramped(&place, &pull, script, cause);
    }
}

#[test]
fn a53_a_small_file_system_that_fills_up_is_left_as_it_was() {
    let script = "mount -o remount,size=1m \"$PILLBUG_ROOT\"";
    too_large_in_all_ways(script, "No space left on device");
}

#[test]
fn a54_a_write_that_is_cut_short_is_not_reported_as_done() {
    // What a limit leaves of a write is written; the next one fails.
    too_large_in_all_ways("trap '' XFSZ && ulimit -f 1500", "File too large");
}
