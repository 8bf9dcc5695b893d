//! Networks: who reaches whom, by which name, and what is left afterwards. The host has another one beside it: a network
//! namespace with addresses that a machine may reach and some that it may not.

mod database;
mod macvlan;
mod rootless;
mod world;

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use predicates::{prelude::*, str::contains};

use crate::command::{pillbug, processes, state_root, told};
use world::{Rules, World};

/// Starts a container in the background, on these networks.
fn start(name: &str, arguments: &[&str]) {
    pillbug()
        .args(["run", "-d", "--name", name])
        .args(arguments)
        .assert()
        .success();
}

/// What a container that goes at once prints.
fn ask(network: &str, script: &str) -> String {
    let assert = pillbug()
        .args([
            "run",
            "--rm",
            "--network",
            network,
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .assert()
        .success();
    String::from_utf8(assert.get_output().stdout.clone()).expect("output is text")
}

/// What a container that runs prints.
fn exec(name: &str, script: &str) -> String {
    let assert = pillbug()
        .args(["exec", name, "bash", "-c", script])
        .assert();
    String::from_utf8(assert.get_output().stdout.clone()).expect("output is text")
}

/// Has a container send as somebody else, with none of these to be seen there; all that is.
fn spoof(name: &str, there: world::Capture, spoofed: &[&str]) -> String {
    pillbug()
        .args(["exec", "-i", name, "python3", "-"])
        .write_stdin(include_str!("network/spoof.py"))
        .assert()
        .success()
        .stdout("sent\n");
    // What was sent last is from the machine itself: when that is through, all others had their chance.
    let frames = there.until("203.0.113.2.9999");
    for never in spoofed {
        assert!(!frames.contains(never), "{never} in {frames}");
    }
    frames
}

fn remove(names: &[&str]) {
    pillbug().args(["rm", "-f"]).args(names).assert().success();
}

fn network(arguments: &[&str]) -> String {
    let assert = pillbug().arg("network").args(arguments).assert().success();
    String::from_utf8(assert.get_output().stdout.clone()).expect("output is text")
}

/// Interfaces, leases and elements of rules that are a machine's.
fn left_on_the_host() -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir("/sys/class/net")
        .expect("there are interfaces")
        .chain(fs::read_dir(state_root().join("network/leases")).expect("there is the folder"))
        .map(|entry| entry.expect("it can be listed").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("pb-") || name.ends_with(".json"))
        .collect();
    let rules = world::host("nft list ruleset");
    found.extend(
        rules
            .lines()
            .filter(|line| line.contains("elements"))
            .map(str::to_owned),
    );
    found
}

/// Waits until nothing is: a machine's process may take a moment to let go of its device after all know of its end.
fn nothing_is_left() {
    let end = std::time::Instant::now() + world::PATIENCE;
    while !left_on_the_host().is_empty() {
        assert!(std::time::Instant::now() < end, "{:?}", left_on_the_host());
        thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// The first line that a server at that address sends, as the host sees it.
fn greeting(at: SocketAddr) -> std::io::Result<String> {
    let mut text = String::new();
    TcpStream::connect_timeout(&at, world::PATIENCE)?.read_to_string(&mut text)?;
    Ok(text)
}

/// A server that says hello at port 80, for as long as its container lives.
const SERVER: &str = "exec nc -ll -p 80 -e echo hello";

/// Waits until [`SERVER`] can be connected to.
fn wait_for_server(name: &str) {
    let script = "until grep -q ':0050 .* 0A ' /proc/net/tcp /proc/net/tcp6; do :; done";
    pillbug()
        .args(["exec", name, "sh", "-c", script])
        .assert()
        .success();
}

#[test]
fn containers_of_a_network_find_each_other_by_name() {
    let world = World::new();
    network(&["create", "app", "--ipv6", "--subnet", "10.77.0.0/24"]);
    network(&["create", "vault", "--internal", "--subnet", "10.78.0.0/24"]);
    // Answers every question with 192.0.2.7.
    let upstream = world.outside(|| UdpSocket::bind("203.0.113.2:53").expect("it is free"));
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = upstream.recv_from(&mut question) {
            let end = 12
                + question[12..length]
                    .iter()
                    .position(|byte| *byte == 0)
                    .unwrap_or(0)
                + 5;
            let mut answer = question[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
            let _ = upstream.send_to(&answer, from);
        }
    });

    let aliases = ["--network", "app", "--network-alias", "data"];
    start(
        "db",
        &[&aliases[..], &["busybox", "sh", "-c", SERVER]].concat(),
    );
    let run = [
        "--network",
        "name=app,alias=peer",
        "--network",
        "vault",
        "python",
        "sleep",
        "1000",
    ];
    start("web", &[&["--dns", "203.0.113.2"], &run[..]].concat());
    pillbug()
        .args(["exec", "-i", "web", "python3", "-"])
        .write_stdin(include_str!("network/names.py"))
        .assert()
        .success()
        .stdout(
            "nameserver 127.0.0.11\ndb 10.77.0.2\ndata 10.77.0.2\ndb.app 10.77.0.2\nDB 10.77.0.2\n\
             six fd hello\nfour hello\noutside 192.0.2.7\nback db.app\nown True\n",
        );

    // One that is made again is found where it is then.
    remove(&["db"]);
    let again = [
        "--network",
        "app",
        "--ip",
        "10.77.0.77",
        "busybox",
        "sh",
        "-c",
        SERVER,
    ];
    start("db", &again);
    wait_for_server("db");
    let found = exec("web", "getent ahostsv4 db; exec 3<>/dev/tcp/db/80; cat <&3");
    assert!(found.starts_with("10.77.0.77 "), "{found}");
    assert!(found.ends_with("hello\n"), "{found}");

    // Nobody is asked for the names of others where there is no way out.
    let inside = ask(
        "vault",
        "nslookup -type=a web; nslookup outside.example; nslookup -type=a db; :",
    );
    assert!(inside.contains("10.78.0."), "{inside}");
    assert!(
        !inside.contains("192.0.2.7") && !inside.contains("10.77.0."),
        "{inside}"
    );

    pillbug().args(["rename", "db", "data2"]).assert().success();
    let found = exec("web", "getent ahostsv4 data2; getent ahostsv4 db");
    // A line for each kind of socket.
    assert_eq!(found.matches("10.77.0.77 ").count(), 3, "{found}");
    assert!(found.starts_with("10.77.0.77 "), "{found}");
    pillbug().args(["rename", "data2", "db"]).assert().success();

    let inspected = network(&[
        "inspect",
        "-f",
        "{{range .Containers}}{{println .Name .IPv4Address}}{{end}}",
        "app",
    ]);
    assert!(inspected.contains("db 10.77.0.77/24"), "{inspected}");
    pillbug()
        .args(["network", "connect", "vault", "db"])
        .assert()
        .failure()
        .stderr(contains("is running"));
    pillbug()
        .args(["network", "rm", "app"])
        .assert()
        .failure()
        .stderr(contains("in use by container"));
    remove(&["db", "web"]);
    network(&["rm", "app", "vault"]);
    nothing_is_left();
}

#[test]
fn a20_a_machine_reaches_the_outside_and_none_of_the_walled_off() {
    let world = World::new();
    let servers = ["198.51.100.9", "169.254.169.254", "192.168.7.7"];
    for server in servers {
        let listener = world.outside(move || TcpListener::bind((server, 80)).expect("it is free"));
        world::greet(listener);
    }
    world::greet(TcpListener::bind("0.0.0.0:8888").expect("it is free"));
    start("other", &["busybox", "sh", "-c", SERVER]);
    // The machine's side of the walls, and the other one.
    let (inside, outside) = (world::capture("pillbug0"), world::capture("out0"));
    start(
        "open",
        &[
            "--add-host",
            "up:host-gateway",
            "--privileged",
            "python",
            "sleep",
            "1000",
        ],
    );

    let seen = exec(
        "open",
        "for at in 198.51.100.9/80 169.254.169.254/80 192.168.7.7/80 203.0.113.1/8888 10.213.0.2/80; do \
         timeout 4 bash -c \"exec 3<>/dev/tcp/$at && cat <&3\" 2> /dev/null && echo reached $at; done; \
         timeout 4 bash -c 'exec 3<>/dev/tcp/up/8888 && cat <&3' && echo reached up",
    );
    assert_eq!(seen, "hello\nreached 198.51.100.9/80\nhello\nreached up\n");

    let spoofed = [
        "10.213.0.99",
        "02:99:00:00:00:01",
        ".67 >",
        "router advertisement",
        "10.213.0.1 is-at 02:70",
    ];
    spoof("open", inside, &spoofed);
    let packets = outside.until("203.0.113.2.9999");
    assert!(packets.contains("198.51.100.9.80"), "{packets}");
    for never in ["169.254.169.254", "192.168.7.7", "198.51.100.9.9:"] {
        assert!(!packets.contains(never), "{never} in {packets}");
    }
    remove(&["other", "open"]);
    nothing_is_left();
}

#[test]
fn a63_published_ports_are_private_unless_asked_for_and_a59_stay_so_when_rules_are_flushed() {
    let world = World::new();
    let run = pillbug()
        .args([
            "run",
            "-d",
            "--name",
            "web",
            "-p",
            "18080:80",
            "-p",
            "0.0.0.0:18081:80",
            "-p",
            "[::]:18081:80",
            "--dns",
            "203.0.113.2",
        ])
        .args(["busybox", "sh", "-c", SERVER])
        .assert()
        .success();
    let said = String::from_utf8_lossy(&run.get_output().stderr).into_owned();
    assert!(said.contains("127.0.0.1:18080"), "{said}");
    let from_outside = |port: u16| {
        let at = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 1), port));
        world.outside(move || greeting(at)).ok()
    };
    let check = |when: &str| {
        let loopback = greeting(SocketAddr::from((Ipv4Addr::LOCALHOST, 18080)));
        assert_eq!(loopback.ok().as_deref(), Some("hello\n"), "{when}");
        let six = greeting(SocketAddr::from((Ipv6Addr::LOCALHOST, 18081)));
        assert_eq!(six.ok().as_deref(), Some("hello\n"), "{when}");
        assert_eq!(from_outside(18081).as_deref(), Some("hello\n"), "{when}");
        assert_eq!(from_outside(18080), None, "{when}");
    };
    wait_for_server("web");
    check("as started");
    pillbug()
        .args(["port", "web", "80"])
        .assert()
        .success()
        .stdout("127.0.0.1:18080\n0.0.0.0:18081\n[::]:18081\n");
    pillbug()
        .args(["ps", "--format", "{{.Names}} {{.Ports}}"])
        .assert()
        .stdout("web 127.0.0.1:18080->80/tcp, 0.0.0.0:18081->80/tcp, [::]:18081->80/tcp\n");
    pillbug()
        .args(["run", "--rm", "-p", "18080:80", "busybox", "true"])
        .assert()
        .code(125)
        .stderr(contains("container \"web\"").and(contains("18080")));

    for server in ["198.51.100.9", "192.168.7.7"] {
        let listener = world.outside(move || TcpListener::bind((server, 80)).expect("it is free"));
        world::greet(listener);
    }
    let (rules, wanted) = (world::rules(), Rules::now());
    // Others that come and go change elements alone: 12 and 14 are those, and 15 is the end of each change.
    assert_eq!(ask("bridge", "echo started"), "started\n");
    let changes = rules.changes();
    assert!(changes.contains(&14), "{changes:?}");
    assert!(
        changes.iter().all(|kind| [12, 14, 15].contains(kind)),
        "{changes:?}"
    );
    // Whatever is done to the walls, no start is needed to have them back.
    for harm in [
        "nft delete table bridge pillbug",
        "nft flush set bridge pillbug pins",
        "nft add table inet pillbug '{ flags dormant; }'",
        "nft add chain inet pillbug forward '{ policy drop; }'",
        "nft insert rule inet pillbug outward accept",
        "nft flush ruleset",
    ] {
        world::host(harm);
        rules.until(&wanted);
    }
    let reached = told(&[
        "exec",
        "web",
        "sh",
        "-c",
        "for at in '198.51.100.9 80' '192.168.7.7 80' '203.0.113.1 18081'; do
            nc -w 3 $at < /dev/null && echo reached $at; done; :",
    ]);
    assert_eq!(reached, "hello\nreached 198.51.100.9 80\n");
    check("with the rules that came back");
    remove(&["web"]);
    assert!(TcpListener::bind("127.0.0.1:18080").is_ok());
}

#[test]
fn a51_nothing_is_left_of_many_at_once_and_of_the_killed() {
    let _world = World::new();
    network(&["create", "busy", "--subnet", "10.79.0.0/24"]);
    let mounts = || fs::read_to_string("/proc/mounts").expect("/proc is mounted");
    let before = mounts();
    let starts: Vec<_> = (0..50)
        .map(|number| {
            thread::spawn(move || {
                let name = format!("many{number}");
                let network = ["bridge", "busy"][number % 2];
                pillbug()
                    .args(["run", "--rm", "--name", &name, "--network", network])
                    .args(["-m", "64m", "busybox", "true"])
                    .timeout(Duration::from_secs(1500))
                    .assert()
                    .success();
            })
        })
        .collect();
    for start in starts {
        start.join().expect("it started");
    }
    nothing_is_left();
    world::wait_for_end(&processes());
    assert_eq!(mounts(), before);
    assert_eq!(told(&["ps", "-aq"]), "");

    start(
        "victim",
        &[
            "--network",
            "busy",
            "-p",
            "18090:80",
            "busybox",
            "sleep",
            "1000",
        ],
    );
    let leases = || {
        fs::read_dir(state_root().join("network/leases"))
            .expect("it is there")
            .count()
    };
    assert_eq!(leases(), 1);
    let gone = world::kill_all(&processes());
    assert!(gone > 0);
    // Any command that has to do with networks clears it away.
    network(&["ls"]);
    nothing_is_left();
    remove(&["victim"]);
    network(&["rm", "busy"]);
    assert!(TcpListener::bind("127.0.0.1:18090").is_ok());
}

#[test]
fn a12_a_flood_of_packets_ends_and_the_interface_goes_on() {
    let _world = World::new();
    start("sink", &["--cpus", "2", "busybox", "sh", "-c", SERVER]);
    // A pair of queues for each processor.
    assert_eq!(
        told(&["exec", "sink", "ls", "/sys/class/net/eth0/queues"]),
        "rx-0\nrx-1\ntx-0\ntx-1\n"
    );
    let at = pillbug()
        .args(["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "sink"])
        .assert()
        .success();
    let ip: Ipv4Addr = String::from_utf8_lossy(&at.get_output().stdout)
        .trim()
        .parse()
        .expect("an address");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
    socket.set_nonblocking(true).expect("it can be set");
    let packet = [0; 1400];
    // More than any queue between here and the guest holds, as fast as they go.
    for _ in 0..50_000 {
        let _ = socket.send_to(&packet, (ip, 9));
    }
    assert_eq!(greeting((ip, 80).into()).expect("it answers"), "hello\n");
    remove(&["sink"]);
}

#[test]
fn what_a_container_sends_and_receives_is_limited() {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    // Takes all of the first connection and gives as much to the second; how long each took.
    let measured = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the container connects");
        let start = Instant::now();
        let taken = std::io::copy(&mut stream, &mut std::io::sink()).expect("it can be read");
        let sending = start.elapsed();
        // The container's `nc` waits for this.
        drop(stream);
        let (mut stream, _) = listener.accept().expect("the container connects again");
        let start = Instant::now();
        stream
            .write_all(&[0; 600 << 10])
            .expect("it can be written");
        drop(stream);
        (taken, sending, start)
    });
    let script = format!(
        "dd if=/dev/zero bs=1k count=600 2> /dev/null | nc up {port}; nc up {port} < /dev/null | wc -c"
    );
    let told = told(&[
        "run",
        "--rm",
        "--network",
        "bridge",
        "--add-host",
        "up:host-gateway",
        // Whatever queue a frame takes.
        "--cpus",
        "2",
        "--net-tx-rate",
        "200k",
        "--net-rx-rate",
        "300kb",
        "busybox",
        "sh",
        "-c",
        &script,
    ]);
    assert_eq!(told, "614400\n");
    let (taken, sending, start) = measured.join().expect("it does not panic");
    assert_eq!(taken, 614_400);
    // 600 KiB at 200 KiB a second and at 300, but for what is there at once.
    assert!(sending >= Duration::from_millis(2500), "{sending:?}");
    assert!(start.elapsed() >= Duration::from_millis(1600));

    pillbug()
        .args([
            "run",
            "--network",
            "none",
            "--net-tx-rate",
            "1m",
            "busybox",
            "true",
        ])
        .assert()
        .code(125)
        .stderr(contains("without a network"));
}

#[test]
fn on_the_network_of_the_host_a_container_has_its_address_and_no_walls() {
    let world = World::new();
    let listener = world.outside(|| TcpListener::bind(("192.168.7.7", 80)).expect("it is free"));
    world::greet(listener);
    world::greet(TcpListener::bind("127.0.0.1:8889").expect("it is free"));
    // With an end of what is sent, an older passt would not tell of the end of what is received.
    let script = "ip addr show eth0 | grep -o '203.0.113.1/24'
        sleep 3 | nc 192.168.7.7 80; sleep 3 | nc up 8889";
    let told = told(&[
        "run",
        "--rm",
        "--network",
        "host",
        "--add-host",
        "up:host-gateway",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(told, "203.0.113.1/24\nhello\nhello\n");
    pillbug()
        .args([
            "run",
            "--network",
            "host",
            "--network",
            "bridge",
            "busybox",
            "true",
        ])
        .assert()
        .code(125)
        .stderr(contains("network \"host\" cannot be one of several"));
}
