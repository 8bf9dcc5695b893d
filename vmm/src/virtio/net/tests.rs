//! The device against a driver of the tests and both back ends, hostile guests included.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM};

mod multiqueue;

use super::frame::{HEADER, MAX_FRAME};
use super::*;
use crate::config::{DescriptorIndex, NetLimits};
use crate::virtio::fake::{FakeDriver, INDIRECT, MEMORY, NEXT, WRITE, write_descriptor};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// How long a test waits for what the device sends.
const PATIENCE: Duration = Duration::from_secs(10);

fn config(link: NetLink) -> NetConfig {
    NetConfig {
        descriptors: vec![DescriptorIndex(0)],
        link,
        mac: MAC,
        sources: vec![],
        denied: vec![],
        allowed: vec![],
        mtu: 1500,
    }
}

/// A device over a stream, its driver, and the other end of the stream.
struct Streamed {
    net: Net,
    driver: FakeDriver,
    peer: UnixStream,
}

fn streamed(features: u64) -> Streamed {
    limited(features, &NetLimits::default())
}

fn limited(features: u64, limits: &NetLimits) -> Streamed {
    let (ours, peer) = UnixStream::pair().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let rates = NetRates::new(limits);
    let mut net = Net::new(&config(NetLink::Stream), &rates, vec![ours.into()]).unwrap();
    let driver = FakeDriver::new(&PAIR_SIZES);
    net.activate(driver.context(features)).unwrap();
    Streamed { net, driver, peer }
}

/// A device over what keeps the borders of packets, as a TAP does.
fn tapped(features: u64) -> (Net, FakeDriver, UnixDatagram) {
    let (ours, peer) = UnixDatagram::pair().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let link = NetLink::Tap { udp_offload: true };
    let mut net = Net::new(&config(link), &NetRates::default(), vec![ours.into()]).unwrap();
    let driver = FakeDriver::new(&PAIR_SIZES);
    net.activate(driver.context(features)).unwrap();
    (net, driver, peer)
}

fn frame(source: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6], &source[..], &[0x08, 0x00], payload].concat()
}

impl Streamed {
    fn send(&mut self, parts: &[&[u8]]) {
        self.driver.add(TRANSMIT, parts, &[]);
        self.driver.kick(TRANSMIT);
    }

    fn sent(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.peer.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.peer.read_exact(&mut frame).unwrap();
        frame
    }

    fn come(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.peer.write_all(&[&length, frame].concat()).unwrap();
    }

    fn link_status(&self) -> u8 {
        let mut status = [0];
        self.net.read_config(6, &mut status);
        status[0]
    }
}

#[test]
fn frames_pass_both_ways_over_a_stream() {
    let mut net = streamed(MERGE);
    let own = frame(MAC, b"hello");
    net.send(&[&[0; HEADER], &own[..3], &own[3..]]);
    assert_eq!(net.sent(), own);
    assert_eq!(net.driver.wait_used(TRANSMIT).written, 0);

    net.driver.add(RECEIVE, &[], &[1500]);
    net.driver.kick(RECEIVE);
    let theirs = frame([2, 0, 0, 0, 0, 1], b"answer");
    net.come(&theirs);
    let answer = net.driver.wait_used(RECEIVE);
    assert_eq!(answer.written as usize, HEADER + theirs.len());
    // One buffer (5.1.6.4), no flags.
    assert_eq!(answer.data[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(answer.data[HEADER..][..theirs.len()], theirs);
    net.net.reset();
}

#[test]
fn a_limit_holds_each_way_and_loses_nothing() {
    // A tenth of a second's worth is there at once: 2,000 bytes.
    let limits = NetLimits {
        receive_bytes: Some(20_000),
        transmit_bytes: Some(20_000),
    };
    let mut net = limited(MERGE, &limits);
    let own = frame(MAC, &[7; 986]);
    let start = Instant::now();
    for _ in 0..6 {
        net.send(&[&[0; HEADER], &own]);
    }
    for _ in 0..6 {
        assert_eq!(net.sent(), own);
    }
    // The last one waits until the debt of the third and the fourth is paid.
    assert!(start.elapsed() >= Duration::from_millis(100));

    let theirs = frame([2, 0, 0, 0, 0, 1], &[9; 986]);
    for _ in 0..6 {
        net.driver.add(RECEIVE, &[], &[1500]);
    }
    net.driver.kick(RECEIVE);
    let start = Instant::now();
    for _ in 0..6 {
        net.come(&theirs);
    }
    for _ in 0..6 {
        let answer = net.driver.wait_used(RECEIVE);
        assert_eq!(answer.data[HEADER..][..theirs.len()], theirs);
    }
    assert!(start.elapsed() >= Duration::from_millis(100));
    net.net.reset();
}

#[test]
fn a_long_frame_is_spread_over_buffers_that_arrive_together() {
    let mut net = streamed(MERGE);
    let long = frame([2, 0, 0, 0, 0, 1], &[7; 4000]);
    net.come(&long);
    for _ in 0..3 {
        net.driver.add(RECEIVE, &[], &[1526]);
    }
    net.driver.kick(RECEIVE);
    let parts = [(); 3].map(|()| net.driver.wait_used(RECEIVE));
    assert_eq!(parts[0].data[10..12], [3, 0]);
    let whole: Vec<u8> = parts
        .iter()
        .flat_map(|part| part.data[..part.written as usize].to_vec())
        .collect();
    assert_eq!(whole[HEADER..], long);
    net.net.reset();
}

#[test]
fn without_merging_a_frame_that_its_buffer_does_not_hold_is_dropped() {
    let mut net = streamed(0);
    net.driver.add(RECEIVE, &[], &[100]);
    net.driver.kick(RECEIVE);
    net.come(&frame([2; 6], &[1; 200]));
    let short = frame([2; 6], b"short");
    net.come(&short);
    let answer = net.driver.wait_used(RECEIVE);
    assert_eq!(answer.data[HEADER..][..short.len()], short);
    net.net.reset();
}

#[test]
fn a12_a_flood_from_outside_neither_stops_the_queues_nor_keeps_the_guest_from_sending() {
    let (mut net, mut driver, peer) = tapped(MERGE);
    let flood = [&[0; HEADER][..], &frame([2; 6], &[3; 1400])].concat();
    peer.set_nonblocking(true).unwrap();
    // As many as are taken while the guest gives no buffer at all.
    let mut waiting = 0;
    while peer.send(&flood).is_ok() {
        waiting += 1;
    }
    peer.set_nonblocking(false).unwrap();
    let own = [&[0; HEADER][..], &frame(MAC, b"still here")].concat();
    driver.add(TRANSMIT, &[&own], &[]);
    driver.kick(TRANSMIT);
    let mut seen = [0; 100];
    let length = peer.recv(&mut seen).unwrap();
    assert_eq!(seen[..length], own);

    for _ in 0..waiting {
        driver.add(RECEIVE, &[], &[1526]);
        driver.kick(RECEIVE);
        assert_eq!(driver.wait_used(RECEIVE).written as usize, flood.len());
    }
    peer.send(&flood[..100]).unwrap();
    driver.add(RECEIVE, &[], &[1526]);
    driver.kick(RECEIVE);
    assert_eq!(driver.wait_used(RECEIVE).written, 100);
    net.reset();
}

#[test]
fn more_than_a_round_from_a_stream_arrives_without_a_further_event() {
    let mut net = streamed(MERGE);
    // Fewer than the socket holds, as the device need not take them before the guest does.
    for index in 0..100 {
        net.come(&frame([2; 6], &[index]));
    }
    for index in 0..100 {
        net.driver.add(RECEIVE, &[], &[1526]);
        net.driver.kick(RECEIVE);
        let answer = net.driver.wait_used(RECEIVE);
        assert_eq!(answer.data[HEADER + 14], index);
    }
    net.net.reset();
}

#[test]
fn a20_frames_from_another_mac_are_dropped() {
    let mut net = streamed(MERGE);
    net.send(&[&[0; HEADER], &frame([2, 0, 0, 0, 0, 8], b"spoofed")]);
    let own = frame(MAC, b"own");
    net.send(&[&[0; HEADER], &own]);
    assert_eq!(net.sent(), own);
    net.net.reset();
}

#[test]
fn a_peer_that_does_not_read_stalls_the_guest_and_loses_nothing() {
    let mut net = streamed(MERGE);
    let long = frame(MAC, &[9; 60_000]);
    // Buffers of a socket hold fewer, so one of them is cut in the middle.
    for _ in 0..50 {
        net.driver.add(TRANSMIT, &[&[0; HEADER], &long], &[]);
    }
    net.driver.kick(TRANSMIT);
    for _ in 0..50 {
        assert_eq!(net.sent(), long);
    }
    for _ in 0..50 {
        net.driver.wait_used(TRANSMIT);
    }
    net.net.reset();
}

#[test]
fn malformed_frames_are_taken_and_dropped() {
    let mut net = streamed(MERGE);
    let endless = vec![0; MAX_FRAME + 1];
    let gso = [1, 1, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0];
    let own = frame(MAC, b"own");
    for parts in [
        &[&[][..]][..],
        &[&[0; HEADER]],
        &[&[0; HEADER], &own[..13]],
        &[&[0; HEADER], &own[..12], &endless],
        &[&gso, &own],
    ] {
        net.send(parts);
        assert_eq!(net.driver.wait_used(TRANSMIT).written, 0);
    }
    // More buffers than one system call takes.
    let table = net.driver.allocate(16 * 1024);
    let at = net.driver.allocate(32);
    for index in 0..1024u16 {
        let flags = if index == 1023 { 0 } else { NEXT };
        let place = table + 16 * u64::from(index);
        write_descriptor(&net.driver.memory, place, (at, 32, flags, index + 1));
    }
    net.driver
        .add_buffers(TRANSMIT, &[(table, 16 * 1024, INDIRECT)]);
    net.driver.kick(TRANSMIT);
    net.driver.wait_used(TRANSMIT);
    net.send(&[&[0; HEADER], &own]);
    assert_eq!(net.sent(), own);
    net.net.reset();
}

#[test]
fn a04_a_broken_queue_stops_the_device_and_nothing_else() {
    let mut net = streamed(MERGE);
    net.driver.add_buffers(TRANSMIT, &[(MEMORY, 64, 0)]);
    net.driver.kick(TRANSMIT);
    while !net.driver.interrupt.is_reset_needed() {
        net.driver.wait_interrupt();
    }
    net.net.reset();
    let driver = FakeDriver::new(&PAIR_SIZES);
    net.net.activate(driver.context(MERGE)).unwrap();
    net.driver = driver;
    let own = frame(MAC, b"again");
    net.send(&[&[0; HEADER], &own]);
    assert_eq!(net.sent(), own);

    net.driver.add_buffers(RECEIVE, &[(MEMORY, 64, WRITE)]);
    net.driver.kick(RECEIVE);
    net.come(&own);
    while !net.driver.interrupt.is_reset_needed() {
        net.driver.wait_interrupt();
    }
    net.net.reset();
}

#[test]
fn a_stream_that_ends_or_makes_no_sense_is_a_pulled_cable() {
    for last_words in [&b""[..], &[0xff; 4], &[0, 0, 0, 3]] {
        let mut net = streamed(MERGE);
        assert_eq!(net.link_status(), 1);
        net.peer.write_all(last_words).unwrap();
        net.peer.shutdown(std::net::Shutdown::Both).unwrap();
        // Bit 1: the configuration changed.
        while net.driver.wait_interrupt() & 2 == 0 {}
        assert_eq!(net.link_status(), 0);
        net.send(&[&[0; HEADER], &frame(MAC, b"into the void")]);
        net.driver.wait_used(TRANSMIT);
        net.net.reset();
    }
}

#[test]
fn offloads_pass_where_they_were_negotiated() {
    let (mut net, mut driver, peer) = tapped(MERGE | 1 << VIRTIO_NET_F_CSUM);
    let header = [1, 0, 0, 0, 0, 0, 14, 0, 2, 0, 0, 0];
    let own = [&header[..], &frame(MAC, b"checksum please")].concat();
    driver.add(TRANSMIT, &[&own], &[]);
    driver.kick(TRANSMIT);
    let mut seen = [0; 100];
    let length = peer.recv(&mut seen).unwrap();
    assert_eq!(seen[..length], own);

    // To a guest that did not accept the same, a frame without checksum is of no use.
    peer.send(&own).unwrap();
    let plain = [&[0; HEADER][..], &frame([2; 6], b"plain")].concat();
    peer.send(&plain).unwrap();
    driver.add(RECEIVE, &[], &[1526]);
    driver.kick(RECEIVE);
    assert_eq!(driver.wait_used(RECEIVE).written as usize, plain.len());
    net.reset();
}

#[test]
fn the_configuration_says_what_it_was_given() {
    let (net, ..) = tapped(0);
    let mut space = [0xff; 16];
    net.read_config(0, &mut space);
    assert_eq!(space[..6], MAC);
    assert_eq!(space[6..], [1, 0, 1, 0, 0xdc, 0x05, 0, 0, 0, 0]);
    assert_ne!(net.features() & 1 << VIRTIO_NET_F_GUEST_CSUM, 0);
    let refused = |mac, mtu| {
        let (ours, _peer) = UnixStream::pair().unwrap();
        let config = NetConfig {
            mac,
            mtu,
            ..config(NetLink::Stream)
        };
        Net::new(
            &config,
            &NetRates::default(),
            vec![ours.as_fd().try_clone_to_owned().unwrap()],
        )
        .is_err()
    };
    assert!(refused([3, 0, 0, 0, 0, 1], 1500));
    assert!(refused([0; 6], 1500));
    assert!(refused(MAC, 67));
    assert!(!refused(MAC, 68));
}
