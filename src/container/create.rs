//! From a request to a container that runs.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use oci_spec::image::Config;
use protocol::Upper;

use super::{
    error::{RunError, check_memory},
    name::Id,
    options::Options,
    process,
    run::{self, Orders, Outcome, Run, Streams},
    state::{Container, Containers, Spec, StateError, Status},
    timeline::{Timeline, now_ns},
};
use crate::{
    image::store::{Image, Store},
    sandbox::{SandboxConfig, disk, kernel},
    state_root,
};

/// Size of a container's writable disk in bytes (10 GiB). It is sparse: only what is written is taken.
const DISK_BYTES: u64 = 10 << 30;

/// Finds the image that `source` names, makes a container of it, and runs that to its end.
///
/// # Errors
///
/// [`RunError`], which knows its exit code. Nothing is left behind but, without
/// [`Options::remove`], the ended container.
pub fn create_and_run(
    state_root: &Path,
    source: &str,
    options: &Options,
    streams: Streams,
    orders: &mut dyn Orders,
    timeline: &mut Timeline,
) -> Result<Outcome, RunError> {
    check_memory(options.memory.bytes())?;
    let kernel = kernel::find(options.kernel.as_deref())?;
    let image = Store::open(state_root)?.open_source(source, &|_| {})?;
    timeline.image_ns = now_ns();
    let config = image.config.config().clone().unwrap_or_default();
    // Before there is anything to clean up: most mistakes are found here.
    process::process(&config, options, "check")?;

    let containers = Containers::open(state_root)?;
    let describe = |id, name| spec(id, name, source, &image, &config, options);
    let container = containers.create(options.name.as_deref(), describe)?;
    let result = writable_disk(&container, state_root)
        .and_then(|disk| describe_run(&container, &image, &config, options, kernel, disk))
        .and_then(|run| run::run(run, &container, streams, orders, timeline));
    finish(&containers, container, &result, timeline.exec_ns > 0)?;
    result
}

fn spec(
    id: Id,
    name: String,
    source: &str,
    image: &Image,
    config: &Config,
    options: &Options,
) -> Spec {
    Spec {
        id,
        name,
        image: source.into(),
        image_digest: image.digest.to_string(),
        // Checked before: the arguments are there.
        command: process::arguments(config, options).unwrap_or_default(),
        labels: options.labels.clone(),
        vcpus: options.vcpus.get(),
        memory_bytes: options.memory.bytes(),
        remove: options.remove,
        created: SystemTime::now(),
    }
}

/// What goes with its container needs no disk: memory is faster, and limited by the guest's own.
fn writable_disk(
    container: &Container,
    state_root: &Path,
) -> Result<Option<(PathBuf, u64)>, RunError> {
    if container.spec().remove {
        return Ok(None);
    }
    let templates = state_root.join("disks");
    state_root::private_folder(&templates).map_err(StateError::from)?;
    let path = container.folder().join("disk.ext4");
    disk::create(&path, DISK_BYTES, &templates)?;
    Ok(Some((path, DISK_BYTES)))
}

fn describe_run(
    container: &Container,
    image: &Image,
    config: &Config,
    options: &Options,
    kernel: PathBuf,
    disk: Option<(PathBuf, u64)>,
) -> Result<Run, RunError> {
    let id = &container.spec().id;
    let hostname = options.hostname.as_deref().unwrap_or(id.short());
    let upper = match &disk {
        None => Upper::Tmpfs { size_bytes: 0 },
        Some(_) => Upper::Ext4 {
            device: "/dev/vdb".into(),
        },
    };
    Ok(Run {
        process: process::process(config, options, hostname)?,
        setup: process::setup(options, hostname, upper),
        sandbox: SandboxConfig {
            label: id.short().into(),
            vcpus: options.vcpus.get(),
            memory_bytes: options.memory.bytes(),
            kernel,
            root: image.rootfs.parts.clone(),
            disk,
            kernel_console: options.kernel_console.clone(),
            log: container.folder().join("vmm.log"),
        },
    })
}

/// Writes down how the container ended, or removes it.
fn finish(
    containers: &Containers,
    container: Container,
    result: &Result<Outcome, RunError>,
    started: bool,
) -> Result<(), RunError> {
    // One that never ran has nothing to be looked at afterwards.
    if container.spec().remove || !started {
        return Ok(containers.remove_held(container)?);
    }
    let (code, error) = match result {
        Ok(outcome) => (outcome.code, None),
        Err(error) => (error.exit_code(), Some(error.to_string())),
    };
    Ok(container.set_status(&Status::Exited {
        at: SystemTime::now(),
        code,
        error,
    })?)
}
