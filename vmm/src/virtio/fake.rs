//! A driver for tests of devices: rings and buffers in real guest memory, and a real interrupt.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ActivateContext, DeviceQueue, Interrupt};
use crate::memory::GuestMemory;

/// Descriptor flags (virtio 1.2, 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Size of the fake guest's memory, from address 0.
pub const MEMORY: u64 = 32 << 20;
const RINGS: u64 = 0x10_000;
const BUFFERS: u64 = 0x10_0000;
/// How long a test waits for a device before it fails, in milliseconds.
const PATIENCE: i32 = 10_000;

/// The guest side of one device.
pub struct FakeDriver {
    pub memory: GuestMemory,
    pub interrupt: Interrupt,
    rings: Vec<Ring>,
    line: EventFd,
    next_buffer: u64,
}

struct Ring {
    base: u64,
    size: u16,
    kick: EventFd,
    next_descriptor: u16,
    avail: u16,
    used: u16,
    /// The writable buffers of each chain by its head.
    pending: BTreeMap<u16, Vec<(u64, u32)>>,
}

/// An answered request.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Head of the chain.
    pub head: u16,
    /// How many bytes the device says it wrote.
    pub written: u32,
    /// The writable buffers, one after the other, in whole.
    pub data: Vec<u8>,
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap()
}

impl FakeDriver {
    pub fn new(queue_sizes: &[u16]) -> Self {
        let memory = crate::memory::tests::guest(MEMORY);
        let line = eventfd();
        let rings = queue_sizes.iter().enumerate().map(|(index, &size)| Ring {
            base: RINGS * (index as u64 + 1),
            size,
            kick: eventfd(),
            next_descriptor: 0,
            avail: 0,
            used: 0,
            pending: BTreeMap::new(),
        });
        Self {
            memory,
            interrupt: Interrupt::new(line.try_clone().unwrap()),
            rings: rings.collect(),
            line,
            next_buffer: BUFFERS,
        }
    }

    /// What a transport hands to `activate`, with all queues ready and no event index.
    pub fn context(&self, features: u64) -> ActivateContext {
        ActivateContext {
            memory: self.memory.clone(),
            queues: (0..self.rings.len()).map(|q| self.queue(q)).collect(),
            interrupt: self.interrupt.clone(),
            features,
        }
    }

    /// One queue as the device gets it.
    pub fn queue(&self, queue: usize) -> DeviceQueue {
        let ring = &self.rings[queue];
        let mut queue = Queue::new(ring.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(ring.base))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(ring.avail_ring()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(ring.used_ring()))
            .unwrap();
        queue.set_ready(true);
        let kick = ring.kick.try_clone().unwrap();
        DeviceQueue::new(queue, self.memory.clone(), kick, self.interrupt.clone())
    }

    /// Makes a request available, without a kick, and returns the head of its chain: one
    /// readable buffer for each of `readable`, then one writable of each length of `writable`.
    pub fn add(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let mut buffers = Vec::new();
        for data in readable {
            let address = self.allocate(data.len() as u64);
            self.memory
                .write_slice(data, GuestAddress(address))
                .unwrap();
            buffers.push((address, data.len() as u32, 0));
        }
        for &length in writable {
            buffers.push((self.allocate(length.into()), length, WRITE));
        }
        self.add_buffers(queue, &buffers)
    }

    /// Makes a chain of any `(address, length, flags)` available; `NEXT` is added where one
    /// follows.
    pub fn add_buffers(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) -> u16 {
        let ring = &mut self.rings[queue];
        let head = ring.next_descriptor;
        for (position, &(address, length, flags)) in buffers.iter().enumerate() {
            let last = position + 1 == buffers.len();
            let index = ring.next_descriptor;
            ring.next_descriptor = (index + 1) % ring.size;
            let flags = if last { flags } else { flags | NEXT };
            let next = ring.next_descriptor;
            write_descriptor(
                &self.memory,
                ring.base + 16 * u64::from(index),
                (address, length, flags, next),
            );
        }
        let writable = buffers.iter().filter(|b| b.2 & WRITE != 0);
        ring.pending
            .insert(head, writable.map(|b| (b.0, b.1)).collect());
        self.offer(queue, head);
        head
    }

    /// Puts `head` into the available ring as it is.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = ring.avail_ring() + 4 + 2 * u64::from(ring.avail % ring.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        let index = ring.avail.wrapping_add(1);
        self.set_avail_index(queue, index);
    }

    /// Sets the index of the available ring to anything.
    pub fn set_avail_index(&mut self, queue: usize, index: u16) {
        let ring = &mut self.rings[queue];
        ring.avail = index;
        self.memory
            .write_obj(index, GuestAddress(ring.avail_ring() + 2))
            .unwrap();
    }

    /// Notifies the device of a queue.
    pub fn kick(&self, queue: usize) {
        self.rings[queue].kick.write(1).unwrap();
    }

    /// The next answer on a queue, if there is one.
    pub fn used(&mut self, queue: usize) -> Option<Answer> {
        let ring = &mut self.rings[queue];
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(ring.used_ring() + 2))
            .unwrap();
        if index == ring.used {
            return None;
        }
        let slot = ring.used_ring() + 4 + 8 * u64::from(ring.used % ring.size);
        let (head, written): (u32, u32) = (
            self.memory.read_obj(GuestAddress(slot)).unwrap(),
            self.memory.read_obj(GuestAddress(slot + 4)).unwrap(),
        );
        ring.used = ring.used.wrapping_add(1);
        let head = u16::try_from(head).unwrap();
        let mut data = Vec::new();
        for (address, length) in ring.pending.remove(&head).unwrap() {
            let start = data.len();
            data.resize(start + length as usize, 0);
            self.memory
                .read_slice(&mut data[start..], GuestAddress(address))
                .unwrap();
        }
        Some(Answer {
            head,
            written,
            data,
        })
    }

    /// Sleeps until the next answer on a queue.
    ///
    /// Panics when the device gives none.
    pub fn wait_used(&mut self, queue: usize) -> Answer {
        loop {
            if let Some(answer) = self.used(queue) {
                return answer;
            }
            self.wait_interrupt();
        }
    }

    /// Sleeps until the device interrupts, and returns the interrupt status, acknowledged.
    ///
    /// Panics when it does not.
    pub fn wait_interrupt(&self) -> u32 {
        let epoll = Epoll::new().unwrap();
        let interest = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, self.line.as_raw_fd(), interest)
            .unwrap();
        let ready = epoll.wait(PATIENCE, &mut [EpollEvent::default()]);
        assert_eq!(ready.unwrap(), 1, "no interrupt");
        self.line.read().unwrap();
        let status = self.interrupt.status();
        self.interrupt.acknowledge(status);
        status
    }

    /// Room for `length` bytes that nothing else uses.
    pub fn allocate(&mut self, length: u64) -> u64 {
        let address = self.next_buffer;
        self.next_buffer += length.next_multiple_of(16);
        assert!(
            self.next_buffer <= MEMORY,
            "the fake guest is out of memory"
        );
        address
    }
}

impl Ring {
    fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used_ring(&self) -> u64 {
        (self.avail_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }
}

/// Writes `(address, length, flags, next)` as a descriptor at `at`.
pub fn write_descriptor(memory: &GuestMemory, at: u64, fields: (u64, u32, u16, u16)) {
    memory.write_obj(fields.0, GuestAddress(at)).unwrap();
    memory.write_obj(fields.1, GuestAddress(at + 8)).unwrap();
    memory.write_obj(fields.2, GuestAddress(at + 12)).unwrap();
    memory.write_obj(fields.3, GuestAddress(at + 14)).unwrap();
}
