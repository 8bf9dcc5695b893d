//! Guest memory: one memfd mapped shared, below and above the hole for devices.
//!
//! It deliberately hands out no reference into the guest's memory: vm-memory's volatile slices are
//! the only way to it, and what is read through them is copied once, then validated, then used.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

/// All of a guest's memory, shared by vCPUs and devices.
pub type GuestMemory = Arc<GuestMemoryMmap>;
