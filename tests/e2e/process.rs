//! What the container's process is started as and what becomes of its end.

use predicates::{prelude::*, str::contains};
use tempfile::TempDir;

use crate::{
    command::{output_of, run},
    image::{Image, Layer},
};

#[test]
fn echo_hi() {
    run(["busybox", "echo", "hi"])
        .assert()
        .success()
        .stdout("hi\n")
        .stderr("");
}

#[test]
fn a49_the_exit_code_is_the_processs() {
    for code in [0, 1, 42, 255] {
        run(["busybox", "sh", "-c", &format!("exit {code}")])
            .assert()
            .code(code);
    }
}

#[test]
fn a49_death_by_a_signal_is_128_and_its_number() {
    run(["busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"])
        .assert()
        .code(137);
    // Process 1 does not die of signals that it sends itself; below an init it is not that.
    run(["--init", "busybox", "sh", "-c", "kill -SEGV $$"])
        .assert()
        .code(139);
}

#[test]
fn a_missing_program_is_127() {
    run(["busybox", "no-such-program"])
        .assert()
        .code(127)
        .stderr(contains("no-such-program"));
    run(["busybox", "/no/such/program"]).assert().code(127);
}

#[test]
fn a_program_that_cannot_be_executed_is_126() {
    run(["busybox", "/etc/passwd"])
        .assert()
        .code(126)
        .stderr(contains("/etc/passwd"));
    run(["busybox", "/etc"]).assert().code(126);
}

#[test]
fn the_images_command_runs_where_none_is_given() {
    run(["-i", "busybox"])
        .write_stdin("echo from the shell\n")
        .assert()
        .success()
        .stdout("from the shell\n");
}

#[test]
fn it_is_process_1_and_sees_no_other() {
    assert_eq!(output_of(["busybox", "sh", "-c", "echo $$"]), "1\n");
    assert_eq!(
        output_of(["busybox", "sh", "-c", "echo /proc/[0-9]*"]),
        "/proc/1\n"
    );
}

#[test]
fn init_reaps_orphans_and_keeps_the_exit_code() {
    let script = "test $$ != 1 || exit 1
        orphan=$(sh -c 'true & echo $!')
        while test -e /proc/$orphan; do :; done
        exit 7";
    run(["--init", "busybox", "sh", "-c", script])
        .assert()
        .code(7);
}

#[test]
fn user_by_name_and_by_number() {
    let ids = |user| output_of(["-u", user, "busybox", "id"]);
    assert!(ids("www-data").starts_with("uid=33(www-data) gid=33(www-data)"));
    assert!(ids("www-data").contains("8(mail)"));
    assert!(ids("www-data:daemon").starts_with("uid=33(www-data) gid=1(daemon)"));
    assert!(ids("1234").starts_with("uid=1234 gid=0(root)"));
    assert!(ids("1234:5678").starts_with("uid=1234 gid=5678"));
}

#[test]
fn a_user_has_a_home_and_no_capabilities() {
    assert_eq!(
        output_of(["-u", "www-data", "busybox", "sh", "-c", "echo $HOME"]),
        "/var/www\n"
    );
    let script = "grep CapEff /proc/self/status";
    assert_eq!(
        output_of(["-u", "www-data", "busybox", "sh", "-c", script]),
        "CapEff:\t0000000000000000\n"
    );
}

#[test]
fn capabilities_are_dockers_and_can_be_changed() {
    let effective = |flags: &[&str]| {
        let command = ["busybox", "grep", "CapEff", "/proc/self/status"];
        output_of(flags.iter().chain(&command))
    };
    assert_eq!(effective(&[]), "CapEff:\t00000000a80425fb\n");
    assert_eq!(
        effective(&["--cap-drop", "ALL", "--cap-add", "NET_ADMIN"]),
        "CapEff:\t0000000000001000\n"
    );
}

#[test]
fn working_directory_is_entered_and_made_if_missing() {
    assert_eq!(
        output_of(["-w", "/var/spool", "busybox", "pwd"]),
        "/var/spool\n"
    );
    assert_eq!(
        output_of(["-w", "/made/on/the way", "busybox", "pwd"]),
        "/made/on/the way\n"
    );
}

#[test]
fn environment_from_flags_and_files() {
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join("env");
    std::fs::write(&file, "# a comment\nFROM_FILE=a b=c\nPASSED\n").expect("it can be written");
    let mut command = run(["-e", "GIVEN=x y"]);
    command
        .env("PASSED", "along")
        .arg("--env-file")
        .arg(&file)
        .args([
            "busybox",
            "sh",
            "-c",
            "echo \"$GIVEN|$FROM_FILE|$PASSED|$PATH\"",
        ]);
    command
        .assert()
        .success()
        .stdout("x y|a b=c|along|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n");
}

#[test]
fn the_hosts_environment_stays_outside() {
    run(["busybox", "env"])
        .env("SECRET", "of the host")
        .assert()
        .success()
        .stdout(contains("SECRET").not());
}

#[test]
fn entry_point_and_command_follow_docker() {
    let folder = TempDir::new().expect("a temporary folder");
    let layout = Image::busybox()
        .layer(Layer::new().file("bin/say", 0o755, b"#!/bin/sh\necho \"$@\"\n"))
        .config("Entrypoint", vec!["/bin/say", "entry"])
        .config("Cmd", vec!["command"])
        .write(folder.path());
    assert_eq!(output_of([&*layout]), "entry command\n");
    assert_eq!(output_of([&*layout, "other"]), "entry other\n");
    assert_eq!(output_of(["--entrypoint", "/bin/say", &*layout]), "\n");
    assert_eq!(
        output_of(["--entrypoint", "/bin/say", &*layout, "x"]),
        "x\n"
    );
}

#[test]
fn host_name_is_set_and_resolves() {
    let script = "hostname; cat /etc/hostname; grep -c shell /etc/hosts";
    assert_eq!(
        output_of(["-h", "shell", "busybox", "sh", "-c", script]),
        "shell\nshell\n1\n"
    );
}

#[test]
fn read_only_root_refuses_writes_but_tmpfs_takes_them() {
    let script =
        "! touch /file 2>/dev/null && touch /scratch/file && touch /dev/shm/file && echo good";
    assert_eq!(
        output_of([
            "--read-only",
            "--tmpfs",
            "/scratch:size=1m",
            "busybox",
            "sh",
            "-c",
            script
        ]),
        "good\n"
    );
}

#[test]
fn tmpfs_has_the_size_it_was_given() {
    run([
        "--tmpfs",
        "/scratch:size=1m",
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/scratch/x",
        "bs=1M",
        "count=2",
    ])
    .assert()
    .code(1)
    .stderr(contains("No space left"));
}

#[test]
fn limits_are_set() {
    assert_eq!(
        output_of([
            "--ulimit",
            "nofile=100:200",
            "busybox",
            "sh",
            "-c",
            "ulimit -Sn; ulimit -Hn"
        ]),
        "100\n200\n"
    );
}

#[test]
fn root_file_system_is_writable_and_forgotten() {
    let script = "test ! -e /file && echo kept > /file && cat /file";
    for _ in 0..2 {
        assert_eq!(output_of(["busybox", "sh", "-c", script]), "kept\n");
    }
}

#[test]
fn mounts_and_devices_are_those_of_a_container() {
    let script = "set -e
        for device in null zero full random urandom tty ptmx; do test -c /dev/$device; done
        test -d /dev/pts; test -d /dev/shm; test -d /dev/mqueue; test -L /dev/stdin
        test ! -e /dev/vda; test ! -e /dev/kvm; test ! -e /dev/mem
        test -z \"$(cat /proc/kcore 2>/dev/null | head -c 1)\"
        ! echo 1 > /proc/sys/kernel/sysrq 2>/dev/null
        echo good";
    assert_eq!(output_of(["busybox", "sh", "-c", script]), "good\n");
}

#[test]
fn privileged_gives_all_of_the_vm() {
    let script = "mount -t tmpfs none /mnt && test -e /dev/vda && echo good";
    assert_eq!(
        output_of(["--privileged", "-w", "/mnt", "busybox", "sh", "-c", script]),
        "good\n"
    );
    run(["busybox", "mount", "-t", "tmpfs", "none", "/tmp"])
        .assert()
        .failure();
}

#[test]
fn python_computes_and_writes_a_file() {
    let script = "
import hashlib, pathlib
path = pathlib.Path('/tmp/result')
path.write_text(hashlib.sha256(str(2 ** 1000).encode()).hexdigest())
print(sum(range(10 ** 5)), path.read_text()[:8])
";
    assert_eq!(
        output_of(["python", "python3", "-c", script]),
        "4999950000 8c5d0b14\n"
    );
}
