//! A container's volumes and bind mounts: found or made when it is created, shared when it starts, and let go with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use oci_spec::image::Config;
use protocol::{Mount, SHARE_TYPE};

use super::{
    error::RunError,
    event::{Events, Kind},
    mount::{self, MountPoint, MountRequest, MountSource, RequestedSource, VolumesFrom},
    name::Id,
    options::Options,
    spec::Spec,
    state::{Containers, StateError},
};
use crate::{
    sandbox::share::Share,
    volume::{Filling, Held, VolumeError, Volumes},
};

/// Most mounts of one container; images name some too.
const MAX_MOUNTS: usize = 128;

/// What a container that is about to be written down has mounted. Its volumes stay until this is dropped.
#[derive(Debug, Default)]
pub struct Found {
    /// The mounts.
    pub mounts: Vec<MountPoint>,
    made: Vec<String>,
    held: Option<(Volumes, Held)>,
}

impl Found {
    /// Removes volumes that were made for a container that there is none of.
    pub fn discard(self) {
        if let Some((volumes, held)) = &self.held {
            for name in &self.made {
                // What stays is anonymous, and pruned some day.
                let _ = volumes.remove(held, name);
            }
        }
    }
}

/// Finds or makes what `options` and the image want to have mounted.
///
/// # Errors
///
/// Where a path is not to be mounted, a name is none, or two want the same place.
pub fn find(
    state_root: &Path,
    containers: &Containers,
    options: &Options,
    image: &Config,
) -> Result<Found, RunError> {
    let of_image: Vec<String> = image.volumes().clone().unwrap_or_default();
    if options.mounts.is_empty() && options.volumes_from.is_empty() && of_image.is_empty() {
        return Ok(Found::default());
    }
    let volumes = Volumes::open(state_root)?;
    let held = volumes.hold()?;
    let mut finder = Finder {
        taken: options
            .tmpfs
            .iter()
            .map(|tmpfs| tmpfs.target.clone())
            .collect(),
        volumes: &volumes,
        events: containers.events(),
        held: &held,
        found: Found::default(),
    };
    let found = finder.all(state_root, containers, options, &of_image);
    let mut result = finder.found;
    result.held = Some((volumes, held));
    match found {
        Ok(()) => Ok(result),
        Err(error) => {
            result.discard();
            Err(error)
        }
    }
}

struct Finder<'a> {
    /// Where something is mounted already.
    taken: BTreeSet<String>,
    volumes: &'a Volumes,
    events: &'a Events,
    held: &'a Held,
    found: Found,
}

impl Finder<'_> {
    fn all(
        &mut self,
        state_root: &Path,
        containers: &Containers,
        options: &Options,
        of_image: &[String],
    ) -> Result<(), RunError> {
        for request in &options.mounts {
            if !self.taken.insert(request.target.clone()) {
                return Err(RunError::DuplicateMount(request.target.clone()));
            }
        }
        for request in &options.mounts {
            let source = self.source(request, state_root, options.dangerous_mounts)?;
            self.add(source, &request.target, request.read_only)?;
        }
        for from in &options.volumes_from {
            self.of_container(containers, from)?;
        }
        for path in of_image {
            let target = mount::target(path)?;
            if self.taken.insert(target.clone()) {
                let source = self.volume(None, true, &BTreeMap::new())?;
                self.add(source, &target, false)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, source: MountSource, target: &str, read_only: bool) -> Result<(), RunError> {
        if self.found.mounts.len() == MAX_MOUNTS {
            return Err(RunError::TooManyMounts(MAX_MOUNTS));
        }
        self.found.mounts.push(MountPoint {
            source,
            target: target.to_owned(),
            read_only,
        });
        Ok(())
    }

    fn source(
        &mut self,
        request: &MountRequest,
        state_root: &Path,
        dangerous: bool,
    ) -> Result<MountSource, RunError> {
        match &request.source {
            RequestedSource::Volume { name, copy, labels } => {
                self.volume(name.as_deref(), *copy, labels)
            }
            RequestedSource::Bind { path, create } => {
                match mount::check_source(path, state_root, dangerous) {
                    Err(mount::SourceError::Missing(_)) if *create => {
                        let unusable = |source| mount::SourceError::Unusable {
                            path: path.clone(),
                            source,
                        };
                        fs::create_dir_all(path).map_err(unusable)?;
                    }
                    checked => drop(checked?),
                }
                Ok(MountSource::Bind(path.clone()))
            }
        }
    }

    fn volume(
        &mut self,
        name: Option<&str>,
        copy: bool,
        labels: &BTreeMap<String, String>,
    ) -> Result<MountSource, RunError> {
        let is_new = name.is_none_or(|name| self.volumes.get(name).is_err());
        let volume = self.volumes.create(self.held, name, labels)?;
        if is_new {
            record(self.events, &volume.name, "create");
        }
        if name.is_none() {
            self.found.made.push(volume.name.clone());
        }
        Ok(MountSource::Volume {
            anonymous: name.is_none(),
            name: volume.name,
            copy,
        })
    }

    /// What another container has, but for places that are taken.
    fn of_container(
        &mut self,
        containers: &Containers,
        from: &VolumesFrom,
    ) -> Result<(), RunError> {
        let other = containers.record(&containers.find(&from.container)?)?.spec;
        for mount in other.mounts {
            if self.taken.insert(mount.target.clone()) {
                let read_only = mount.read_only || from.read_only;
                self.add(mount.source, &mount.target, read_only)?;
            }
        }
        Ok(())
    }
}

/// What a machine that is about to start shares.
#[derive(Debug, Default)]
pub struct Shared {
    /// What the sandbox serves.
    pub shares: Vec<Share>,
    /// What the guest mounts, tmpfs included, in order.
    pub mounts: Vec<Mount>,
    /// Volumes that the guest fills first.
    pub filling: Vec<Filling>,
}

/// Opens the mounts of a container; waits while somebody else fills a volume of its.
///
/// # Errors
///
/// Where one is not there any more, or not to be mounted.
pub fn share(state_root: &Path, spec: &Spec) -> Result<Shared, RunError> {
    let mut shared = Shared {
        mounts: spec.setup.mounts.clone(),
        ..Shared::default()
    };
    if spec.mounts.is_empty() {
        return Ok(shared);
    }
    let volumes = Volumes::open(state_root)?;
    let mut fillable = BTreeMap::new();
    for (number, point) in spec.mounts.iter().enumerate() {
        let source = match &point.source {
            MountSource::Bind(path) => {
                mount::check_source(path, state_root, spec.dangerous_mounts)?
            }
            MountSource::Volume { name, copy, .. } => {
                volumes.get(name)?;
                if *copy && !point.read_only {
                    fillable.entry(name.as_str()).or_insert(number);
                }
                volumes.data(name)
            }
        };
        shared.shares.push(Share {
            source,
            read_only: point.read_only,
        });
    }
    // By name, so that two containers that have the same two do not wait for each other.
    let mut filled = BTreeSet::new();
    for (name, number) in fillable {
        if let Some(filling) = volumes.fill(name)? {
            shared.filling.push(filling);
            filled.insert(number);
        }
    }
    shared
        .mounts
        .extend(spec.mounts.iter().enumerate().map(|(number, point)| {
            Mount {
                fs_type: SHARE_TYPE.into(),
                source: number.to_string(),
                target: point.target.clone(),
                options: point
                    .read_only
                    .then(|| "ro".to_owned())
                    .into_iter()
                    .collect(),
                fill: filled.contains(&number),
            }
        }));
    // What lies in another comes after it.
    shared.mounts.sort_by_key(|mount| {
        mount
            .target
            .split('/')
            .filter(|name| !name.is_empty())
            .count()
    });
    Ok(shared)
}

/// Which containers have each volume.
///
/// # Errors
///
/// Where they cannot be listed.
pub fn users(containers: &Containers) -> Result<BTreeMap<String, Vec<Id>>, StateError> {
    let mut users: BTreeMap<String, Vec<Id>> = BTreeMap::new();
    for spec in containers.specs()? {
        let names: BTreeSet<&str> = spec.mounts.iter().filter_map(MountPoint::volume).collect();
        for name in names {
            users
                .entry(name.to_owned())
                .or_default()
                .push(spec.id.clone());
        }
    }
    Ok(users)
}

/// Removes a volume that no container has.
///
/// # Errors
///
/// [`RunError::VolumeInUse`], or where there is none.
pub fn remove(containers: &Containers, volumes: &Volumes, name: &str) -> Result<(), RunError> {
    let held = volumes.hold()?;
    volumes.get(name)?;
    match users(containers)?.remove(name) {
        Some(ids) => Err(RunError::VolumeInUse {
            name: name.to_owned(),
            containers: ids.iter().map(Id::as_str).collect::<Vec<_>>().join(", "),
        }),
        None => {
            volumes.remove(&held, name)?;
            record(containers.events(), name, "destroy");
            Ok(())
        }
    }
}

/// Writes down what happened to a volume.
pub fn record(events: &Events, name: &str, action: &str) {
    let attributes = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
    events.record(Kind::Volume, action, name, attributes);
}

/// Writes down that a container's volumes are mounted (`mount`), or no longer (`unmount`).
pub fn record_mounts(events: &Events, spec: &Spec, action: &str) {
    for mount in &spec.mounts {
        let Some(name) = mount.volume() else { continue };
        let attributes = [
            ("driver", "local".to_owned()),
            ("container", spec.id.as_str().to_owned()),
            ("destination", mount.target.clone()),
            ("read/write", (!mount.read_only).to_string()),
        ];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value));
        events.record(Kind::Volume, action, name, attributes.into());
    }
}

/// Removes the anonymous volumes of a container that is gone, unless another has them too.
///
/// # Errors
///
/// Where one cannot be removed.
pub fn remove_anonymous(containers: &Containers, mounts: &[MountPoint]) -> Result<(), RunError> {
    for mount in mounts {
        let MountSource::Volume {
            name,
            anonymous: true,
            ..
        } = &mount.source
        else {
            continue;
        };
        match remove(containers, &Volumes::open(containers.state_root())?, name) {
            Err(RunError::VolumeInUse { .. } | RunError::Volume(VolumeError::NotFound(_))) => {}
            removed => removed?,
        }
    }
    Ok(())
}
