//! What containers may use, what they use, and what comes back.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use predicates::{prelude::*, str::contains};
use serde_json::Value;

use crate::command::{pillbug, run, told};

/// A field of `stats`.
fn stat(name: &str, field: &str) -> String {
    let line = told(&["stats", "--no-stream", "--format", "json", name]);
    let stats: Value = serde_json::from_str(&line).expect("a line of JSON");
    stats[field].as_str().expect("a text").to_owned()
}

fn percent(text: &str) -> f64 {
    let number = text.strip_suffix('%').expect("a share");
    number.parse().expect("a number")
}

#[test]
fn a49_limits_hold_show_and_change_while_a_container_runs() {
    let script = "cat /proc/sys/kernel/shmmax /proc/sys/net/core/somaxconn; ulimit -n
        df -m /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; while :; do :; done";
    let mut arguments = vec!["run", "-d", "--name", "held", "--network", "none"];
    arguments.extend([
        "--cpus",
        "0.5",
        "-m",
        "300m",
        "--pids-limit",
        "50",
        "--shm-size",
        "32m",
    ]);
    arguments.extend([
        "--sysctl",
        "kernel.shmmax=12345678",
        "--sysctl",
        "net.core.somaxconn=777",
    ]);
    arguments.extend([
        "--ulimit",
        "nofile=99",
        "--oom-score-adj",
        "300",
        "--cpuset-cpus",
        "0",
    ]);
    arguments.extend(["busybox", "sh", "-c", script]);
    told(&arguments);

    let vmm = told(&["inspect", "--format", "{{.State.Pid}}", "held"]);
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", vmm.trim()));
    assert_eq!(score.expect("the VMM runs"), "300\n");
    assert_eq!(
        told(&["exec", "held", "cat", "/sys/fs/cgroup/pids.max"]),
        "50\n"
    );
    assert_eq!(told(&["logs", "held"]), "12345678\n777\n99\n32\n");
    let shown = told(&[
        "inspect",
        "--format",
        "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.CpusetCpus}}",
        "held",
    ]);
    assert_eq!(shown, "500000000 314572800 50 0\n");

    // The busy loop would take a whole processor. Measuring takes some itself.
    let share = percent(&stat("held", "CPUPerc"));
    assert!((5.0..75.0).contains(&share), "{share}");
    assert!(stat("held", "MemUsage").ends_with(" / 300MiB"));
    assert!(percent(&stat("held", "HostCPUPerc")) > 5.0);
    assert_eq!(stat("held", "PIDs"), "1");

    let top = told(&["top", "held"]);
    assert!(top.starts_with("UID "), "{top}");
    assert!(top.contains("root   1     0 "), "{top}");
    assert!(told(&["top", "held", "-o", "pid,args"]).contains("1     sh -c cat"));
    pillbug()
        .args(["top", "held", "aux"])
        .assert()
        .code(125)
        .stderr(contains("-o LIST"));

    let less = [
        "update",
        "--cpus",
        "0.2",
        "--pids-limit",
        "20",
        "-m",
        "200m",
        "held",
    ];
    assert_eq!(told(&less), "held\n");
    let limits = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    assert_eq!(
        told(&["exec", "held", "sh", "-c", limits]),
        "20\n209715200\n20000 100000\n"
    );
    pillbug()
        .args(["update", "--cpus", "2", "-m", "1g", "held"])
        .assert()
        .success()
        .stderr(contains("more processors").and(contains("more memory")));
    told(&["rm", "-f", "held"]);
}

/// Bytes that the host pays for the VMM of a container.
fn host_memory(vmm: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{vmm}/smaps_rollup")).expect("the VMM runs");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("a size") << 10
}

#[test]
fn memory_that_a_guest_frees_goes_back_to_the_host() {
    const USED: u64 = 128 << 20;
    let mut arguments = vec!["run", "-d", "--name", "full", "--network", "none"];
    arguments.extend(["--tmpfs", "/t:size=200m", "busybox", "sleep", "1000"]);
    told(&arguments);
    let vmm = told(&["inspect", "--format", "{{.State.Pid}}", "full"]);
    let vmm = vmm.trim();
    let before = host_memory(vmm);
    told(&[
        "exec",
        "full",
        "dd",
        "if=/dev/zero",
        "of=/t/file",
        "bs=1M",
        "count=128",
    ]);
    let full = host_memory(vmm);
    assert!(full > before + USED * 9 / 10, "{before} {full}");
    told(&["exec", "full", "rm", "/t/file"]);
    // The guest reports what has been free for two seconds.
    let end = Instant::now() + Duration::from_secs(30);
    while host_memory(vmm) > full - USED * 9 / 10 {
        assert!(
            Instant::now() < end,
            "{} of {full} is left",
            host_memory(vmm)
        );
        thread::sleep(Duration::from_millis(200));
    }
    told(&["rm", "-f", "full"]);
}

#[test]
fn limits_that_cannot_be_kept_are_refused() {
    for (flags, reason) in [
        (&["--cpus", "0"][..], "0.01 to 32"),
        (&["--cpuset-cpus", "3-1"], "list of CPUs"),
        (&["--cpuset-cpus", "900"], "processors [900]"),
        (&["--pids-limit", "many"], "limit of processes"),
        (&["--sysctl", "../x=1"], "not a sysctl"),
        (&["--sysctl", "nothing.there=1"], "nothing.there"),
        (&["--storage-opt", "color=red"], "size=SIZE"),
        (&["--oom-score-adj", "2000"], "-1000"),
        (&["--device-read-bps", "/dev/null:1mb"], "no block device"),
        (&["--device-write-iops", "/dev/nothing:1"], "/dev/nothing"),
        (&["--device-write-bps", "sda"], "DEVICE:RATE"),
    ] {
        run(flags.iter().chain(&["busybox", "true"]))
            .assert()
            .code(125)
            .stderr(contains(reason));
    }
    run(["--storage-opt", "size=4m", "busybox"])
        .args(["dd", "if=/dev/zero", "of=/file", "bs=1M", "count=8"])
        .assert()
        .failure()
        .stderr(contains("No space left"));
}
