//! Root file systems against an independent reading of the same images: what the kernel's EROFS shows must be
//! what `umoci unpack` leaves on a disk.
//!
//! Mounting and device nodes take root; without it these tests say so and end.

mod archive;
mod damage;
mod hostile;
mod layout;
mod listing;
mod mount;
mod random;
mod real;

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use archive::{Archive, TIME};
use layout::Layer;
use mount::{Mounted, run};
use tar::EntryType;

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not run: mounting takes root");
    }
    root
}

/// Builds the image's root file system and compares it, whole, with what umoci unpacks.
fn assert_equal_to_umoci(layout: &Path, reference: &str, layers: &[Layer]) {
    let scratch = tempfile::tempdir().unwrap();
    let rootfs = mount::build(layers, scratch.path()).unwrap();
    let mounted = Mounted::new(&rootfs, scratch.path());
    let begun = SystemTime::now();
    let unpacked = mount::unpack(&format!("{}:{reference}", layout.display()), scratch.path());
    listing::assert_same(&mounted.folder, &unpacked.unwrap(), begun);
}

fn assert_archives_equal_to_umoci(archives: &[Vec<u8>]) {
    let scratch = tempfile::tempdir().unwrap();
    let layers = layout::write(scratch.path(), archives);
    assert_equal_to_umoci(scratch.path(), "image", &layers);
}

#[test]
fn files_of_every_size_name_and_kind() {
    if !is_root() {
        return;
    }
    let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let mut tar = Archive::new();
    tar.mode(0o750).record("mtime", "-1.5").folder("./");
    tar.folder("sizes/")
        .folder("names/")
        .folder("kinds/")
        .folder("many/");
    for size in [
        0, 1, 511, 512, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 400_000,
    ] {
        tar.file(format!("sizes/{size}"), &bytes[..size]);
    }
    for number in 0..2000 {
        tar.file(
            format!("many/file with a name of some length {number}"),
            b"x",
        );
    }
    for name in [
        &b"caf\xe9"[..],
        b"line\nend",
        b"!first",
        b"-x",
        b" ",
        b"...",
        b"\xff\xfe",
        b"\x01",
    ] {
        tar.file([b"names/", name].concat(), name);
    }
    tar.file(format!("names/{}", "n".repeat(255)), b"long");
    let deep = vec!["d".repeat(100); 12];
    for depth in 1..=deep.len() {
        tar.folder(format!("{}/", deep[..depth].join("/")));
    }
    tar.file(format!("{}/file", deep.join("/")), b"deep");
    tar.symlink("kinds/short", "a")
        .symlink("kinds/long", "l".repeat(4000));
    tar.symlink("kinds/loop", "loop")
        .symlink("kinds/out", "../../../etc/passwd");
    tar.mode(0o600).fifo("kinds/fifo");
    tar.device(EntryType::Char, "kinds/null", 1, 3);
    tar.device(EntryType::Block, "kinds/loop7", 7, 7);
    tar.device(EntryType::Char, "kinds/large", 4095, 1_048_575);
    tar.mode(0o4755)
        .file("kinds/setuid", b"#!")
        .mode(0o2711)
        .file("kinds/setgid", b"#!");
    tar.mode(0o1777)
        .folder("kinds/sticky/")
        .mode(0)
        .file("kinds/none", b"");
    tar.hard_link("kinds/setuid too", "kinds/setuid")
        .hard_link("kinds/short too", "./kinds/short");
    tar.hard_link("kinds/fifo too", "/kinds/fifo");
    tar.record("uid", "4000000000")
        .record("gid", "4294967294")
        .file("kinds/owner", b"");
    tar.owner = (1000, 100);
    tar.record("mtime", format!("{TIME}.123456789"))
        .file("kinds/fraction", b"");
    tar.record("mtime", "4300000000").file("kinds/late", b"");
    tar.record("mtime", "-86400").file("kinds/early", b"");
    assert_archives_equal_to_umoci(&[tar.finish()]);
}

#[test]
fn extended_attributes_survive() {
    if !is_root() {
        return;
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Version 2; tag, permissions and id of owner, user 1000, group, mask, others.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 6u16, !0),
        (2, 4, 1000),
        (4, 4, !0),
        (16, 4, !0),
        (32, 4, !0u32),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let long = vec![b'v'; 3000];
    let mut tar = Archive::new();
    tar.folder("./");
    tar.record("SCHILY.xattr.security.capability", capability)
        .mode(0o755)
        .file("capable", b"x");
    tar.record("SCHILY.xattr.system.posix_acl_access", &acl)
        .file("acl", &[b'x'; 5000]);
    tar.record("SCHILY.xattr.user.binary", b"\0\n=\n12 path=evil\n\xff")
        .file("binary", b"x");
    tar.record("SCHILY.xattr.user.long", &long)
        .record("SCHILY.xattr.trusted.t", "t")
        .folder("folder/");
    tar.record("SCHILY.xattr.user.long", &long)
        .file("long", &[b'x'; 1000]);
    tar.record("SCHILY.xattr.trusted.link", "t")
        .symlink("link", "t".repeat(1500));
    tar.record("SCHILY.xattr.trusted.node", "t")
        .device(EntryType::Char, "node", 1, 3);
    let mut above = Archive::new();
    above
        .record("SCHILY.xattr.user.other", "o")
        .folder("folder/")
        .file("binary", b"no attributes");
    assert_archives_equal_to_umoci(&[tar.finish(), above.finish()]);
}

#[test]
fn layers_change_what_lies_below() {
    if !is_root() {
        return;
    }
    let mut below = Archive::new();
    below
        .folder("./")
        .folder("usr/")
        .folder("usr/lib/")
        .file("usr/lib/kept", b"1");
    below
        .symlink("lib", "usr/lib")
        .symlink("absolute", "/usr/lib")
        .symlink("via", "lib/../lib");
    below
        .symlink("dangling", "made/by/link")
        .symlink("up", "../../..");
    for name in ["to-folder", "to-link", "replaced", "gone", "hard"] {
        below.file(name, name.as_bytes());
    }
    below
        .hard_link("hard too", "hard")
        .hard_link("hard three", "hard");
    for name in [
        "folder-to-file",
        "folder-to-link",
        "gone-folder",
        "opaque",
        "opaque-late",
        "mixed",
        "kept",
    ] {
        below.folder(name).file(format!("{name}/below"), b"below");
        below
            .folder(format!("{name}/sub"))
            .file(format!("{name}/sub/below"), b"below");
    }
    let mut above = Archive::new();
    above
        .file("lib/through", b"2")
        .file("absolute/through", b"3")
        .file("via/through2", b"4");
    above
        .file("up/usr/lib/confined", b"5")
        .file("usr/../usr/./lib/dotted", b"6");
    above
        .folder("to-folder")
        .symlink("to-link", "replaced")
        .file("replaced", b"new");
    above
        .file("folder-to-file", b"file")
        .symlink("folder-to-link", "usr");
    above
        .file(".wh.gone", b"")
        .file(".wh.gone-folder", b"")
        .file(".wh.never-there", b"");
    above
        .file("lib/.wh.kept", b"")
        .file("hard three/.wh.x", b"");
    above
        .file("opaque/.wh..wh..opq", b"")
        .folder("opaque")
        .file("opaque/above", b"above");
    above
        .folder("opaque-late")
        .file("opaque-late/above", b"above")
        .file("opaque-late/.wh..wh..opq", b"");
    above
        .folder("mixed/sub")
        .file("mixed/sub/above", b"above")
        .file(".wh.mixed", b"");
    above
        .mode(0o700)
        .folder("kept")
        .file("kept/above", b"above");
    above
        .file("hard", b"replaced one name of three")
        .hard_link("new name", "hard too");
    above.hard_link("usr/kept", "lib/through");
    let mut top = Archive::new();
    top.folder("lib")
        .file("lib/real", b"now a folder")
        .hard_link("old", "usr/lib/dotted");
    top.file("hard too", b"another")
        .file(".wh.opaque", b"")
        .folder("opaque")
        .file("opaque/top", b"top");
    assert_archives_equal_to_umoci(&[below.finish(), above.finish(), top.finish()]);
}

#[test]
fn archives_of_gnu_tar_in_every_format() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    let script = r#"
        umask 022; mkdir -p "$1/sub"; cd "$1"
        truncate -s 3M sparse; printf x | dd of=sparse bs=1 seek=1000000 conv=notrunc status=none
        truncate -s 40M ends; for at in 0 5 9 13 17 21 25 29 33 39; do
            head -c 5000 /dev/zero | tr '\0' y | dd of=ends bs=1M seek=$at conv=notrunc status=none; done
        truncate -s 1M hole; cp /bin/true sub/; ln sub/true sub/hard; ln -s true sub/soft
        touch "sub/$(printf 'n%.0s' $(seq 150))"; ln -s "$(printf 't%.0s' $(seq 300))" sub/long
        chown 1234:5678 sub; find . -exec touch -h -d @1600000000 {} +"#;
    run(Command::new("sh").args(["-ec", script, "sh"]).arg(&tree)).unwrap();
    let formats: [&[&str]; 6] = [
        &["--format=oldgnu", "--sparse"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
        &["--format=pax"],
    ];
    for options in formats {
        let mut tar = Command::new("tar");
        tar.args(options).args(["-c", "-C"]).arg(&tree).arg(".");
        let archive = run(&mut tar).unwrap().stdout;
        let scratch = tempfile::tempdir().unwrap();
        let layers = layout::write(&scratch.path().join("image"), &[archive]);
        let rootfs = mount::build(&layers, scratch.path()).unwrap();
        let mounted = Mounted::new(&rootfs, scratch.path());
        // umoci does not take the sparse files of GNU's own format; the tree is still there.
        listing::assert_same(&mounted.folder, &tree, SystemTime::now());
    }
}
