//! Data, its order and its ends, in both directions.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;

use proptest::prelude::*;

use super::guest::{GUEST_BUFFER, Guest, data, packet, shutdown};
use crate::virtio::VirtioDevice;
use crate::virtio::vsock::connection::BUFFER;
use crate::virtio::vsock::packet::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};

const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

#[test]
fn data_goes_both_ways() {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    guest.send(&data(1000, 5), b"hello");
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    host.write_all(b"world!").unwrap();
    let (header, bytes) = guest.next();
    assert_eq!((header.op, bytes.as_slice()), (op::RW, &b"world!"[..]));
    assert_eq!((header.buf_alloc, header.fwd_cnt), (BUFFER, 5));
    guest.assert_quiet(1000);
}

#[test]
fn an_answer_and_the_packet_it_answers_cost_one_interrupt() {
    let mut guest = Guest::new(4);
    guest.post(&packet(1000, op::REQUEST));
    guest.wait();
    assert_eq!(guest.taken(), 1);
    assert_eq!(guest.try_next().unwrap().0.op, op::RESPONSE);
}

#[test]
fn guest_stops_sending_and_still_receives() {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    guest.send(&data(1000, 3), b"end");
    guest.send(&shutdown(1000, SHUTDOWN_SEND), &[]);
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"end");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.next().1, b"answer");
    host.shutdown(Shutdown::Write).unwrap();
    let (header, _) = guest.next();
    assert_eq!(
        (header.op, header.flags & SHUTDOWN_SEND),
        (op::SHUTDOWN, SHUTDOWN_SEND)
    );
    guest.send(&shutdown(1000, BOTH), &[]);
    guest.assert_reset(1000);
}

#[test]
fn host_stops_sending_and_still_receives() {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    host.write_all(b"input").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.next().1, b"input");
    let (header, _) = guest.next();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    guest.send(&data(1000, 6), b"output");
    guest.send(&shutdown(1000, BOTH), &[]);
    guest.assert_reset(1000);
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"output");
}

#[test]
fn host_that_closes_is_reported_after_its_data() {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    host.write_all(b"last words").unwrap();
    drop(host);
    let mut bytes = Vec::new();
    let flags = loop {
        let (header, payload) = guest.next();
        bytes.extend(payload);
        if header.op == op::SHUTDOWN && header.flags & SHUTDOWN_SEND != 0 {
            break header.flags;
        }
    };
    assert_eq!((bytes.as_slice(), flags), (&b"last words"[..], BOTH));
    // What the guest still sends goes nowhere, and it is not held against it.
    for _ in 0..4 {
        guest.send(&data(1000, 64 << 10), &[0; 64 << 10]);
        guest.send(&data(1000, 64 << 10), &[0; 64 << 10]);
        assert_eq!(guest.next().0.op, op::CREDIT_UPDATE);
    }
    guest.send(&packet(1000, op::RST), &[]);
    guest.connect(1000);
}

#[test]
fn guest_that_stops_receiving_breaks_the_hosts_pipe() {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    guest.send(&shutdown(1000, SHUTDOWN_RECEIVE), &[]);
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send(&data(1000, 2), b"ok");
    guest.send(&shutdown(1000, SHUTDOWN_SEND), &[]);
    guest.assert_reset(1000);
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"ok");
}

#[test]
fn unread_input_does_not_spoil_the_hosts_end_of_file() {
    let mut guest = Guest::new(0);
    guest.send(&packet(1000, op::REQUEST), &[]);
    let mut host = guest.host_end().unwrap().1;
    host.write_all(&[1; 1000]).unwrap();
    guest.send(&data(1000, 2), b"ok");
    guest.send(&shutdown(1000, BOTH), &[]);
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"ok");
}

#[test]
fn closed_guest_socket_is_free_at_once_and_a_slow_host_still_gets_all() {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    let chunk: Vec<u8> = (0..16 << 10).map(|i| i as u8).collect();
    let mut forwarded;
    let mut sent = 0_u32;
    // Fill the socket and half of the buffer while the host does not read.
    loop {
        guest.send(&data(1000, chunk.len()), &chunk);
        sent += chunk.len() as u32;
        forwarded = guest.assert_quiet(1000);
        if sent - forwarded >= BUFFER / 2 {
            break;
        }
    }
    guest.send(&shutdown(1000, BOTH), &[]);
    guest.assert_reset(1000);
    let _second = guest.connect(1000);
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u32, sent);
    assert!(bytes.chunks(chunk.len()).all(|part| part == chunk));
}

#[test]
fn many_connections_take_turns() {
    let mut guest = Guest::new(0);
    let mut hosts = Vec::new();
    for port in 0..3 {
        guest.send(&packet(port, op::REQUEST), &[]);
        hosts.push(guest.host_end().unwrap().1);
    }
    for host in &mut hosts {
        host.write_all(&[0; 64 << 10]).unwrap();
    }
    // Three answers, then data, three of which after another come from three connections.
    let mut order = Vec::new();
    for _ in 0..33 {
        guest.add_buffers(1);
        order.push(guest.take().0);
    }
    let data: Vec<u32> = order
        .iter()
        .filter(|h| h.op == op::RW)
        .map(|h| h.dst_port)
        .collect();
    for port in 0..3 {
        let turns = data.iter().filter(|&&p| p == port).count();
        assert!(
            turns >= data.len() / 4,
            "connection {port} had {turns} of {}",
            data.len()
        );
    }
}

#[test]
fn reset_closes_connections_and_the_device_starts_again() {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    guest.device.reset();
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    guest.device.reset();
}

#[test]
fn configuration_is_the_context_id() {
    let guest = Guest::new(1);
    let mut config = [0xff; 12];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    guest.device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 12]);
}

/// The driver's half of a connection, by the book.
struct Model {
    port: u32,
    sent: usize,
    forwarded: usize,
    received: Vec<u8>,
    /// How much of `received` the guest's program has read.
    read: usize,
    host_is_done: bool,
}

impl Model {
    fn header(&self, op: u16) -> Header {
        Header {
            fwd_cnt: self.read as u32,
            ..packet(self.port, op)
        }
    }

    fn room(&self) -> usize {
        BUFFER as usize - (self.sent - self.forwarded)
    }

    fn take(&mut self, guest: &mut Guest, (header, payload): (Header, Vec<u8>)) {
        self.forwarded = header.fwd_cnt as usize;
        self.received.extend(payload);
        assert!(
            self.received.len() - self.read <= GUEST_BUFFER as usize,
            "beyond the credit"
        );
        match header.op {
            op::RW | op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => guest.send(&self.header(op::CREDIT_UPDATE), &[]),
            op::SHUTDOWN => self.host_is_done = true,
            other => panic!("unexpected operation {other}"),
        }
    }

    /// Sends as much of `bytes` as there is room for.
    fn send(&mut self, guest: &mut Guest, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        if count > 0 {
            let header = Header {
                len: count as u32,
                ..self.header(op::RW)
            };
            guest.send(&header, &bytes[..count]);
            self.sent += count;
        }
        count
    }

    fn read(&mut self, guest: &mut Guest) {
        self.read = self.received.len();
        guest.send(&self.header(op::CREDIT_UPDATE), &[]);
    }
}

/// Moves `up` to the host and `down` to the guest at once; what arrived there and here.
fn exchange(guest: &mut Guest, up: &[u8], down: &[u8], chunk: usize) -> (Vec<u8>, Vec<u8>) {
    let mut host = guest.connect(1000);
    let mut writer = host.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(down).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let reader = scope.spawn(move || {
            let mut bytes = Vec::new();
            host.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut model = Model {
            port: 1000,
            sent: 0,
            forwarded: 0,
            received: Vec::new(),
            read: 0,
            host_is_done: false,
        };
        while model.sent < up.len() || !model.host_is_done {
            let rest = &up[model.sent..];
            let moved = model.send(guest, &rest[..rest.len().min(chunk)]);
            let mut is_idle = moved == 0;
            while let Some(packet) = guest.try_next() {
                is_idle = false;
                model.take(guest, packet);
            }
            if model.received.len() - model.read > GUEST_BUFFER as usize / 2 {
                model.read(guest);
            }
            if is_idle && (model.sent < up.len() || !model.host_is_done) {
                guest.wait();
            }
        }
        guest.send(&shutdown(1000, BOTH), &[]);
        (reader.join().unwrap(), model.received)
    })
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|i| (i.wrapping_mul(167) >> 3) as u8 ^ seed)
        .collect()
}

#[test]
fn ten_megabytes_go_both_ways_at_once() {
    let mut guest = Guest::new(64);
    let (up, down) = (pattern(10 << 20, 1), pattern(10 << 20, 2));
    let (at_host, at_guest) = exchange(&mut guest, &up, &down, 64 << 10);
    assert!(at_host == up && at_guest == down);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_shape_of_driver_and_data_arrives_whole(
        up in 0..600_000_usize,
        down in 0..600_000_usize,
        chunk in 1_usize..70_000,
        buffers in 1_u16..64,
        payload in 1_u32..9000,
    ) {
        let chunk = chunk.max(up / 200);
        let payload = payload.max(down as u32 / 500);
        let mut guest = Guest::with_buffers(buffers, payload);
        let (up, down) = (pattern(up, 3), pattern(down, 4));
        let (at_host, at_guest) = exchange(&mut guest, &up, &down, chunk);
        prop_assert!(at_host == up);
        prop_assert!(at_guest == down);
    }
}
