//! One request of a driver: the buffers of a descriptor chain, checked and split by direction.

use std::collections::VecDeque;

use vm_memory::{ByteValued, Bytes, VolatileSlice};

/// A descriptor chain whose every buffer lies in guest memory.
#[derive(Debug)]
pub struct Chain<'m> {
    /// What the driver gave (device-readable descriptors).
    pub readable: Buffers<'m>,
    /// Where the device answers (device-writable descriptors).
    pub writable: Buffers<'m>,
}

/// The buffers of one direction, consumed from the front.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    slices: VecDeque<VolatileSlice<'m>>,
    bytes: usize,
}

/// A request is shorter than its device type defines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes of a request wanted where {available} are left")]
pub struct BuffersError {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes there.
    pub available: usize,
}

impl<'m> Buffers<'m> {
    /// Bytes not yet consumed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// What is left, as runs of guest memory in order; none is empty.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = &VolatileSlice<'m>> {
        self.slices.iter()
    }

    /// Copies the next `data.len()` bytes out.
    ///
    /// # Errors
    ///
    /// When fewer are left; nothing is consumed then.
    pub fn read(&mut self, data: &mut [u8]) -> Result<(), BuffersError> {
        let mut done = 0;
        for slice in self.take(data.len())?.slices {
            done += slice.copy_to(&mut data[done..]);
        }
        Ok(())
    }

    /// Copies the next bytes out as a plain value.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_object<T: ByteValued + Default>(&mut self) -> Result<T, BuffersError> {
        let mut object = T::default();
        self.read(object.as_mut_slice())?;
        Ok(object)
    }

    /// Copies the next bytes out as a plain value and leaves them there; `None` where the first buffer has fewer.
    #[must_use]
    pub fn peek_object<T: ByteValued + Default>(&self) -> Option<T> {
        self.slices.front()?.read_obj(0).ok()
    }

    /// Copies `data` into the next `data.len()` bytes.
    ///
    /// # Errors
    ///
    /// When fewer are left; nothing is written then.
    pub fn write(&mut self, data: &[u8]) -> Result<(), BuffersError> {
        let mut done = 0;
        for slice in self.take(data.len())?.slices {
            // A slice takes as much of `data` as it holds: it fails only when it is empty.
            done += slice.write(&data[done..], 0).unwrap_or(0);
        }
        Ok(())
    }

    /// Writes zeroes to all that is left.
    pub fn fill_zero(&mut self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        while !self.is_empty() {
            let count = self.bytes.min(ZEROES.len());
            // `count` bytes are there.
            let _ = self.write(&ZEROES[..count]);
        }
    }

    /// Splits the next `count` bytes off.
    ///
    /// # Errors
    ///
    /// When fewer are left; nothing is consumed then.
    pub fn take(&mut self, count: usize) -> Result<Self, BuffersError> {
        if count > self.bytes {
            return Err(BuffersError {
                wanted: count,
                available: self.bytes,
            });
        }
        let mut front = Self::default();
        while front.bytes < count {
            let Some(slice) = self.slices.pop_front() else {
                break;
            };
            let wanted = count - front.bytes;
            match slice.split_at(wanted) {
                Ok((head, tail)) if !tail.is_empty() => {
                    self.slices.push_front(tail);
                    front.push(head);
                }
                _ => front.push(slice),
            }
        }
        self.bytes -= count;
        Ok(front)
    }

    pub(super) fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.bytes += slice.len();
            self.slices.push_back(slice);
        }
    }
}

impl Chain<'_> {
    pub(super) fn descriptors(&self) -> usize {
        self.readable.slices.len() + self.writable.slices.len()
    }
}
