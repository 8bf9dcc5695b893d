//! Trees that go through a stream and come out as they were, and streams that try to leave the folder they are meant for.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use files::{
    FilesError,
    place::{Placed, Rules, find, place},
    stream::{Receiver, Sender},
    tree::{self, Manner},
};
use protocol::files::{Change, Device, Entry, Extent, Found, Item, Kind, Mtime};
use rustix::{
    fs::{FileType, Mode, ResolveFlags, XattrFlags, makedev, mknodat, setxattr},
    process::geteuid,
};

/// What holds where a guest's files come to a host.
const HOST: Rules = Rules {
    resolve: ResolveFlags::BENEATH
        .union(ResolveFlags::NO_SYMLINKS)
        .union(ResolveFlags::NO_MAGICLINKS),
    owners: false,
    privileges: false,
};

/// What holds inside a container.
const GUEST: Rules = Rules {
    resolve: ResolveFlags::IN_ROOT,
    owners: true,
    privileges: true,
};

/// A folder to put things into, with `secret` beside it.
struct Folders {
    all: tempfile::TempDir,
}

impl Folders {
    fn new() -> Self {
        let all = tempfile::tempdir().unwrap();
        fs::create_dir(all.path().join("target")).unwrap();
        fs::create_dir(all.path().join("outside")).unwrap();
        fs::write(all.path().join("outside/secret"), "secret").unwrap();
        Self { all }
    }

    fn target(&self) -> PathBuf {
        self.all.path().join("target")
    }

    fn outside(&self) -> PathBuf {
        self.all.path().join("outside")
    }

    fn place(&self, stream: &[u8], base: &str, rules: Rules) -> Result<Placed, FilesError> {
        let root = File::open(self.target()).unwrap();
        let placed = place(
            root.as_fd(),
            base.as_bytes(),
            rules,
            &mut Receiver::new(stream),
        );
        let left: Vec<_> = fs::read_dir(self.outside()).unwrap().collect();
        assert_eq!(left.len(), 1, "something was made outside");
        let secret = self.outside().join("secret");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(secret.metadata().unwrap().nlink(), 1);
        placed
    }
}

fn entry(path: &str, kind: Kind) -> Entry {
    let id = geteuid().as_raw();
    Entry {
        path: path.into(),
        kind,
        mode: 0o755,
        uid: id,
        gid: id,
        mtime: Mtime {
            seconds: 1_000_000,
            nanoseconds: 123_456_789,
        },
        xattrs: Vec::new(),
        change: Change::Added,
    }
}

fn folder(path: &str) -> Entry {
    entry(path, Kind::Folder { opaque: false })
}

fn file(path: &str, length: u64) -> Entry {
    let extent = Extent { offset: 0, length };
    entry(
        path,
        Kind::File {
            size: length,
            extents: vec![extent],
        },
    )
}

/// A stream of these, each with that content, and its end.
fn stream(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sender = Sender::new(&mut bytes);
    for (entry, content) in entries {
        sender.send(&Item::Entry(entry.clone())).unwrap();
        sender.bytes(content).unwrap();
    }
    sender.send(&Item::End { left_out: 0 }).unwrap();
    sender.flush().unwrap();
    drop(sender);
    bytes
}

/// What is read of a tree.
fn read(root: &Path, path: &str, manner: Manner) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sender = Sender::new(&mut bytes);
    let root = File::open(root).unwrap();
    let left_out = tree::send(
        root.as_fd(),
        path.as_bytes(),
        false,
        ResolveFlags::IN_ROOT,
        manner,
        &mut sender,
    );
    let left_out = left_out.unwrap();
    sender.send(&Item::End { left_out }).unwrap();
    sender.flush().unwrap();
    drop(sender);
    bytes
}

/// All entries of a stream.
fn entries(stream: &[u8]) -> Vec<Entry> {
    let mut receiver = Receiver::new(stream);
    let mut all = Vec::new();
    while let Ok(entry) = receiver.next_entry().unwrap() {
        all.push(entry);
    }
    all
}

fn is_root() -> bool {
    geteuid().is_root()
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let folders = Folders::new();
    let source = folders.all.path().join("source");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    fs::write(source.join("deep/er/file"), "content").unwrap();
    fs::set_permissions(
        source.join("deep/er/file"),
        fs::Permissions::from_mode(0o4711),
    )
    .unwrap();
    fs::hard_link(source.join("deep/er/file"), source.join("other")).unwrap();
    symlink("../anywhere", source.join("deep/link")).unwrap();
    let sparse = File::create(source.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"middle", 32 << 20).unwrap();
    let attribute = setxattr(source.join("sparse"), c"user.x", b"y", XattrFlags::empty());
    fs::set_permissions(source.join("deep"), fs::Permissions::from_mode(0o1750)).unwrap();

    let manner = Manner {
        xattrs: true,
        ..Manner::default()
    };
    let bytes = read(folders.all.path(), "/source", manner);
    assert!(bytes.len() < 1 << 20, "holes were sent");
    folders.place(&bytes, "copy", GUEST).unwrap();

    let copy = folders.target().join("copy");
    for name in [
        "",
        "deep",
        "deep/er",
        "deep/er/file",
        "deep/link",
        "other",
        "sparse",
    ] {
        let (was, is) = (source.join(name), copy.join(name));
        let (was, is) = (
            was.symlink_metadata().unwrap(),
            is.symlink_metadata().unwrap(),
        );
        assert_eq!(was.mode(), is.mode(), "{name}");
        assert_eq!((was.uid(), was.gid()), (is.uid(), is.gid()), "{name}");
        assert_eq!(
            (was.mtime(), was.mtime_nsec()),
            (is.mtime(), is.mtime_nsec()),
            "{name}"
        );
        assert!(was.is_dir() || was.nlink() == is.nlink(), "{name}");
    }
    assert_eq!(fs::read_to_string(copy.join("other")).unwrap(), "content");
    assert_eq!(
        fs::read_link(copy.join("deep/link")).unwrap(),
        Path::new("../anywhere")
    );
    assert_eq!(
        fs::read(source.join("sparse")).unwrap(),
        fs::read(copy.join("sparse")).unwrap()
    );
    assert!(copy.join("sparse").metadata().unwrap().blocks() < 1024);
    if attribute.is_ok() {
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(copy.join("sparse"), c"user.x", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"y");
    }
}

#[test]
fn a_single_file_takes_the_name_it_is_given_and_the_place_of_another() {
    let folders = Folders::new();
    fs::write(folders.target().join("old"), "old content, which is longer").unwrap();
    symlink(
        folders.outside().join("secret"),
        folders.target().join("link"),
    )
    .unwrap();
    for name in ["old", "link", "new"] {
        let one = stream(&[(file("", 3), b"abc")]);
        let placed = folders.place(&one, name, HOST).unwrap();
        assert_eq!(
            placed,
            Placed {
                bytes: 3,
                left_out: 0
            }
        );
        let path = folders.target().join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), "abc");
        assert!(path.symlink_metadata().unwrap().is_file());
    }
}

#[test]
fn a24_no_stream_leads_out_of_its_target() {
    let folders = Folders::new();
    let outside = folders.outside();
    let away = |to: &str| {
        entry(
            "link",
            Kind::Symlink(outside.join(to).to_str().unwrap().into()),
        )
    };
    let up = entry("link", Kind::Symlink(b"../outside".into()));
    let writes = [
        vec![(away(""), &b""[..]), (file("link/secret", 1), b"x")],
        vec![(up.clone(), b""), (file("link/new", 1), b"x")],
        vec![(up.clone(), b""), (folder("link/folder"), b"")],
        vec![(up.clone(), b""), (entry("link/fifo", Kind::Fifo), b"")],
        vec![
            (up.clone(), b""),
            (entry("link/l", Kind::Symlink(b"x".into())), b""),
        ],
        vec![
            (up.clone(), b""),
            (entry("hard", Kind::HardLink(b"link/secret".into())), b""),
        ],
        vec![(away(""), b""), (folder("link"), b"")],
        vec![
            (folder("a"), b""),
            (entry("a", Kind::Symlink(b"../outside".into())), b""),
        ],
        vec![(file("../outside/secret", 1), b"x")],
        vec![(file("/outside/secret", 1), b"x")],
        vec![(
            entry("hard", Kind::HardLink(b"../outside/secret".into())),
            b"",
        )],
        vec![(entry("gone", Kind::Whiteout), b"")],
    ];
    for (number, entries) in writes.iter().enumerate() {
        let place = fs::read_dir(folders.target()).unwrap();
        for left in place {
            let path = left.unwrap().path();
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir_all(&path);
        }
        assert!(
            folders.place(&stream(entries), "", HOST).is_err(),
            "{number}"
        );
    }

    // A link may be put there, and what comes in its place is written nowhere else.
    let replaced = [(away("secret"), &b""[..]), (file("link", 1), b"x")];
    folders.place(&stream(&replaced), "", HOST).unwrap();
}

#[test]
fn a24_a_folder_swapped_for_a_link_meanwhile_is_not_entered() {
    let folders = Folders::new();
    let (target, outside) = (folders.target(), folders.outside());
    let whole = stream(&[
        (folder("a"), b""),
        (folder("a/b"), b""),
        (file("a/b/first", 1), b"1"),
        // Something else, so that the folder is looked up again.
        (file("c", 1), b"c"),
        (file("a/b/second", 1), b"2"),
    ]);
    let second = whole
        .windows(8)
        .position(|bytes| bytes == b"b/second")
        .unwrap()
        - 16;
    let mut parts = vec![whole[second..].to_vec(), whole[..second].to_vec()];
    let swap = |rest: usize| {
        if rest == 0 {
            assert!(target.join("a/b/first").exists());
            fs::rename(target.join("a"), target.join("away")).unwrap();
            fs::create_dir(target.join("a")).unwrap();
            symlink(&outside, target.join("a/b")).unwrap();
        }
    };
    let input = Parts(|| {
        let part = parts.pop()?;
        swap(parts.len());
        Some(part)
    });
    let root = File::open(&target).unwrap();
    assert!(place(root.as_fd(), b"", HOST, &mut Receiver::new(input)).is_err());
    assert!(target.join("a/b").symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

/// What is read from it comes in parts.
struct Parts<F>(F);

impl<F: FnMut() -> Option<Vec<u8>>> Read for Parts<F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let part = (self.0)().unwrap_or_default();
        buffer[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}

#[test]
fn a27_neither_devices_nor_lent_rights_come_to_the_host() {
    let folders = Folders::new();
    let device = Device { major: 1, minor: 3 };
    let mut lent = file("lent", 1);
    lent.mode = 0o6755;
    let all = stream(&[
        (lent, b"x"),
        (entry("char", Kind::CharDevice(device)), b""),
        (entry("block", Kind::BlockDevice(device)), b""),
    ]);
    let placed = folders.place(&all, "", HOST).unwrap();
    assert_eq!(placed.left_out, 2);
    let lent = folders.target().join("lent").metadata().unwrap();
    assert_eq!(lent.mode() & 0o7777, 0o755);
    assert_eq!(fs::read_dir(folders.target()).unwrap().count(), 1);
}

#[test]
fn a16_a_stream_that_breaks_off_leaves_no_half_file() {
    let folders = Folders::new();
    let whole = stream(&[(file("first", 5), b"first"), (file("second", 6), b"second")]);
    for length in 0..whole.len() {
        let result = folders.place(&whole[..length], "", HOST);
        assert!(result.is_err(), "{length}");
        for entry in fs::read_dir(folders.target()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert_eq!(fs::read_to_string(&path).unwrap(), name, "{length}");
        }
    }
    folders.place(&whole, "", HOST).unwrap();
}

#[test]
fn a16_what_is_promised_takes_no_memory_and_nonsense_is_refused() {
    let folders = Folders::new();
    // 2^62 bytes are told and never come.
    let endless = stream(&[(file("endless", 1 << 62), b"")]);
    assert!(folders.place(&endless, "", HOST).is_err());
    let overlap = Kind::File {
        size: 8,
        extents: vec![
            Extent {
                offset: 0,
                length: 8,
            },
            Extent {
                offset: 4,
                length: 4,
            },
        ],
    };
    let overlap = stream(&[(entry("x", overlap), b"abcdefghabcd")]);
    assert!(matches!(
        folders.place(&overlap, "", HOST),
        Err(FilesError::Malformed(_))
    ));
    assert!(folders.place(&[0xff; 64], "", HOST).is_err());
    assert_eq!(fs::read_dir(folders.target()).unwrap().count(), 0);
}

#[test]
fn folders_and_files_do_not_take_each_others_place() {
    let folders = Folders::new();
    fs::create_dir(folders.target().join("folder")).unwrap();
    fs::write(folders.target().join("file"), "x").unwrap();
    let one = stream(&[(file("folder", 1), b"x")]);
    assert!(folders.place(&one, "", HOST).is_err());
    let other = stream(&[(folder("file"), b"")]);
    assert!(folders.place(&other, "", HOST).is_err());
    // What is missing on the way is made, as archives without folders need it.
    let deep = stream(&[(file("a/b/c", 1), b"x")]);
    folders.place(&deep, "", HOST).unwrap();
    assert_eq!(
        fs::read_to_string(folders.target().join("a/b/c")).unwrap(),
        "x"
    );
}

#[test]
fn targets_are_found_behind_links_and_inside_the_root() {
    let folders = Folders::new();
    fs::create_dir(folders.target().join("folder")).unwrap();
    fs::write(folders.target().join("file"), "x").unwrap();
    symlink("/folder", folders.target().join("to-folder")).unwrap();
    symlink("/folder/../file", folders.target().join("to-file")).unwrap();
    symlink("folder/new", folders.target().join("dangling")).unwrap();
    symlink("circle", folders.target().join("circle")).unwrap();
    let root = File::open(folders.target()).unwrap();
    let find = |path: &str| find(root.as_fd(), path.as_bytes(), ResolveFlags::IN_ROOT);
    for (path, at, found) in [
        ("/", "", Found::Folder),
        ("/folder/", "/folder", Found::Folder),
        ("/to-folder", "/to-folder", Found::Folder),
        ("/../../file", "/../../file", Found::Other),
        ("/to-file", "/folder/../file", Found::Other),
        ("/dangling", "/folder/new", Found::Nothing),
        ("new", "new", Found::Nothing),
    ] {
        assert_eq!(find(path).unwrap(), (at.into(), found), "{path}");
    }
    assert!(find("/missing/new").is_err());
    assert!(find("/circle").is_err());
    assert!(find("/file/below").is_err());
}

#[test]
fn what_changed_is_told_from_the_image() {
    if !is_root() {
        return;
    }
    let folders = Folders::new();
    let (image, upper) = (
        folders.all.path().join("image"),
        folders.all.path().join("upper"),
    );
    for name in ["kept", "emptied/old", "removed"] {
        fs::create_dir_all(image.join(name)).unwrap();
    }
    fs::write(image.join("kept/file"), "x").unwrap();
    fs::write(image.join("kept/same"), "x").unwrap();
    for name in ["", "kept", "emptied"] {
        let before = std::time::UNIX_EPOCH;
        File::open(image.join(name))
            .unwrap()
            .set_modified(before)
            .unwrap();
    }
    fs::create_dir_all(upper.join("kept/new")).unwrap();
    fs::create_dir_all(upper.join("emptied")).unwrap();
    fs::write(upper.join("kept/file"), "other").unwrap();
    let same = File::create(upper.join("kept/same")).unwrap();
    (&same).write_all(b"x").unwrap();
    same.set_modified(
        image
            .join("kept/same")
            .metadata()
            .unwrap()
            .modified()
            .unwrap(),
    )
    .unwrap();
    let gone = File::open(&upper).unwrap();
    let whiteout = mknodat(
        &gone,
        "removed",
        FileType::CharacterDevice,
        Mode::empty(),
        makedev(0, 0),
    );
    whiteout.unwrap();
    let opaque = CString::new("trusted.overlay.opaque").unwrap();
    if setxattr(upper.join("emptied"), &opaque, b"y", XattrFlags::empty()).is_err() {
        return;
    }

    let told = |contents| {
        let mut bytes = Vec::new();
        let mut sender = Sender::new(&mut bytes);
        let open = |path: &Path| File::open(path).unwrap().into();
        tree::send_changes(open(&upper), open(&image), contents, &mut sender).unwrap();
        sender.send(&Item::End { left_out: 0 }).unwrap();
        sender.flush().unwrap();
        drop(sender);
        let mut all: Vec<(String, Change, bool, bool)> = entries(&bytes)
            .into_iter()
            .filter(|entry| !entry.path.is_empty())
            .map(|entry| {
                let whiteout = entry.kind == Kind::Whiteout;
                let opaque = entry.kind == Kind::Folder { opaque: true };
                (
                    String::from_utf8(entry.path).unwrap(),
                    entry.change,
                    whiteout,
                    opaque,
                )
            })
            .collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    };
    let one = |path: &str, change, whiteout, opaque| (path.to_owned(), change, whiteout, opaque);
    let mut expected = vec![
        one("emptied", Change::Touched, false, true),
        one("emptied/old", Change::Modified, true, false),
        one("kept", Change::Touched, false, false),
        one("kept/file", Change::Modified, false, false),
        one("kept/new", Change::Added, false, false),
        one("kept/same", Change::Same, false, false),
        one("removed", Change::Modified, true, false),
    ];
    assert_eq!(told(false), expected);
    expected.remove(1);
    assert_eq!(told(true), expected);
}
