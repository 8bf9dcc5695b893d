//! What passed a device: counted by its worker, read by whoever keeps the machine's books.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::control::Traffic;

/// The counters of one device; clones count into the same ones.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    in_bytes: AtomicU64,
    ins: AtomicU64,
    out_bytes: AtomicU64,
    outs: AtomicU64,
}

impl Meter {
    /// The guest got this many bytes: a read of a disk, a frame from outside.
    pub fn count_in(&self, bytes: u64) {
        self.0.ins.fetch_add(1, Ordering::Relaxed);
        self.0.in_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The guest gave this many bytes: a write to a disk, a frame of its own.
    pub fn count_out(&self, bytes: u64) {
        self.0.outs.fetch_add(1, Ordering::Relaxed);
        self.0.out_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All of it so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic {
            in_bytes: self.0.in_bytes.load(Ordering::Relaxed),
            ins: self.0.ins.load(Ordering::Relaxed),
            out_bytes: self.0.out_bytes.load(Ordering::Relaxed),
            outs: self.0.outs.load(Ordering::Relaxed),
        }
    }
}
