//! The 16550 for debugging a guest that does not come far enough for virtio. Output only.

use std::io::{self, Write};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::output::Output;

/// I/O port of the first register, of eight (COM1).
pub const PORT: u16 = 0x3f8;
/// How many registers there are, a port each.
pub const PORTS: u64 = 8;
/// Its interrupt (COM1).
pub const GSI: u32 = 4;

/// The device.
pub struct Serial(Uart<Line, NoEvents, Sink>);

impl Serial {
    /// A serial port that writes to `output` and raises its interrupt by writing to `line`.
    #[must_use]
    pub fn new(line: EventFd, output: Output) -> Self {
        Self(Uart::new(Line(line), Sink(output)))
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // The registers are a byte wide.
        if let ([value], Some(offset)) = (data, register(offset)) {
            *value = self.0.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (&[value], Some(offset)) = (data, register(offset)) {
            // Fails where input in loop-back mode exceeds the FIFO, as hardware does, unsaid.
            let _ = self.0.write(offset, value);
        }
    }
}

fn register(offset: u64) -> Option<u8> {
    u8::try_from(offset).ok().filter(|&offset| offset < 8)
}

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct Sink(Output);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.offer(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

    fn serial() -> (Serial, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let output = Output::new(OwnedFd::from(writer).into()).unwrap();
        let line = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
        (Serial::new(line, output), reader)
    }

    #[test]
    fn bytes_written_to_the_data_register_come_out() {
        let (mut serial, mut reader) = serial();
        for byte in b"early" {
            serial.write(0, &[*byte]);
        }
        drop(serial);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "early");
    }

    #[test]
    fn a08_every_register_width_and_value_is_survived() {
        let (mut serial, _reader) = serial();
        for offset in (0..16).chain([u64::MAX]) {
            for width in 1..=8 {
                for value in 0..=255 {
                    serial.write(offset, &[value; 8][..width]);
                    serial.read(offset, &mut [0; 8][..width]);
                }
            }
        }
        serial.write(3, &[0]);
        let mut status = [0];
        serial.read(5, &mut status);
        assert_ne!(status[0] & 0x20, 0, "ready to transmit");
    }

    #[test]
    fn a11_flood_without_a_reader_does_not_stop_the_vcpu() {
        let (mut serial, reader) = serial();
        for _ in 0..200_000 {
            serial.write(0, b"x");
        }
        drop(reader);
        serial.write(0, b"x");
    }
}
