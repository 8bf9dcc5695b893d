//! Networks of the host's interfaces, which containers are hosts of.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::Path,
};

use predicates::str::contains;

use super::world::{self, World};
use super::{
    SERVER, exec, greeting, network, nothing_is_left, remove, spoof, start, wait_for_server,
};
use crate::command::{pillbug, processes};

#[test]
fn a20_a_macvlan_network_is_that_of_its_parent_where_a_container_is_nobody_but_itself() {
    let world = World::new();
    // Behind the router one that is the host's, and one that is not.
    world::host(
        "set -e; ip -n outside addr add fd00:113::2/64 dev out1 nodad; \
         ip -n outside addr add 2001:db8:7::9/128 dev lo; ip addr add 2001:db8:7::1/128 dev lo",
    );
    for server in [
        "203.0.113.2",
        "198.51.100.9",
        "169.254.169.254",
        "2001:db8:7::9",
    ] {
        let listener = world.outside(move || TcpListener::bind((server, 80)).expect("it is free"));
        world::greet(listener);
    }
    world::greet(TcpListener::bind("0.0.0.0:8887").expect("it is free"));
    let create = ["network", "create", "-d", "macvlan", "-o"];
    pillbug()
        .args(create)
        .args(["parent=nowhere", "--subnet", "203.0.113.0/24", "lan"])
        .assert()
        .failure()
        .stderr(contains("\"nowhere\" cannot be the parent"));
    let subnet = ["--subnet", "203.0.113.0/24", "--gateway", "203.0.113.2"];
    let range = ["--ip-range", "203.0.113.64/26", "lan"];
    let six = ["--subnet", "fd00:113::/64", "--gateway", "fd00:113::2"];
    network(&[&create[1..], &["parent=out0"], &subnet, &six, &range].concat());

    let serve = ["busybox", "sh", "-c", SERVER];
    start(
        "peer",
        &[&["--network", "lan", "-p", "18110:80"][..], &serve].concat(),
    );
    let outside = world::capture("out0");
    let run = [
        "--network",
        "lan",
        "--privileged",
        "python",
        "sleep",
        "1000",
    ];
    start("open", &run);
    wait_for_server("peer");
    let seen = exec(
        "open",
        "for at in 203.0.113.2 198.51.100.9 2001:db8:7::9 peer 169.254.169.254 2001:db8:7::1 203.0.113.1; do port=80; \
         [ $at = 203.0.113.1 ] && port=8887; \
         timeout 4 bash -c \"exec 3<>/dev/tcp/$at/$port && cat <&3\" > /dev/null 2>&1 && echo $at; done",
    );
    assert_eq!(seen, "203.0.113.2\n198.51.100.9\n2001:db8:7::9\npeer\n");
    let peer = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 64), 80));
    let six = SocketAddr::from((Ipv6Addr::new(0xfd00, 0x113, 0, 0, 0, 0, 0, 0x40), 80));
    for at in [peer, six] {
        let found = world.outside(move || greeting(at));
        assert_eq!(found.expect("it is a host there"), "hello\n", "{at}");
    }
    let published = greeting((Ipv4Addr::LOCALHOST, 18110).into());
    assert_eq!(published.expect("it answers"), "hello\n");

    let spoofed = [
        "10.213.0.99",
        "02:99:00:00:00:01",
        ".67 >",
        "router advertisement",
        "10.213.0.1 is-at",
        "169.254.169.254",
        "2001:db8:7::1.80",
    ];
    let frames = spoof("open", outside, &spoofed);
    for seen in ["203.0.113.65", "> 2001:db8:7::9.80"] {
        assert!(frames.contains(seen), "{frames}");
    }

    // Such a device stays when nobody has it open; whoever looks at networks removes it.
    world::kill_all(&processes());
    network(&["ls"]);
    nothing_is_left();
    assert!(Path::new("/sys/class/net/out0").exists());
    remove(&["peer", "open"]);
    network(&["rm", "lan"]);
    world::host("ip addr del 2001:db8:7::1/128 dev lo");
}
