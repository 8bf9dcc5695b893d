//! Standard streams: apart, binary-safe, whole, and closed when they should be.

use std::io::Write;

use sha2::{Digest, Sha256};

use crate::command::{output_of, run, spawn};

/// Ten megabytes without any pattern that a mistake could repeat.
fn noise() -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    (0..10_000_000 / 8)
        .flat_map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()
        })
        .collect()
}

#[test]
fn ten_megabytes_of_output_arrive_whole_while_errors_interleave() {
    let script = "i=0; while [ $i -lt 1000 ]; do
            head -c 10000 /dev/zero | tr '\\0' \"\\\\$((i % 8 + 60))\"
            echo error $i >&2
            i=$((i + 1))
        done";
    let assert = run(["busybox", "sh", "-c", script]).assert().success();
    let output = assert.get_output();
    let expected: Vec<u8> = (b'0'..b'8')
        .cycle()
        .take(1000)
        .flat_map(|digit| std::iter::repeat_n(digit, 10_000))
        .collect();
    assert!(
        output.stdout == expected,
        "{} bytes arrived",
        output.stdout.len()
    );
    let errors: String = (0..1000).map(|i| format!("error {i}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&output.stderr), errors);
}

#[test]
fn ten_megabytes_of_input_go_through_cat() {
    let input = noise();
    let assert = run(["-i", "busybox", "cat"])
        .write_stdin(input.clone())
        .assert()
        .success();
    assert!(
        assert.get_output().stdout == input,
        "what came back differs"
    );
}

#[test]
fn the_end_of_input_is_seen_while_output_goes_on() {
    let input = noise();
    let expected = hex::encode(Sha256::digest(&input));
    run(["-i", "busybox", "sh", "-c", "sha256sum; echo after"])
        .write_stdin(input)
        .assert()
        .success()
        .stdout(format!("{expected}  -\nafter\n"));
}

#[test]
fn without_interactive_the_input_is_empty() {
    run(["busybox", "cat"])
        .write_stdin("not for the container")
        .assert()
        .success()
        .stdout("");
}

#[test]
fn input_that_nobody_reads_hangs_nothing() {
    run(["-i", "busybox", "true"])
        .write_stdin(noise())
        .assert()
        .success();
}

#[test]
fn a48_a_background_child_that_holds_the_output_does_not_hang_the_exit() {
    run(["busybox", "sh", "-c", "sleep 1000 & echo done; exit 3"])
        .assert()
        .code(3)
        .stdout("done\n");
}

#[test]
fn output_arrives_as_it_is_written() {
    let mut running = spawn(&[
        "-i",
        "busybox",
        "sh",
        "-c",
        "echo ready; read line; echo got $line",
    ]);
    running.wait_for("ready");
    let mut stdin = running.child.stdin.take().expect("it is a pipe");
    stdin.write_all(b"this\n").expect("pillbug reads it");
    running.wait_for("got this");
    assert_eq!(running.exit_code(), 0);
}

#[test]
fn a_reader_that_goes_away_ends_the_writer() {
    let script = format!(
        "{} run --rm busybox yes | head -n 1",
        crate::command::program().display()
    );
    let mut shell = assert_cmd::Command::new("bash");
    shell.args(["-o", "pipefail", "-c", &script]);
    shell.timeout(std::time::Duration::from_secs(90));
    shell.assert().code(predicates::ord::ne(124)).stdout("y\n");
}

#[test]
fn programs_can_reopen_their_streams() {
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; echo in | cat /dev/stdin";
    assert_eq!(
        output_of(["-u", "www-data", "busybox", "sh", "-c", script]),
        "out\nin\n"
    );
}
