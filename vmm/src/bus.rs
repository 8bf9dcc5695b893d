//! What answers when a vCPU touches an I/O port or an address that is not memory.

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
