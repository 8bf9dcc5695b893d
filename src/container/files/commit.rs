//! A container's changes as a new layer of an image.

use std::path::Path;

use oci_spec::image::Config;
use protocol::files::{Change as Difference, Entry, FilesOrder, Kind};

use super::{FileWorkError, Work, archive::ArchiveWriter, changes::is_mount_point};
use crate::{
    container::{name::Id, spec::Spec, state::Containers},
    image::{
        change::Change, commit::CommitRecipe, digest::Digest, reference::Reference, store::Store,
    },
};

/// What is asked of a commit.
#[derive(Debug, Default)]
pub struct Commit {
    /// The image's name.
    pub name: Option<Reference>,
    /// Who made it.
    pub author: Option<String>,
    /// What is new in it.
    pub message: String,
    /// Further changes of its configuration.
    pub changes: Vec<Change>,
    /// Whether the container stands still meanwhile.
    pub pause: bool,
}

/// Makes an image of what a container was made of and what it has changed; its ID.
///
/// # Errors
///
/// Where the container's guest cannot read its changes, and where the image cannot be made; there is none then.
pub fn commit(
    state_root: &Path,
    containers: &Containers,
    store: &Store,
    id: &Id,
    commit: Commit,
) -> Result<Digest, FileWorkError> {
    let spec = containers.record(id)?.spec;
    let image = store.image(&spec.image_digest, None)?;
    let mut config = config(&spec, image.config.config().clone().unwrap_or_default());
    for change in commit.changes {
        change.apply(&mut config);
    }
    let name = commit.name.as_ref().map(ToString::to_string);
    let comment = commit.message.clone();
    let recipe = CommitRecipe {
        name: commit.name,
        config,
        author: commit.author,
        message: commit.message,
        command: spec.command().join(" "),
    };
    let order = FilesOrder::Changes {
        contents: true,
        pause: commit.pause,
    };
    let work = Work::begin(state_root, containers, id, order)?;
    let mut receiver = work.receiver()?;
    let committed = store.commit(&spec.image_digest, recipe, |output| {
        let mut archive = ArchiveWriter::new(output);
        while let Ok(entry) = receiver.next_entry()? {
            if belongs(&entry) {
                archive.append(&entry, &mut receiver)?;
            }
        }
        archive.finish()
    });
    let image = work.finish(committed)?;
    let more = [
        ("comment", comment),
        ("imageID", image.to_string()),
        ("imageRef", name.unwrap_or_default()),
    ];
    containers.record_event(id, "commit", &more);
    Ok(image)
}

/// Whether an entry belongs into the layer: not what was made for mounts, and the root folder only where it is another.
fn belongs(entry: &Entry) -> bool {
    let is_root = entry.path.is_empty();
    let is_opaque = entry.kind == Kind::Folder { opaque: true };
    !is_mount_point(entry) && (!is_root || is_opaque || entry.change == Difference::Modified)
}

/// The image's configuration with what the container was given at its creation, as Docker keeps it.
fn config(spec: &Spec, mut config: Config) -> Config {
    let process = &spec.process;
    let entrypoint = config.entrypoint().clone().unwrap_or_default();
    match process.args.strip_prefix(entrypoint.as_slice()) {
        Some(command) => _ = config.set_cmd(Some(command.to_vec())),
        None => {
            config.set_entrypoint(None);
            config.set_cmd(Some(process.args.clone()));
        }
    }
    // Every container has its own of these.
    let hostname = format!("HOSTNAME={}", spec.setup.hostname);
    let own = [hostname.as_str(), "TERM=xterm"];
    let env = process
        .env
        .iter()
        .filter(|variable| !own.contains(&variable.as_str()));
    config.set_env(Some(env.cloned().collect()));
    config.set_user((!process.user.is_empty()).then(|| process.user.clone()));
    config.set_working_dir(Some(process.cwd.clone()));
    let labels = spec.labels.clone().into_iter().collect();
    config.set_labels(Some(labels));
    config
}
