//! Builds the guest agent and wraps it into the initial RAM file system that the binary embeds
//! (`sandbox::initramfs`).

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use cpio::newc::{self, ModeFileType};

/// Largest agent in bytes: every start of every container unpacks it.
const AGENT_LIMIT: usize = 1 << 20;

/// What shapes the agent, from the workspace's root.
const INPUTS: [&str; 8] = [
    "build.rs",
    "Cargo.toml",
    "Cargo.lock",
    "guest-agent/build.sh",
    "guest-agent/Cargo.toml",
    "guest-agent/src",
    "guest-agent/protocol/Cargo.toml",
    "guest-agent/protocol/src",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    for input in INPUTS {
        println!("cargo::rerun-if-changed={input}");
    }
    let workspace = directory("CARGO_MANIFEST_DIR")?;
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), |dir| workspace.join(dir));
    let agent = build_agent(&workspace, &target)?;
    let image = directory("OUT_DIR")?.join("initramfs.cpio");
    initramfs(&agent)
        .and_then(|bytes| fs::write(&image, bytes))
        .map_err(|error| format!("cannot write {}: {error}", image.display()))
}

fn directory(variable: &str) -> Result<PathBuf, String> {
    env::var_os(variable)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{variable} is not set: build.rs runs only under cargo"))
}

fn build_agent(workspace: &Path, target: &Path) -> Result<Vec<u8>, String> {
    let script = workspace.join("guest-agent/build.sh");
    let output = Command::new(&script)
        .arg(target)
        .output()
        .map_err(|error| format!("cannot run {}: {error}", script.display()))?;
    if !output.status.success() {
        return Err(format!(
            "{} failed ({}):\n{}",
            script.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let binary = target.join("agent/guest-agent");
    let agent = fs::read(&binary)
        .map_err(|error| format!("cannot read the agent {}: {error}", binary.display()))?;
    if agent.len() > AGENT_LIMIT {
        return Err(format!(
            "the agent {} has {} bytes, more than the {AGENT_LIMIT} it may have",
            binary.display(),
            agent.len()
        ));
    }
    Ok(agent)
}

/// The agent as `/init`, the device it gets as its standard streams, and the folders it mounts on:
/// nothing else exists in the guest until the agent makes it. Uncompressed, as unpacking would cost
/// every start more than copying does.
fn initramfs(agent: &[u8]) -> io::Result<Vec<u8>> {
    const DIRECTORY: u32 = 0o755;
    let mut image = Vec::with_capacity(agent.len() + 4096);
    for name in ["dev", "lower", "upper"] {
        entry(name, DIRECTORY, ModeFileType::Directory)
            .write(&mut image, 0)
            .finish()?;
    }
    // c 5 1, Documentation/admin-guide/devices.txt
    entry("dev/console", 0o600, ModeFileType::Char)
        .rdev_major(5)
        .rdev_minor(1)
        .write(&mut image, 0)
        .finish()?;
    let length = u32::try_from(agent.len()).map_err(io::Error::other)?;
    let mut init = entry("init", 0o500, ModeFileType::Regular).write(&mut image, length);
    init.write_all(agent)?;
    init.finish()?;
    newc::trailer(&mut image)?;
    Ok(image)
}

/// An entry of root's, of no particular time, so that the same agent gives the same image.
fn entry(name: &str, permissions: u32, kind: ModeFileType) -> newc::Builder {
    newc::Builder::new(name)
        .mode(permissions)
        .nlink(1)
        .set_mode_file_type(kind)
}
