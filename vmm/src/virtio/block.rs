//! The block device (virtio 1.2, 5.2): one queue, requests answered in order by its worker.
//!
//! It caches nothing. A driver that needs its writes to last sends a flush, and the host's page
//! cache does the rest.

mod disk;
mod limit;
mod request;
mod vectored;

use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use vmm_sys_util::epoll::EventSet;

pub use disk::{Disk, DiskError, Part};

use super::device::copy_config;
use crate::config::BlockLimits;

use limit::Limiter;
use request::Work;

use super::{ActivateContext, ActivateError, DeviceQueue, Meter, Poller, VirtioDevice, Worker};

/// Virtio device ID (5.2.1).
const DEVICE_TYPE: u32 = 2;
const NAME: &str = "block";
/// Requests at once; each costs the guest memory, so no more than keep a disk busy.
const QUEUE_SIZE: u16 = 128;
/// Data buffers in one request: what a chain holds besides header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;

/// A virtio block device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    limits: BlockLimits,
    meter: Meter,
    config: [u8; 60],
    worker: Option<Worker<()>>,
}

#[derive(Debug, Clone, Copy)]
enum Token {
    Stop,
    Kick,
    /// What had to wait may pass.
    Limit,
}

impl Block {
    /// A device that shows `disk`, within `limits`.
    #[must_use]
    pub fn new(disk: Disk, limits: BlockLimits) -> Self {
        Self {
            limits,
            meter: Meter::default(),
            config: config(&disk),
            disk: Arc::new(disk),
            worker: None,
        }
    }

    /// What passes it.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_SEG_MAX;
        match self.disk.is_read_only() {
            true => common | 1 << VIRTIO_BLK_F_RO,
            false => {
                common
                    | 1 << VIRTIO_BLK_F_FLUSH
                    | 1 << VIRTIO_BLK_F_DISCARD
                    | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
        }
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, context: ActivateContext) -> Result<(), ActivateError> {
        let events = ActivateError::events(NAME);
        let mut poller = Poller::new().map_err(events)?;
        for queue in &context.queues {
            poller.add_queue(queue, Token::Kick).map_err(events)?;
        }
        let limiter = Limiter::new(self.limits, Instant::now()).map_err(events)?;
        if let Some(timer) = limiter.timer() {
            poller
                .add(timer, EventSet::IN, Token::Limit)
                .map_err(events)?;
        }
        let (disk, meter) = (self.disk.clone(), self.meter.clone());
        self.worker = Some(Worker::spawn("block", move |stop| {
            // A worker that cannot see its end is one that must not start.
            if poller.add(&stop, EventSet::IN, Token::Stop).is_ok() {
                serve(&disk, &poller, context.queues, limiter, &meter);
            }
        })?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }
}

fn serve(
    disk: &Disk,
    poller: &Poller<Token>,
    mut queues: Vec<DeviceQueue>,
    mut limiter: Limiter,
    meter: &Meter,
) {
    loop {
        let Ok(events) = poller.wait() else {
            return;
        };
        for (token, _) in events {
            match token {
                Token::Stop => return,
                Token::Limit => limiter.acknowledge(),
                Token::Kick => {}
            }
        }
        for queue in &mut queues {
            // An error stopped the queue for good and the driver was told: what is left is to wait for
            // the reset.
            let _ = queue.serve(|chain| {
                let work = request::work(chain);
                if !limiter.allows(work, Instant::now()) {
                    return None;
                }
                match work {
                    Work::In(bytes) => meter.count_in(bytes),
                    Work::Out(bytes) => meter.count_out(bytes),
                    Work::Other => {}
                }
                Some(request::answer(disk, chain))
            });
        }
    }
}

/// `struct virtio_blk_config` (5.2.4) as far as the features on offer reach.
fn config(disk: &Disk) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |offset: usize, value: &[u8]| {
        config[offset..offset + value.len()].copy_from_slice(value);
    };
    put(0, &(disk.bytes() / request::SECTOR).to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    // Discards: sectors and ranges in one request, and the alignment that frees space.
    put(36, &request::MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &request::MAX_RANGES.to_le_bytes());
    put(44, &8u32.to_le_bytes());
    // Write-zeroes: sectors and ranges, and that it may free space.
    put(48, &request::MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &request::MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    config
}

#[cfg(test)]
mod tests;
