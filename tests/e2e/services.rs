//! Services from real images, as their users drive them: in the background, at a port of the host, with a health
//! check and their data on a volume.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    command::{pillbug, told},
    supervision::{Events, field, send},
};

/// `run -d` with a check every few seconds; what it returns tells of the container's health.
fn serve(name: &str, check: &str, arguments: &[&str]) -> Events {
    let events = Events::of(name);
    let run = ["run", "-d", "--name", name, "--health-cmd", check];
    told(&[&run[..], &["--health-interval", "3s"], arguments].concat());
    events
}

/// What a server at that port of the host answers. It closes the connection itself.
fn ask(port: u16, question: &str) -> String {
    let connected = TcpStream::connect(("127.0.0.1", port));
    let mut server = connected.expect("the port leads into the container");
    server
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("it takes a limit");
    server
        .write_all(question.as_bytes())
        .expect("it can be written to");
    let mut answer = String::new();
    server.read_to_string(&mut answer).expect("it answers");
    answer
}

fn get(port: u16) -> String {
    ask(port, "GET / HTTP/1.0\r\n\r\n")
}

/// The container and its volume.
fn remove(name: &str, volume: &str) {
    told(&["rm", "-f", "-v", name]);
    assert_eq!(told(&["volume", "rm", volume]), format!("{volume}\n"));
}

#[test]
fn nginx_serves_from_a_volume_also_after_a_restart() {
    let check = "bash -c '< /dev/tcp/127.0.0.1/80'";
    let mut events = serve(
        "web",
        check,
        &["-p", "8080:80", "-v", "site:/var/www/html", "nginx"],
    );
    events.until("health_status: healthy");
    let page = get(8080);
    assert!(page.contains("Welcome to nginx!"), "{page}");
    let script = "echo changed > /var/www/html/index.html; cat /proc/1/comm; stat -c %U /proc/[0-9]* 2> /dev/null | sort -u";
    assert_eq!(
        told(&["exec", "web", "sh", "-c", script]),
        "nginx\nroot\nwww-data\n"
    );
    assert!(get(8080).ends_with("\r\n\r\nchanged\n"));
    told(&["restart", "web"]);
    events.until("health_status: healthy");
    assert!(get(8080).ends_with("\r\n\r\nchanged\n"));
    // It ends by itself at the signal that its image names.
    told(&["stop", "-t", "60", "web"]);
    assert_eq!(field("web", "{{.State.ExitCode}}"), "0");
    let logs = told(&["logs", "web"]);
    assert_eq!(logs.matches("\"GET / HTTP/1.0\" 200").count(), 3, "{logs}");
    remove("web", "site");
}

#[test]
fn redis_comes_back_with_its_data_when_its_machine_is_killed() {
    let flags = ["--restart", "unless-stopped", "-p", "6379:6379"];
    let server = ["redis-server", "--bind", "0.0.0.0", "--appendonly", "yes"];
    let image = ["-v", "cached:/data", "redis"];
    let unprotected = ["--protected-mode", "no"];
    let arguments = [&flags[..], &image, &server, &unprotected].concat();
    let mut events = serve("cache", "redis-cli ping | grep -q PONG", &arguments);
    events.until("health_status: healthy");
    assert_eq!(ask(6379, "SET a 1\r\nQUIT\r\n"), "+OK\r\n+OK\r\n");
    let script = "redis-cli incr a; id -un; stat -c %U appendonlydir";
    assert_eq!(
        told(&["exec", "cache", "sh", "-c", script]),
        "2\nredis\nredis\n"
    );
    send(&field("cache", "{{.State.Pid}}"), Signal::SIGKILL);
    events.until("health_status: healthy");
    assert_eq!(ask(6379, "GET a\r\nQUIT\r\n"), "$1\r\n2\r\n+OK\r\n");
    assert_eq!(field("cache", "{{.RestartCount}}"), "1");
    told(&["stop", "-t", "60", "cache"]);
    assert_eq!(field("cache", "{{.State.ExitCode}}"), "0");
    let logs = told(&["logs", "cache"]);
    for (line, times) in [("Ready to accept", 2), ("bye bye", 1)] {
        assert_eq!(logs.matches(line).count(), times, "{logs}");
    }
    remove("cache", "cached");
}

#[test]
fn a_java_server_runs_from_a_volume_and_ends_in_order() {
    let check = "bash -c '< /dev/tcp/127.0.0.1/8080'";
    let flags = [
        "-p",
        "8088:8080",
        "-v",
        "classes:/srv",
        "--ulimit",
        "nofile=4096",
    ];
    let server = ["openjdk", "java", "-Xint", "Server"];
    let mut events = serve("jvm", check, &[&flags[..], &server].concat());
    events.until("health_status: healthy");
    let answer = get(8088);
    assert!(answer.ends_with("hello from Java 17\n"), "{answer}");
    let script = "id -u; ls; tr '\\0' ' ' < /proc/1/cmdline";
    assert_eq!(
        told(&["exec", "jvm", "sh", "-c", script]),
        "65534\nServer.class\nServer.java\njava -Xint Server "
    );
    told(&["restart", "-t", "60", "jvm"]);
    events.until("health_status: healthy");
    assert!(get(8088).ends_with("hello from Java 17\n"));
    assert_eq!(
        told(&["logs", "jvm"]),
        "listening on port 8080\nstopped\nlistening on port 8080\n"
    );
    told(&["stop", "-t", "60", "jvm"]);
    assert_eq!(field("jvm", "{{.State.ExitCode}}"), "143");
    remove("jvm", "classes");
}

#[test]
fn a51_postgresql_keeps_its_data_on_a_volume() {
    let query = |sql: &str| {
        told(&[
            "exec",
            "db",
            "psql",
            "-U",
            "postgres",
            "template1",
            "-tAc",
            sql,
        ])
    };
    let data = ["--network", "none", "-v", "pgdata:/srv/pg", "pgready"];
    let check = "pg_isready -q";
    // The volume is filled with the database that the image has there.
    let mut events = serve("db", check, &data);
    events.until("health_status: healthy");
    query("create table t as select generate_series(1, 1000) i");
    let script =
        "stat -c '%U %a' /srv/pg /srv/pg/PG_VERSION; touch /srv/pg/x && rm /srv/pg/x; id -un";
    assert_eq!(
        told(&["exec", "-u", "postgres", "db", "sh", "-c", script]),
        "postgres 700\npostgres 600\npostgres\n"
    );
    send(&field("db", "{{.State.Pid}}"), Signal::SIGKILL);
    assert_eq!(told(&["wait", "db"]), "137\n");
    told(&["start", "db"]);
    events.until("health_status: healthy");
    assert_eq!(query("select sum(i) from t"), "500500\n");
    query("insert into t values (500)");
    told(&["stop", "-t", "60", "db"]);
    assert_eq!(field("db", "{{.State.ExitCode}}"), "0");
    let logs = pillbug().args(["logs", "db"]).assert().success();
    let logs = String::from_utf8_lossy(&logs.get_output().stderr).into_owned();
    for line in [
        "automatic recovery in progress",
        "database system is shut down",
    ] {
        assert_eq!(logs.matches(line).count(), 1, "{logs}");
    }
    told(&["rm", "db"]);
    let mut events = serve("db", check, &data);
    events.until("health_status: healthy");
    assert_eq!(query("select sum(i) from t"), "501000\n");
    pillbug().args(["volume", "rm", "pgdata"]).assert().code(1);
    remove("db", "pgdata");
}
