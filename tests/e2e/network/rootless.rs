//! Networks of an ordinary user: a passt for each machine, a switch between those of one network, and ports that are
//! sockets of supervisors.

use std::{
    fs,
    io::Read,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Stdio,
    thread,
};

use predicates::str::contains;

use super::{SERVER, greeting, remove, start, world, world::World};
use crate::{
    command::{bytes, pillbug, processes, program, told},
    user::{ID, User},
};

/// Looks after what the user has running.
impl User {
    /// Whatever of it is there while containers run: processes, leases and sockets of switches.
    fn left(&self) -> Vec<String> {
        let of_networks = ["leases", "switches"]
            .map(|name| self.state().join("network").join(name))
            .into_iter()
            .flat_map(|folder| fs::read_dir(folder).expect("it is there"))
            .map(|entry| {
                entry
                    .expect("it can be listed")
                    .path()
                    .display()
                    .to_string()
            });
        let running = self.processes();
        let of_processes = running.iter().map(|(pid, line)| format!("{pid}: {line}"));
        of_networks.chain(of_processes).collect()
    }

    /// Its processes, each with its command line.
    fn processes(&self) -> Vec<(i32, String)> {
        let is_its = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.contains(&format!("\nUid:\t{ID}\t"))
        };
        let line = |pid: i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        };
        fs::read_dir("/proc")
            .expect("/proc is mounted")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(is_its)
            .filter_map(line)
            .collect()
    }

    /// Kills those whose command line has this in it, and waits until they are gone.
    fn kill(&self, what: &str) {
        let found: Vec<i32> = self
            .processes()
            .into_iter()
            .filter(|(_, line)| line.contains(what))
            .map(|(pid, _)| pid)
            .collect();
        assert!(world::kill_all(&found) > 0, "no {what}");
    }

    /// Waits for the end of every process: each ends with another's end, a moment later.
    fn nothing_is_left(&self) {
        let all: Vec<i32> = self.processes().into_iter().map(|(pid, _)| pid).collect();
        world::wait_for_end(&all);
        // A command looks after the networks first.
        self.does(&["network", "ls"]);
        assert_eq!(self.left(), Vec::<String>::new());
    }
}

/// Prints whom it asks, where that is answered by [`SERVER`]. The other side ends the connection: this one's input does not.
const ASK: &str = "mkfifo /tmp/open; exec 3<>/tmp/open; \
    ask() { nc -w 3 $1 80 <&3 2> /dev/null | grep -q hello && echo $1; };";

/// Says who asks, at ports 80 and 81 over TCP and at 53 over UDP.
const SERVICE: &str = "
import socket, threading
tcp = [socket.create_server(('', port)) for port in (80, 81)]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('', 53))
def serve(server):
    while True:
        link, peer = server.accept()
        link.sendall(f'{server.getsockname()[1]} {peer[0]}'.encode())
        link.close()
for server in tcp:
    threading.Thread(target=serve, args=(server,)).start()
print('ready', flush=True)
while True:
    packet, peer = udp.recvfrom(65535)
    udp.sendto(packet.upper(), peer)
";

#[test]
fn a63_ports_behind_passt_are_sockets_of_the_supervisor() {
    let world = World::new();
    let flags = [
        "--network",
        "user",
        "-p",
        "18080:80",
        "-p",
        "0.0.0.0:18081-18082:80-81",
    ];
    let more = [
        "-p",
        "18083:9",
        "-p",
        "18053:53/udp",
        "-p",
        "[::1]:18080:80",
    ];
    let run = ["python", "python3", "-c", SERVICE];
    start("behind", &[&flags[..], &more, &run].concat());
    let mut logs = std::process::Command::new(program())
        .args(["logs", "-f", "behind"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut ready = [0; 6];
    let output = logs.stdout.as_mut().expect("it is a pipe");
    output.read_exact(&mut ready).expect("it says so");

    let local = |port: u16| greeting(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let from_outside = |port: u16| {
        let at = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 1), port));
        world.outside(move || greeting(at)).ok()
    };
    assert_eq!(local(18080).expect("it answers"), "80 10.0.2.15");
    let six = greeting(SocketAddr::from((Ipv6Addr::LOCALHOST, 18080)));
    assert_eq!(six.expect("it answers"), "80 10.0.2.15");
    assert_eq!(local(18082).expect("it answers"), "81 10.0.2.15");
    assert_eq!(from_outside(18081).as_deref(), Some("80 10.0.2.15"));
    assert_eq!(from_outside(18080), None);
    // Where nobody is at the port, nothing is said.
    assert_eq!(local(18083).unwrap_or_default(), "");

    let peers = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a port is free"));
    let long = "x".repeat(20_000);
    for (peer, text) in peers.iter().zip(["one", &long]) {
        peer.set_read_timeout(Some(world::PATIENCE))
            .expect("it can be set");
        peer.send_to(text.as_bytes(), "127.0.0.1:18053")
            .expect("it goes");
    }
    for (peer, text) in peers.iter().zip(["one", &long]) {
        let mut answer = vec![0; 65_535];
        let length = peer.recv(&mut answer).expect("it is answered");
        assert_eq!(answer[..length], *text.to_uppercase().as_bytes());
    }

    // The machine's own device saw none of them.
    let stats = ["stats", "--no-stream", "--format", "{{.NetIO}}", "behind"];
    let seen = told(&stats);
    let (received, sent) = seen.trim().split_once(" / ").expect("both directions");
    for size in [received, sent] {
        assert!((20e3..30e3).contains(&bytes(size)), "{seen}");
    }

    // More at once than one turn of anything takes.
    let many: Vec<_> = (0..64)
        .map(|_| TcpStream::connect("127.0.0.1:18080").expect("it is open"))
        .collect();
    for mut one in many {
        let mut text = String::new();
        one.read_to_string(&mut text).expect("it is answered");
        assert_eq!(text, "80 10.0.2.15");
    }

    pillbug()
        .args(["port", "behind", "53/udp"])
        .assert()
        .success()
        .stdout("127.0.0.1:18053\n");
    pillbug()
        .args(["ps", "--format", "{{.Ports}}"])
        .assert()
        .stdout(contains("0.0.0.0:18082->81/tcp"));
    let user = ["run", "--rm", "--network", "user", "-p", "18080:80"];
    pillbug()
        .args(user)
        .args(["busybox", "true"])
        .assert()
        .code(125)
        .stderr(contains("container \"behind\""));
    world::kill_all(&processes());
    assert!(TcpListener::bind("127.0.0.1:18080").is_ok());
    assert!(UdpSocket::bind("127.0.0.1:18053").is_ok());
    let _ = logs.wait();
    remove(&["behind"]);
}

#[test]
fn a20_containers_without_root_find_each_other_and_nobody_else() {
    let world = World::new();
    let user = User::new();
    for server in ["198.51.100.9", "169.254.169.254", "192.168.7.7"] {
        let listener = world.outside(move || TcpListener::bind((server, 80)).expect("it is free"));
        world::greet(listener);
    }
    for own in ["0.0.0.0:8886", "127.0.0.1:8885"] {
        world::greet(TcpListener::bind(own).expect("it is free"));
    }
    user.does(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "10.77.0.0/24",
        "app",
    ]);
    user.does(&[
        "network",
        "create",
        "--internal",
        "--subnet",
        "10.78.0.0/24",
        "vault",
    ]);
    let serve = ["busybox", "sh", "-c", SERVER];
    let db = ["run", "-d", "--name", "db", "--network", "app"];
    let flags = ["--network-alias", "data", "-p", "18100:80"];
    user.does(&[&db[..], &flags, &serve].concat());
    let hidden = ["run", "-d", "--name", "hidden", "--network", "vault"];
    user.does(&[&hidden[..], &serve].concat());

    let script = "until grep -q ':0050 .* 0A ' /proc/net/tcp /proc/net/tcp6; do :; done";
    for name in ["db", "hidden"] {
        user.does(&["exec", name, "sh", "-c", script]);
    }
    let on = |network, script: &str| {
        let run = ["run", "--rm", "--network", network];
        user.command(&[&run[..], &["busybox", "sh", "-c", script]].concat())
    };
    let ask = format!(
        "{ASK} for at in db data db.app hidden 10.78.0.2 10.77.0.1 198.51.100.9 169.254.169.254 192.168.7.7; \
         do ask $at; done; nc -w 3 203.0.113.1 8886 <&3; \
         ask $(nslookup -type=aaaa db | grep -o 'fd[0-9a-f:]*::2$') | cut -c 1-2"
    );
    let seen = on("app", &ask).output().expect("it runs").stdout;
    let seen = String::from_utf8_lossy(&seen);
    assert_eq!(seen, "db\ndata\ndb.app\n198.51.100.9\nfd\n");
    let ask = format!("{ASK} ask 198.51.100.9; ask db; ask hidden; :");
    on("vault", &ask).assert().success().stdout("hidden\n");
    // Of the host, what its neighbours reach, and only by who asked for it.
    let host = "host.docker.internal";
    let to_host = |network, script: &str| {
        let add = format!("{host}:host-gateway");
        let run = ["run", "--rm", "--network", network, "--add-host", &add];
        user.command(&[&run[..], &["busybox", "sh", "-c", script]].concat())
    };
    let ask = format!("{ASK} nc -w 3 {host} 8886 <&3; nc -w 3 {host} 8885 <&3; ask 192.168.7.7; :");
    for network in ["app", "user"] {
        to_host(network, &ask).assert().success().stdout("hello\n");
    }
    to_host("vault", &ask)
        .assert()
        .code(125)
        .stderr(contains("a way out by this host"));
    let published = greeting(SocketAddr::from((Ipv4Addr::LOCALHOST, 18100)));
    assert_eq!(published.expect("it answers"), "hello\n");

    // Without its switch a container is not what it was; it ends and says so, and one that starts has a new one.
    user.kill("switch-process app");
    let waited = user.told(&["wait", "db"]);
    assert_eq!(waited, "125\n");
    let format = ["inspect", "-f", "{{.State.Error}}", "db"];
    let why = user.told(&format);
    assert!(why.contains("the switch of network \"app\" ended"), "{why}");
    user.does(&["start", "db"]);
    let ask = format!("{ASK} until ask db; do :; done");
    on("app", &ask).assert().success().stdout("db\n");

    // Whoever of them is killed, nothing stays.
    user.kill("supervise");
    user.nothing_is_left();
    assert!(TcpListener::bind("127.0.0.1:18100").is_ok());
    user.does(&["rm", "-f", "db", "hidden"]);
    user.does(&["network", "rm", "app", "vault"]);
}

#[test]
fn a51_nothing_is_left_of_many_at_once_without_root() {
    let _world = World::new();
    let user = User::new();
    user.does(&["network", "create", "busy"]);
    let starts: Vec<_> = (0..10)
        .map(|number| {
            thread::spawn(move || {
                let name = format!("many{number}");
                let network = ["user", "busy"][number % 2];
                let run = ["run", "--rm", "--name", &name, "--network", network];
                User.does(&[&run[..], &["-m", "64m", "busybox", "true"]].concat());
            })
        })
        .collect();
    for start in starts {
        start.join().expect("it started");
    }
    user.nothing_is_left();
    assert_eq!(user.told(&["ps", "-aq"]), "");
    user.does(&["network", "rm", "busy"]);
}
