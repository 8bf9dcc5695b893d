//! Several chains filled as one, and shown to the driver at the same moment: what a device needs
//! whose packets are larger than the driver's buffers (virtio 1.2, 5.1.6.4).

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Buffers, DeviceQueue, MAX_DESCRIPTORS, QueueError, collect, next_chain};

/// Offset of the elements in the used ring, and bytes of one (virtio 1.2, 2.7.8).
const USED_ELEMENTS: u64 = 4;
const USED_ELEMENT_SIZE: u64 = 8;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// The driver has it.
    Whole,
    /// There is no room for it yet; the driver kicks the queue when it adds some.
    NoRoom,
    /// As many chains as one packet may take do not hold it.
    TooLong,
}

impl DeviceQueue {
    /// Takes as many chains, `most` at most, as hold `length` bytes together, lets `fill` write to
    /// them, and gives all of them back at once, each with the length that was written to it.
    /// Where they do not suffice they stay available.
    ///
    /// The driver is not interrupted; [`interrupt`](Self::interrupt) does that for many packets.
    ///
    /// # Errors
    ///
    /// As [`serve`](Self::serve).
    pub fn fill(
        &mut self,
        length: usize,
        most: usize,
        fill: impl FnOnce(&mut [Buffers<'_>]),
    ) -> Result<Filled, QueueError> {
        if !self.queue.ready() {
            return Ok(Filled::NoRoom);
        }
        let result = self.fill_ready(length, most, fill);
        self.stop_unless(result)
    }

    /// Interrupts the driver where it waits for what [`fill`](Self::fill) gave it.
    ///
    /// # Errors
    ///
    /// As [`serve`](Self::serve).
    pub fn interrupt(&mut self) -> Result<(), QueueError> {
        if !self.queue.ready() {
            return Ok(());
        }
        let result = self.is_interrupt_wanted();
        if self.stop_unless(result)? {
            self.interrupt.used_buffer();
        }
        Ok(())
    }

    fn fill_ready(
        &mut self,
        length: usize,
        most: usize,
        fill: impl FnOnce(&mut [Buffers<'_>]),
    ) -> Result<Filled, QueueError> {
        let memory = &*self.memory;
        let first = self.queue.next_avail();
        let mut used = Vec::new();
        let mut chains: Vec<Buffers<'_>> = Vec::new();
        let (mut room, mut descriptors) = (0, 0);
        self.queue
            .disable_notification(memory)
            .map_err(QueueError::Ring)?;
        while room < length {
            if chains.len() >= most.min(self.queue.size().into()) {
                self.queue.set_next_avail(first);
                return Ok(Filled::TooLong);
            }
            let Some(next) = next_chain(&mut self.queue, memory)? else {
                // Asks for a kick, and whether one came too late to be a kick.
                let more = self.queue.enable_notification(memory);
                if more.map_err(QueueError::Ring)? {
                    continue;
                }
                self.queue.set_next_avail(first);
                return Ok(Filled::NoRoom);
            };
            used.push((next.head_index(), 0));
            let chain = collect(memory, next, self.max_bytes)?;
            descriptors += chain.descriptors();
            if descriptors > MAX_DESCRIPTORS {
                return Err(QueueError::TooLong);
            }
            room += chain.writable.len();
            chains.push(chain.writable);
        }
        for ((_, written), chain) in used.iter_mut().zip(&chains) {
            *written = chain.len();
        }
        fill(&mut chains);
        for ((_, written), chain) in used.iter_mut().zip(&chains) {
            *written -= chain.len();
        }
        self.publish(&used)?;
        Ok(Filled::Whole)
    }

    /// Gives chains back, with the length written to each, by one change of the ring's index.
    fn publish(&mut self, used: &[(u16, usize)]) -> Result<(), QueueError> {
        let memory = &*self.memory;
        let queue = &mut self.queue;
        let Some((&last, others)) = used.split_last() else {
            return Ok(());
        };
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        for &(head, bytes) in others {
            let slot = u64::from(queue.next_used() % queue.size());
            let address = queue.used_ring() + USED_ELEMENTS + slot * USED_ELEMENT_SIZE;
            let element = u64::from(head) | u64::from(length(bytes)) << 32;
            memory
                .write_obj(element.to_le(), GuestAddress(address))
                .map_err(|error| QueueError::Ring(Error::GuestMemory(error)))?;
            queue.set_next_used(queue.next_used().wrapping_add(1));
        }
        // Writes the last element, then the index.
        queue
            .add_used(memory, last.0, length(last.1))
            .map_err(QueueError::Ring)
    }

    /// Whether the driver waits for one of the chains given back since the last call (virtio 1.2,
    /// 2.7.10). The queue's own count does not see those that [`publish`](Self::publish) gave back.
    pub(super) fn is_interrupt_wanted(&mut self) -> Result<bool, QueueError> {
        let queue = &self.queue;
        let used = queue.next_used();
        let before = std::mem::replace(&mut self.announced, used);
        if !queue.event_idx_enabled() {
            return Ok(used != before);
        }
        // The index must be there before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wish = queue.avail_ring() + 4 + 2 * u64::from(queue.size());
        let wish = load(&self.memory, wish)?;
        Ok(used.wrapping_sub(wish).wrapping_sub(1) < used.wrapping_sub(before))
    }
}

fn load(memory: &GuestMemoryMmap, address: u64) -> Result<u16, QueueError> {
    memory
        .load::<u16>(GuestAddress(address), Ordering::Relaxed)
        .map(u16::from_le)
        .map_err(|error| QueueError::Ring(Error::GuestMemory(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake::{FakeDriver, WRITE};

    fn fill(queue: &mut DeviceQueue, text: &[u8], most: usize) -> Result<Filled, QueueError> {
        queue.fill(text.len(), most, |chains| {
            let mut left = text;
            for chain in chains {
                let (now, later) = left.split_at(left.len().min(chain.len()));
                chain.write(now).unwrap();
                left = later;
            }
        })
    }

    #[test]
    fn chains_are_given_back_together_and_not_before_they_suffice() {
        let mut driver = FakeDriver::new(&[4]);
        let mut queue = driver.queue(0);
        for round in 0..5 {
            driver.add(0, &[], &[4]);
            driver.add(0, &[], &[4]);
            assert_eq!(fill(&mut queue, b"0123456789", 4).unwrap(), Filled::NoRoom);
            assert_eq!(driver.used(0), None);
            driver.add(0, &[], &[4]);

            assert_eq!(fill(&mut queue, b"0123456789", 4).unwrap(), Filled::Whole);

            let answers = [(); 3].map(|()| driver.used(0).unwrap());
            assert_eq!(answers.each_ref().map(|answer| answer.written), [4, 4, 2]);
            assert_eq!(answers[1].data, b"4567", "round {round}");
            queue.interrupt().unwrap();
            assert_eq!(driver.wait_interrupt(), 1);
        }
    }

    #[test]
    fn a_packet_that_no_ring_holds_is_told_apart() {
        let mut driver = FakeDriver::new(&[4]);
        let mut queue = driver.queue(0);
        for _ in 0..4 {
            driver.add(0, &[], &[4]);
        }
        assert_eq!(fill(&mut queue, &[0; 17], 100).unwrap(), Filled::TooLong);
        assert_eq!(fill(&mut queue, &[0; 5], 1).unwrap(), Filled::TooLong);
        assert_eq!(fill(&mut queue, &[0; 16], 4).unwrap(), Filled::Whole);
    }

    #[test]
    fn a05_one_packet_takes_no_more_buffers_than_one_chain_may() {
        let mut driver = FakeDriver::new(&[256]);
        let mut queue = driver.queue(0);
        let table = driver.allocate(16 * 1024);
        for index in 0..1024u16 {
            let at = table + 16 * u64::from(index);
            let flags = if index == 1023 { WRITE } else { WRITE | 1 };
            crate::virtio::fake::write_descriptor(&driver.memory, at, (0, 1, flags, index + 1));
        }
        for _ in 0..4 {
            driver.add_buffers(0, &[(table, 16 * 1024, crate::virtio::fake::INDIRECT)]);
        }
        let error = fill(&mut queue, &[0; 2000], 256).unwrap_err();
        assert!(matches!(error, QueueError::TooLong));
        assert!(driver.interrupt.is_reset_needed());
    }
}
