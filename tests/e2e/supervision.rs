//! Containers that nobody looks after: started again, checked, paused, and told of.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use predicates::{prelude::*, str::contains};

use crate::{
    command::{Patient, pillbug, processes, program, told},
    detached::listed,
};

/// What happens to a container, as `pillbug events` tells it.
pub struct Events {
    child: Child,
    lines: BufReader<Patient>,
}

impl Events {
    /// From now on.
    pub fn of(name: &str) -> Self {
        Self::told_by(std::process::Command::new(program()), name)
    }

    /// As `pillbug`, which may be another user's, tells it.
    pub fn told_by(mut pillbug: std::process::Command, name: &str) -> Self {
        let mut child = pillbug
            .args(["events", "--since", "0s", "--format", "{{.Action}}"])
            .args(["--filter", &format!("container={name}")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("pillbug starts");
        let lines = BufReader::new(Patient::new(&mut child));
        Self { child, lines }
    }

    /// Waits for an event, and returns what came before it.
    pub fn until(&mut self, action: &str) -> Vec<String> {
        self.lines.get_mut().renew();
        let mut before = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("output is text");
            assert_ne!(read, 0, "events ended before {action:?}");
            if line.trim_end() == action {
                return before;
            }
            before.push(line.trim_end().to_owned());
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `run -d` without a network.
pub fn start(name: &str, arguments: &[&str]) {
    let run = ["run", "-d", "--network", "none", "--name", name];
    told(&[&run, arguments].concat());
}

pub fn field(name: &str, field: &str) -> String {
    told(&["inspect", "-f", field, name]).trim().to_owned()
}

pub fn send(pid: &str, signal: Signal) {
    let pid = pid.parse().expect("a number");
    // Zero would be all of the tests.
    assert!(pid > 0, "it does not run");
    kill(Pid::from_raw(pid), signal).expect("it can be signalled");
}

/// The supervisor of a container.
pub fn supervisor(name: &str) -> String {
    let id = field(name, "{{.Id}}");
    let is_it = |pid: &i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        arguments.contains("supervise") && arguments.contains(&id[..12])
    };
    let found = processes().into_iter().find(is_it);
    found.expect("it runs").to_string()
}

#[test]
fn a51_a_container_is_started_again_as_its_policy_says() {
    // It fails, twice more, and that is it.
    let mut events = Events::of("failing");
    start(
        "failing",
        &[
            "--restart",
            "on-failure:2",
            "busybox",
            "sh",
            "-c",
            "echo x >> /n; cat /n; exit 3",
        ],
    );
    for _ in 0..3 {
        events.until("die");
    }
    drop(events);
    told(&["wait", "failing"]);
    assert_eq!(told(&["logs", "failing"]), "x\nx\nx\nx\nx\nx\n");
    let ended = "{{.RestartCount}} {{.State.ExitCode}} {{.State.Status}}";
    assert_eq!(field("failing", ended), "2 3 exited");
    told(&["rm", "failing"]);

    // Between two runs it is restarting, and can be stopped. After the seventh it waits for 6.4 s, which leaves time
    // for the commands below on a slow host.
    let mut events = Events::of("again");
    start(
        "again",
        &["--restart", "always", "busybox", "sh", "-c", "exit 1"],
    );
    for _ in 0..7 {
        events.until("die");
    }
    assert!(listed("again", "{{.Status}}").starts_with("Restarting (1)"));
    assert_eq!(
        field("again", "{{.State.Restarting}} {{.State.Running}}"),
        "true true"
    );
    pillbug()
        .args(["exec", "again", "true"])
        .assert()
        .failure()
        .stderr(contains("restarting"));
    told(&["stop", "again"]);
    assert!(listed("again", "{{.Status}}").starts_with("Exited (1)"));
    drop(events);
    told(&["rm", "again"]);

    // What the host, or its end, does to it is not its user's word. The policy is changed while it runs.
    let mut events = Events::of("service");
    start("service", &["busybox", "sleep", "1000"]);
    events.until("start");
    told(&["update", "--restart", "unless-stopped", "service"]);
    events.until("update");
    send(&field("service", "{{.State.Pid}}"), Signal::SIGKILL);
    events.until("die");
    events.until("start");
    assert_eq!(field("service", "{{.RestartCount}}"), "1");
    send(&supervisor("service"), Signal::SIGKILL);
    told(&["wait", "service"]);
    assert!(listed("service", "{{.Status}}").starts_with("Exited (137)"));
    assert_eq!(told(&["system", "start"]), "service\n");
    send(&supervisor("service"), Signal::SIGTERM);
    told(&["wait", "service"]);
    assert_eq!(listed("service", "{{.State}}"), "exited");
    assert_eq!(told(&["system", "start"]), "service\n");
    told(&["kill", "service"]);
    told(&["wait", "service"]);
    assert_eq!(told(&["system", "start"]), "");
    told(&["rm", "service"]);
    pillbug()
        .args(["run", "--rm", "--restart", "always", "busybox", "true"])
        .assert()
        .code(125)
        .stderr(contains("--restart and --rm"));
}

#[test]
fn a_container_is_checked_and_paused() {
    let check = "test ! -e /slow || sleep 999; echo looked; test -e /works";
    let mut events = Events::of("checked");
    start(
        "checked",
        &[
            "--health-cmd",
            check,
            "--health-interval",
            "1s",
            "--health-timeout",
            "20s",
            "--health-retries",
            "2",
            "--stop-timeout",
            "0",
            "busybox",
            "sleep",
            "1000",
        ],
    );
    assert!(listed("checked", "{{.Status}}").contains("(health: starting)"));
    events.until("health_status: unhealthy");
    told(&["exec", "checked", "touch", "/works"]);
    events.until("health_status: healthy");
    assert!(listed("checked", "{{.Status}}").ends_with("(healthy)"));
    assert_eq!(
        told(&["ps", "--filter", "health=healthy", "--format", "{{.Names}}"]),
        "checked\n"
    );
    assert_eq!(told(&["ps", "-q", "--filter", "health=none"]), "");
    let last = "{{.State.Health.Status}} {{.State.Health.FailingStreak}} {{(index .State.Health.Log 0).Output}}";
    assert_eq!(field("checked", last), "healthy 0 looked");

    // Nothing runs while it is paused, whoever asks.
    told(&["pause", "checked"]);
    assert!(listed("checked", "{{.Status}}").ends_with("(Paused)"));
    assert_eq!(
        field("checked", "{{.State.Paused}} {{.State.Status}}"),
        "true paused"
    );
    for refused in [
        &["exec", "checked", "true"][..],
        &["pause", "checked"],
        &["start", "checked"],
    ] {
        pillbug()
            .args(refused)
            .assert()
            .failure()
            .stderr(contains("paused"));
    }
    told(&["unpause", "checked"]);
    pillbug()
        .args(["unpause", "checked"])
        .assert()
        .code(1)
        .stderr(contains("not paused"));

    // A probe that takes too long has failed.
    told(&["exec", "checked", "touch", "/slow"]);
    events.until("health_status: unhealthy");
    let log = field("checked", "{{json .State.Health.Log}}");
    assert!(
        log.contains("exceeded timeout (20s)") && log.contains("\"ExitCode\":-1"),
        "{log}"
    );
    // All of it is gone: of two that failed and one that may be under way, this is the last one's.
    let left = told(&["exec", "checked", "ps"]);
    assert!(left.matches("sleep 999").count() <= 2, "{left}");

    told(&["pause", "checked"]);
    told(&["stop", "checked"]);
    let seen = events.until("stop");
    let mut seen = seen[seen.len() - 5..].to_vec();
    // The signal that asks, and the one that ends what does not listen.
    seen.dedup();
    assert!(
        seen.ends_with(&["pause", "unpause", "kill", "die"].map(String::from)),
        "{seen:?}"
    );
    told(&["rm", "checked"]);
    pillbug()
        .args([
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "event=destroy",
        ])
        .assert()
        .success()
        .stdout(contains("container destroy ").and(contains("name=checked)")));
}
