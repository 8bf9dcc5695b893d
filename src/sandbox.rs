//! What a container's virtual machine is made of.

pub mod initramfs;
