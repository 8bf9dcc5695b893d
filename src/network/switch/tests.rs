//! Machines on a switch in a thread: what reaches whom, and who holds up nobody.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread::JoinHandle,
};

use super::*;

const GATEWAY: [u8; 4] = [10, 213, 1, 1];

/// A switch in a thread, and who started it.
struct Network {
    folder: tempfile::TempDir,
    switch: JoinHandle<bool>,
    _starter: OwnedFd,
}

/// A machine, its passt, and who put it there.
struct Guest {
    number: u8,
    control: OwnedFd,
    machine: UnixStream,
    way_out: UnixStream,
}

fn network() -> Network {
    let folder = tempfile::tempdir().unwrap();
    let (listener, starter) = open(folder.path(), "app").unwrap();
    Network {
        folder,
        switch: process::thread::start(listener),
        _starter: starter,
    }
}

fn mac(number: u8) -> [u8; 6] {
    [2, 0x70, 10, 213, 1, number]
}

fn ip(number: u8) -> [u8; 4] {
    [10, 213, 1, number]
}

impl Network {
    fn join(&self, number: u8) -> Guest {
        let control = reach(self.folder.path(), "app").unwrap();
        let (machine, theirs) = UnixStream::pair().unwrap();
        let (way_out, passt) = UnixStream::pair().unwrap();
        let member = Member {
            mac: mac(number),
            addresses: vec![
                ip(number).into(),
                format!("fd00::{number}").parse().unwrap(),
            ],
            gateway: Some(GATEWAY.into()),
            denied: ["10.0.0.0/8", "169.254.0.0/16"]
                .map(|net| net.parse().unwrap())
                .into(),
        };
        let said = enter(&control, &member, &[theirs.as_fd(), passt.as_fd()]).unwrap();
        assert_eq!(said, JOINED);
        Guest {
            number,
            control,
            machine,
            way_out,
        }
    }

    fn end(self) {
        drop(self._starter);
        assert!(self.switch.join().unwrap());
    }
}

fn send(mut stream: &UnixStream, frame: &[u8]) {
    let length = u32::try_from(frame.len()).unwrap();
    stream
        .write_all(&[&length.to_be_bytes(), frame].concat())
        .unwrap();
}

fn receive(mut stream: &UnixStream) -> Vec<u8> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

fn frame(to: [u8; 6], from: [u8; 6], kind: u16, packet: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), packet].concat()
}

fn ipv4(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let fixed = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    [&fixed[..], &from, &to, payload].concat()
}

fn arp(kind: u8, mac: [u8; 6], from: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    [
        &[0, 1, 8, 0, 6, 4, 0, kind][..],
        &mac,
        &from,
        &[0; 6],
        &target,
    ]
    .concat()
}

fn ipv6(number: u8, hops: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let from: std::net::Ipv6Addr = format!("fd00::{number}").parse().unwrap();
    let fixed = [0x60, 0, 0, 0, 0, 0, next, hops];
    [&fixed[..], &from.octets(), &[0xff; 16], payload].concat()
}

const ALL: [u8; 6] = [0xff; 6];
/// What nobody on the network has: passt's, as far as anybody knows.
const PASST: [u8; 6] = [0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55];

impl Guest {
    /// A packet that may go.
    fn packet(&self, to: &Guest, payload: &[u8]) -> Vec<u8> {
        let packet = ipv4(ip(self.number), ip(to.number), payload);
        frame(mac(to.number), mac(self.number), 0x800, &packet)
    }
}

#[test]
fn a20_a_machine_reaches_its_neighbours_as_nobody_but_itself() {
    let network = network();
    let (one, two, three) = (network.join(2), network.join(3), network.join(4));
    let own = mac(2);
    let udp_from_67 = [0, 67, 0, 68, 0, 8, 0, 0];
    for spoofed in [
        frame(mac(3), mac(4), 0x800, &ipv4(ip(2), ip(3), b"")),
        frame(mac(3), own, 0x800, &ipv4(ip(4), ip(3), b"")),
        frame(mac(3), own, 0x800, &ipv4(GATEWAY, ip(3), b"")),
        frame(ALL, own, 0x806, &arp(2, own, GATEWAY, ip(3))),
        frame(ALL, own, 0x806, &arp(2, mac(4), ip(2), ip(3))),
        frame(ALL, own, 0x800, &ipv4(ip(2), [255; 4], &udp_from_67)),
        frame(ALL, own, 0x86dd, &ipv6(2, 255, 58, &[134, 0])),
        frame(ALL, own, 0x86dd, &ipv6(2, 255, 58, &[137, 0])),
        frame(ALL, own, 0x86dd, &ipv6(4, 64, 17, &[0; 8])),
        frame(ALL, own, 0x86dd, &ipv6(2, 64, 17, &[2, 35, 2, 34])),
        frame(ALL, own, 0x88cc, b"neither IP nor ARP"),
        frame(ALL, own, 0x8100, &[0; 40]),
        vec![0xff; 14],
    ] {
        send(&one.machine, &spoofed);
    }
    let honest = one.packet(&two, b"hello");
    send(&one.machine, &honest);
    assert_eq!(receive(&two.machine), honest);
    let question = frame(ALL, own, 0x806, &arp(1, own, ip(2), ip(4)));
    send(&one.machine, &question);
    assert_eq!(receive(&two.machine), question);
    assert_eq!(receive(&three.machine), question);

    // Nothing of that went out, nor does what the walls are for.
    for kept in [
        ipv4(ip(2), ip(77), b""),
        ipv4(ip(2), [169, 254, 169, 254], b""),
        ipv4(ip(2), GATEWAY, b""),
    ] {
        send(&one.machine, &frame(PASST, own, 0x800, &kept));
    }
    let six = ipv6(2, 64, 6, b"IPv6 ends here");
    send(&one.machine, &frame(PASST, own, 0x86dd, &six));
    let asked = frame(ALL, own, 0x806, &arp(1, own, ip(2), GATEWAY));
    let outward = frame(PASST, own, 0x800, &ipv4(ip(2), [192, 0, 2, 1], b"out"));
    send(&one.machine, &asked);
    send(&one.machine, &outward);
    assert_eq!(receive(&one.way_out), asked);
    assert_eq!(receive(&one.way_out), outward);
    let back = frame(own, PASST, 0x800, &ipv4([192, 0, 2, 1], ip(2), b"back"));
    send(&one.way_out, &back);
    assert_eq!(receive(&one.machine), back);
    drop((one, two, three));
    network.end();
}

#[test]
fn a12_who_does_not_read_holds_up_nobody_else() {
    let network = network();
    let (flooder, stalled, other) = (network.join(2), network.join(3), network.join(4));
    let long = flooder.packet(&stalled, &vec![0; 60_000]);
    // Twice what any queue on the way holds.
    for _ in 0..100 {
        send(&flooder.machine, &long);
    }
    let after = flooder.packet(&other, b"after");
    send(&flooder.machine, &after);
    assert_eq!(receive(&other.machine), after);
    let towards = other.packet(&flooder, b"and back");
    send(&other.machine, &towards);
    assert_eq!(receive(&flooder.machine), towards);
    // Its own way out has room all the same.
    let back = frame(mac(3), PASST, 0x800, &ipv4([192, 0, 2, 1], ip(3), b"back"));
    send(&stalled.way_out, &back);
    let mut seen = receive(&stalled.machine);
    while seen != back {
        assert_eq!(seen, long);
        seen = receive(&stalled.machine);
    }
    drop((flooder, stalled, other));
    network.end();
}

#[test]
fn a_line_that_breaks_ends_with_its_port_and_the_switch_with_the_last() {
    let network = network();
    let (broken, other) = (network.join(2), network.join(3));
    (&broken.machine)
        .write_all(&u32::MAX.to_be_bytes())
        .unwrap();
    assert_eq!((&broken.machine).read(&mut [0]).unwrap_or(0), 0);
    assert_eq!((&broken.way_out).read(&mut [0]).unwrap_or(0), 0);
    // One that comes again has its place.
    let again = network.join(2);
    let packet = other.packet(&again, b"hello");
    send(&other.machine, &packet);
    assert_eq!(receive(&again.machine), packet);

    // Without its way out it is not what it was, and is told.
    let membership = Membership {
        network: "app".into(),
        control: again.control,
    };
    drop(again.way_out);
    assert!(matches!(membership.hear(), NetworkError::WayOutLost(_)));
    let last = Membership {
        network: "app".into(),
        control: other.control.try_clone().unwrap(),
    };
    drop((broken, other.machine));
    let silent = reach(network.folder.path(), "app").unwrap();
    rustix::net::send(&silent, b"who am I", SendFlags::NOSIGNAL).unwrap();
    assert!(super::receive(silent.as_fd()).ok().flatten().is_none());
    drop(other.control);
    drop(last);
    network.end();
}

#[test]
fn sockets_go_with_the_last_lease_of_their_network() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(self::folder(folder.path())).unwrap();
    let (_listener, _control) = open(&self::folder(folder.path()), "app").unwrap();
    let lease = super::super::lease::example("web", "app", ip(2));
    sweep(folder.path(), &[lease]).unwrap();
    assert!(self::folder(folder.path()).join("app").exists());
    sweep(folder.path(), &[]).unwrap();
    assert!(!self::folder(folder.path()).join("app").exists());
}
