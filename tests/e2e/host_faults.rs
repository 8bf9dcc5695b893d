//! A host that runs out of something: room on its disk, descriptors, processes, memory, or that lacks a device.

use std::fs;

use predicates::{prelude::*, str::contains};

use crate::{
    command::{pillbug, processes, program, run, state_root, told, traces},
    detached::listed,
    supervision::{field, start},
};

/// A shell script on the host.
fn host(script: &str) -> assert_cmd::assert::Assert {
    let mut shell = assert_cmd::Command::new("bash");
    shell.args(["-c", script]);
    shell.timeout(std::time::Duration::from_secs(240));
    shell.assert()
}

/// A small file system for all containers' folders and disks, until this is dropped.
struct Small;

impl Small {
    const PLACE: &str = "/run/small";

    fn mount(options: &str) -> Self {
        let (root, place) = (state_root(), Self::PLACE);
        let root = root.display();
        let mounted = Self;
        host(&format!(
            "set -e; mkdir -p {place} {root}/disks; chmod 700 {root}/disks; mount -t tmpfs -o {options} none {place}
            for folder in containers disks; do
                mkdir -m 700 {place}/$folder; mount --bind {place}/$folder {root}/$folder
            done"
        ))
        .success();
        mounted
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        host(&format!("cat /dev/zero > {}/filler", Self::PLACE)).failure();
    }

    /// Gives it back.
    fn empty(&self) {
        fs::remove_file(format!("{}/filler", Self::PLACE)).expect("it is there");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let root = state_root();
        let root = root.display();
        host(&format!(
            "umount -l {root}/containers {root}/disks {}",
            Self::PLACE
        ));
    }
}

#[test]
fn a53_a_full_disk_stops_what_needs_it_and_nothing_else() {
    let disk = Small::mount("size=32m");
    // What it writes itself is in memory: its own disk is full as well.
    let script = "trap 'exit 7' TERM; echo before; until test -e /tmp/go; do sleep 0.1; done; echo lost; touch /tmp/gone
        while :; do sleep 1 & wait $!; done";
    start("other", &["--tmpfs", "/tmp", "busybox", "sh", "-c", script]);
    told(&["exec", "other", "true"]);
    disk.fill();
    let before = traces(&state_root());
    for arguments in [
        &["run", "--network", "none", "busybox", "true"][..],
        &["run", "--rm", "--network", "none", "busybox", "true"],
        &["create", "--name", "late", "busybox", "true"],
        &["rename", "other", "another"],
    ] {
        pillbug()
            .args(arguments)
            .assert()
            .failure()
            .stderr(contains("No space left on device"));
    }
    assert_eq!(traces(&state_root()), before);

    // What runs is used, looked at, and ended as ever, and its exit code is not lost.
    let wait = "touch /tmp/go; until test -e /tmp/gone; do sleep 0.1; done; echo used";
    assert_eq!(told(&["exec", "other", "sh", "-c", wait]), "used\n");
    assert_eq!(listed("other", "{{.State}}"), "running");
    assert!(told(&["logs", "other"]).starts_with("before\n"));
    told(&["stop", "other"]);
    assert_eq!(
        field("other", "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 7"
    );

    disk.empty();
    told(&["start", "other"]);
    told(&["rm", "-f", "other"]);
    run(["busybox", "true"]).assert().success();

    // No file can be made, however much room there is.
    drop(disk);
    let _disk = Small::mount("size=64m,nr_inodes=6");
    run(["busybox", "true"])
        .assert()
        .code(125)
        .stderr(contains("No space left on device"));
    assert_eq!(processes(), Vec::<i32>::new());
}

/// Runs a command of pillbug's after `preparation`, in a mount namespace of its own.
fn prepared(preparation: &str, arguments: &str) -> assert_cmd::assert::Assert {
    let script = format!("{preparation}\nexec {} {arguments}", program().display());
    let mut shell = assert_cmd::Command::new("unshare");
    shell.args(["--mount", "bash", "-ec", &script]);
    shell.timeout(std::time::Duration::from_secs(240));
    shell.assert()
}

#[test]
fn a57_without_a_tun_device_a_bridge_says_so_and_leaves_nothing() {
    // What the first container of a network makes stays.
    told(&["run", "--rm", "--network", "bridge", "busybox", "true"]);
    let before = traces(&state_root());
    let hidden = "mount -t tmpfs none /dev/net";
    prepared(hidden, "run --rm --network bridge busybox true")
        .code(125)
        .stderr(contains("/dev/net/tun"));
    assert_eq!(traces(&state_root()), before);
}

#[test]
fn a57_without_descriptors_or_processes_a_run_works_or_says_so_and_leaves_nothing() {
    run(["busybox", "true"]).assert().success();
    let before = traces(&state_root());
    let group = "/sys/fs/cgroup/few";
    let descriptors = [8, 12, 16, 24, 32].map(|limit| format!("ulimit -n {limit}"));
    let tasks = [1, 2, 3, 4].map(|limit| {
        format!("mkdir -p {group}; echo {limit} > {group}/pids.max; echo $$ > {group}/cgroup.procs")
    });
    let mut refused = 0;
    for preparation in descriptors.iter().chain(&tasks) {
        let ended = prepared(preparation, "run --rm --network none busybox true");
        if !ended.get_output().status.success() {
            ended
                .code(125)
                .stderr(predicates::str::starts_with("pillbug: ").and(contains("panicked").not()));
            refused += 1;
        }
        // Without a descriptor nothing can be removed either: the next command does.
        told(&["ps"]);
        assert_eq!(traces(&state_root()), before, "{preparation}");
    }
    assert!(refused > 3, "nothing was missing");
    // Groups go when nobody is in them any more.
    fs::remove_dir(group).expect("all of it has ended");
    run(["busybox", "true"]).assert().success();
}

#[test]
fn a56_a_machine_that_the_host_killed_for_memory_is_told_from_others() {
    start("hungry", &["-m", "256m", "busybox", "sleep", "1000"]);
    let group = "/sys/fs/cgroup/hungry";
    let vmm = field("hungry", "{{.State.Pid}}");
    host(&format!(
        "mkdir {group}; echo 16M > {group}/memory.max; echo {vmm} > {group}/cgroup.procs"
    ))
    .success();
    // Nobody is left to answer.
    let eat = "dd if=/dev/zero of=/dev/shm/x bs=1M count=60";
    pillbug()
        .args(["exec", "hungry", "sh", "-c", eat])
        .assert()
        .failure();
    assert_eq!(told(&["wait", "hungry"]), "137\n");
    let state = "{{.State.HostOOMKilled}} {{.State.OOMKilled}} {{.State.Error}}";
    let told_of = field("hungry", state);
    assert!(
        told_of.starts_with("true false the host ran out of memory"),
        "{told_of}"
    );
    told(&["start", "hungry"]);
    assert_eq!(told(&["kill", "hungry"]), "hungry\n");
    assert_eq!(told(&["wait", "hungry"]), "137\n");
    assert_eq!(field("hungry", state), "false false");
    told(&["rm", "hungry"]);
    fs::remove_dir(group).expect("nobody is in it");
}
