//! What answers when a vCPU touches an I/O port or an address that is not memory.
//!
//! Where nothing answers, reads give all ones and writes are lost, as on a real machine; nothing
//! is logged, since the guest chooses how often that happens.

use std::sync::{Arc, Mutex, PoisonError};

/// A device on the port or memory-mapped bus.
///
/// The bus holds each device behind a lock; vCPU threads call it from there, so an access must
/// not wait for anything that only another access to the same device can bring about. A guest
/// chooses every offset (within the range the device was placed at), width (1 to 8) and value.
pub trait BusDevice: Send {
    /// Fills `data` with what is read at `offset` from the start of the device.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data` written at `offset` from the start of the device.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// An address space of devices. Complete before the first vCPU runs, and then only read.
#[derive(Default)]
pub struct Bus {
    /// Sorted by `start`, without overlaps.
    slots: Vec<Slot>,
}

struct Slot {
    start: u64,
    length: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Two devices were placed at the same addresses.
#[derive(Debug, thiserror::Error)]
#[error("a device at {start:#x} would overlap another one")]
pub struct Overlap {
    /// Where the second was to begin.
    pub start: u64,
}

impl Bus {
    /// Places `device` at `length` addresses from `start`.
    ///
    /// # Errors
    ///
    /// When any of them is taken, or there is no such range.
    pub fn insert(
        &mut self,
        start: u64,
        length: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), Overlap> {
        let end = start.checked_add(length).ok_or(Overlap { start })?;
        let position = self.slots.partition_point(|slot| slot.start < start);
        let before = position.checked_sub(1).map(|index| &self.slots[index]);
        let after = self.slots.get(position);
        if before.is_some_and(|slot| slot.start + slot.length > start)
            || after.is_some_and(|slot| slot.start < end)
        {
            return Err(Overlap { start });
        }
        let slot = Slot {
            start,
            length,
            device,
        };
        self.slots.insert(position, slot);
        Ok(())
    }

    /// A read by a vCPU.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write by a vCPU.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(offset, data);
        }
    }

    /// The device that has all of the `length` addresses from `address`.
    fn find(&self, address: u64, length: usize) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let position = self.slots.partition_point(|slot| slot.start <= address);
        let slot = &self.slots[position.checked_sub(1)?];
        let offset = address - slot.start;
        let end = offset.checked_add(length as u64)?;
        (end <= slot.length).then_some((offset, &*slot.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its name and keeps what was written last.
    struct Named(u8, u64);

    impl BusDevice for Named {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0);
            self.1 = offset;
        }

        fn write(&mut self, offset: u64, _data: &[u8]) {
            self.1 = offset;
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.insert(0x2000, 0x1000, Arc::new(Mutex::new(Named(2, 0))))
            .unwrap();
        bus.insert(0x1000, 0x1000, Arc::new(Mutex::new(Named(1, 0))))
            .unwrap();
        bus
    }

    fn read(bus: &Bus, address: u64) -> [u8; 4] {
        let mut data = [0; 4];
        bus.read(address, &mut data);
        data
    }

    #[test]
    fn an_access_reaches_the_device_at_its_address() {
        let bus = bus();
        assert_eq!(read(&bus, 0x1000), [1; 4]);
        assert_eq!(read(&bus, 0x1ffc), [1; 4]);
        assert_eq!(read(&bus, 0x2000), [2; 4]);
    }

    #[test]
    fn a08_an_access_that_no_device_has_whole_reads_ones() {
        let bus = bus();
        for address in [0, 0xfff, 0x1ffd, 0x2ffd, 0x3000, u64::MAX] {
            assert_eq!(read(&bus, address), [0xff; 4], "{address:#x}");
            bus.write(address, &[0; 8]);
        }
    }

    #[test]
    fn devices_do_not_overlap() {
        let mut bus = bus();
        for (start, length) in [(0xfff, 2), (0x1fff, 1), (0x1800, 0x1000), (0, 0x8000)] {
            let device = Arc::new(Mutex::new(Named(3, 0)));
            assert!(bus.insert(start, length, device).is_err(), "{start:#x}");
        }
        assert!(
            bus.insert(u64::MAX, 2, Arc::new(Mutex::new(Named(3, 0))))
                .is_err()
        );
    }
}
