//! Files of containers from outside: copied, told apart from the image, exported, committed.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Stdio,
};

use predicates::{prelude::*, str::contains};
use tempfile::TempDir;

use crate::command::{output_of, pillbug, program, told};

/// What has happened so far.
const EVENTS: [&str; 5] = ["events", "--since", "1h", "--until", "0s"];

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// What changes the container's root in every way that a layer can say.
const CHANGES: &str = "echo one > /etc/new; rm /etc/passwd; rm -r /var; mkdir /var; mkdir -p /deep/er; echo x > /deep/er/f
    ln /deep/er/f /deep/h; ln -s ../../../../etc/new /deep/l; chown 12:34 /deep/h; chmod 4755 /deep/er/f
    touch -d '2001-02-03 04:05:06' /deep/h; truncate -s 64M /sparse; echo hi >> /sparse; mkfifo /deep/p
    trap 'exit 3' TERM; while :; do sleep 1 & wait $!; done";

#[test]
fn files_go_in_and_out_of_a_container_that_runs_and_one_that_does_not() {
    let folder = TempDir::new().expect("a temporary folder");
    let here = |name: &str| folder.path().join(name);
    told(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "files",
        "busybox",
        "sh",
        "-c",
        CHANGES,
    ]);
    told(&[
        "exec",
        "files",
        "sh",
        "-c",
        "until test -p /deep/p; do :; done",
    ]);

    // Out: a folder that takes a name, one file into a folder, and an archive.
    let out = here("out");
    pillbug()
        .args(["cp", "files:/deep", text(&out)])
        .assert()
        .success()
        .stderr(contains("Successfully copied 2B to"));
    let file = out.join("er/f").metadata().expect("it was copied");
    assert_eq!(file.mode() & 0o7777, 0o755, "set-user-ID came along");
    assert_eq!((file.nlink(), file.mtime()), (2, 981_173_106));
    assert_eq!(
        fs::read_link(out.join("l")).expect("it is a link"),
        Path::new("../../../../etc/new")
    );
    told(&["cp", "-q", "-L", "files:/deep/l", text(folder.path())]);
    assert_eq!(
        fs::read_to_string(here("l")).expect("it was followed"),
        "one\n"
    );
    told(&["cp", "-a", "files:/deep/h", text(&here("owned"))]);
    let owned = here("owned").metadata().expect("it was copied");
    assert_eq!((owned.uid(), owned.gid()), (12, 34));

    // In: a folder, its content, one file over another; and what Docker refuses.
    fs::create_dir(here("in")).expect("a folder");
    fs::write(here("in/file"), "in").expect("a file");
    fs::set_permissions(here("in/file"), fs::Permissions::from_mode(0o640)).expect("a mode");
    symlink("/etc/shadow", here("in/link")).expect("a link");
    let inside = here("in");
    told(&["cp", text(&inside), "files:/tmp"]);
    told(&["cp", &format!("{}/.", text(&inside)), "files:/etc"]);
    told(&["cp", text(&inside.join("file")), "files:/etc/new"]);
    for (from, to) in [
        (text(&inside), "files:/etc/new"),
        (text(&inside), "files:/missing/x"),
        (text(&inside.join("file")), "files:/missing/"),
        ("files:/deep", text(&inside.join("file"))),
        ("files:/nosuch", text(&inside)),
        ("files:/deep", "files:/x"),
        ("nosuch:/deep", text(&inside)),
    ] {
        let refused = pillbug().args(["cp", from, to]).assert().code(125);
        refused.stderr(predicate::str::starts_with("pillbug: "));
    }
    assert_eq!(
        told(&[
            "exec",
            "files",
            "sh",
            "-c",
            "cat /etc/new; readlink /etc/link; stat -c '%u %a' /tmp/in/file",
        ]),
        "in/etc/shadow\n0 640\n"
    );

    // As Docker tells it.
    assert_eq!(
        told(&["diff", "files"]),
        "A /deep\nA /deep/er\nA /deep/er/f\nA /deep/h\nA /deep/l\nA /deep/p\nC /etc\nA /etc/file\nA /etc/link\n\
         A /etc/new\nD /etc/passwd\nA /sparse\nC /tmp\nA /tmp/in\nA /tmp/in/file\nA /tmp/in/link\nC /var\nD /var/spool\nD /var/www\n"
    );

    // Stopped: the same, and it is as it was.
    told(&["stop", "files"]);
    let status = told(&["inspect", "-f", "{{json .State}}", "files"]);
    let archive = program_output(&["cp", "files:/deep", "-"]);
    let mut paths: Vec<String> = tar::Archive::new(archive.as_slice())
        .entries()
        .expect("an archive")
        .map(|entry| {
            entry
                .expect("an entry")
                .path()
                .expect("a path")
                .display()
                .to_string()
        })
        .collect();
    paths.sort();
    assert_eq!(
        paths,
        [
            "deep/",
            "deep/er/",
            "deep/er/f",
            "deep/h",
            "deep/l",
            "deep/p"
        ]
    );
    pillbug()
        .args(["cp", "-", "files:/tmp"])
        .write_stdin(archive)
        .assert()
        .success();
    assert_eq!(told(&["inspect", "-f", "{{json .State}}", "files"]), status);
    told(&["start", "files"]);
    assert_eq!(told(&["exec", "files", "cat", "/tmp/deep/er/f"]), "x\n");
    told(&["rm", "-f", "files"]);
    let format = ["--filter", "container=files", "--format", "{{.Action}}"];
    let events = told(&[&EVENTS[..], &format].concat());
    for action in ["archive-path\n", "extract-to-dir\n"] {
        assert!(events.contains(action), "{events}");
    }
}

#[test]
fn what_is_mounted_in_a_container_is_there_for_cp_before_it_ever_ran() {
    let folder = TempDir::new().expect("a temporary folder");
    let (file, bound) = (folder.path().join("file"), folder.path().join("bound"));
    fs::write(&file, "from outside").expect("a file");
    fs::create_dir(&bound).expect("a folder");
    fs::write(bound.join("told"), "from the host").expect("a file");
    let mount = format!("{}:/bound:ro", text(&bound));
    let volumes = ["-v", "copied:/etc", "-v", &mount];
    told(&[&["create", "--name", "still"], &volumes[..], &["busybox"]].concat());

    // Filled from the image first, as a start would.
    told(&["cp", text(&file), "still:/etc/new"]);
    let data = told(&["volume", "inspect", "-f", "{{.Mountpoint}}", "copied"]);
    let data = Path::new(data.trim());
    assert_eq!(
        fs::read(data.join("new")).expect("it is there"),
        b"from outside"
    );
    assert!(data.join("passwd").exists());

    told(&["cp", "still:/bound/told", text(&file)]);
    assert_eq!(fs::read(&file).expect("it is there"), b"from the host");
    let refused = pillbug()
        .args(["cp", text(&file), "still:/bound/new"])
        .assert();
    refused.failure().stderr(contains("Read-only file system"));
    assert!(!bound.join("new").exists());
    told(&["rm", "still"]);
    told(&["volume", "rm", "copied"]);
}

#[test]
fn a_container_is_exported_and_committed_as_it_is() {
    let folder = TempDir::new().expect("a temporary folder");
    told(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "made",
        "-e",
        "GIVEN=1",
        "busybox",
        "sh",
        "-c",
        CHANGES,
    ]);
    told(&[
        "exec",
        "made",
        "sh",
        "-c",
        "until test -p /deep/p; do :; done",
    ]);

    let exported = folder.path().join("exported.tar");
    told(&["export", "-o", text(&exported), "made"]);
    assert!(
        exported.metadata().expect("it is there").len() < 16 << 20,
        "holes were written"
    );
    let unpacked = folder.path().join("unpacked");
    fs::create_dir(&unpacked).expect("a folder");
    let tar = std::process::Command::new("tar")
        .args([
            "-xpf",
            text(&exported),
            "--numeric-owner",
            "-C",
            text(&unpacked),
        ])
        .status();
    assert!(tar.expect("tar runs").success());
    let sparse = unpacked.join("sparse").metadata().expect("it is there");
    assert_eq!(sparse.len(), (64 << 20) + 3);
    let linked = unpacked.join("deep/h").metadata().expect("it is there");
    assert_eq!(
        (linked.nlink(), linked.uid(), linked.mtime()),
        (2, 12, 981_173_106)
    );
    assert!(!unpacked.join("etc/passwd").exists());
    for mounted in ["proc", "sys", "dev"] {
        let mut inside = fs::read_dir(unpacked.join(mounted)).expect("a mount point");
        assert!(inside.next().is_none(), "{mounted} is not empty");
    }

    let id = told(&[
        "commit",
        "-a",
        "A. Person",
        "-m",
        "message",
        "-c",
        "CMD [\"cat\", \"/etc/new\"]",
        "-c",
        "ENV MADE=2",
        "made",
        "local/made:1",
    ]);
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(
        told(&[
            "image",
            "inspect",
            "-f",
            "{{.Author}} {{.Config.Cmd}} {{len .RootFS.Layers}}",
            "local/made:1"
        ]),
        "A. Person [cat /etc/new] 2\n"
    );
    let event = |action: &str, format: &str| {
        let filter = format!("event={action}");
        let made = ["--filter", "container=made", "--filter", &filter];
        told(&[&EVENTS[..], &made, &["--format", format]].concat())
    };
    assert_eq!(event("export", "{{.Action}}"), "export\n");
    let attributes = "{{.Actor.Attributes.comment}} {{.Actor.Attributes.imageRef}}";
    assert!(event("commit", attributes).starts_with("message "));
    assert!(event("commit", attributes).ends_with("local/made:1\n"));
    told(&["rm", "-f", "made"]);
    assert_eq!(output_of(["local/made:1"]), "one\n");
    let script = "echo $GIVEN $MADE; stat -c '%u %g %a %Y %h' /deep/h; ls /var | wc -l; wc -c < /sparse; test -p /deep/p -a ! -e /etc/passwd";
    assert_eq!(
        output_of(["local/made:1", "sh", "-c", script]),
        "1 2\n12 34 4755 981173106 2\n0\n67108867\n"
    );
    told(&["rmi", "local/made:1"]);
}

/// As [`told`], with bytes that are no text.
fn program_output(arguments: &[&str]) -> Vec<u8> {
    let output = std::process::Command::new(program())
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .expect("pillbug starts");
    assert!(output.status.success());
    output.stdout
}
