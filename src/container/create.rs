//! From a request to a container that is written down.

use std::{collections::BTreeMap, path::Path, time::SystemTime};

use oci_spec::image::Config;
use protocol::Upper;

use super::{
    error::{RunError, check_memory},
    health,
    name::Id,
    network::NetworkSpec,
    options::Options,
    process::{self, ProcessError},
    signal,
    spec::{Machine, Spec, Stop, Streams},
    state::{Container, Containers, StateError},
    status::Status,
    supervisor::DISK,
    timeline::{Timeline, now_ns},
    volumes,
};
use crate::{
    image::store::{Image, Store},
    network::port::{self, Publish},
    sandbox::{disk, kernel},
    state_root,
};

/// Size of a container's writable disk in bytes (10 GiB). It is sparse: only what is written is taken.
const DISK_BYTES: u64 = 10 << 30;

/// Finds the image that `source` names and makes a container of it, which this process holds then, with `status`.
///
/// # Errors
///
/// [`RunError`], which knows its exit code. Nothing is left behind then.
pub fn create(
    state_root: &Path,
    source: &str,
    options: &Options,
    status: &Status,
    timeline: &mut Timeline,
) -> Result<Container, RunError> {
    check_memory(options.limits.memory.bytes())?;
    // Before there is anything to clean up: most mistakes are found here.
    kernel::find(options.kernel.as_deref())?;
    let image = Store::open(state_root)?.open_source(source, &|_| {})?;
    timeline.image_ns = now_ns();
    let config = image.config.config().clone().unwrap_or_default();
    process::process(&config, options, "check")?;
    let stop = stop(&config, options)?;

    let containers = Containers::open(state_root)?;
    let found = volumes::find(state_root, &containers, options, &config)?;
    let created = containers.create(options.name.as_deref(), status, |id, name| {
        let mounts = found.mounts.clone();
        Ok(Spec {
            mounts,
            ..spec(id, name, source, &image, options, stop)?
        })
    });
    let container = match created {
        Ok(container) => container,
        Err(error) => {
            found.discard();
            return Err(error.into());
        }
    };
    drop(found);
    match make_disk(&container, state_root) {
        Ok(()) => {
            let events = containers.events();
            events.record_container(container.spec(), "create", &[]);
            Ok(container)
        }
        Err(error) => {
            let mounts = container.spec().mounts.clone();
            containers.remove_held(container)?;
            volumes::remove_anonymous(&containers, &mounts)?;
            Err(error)
        }
    }
}

fn spec(
    id: Id,
    name: String,
    source: &str,
    image: &Image,
    options: &Options,
    stop: Stop,
) -> Result<Spec, ProcessError> {
    let config = image.config.config().clone().unwrap_or_default();
    let hostname = options.hostname.as_deref().unwrap_or(id.short()).to_owned();
    Ok(Spec {
        name,
        image: source.into(),
        image_digest: image.digest,
        image_id: image.id,
        created: SystemTime::now(),
        process: process::process(&config, options, &hostname)?,
        setup: process::setup(options, &hostname, upper(options)),
        machine: Machine {
            cpus: options.limits.cpus,
            cpuset: options.limits.cpuset.clone(),
            memory_bytes: options.limits.memory.bytes(),
            disk_bytes: (!options.remove)
                .then_some(options.limits.disk_bytes.unwrap_or(DISK_BYTES)),
            disk_rates: options.limits.disk_rates.clone(),
            oom_score_adj: options.limits.oom_score_adj,
            kernel: options.kernel.clone(),
            kernel_console: options.kernel_console.clone(),
        },
        mounts: Vec::new(),
        dangerous_mounts: options.dangerous_mounts,
        network: network(&config, options)?,
        streams: Streams {
            interactive: options.interactive,
            stdin_once: options.interactive && !options.detach,
            log: options.log,
        },
        stop,
        health: health::check(image.healthcheck.as_ref(), &options.health)?,
        restart: options.restart,
        labels: labels(&config, options),
        remove: options.remove,
        id,
    })
}

/// What goes with its container needs no disk: memory is faster, and limited by the guest's own.
fn upper(options: &Options) -> Upper {
    match options.remove {
        true => Upper::Tmpfs {
            size_bytes: options.limits.disk_bytes.unwrap_or(0),
        },
        false => Upper::Ext4 {
            device: "/dev/vdb".into(),
        },
    }
}

/// The network as it was asked for, with the ports that the image exposes where all are.
fn network(config: &Config, options: &Options) -> Result<NetworkSpec, ProcessError> {
    let mut network = options.network.clone();
    if network.publish_all {
        for port in config.exposed_ports().iter().flatten() {
            let exposed = port::parse(port).map_err(ProcessError::ExposedPort)?;
            let is_new = |port: &Publish| {
                let mut given = options.network.publish.iter();
                !given.any(|given| {
                    (given.container, given.protocol) == (port.container, port.protocol)
                })
            };
            network.publish.extend(exposed.into_iter().filter(is_new));
        }
    }
    Ok(network)
}

/// The image's labels, and the user's over them.
fn labels(config: &Config, options: &Options) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = config
        .labels()
        .iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    labels.extend(options.labels.clone());
    labels
}

fn stop(config: &Config, options: &Options) -> Result<Stop, ProcessError> {
    let signal = match (options.stop_signal, config.stop_signal()) {
        (Some(signal), _) => signal,
        (None, Some(name)) if !name.is_empty() => signal::parse(name)?,
        (None, _) => Stop::DEFAULT.signal,
    };
    Ok(Stop {
        signal,
        timeout: options.stop_timeout.unwrap_or(Stop::DEFAULT.timeout),
    })
}

fn make_disk(container: &Container, state_root: &Path) -> Result<(), RunError> {
    let Some(bytes) = container.spec().machine.disk_bytes else {
        return Ok(());
    };
    let templates = state_root.join("disks");
    state_root::private_folder(&templates).map_err(StateError::from)?;
    Ok(disk::create(
        &container.folder().join(DISK),
        bytes,
        &templates,
    )?)
}
