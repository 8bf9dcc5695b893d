//! The device between a driver and a server of the tests, neither of which is to be trusted.

use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::request::{ANSWER_HEADER, HEADER, LONGEST};
use super::*;
use crate::virtio::fake::FakeDriver;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;

/// A device, its driver, and the other end of its socket.
struct Bench {
    fs: Fs,
    driver: FakeDriver,
    server: OwnedFd,
}

impl Bench {
    fn new() -> Self {
        let (ours, server) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let mut fs = Fs::new("shares", ours).unwrap();
        let driver = FakeDriver::new(&QUEUE_SIZES);
        fs.activate(driver.context(0)).unwrap();
        Self { fs, driver, server }
    }

    fn ask(&mut self, opcode: u32, unique: u64, writable: &[u32]) -> u16 {
        let request = request(opcode, unique);
        let head = self
            .driver
            .add(1, &[&request[..16], &request[16..], b"name\0"], writable);
        self.driver.kick(1);
        head
    }

    /// The next request as the server sees it, and what it is called there.
    fn seen(&self) -> (Vec<u8>, u64) {
        let mut buffer = vec![0; LONGEST];
        let length = recv(self.server.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        buffer.truncate(length);
        let name = u64::from_le_bytes(buffer[8..16].try_into().unwrap());
        (buffer, name)
    }

    fn say(&self, bytes: &[u8]) {
        send(self.server.as_raw_fd(), bytes, MsgFlags::empty()).unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.fs.reset();
    }
}

fn request(opcode: u32, unique: u64) -> [u8; HEADER] {
    let mut request = [0; HEADER];
    request[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    request[4..8].copy_from_slice(&opcode.to_le_bytes());
    request[8..16].copy_from_slice(&unique.to_le_bytes());
    request
}

fn answer(name: u64, data: &[u8]) -> Vec<u8> {
    let length = (ANSWER_HEADER + data.len()) as u32;
    let mut answer = length.to_le_bytes().to_vec();
    answer.extend(0u32.to_le_bytes());
    answer.extend(name.to_le_bytes());
    answer.extend(data);
    answer
}

/// The number and the unique name of an answer that has no data.
fn plain(data: &[u8]) -> (i32, u64) {
    (
        i32::from_le_bytes(data[4..8].try_into().unwrap()),
        u64::from_le_bytes(data[8..16].try_into().unwrap()),
    )
}

#[test]
fn answers_find_their_requests_in_any_order() {
    let mut bench = Bench::new();
    let heads = [
        bench.ask(LOOKUP, 7, &[16, 4]),
        bench.ask(LOOKUP, 7, &[16, 4]),
    ];
    let (first, second) = (bench.seen(), bench.seen());
    assert_ne!(first.1, second.1);
    assert_eq!(&first.0[HEADER..], b"name\0");
    let length = u32::from_le_bytes(first.0[..4].try_into().unwrap());
    assert_eq!(length as usize, first.0.len());

    bench.say(&answer(second.1, b"two"));
    bench.say(&answer(first.1, b"one"));

    let answers = [bench.driver.wait_used(1), bench.driver.wait_used(1)];
    assert_eq!(
        answers.each_ref().map(|answer| answer.head),
        [heads[1], heads[0]]
    );
    assert_eq!(answers[0].written, 19);
    assert_eq!(&answers[0].data[16..19], b"two");
    assert_eq!(plain(&answers[1].data), (0, 7));
}

#[test]
fn what_has_no_answer_is_given_back_at_once() {
    let mut bench = Bench::new();
    for (opcode, sent, written) in [
        (FORGET, true, 0),
        (DESTROY, true, 16),
        (INTERRUPT, false, 16),
    ] {
        bench.ask(opcode, 9, &[16]);
        assert_eq!(bench.driver.wait_used(1).written, written);
        if sent {
            assert_eq!(bench.seen().0[4], opcode as u8);
        }
    }
}

#[test]
fn a16_what_a_server_says_unasked_is_dropped() {
    let mut bench = Bench::new();
    bench.ask(LOOKUP, 1, &[32]);
    let (_, name) = bench.seen();
    bench.say(&answer(name + 1, b"other"));
    bench.say(&answer(name | 1 << 40, b"stale"));
    bench.say(b"short");
    let mut lies = answer(name, b"longer than it says");
    lies[0] = 16;
    bench.say(&lies);
    bench.say(&vec![0xff; LONGEST + 1]);
    bench.say(&answer(name, b"right"));
    bench.say(&answer(name, b"again"));
    let used = bench.driver.wait_used(1);
    assert_eq!(&used.data[16..21], b"right");
    bench.ask(INTERRUPT, 2, &[16]);
    assert_eq!(plain(&bench.driver.wait_used(1).data), (0, 2));
}

#[test]
fn an_answer_that_does_not_fit_is_an_error() {
    let mut bench = Bench::new();
    bench.ask(LOOKUP, 5, &[20]);
    let (_, name) = bench.seen();
    bench.say(&answer(name, b"more than there is room for"));
    let used = bench.driver.wait_used(1);
    assert_eq!(plain(&used.data), (-libc::EIO, 5));
    bench.ask(LOOKUP, 6, &[]);
    let (_, name) = bench.seen();
    bench.say(&answer(name, b""));
    assert_eq!(bench.driver.wait_used(1).written, 0);
}

#[test]
fn a04_requests_that_are_none_never_reach_the_server() {
    let mut bench = Bench::new();
    bench.driver.add(1, &[b"short"], &[16]);
    bench.driver.add(1, &[&vec![0; LONGEST + 1]], &[16]);
    bench.driver.add(0, &[], &[]);
    bench.driver.kick(1);
    bench.driver.kick(0);
    for _ in 0..2 {
        let used = bench.driver.wait_used(1);
        assert_eq!(plain(&used.data).0, -libc::EINVAL);
    }
    bench.driver.wait_used(0);
    bench.ask(LOOKUP, 3, &[16]);
    assert_eq!(bench.seen().0[4], LOOKUP as u8);
}

#[test]
fn a_server_that_dies_leaves_nobody_waiting() {
    let mut bench = Bench::new();
    bench.ask(LOOKUP, 1, &[16]);
    bench.seen();
    let (unconnected, _) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    bench.server = unconnected;
    assert_eq!(plain(&bench.driver.wait_used(1).data), (-libc::ENOTCONN, 1));
    bench.ask(LOOKUP, 2, &[16]);
    assert_eq!(plain(&bench.driver.wait_used(1).data), (-libc::ENOTCONN, 2));
}

#[test]
fn a_server_that_does_not_read_holds_nothing_but_its_own_requests() {
    let mut bench = Bench::new();
    let data = vec![0x5a; 64 << 10];
    for unique in 0..32 {
        let request = request(LOOKUP, unique);
        bench.driver.add(1, &[&request, &data], &[16]);
    }
    bench.driver.kick(1);
    for unique in 0..32 {
        let (seen, name) = bench.seen();
        assert_eq!(seen.len(), HEADER + data.len());
        bench.say(&answer(name, b""));
        assert_eq!(plain(&bench.driver.wait_used(1).data), (0, unique));
    }
}

#[test]
fn a_reset_forgets_what_was_asked() {
    let mut bench = Bench::new();
    bench.ask(LOOKUP, 1, &[16]);
    let (_, stale) = bench.seen();
    bench.fs.reset();
    bench.driver = FakeDriver::new(&QUEUE_SIZES);
    bench.fs.activate(bench.driver.context(0)).unwrap();
    bench.ask(LOOKUP, 2, &[32]);
    let (_, name) = bench.seen();
    bench.say(&answer(stale, b"stale"));
    bench.say(&answer(name, b"fresh"));
    assert_eq!(&bench.driver.wait_used(1).data[16..21], b"fresh");
}
