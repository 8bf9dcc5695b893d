//! What the images of the store take on this disk.

use std::collections::HashMap;

use super::{Kind, Listed, Store, StoreError};
use crate::{image::digest::Digest, state_root::disk_usage};

/// One image's part.
#[derive(Debug, Clone)]
pub struct ImageUsage {
    /// Which image.
    pub image: Listed,
    /// Bytes of everything it needs: what came, and what was made of it.
    pub bytes: u64,
    /// Bytes of these that other images need too.
    pub shared: u64,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Every image.
    pub images: Vec<ImageUsage>,
    /// Bytes of everything in the store, each thing once.
    pub bytes: u64,
    /// Bytes of these that no image needs which somebody uses.
    pub reclaimable: u64,
}

impl Store {
    /// Adds up what images take; `is_used` says which somebody uses.
    ///
    /// # Errors
    ///
    /// Where the store cannot be read.
    pub fn usage(&self, is_used: impl Fn(&Listed) -> bool) -> Result<Usage, StoreError> {
        let mut sizes: HashMap<(Kind, Digest), u64> = HashMap::new();
        for kind in Kind::SWEPT {
            for digest in self.digests(kind)? {
                sizes.insert((kind, digest), disk_usage(&self.path(kind, &digest)));
            }
        }
        let records = self.records()?;
        let mut users: HashMap<(Kind, Digest), usize> = HashMap::new();
        for (manifest, record) in &records {
            for object in distinct(record.objects(manifest)) {
                *users.entry(object).or_default() += 1;
            }
        }
        let partial = disk_usage(&self.root.join(super::partial::FOLDER));
        let mut usage = Usage {
            bytes: sizes.values().sum::<u64>() + partial,
            ..Usage::default()
        };
        let mut idle = sizes.clone();
        for image in self.list()? {
            let Some(record) = records.get(&image.digest) else {
                continue;
            };
            let is_used = is_used(&image);
            let mut part = ImageUsage {
                image,
                bytes: 0,
                shared: 0,
            };
            for object in distinct(record.objects(&part.image.digest)) {
                let bytes = sizes.get(&object).copied().unwrap_or(0);
                part.bytes += bytes;
                if users.get(&object).is_some_and(|users| *users > 1) {
                    part.shared += bytes;
                }
                if is_used {
                    idle.remove(&object);
                }
            }
            usage.images.push(part);
        }
        usage.reclaimable = idle.values().sum::<u64>() + partial;
        Ok(usage)
    }
}

/// An image may hold a layer twice.
fn distinct(mut objects: Vec<(Kind, Digest)>) -> Vec<(Kind, Digest)> {
    objects.sort_unstable();
    objects.dedup();
    objects
}
