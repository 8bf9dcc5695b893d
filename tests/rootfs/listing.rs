//! What a tree of files looks like to whoever walks it, and how two of them differ.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Everything of a file but its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    /// Of devices.
    pub rdev: u64,
    /// Of regular files.
    pub size: u64,
    /// Of symbolic links.
    pub target: Option<PathBuf>,
    /// The first of all names of this file, and how many there are; not of folders.
    pub names: Option<(PathBuf, u64)>,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// Walks a tree. Paths are relative to `root`, which itself is the empty path.
pub fn walk(root: &Path) -> BTreeMap<PathBuf, Item> {
    let mut items = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    let mut inodes: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        if kind.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                pending.push(relative.join(entry.unwrap().file_name()));
            }
        } else {
            inodes
                .entry(metadata.ino())
                .or_default()
                .push(relative.clone());
        }
        let device = kind.is_char_device() || kind.is_block_device();
        let item = Item {
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            rdev: if device { metadata.rdev() } else { 0 },
            size: if kind.is_file() { metadata.size() } else { 0 },
            target: kind.is_symlink().then(|| fs::read_link(&path).unwrap()),
            names: (!kind.is_dir()).then(|| (PathBuf::new(), metadata.nlink())),
            xattrs: xattrs(&path),
        };
        items.insert(relative, item);
    }
    for paths in inodes.values_mut() {
        paths.sort();
        for path in &*paths {
            let names = items
                .get_mut(path)
                .and_then(|item| item.names.as_mut())
                .unwrap();
            names.0.clone_from(&paths[0]);
        }
    }
    items
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let names = xattr::list(path).unwrap();
    names
        .map(|name| (name.clone(), xattr::get(path, &name).unwrap().unwrap()))
        .collect()
}

/// Fails with the first differences, if there are any, between a tree and what it should be.
///
/// Whoever unpacked `expected` began at `begun`: a later time of a folder is no part of the image, but left by work
/// in that folder.
pub fn assert_same(actual: &Path, expected: &Path, begun: SystemTime) {
    let (ours, mut theirs) = (walk(actual), walk(expected));
    let begun = begun
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64;
    for (path, item) in theirs.iter_mut().filter(|(_, item)| item.names.is_none()) {
        if item.mtime.0 >= begun {
            item.mtime = ours.get(path).map_or((0, 0), |ours| ours.mtime);
        }
    }
    let mut differences = String::new();
    let mut count = 0;
    let mut differ = |path: &Path, what: &dyn std::fmt::Debug| {
        count += 1;
        if count <= 20 {
            let _ = writeln!(differences, "{path:?}: {what:?}");
        }
    };
    for (path, item) in &theirs {
        match ours.get(path) {
            None => differ(path, &"missing"),
            Some(same) if same == item => {}
            Some(other) => differ(path, &("is", other, "should be", item)),
        }
    }
    for path in ours.keys().filter(|path| !theirs.contains_key(*path)) {
        differ(path, &"should not be there");
    }
    for (path, item) in &theirs {
        let first = item.names.as_ref().is_some_and(|(first, _)| first == path);
        let file = item.mode & 0o170_000 == 0o100_000;
        let comparable = ours.get(path).is_some_and(|other| other.mode == item.mode);
        if first && file && comparable && !same_content(&actual.join(path), &expected.join(path)) {
            differ(path, &"has other content");
        }
    }
    assert!(
        count == 0,
        "{count} differences between {actual:?} and {expected:?}:\n{differences}"
    );
}

fn same_content(one: &Path, other: &Path) -> bool {
    let open = |path| BufReader::with_capacity(1 << 20, File::open(path).unwrap());
    let (mut one, mut other) = (open(one), open(other));
    loop {
        let (left, right) = (one.fill_buf().unwrap(), other.fill_buf().unwrap());
        let count = left.len().min(right.len());
        if left[..count] != right[..count] {
            return false;
        }
        if count == 0 {
            return left.is_empty() && right.is_empty();
        }
        one.consume(count);
        other.consume(count);
    }
}
