//! A split virtqueue (virtio 1.2, 2.7) with all its ring etiquette; the device is a closure over
//! one [`Chain`] at a time.
//!
//! It holds no requests: a chain is answered when its closure returns, in order; a device that answers
//! in another order keeps what it was given instead ([`Deferred`]).

use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryMmap, Permissions};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;

use super::{Buffers, Chain, Interrupt};

mod deferred;
mod merged;

pub use deferred::{Deferred, Taken};
pub use merged::Filled;

/// Most buffers in one chain: what one `preadv(2)` takes, and four times what Linux drivers use.
const MAX_DESCRIPTORS: usize = 1024;

/// Most bytes that the buffers of one chain may add up to, however they overlap, where a device does not say
/// otherwise.
const MAX_BYTES: usize = 64 << 20;

/// A queue in the hands of its device's worker.
#[derive(Debug)]
pub struct DeviceQueue {
    queue: Queue,
    memory: GuestMemory,
    kick: EventFd,
    interrupt: Interrupt,
    max_bytes: usize,
    /// Index of the used ring up to which the driver was told, or did not wait to be.
    announced: u16,
}

/// What a driver did wrong with a queue. The device has to stop serving it.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings are not where they should be, or their indexes make no sense.
    #[error("virtqueue rings are broken")]
    Ring(#[source] virtio_queue::Error),
    /// A buffer is not in guest memory.
    #[error("a descriptor names {length} bytes at {address:#x}, which is not guest memory")]
    Address {
        /// Guest address.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// A buffer to read follows one to write (virtio 1.2, 2.7.4.2).
    #[error("a descriptor chain has a readable buffer after a writable one")]
    Order,
    /// More buffers or bytes than any driver has a reason for.
    #[error("a descriptor chain has too many buffers or bytes")]
    TooLong,
}

impl DeviceQueue {
    /// Wraps a configured queue. `kick` is nonblocking and signalled when the driver notifies.
    #[must_use]
    pub fn new(queue: Queue, memory: GuestMemory, kick: EventFd, interrupt: Interrupt) -> Self {
        Self {
            announced: queue.next_used(),
            queue,
            memory,
            kick,
            interrupt,
            max_bytes: MAX_BYTES,
        }
    }

    /// Takes chains of any size: for a device that does nothing to their bytes.
    pub fn take_any_size(&mut self) {
        self.max_bytes = usize::MAX;
    }

    /// Whether the driver set the queue up, and has not broken it since.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Hands the available chains to `handle` one by one.
    ///
    /// `handle` returns how many bytes it wrote, and the chain goes back to the driver; or `None`
    /// when it cannot answer now: the chain stays available and `serve` returns. The driver is
    /// interrupted once at the end where it wants to be.
    ///
    /// A driver that adds chains as fast as they are handled does not keep `serve` from
    /// returning: after twice the queue's size it kicks its own queue and returns.
    ///
    /// # Errors
    ///
    /// When the driver broke the queue. The driver has been told that the device needs a reset,
    /// and the queue yields nothing from then on.
    pub fn serve(
        &mut self,
        handle: impl FnMut(&mut Chain<'_>) -> Option<u32>,
    ) -> Result<(), QueueError> {
        if self.serve_quietly(handle)? {
            self.interrupt.used_buffer();
        }
        Ok(())
    }

    /// As [`serve`](Self::serve), but leaves it to the caller to raise the interrupt: returns whether
    /// the driver waits for one.
    ///
    /// # Errors
    ///
    /// As [`serve`](Self::serve).
    pub fn serve_quietly(
        &mut self,
        handle: impl FnMut(&mut Chain<'_>) -> Option<u32>,
    ) -> Result<bool, QueueError> {
        if !self.queue.ready() {
            return Ok(false);
        }
        let result = self.serve_ready(handle);
        self.stop_unless(result)
    }

    /// Stops the queue for good where its driver broke it.
    fn stop_unless<T>(&mut self, result: Result<T, QueueError>) -> Result<T, QueueError> {
        if result.is_err() {
            self.queue.set_ready(false);
            self.interrupt.needs_reset();
        }
        result
    }

    /// Wakes the worker as the driver would: what it could not finish it goes on with, after others
    /// had their turn.
    pub fn kick(&self) {
        // A full counter is as good.
        let _ = self.kick.write(1);
    }

    fn serve_ready(
        &mut self,
        mut handle: impl FnMut(&mut Chain<'_>) -> Option<u32>,
    ) -> Result<bool, QueueError> {
        let memory = &*self.memory;
        let mut budget = 2 * usize::from(self.queue.size());
        let mut used = false;
        'rounds: loop {
            self.queue
                .disable_notification(memory)
                .map_err(QueueError::Ring)?;
            while let Some(descriptors) = next_chain(&mut self.queue, memory)? {
                let head = descriptors.head_index();
                let mut chain = collect(memory, descriptors, self.max_bytes)?;
                let Some(written) = handle(&mut chain) else {
                    self.queue.go_to_previous_position();
                    self.queue
                        .enable_notification(memory)
                        .map_err(QueueError::Ring)?;
                    break 'rounds;
                };
                self.queue
                    .add_used(memory, head, written)
                    .map_err(QueueError::Ring)?;
                used = true;
                budget -= 1;
                if budget == 0 {
                    self.kick();
                    break 'rounds;
                }
            }
            if !self
                .queue
                .enable_notification(memory)
                .map_err(QueueError::Ring)?
            {
                break;
            }
        }
        Ok(used && self.is_interrupt_wanted()?)
    }
}

impl AsRawFd for DeviceQueue {
    /// The eventfd that the driver kicks, for [`Poller::add_queue`](super::Poller::add_queue).
    fn as_raw_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }
}

fn next_chain<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, QueueError> {
    Ok(queue.iter(memory).map_err(QueueError::Ring)?.next())
}

fn collect<'m>(
    memory: &'m GuestMemoryMmap,
    descriptors: DescriptorChain<&'m GuestMemoryMmap>,
    max_bytes: usize,
) -> Result<Chain<'m>, QueueError> {
    let mut chain = Chain {
        readable: Buffers::default(),
        writable: Buffers::default(),
    };
    for descriptor in descriptors {
        let side = match descriptor.is_write_only() {
            true => &mut chain.writable,
            false if chain.writable.is_empty() => &mut chain.readable,
            false => return Err(QueueError::Order),
        };
        add(memory, side, descriptor.addr(), descriptor.len())?;
        if chain.descriptors() > MAX_DESCRIPTORS
            || chain.readable.len() + chain.writable.len() > max_bytes
        {
            return Err(QueueError::TooLong);
        }
    }
    Ok(chain)
}

fn add<'m>(
    memory: &'m GuestMemoryMmap,
    side: &mut Buffers<'m>,
    address: GuestAddress,
    length: u32,
) -> Result<(), QueueError> {
    let invalid = || QueueError::Address {
        address: address.0,
        length,
    };
    let slices = memory
        .get_slices(address, length as usize, Permissions::ReadWrite)
        .map_err(|_| invalid())?;
    for slice in slices {
        side.push(slice.map_err(|_| invalid())?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;
    use crate::virtio::fake::{FakeDriver, INDIRECT, MEMORY, NEXT, WRITE, write_descriptor};

    fn echo(chain: &mut Chain<'_>) -> Option<u32> {
        let mut data = vec![0; chain.readable.len()];
        chain.readable.read(&mut data).unwrap();
        chain.writable.write(&data).unwrap();
        Some(u32::try_from(data.len()).unwrap())
    }

    #[test]
    fn a_chain_is_read_written_and_answered_with_one_interrupt() {
        let mut driver = FakeDriver::new(&[16]);
        let mut queue = driver.queue(0);
        let first = driver.add(0, &[b"pill", b"bug"], &[5, 5]);
        driver.add(0, &[b"x"], &[1]);

        queue.serve(echo).unwrap();

        let answer = driver.wait_used(0);
        assert_eq!((answer.head, answer.written), (first, 7));
        assert_eq!(answer.data, b"pillbug\0\0\0");
        assert_eq!(driver.wait_used(0).data, b"x");
        assert_eq!(driver.wait_interrupt(), 1);
    }

    #[test]
    fn a_chain_that_cannot_be_answered_stays() {
        let mut driver = FakeDriver::new(&[16]);
        let mut queue = driver.queue(0);
        driver.add(0, &[b"later"], &[5]);

        queue.serve(|_| None).unwrap();
        assert_eq!(driver.used(0), None);
        queue.serve(echo).unwrap();

        assert_eq!(driver.wait_used(0).data, b"later");
    }

    #[test]
    fn an_indirect_chain_is_followed_and_a_nested_one_cut() {
        let mut driver = FakeDriver::new(&[16]);
        let mut queue = driver.queue(0);
        let table = driver.allocate(64);
        let data = driver.allocate(16);
        driver
            .memory
            .write_slice(b"deep", GuestAddress(data))
            .unwrap();
        write_descriptor(&driver.memory, table, (data, 4, NEXT, 1));
        write_descriptor(&driver.memory, table + 16, (table, 32, INDIRECT, 0));
        driver.add_buffers(0, &[(table, 32, INDIRECT)]);

        let mut seen = Vec::new();
        queue
            .serve(|chain| {
                seen.resize(chain.readable.len(), 0);
                chain.readable.read(&mut seen).unwrap();
                Some(0)
            })
            .unwrap();

        assert_eq!(seen, b"deep");
    }

    #[test]
    fn a02_avail_index_beyond_the_size_stops_the_queue() {
        let mut driver = FakeDriver::new(&[16]);
        let mut queue = driver.queue(0);
        driver.set_avail_index(0, 17);

        assert!(matches!(queue.serve(echo), Err(QueueError::Ring(_))));

        assert!(driver.interrupt.is_reset_needed());
        assert_eq!(driver.wait_interrupt(), 2);
        driver.add(0, &[b"x"], &[1]);
        queue
            .serve(|_| panic!("a stopped queue was served"))
            .unwrap();
    }

    #[test]
    fn a04_buffers_outside_of_memory_are_refused() {
        for (address, length) in [
            (u64::MAX, 1),
            (u64::MAX - 4095, 4096),
            (MEMORY - 1, 2),
            (MEMORY, 1),
            (0xd000_0000, 4096),
            (0, u32::MAX),
        ] {
            let mut driver = FakeDriver::new(&[16]);
            let mut queue = driver.queue(0);
            driver.add_buffers(0, &[(address, length, WRITE)]);
            let error = queue.serve(|_| panic!("served")).unwrap_err();
            assert!(matches!(error, QueueError::Address { .. }), "{address:#x}");
        }
    }

    #[test]
    fn a05_overlapping_buffers_are_capped() {
        let mut driver = FakeDriver::new(&[256]);
        let mut queue = driver.queue(0);
        driver.add_buffers(0, &[(0, 8 << 20, WRITE); 200]);
        let error = queue.serve(|_| panic!("served")).unwrap_err();
        assert!(matches!(error, QueueError::TooLong));

        let table = driver.allocate(16 * 2048);
        for index in 0..2048u16 {
            let at = table + 16 * u64::from(index);
            write_descriptor(&driver.memory, at, (0, 1, NEXT | WRITE, index + 1));
        }
        let mut queue = driver.queue(0);
        driver.set_avail_index(0, 0);
        driver.add_buffers(0, &[(table, 16 * 2048, INDIRECT)]);
        let error = queue.serve(|_| panic!("served")).unwrap_err();
        assert!(matches!(error, QueueError::TooLong));
    }

    #[test]
    fn a_driver_that_never_stops_does_not_keep_the_worker() {
        let mut driver = FakeDriver::new(&[4]);
        let mut queue = driver.queue(0);
        driver.add(0, &[b"x"], &[1]);
        let mut served = 0;

        queue
            .serve(|_| {
                served += 1;
                let head = driver.add(0, &[], &[1]);
                assert!(head < 4);
                Some(0)
            })
            .unwrap();

        assert_eq!(served, 8);
        assert_eq!(queue.kick.read().unwrap(), 1);
    }

    proptest! {
        #[test]
        fn any_ring_contents_are_served_or_refused(
            descriptors in proptest::collection::vec(
                (prop_oneof![0..MEMORY + 4096, any::<u64>()],
                 prop_oneof![0..65536u32, any::<u32>()],
                 0..8u16, 0..10u16),
                8,
            ),
            heads in proptest::collection::vec(0..10u16, 8),
            index in 0..10u16,
        ) {
            let mut driver = FakeDriver::new(&[8]);
            let mut queue = driver.queue(0);
            for head in heads {
                driver.offer(0, head);
            }
            driver.set_avail_index(0, index);
            for (position, fields) in descriptors.into_iter().enumerate() {
                let at = 0x10_000 + 16 * position as u64;
                write_descriptor(&driver.memory, at, fields);
            }
            let mut chains = 0;
            let _ = queue.serve(|chain| {
                chains += 1;
                let mut data = vec![0; chain.readable.len()];
                chain.readable.read(&mut data).unwrap();
                chain.writable.write(&vec![0xa5; chain.writable.len().min(4096)]).unwrap();
                Some(0)
            });
            prop_assert!(chains <= 16);
        }
    }
}
