//! `-t`: a terminal on both sides. script(1) plays the user's.

use std::{
    io::{Read, Write},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::command::program;

/// `pillbug run --rm ARGUMENTS` in a terminal of 33 rows and 101 columns.
fn in_terminal(arguments: &str) -> Child {
    script(&format!(
        "stty rows 33 cols 101; exec {} run --rm {arguments}",
        program().display()
    ))
}

/// This shell line in a terminal of its own.
fn script(line: &str) -> Child {
    Command::new("script")
        .args([
            "--quiet",
            "--flush",
            "--return",
            "--command",
            line,
            "/dev/null",
        ])
        .env("SHELL", "/bin/bash")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script starts")
}

/// Reads until `text` was seen, and returns all that was read.
fn wait_for(child: &mut Child, text: &str) -> String {
    let stdout = child.stdout.as_mut().expect("it is a pipe");
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(text.as_bytes()) {
        let read = stdout.read(&mut byte).expect("the terminal can be read");
        assert_ne!(
            read,
            0,
            "{text:?} did not come: {}",
            String::from_utf8_lossy(&seen)
        );
        seen.push(byte[0]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

fn type_in(child: &mut Child, keys: &str) {
    let stdin = child.stdin.as_mut().expect("it is a pipe");
    stdin
        .write_all(keys.as_bytes())
        .expect("the terminal takes it");
}

fn exit_code(mut child: Child) -> Option<i32> {
    drop(child.stdin.take());
    child.wait().expect("a child can be waited for").code()
}

#[test]
fn the_process_has_a_terminal_of_the_users_size() {
    let mut child =
        in_terminal("-it busybox sh -c 'test -t 0 && test -t 1 && test -t 2 && stty size && tty'");
    wait_for(&mut child, "33 101\r\n/dev/pts/0\r\n");
    assert_eq!(exit_code(child), Some(0));
}

#[test]
fn without_it_there_is_none() {
    let mut child = in_terminal("busybox sh -c 'test -t 0 || test -t 1 || test -t 2 || echo none'");
    wait_for(&mut child, "none\r\n");
    assert_eq!(exit_code(child), Some(0));
}

#[test]
fn ctrl_c_reaches_the_process() {
    let mut child = in_terminal(
        "-it busybox sh -c 'trap \"echo caught; exit 9\" INT; echo ready; while :; do :; done'",
    );
    wait_for(&mut child, "ready\r\n");
    type_in(&mut child, "\x03");
    wait_for(&mut child, "caught\r\n");
    assert_eq!(exit_code(child), Some(9));
}

#[test]
fn a_shell_can_be_talked_to() {
    let mut child = in_terminal("-it busybox sh");
    wait_for(&mut child, "# ");
    type_in(&mut child, "echo $((6 * 7))\n");
    wait_for(&mut child, "42\r\n");
    wait_for(&mut child, "# ");
    type_in(&mut child, "exit 5\n");
    assert_eq!(exit_code(child), Some(5));
}

#[test]
fn a_new_size_is_passed_on() {
    let folder = TempDir::new().expect("a temporary folder");
    let go = folder.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    let line = format!(
        "stty rows 33 cols 101
        {} run --rm -it busybox sh -c 'trap \"stty size; exit\" WINCH; echo ready; while :; do :; done' < /dev/tty &
        read < {} && stty rows 44 cols 55 < /dev/tty
        wait $!",
        program().display(),
        go.display()
    );
    let mut child = script(&line);
    wait_for(&mut child, "ready\r\n");
    std::fs::write(&go, "\n").expect("the shell reads it");
    wait_for(&mut child, "44 55\r\n");
    assert_eq!(exit_code(child), Some(0));
}

#[test]
fn the_users_terminal_is_as_before_afterwards() {
    let line = format!(
        "before=$(stty -g); {} run --rm -it busybox sh -c 'exit 3'; test \"$(stty -g)\" = \"$before\" && echo restored",
        program().display()
    );
    let mut child = script(&line);
    wait_for(&mut child, "restored\r\n");
    assert_eq!(exit_code(child), Some(0));
}

#[test]
fn a_paste_of_a_megabyte_arrives_whole() {
    let script = "stty raw -echo; echo ready; head -c 1048576 | md5sum; stty sane";
    let mut child = in_terminal(&format!("-it busybox sh -c '{script}'"));
    wait_for(&mut child, "ready");
    let line = "0123456789abcdef".repeat(64);
    type_in(&mut child, &line.repeat(1024));
    // md5sum of those bytes.
    wait_for(&mut child, "14d785daab3823736c981ca82a750c98");
    assert_eq!(exit_code(child), Some(0));
}
