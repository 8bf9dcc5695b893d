//! The virtual machine around the container: its size, its kernel, how it can end.

use std::{fs, time::Instant};

use predicates::{prelude::*, str::contains};
use tempfile::TempDir;

use crate::command::{output_of, pillbug, run};

#[test]
fn four_cpus_and_four_gigabytes_are_seen_as_such() {
    let script = "nproc; grep MemTotal /proc/meminfo";
    let output = output_of(["--cpus", "4", "-m", "4g", "busybox", "sh", "-c", script]);
    let mut lines = output.lines();
    assert_eq!(lines.next(), Some("4"));
    let kib: u64 = lines
        .next()
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|number| number.parse().ok())
        .expect("MemTotal is a number");
    // The kernel keeps its page tables, itself and its initial RAM file system to itself.
    assert!((3_900_000..=4 << 20).contains(&kib), "{kib} KiB");
}

#[test]
fn all_cpus_work() {
    let script = "for i in 0 1 2; do taskset -c $i sh -c 'read a b c d e f g h i < /proc/self/stat; echo here' & done; wait";
    assert_eq!(
        output_of(["--cpus", "3", "debian", "bash", "-c", script]),
        "here\nhere\nhere\n"
    );
}

#[test]
fn little_memory_is_enough_to_boot() {
    assert_eq!(
        output_of(["-m", "64m", "busybox", "echo", "small"]),
        "small\n"
    );
}

#[test]
fn the_most_cpus_boot() {
    assert_eq!(output_of(["--cpus", "32", "busybox", "nproc"]), "32\n");
}

#[test]
fn the_kernel_is_the_vms_and_not_the_hosts() {
    let inside = output_of(["busybox", "uname", "-r"]);
    let outside = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    assert!(inside.starts_with("6.12."));
    assert_ne!(inside, outside);
}

#[test]
fn the_clock_is_right() {
    let before = std::time::SystemTime::now();
    let inside: u64 = output_of(["busybox", "date", "+%s"])
        .trim()
        .parse()
        .expect("date prints a number");
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_secs()
    };
    assert!((seconds(before)..=seconds(std::time::SystemTime::now())).contains(&inside));
}

#[test]
fn random_numbers_differ_from_run_to_run() {
    let draw = || output_of(["busybox", "sh", "-c", "head -c 16 /dev/urandom | sha256sum"]);
    assert_ne!(draw(), draw());
}

#[test]
fn a21_there_is_no_virtualization_inside() {
    let script = "test ! -e /dev/kvm && ! grep -qwE 'vmx|svm' /proc/cpuinfo && echo none";
    assert_eq!(
        output_of(["--privileged", "busybox", "sh", "-c", script]),
        "none\n"
    );
}

#[test]
fn a19_a_panic_is_named_with_its_reason() {
    let script = "echo 2 > /proc/sys/vm/panic_on_oom; x=a; while :; do x=$x$x; done";
    run(["--privileged", "-m", "64m", "busybox", "sh", "-c", script])
        .assert()
        .code(125)
        .stderr(contains("panic").and(contains("panic_on_oom")));
}

#[test]
fn a19_a_reset_is_named() {
    // mov al, 0xfe; out 0x64, al; hlt: the keyboard controller's reset line.
    ends_with(&[0xb0, 0xfe, 0xe6, 0x64, 0xf4], "reset");
}

#[test]
fn a19_a_triple_fault_is_named() {
    // lidt [rip + zeroes]; int3: the descriptor table is empty, and so is the one for its fault.
    let code = [
        0x0f, 0x01, 0x1d, 0x01, 0x00, 0x00, 0x00, 0xcc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    ends_with(&code, "triple fault");
}

/// That a machine whose kernel is `code` ends for this reason.
fn ends_with(code: &[u8], reason: &str) {
    let folder = TempDir::new().expect("a temporary folder");
    let kernel = folder.path().join("vmlinux");
    fs::write(&kernel, elf(code)).expect("the folder is writable");
    run([
        "--kernel",
        kernel.to_str().expect("a plain name"),
        "busybox",
        "true",
    ])
    .assert()
    .code(125)
    .stderr(contains(reason));
}

/// A 64-bit ELF file with `code` at its entry point, 16 MiB up.
fn elf(code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 0x100_0000;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2_u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for long in [ENTRY, 64, 0] {
        file.extend(long.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // One segment to load: readable, writable, executable.
    for word in [1_u32, 7] {
        file.extend(word.to_le_bytes());
    }
    let size = code.len() as u64;
    for long in [120, ENTRY, ENTRY, size, size, 0x1000] {
        file.extend(long.to_le_bytes());
    }
    file.extend(code);
    file
}

#[test]
fn a_kernel_that_is_none_is_refused() {
    run(["--kernel", "/etc/passwd", "busybox", "true"])
        .assert()
        .code(125)
        .stderr(contains("/etc/passwd"));
    run(["--kernel", "/no/such/kernel", "busybox", "true"])
        .assert()
        .code(125)
        .stderr(contains("/no/such/kernel"));
}

#[test]
fn doctor_finds_this_host_able() {
    pillbug()
        .arg("doctor")
        .assert()
        .success()
        .stdout(contains("KVM"));
    let assert = pillbug().args(["doctor", "--json"]).assert().success();
    let report: serde_json::Value =
        serde_json::from_slice(&assert.get_output().stdout).expect("it is JSON");
    assert!(!report.is_null());
}

#[test]
fn a57_without_kvm_run_says_so_at_once_and_leaves_nothing() {
    let script = format!(
        "mount --bind /dev/null /dev/kvm && exec {} run --rm --network none busybox true",
        crate::command::program().display()
    );
    let before = crate::command::traces(&crate::command::state_root());
    let start = Instant::now();
    assert_cmd::Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .assert()
        .code(125)
        .stderr(contains("/dev/kvm").and(contains("pillbug doctor")));
    assert!(
        start.elapsed().as_secs() < 10,
        "it took {:?}",
        start.elapsed()
    );
    assert_eq!(
        crate::command::traces(&crate::command::state_root()),
        before
    );
}

#[test]
fn timing_tells_where_the_start_went() {
    run(["--timing", "busybox", "true"])
        .assert()
        .success()
        .stdout("")
        .stderr(contains("guest kernel boots").and(contains("command to process")));
}
