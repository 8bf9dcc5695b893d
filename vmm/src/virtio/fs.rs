//! The file system device (virtio 1.2, 5.11): carries FUSE requests to a server behind a socket, and its
//! answers back.
//!
//! It knows no files, and gives its server no guest memory: a request is one datagram, an answer another.
//! The server may be slow, lie or die. It answers only what it was asked, each request once, and never
//! writes where the guest did not say.

mod carrier;
mod request;

use std::io;
use std::os::fd::OwnedFd;

use carrier::{Carrier, Link};

use super::device::copy_config;
use super::{ActivateContext, ActivateError, VirtioDevice, Worker};

/// Device ID (5.11.1).
const DEVICE_TYPE: u32 = 26;
const NAME: &str = "fs";
/// The queue for requests without answers, and the one for all others. Linux keeps a request's pages in an
/// indirect table, so that a place is a request.
const QUEUE_SIZES: [u16; 2] = [64, 128];
/// Bytes of a tag (5.11.4).
const TAG: usize = 36;

/// Why a file system device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// Longer than there is room for, or nothing.
    #[error("{0:?} is no tag: it has 1 to {TAG} bytes")]
    Tag(String),
    /// The descriptor.
    #[error("cannot use the server's socket without waiting")]
    Nonblocking(#[source] io::Error),
}

/// The device.
pub struct Fs {
    /// `struct virtio_fs_config` (5.11.4): tag and number of request queues.
    config: [u8; TAG + 4],
    /// `None` while a worker has it, and for good where a worker could not be started.
    link: Option<Link>,
    worker: Option<Worker<Link>>,
}

impl Fs {
    /// An idle device that is mounted by `tag`, and served by who is at the other end of `server`.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub fn new(tag: &str, server: OwnedFd) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG {
            return Err(FsError::Tag(tag.to_owned()));
        }
        crate::output::set_nonblocking(&server).map_err(FsError::Nonblocking)?;
        let mut config = [0; TAG + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG..].copy_from_slice(&1u32.to_le_bytes());
        Ok(Self {
            config,
            link: Some(Link::new(server)),
            worker: None,
        })
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, context: ActivateContext) -> Result<(), ActivateError> {
        let events = ActivateError::events(NAME);
        let link = self
            .link
            .take()
            .ok_or_else(|| events(io::ErrorKind::NotConnected.into()))?;
        let carrier = Carrier::new(link, context).map_err(events)?;
        self.worker = Some(Worker::spawn(NAME, move |stop| carrier.run(&stop))?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.link = Some(worker.stop());
        }
    }
}

#[cfg(test)]
mod tests;
