//! Containers that outlive the command that started them.

use std::io::Read;

use predicates::{prelude::*, str::contains};
use tempfile::TempDir;

use crate::command::{pillbug, processes, run, spawn, state_root, told, traces};

/// `ps -a` of one container, in these fields.
pub fn listed(name: &str, fields: &str) -> String {
    let filter = format!("name={name}");
    told(&["ps", "-a", "--filter", &filter, "--format", fields])
        .trim()
        .to_owned()
}

#[test]
fn a50_a_service_is_started_used_stopped_and_started_again() {
    // The first disk makes the template of all others, which stays.
    told(&["create", "--name", "first", "busybox"]);
    told(&["rm", "first"]);
    let before = traces(&state_root());
    let folder = TempDir::new().expect("a temporary folder");
    let cidfile = folder.path().join("cid");
    let script = "trap 'echo bye; exit 7' TERM; echo up $(cat /count); echo x >> /count
        while :; do sleep 1 & wait $!; done";
    let id = told(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "web",
        "--label",
        "team=a",
        "--cidfile",
        cidfile.to_str().expect("a plain name"),
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let id = id.trim();
    assert_eq!(
        std::fs::read_to_string(&cidfile).expect("it was written"),
        id
    );
    assert_eq!(listed("web", "{{.State}} {{.Labels}}"), "running team=a");
    assert_eq!(
        told(&["ps", "-q", "--no-trunc", "--filter", "label=team=a"]),
        format!("{id}\n")
    );

    // Beside it, in its namespaces and as it is: files, processes, exit code, input.
    let inside = told(&[
        "exec",
        &id[..10],
        "sh",
        "-c",
        "until test -s /count; do :; done; cat /count; cat /proc/1/cmdline | tr '\\0' ' '",
    ]);
    assert!(inside.starts_with("x\nsh -c trap"), "{inside}");
    pillbug()
        .args(["exec", "web", "sh", "-c", "exit 3"])
        .assert()
        .code(3);
    pillbug()
        .args(["exec", "web", "nosuch"])
        .assert()
        .code(127)
        .stderr(contains("nosuch"));
    pillbug()
        .args([
            "exec", "-i", "-e", "A=b", "-u", "www-data", "-w", "/tmp", "web", "sh", "-c",
        ])
        .arg("tr a-z A-Z; echo $A $PWD $(id -un) >&2")
        .write_stdin("typed\n")
        .assert()
        .success()
        .stdout("TYPED\n")
        .stderr("b /tmp www-data\n");

    // Names are given and taken; what runs is not removed by mistake.
    pillbug().args(["rename", "web", "site"]).assert().success();
    pillbug()
        .args(["rm", "site"])
        .assert()
        .code(1)
        .stderr(contains("running"));
    told(&["start", "site"]);

    assert_eq!(told(&["stop", "site"]), "site\n");
    assert_eq!(told(&["logs", "site"]), "up\nbye\n");
    assert_eq!(told(&["logs", "-n", "1", "site"]), "bye\n");
    assert_eq!(
        told(&[
            "inspect",
            "-f",
            "{{.State.Status}} {{.State.ExitCode}}",
            "site"
        ]),
        "exited 7\n"
    );
    assert_eq!(told(&["wait", "site"]), "7\n");
    pillbug()
        .args(["exec", "site", "true"])
        .assert()
        .code(125)
        .stderr(contains("not running"));
    pillbug()
        .args(["kill", "site"])
        .assert()
        .code(1)
        .stderr(contains("not running"));

    // What it wrote is still there; one that ignores its signal is killed.
    told(&["start", "site"]);
    assert_eq!(
        told(&[
            "exec",
            "site",
            "sh",
            "-c",
            "until grep -c x /count | grep -q 2; do :; done; cat /count"
        ]),
        "x\nx\n"
    );
    told(&["exec", "-d", "site", "sleep", "1000"]);
    told(&["stop", "-s", "WINCH", "-t", "0", "site"]);
    assert_eq!(told(&["wait", "site"]), "137\n");
    told(&["rm", "site"]);
    drop(folder);
    assert_eq!(traces(&state_root()), before);
}

#[test]
fn a48_what_exec_leaves_behind_holds_nothing_up() {
    told(&[
        "run",
        "-d",
        "--rm",
        "--network",
        "none",
        "--name",
        "host",
        "busybox",
        "sleep",
        "1000",
    ]);
    let supervisor = processes().len();
    for _ in 0..50 {
        pillbug()
            .args(["exec", "host", "sh", "-c", "sleep 1000 & echo done; exit 4"])
            .assert()
            .code(4)
            .stdout("done\n");
    }
    assert_eq!(processes().len(), supervisor);
    told(&["rm", "-f", "host"]);
    assert_eq!(processes(), Vec::<i32>::new());
}

#[test]
fn a51_what_is_killed_is_noticed_and_what_is_detached_lives_on() {
    // The command: without --rm its container goes on.
    let mut running = spawn_kept(&[
        "--name",
        "kept",
        "busybox",
        "sh",
        "-c",
        "echo ready; sleep 1000",
    ]);
    let mut ready = [0; 6];
    running
        .stdout
        .as_mut()
        .expect("it is a pipe")
        .read_exact(&mut ready)
        .expect("it can be read");
    running.kill().expect("it can be killed");
    running.wait().expect("a child can be waited for");
    assert_eq!(told(&["exec", "kept", "echo", "alive"]), "alive\n");

    // The machine.
    let pid: i32 = told(&["inspect", "-f", "{{.State.Pid}}", "kept"])
        .trim()
        .parse()
        .expect("a number");
    let waiting = std::thread::spawn(|| told(&["wait", "kept"]));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("it can be killed");
    assert_eq!(waiting.join().expect("it does not panic"), "137\n");
    assert!(listed("kept", "{{.Status}}").starts_with("Exited (137)"));

    // The supervisor: the machine goes with it, and the next command says so.
    told(&["start", "kept"]);
    for pid in processes() {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&arguments).contains("supervise") {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            )
            .expect("it can be killed");
        }
    }
    pillbug()
        .args(["wait", "kept"])
        .assert()
        .success()
        .stdout("137\n");
    told(&["start", "kept"]);
    told(&["rm", "-f", "kept"]);
    assert_eq!(processes(), Vec::<i32>::new());
}

/// `run` without --rm, in the background.
fn spawn_kept(arguments: &[&str]) -> std::process::Child {
    std::process::Command::new(crate::command::program())
        .args(["run", "--network", "none"])
        .args(arguments)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("pillbug starts")
}

#[test]
fn a67_a_container_that_never_ran_is_created_started_and_pruned() {
    told(&[
        "create",
        "--name",
        "later",
        "busybox",
        "sh",
        "-c",
        "echo ran; exit 5",
    ]);
    assert_eq!(listed("later", "{{.State}}"), "created");
    pillbug()
        .args(["start", "-a", "later"])
        .assert()
        .code(5)
        .stdout("ran\n");
    told(&["create", "--name", "never", "busybox", "nosuch"]);
    pillbug()
        .args(["start", "never"])
        .assert()
        .code(1)
        .stderr(contains("nosuch"));
    assert_eq!(listed("never", "{{.State}}"), "created");

    let mut running = spawn(&[
        "--name",
        "busy",
        "busybox",
        "sh",
        "-c",
        "echo ready; sleep 1000",
    ]);
    running.wait_for("ready");
    pillbug()
        .args(["container", "prune", "-f"])
        .assert()
        .success()
        .stdout(
            contains("Deleted Containers:").and(
                predicates::str::is_match("(?s)(\n[0-9a-f]{64}){2}\n").expect("it is a pattern"),
            ),
        );
    assert_eq!(listed("busy", "{{.State}}"), "running");
    told(&["kill", "busy"]);
    assert_eq!(running.exit_code(), 137);
    run(["busybox", "true"]).assert().success();
}
