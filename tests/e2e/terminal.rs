//! `-t`: a terminal on both sides. script(1) plays the user's.

use std::{
    io::{Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::command::{Patient, program};

/// A user at a terminal. One that a failed test leaves behind is killed.
struct Terminal {
    script: Child,
    keys: Option<ChildStdin>,
    screen: Patient,
}

impl Terminal {
    /// Reads until `text` was seen, and returns all that was read.
    fn wait_for(&mut self, text: &str) -> String {
        self.screen.renew();
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(text.as_bytes()) {
            let read = self.screen.read(&mut byte);
            let so_far = String::from_utf8_lossy(&seen);
            assert!(
                matches!(read, Ok(1)),
                "{text:?} did not come: {read:?} after {so_far:?}"
            );
            seen.push(byte[0]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    fn type_in(&mut self, keys: &str) {
        let terminal = self.keys.as_mut().expect("it is still there");
        terminal
            .write_all(keys.as_bytes())
            .expect("the terminal takes it");
    }

    /// Once all is said.
    fn exit_code(mut self) -> Option<i32> {
        drop(self.keys.take());
        self.screen.renew();
        let mut rest = Vec::new();
        self.screen
            .read_to_end(&mut rest)
            .expect("the terminal is closed in time");
        let status = self.script.wait();
        status.expect("a child can be waited for").code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

/// `pillbug run --rm ARGUMENTS` in a terminal of 33 rows and 101 columns.
fn in_terminal(arguments: &str) -> Terminal {
    script(&format!(
        "stty rows 33 cols 101; exec {} run --rm {arguments}",
        program().display()
    ))
}

/// This shell line in a terminal of its own.
fn script(line: &str) -> Terminal {
    let mut script = Command::new("script")
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
        .expect("script starts");
    Terminal {
        keys: script.stdin.take(),
        screen: Patient::new(&mut script),
        script,
    }
}

#[test]
fn the_process_has_a_terminal_of_the_users_size() {
    let mut child =
        in_terminal("-it busybox sh -c 'test -t 0 && test -t 1 && test -t 2 && stty size && tty'");
    child.wait_for("33 101\r\n/dev/pts/0\r\n");
    assert_eq!(child.exit_code(), Some(0));
}

#[test]
fn without_it_there_is_none() {
    let mut child = in_terminal("busybox sh -c 'test -t 0 || test -t 1 || test -t 2 || echo none'");
    child.wait_for("none\r\n");
    assert_eq!(child.exit_code(), Some(0));
}

#[test]
fn ctrl_c_reaches_the_process() {
    let mut child = in_terminal(
        "-it busybox sh -c 'trap \"echo caught; exit 9\" INT; echo ready; while :; do :; done'",
    );
    child.wait_for("ready\r\n");
    child.type_in("\x03");
    child.wait_for("caught\r\n");
    assert_eq!(child.exit_code(), Some(9));
}

#[test]
fn a_shell_can_be_talked_to() {
    let mut child = in_terminal("-it busybox sh");
    child.wait_for("# ");
    child.type_in("echo $((6 * 7))\n");
    child.wait_for("42\r\n");
    child.wait_for("# ");
    child.type_in("exit 5\n");
    assert_eq!(child.exit_code(), Some(5));
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
    child.wait_for("ready\r\n");
    std::fs::write(&go, "\n").expect("the shell reads it");
    child.wait_for("44 55\r\n");
    assert_eq!(child.exit_code(), Some(0));
}

#[test]
fn the_users_terminal_is_as_before_afterwards() {
    let line = format!(
        "before=$(stty -g); {} run --rm -it busybox sh -c 'exit 3'; test \"$(stty -g)\" = \"$before\" && echo restored",
        program().display()
    );
    let mut child = script(&line);
    child.wait_for("restored\r\n");
    assert_eq!(child.exit_code(), Some(0));
}

#[test]
fn a_paste_of_a_megabyte_arrives_whole() {
    let script = "stty raw -echo; echo ready; head -c 1048576 | md5sum; stty sane";
    let mut child = in_terminal(&format!("-it busybox sh -c '{script}'"));
    child.wait_for("ready");
    let line = "0123456789abcdef".repeat(64);
    child.type_in(&line.repeat(1024));
    // md5sum of those bytes.
    child.wait_for("14d785daab3823736c981ca82a750c98");
    assert_eq!(child.exit_code(), Some(0));
}

#[test]
fn a_shell_has_jobs_editors_and_tables_and_can_be_left() {
    let line = format!(
        r#"restored() {{ echo "$1 $?" $(test "$(stty -g)" = "$before" && echo restored); }}
        stty rows 33 cols 101; before=$(stty -g)
        {0} run -it --network none --name jobs busybox sh; restored detached
        stty rows 44 cols 55
        {0} attach jobs; restored detached
        for time in first second; do
            bash -c 'echo pid $$; exec {0} exec -it jobs sh'; restored killed
        done
        {0} rm -f jobs"#,
        program().display()
    );
    // What is waited for is never the echo of what was typed: quotes in words tell them apart.
    let mut child = script(&line);
    child.type_in("sh -c 'echo be\"\"gun; read x; echo go\"\"t $x; sleep 1000'\n");
    child.wait_for("begun\r\n");
    child.type_in("\x1a");
    child.wait_for("Stopped");
    child.type_in("fg\nword\n");
    child.wait_for("got word\r\n");
    child.type_in("\x03");
    child.type_in("mark=kept; echo size $(stty size)\n");
    child.wait_for("size 33 101\r\n");

    // An editor, and a table that is drawn anew.
    child.type_in("vi /tmp/file\n");
    child.wait_for("~");
    child.type_in("itwo words");
    child.wait_for("two words");
    // With more behind it at once, it would be the beginning of a key's sequence.
    child.type_in("\x1b");
    child.wait_for("- /tmp/file [Modified]");
    child.type_in(":wq\n");
    child.type_in("echo re\"\"ad: $(cat /tmp/file)\n");
    child.wait_for("read: two words\r\n");
    child.type_in("top -d 1\n");
    for _ in 0..2 {
        child.wait_for("Mem: ");
        child.wait_for("COMMAND");
    }
    child.type_in("q");
    child.type_in("echo af\"\"ter\n");
    child.wait_for("after\r\n");

    // Left with the keys for it, and attached to again: it is where it was, in a window of another size.
    child.type_in("\x10\x11");
    child.wait_for("detached 0 restored\r\n");
    child.type_in("echo is $mark $(stty size)\n");
    child.wait_for("is kept 44 55\r\n");
    child.type_in("\x10\x11");
    child.wait_for("detached 0 restored\r\n");

    // A command that is killed leaves the terminal as it was.
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        child.wait_for("pid ");
        let pid = child.wait_for("\r\n");
        child.wait_for("# ");
        let pid = pid.trim().parse().expect("a number");
        kill(Pid::from_raw(pid), signal).expect("it is there");
        child.wait_for(&format!("killed {code} restored\r\n"));
    }
    assert_eq!(child.exit_code(), Some(0));
}
