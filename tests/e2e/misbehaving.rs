//! Containers, and machines, that do what they should not.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use predicates::str::contains;

use crate::{
    command::{pillbug, processes, state_root, told},
    supervision::{field, start, supervisor},
};

#[test]
fn a18_a_machine_that_says_nothing_holds_nothing_up() {
    start("silent", &["busybox", "sleep", "1000"]);
    let pid = field("silent", "{{.State.Pid}}").parse().expect("a number");
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it can be signalled");
    pillbug()
        .args(["top", "silent"])
        .assert()
        .failure()
        .stderr(contains("answer"));
    told(&["rm", "-f", "silent"]);
    assert_eq!(processes(), Vec::<i32>::new());
}

#[test]
fn a44_what_stands_in_for_a_device_is_not_written_to() {
    let swap = "echo kept > /canary
        for device in null console tty; do rm -f /dev/$device; ln -s /canary /dev/$device; done
        echo swapped; sleep 1000";
    start("swapping", &["busybox", "sh", "-c", swap]);
    let wait = "until test -L /dev/tty; do :; done; echo output; echo errors >&2";
    told(&["exec", "swapping", "sh", "-c", wait]);
    told(&[
        "exec",
        "-d",
        "swapping",
        "sh",
        "-c",
        "echo output; echo errors >&2",
    ]);
    pillbug()
        .args(["exec", "-i", "swapping", "cat", "-", "/canary"])
        .write_stdin("typed\n")
        .assert()
        .success()
        .stdout("typed\nkept\n");
    told(&["rm", "-f", "swapping"]);
}

#[test]
fn a46_a_flood_of_output_stays_below_its_cap_on_disk_and_in_memory() {
    let flood = "head -c 40m /dev/zero | tr '\\0' x; echo; echo end; exec sleep 1000";
    start("flooding", &["busybox", "sh", "-c", flood]);
    // The log's reader ends when it has seen the last line.
    let mut logs = std::process::Command::new(crate::command::program())
        .args(["logs", "-f", "flooding"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("pillbug starts");
    let output = logs.stdout.take().expect("it is a pipe");
    let lines = std::io::BufRead::split(std::io::BufReader::new(output), b'\n');
    assert!(
        lines
            .map_while(Result::ok)
            .any(|line| line.ends_with(b"end"))
    );
    logs.kill().expect("it can be killed");
    logs.wait().expect("a child can be waited for");

    let folder = state_root()
        .join("containers/by-id")
        .join(field("flooding", "{{.Id}}"));
    let is_log =
        |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("log.json");
    let entries = std::fs::read_dir(folder).expect("it is there").flatten();
    let kept: u64 = entries
        .filter(is_log)
        .map(|entry| entry.metadata().map_or(0, |file| file.len()))
        .sum();
    // Three files of 10 MiB at most, unless somebody says otherwise; the last one has just begun.
    let cap = 30 << 20;
    assert!((cap / 2..=cap).contains(&kept), "{kept} bytes of log");
    let status = std::fs::read_to_string(format!("/proc/{}/status", supervisor("flooding")));
    let status = status.expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak: u64 = peak
        .and_then(|size| size.trim().strip_suffix(" kB")?.parse().ok())
        .expect("a size");
    assert!(peak < 16 << 10, "{peak} KiB of memory");
    told(&["rm", "-f", "flooding"]);
}

#[test]
fn a49_what_exhausts_its_machine_harms_no_other_and_is_named() {
    start("witness", &["busybox", "sleep", "1000"]);
    start(
        "bomb",
        &[
            "--pids-limit",
            "100",
            "-m",
            "96m",
            "busybox",
            "sleep",
            "1000",
        ],
    );
    // Its own shells cannot be counted on to end.
    told(&[
        "exec",
        "-d",
        "bomb",
        "sh",
        "-c",
        "b() { b | b & }; while :; do b; done",
    ]);
    assert_eq!(told(&["exec", "witness", "echo", "fine"]), "fine\n");
    told(&["rm", "-f", "bomb"]);

    let eat = "x=a; while :; do x=$x$x; done";
    pillbug()
        .args(["run", "--network", "none", "--name", "eater", "-m", "64m"])
        .args(["busybox", "sh", "-c", eat])
        .assert()
        .code(137)
        .stderr(contains("ran out of memory"));
    assert_eq!(field("eater", "{{.State.OOMKilled}}"), "true");
    assert_eq!(told(&["exec", "witness", "echo", "fine"]), "fine\n");
    told(&["rm", "-f", "eater", "witness"]);
    assert_eq!(processes(), Vec::<i32>::new());
}
