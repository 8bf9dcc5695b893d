//! Tests of the name service: answers without a network, servers on loopback, a connection as the agent makes it.

use std::{net::UdpSocket, sync::mpsc};

use domain::{
    base::{Message, MessageBuilder, Name, Rtype, iana::Rcode},
    rdata::AllRecordData,
};

use super::{
    super::{definition, lease},
    answer::{Answer, Known, answer},
    *,
};

fn query(name: &str, rtype: Rtype) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec().question();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let name: Name<Vec<u8>> = name.parse().unwrap();
    builder.push((name, rtype)).unwrap();
    builder.finish()
}

/// The code of an answer, and its records in words.
fn said(answer: &[u8]) -> (Rcode, Vec<String>) {
    let message = Message::from_octets(answer).unwrap();
    assert!(message.header().qr());
    let records = message.answer().unwrap();
    let mut found: Vec<String> = records
        .limit_to::<AllRecordData<_, _>>()
        .map(|record| record.unwrap().data().to_string())
        .collect();
    found.sort();
    (message.header().rcode(), found)
}

fn ask(name: &str, rtype: Rtype, is_all: bool) -> Answer {
    let mut db = lease::example("db", "app", [10, 213, 1, 2]);
    db.id = "0123456789abcdef0123".into();
    db.ip6 = Some("fd00::2".parse().unwrap());
    db.aliases = vec!["data".into(), "pool".into()];
    let mut other = lease::example("web", "app", [10, 213, 1, 3]);
    other.aliases = vec!["Pool".into()];
    let mut dead = lease::example("gone", "app", [10, 213, 1, 4]);
    dead.aliases = vec!["pool".into()];
    let foreign = lease::example("foreign", "else", [10, 213, 2, 2]);
    let known = Known {
        leases: &[db, other, dead, foreign],
        networks: &[definition::example("app", 1)],
        is_all,
        is_alive: &|lease| lease.name != "gone",
    };
    answer(&query(name, rtype), &known, Transport::Packets)
}

fn answered(name: &str, rtype: Rtype) -> (Rcode, Vec<String>) {
    match ask(name, rtype, false) {
        Answer::Message(message) => said(&message),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn containers_are_found_by_name_alias_and_id_in_both_families() {
    for name in ["db", "DB", "data", "0123456789ab", "db.app", "data.APP"] {
        let found = (Rcode::NOERROR, vec!["10.213.1.2".to_owned()]);
        assert_eq!(answered(name, Rtype::A), found, "{name}");
    }
    let found = (Rcode::NOERROR, vec!["fd00::2".to_owned()]);
    assert_eq!(answered("db", Rtype::AAAA), found);
    assert_eq!(
        answered("pool", Rtype::A).1,
        ["10.213.1.2", "10.213.1.3"],
        "all who share an alias, but for the dead"
    );
}

#[test]
fn a_name_without_an_address_of_that_family_exists_all_the_same() {
    assert_eq!(answered("web", Rtype::AAAA), (Rcode::NOERROR, vec![]));
    assert_eq!(answered("web", Rtype::MX), (Rcode::NOERROR, vec![]));
}

#[test]
fn addresses_have_names_and_those_of_nobody_stay_here() {
    let found = (Rcode::NOERROR, vec!["db.app.".to_owned()]);
    assert_eq!(answered("2.1.213.10.in-addr.arpa", Rtype::PTR), found);
    let nobody = answered("77.1.213.10.in-addr.arpa", Rtype::PTR);
    assert_eq!(nobody, (Rcode::NXDOMAIN, vec![]));
    let elsewhere = ask("1.0.0.127.in-addr.arpa", Rtype::PTR, false);
    assert_eq!(elsewhere, Answer::Elsewhere);
}

#[test]
fn a20_names_of_others_are_asked_elsewhere_or_do_not_exist() {
    for name in ["foreign", "gone", "example.com", "db.else", "abc.db"] {
        assert_eq!(ask(name, Rtype::A, false), Answer::Elsewhere, "{name}");
        let Answer::Message(message) = ask(name, Rtype::A, true) else {
            panic!("{name} is asked elsewhere");
        };
        assert_eq!(said(&message), (Rcode::NXDOMAIN, vec![]));
    }
}

#[test]
fn what_is_no_question_is_an_error_or_nothing() {
    let known = Known {
        leases: &[],
        networks: &[],
        is_all: true,
        is_alive: &|_| true,
    };
    let rcode = |message: &[u8]| match answer(message, &known, Transport::Packets) {
        Answer::Message(answer) => Some(said(&answer).0),
        Answer::Silence => None,
        Answer::Elsewhere => panic!("asked elsewhere"),
    };
    let good = query("db", Rtype::A);
    for length in 0..good.len() {
        let code = rcode(&good[..length]);
        assert!(matches!(code, None | Some(Rcode::FORMERR)), "{length}");
    }
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(rcode(&response), None);
    let mut status = good.clone();
    status[2] |= 0x10;
    assert_eq!(rcode(&status), Some(Rcode::NOTIMP));
    // A name that points at itself.
    let mut endless = good;
    endless[12..14].copy_from_slice(&[0xc0, 12]);
    assert_eq!(rcode(&endless), Some(Rcode::FORMERR));
}

#[test]
fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
    let leases: Vec<_> = (2..200)
        .map(|last| {
            let mut lease = lease::example("many", "app", [10, 213, 1, last]);
            lease.aliases = vec!["pool".into()];
            lease
        })
        .collect();
    let known = Known {
        leases: &leases,
        networks: &[definition::example("app", 1)],
        is_all: false,
        is_alive: &|_| true,
    };
    let length = |message: &[u8], transport| match answer(message, &known, transport) {
        Answer::Message(answer) => {
            let is_cut = Message::from_octets(&answer[..]).unwrap().header().tc();
            (is_cut, said(&answer).1.len(), answer.len())
        }
        other => panic!("{other:?}"),
    };
    let plain = query("pool", Rtype::A);
    assert!(length(&plain, Transport::Packets).0);
    assert!(length(&plain, Transport::Packets).2 <= 512);
    assert_eq!(length(&plain, Transport::Connection).1, 198);
    let mut builder = MessageBuilder::new_vec().question();
    builder
        .push(("pool".parse::<Name<Vec<u8>>>().unwrap(), Rtype::A))
        .unwrap();
    let mut builder = builder.additional();
    builder
        .opt(|opt| {
            opt.set_udp_payload_size(u16::MAX);
            Ok(())
        })
        .unwrap();
    let with_edns = builder.finish();
    let (is_cut, records, bytes) = length(&with_edns, Transport::Packets);
    assert_eq!((is_cut, records), (false, 198));
    assert!(bytes <= 4096);
}

#[test]
fn servers_are_asked_in_turn_and_only_the_asked_one_is_believed() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let refused = silent.local_addr().unwrap();
    // Nobody listens there any more.
    drop(silent);
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    let (sender, ids) = mpsc::channel();
    let answering = thread::spawn(move || {
        let mut buffer = [0; 512];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        let asked = Message::from_octets(&buffer[..length]).unwrap();
        sender.send(asked.header().id()).unwrap();
        let answer = MessageBuilder::new_vec()
            .start_answer(&asked, Rcode::NXDOMAIN)
            .unwrap()
            .finish();
        let mut forged = answer.clone();
        forged[0] ^= 1;
        server.send_to(&forged, from).unwrap();
        server.send_to(&answer, from).unwrap();
    });
    let message = query("example.com", Rtype::A);
    let answer = upstream::ask_each(&message, &[refused, at], Transport::Packets).unwrap();
    answering.join().unwrap();
    assert_eq!(said(&answer).0, Rcode::NXDOMAIN);
    assert_eq!(answer[..2], message[..2], "the ID is the machine's again");
    ids.recv().unwrap();
}

#[test]
fn a_connection_is_answered_until_its_end() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("leases")).unwrap();
    let held = lease::hold(folder.path(), lease::example("db", "app", [10, 213, 1, 2])).unwrap();
    let names = Names::new(
        folder.path(),
        Scope {
            networks: vec![definition::example("app", 1)],
            upstream: None,
        },
    );
    let (mut machine, ours) = UnixStream::pair().unwrap();
    names.serve(ours, Transport::Packets);
    let mut round = |name: &str| {
        let message = query(name, Rtype::A);
        let length = u16::try_from(message.len()).unwrap().to_be_bytes();
        machine
            .write_all(&[&length, &message[..]].concat())
            .unwrap();
        let mut prefix = [0; 2];
        machine.read_exact(&mut prefix).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(prefix))];
        machine.read_exact(&mut answer).unwrap();
        said(&answer)
    };
    assert_eq!(round("db"), (Rcode::NOERROR, vec!["10.213.1.2".into()]));
    held.release();
    assert_eq!(round("db"), (Rcode::NXDOMAIN, vec![]));
}
