//! Random layers, with umoci as the reference: where it unpacks them, the result is the same; where it refuses
//! them, so does this.

use std::time::SystemTime;

use proptest::prelude::*;

use crate::archive::Archive;
use crate::mount::{self, Mounted};
use crate::{is_root, layout, listing};

#[derive(Debug, Clone)]
enum Op {
    Folder(String),
    File(String, usize),
    Symlink(String, String),
    /// To one of the files that came before.
    HardLink(String, prop::sample::Index),
    Whiteout(String, String),
    Opaque(String),
}

/// Few names, so that entries meet.
fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| names.join("/"))
}

/// Mostly names that no folder has: a file on the way to another entry is an error, and ends the case.
fn file_path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["f", "g", "h", "a"]);
    (path(), name).prop_map(|(folder, name)| format!("{folder}/{name}"))
}

fn target() -> impl Strategy<Value = String> {
    let start = prop::sample::select(vec!["", "/", "../", "./"]);
    (start, path()).prop_map(|(start, path)| format!("{start}{path}"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => path().prop_map(Op::Folder),
        4 => (file_path(), 0usize..9000).prop_map(|(path, size)| Op::File(path, size)),
        2 => (path(), target()).prop_map(|(path, target)| Op::Symlink(path, target)),
        2 => (file_path(), any::<prop::sample::Index>()).prop_map(|(path, file)| Op::HardLink(path, file)),
        2 => (path(), prop::sample::select(vec!["a", "b", "f", "g"]))
            .prop_map(|(folder, name)| Op::Whiteout(folder, name.into())),
        1 => path().prop_map(Op::Opaque),
    ]
}

fn archive<'a>(ops: &'a [Op], files: &mut Vec<&'a str>) -> Vec<u8> {
    let mut tar = Archive::new();
    tar.folder("./");
    for op in ops {
        match op {
            Op::Folder(path) => tar.folder(path),
            Op::File(path, size) => {
                files.push(path);
                tar.file(path, &vec![*size as u8; *size])
            }
            Op::Symlink(path, target) => tar.symlink(path, target),
            Op::HardLink(_, _) if files.is_empty() => &mut tar,
            Op::HardLink(path, file) => tar.hard_link(path, file.get(files)),
            Op::Whiteout(folder, name) => tar.file(format!("{folder}/.wh.{name}"), b""),
            Op::Opaque(folder) => tar.file(format!("{folder}/.wh..wh..opq"), b""),
        };
    }
    tar.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_layers_are_as_umoci_unpacks_them(layers in prop::collection::vec(prop::collection::vec(op(), 0..12), 1..4)) {
        if is_root() {
            let mut files = Vec::new();
            let archives: Vec<_> = layers.iter().map(|ops| archive(ops, &mut files)).collect();
            let scratch = tempfile::tempdir().unwrap();
            let image = scratch.path().join("image");
            let layers = layout::write(&image, &archives);
            let begun = SystemTime::now();
            let unpacked = mount::unpack(&format!("{}:image", image.display()), scratch.path());
            let rootfs = mount::build(&layers, scratch.path());
            match (unpacked, rootfs) {
                (Ok(unpacked), Ok(rootfs)) => {
                    let mounted = Mounted::new(&rootfs, scratch.path());
                    listing::assert_same(&mounted.folder, &unpacked, begun);
                }
                (Err(_), Err(_)) => {}
                (Ok(_), Err(error)) => prop_assert!(false, "refused what umoci unpacks: {error}"),
                (Err(error), Ok(_)) => prop_assert!(false, "took what umoci refuses: {error}"),
            }
        }
    }
}
