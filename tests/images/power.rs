//! Power cuts: what loads, pulls and removals do to the disk, in which order, judged by what a disk may lose.
//!
//! A trace of the system calls is replayed on a model in which, until a file is brought to disk, its content may be
//! missing and, until its folder is, its name may be. Whatever is there after a cut at any time must be whole: so
//! nothing may get a name that promises something that the disk can still lose.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    process::Command,
};

use crate::{
    faults::good,
    fixture::{Fixture, Packing, Place, succeed},
    hostile::Hostile,
};

/// One thing that a load did, in the order in which it was done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Content of a file changed.
    Write(String),
    /// A file's content, or a folder's names, were brought to disk.
    Sync(String),
    /// A folder was made.
    Folder(String),
    /// A file or folder got a new name; the old one may stay.
    Name(String, String),
    /// A name was taken away.
    Remove(String),
}

/// What `command` did below `root`.
fn trace(command: &Command, root: &Path, log: &Path) -> Vec<Step> {
    let calls = "trace=write,pwrite64,copy_file_range,ftruncate,fsync,fdatasync,mkdir,rename,linkat,unlink,openat";
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-y", "-s", "0", "-e", calls, "-o"])
        .arg(log);
    strace.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        strace.env(name, value.unwrap());
    }
    succeed(strace.output().unwrap());
    let text = std::fs::read_to_string(log).unwrap();
    let root = root.to_str().unwrap();
    let mut unfinished: HashMap<&str, String> = HashMap::new();
    let mut steps = Vec::new();
    for line in text.lines() {
        let (process, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        let whole = if let Some((begin, _)) = call.split_once(" <unfinished ...>") {
            unfinished.insert(process, begin.into());
            continue;
        } else if let Some((_, end)) = call.split_once(" resumed>") {
            unfinished.remove(process).unwrap() + end
        } else {
            call.to_owned()
        };
        steps.extend(step(&whole).filter(|step| {
            let (Step::Write(path)
            | Step::Sync(path)
            | Step::Folder(path)
            | Step::Name(_, path)
            | Step::Remove(path)) = step;
            path.starts_with(root)
        }));
    }
    steps
}

fn step(call: &str) -> Option<Step> {
    if !call.contains(" = ") || call.contains(" = -1 ") {
        return None;
    }
    let (name, arguments) = call.split_once('(')?;
    let on_file = || Some(arguments.split_once('<')?.1.split_once('>')?.0.to_owned());
    let strings: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
    match name {
        "write" | "pwrite64" | "ftruncate" => on_file().map(Step::Write),
        "copy_file_range" => Some(Step::Write(
            arguments.rsplit_once('<')?.1.split_once('>')?.0.into(),
        )),
        "fsync" | "fdatasync" => on_file().map(Step::Sync),
        "mkdir" => Some(Step::Folder((*strings.first()?).into())),
        "rename" | "linkat" => Some(Step::Name(
            (*strings.first()?).into(),
            (*strings.get(1)?).into(),
        )),
        "unlink" => Some(Step::Remove((*strings.first()?).into())),
        _ => None,
    }
}

/// What a disk has for certain.
#[derive(Default)]
struct Disk {
    /// Files whose content may be missing.
    volatile_content: HashSet<String>,
    /// Names that may be missing.
    volatile_names: HashSet<String>,
    /// Names that may be back.
    volatile_removals: HashSet<String>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').unwrap().0
}

impl Disk {
    fn replay(&mut self, step: &Step) {
        match step {
            Step::Write(path) => {
                self.volatile_content.insert(path.clone());
            }
            Step::Folder(path) => {
                self.volatile_names.insert(path.clone());
            }
            Step::Sync(path) => {
                self.volatile_content.remove(path);
                self.volatile_names.retain(|name| parent(name) != path);
                self.volatile_removals.retain(|name| parent(name) != path);
            }
            Step::Remove(path) => {
                self.volatile_removals.insert(path.clone());
            }
            Step::Name(from, to) => {
                // A folder takes what is in it along.
                let moved = |name: &String| {
                    name.strip_prefix(from.as_str())
                        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
                        .map(|rest| format!("{to}{rest}"))
                };
                for set in [&mut self.volatile_content, &mut self.volatile_names] {
                    let new: Vec<_> = set.iter().filter_map(moved).collect();
                    set.extend(new);
                }
                self.volatile_names.insert(to.clone());
            }
        }
    }

    /// What of the paths that begin with one of `parts` the disk may still lose.
    fn may_lose(&self, root: &str, parts: &[&str]) -> Vec<&String> {
        let is_part = |path: &&String| {
            let rest = path
                .strip_prefix(root)
                .and_then(|rest| rest.strip_prefix('/'));
            rest.is_some_and(|rest| parts.iter().any(|part| rest.starts_with(part)))
        };
        self.volatile_content
            .iter()
            .chain(&self.volatile_names)
            .filter(is_part)
            .collect()
    }
}

/// Replays what a command does that adds an image, and gives how many records and names it made.
fn adds_safely(place: &Place, command: &Command) -> (usize, usize) {
    let root = place.state().join("images");
    let steps = trace(command, &root, &place.path("trace"));
    let root = root.to_str().unwrap();
    let mut disk = Disk::default();
    let (mut records, mut names) = (0, 0);
    for step in &steps {
        if let Step::Name(from, to) = step {
            assert!(
                !disk.volatile_content.contains(from),
                "{to} gets content that is not on disk"
            );
            if to.starts_with(&format!("{root}/images/")) {
                records += 1;
                let lost = disk.may_lose(root, &CONTENT);
                assert_eq!(lost, Vec::<&String>::new(), "a record needs them");
            }
            if to.starts_with(&format!("{root}/names/")) {
                names += 1;
                let lost = disk.may_lose(root, &["blobs", "layers", "rootfs", "images"]);
                assert_eq!(lost, Vec::<&String>::new(), "a name needs them");
            }
        }
        disk.replay(step);
    }
    // What was reported as done is done.
    let lost = disk.may_lose(root, &["blobs", "layers", "rootfs", "images", "names"]);
    assert_eq!(lost, Vec::<&String>::new());
    (records, names)
}

const CONTENT: [&str; 3] = ["blobs", "layers", "rootfs"];

fn image() -> Fixture {
    let mut image = Fixture::new("power", &[Packing::Gzip, Packing::Plain]).named("a/b:1");
    let manifest = image.manifest.to_string().into_bytes();
    image.put("manifest", manifest);
    image
}

#[test]
fn a52_a_power_cut_at_any_time_of_a_load_leaves_an_image_whole_or_absent() {
    let place = Place::new();
    let path = place.write("image", &image().archive());
    let load = place.pillbug(&["load", "-i", path.to_str().unwrap()]);
    assert_eq!(adds_safely(&place, &load), (1, 1));
}

#[test]
fn a52_a_power_cut_at_any_time_of_a_pull_leaves_an_image_whole_or_absent() {
    let (place, image) = (Place::new(), image());
    let registry = Hostile::start(move |request, _| good(&image, request));
    let pull = place.pillbug(&["pull", "-q", &format!("{}/a/b:1", registry.address)]);
    assert_eq!(adds_safely(&place, &pull), (1, 1));
}

#[test]
fn a52_a_power_cut_at_any_time_of_a_removal_leaves_an_image_whole_or_absent() {
    let place = Place::new();
    place.load_well(&place.write("image", &image().archive()));
    let root = place.state().join("images");
    let remove = place.pillbug(&["rmi", "a/b:1"]);
    let steps = trace(&remove, &root, &place.path("trace"));
    let root = root.to_str().unwrap();
    let is_below = |path: &str, folder: &str| path.starts_with(&format!("{root}/{folder}/"));

    let mut disk = Disk::default();
    let mut removed = 0;
    for step in &steps {
        let gone = match step {
            Step::Remove(path) => Some(path),
            Step::Name(from, _) => Some(from),
            _ => None,
        };
        if let Some(gone) = gone {
            let may_return = |folder| {
                let mut removals = disk.volatile_removals.iter();
                removals.find(|path| is_below(path, folder))
            };
            if is_below(gone, "images") {
                assert_eq!(may_return("names"), None, "a name would lead to no record");
            }
            if CONTENT.iter().any(|folder| is_below(gone, folder)) {
                removed += 1;
                assert_eq!(may_return("images"), None, "a record would lead nowhere");
            }
        }
        disk.replay(step);
    }
    // Two layers as blobs and taken apart, manifest, configuration and metadata.
    assert_eq!(removed, 7);
    let mut returning = disk.volatile_removals.iter();
    assert!(!returning.any(|path| is_below(path, "names") || is_below(path, "images")));
}
