//! What stays, what goes, and what must not meet.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    command::{output_of, pillbug, processes, run, spawn, state_root, told, traces},
    supervision::start,
};

#[test]
fn a_run_with_rm_leaves_nothing_behind() {
    output_of(["busybox", "true"]);
    let before = traces(&state_root());
    output_of(["busybox", "sh", "-c", "echo data > /file"]);
    run(["busybox", "false"]).assert().code(1);
    run(["busybox", "no-such-program"]).assert().code(127);
    assert_eq!(traces(&state_root()), before);
}

#[test]
fn a51_kill_9_of_the_command_leaves_no_machine() {
    let mut running = spawn(&["busybox", "sh", "-c", "echo ready; while :; do :; done"]);
    running.wait_for("ready");
    let command = i32::try_from(running.child.id()).expect("process IDs are positive");
    // Every process of the run holds the files it was given until it is gone: opening these through
    // /proc here and now, and waiting for them to end, needs no clock.
    let others: Vec<i32> = processes()
        .into_iter()
        .filter(|pid| *pid != command)
        .collect();
    assert!(!others.is_empty(), "the machine is a process of its own");
    let ends: Vec<_> = others
        .iter()
        .map(|pid| process_end(*pid).expect("the process lives"))
        .collect();
    kill(Pid::from_raw(command), Signal::SIGKILL).expect("it can be killed");
    for end in ends {
        end.wait();
    }
    running.child.wait().expect("a child can be waited for");
    assert_eq!(processes(), Vec::<i32>::new());
    assert_eq!(output_of(["busybox", "echo", "next"]), "next\n");
}

#[test]
fn two_at_once_do_not_meet() {
    let script = "echo $0 > /tmp/who; echo ready; read go; echo $(cat /tmp/who) $(hostname)";
    let start =
        |name: &'static str| spawn(&["-i", "-h", name, "busybox", "sh", "-c", script, name]);
    let mut both = [start("one"), start("two")];
    for running in &mut both {
        running.wait_for("ready");
    }
    for (running, expected) in both.iter_mut().zip(["one one\n", "two two\n"]) {
        drop(running.child.stdin.take());
        assert_eq!(running.rest(), expected);
        assert_eq!(running.exit_code(), 0);
    }
}

#[test]
fn signals_are_passed_on() {
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        let script =
            format!("trap 'echo got {name}; exit 4' {name}; echo ready; while :; do :; done");
        let mut running = spawn(&["busybox", "sh", "-c", &script]);
        running.wait_for("ready");
        let pid =
            Pid::from_raw(i32::try_from(running.child.id()).expect("process IDs are positive"));
        kill(pid, signal).expect("it can be signalled");
        assert_eq!(running.rest(), format!("got {name}\n"));
        assert_eq!(running.exit_code(), 4);
    }
}

/// The end of a process, to be waited for.
pub struct ProcessEnd(std::os::fd::OwnedFd);

/// `None` where it has ended already.
pub fn process_end(pid: i32) -> Option<ProcessEnd> {
    let pid = rustix::process::Pid::from_raw(pid).expect("process IDs are positive");
    let flags = rustix::process::PidfdFlags::empty();
    rustix::process::pidfd_open(pid, flags).ok().map(ProcessEnd)
}

impl ProcessEnd {
    /// Returns once it has ended; fails after a minute.
    pub fn wait(&self) {
        assert!(self.within(std::time::Duration::from_secs(60)));
    }

    /// Waits for it; whether it came in time.
    pub fn within(&self, patience: std::time::Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let patience = Timespec::try_from(patience).expect("it is short");
        let mut ended = [PollFd::new(&self.0, PollFlags::IN)];
        // The end of this test's own child interrupts the wait.
        let ready = rustix::io::retry_on_intr(|| poll(&mut ended, Some(&patience)));
        ready.expect("it can be waited for") == 1
    }
}

#[test]
fn a62_names_are_checked_and_unique() {
    let long = "x".repeat(300);
    for name in ["../x", "-rf", "", "a b", &long] {
        run([&format!("--name={name}"), "busybox", "true"])
            .assert()
            .code(125);
    }
    let mut running = spawn(&[
        "-i",
        "--name",
        "once",
        "busybox",
        "sh",
        "-c",
        "echo ready; read line",
    ]);
    running.wait_for("ready");
    run(["--name", "once", "busybox", "true"])
        .assert()
        .code(125)
        .stderr(predicates::str::contains("once"));
    drop(running);
}

#[test]
fn a43_the_agents_program_and_files_are_out_of_reach() {
    // What a process that begins next to it is before it is itself, seen by somebody who never looks away.
    let spy = "while :; do ls -l /proc/[0-9]*/exe /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/fd/*; done 2> /dev/null |
        awk '/ -> / { sub(/.* -> /, \"\"); if (!seen[$0]++) { print; fflush() } }' > /tmp/seen & exec sleep 1000";
    start("spied", &["busybox", "sh", "-c", spy]);
    for fd in 0..12 {
        // A folder of the agent's, were one open, would be outside of the container's root.
        let folder = format!("/proc/self/fd/{fd}");
        let arguments = ["exec", "-w", &folder, "spied", "sh", "-c"];
        let look = "ls -d ../../../../../../../init ./init";
        let output = pillbug().args(arguments).arg(look).assert();
        output.failure().stdout("");
    }
    // What `/proc/self/exe` is before the program is executed: not something to be executed in its place.
    pillbug()
        .args(["exec", "spied", "/proc/self/exe"])
        .assert()
        .code(126);
    let seen = told(&["exec", "spied", "cat", "/tmp/seen"]);
    let inside = |line: &str| {
        let plain = ["/", "/tmp", "/tmp/seen"].contains(&line) || line.starts_with("/bin/");
        let device = line.starts_with("/dev/") || line.starts_with("/proc/");
        plain || device || line.starts_with("pipe:[") || line.starts_with("socket:[")
    };
    let strange: Vec<&str> = seen.lines().filter(|line| !inside(line)).collect();
    assert!(seen.contains("/bin/sh\n"), "{seen}");
    assert_eq!(strange, [""; 0]);
    told(&["rm", "-f", "spied"]);
}
