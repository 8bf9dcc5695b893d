//! A guest for tests: one driver and the host's ends of its connections.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use vm_memory::{Bytes, GuestAddress};

use crate::config::VsockConfig;
use crate::virtio::VirtioDevice;
use crate::virtio::fake::{FakeDriver, WRITE};
use crate::virtio::vsock::packet::{HOST_CID, Header, TYPE_STREAM, op};
use crate::virtio::vsock::{QUEUE_SIZES, Vsock};

pub const GUEST_CID: u32 = 3;
/// The ports that the guest may connect to.
pub const PORTS: [u32; 2] = [1, 2];
/// What [`Guest`] says it has room for.
pub const GUEST_BUFFER: u32 = 256 << 10;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Where received packets go, and the one to send lies.
const RECEIVE_BUFFERS: u64 = 0x20_0000;
const TRANSMIT_BUFFER: u64 = 0x80_0000;

pub struct Guest {
    pub device: Vsock,
    driver: FakeDriver,
    hosts: mpsc::Receiver<(u32, OwnedFd)>,
    buffer_size: u32,
    next_buffer: u64,
}

impl Guest {
    /// A guest with `buffers` receive buffers of 4 KiB payload.
    pub fn new(buffers: u16) -> Guest {
        Guest::with_buffers(buffers, 4096)
    }

    /// A guest with receive buffers for `payload` bytes each beside the header.
    pub fn with_buffers(buffers: u16, payload: u32) -> Guest {
        let (sender, hosts) = mpsc::channel();
        let config = VsockConfig {
            guest_cid: GUEST_CID,
            host_ports: PORTS.to_vec(),
        };
        let connector = Arc::new(move |port, host| {
            sender.send((port, host)).unwrap();
            Ok(())
        });
        let mut guest = Guest {
            device: Vsock::new(config, connector),
            driver: FakeDriver::new(&QUEUE_SIZES),
            hosts,
            buffer_size: Header::SIZE as u32 + payload,
            next_buffer: 0,
        };
        guest.add_buffers(buffers);
        guest.activate();
        guest
    }

    pub fn activate(&mut self) {
        let context = self.driver.context(self.device.features());
        self.device.activate(context).unwrap();
    }

    /// Gives the device more room for packets.
    pub fn add_buffers(&mut self, buffers: u16) {
        for _ in 0..buffers {
            let slot = self.next_buffer % u64::from(QUEUE_SIZES[RECEIVE]);
            self.next_buffer += 1;
            let address = RECEIVE_BUFFERS + slot * 0x4000;
            let buffer = (address, self.buffer_size, WRITE);
            self.driver.add_buffers(RECEIVE, &[buffer]);
        }
        self.driver.kick(RECEIVE);
    }

    /// Sends a packet and waits until the device took it.
    pub fn send(&mut self, header: &Header, payload: &[u8]) {
        self.send_bytes(&header.encode(), payload);
    }

    /// Sends anything, the second part in a descriptor of its own as Linux does.
    pub fn send_bytes(&mut self, head: &[u8], payload: &[u8]) {
        let memory = self.driver.memory.clone();
        let mut buffers = Vec::new();
        let mut address = TRANSMIT_BUFFER;
        for part in [head, payload] {
            if !part.is_empty() {
                memory.write_slice(part, GuestAddress(address)).unwrap();
                buffers.push((address, part.len() as u32, 0));
                address += part.len() as u64;
            }
        }
        self.offer(&buffers);
        self.driver.wait_used(TRANSMIT);
    }

    /// Sends a packet and does not look whether it is taken.
    pub fn post(&mut self, header: &Header) {
        let address = self.driver.allocate(Header::SIZE as u64);
        let memory = self.driver.memory.clone();
        memory
            .write_slice(&header.encode(), GuestAddress(address))
            .unwrap();
        self.offer(&[(address, Header::SIZE as u32, 0)]);
    }

    fn offer(&mut self, buffers: &[(u64, u32, u16)]) {
        self.driver.add_buffers(TRANSMIT, buffers);
        self.driver.kick(TRANSMIT);
    }

    /// How many posted packets were taken since the last call.
    pub fn taken(&mut self) -> usize {
        std::iter::from_fn(|| self.driver.used(TRANSMIT)).count()
    }

    pub fn wait_taken(&mut self) {
        self.driver.wait_used(TRANSMIT);
    }

    /// The next packet from the device, without its buffer going back.
    pub fn take(&mut self) -> (Header, Vec<u8>) {
        let answer = self.driver.wait_used(RECEIVE);
        parse(answer.written, &answer.data)
    }

    /// The next packet from the device.
    pub fn next(&mut self) -> (Header, Vec<u8>) {
        let packet = self.take();
        self.add_buffers(1);
        packet
    }

    /// The next packet if there is one already.
    pub fn try_next(&mut self) -> Option<(Header, Vec<u8>)> {
        let answer = self.driver.used(RECEIVE)?;
        self.add_buffers(1);
        Some(parse(answer.written, &answer.data))
    }

    /// Sleeps until the device has anything to say.
    pub fn wait(&self) {
        self.driver.wait_interrupt();
    }

    /// Opens a connection from `guest_port` to the first port; the host's end.
    pub fn connect(&mut self, guest_port: u32) -> UnixStream {
        self.send(&packet(guest_port, op::REQUEST), &[]);
        let (header, _) = self.next();
        assert_eq!((header.op, header.dst_port), (op::RESPONSE, guest_port));
        let (port, host) = self.hosts.recv().unwrap();
        assert_eq!(port, PORTS[0]);
        UnixStream::from(host)
    }

    /// The host's end of a connection that the device accepted.
    pub fn host_end(&self) -> Option<(u32, UnixStream)> {
        let (port, host) = self.hosts.try_recv().ok()?;
        Some((port, host.into()))
    }

    /// Asserts that the device has nothing to say on an open connection but how much room it has,
    /// which is returned: `fwd_cnt`.
    pub fn assert_quiet(&mut self, guest_port: u32) -> u32 {
        self.send(&packet(guest_port, op::CREDIT_REQUEST), &[]);
        let (header, _) = self.next();
        assert_eq!(
            (header.op, header.dst_port),
            (op::CREDIT_UPDATE, guest_port)
        );
        header.fwd_cnt
    }

    /// Asserts that the next packet resets a connection.
    pub fn assert_reset(&mut self, guest_port: u32) {
        let (header, _) = self.next();
        assert_eq!(
            (header.op, header.dst_port),
            (op::RST, guest_port),
            "{header:?}"
        );
        assert_eq!(header.dst_cid, u64::from(GUEST_CID));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.device.reset();
    }
}

fn parse(written: u32, data: &[u8]) -> (Header, Vec<u8>) {
    let header = Header::decode(data.first_chunk().unwrap());
    assert_eq!(written, Header::SIZE as u32 + header.len);
    (header, data[Header::SIZE..written as usize].to_vec())
}

/// A packet of the guest to the first port.
pub fn packet(guest_port: u32, op: u16) -> Header {
    Header {
        src_cid: u64::from(GUEST_CID),
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: PORTS[0],
        kind: TYPE_STREAM,
        op,
        buf_alloc: GUEST_BUFFER,
        ..Header::default()
    }
}

/// A packet of the guest with `len` bytes of data.
pub fn data(guest_port: u32, len: usize) -> Header {
    Header {
        len: len as u32,
        ..packet(guest_port, op::RW)
    }
}

/// The guest stops, by `flags`.
pub fn shutdown(guest_port: u32, flags: u32) -> Header {
    Header {
        flags,
        ..packet(guest_port, op::SHUTDOWN)
    }
}
