//! Folders and files of the host in containers: bind mounts, volumes, tmpfs, and what none of them lets out.

mod rootless;

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
};

use predicates::str::contains;
use tempfile::TempDir;

use crate::command::{output_of, pillbug, processes, run, told};

/// A folder of the host, as `SOURCE:TARGET` names it.
fn bind(source: &Path, target: &str) -> String {
    format!("{}:{target}", source.display())
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).expect("the file can be read")
}

#[test]
fn a13_folders_and_files_of_the_host_are_what_they_are_and_nothing_else() {
    let host = TempDir::new().expect("a temporary folder");
    let path = |name: &str| host.path().join(name);
    for name in ["rw", "ro", "beside"] {
        fs::create_dir(path(name)).expect("a folder");
        fs::write(path(name).join("file"), name).expect("a file");
    }
    fs::write(path("one"), "one\n").expect("a file");
    symlink(path("beside"), path("rw/absolute")).expect("a link");
    symlink("../beside/file", path("rw/relative")).expect("a link");
    let [rw, ro, one] = [
        bind(&path("rw"), "/data"),
        bind(&path("ro"), "/data/ro:ro"),
        bind(&path("one"), "/etc/one"),
    ];

    // Privileged: the container's root may do to its own kernel what it likes.
    let script = r#"
        cat /data/file /data/ro/file /etc/one; echo two >> /etc/one
        mkdir -p /data/a/b; echo new > /data/a/b/new; chown 123:456 /data/a/b/new; chmod 4750 /data/a/b/new
        mv /data/a/b/new /data/moved; ln /data/moved /data/linked; stat -c '%u %g %a %h' /data/linked
        for path in absolute/file relative ../beside/file; do cat /data/$path 2> /dev/null && echo escaped; done
        mknod /data/disk b 8 0 2> /dev/null && echo device
        mount -o remount,rw /data/ro || echo no remount
        for attempt in 'echo x > /data/ro/file' 'rm /data/ro/file' 'touch /data/ro/new' 'mkdir /data/ro/d' \
            'chmod 777 /data/ro/file' 'mv /data/ro/file /data/ro/g' 'ln /data/ro/file /data/ro/h'; do
            sh -c "$attempt" 2> /dev/null && echo "wrote: $attempt"
        done
        dd if=/dev/zero of=/tmp/small/x bs=1M count=4 2>&1 | grep -o 'No space left'
        stat -c %a /tmp/small; df -k /tmp/small | awk 'END { print $2 }'
    "#;
    let output = output_of([
        "--privileged",
        "-v",
        &rw,
        "-v",
        &ro,
        "-v",
        &one,
        "--mount",
        "type=tmpfs,target=/tmp/small,tmpfs-size=1m,tmpfs-mode=0710",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(
        output,
        "rwroone\n123 456 4750 2\nNo space left\n710\n1024\n"
    );

    assert_eq!(read(path("one")), "one\ntwo\n");
    assert_eq!(read(path("rw/moved")), "new\n");
    let moved = fs::metadata(path("rw/moved")).expect("it is there");
    assert_eq!(
        (moved.uid(), moved.gid(), moved.mode() & 0o7777),
        (123, 456, 0o4750)
    );
    assert_eq!(read(path("ro/file")), "ro");
    assert_eq!(fs::read_dir(path("ro")).expect("a folder").count(), 1);
    assert_eq!(read(path("beside/file")), "beside");
}

#[test]
fn a61_mounts_that_cannot_be_or_should_not_are_refused_in_words() {
    for (flags, words) in [
        (vec!["-v", "/:/host"], "every file of this host"),
        (vec!["-v", "/proc:/host"], "--allow-dangerous-mounts"),
        (
            vec!["-v", "/run/docker.sock:/s"],
            "--allow-dangerous-mounts",
        ),
        (
            vec!["--mount", "type=bind,src=/nowhere,dst=/x"],
            "bind source path does not exist: /nowhere",
        ),
        (
            vec!["-v", "aa:/x", "-v", "bb:/x"],
            "Duplicate mount point: /x",
        ),
        (vec!["-v", "a b:/x"], "includes invalid characters"),
        (vec!["-v", "aa:/"], "destination can't be '/'"),
        (
            vec!["--volumes-from", "nobody"],
            "no such container: nobody",
        ),
    ] {
        let arguments = flags.into_iter().chain(["busybox", "true"]);
        run(arguments).assert().code(125).stderr(contains(words));
    }
    let state = std::env::var("PILLBUG_ROOT").expect("it is set");
    let mount = bind(Path::new(&state), "/x");
    run(["-v", &mount, "busybox", "true"])
        .assert()
        .code(125)
        .stderr(contains("images, volumes and containers"));
    let output = output_of([
        "--allow-dangerous-mounts",
        "-v",
        "/:/host:ro",
        "busybox",
        "ls",
        "/host",
    ]);
    assert!(output.contains("usr"), "{output}");
}

#[test]
fn volumes_begin_with_the_images_files_and_outlive_containers() {
    told(&["volume", "create", "--label", "team=a", "etc"]);
    let labelled = told(&["volume", "ls", "-q", "--filter", "label=team=a"]);
    assert_eq!(labelled, "etc\n");
    // It has what the image has, and what is written stays.
    let id = told(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "one",
        "-v",
        "etc:/etc",
        "-v",
        "/anonymous",
        "-v",
        "new:/srv/made",
        "busybox",
        "sh",
        "-c",
        "echo mine > /etc/mine; ls /etc/passwd; while :; do sleep 1; done",
    ]);
    pillbug()
        .args(["volume", "rm", "etc"])
        .assert()
        .code(1)
        .stderr(contains(format!(
            "remove etc: volume is in use - [{}]",
            id.trim()
        )));

    // Another has the same at the same time: all that one has, or a part of it read-only.
    let script = "until cat /etc/mine 2> /dev/null; do sleep 1; done; echo yours > /etc/yours; \
                  ls -d /anonymous /srv/made";
    let output = output_of(["--volumes-from", "one", "busybox", "sh", "-c", script]);
    assert_eq!(output, "mine\n/anonymous\n/srv/made\n");
    let seen = told(&["exec", "one", "cat", "/etc/yours"]);
    assert_eq!(seen, "yours\n");
    let refused = [
        "-v",
        "etc:/etc:ro",
        "busybox",
        "sh",
        "-c",
        "cat /etc/mine; echo x > /etc/x",
    ];
    run(refused)
        .assert()
        .code(1)
        .stdout("mine\n")
        .stderr(contains("Read-only file system"));

    let mounts = "{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}}\n{{end}}";
    let listed = told(&["inspect", "-f", mounts, "one"]);
    assert!(
        listed.contains("volume /etc true\nvolume /anonymous true\n"),
        "{listed}"
    );
    let count = || told(&["volume", "ls", "-q"]).lines().count();
    let before = count();
    told(&["rm", "-f", "-v", "one"]);
    assert_eq!(count(), before - 1);
    let place = told(&["volume", "inspect", "-f", "{{.Mountpoint}}", "etc"]);
    assert_eq!(read(Path::new(place.trim()).join("mine")), "mine\n");
    assert_eq!(told(&["volume", "rm", "etc", "new"]), "etc\nnew\n");
    pillbug()
        .args(["volume", "inspect", "etc"])
        .assert()
        .code(1)
        .stderr(contains("get etc: no such volume"));
}

/// The share process of a container: the one whose arguments name it.
fn share_process(id: &str) -> i32 {
    let arguments = |pid: &i32| read(format!("/proc/{pid}/cmdline"));
    let is_it = |pid: &i32| {
        let arguments = arguments(pid);
        arguments.contains("share-process") && arguments.contains(&id[..12])
    };
    let found: Vec<i32> = processes().into_iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

#[test]
fn a22_who_serves_folders_has_nothing_else_and_its_death_is_told() {
    let host = TempDir::new().expect("a temporary folder");
    fs::write(host.path().join("file"), "x").expect("a file");
    let id = told(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "served",
        "-v",
        &bind(host.path(), "/data"),
        "busybox",
        "sh",
        "-c",
        "while cat /data/file; do sleep 1; done; sleep 1000",
    ]);
    let pid = share_process(id.trim());
    let inside = |path: &str| format!("/proc/{pid}/{path}");
    // Its root is a read-only file system with two folders, in namespaces of its own.
    let mut root: Vec<_> = fs::read_dir(inside("root"))
        .expect("its root can be read")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    root.sort();
    assert_eq!(root, ["proc", "shares"]);
    for name in ["mnt", "net", "pid", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a link");
        assert_ne!(of(&pid.to_string()), of("self"), "{name}");
    }
    let status = read(inside("status"));
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{status}");
    }
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID and SETFCAP.
    assert!(status.contains("CapBnd:\t00000000800000db"), "{status}");
    let mounts = read(inside("mountinfo"));
    assert!(
        mounts.lines().all(|line| line.contains("nosuid,nodev")),
        "{mounts}"
    );

    let kill = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status();
    assert!(kill.expect("kill runs").success());
    assert_eq!(told(&["wait", "served"]), "125\n");
    let why = told(&["inspect", "-f", "{{.State.Error}}", "served"]);
    assert!(
        why.contains("the process that serves shared folders ended"),
        "{why}"
    );
    told(&["rm", "served"]);
}
