//! Guests that break the protocol (acceptance 9): reset, bounded, and the device goes on.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use proptest::prelude::*;

use super::guest::{GUEST_BUFFER, GUEST_CID, Guest, data, packet, shutdown};
use crate::virtio::vsock::connection::BUFFER;
use crate::virtio::vsock::mux::MAX_CONNECTIONS;
use crate::virtio::vsock::packet::{
    HOST_CID, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op,
};

/// Sends on an open connection, and asserts that this resets it and the host sees its end.
fn assert_resets_connection(header: &Header, payload: &[u8]) {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    guest.send(header, payload);
    guest.assert_reset(1000);
    assert_eq!(host.read(&mut [0; 16]).unwrap(), 0);
    guest.connect(1000);
}

#[test]
fn a09_packets_without_a_connection_are_reset() {
    let mut guest = Guest::new(16);
    let refused = [
        Header {
            dst_port: 77,
            ..packet(1, op::REQUEST)
        },
        Header {
            dst_cid: 5,
            ..packet(2, op::REQUEST)
        },
        Header {
            src_cid: 9,
            ..packet(3, op::REQUEST)
        },
        Header {
            kind: 2,
            ..packet(4, op::REQUEST)
        },
        Header {
            kind: 0xffff,
            ..packet(5, op::REQUEST)
        },
        Header {
            len: 1,
            ..packet(6, op::REQUEST)
        },
        packet(7, op::RW),
        packet(8, op::SHUTDOWN),
        packet(9, op::CREDIT_REQUEST),
        packet(10, 0),
        packet(11, 0xffff),
    ];
    for header in refused {
        guest.send(&header, &[]);
        let (answer, _) = guest.next();
        assert_eq!(answer.op, op::RST, "{header:?}");
        assert_eq!(answer.src_cid, header.dst_cid);
        assert_eq!(
            (answer.src_port, answer.dst_port),
            (header.dst_port, header.src_port)
        );
        assert_eq!(answer.kind, header.kind);
    }
    assert!(guest.host_end().is_none());
}

#[test]
fn a09_resets_are_not_answered() {
    let mut guest = Guest::new(16);
    guest.send(&packet(1, op::RST), &[]);
    guest.send(
        &Header {
            dst_cid: 9,
            ..packet(1, op::RST)
        },
        &[],
    );
    let _host = guest.connect(1000);
    guest.assert_quiet(1000);
}

#[test]
fn a09_short_header_is_dropped() {
    let mut guest = Guest::new(16);
    guest.send_bytes(&[1; Header::SIZE - 1], &[]);
    guest.connect(1000);
}

#[test]
fn a09_header_may_be_split_anywhere() {
    let mut guest = Guest::new(16);
    let bytes = packet(1000, op::REQUEST).encode();
    guest.send_bytes(&bytes[..7], &bytes[7..]);
    assert_eq!(guest.next().0.op, op::RESPONSE);
}

#[test]
fn a09_lengths_that_lie_reset_the_connection() {
    assert_resets_connection(&data(1000, 101), &[0; 100]);
    assert_resets_connection(&data(1000, u32::MAX as usize), &[0; 100]);
    let with_length = |op| Header {
        len: 4,
        ..packet(1000, op)
    };
    assert_resets_connection(&with_length(op::SHUTDOWN), &[0; 4]);
    assert_resets_connection(&with_length(op::CREDIT_UPDATE), &[0; 4]);
}

#[test]
fn a09_wrong_operations_reset_the_connection() {
    assert_resets_connection(&packet(1000, op::REQUEST), &[]);
    assert_resets_connection(&packet(1000, op::RESPONSE), &[]);
    assert_resets_connection(&packet(1000, 99), &[]);
}

#[test]
fn a09_impossible_forward_count_resets_the_connection() {
    assert_resets_connection(
        &Header {
            fwd_cnt: 1,
            ..packet(1000, op::CREDIT_UPDATE)
        },
        &[],
    );
}

#[test]
fn a09_data_after_shutdown_resets_the_connection() {
    let mut guest = Guest::new(16);
    let _host = guest.connect(1000);
    guest.send(&shutdown(1000, SHUTDOWN_SEND), &[]);
    guest.send(&data(1000, 1), &[0]);
    guest.assert_reset(1000);
}

#[test]
fn a09_wrong_cid_does_not_touch_the_connection_of_the_same_ports() {
    let mut guest = Guest::new(16);
    let _host = guest.connect(1000);
    guest.send(
        &Header {
            dst_cid: 7,
            ..packet(1000, op::RW)
        },
        &[],
    );
    assert_eq!(guest.next().0.src_cid, 7);
    guest.assert_quiet(1000);
}

#[test]
fn a09_guest_that_ignores_credit_is_reset_and_its_data_bounded() {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    let chunk = [7; 32 << 10];
    let mut sent = 0;
    loop {
        guest.send(&data(1000, chunk.len()), &chunk);
        sent += chunk.len();
        if matches!(guest.try_next(), Some((header, _)) if header.op == op::RST) {
            break;
        }
    }
    // Whole packets up to the one that went too far: what the socket took, and the buffer.
    let mut received = Vec::new();
    host.read_to_end(&mut received).unwrap();
    assert_eq!(received.len() % chunk.len(), 0);
    assert!((BUFFER as usize..sent).contains(&received.len()));
}

#[test]
fn a09_one_packet_beyond_the_buffer_is_reset() {
    let payload = vec![0; BUFFER as usize + 1];
    assert_resets_connection(&data(1000, payload.len()), &payload);
}

#[test]
fn a09_shrunk_credit_stops_the_host_until_it_grows() {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    guest.send(
        &Header {
            buf_alloc: 3,
            ..packet(1000, op::CREDIT_UPDATE)
        },
        &[],
    );
    host.write_all(b"abcdef").unwrap();
    let (header, bytes) = guest.next();
    assert_eq!((header.op, bytes.as_slice()), (op::RW, &b"abc"[..]));
    assert_eq!(guest.next().0.op, op::CREDIT_REQUEST);
    // Shrunk below what is in flight already.
    guest.send(
        &Header {
            buf_alloc: 1,
            ..packet(1000, op::CREDIT_UPDATE)
        },
        &[],
    );
    guest.send(
        &Header {
            buf_alloc: 1,
            ..packet(1000, op::CREDIT_REQUEST)
        },
        &[],
    );
    assert_eq!(guest.next().0.op, op::CREDIT_UPDATE);
    guest.send(
        &Header {
            buf_alloc: 5,
            fwd_cnt: 1,
            ..packet(1000, op::CREDIT_UPDATE)
        },
        &[],
    );
    assert_eq!(guest.next().1, b"def");
}

#[test]
fn a09_unread_credit_of_4_gib_holds_nothing_on_the_host() {
    let mut guest = Guest::new(2);
    let request = Header {
        buf_alloc: u32::MAX,
        ..packet(1000, op::REQUEST)
    };
    guest.send(&request, &[]);
    assert_eq!(guest.take().0.op, op::RESPONSE);
    let mut host = guest.host_end().unwrap().1;
    host.set_nonblocking(true).unwrap();
    // The last buffer takes one packet; the rest stays in the socket, which fills up.
    let mut written = 0;
    let error = loop {
        match host.write(&[1; 4096]) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let mut read = guest.take().1.len();
    drop(host);
    while read < written {
        guest.add_buffers(1);
        read += guest.take().1.len();
    }
    assert_eq!(read, written);
}

#[test]
fn a09_flood_of_refused_packets_waits_for_buffers() {
    let mut guest = Guest::new(0);
    let mut refused = 0;
    for _ in 0..3 {
        for _ in 0..100 {
            guest.post(&Header {
                dst_port: 77,
                ..packet(1, op::REQUEST)
            });
        }
        refused += 100;
        if refused < 300 {
            for _ in 0..100 {
                guest.wait_taken();
            }
        }
    }
    // Every one is answered once there is room, in order, and the device still works.
    for _ in 0..refused {
        guest.add_buffers(1);
        assert_eq!(guest.take().0.op, op::RST);
    }
    guest.taken();
    guest.add_buffers(4);
    guest.connect(1000);
}

#[test]
fn a09_connections_are_limited() {
    let mut guest = Guest::new(16);
    let hosts: Vec<_> = (0..MAX_CONNECTIONS as u32)
        .map(|port| guest.connect(port))
        .collect();
    guest.send(&packet(9999, op::REQUEST), &[]);
    guest.assert_reset(9999);
    guest.send(&shutdown(5, SHUTDOWN_SEND | SHUTDOWN_RECEIVE), &[]);
    guest.assert_reset(5);
    guest.connect(9999);
    drop(hosts);
}

#[test]
fn a09_useless_receive_buffers_go_back_and_harm_nobody() {
    let mut guest = Guest::with_buffers(4, 0);
    let mut host = guest.connect(1000);
    host.write_all(b"x").unwrap();
    // There is no room for data, but for packets without any.
    guest.assert_quiet(1000);
}

#[test]
fn a09_credit_of_a_reset_connection_is_not_inherited() {
    let mut guest = Guest::new(16);
    let mut host = guest.connect(1000);
    host.write_all(&[1; 100]).unwrap();
    assert_eq!(guest.next().1.len(), 100);
    guest.send(&packet(1000, op::RST), &[]);
    let mut host = guest.connect(1000);
    let header = Header {
        buf_alloc: GUEST_BUFFER,
        ..data(1000, 4)
    };
    guest.send(&header, b"ping");
    let mut bytes = [0; 4];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
}

/// A packet that may be anything but is mostly close to what makes sense.
fn any_packet() -> impl Strategy<Value = (Header, Vec<u8>)> {
    let rarely = |right: u64| prop_oneof![9 => Just(right), 1 => any::<u64>()];
    let size = prop_oneof![4 => Just(0), 4 => 1..300_u32, 1 => any::<u32>()];
    let ports = (
        0..3_u32,
        prop_oneof![8 => Just(1), 1 => Just(2), 1 => any::<u32>()],
    );
    let counters = (any::<u32>(), prop_oneof![4 => Just(0), 1 => any::<u32>()]);
    (
        rarely(GUEST_CID.into()),
        rarely(HOST_CID),
        ports,
        rarely(u64::from(TYPE_STREAM)),
        prop_oneof![9 => 1..8_u16, 1 => any::<u16>()],
        size,
        0..8_u32,
        counters,
        any::<bool>(),
    )
        .prop_map(
            |(src_cid, dst_cid, ports, kind, op, len, flags, counters, honest)| {
                let header = Header {
                    src_cid,
                    dst_cid,
                    src_port: ports.0,
                    dst_port: ports.1,
                    len,
                    kind: kind as u16,
                    op,
                    flags,
                    buf_alloc: counters.0,
                    fwd_cnt: counters.1,
                };
                let length = if honest { len.min(70_000) } else { 100 };
                (header, vec![0x5a; length as usize])
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a09_any_packets_leave_a_device_that_works(
        packets in proptest::collection::vec((any_packet(), 0..8_u8), 1..120),
    ) {
        let mut guest = Guest::new(100);
        let mut hosts = Vec::new();
        for ((header, payload), action) in packets {
            guest.send(&header, &payload);
            while guest.try_next().is_some() {}
            hosts.extend(guest.host_end().map(|(_, host)| host));
            match (action, hosts.pop()) {
                (0, _) | (_, None) => {}
                (1, Some(host)) => {
                    let _ = host.shutdown(Shutdown::Write);
                    hosts.push(host);
                }
                (2, Some(mut host)) => {
                    host.set_nonblocking(true).unwrap();
                    let _ = host.write(&[0xa5; 5000]);
                    let _ = host.read(&mut [0; 5000]);
                    hosts.insert(0, host);
                }
                (_, Some(host)) => hosts.insert(0, host),
            }
        }
        guest.send(&packet(1000, op::REQUEST), &[]);
        while guest.next().0.dst_port != 1000 {}
        guest.send(&packet(1000, op::CREDIT_REQUEST), &[]);
        // Others may still have their turns.
        let answer = loop {
            let header = guest.next().0;
            if header.dst_port == 1000 {
                break header.op;
            }
        };
        prop_assert_eq!(answer, op::CREDIT_UPDATE);
    }
}
