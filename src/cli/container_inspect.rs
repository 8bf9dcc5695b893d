//! `pillbug container inspect`: everything about containers, as JSON in Docker's shape.

use std::{collections::BTreeMap, process::ExitCode, time::SystemTime};

use clap::Args;
use jiff::Timestamp;
use protocol::Rlimit;
use serde_json::{Value, json};

use super::{format::Format, network_settings};
use crate::{
    container::{
        health::Health,
        limits::RateKind,
        log,
        mount::MountSource,
        spec::Spec,
        state::{Containers, Record},
        status::{Restarting, Running, Status},
    },
    state_root,
    volume::Volumes,
};

const EXAMPLES: &str = "\
Examples:
  pillbug container inspect web
  pillbug inspect --format '{{.State.Status}} {{.State.ExitCode}}' web";

/// Show everything about containers
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ContainerInspectArgs {
    /// 'json' for one line, or a Go template such as '{{.State.Status}}'
    #[arg(short, long)]
    format: Option<Format>,
    /// Names, IDs, or starts of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Prints an array with an object for each container there is, and tells which there are not.
pub fn run(arguments: &ContainerInspectArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open(&state_root::locate()?)?;
    containers.sweep()?;
    let mut code = ExitCode::SUCCESS;
    let mut objects = Vec::new();
    for name in &arguments.containers {
        match containers.find(name).and_then(|id| containers.record(&id)) {
            Ok(record) => objects.push(object(&containers, &record)),
            Err(error) => {
                super::report(&error.into());
                code = ExitCode::FAILURE;
            }
        }
    }
    super::print(&Format::objects(arguments.format.as_ref(), &objects)?)?;
    Ok(code)
}

fn time(moment: Option<SystemTime>) -> String {
    // What Docker shows where there is none.
    let never = || "0001-01-01T00:00:00Z".into();
    moment
        .and_then(|moment| Timestamp::try_from(moment).ok())
        .map_or_else(never, |moment| moment.to_string())
}

/// One container.
pub fn object(containers: &Containers, record: &Record) -> Value {
    let spec = &record.spec;
    let folder = containers.container_folder(&spec.id);
    let process = &spec.process;
    let log_path = folder.join(log::FILE);
    let logs = spec.streams.log.max_files > 0;
    json!({
        "Id": spec.id,
        "Created": time(Some(spec.created)),
        "Path": process.args.first(),
        "Args": process.args.get(1..),
        "State": state(&record.status, containers.health(spec).as_ref()),
        "Image": spec.image_id,
        "NetworkSettings": network_settings::of(spec.id.as_str()),
        "LogPath": if logs { log_path.to_string_lossy().into_owned() } else { String::new() },
        "Name": format!("/{}", spec.name),
        "RestartCount": record.status.restarts(),
        "Driver": "erofs",
        "Platform": "linux",
        "HostConfig": {
            "AutoRemove": spec.remove,
            "RestartPolicy": {
                "Name": spec.restart.name(),
                "MaximumRetryCount": spec.restart.retries(),
            },
            "NanoCpus": spec.machine.cpus.nano(),
            "CpusetCpus": spec.machine.cpuset.as_ref().map(ToString::to_string).unwrap_or_default(),
            "Memory": spec.machine.memory_bytes,
            "PidsLimit": spec.setup.limits.pids,
            "OomScoreAdj": spec.machine.oom_score_adj,
            "Sysctls": spec.setup.sysctls.iter().cloned().collect::<BTreeMap<_, _>>(),
            "Ulimits": ulimits(&process.rlimits),
            "StorageOpt": spec.machine.disk_bytes.map(|bytes| json!({"size": bytes.to_string()})),
            "BlkioDeviceReadBps": disk_rates(spec, RateKind::ReadBytes),
            "BlkioDeviceWriteBps": disk_rates(spec, RateKind::WriteBytes),
            "BlkioDeviceReadIOps": disk_rates(spec, RateKind::Reads),
            "BlkioDeviceWriteIOps": disk_rates(spec, RateKind::Writes),
            "NetRxRate": spec.network.limits.receive_bytes,
            "NetTxRate": spec.network.limits.transmit_bytes,
            "Privileged": spec.setup.privileged,
            "ReadonlyRootfs": spec.setup.read_only_root,
            "ShmSize": spec.setup.shm_bytes,
            "Init": process.init,
            "LogConfig": {
                "Type": if logs { "json-file" } else { "none" },
                "Config": {
                    "max-size": spec.streams.log.max_bytes.to_string(),
                    "max-file": spec.streams.log.max_files.to_string(),
                },
            },
        },
        "Mounts": mounts(containers, spec),
        "Config": {
            "Hostname": spec.setup.hostname,
            "User": process.user,
            "Tty": process.terminal.is_some(),
            "OpenStdin": spec.streams.interactive,
            "StdinOnce": spec.streams.stdin_once,
            "Env": process.env,
            "Cmd": process.args,
            "Image": spec.image,
            "WorkingDir": process.cwd,
            "Labels": spec.labels,
            "StopSignal": spec.stop.signal.to_string(),
            "StopTimeout": spec.stop.timeout,
        },
    })
}

fn ulimits(limits: &[Rlimit]) -> Vec<Value> {
    let limits = limits.iter().map(|limit| {
        json!({
            "Name": format!("{:?}", limit.resource).to_lowercase(),
            // As Docker has it, -1 is unlimited.
            "Soft": i64::try_from(limit.soft).unwrap_or(-1),
            "Hard": i64::try_from(limit.hard).unwrap_or(-1),
        })
    });
    limits.collect()
}

fn disk_rates(spec: &Spec, kind: RateKind) -> Vec<Value> {
    let rates = spec.machine.disk_rates.iter();
    rates
        .filter(|rate| rate.kind == kind)
        .map(|rate| json!({"Path": rate.device, "Rate": rate.rate}))
        .collect()
}

fn mounts(containers: &Containers, spec: &Spec) -> Vec<Value> {
    let volumes = Volumes::below(containers.state_root());
    let mode = |read_only| if read_only { "ro" } else { "" };
    let shared = spec.mounts.iter().map(|mount| {
        let (kind, name, source, driver) = match &mount.source {
            MountSource::Bind(path) => ("bind", None, path.clone(), None),
            MountSource::Volume { name, .. } => {
                ("volume", Some(name), volumes.data(name), Some("local"))
            }
        };
        let mut object = json!({
            "Type": kind,
            "Source": source.to_string_lossy(),
            "Destination": mount.target,
            "Mode": mode(mount.read_only),
            "RW": !mount.read_only,
            "Propagation": if name.is_some() { "" } else { "rprivate" },
        });
        if let Some(name) = name {
            object["Name"] = json!(name);
            object["Driver"] = json!(driver);
        }
        object
    });
    let tmpfs = spec.setup.mounts.iter().map(|mount| {
        json!({
            "Type": mount.fs_type,
            "Source": "",
            "Destination": mount.target,
            "Mode": "",
            "RW": true,
            "Propagation": "",
        })
    });
    shared.chain(tmpfs).collect()
}

fn state(status: &Status, health: Option<&Health>) -> Value {
    let (pid, since, at, code, oom_killed, error) = match status {
        Status::Created { error } => (0, None, None, 0, false, error.clone()),
        Status::Starting => (0, None, None, 0, false, None),
        Status::Running(running) => (running.vmm_pid, Some(running.since), None, 0, false, None),
        Status::Exited(exited) | Status::Restarting(Restarting { last: exited, .. }) => (
            0,
            Some(exited.since),
            Some(exited.at),
            exited.code,
            exited.oom_killed,
            exited.error.clone(),
        ),
    };
    let mut state = json!({
        "Status": status.word(),
        "Running": status.is_up(),
        "Paused": matches!(status, Status::Running(Running { paused: true, .. })),
        "Restarting": matches!(status, Status::Restarting(_)),
        "OOMKilled": oom_killed,
        "HostOOMKilled": matches!(
            status,
            Status::Exited(exited) | Status::Restarting(Restarting { last: exited, .. })
                if exited.host_oom_killed
        ),
        "Dead": false,
        "Pid": pid,
        "ExitCode": code,
        "Error": error.unwrap_or_default(),
        "StartedAt": time(since),
        "FinishedAt": time(at),
    });
    if let Some(health) = health {
        state["Health"] = json!(health);
    }
    state
}
