//! Running the built program, and looking at what it leaves on the host.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, BufRead, BufReader, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use assert_cmd::Command;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longest that any one command may take before it counts as hung, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(240);

/// Longest that anything that is watched for may take: a database that recovers takes a minute of its own.
const PATIENCE: Duration = Duration::from_secs(300);

/// The state root that holds the prepared images.
pub fn state_root() -> PathBuf {
    env::var_os("PILLBUG_ROOT")
        .map(PathBuf::from)
        .expect("PILLBUG_ROOT names a store with the test images: run `make test`")
}

/// Path of the built program, or of the copy of it that `PILLBUG_PROGRAM` names.
pub fn program() -> PathBuf {
    env::var_os("PILLBUG_PROGRAM").map_or_else(
        || assert_cmd::cargo::cargo_bin!("pillbug").to_path_buf(),
        PathBuf::from,
    )
}

/// The built program.
pub fn pillbug() -> Command {
    let mut command = Command::new(program());
    command.timeout(LIMIT);
    command
}

/// `pillbug run --rm FLAGS... SOURCE COMMAND...`, with all that follows `--rm` in `arguments`.
pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = pillbug();
    command
        .args(["run", "--rm", "--network", "none"])
        .args(arguments);
    command
}

/// What `run` printed on standard output, once it succeeded.
pub fn output_of<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> String {
    let assert = run(arguments).assert().success();
    String::from_utf8(assert.get_output().stdout.clone()).expect("output is text")
}

/// What `pillbug ARGUMENTS...` printed, once it succeeded.
pub fn told(arguments: &[&str]) -> String {
    let assert = pillbug().args(arguments).assert().success();
    String::from_utf8(assert.get_output().stdout.clone()).expect("output is text")
}

/// `run` in the background, its streams in the test's hands.
pub fn spawn(arguments: &[&str]) -> Running {
    let mut child = std::process::Command::new(program())
        .args(["run", "--rm", "--network", "none"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("pillbug starts");
    let stdout = BufReader::new(Patient::new(&mut child));
    Running { child, stdout }
}

/// Standard output of a child, which fails where a read of it would wait for ever.
pub struct Patient {
    stdout: ChildStdout,
    end: Instant,
}

impl Patient {
    /// Takes what the child was given a pipe for.
    pub fn new(child: &mut Child) -> Self {
        let stdout = child.stdout.take().expect("it is a pipe");
        let end = Instant::now() + PATIENCE;
        Self { stdout, end }
    }

    /// Begins to wait anew.
    pub fn renew(&mut self) {
        self.end = Instant::now() + PATIENCE;
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("it is short");
        let mut readable = [PollFd::from_borrowed_fd(self.stdout.as_fd(), PollFlags::IN)];
        // The end of this test's own child interrupts the wait.
        if rustix::io::retry_on_intr(|| poll(&mut readable, Some(&left)))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stdout.read(buffer)
    }
}

/// A `run` under way. One that a failed test leaves behind is killed.
pub struct Running {
    pub child: Child,
    stdout: BufReader<Patient>,
}

impl Running {
    /// Waits for a line that contains `text` and returns it.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.stdout.get_mut().renew();
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.stdout.read_line(&mut line).expect("output is text");
            assert_ne!(read, 0, "the output ended before {text:?} was seen");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// All that is still to come, until the stream closes.
    pub fn rest(&mut self) -> String {
        self.stdout.get_mut().renew();
        let mut rest = String::new();
        self.stdout
            .read_to_string(&mut rest)
            .expect("output is text");
        rest
    }

    /// The exit code, as a shell shows it.
    pub fn exit_code(&mut self) -> i32 {
        let status = self.child.wait().expect("a child can be waited for");
        status.code().expect("pillbug exits and is not killed")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every path below `folder`, and that of each running process of this program: what a command that
/// failed or was `--rm` may not change.
pub fn traces(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be listed") {
            let entry = entry.expect("the folder can be listed");
            if entry.file_type().expect("it has a type").is_dir() {
                folders.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found.extend(
        processes()
            .into_iter()
            .map(|pid| format!("/proc/{pid}").into()),
    );
    found
}

/// The running processes of this program.
pub fn processes() -> Vec<i32> {
    let program = program();
    fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program))
        .collect()
}

/// Bytes that a size means, such as `12.3MB`.
pub fn bytes(size: &str) -> f64 {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)];
    let mut read = units.iter().filter_map(|(unit, factor)| {
        let number: f64 = size.strip_suffix(unit)?.parse().ok()?;
        Some(number * factor)
    });
    read.next().unwrap_or_else(|| panic!("{size} is no size"))
}
