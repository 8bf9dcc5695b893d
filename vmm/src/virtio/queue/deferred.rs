//! Chains that are answered later than they are taken, and in any order: what a device needs whose
//! requests are carried out by somebody else.

use virtio_queue::QueueOwnedT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::GuestAddress;

use super::{
    Buffers, Chain, DeviceQueue, MAX_BYTES, MAX_DESCRIPTORS, QueueError, QueueT, add, collect,
    next_chain,
};

/// A chain that its device owes an answer: where that goes, to be looked up again when it is there.
#[derive(Debug)]
pub struct Deferred {
    head: u16,
    writable: Vec<(GuestAddress, u32)>,
}

/// What a device did with a chain.
#[derive(Debug)]
pub enum Taken {
    /// Answered it, with so many bytes.
    Answered(u32),
    /// Passed it on: it is answered later.
    Later,
    /// Nothing: it stays where it is, and so do those behind it.
    Not,
}

impl DeviceQueue {
    /// Hands the available chains to `take` one by one, each with what is needed to answer it later, until
    /// one is not taken. As many are taken in one call as the queue has places; the rest wakes the
    /// worker again.
    ///
    /// The driver is not interrupted; [`interrupt`](Self::interrupt) does that.
    ///
    /// # Errors
    ///
    /// As [`serve`](Self::serve).
    pub fn take(
        &mut self,
        take: impl FnMut(&mut Chain<'_>, Deferred) -> Taken,
    ) -> Result<(), QueueError> {
        if !self.queue.ready() {
            return Ok(());
        }
        let result = self.take_ready(take);
        self.stop_unless(result)
    }

    /// Answers a chain: `answer` writes, and says how many bytes.
    ///
    /// # Errors
    ///
    /// As [`serve`](Self::serve).
    pub fn answer(
        &mut self,
        deferred: &Deferred,
        answer: impl FnOnce(&mut Buffers<'_>) -> u32,
    ) -> Result<(), QueueError> {
        if !self.queue.ready() {
            return Ok(());
        }
        let result = self.answer_ready(deferred, answer);
        self.stop_unless(result)
    }

    fn take_ready(
        &mut self,
        mut take: impl FnMut(&mut Chain<'_>, Deferred) -> Taken,
    ) -> Result<(), QueueError> {
        let memory = &*self.memory;
        let mut budget = self.queue.size();
        loop {
            self.queue
                .disable_notification(memory)
                .map_err(QueueError::Ring)?;
            while let Some(descriptors) = next_chain(&mut self.queue, memory)? {
                let deferred = Deferred {
                    head: descriptors.head_index(),
                    writable: descriptors
                        .clone()
                        .filter(Descriptor::is_write_only)
                        .take(MAX_DESCRIPTORS)
                        .map(|descriptor| (descriptor.addr(), descriptor.len()))
                        .collect(),
                };
                let head = deferred.head;
                let mut chain = collect(memory, descriptors, self.max_bytes)?;
                match take(&mut chain, deferred) {
                    Taken::Later => {}
                    Taken::Answered(written) => self
                        .queue
                        .add_used(memory, head, written)
                        .map_err(QueueError::Ring)?,
                    Taken::Not => {
                        self.queue.go_to_previous_position();
                        return Ok(());
                    }
                }
                budget -= 1;
                if budget == 0 {
                    self.kick();
                    return Ok(());
                }
            }
            let more = self.queue.enable_notification(memory);
            if !more.map_err(QueueError::Ring)? {
                return Ok(());
            }
        }
    }

    fn answer_ready(
        &mut self,
        deferred: &Deferred,
        answer: impl FnOnce(&mut Buffers<'_>) -> u32,
    ) -> Result<(), QueueError> {
        let memory = &*self.memory;
        let mut buffers = Buffers::default();
        for &(address, length) in &deferred.writable {
            add(memory, &mut buffers, address, length)?;
            if buffers.len() > MAX_BYTES {
                return Err(QueueError::TooLong);
            }
        }
        let written = answer(&mut buffers);
        self.queue
            .add_used(memory, deferred.head, written)
            .map_err(QueueError::Ring)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake::FakeDriver;

    #[test]
    fn chains_are_answered_in_any_order() {
        let mut driver = FakeDriver::new(&[8]);
        let mut queue = driver.queue(0);
        let mut owed = Vec::new();
        let heads = [
            driver.add(0, &[b"a"], &[1, 1]),
            driver.add(0, &[b"b"], &[2]),
        ];

        queue
            .take(|_, deferred| {
                owed.push(deferred);
                Taken::Later
            })
            .unwrap();
        assert_eq!(driver.used(0), None);

        for deferred in owed.iter().rev() {
            let write = |buffers: &mut Buffers<'_>| {
                buffers.write(b"ok").unwrap();
                2
            };
            queue.answer(deferred, write).unwrap();
        }
        queue.interrupt().unwrap();
        let answers = [driver.wait_used(0), driver.wait_used(0)];
        assert_eq!(
            answers.each_ref().map(|answer| answer.head),
            [heads[1], heads[0]]
        );
        assert_eq!(
            answers.each_ref().map(|answer| &answer.data[..]),
            [b"ok"; 2]
        );
        assert_eq!(driver.wait_interrupt(), 1);
    }

    #[test]
    fn a_chain_that_is_not_taken_comes_again() {
        let mut driver = FakeDriver::new(&[4]);
        let mut queue = driver.queue(0);
        driver.add(0, &[b"a"], &[1]);
        queue.take(|_, _| Taken::Not).unwrap();
        let mut seen = 0;
        queue
            .take(|chain, _| {
                seen += chain.readable.len();
                Taken::Answered(0)
            })
            .unwrap();
        assert_eq!((seen, driver.used(0).unwrap().written), (1, 0));
    }

    #[test]
    fn a04_where_an_answer_goes_is_checked_when_it_is_written() {
        let mut driver = FakeDriver::new(&[4]);
        let mut queue = driver.queue(0);
        let deferred = Deferred {
            head: driver.add(0, &[b"a"], &[1]),
            writable: vec![(GuestAddress(u64::MAX - 1), 4)],
        };
        let error = queue.answer(&deferred, |_| 0).unwrap_err();
        assert!(matches!(error, QueueError::Address { .. }));
        assert!(driver.interrupt.is_reset_needed());
    }
}
