//! Volumes of an ordinary user, whose files in there are not all its own.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
    process::Command,
};

use nix::sys::signal::Signal;
use predicates::str::contains;

use crate::{
    command::bytes,
    supervision::{Events, send},
    user::{FIRST_OF_RANGE, HOME, ID, User},
};

/// Bytes of disk, as du(1) counts them.
fn disk_usage(path: &Path) -> f64 {
    let du = Command::new("du").args(["-sl", "-B1"]).arg(path).output();
    let said = String::from_utf8(du.expect("it runs").stdout).expect("it is text");
    let number = said.split_whitespace().next().expect("it says a number");
    number.parse().expect("it says a number")
}

#[test]
fn a51_postgresql_of_an_ordinary_user_keeps_its_data_and_their_owners() {
    let user = User::new();
    let _range = user.with_range();
    let query = |sql: &str| {
        let psql = ["exec", "db", "psql", "-U", "postgres", "template1", "-tAc"];
        user.told(&[&psql[..], &[sql]].concat())
    };
    let field = |field: &str| user.told(&["inspect", "-f", field, "db"]);
    let volumes = user.state().join("volumes");
    let check = ["--health-cmd", "pg_isready -q", "--health-interval", "3s"];
    let run = ["run", "-d", "--name", "db", "--network", "none"];
    let data = ["-v", "pgdata:/srv/pg", "pgready"];
    let run = [&run[..], &check, &data].concat();

    // The volume is filled with the database that the image has there, and its owners.
    let mut events = Events::told_by(user.process(&[]), "db");
    user.does(&run);
    events.until("health_status: healthy");
    query("create table t as select generate_series(1, 1000) i");
    let script = "stat -c '%U %a' /srv/pg /srv/pg/PG_VERSION; id -u; id -g";
    let exec = ["exec", "-u", "postgres", "db", "sh", "-c", script];
    let seen = user.told(&exec);
    let ids = seen
        .strip_prefix("postgres 700\npostgres 600\n")
        .expect("the owners are the image's");
    let ids: Vec<u32> = ids.lines().map(|id| id.parse().expect("an ID")).collect();
    let file = volumes.join("by-name/pgdata/_data/PG_VERSION");
    let file = fs::metadata(file).expect("root may");
    let of_range = |id: u32| FIRST_OF_RANGE + id - 1;
    assert_eq!(
        [file.uid(), file.gid()],
        [of_range(ids[0]), of_range(ids[1])]
    );

    send(field("{{.State.Pid}}").trim(), Signal::SIGKILL);
    assert_eq!(user.told(&["wait", "db"]), "137\n");
    user.does(&["start", "db"]);
    events.until("health_status: healthy");
    assert_eq!(query("select sum(i) from t"), "500500\n");
    query("insert into t values (500)");
    user.does(&["stop", "-t", "60", "db"]);
    assert_eq!(field("{{.State.ExitCode}}"), "0\n");

    // The user may not look into these folders, but what is in them can be counted and copied.
    let all = user.told(&["system", "df", "--format", "{{.Type}}={{.Size}}"]);
    let size = all
        .lines()
        .find_map(|line| line.strip_prefix("Local Volumes="));
    let size = bytes(size.expect("they are counted"));
    let real = disk_usage(&volumes.join("by-name"));
    assert!((size / real - 1.0).abs() < 0.02, "{size} of {real}");
    let copy = format!("{HOME}/version");
    user.does(&["cp", "db:/srv/pg/PG_VERSION", &copy]);
    assert_eq!(fs::read_to_string(&copy).expect("it is there"), "15\n");
    user.does(&["cp", &copy, "db:/srv/pg/copied"]);
    let copied = volumes.join("by-name/pgdata/_data/copied");
    assert_eq!(fs::read_to_string(copied).expect("it is there"), "15\n");

    // So they can be removed, with the container or after it.
    user.does(&["rm", "db"]);
    let pruned = user.told(&["volume", "prune", "-f"]);
    assert_eq!(pruned.lines().count(), 4, "{pruned}");
    user.does(&run);
    events.until("health_status: healthy");
    assert_eq!(query("select sum(i) from t"), "501000\n");
    user.does(&["rm", "-f", "-v", "db"]);
    assert_eq!(user.told(&["volume", "ls", "-q"]), "pgdata\n");
    assert_eq!(user.told(&["volume", "rm", "pgdata"]), "pgdata\n");
    let mut left = fs::read_dir(&volumes).expect("root may");
    assert!(left.all(|entry| entry.is_ok_and(|entry| entry.file_name() != "old")));
}

#[test]
fn without_a_range_every_file_is_the_users_own() {
    let user = User::new();
    let run = ["run", "--rm", "--network", "none"];
    let run = |arguments: &[&str]| user.command(&[&run[..], arguments].concat());
    let script = "stat -c '%u:%g' /etc/passwd; mkdir -m 777 /etc/open; \
                  mkdir -p /etc/mine/closed; chmod 0 /etc/mine; \
                  su -s /bin/sh www-data -c 'touch /etc/open/file'; chown 7 /etc/passwd";
    run(&["-v", "plain:/etc", "busybox", "sh", "-c", script])
        .assert()
        .code(1)
        .stdout("0:0\n")
        .stderr(contains("touch: /etc/open/file: Invalid argument"))
        .stderr(contains("chown: /etc/passwd: Invalid argument"));
    let data = user.state().join("volumes/by-name/plain/_data");
    let file = fs::metadata(data.join("passwd")).expect("root may");
    assert_eq!([file.uid(), file.gid()], [ID, ID]);
    // An image with files of others in that place says what is missing.
    run(&["-v", "others:/srv/pg", "pgready", "true"])
        .assert()
        .code(125)
        .stderr(contains("/etc/subuid"));

    // A file that nobody but one of a range could remove, and the mark of a filling that never ended.
    let range = user.with_range();
    let folder = data.join("closed");
    fs::create_dir(&folder).expect("root may");
    fs::write(folder.join("half"), "").expect("root may");
    let mark = data.with_file_name("filling");
    fs::write(&mark, "").expect("root may");
    let owners = [
        (&folder.join("half"), FIRST_OF_RANGE),
        (&folder, FIRST_OF_RANGE),
        (&mark, ID),
    ];
    for (path, owner) in owners {
        chown(path, Some(owner), Some(owner)).expect("root may");
    }
    let script = "cat /etc/passwd | head -c 4; ls -d /etc/closed /etc/mine";
    run(&["-v", "plain:/etc", "busybox", "sh", "-c", script])
        .assert()
        .code(1)
        .stdout("root")
        .stderr(contains("/etc/mine: No such file"));

    // Who has a range and no programs for it is told.
    fs::rename("/usr/bin/newuidmap", "/usr/bin/newuidmap.away").expect("root may");
    let refused = run(&["-v", "plain:/etc", "busybox", "true"]).assert();
    fs::rename("/usr/bin/newuidmap.away", "/usr/bin/newuidmap").expect("root may");
    refused.code(125).stderr(contains("package `uidmap`"));
    assert_eq!(
        user.told(&["volume", "rm", "plain", "others"]),
        "plain\nothers\n"
    );
    drop(range);
}
