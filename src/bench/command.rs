//! Commands from their start to their end, with the moment of their first output.

use std::{
    io::{self, Read},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{BenchError, StartConfig, bundle::Bundle};
use crate::container::timeline::{Timeline, now_ns};

/// One command's times.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Until its first byte on standard output.
    pub first_output: Duration,
    /// Until it was reaped.
    pub whole: Duration,
}

/// A `pillbug run` of `config`'s image, in the state that this process uses.
pub fn pillbug_run(config: &StartConfig, flags: &[&str], command: &[&str]) -> Command {
    let mut run = Command::new("/proc/self/exe");
    run.args(["run", "--rm", "--network", "none"]);
    run.args(["--cpus", "1", "-m", &config.memory]);
    run.args(flags).arg(&config.image).args(command);
    run
}

/// One start by pillbug, with its phases; the command begins when this process starts it.
pub fn pillbug(config: &StartConfig) -> Result<(Measured, Timeline), BenchError> {
    let started_ns = now_ns();
    let (measured, stderr) = measure(
        pillbug_run(config, &["--timing=json"], &["echo", "ready"]),
        "pillbug",
    )?;
    let times = stderr.lines().last().unwrap_or_default();
    let mut timeline: Timeline =
        serde_json::from_str(times).map_err(|source| BenchError::Timing {
            program: "pillbug".into(),
            source,
        })?;
    timeline.command_ns = started_ns;
    Ok((measured, timeline))
}

/// One start by another runtime.
pub fn peer(name: &str, bundle: &Bundle, round: usize) -> Result<Measured, BenchError> {
    let id = format!("pillbug-bench-{}-{round}", std::process::id());
    measure(bundle.run(name, &id), name).map(|(measured, _)| measured)
}

/// Release of the kernel in the guest.
pub fn guest_release(config: &StartConfig) -> Result<String, BenchError> {
    let mut run = pillbug_run(config, &[], &["cat", "/proc/sys/kernel/osrelease"]);
    let output = run.output().map_err(|source| BenchError::Spawn {
        program: "pillbug".into(),
        source,
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed("pillbug", output.status, said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

fn measure(mut command: Command, program: &str) -> Result<(Measured, String), BenchError> {
    let broken = |source: io::Error| BenchError::Spawn {
        program: program.into(),
        source,
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().map_err(broken)?;
    let first_output = first_byte(&mut child).map(|()| started.elapsed());
    let mut rest = Vec::new();
    child
        .stdout
        .take()
        .map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut rest))
        .map_err(broken)?;
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .map_or(Ok(0), |mut pipe| pipe.read_to_string(&mut stderr))
        .map_err(broken)?;
    let status = child.wait().map_err(broken)?;
    let whole = started.elapsed();
    match (status.success(), first_output) {
        (true, Ok(first_output)) => Ok((
            Measured {
                first_output,
                whole,
            },
            stderr,
        )),
        _ => Err(failed(program, status, stderr.trim().to_owned())),
    }
}

/// Waits for the first byte on the child's standard output.
pub fn first_byte(child: &mut Child) -> io::Result<()> {
    match &mut child.stdout {
        Some(stdout) => stdout.read_exact(&mut [0]),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

pub fn failed(program: &str, status: std::process::ExitStatus, output: String) -> BenchError {
    BenchError::Failed {
        program: program.into(),
        status,
        output,
    }
}
