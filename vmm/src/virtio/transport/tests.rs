//! The transport against a driver that does as it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;
use crate::virtio::ActivateError;
use crate::virtio::device::copy_config;

const FEATURE: u64 = 1 << 7;
const MEMORY: usize = 1 << 20;

/// Counts what the transport asks of it.
#[derive(Default)]
struct Calls {
    activations: AtomicUsize,
    resets: AtomicUsize,
    ready_queues: AtomicUsize,
    /// The host has nothing left for it.
    lacks: AtomicBool,
}

struct Recorder(Arc<Calls>);

impl VirtioDevice for Recorder {
    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        FEATURE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[256, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(b"pillbug", offset, data);
    }

    fn activate(&mut self, mut context: ActivateContext) -> Result<(), ActivateError> {
        self.0.activations.fetch_add(1, Ordering::Relaxed);
        let ready = context.queues.iter_mut().filter(|queue| queue.is_ready());
        self.0.ready_queues.store(ready.count(), Ordering::Relaxed);
        for queue in &mut context.queues {
            let _ = queue.serve(|_| Some(0));
        }
        match self.0.lacks.load(Ordering::Relaxed) {
            true => Err(ActivateError::events("test")(
                std::io::ErrorKind::OutOfMemory.into(),
            )),
            false => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.0.resets.fetch_add(1, Ordering::Relaxed);
    }
}

struct Bench {
    transport: MmioTransport,
    calls: Arc<Calls>,
    failed: Receiver<ActivateError>,
}

impl Bench {
    fn new() -> Self {
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
        let calls = Arc::new(Calls::default());
        let (failures, failed) = channel();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let transport = MmioTransport::new(
            Box::new(Recorder(calls.clone())),
            Arc::new(memory),
            Interrupt::new(event()),
            vec![event(), event()],
            Box::new(move |error| failures.send(error).unwrap()),
        );
        Self {
            transport,
            calls,
            failed,
        }
    }

    fn read(&mut self, register: u32) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    fn add_status(&mut self, bits: u32) {
        let status = self.read(VIRTIO_MMIO_STATUS);
        self.write(VIRTIO_MMIO_STATUS, status | bits);
    }

    /// Up to FEATURES_OK, with the device's own feature and the new interface.
    fn negotiate(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, FEATURE as u32);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        self.add_status(FEATURES_OK);
    }

    fn configure_queue(&mut self, queue: u32, size: u32, address: u64) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, queue);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size);
        for (low, offset) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, 0),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x1000),
            (VIRTIO_MMIO_QUEUE_USED_LOW, 0x2000),
        ] {
            let address = address.wrapping_add(offset);
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn activations(&self) -> usize {
        self.calls.activations.load(Ordering::Relaxed)
    }
}

#[test]
fn a_driver_finds_and_activates_the_device() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(bench.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(bench.read(VIRTIO_MMIO_DEVICE_ID), 42);
    bench.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    assert_eq!(
        u64::from(bench.read(VIRTIO_MMIO_DEVICE_FEATURES)),
        FEATURE | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    );
    bench.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(bench.read(VIRTIO_MMIO_DEVICE_FEATURES), 1);
    bench.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(bench.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);

    bench.negotiate();
    bench.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(bench.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    bench.configure_queue(0, 16, 0x4000);
    bench.add_status(DRIVER_OK);

    let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(bench.read(VIRTIO_MMIO_STATUS), all);
    assert_eq!(bench.activations(), 1);
    assert_eq!(bench.calls.ready_queues.load(Ordering::Relaxed), 1);
}

#[test]
fn a_reset_brings_the_device_back_to_its_beginning() {
    let mut bench = Bench::new();
    bench.negotiate();
    bench.configure_queue(0, 16, 0x4000);
    bench.add_status(DRIVER_OK);
    bench.transport.interrupt.used_buffer();
    assert_eq!(bench.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    let resets = bench.calls.resets.load(Ordering::Relaxed);

    bench.write(VIRTIO_MMIO_STATUS, 0);

    assert_eq!(bench.calls.resets.load(Ordering::Relaxed), resets + 1);
    assert_eq!(bench.read(VIRTIO_MMIO_STATUS), 0);
    assert_eq!(bench.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(bench.read(VIRTIO_MMIO_QUEUE_READY), 0);
    bench.negotiate();
    bench.configure_queue(0, 16, 0x4000);
    bench.add_status(DRIVER_OK);
    assert_eq!(bench.activations(), 2);
}

#[test]
fn states_are_taken_in_order() {
    let mut bench = Bench::new();
    bench.write(VIRTIO_MMIO_STATUS, DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(bench.read(VIRTIO_MMIO_STATUS), 0);
    bench.add_status(ACKNOWLEDGE);
    bench.add_status(DRIVER);
    bench.add_status(DRIVER_OK);
    assert_eq!(bench.read(VIRTIO_MMIO_STATUS), ACKNOWLEDGE | DRIVER);
    // Without VERSION_1 there is no FEATURES_OK.
    bench.add_status(FEATURES_OK);
    assert_eq!(bench.read(VIRTIO_MMIO_STATUS), ACKNOWLEDGE | DRIVER);
    assert_eq!(bench.activations(), 0);
}

#[test]
fn features_that_are_not_offered_are_not_accepted() {
    let mut bench = Bench::new();
    bench.add_status(ACKNOWLEDGE);
    bench.add_status(DRIVER);
    bench.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    bench.write(VIRTIO_MMIO_DRIVER_FEATURES, 0b11);
    bench.add_status(FEATURES_OK);
    assert_eq!(bench.read(VIRTIO_MMIO_STATUS) & FEATURES_OK, 0);

    bench.write(VIRTIO_MMIO_DRIVER_FEATURES, 0b01);
    bench.add_status(FEATURES_OK);
    assert_ne!(bench.read(VIRTIO_MMIO_STATUS) & FEATURES_OK, 0);
    // They are fixed now.
    bench.write(VIRTIO_MMIO_DRIVER_FEATURES, 0b11);
    assert_eq!(bench.transport.driver_features, 1 << VIRTIO_F_VERSION_1);
}

#[test]
fn a01_queues_do_not_change_after_driver_ok() {
    let mut bench = Bench::new();
    bench.negotiate();
    bench.configure_queue(0, 16, 0x4000);
    bench.add_status(DRIVER_OK);

    bench.configure_queue(0, 32, 0x8000);
    bench.write(VIRTIO_MMIO_QUEUE_READY, 0);
    bench.configure_queue(1, 32, 0x8000);

    assert_eq!(bench.transport.queues[0].size, 16);
    assert_eq!(bench.transport.queues[0].descriptors, 0x4000);
    assert!(bench.transport.queues[0].ready);
    assert!(!bench.transport.queues[1].ready);
    assert_eq!(bench.activations(), 1);
}

#[test]
fn a57_a_device_that_the_host_has_no_means_for_is_told_of() {
    let mut bench = Bench::new();
    bench.calls.lacks.store(true, Ordering::Relaxed);
    bench.negotiate();
    assert!(bench.failed.try_recv().is_err());
    bench.add_status(DRIVER_OK);
    assert_ne!(bench.read(VIRTIO_MMIO_STATUS) & NEEDS_RESET, 0);
    let error = bench.failed.try_recv().expect("it was told");
    assert!(error.to_string().contains("virtio test"));
}

#[test]
fn a02_queue_sizes_out_of_range_need_a_reset() {
    for size in [0, 3, 512, 65535, 65536 + 16, u32::MAX] {
        let mut bench = Bench::new();
        bench.negotiate();
        bench.configure_queue(0, size, 0x4000);
        bench.add_status(DRIVER_OK);
        assert_ne!(bench.read(VIRTIO_MMIO_STATUS) & NEEDS_RESET, 0, "{size}");
        assert_eq!(bench.activations(), 0);
    }
}

#[test]
fn a04_rings_outside_of_memory_need_a_reset() {
    for address in [
        0x4001,
        MEMORY as u64 - 16,
        MEMORY as u64,
        0xd000_0000,
        u64::MAX - 0xfff,
    ] {
        let mut bench = Bench::new();
        bench.negotiate();
        bench.configure_queue(0, 256, address);
        bench.add_status(DRIVER_OK);
        assert_ne!(
            bench.read(VIRTIO_MMIO_STATUS) & NEEDS_RESET,
            0,
            "{address:#x}"
        );
        assert_eq!(bench.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        assert_eq!(bench.activations(), 0);
    }
}

#[test]
fn configuration_is_read_at_any_width_and_offset() {
    let mut bench = Bench::new();
    let mut read = |offset, count| {
        let mut data = vec![0xaa; count];
        bench.transport.read(CONFIG + offset, &mut data);
        data
    };
    assert_eq!(read(0, 8), b"pillbug\0");
    assert_eq!(read(4, 2), b"bu");
    assert_eq!(read(6, 4), b"g\0\0\0");
    assert_eq!(read(0xeff, 1), b"\0");
}

#[test]
fn a_kick_by_an_exit_reaches_its_queue() {
    let mut bench = Bench::new();
    bench.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    bench.write(VIRTIO_MMIO_QUEUE_NOTIFY, 2);
    assert_eq!(bench.transport.queues[1].kick.read().unwrap(), 1);
    assert!(bench.transport.queues[0].kick.read().is_err());
}

proptest! {
    #[test]
    fn a08_any_access_leaves_the_device_usable(
        accesses in proptest::collection::vec(
            (prop_oneof![0..0x110u64, 0..0x1000u64], 1..9usize, any::<bool>(),
             prop_oneof![0..16u64, any::<u64>()]),
            0..64,
        ),
        negotiated in any::<bool>(),
    ) {
        let mut bench = Bench::new();
        if negotiated {
            bench.negotiate();
        }
        for (offset, width, is_write, value) in accesses {
            let mut data = value.to_le_bytes();
            match is_write {
                true => bench.transport.write(offset, &data[..width]),
                false => bench.transport.read(offset, &mut data[..width]),
            }
        }
        let activations = bench.activations();
        bench.negotiate();
        bench.configure_queue(0, 16, 0x4000);
        bench.add_status(DRIVER_OK);
        prop_assert_eq!(bench.read(VIRTIO_MMIO_STATUS) & (DRIVER_OK | NEEDS_RESET), DRIVER_OK);
        prop_assert_eq!(bench.activations(), activations + 1);
    }
}
