//! Several pairs of queues: which of them are served, and that walls, limits and counters are one.

use std::sync::Mutex;

use super::super::backend::{Incoming, Outgoing};
use super::*;

const FEATURES: u64 = MERGE | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
const PAIRS: usize = 3;
/// Where the driver finds it.
const CONTROL: usize = 2 * PAIRS;

/// A queue of a TAP device as the kernel has it, but for the ioctl.
struct Queue {
    tap: Tap,
    number: usize,
    attached: Arc<Mutex<Vec<usize>>>,
}

impl Backend for Queue {
    fn features(&self) -> u64 {
        self.tap.features()
    }

    fn receive(&mut self) -> io::Result<Incoming<'_>> {
        self.tap.receive()
    }

    fn taken(&mut self) {
        self.tap.taken();
    }

    fn send(&mut self, frame: Outgoing<'_, '_>) -> io::Result<()> {
        self.tap.send(frame)
    }

    fn attach(&mut self, attached: bool) -> io::Result<()> {
        let mut all = self.attached.lock().unwrap();
        all.retain(|&number| number != self.number);
        if attached {
            all.push(self.number);
            all.sort_unstable();
        }
        Ok(())
    }
}

impl std::os::fd::AsRawFd for Queue {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.tap.as_raw_fd()
    }
}

struct Multiple {
    net: Net,
    driver: FakeDriver,
    peers: Vec<UnixDatagram>,
    attached: Arc<Mutex<Vec<usize>>>,
}

fn multiple(limits: &NetLimits, features: u64) -> Multiple {
    let attached = Arc::new(Mutex::new((0..PAIRS).collect()));
    let mut peers = Vec::new();
    let queue = |number| -> Box<dyn Backend> {
        let (ours, peer) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peers.push(peer);
        Box::new(Queue {
            tap: Tap::new(ours.into(), true),
            number,
            attached: attached.clone(),
        })
    };
    let backends = (0..PAIRS).map(queue).collect();
    let link = NetLink::Tap { udp_offload: true };
    let mut net = Net::over(&config(link), &NetRates::new(limits), backends).unwrap();
    let driver = FakeDriver::new(net.queue_max_sizes());
    net.activate(driver.context(features)).unwrap();
    Multiple {
        net,
        driver,
        peers,
        attached,
    }
}

impl Multiple {
    /// The device's answer to a command on a queue.
    fn command(&mut self, queue: usize, parts: &[&[u8]]) -> Vec<u8> {
        self.driver.add(queue, parts, &[1]);
        self.driver.kick(queue);
        self.driver.wait_used(queue).data
    }

    fn set_pairs(&mut self, count: u16) -> Vec<u8> {
        self.command(CONTROL, &[&[4, 0], &count.to_le_bytes()])
    }

    fn send(&mut self, pair: usize, frame: &[u8]) {
        self.driver
            .add(2 * pair + TRANSMIT, &[&[0; HEADER], frame], &[]);
        self.driver.kick(2 * pair + TRANSMIT);
        self.driver.wait_used(2 * pair + TRANSMIT);
    }

    fn sent(&self, pair: usize) -> Vec<u8> {
        let mut frame = [0; 2000];
        let length = self.peers[pair].recv(&mut frame).unwrap();
        frame[HEADER..length].to_vec()
    }

    fn come(&mut self, pair: usize, frame: &[u8]) -> Vec<u8> {
        self.peers[pair]
            .send(&[&[0; HEADER], frame].concat())
            .unwrap();
        self.driver.add(2 * pair + RECEIVE, &[], &[1526]);
        self.driver.kick(2 * pair + RECEIVE);
        let answer = self.driver.wait_used(2 * pair + RECEIVE);
        answer.data[HEADER..answer.written as usize].to_vec()
    }

    fn attached(&self) -> Vec<usize> {
        self.attached.lock().unwrap().clone()
    }
}

#[test]
fn every_pair_in_use_carries_frames_and_the_walls_are_the_same() {
    let mut net = multiple(&NetLimits::default(), FEATURES);
    let mut pairs = [0; 2];
    net.net.read_config(8, &mut pairs);
    assert_eq!(pairs, [3, 0]);
    assert_eq!(net.set_pairs(3), [0]);
    assert_eq!(net.attached(), [0, 1, 2]);
    let (own, theirs) = (frame(MAC, b"own"), frame([2; 6], b"theirs"));
    for pair in 0..PAIRS {
        net.send(pair, &frame([2, 0, 0, 0, 0, 8], b"spoofed"));
        net.send(pair, &own);
        assert_eq!(net.sent(pair), own);
        assert_eq!(net.come(pair, &theirs), theirs);
    }
    let traffic = net.net.meter().traffic();
    assert_eq!((traffic.ins, traffic.outs), (3, 3));
    net.net.reset();
}

#[test]
fn a_pair_that_is_not_in_use_is_silent_both_ways() {
    let mut net = multiple(&NetLimits::default(), FEATURES);
    let (own, theirs) = (frame(MAC, b"own"), frame([2; 6], b"theirs"));
    // One pair, until the driver says more.
    net.send(1, &own);
    net.peers[1].set_nonblocking(true).unwrap();
    assert!(net.peers[1].recv(&mut [0; 100]).is_err());
    net.peers[1].set_nonblocking(false).unwrap();
    assert_eq!(net.set_pairs(2), [0]);
    assert_eq!(net.attached(), [0, 1]);
    assert_eq!(net.come(1, &theirs), theirs);

    assert_eq!(net.set_pairs(1), [0]);
    assert_eq!(net.attached(), [0]);
    net.peers[1].send(&[7; 100]).unwrap();
    net.driver.add(2, &[], &[1526]);
    net.driver.kick(2);
    // The worker has seen the kick when it has served what came after it.
    net.send(1, &own);
    assert_eq!(net.driver.used(2), None);
    net.send(0, &own);
    assert_eq!(net.sent(0), own);
    net.net.reset();
}

#[test]
fn a20_commands_that_make_no_sense_are_answered_with_an_error() {
    let mut net = multiple(&NetLimits::default(), FEATURES);
    assert_eq!(net.set_pairs(2), [0]);
    for count in [0, 4, u16::MAX] {
        assert_eq!(net.set_pairs(count), [1], "{count}");
    }
    let commands: [&[&[u8]]; 6] = [
        &[&[4, 1], &[2, 0]],
        &[&[0, 0], &[1, 0]],
        &[&[4, 0]],
        &[&[4, 0], &[2, 0, 0]],
        &[&[]],
        &[&[4; 4096]],
    ];
    for command in commands {
        assert_eq!(net.command(CONTROL, command), [1], "{command:?}");
    }
    // One that leaves no room for the answer.
    net.driver.add(CONTROL, &[&[4, 0], &[1, 0]], &[]);
    net.driver.kick(CONTROL);
    assert_eq!(net.driver.wait_used(CONTROL).written, 0);
    // What made no sense changed nothing; the last one did.
    assert_eq!(net.attached(), [0]);
    // A broken queue stops that worker, and reset goes on all the same.
    net.driver.add_buffers(CONTROL, &[(MEMORY, 64, 0)]);
    net.driver.kick(CONTROL);
    while !net.driver.interrupt.is_reset_needed() {
        net.driver.wait_interrupt();
    }
    net.net.reset();
    net.driver = FakeDriver::new(net.net.queue_max_sizes());
    net.net.activate(net.driver.context(FEATURES)).unwrap();
    assert_eq!(net.set_pairs(3), [0]);
    net.net.reset();
}

#[test]
fn a_driver_without_the_feature_has_one_pair_and_no_others_frames_are_lost() {
    let mut net = multiple(&NetLimits::default(), MERGE | 1 << VIRTIO_NET_F_CTRL_VQ);
    assert_eq!(net.attached(), [0]);
    // Right after the pair.
    assert_eq!(net.command(2, &[&[4, 0], &[2, 0]]), [1]);
    let own = frame(MAC, b"own");
    net.send(0, &own);
    assert_eq!(net.sent(0), own);
    net.net.reset();
}

#[test]
fn pairs_share_a_limit() {
    let limits = NetLimits {
        receive_bytes: None,
        transmit_bytes: Some(20_000),
    };
    let mut net = multiple(&limits, FEATURES);
    assert_eq!(net.set_pairs(3), [0]);
    let own = frame(MAC, &[7; 986]);
    let start = Instant::now();
    for pair in [0, 1, 2, 0, 1, 2] {
        net.send(pair, &own);
        assert_eq!(net.sent(pair), own);
    }
    assert!(start.elapsed() >= Duration::from_millis(100));
    net.net.reset();
}

#[test]
fn descriptors_that_make_no_device_are_refused() {
    let socket = || -> OwnedFd { UnixDatagram::pair().unwrap().0.into() };
    let tap = NetLink::Tap { udp_offload: true };
    for (link, count) in [
        (tap.clone(), 0),
        (tap, usize::from(MAX_PAIRS) + 1),
        (NetLink::Stream, 2),
    ] {
        let descriptors = (0..count).map(|_| socket()).collect();
        let made = Net::new(&config(link), &NetRates::default(), descriptors);
        assert!(matches!(made, Err(NetError::Pairs(refused)) if refused == count));
    }
}
