//! Holds the rules of ARCHITECTURE.md: a rule that no test holds is a wish.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Rust file below `folder`: its path from the root, and its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(root())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                let text = read(&name);
                found.push((name, text));
            }
        }
    }
    assert!(!found.is_empty(), "no Rust below {folder}");
    found
}

/// Where files of `rooms` use one of the `forbidden` ones.
fn uses(rooms: &[&str], forbidden: &[&str]) -> Vec<String> {
    let mut uses = Vec::new();
    for (name, text) in sources("src") {
        let inside = rooms.iter().any(|room| {
            name == format!("src/{room}.rs") || name.starts_with(&format!("src/{room}/"))
        });
        if !inside {
            continue;
        }
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for room in forbidden {
            let grouped = text.split("use crate::{").skip(1).any(|rest| {
                let group = rest.split(';').next().unwrap_or_default();
                first_segments(group).contains(room)
            });
            if grouped || text.contains(&format!("crate::{room}")) {
                uses.push(format!("{name} uses {room}"));
            }
        }
    }
    uses
}

/// First segments of the items in `a::{b, c}, d::e}`.
fn first_segments(group: &str) -> Vec<&str> {
    let mut depth = 0;
    let items = group.split(|character| {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    });
    let segment = |item: &'_ str| -> usize {
        item.find(|character: char| !character.is_alphanumeric() && character != '_')
            .unwrap_or(item.len())
    };
    items
        .map(str::trim)
        .map(|item| &item[..segment(item)])
        .collect()
}

#[test]
fn grouped_imports_are_seen() {
    assert_eq!(first_segments("a::{b, c}, d::e, f}"), ["a", "d", "f"]);
}

#[test]
fn rooms_depend_one_way() {
    let rooms = [
        "image",
        "network",
        "sandbox",
        "volume",
        "agent_client",
        "host",
    ];
    for room in ["image", "network", "sandbox", "volume", "agent_client"] {
        let mut others: Vec<&str> = rooms.into_iter().filter(|other| *other != room).collect();
        others.extend(["cli", "container"]);
        assert_eq!(uses(&[room], &others), Vec::<String>::new());
    }
    assert_eq!(uses(&["container", "host"], &["cli"]), Vec::<String>::new());
    assert!(
        !uses(&["container"], &["sandbox"]).is_empty(),
        "uses are not seen at all"
    );
}

#[test]
fn crates_depend_one_way() {
    for path in ["vmm/Cargo.toml", "guest-agent/protocol/Cargo.toml"] {
        for ours in ["pillbug", "guest-agent", "protocol", "vmm"] {
            let depends = read(path).lines().any(|line| {
                line.starts_with(&format!("{ours}.")) || line.starts_with(&format!("{ours} ="))
            });
            assert!(!depends, "{path} depends on {ours}");
        }
    }
    assert!(
        !read("guest-agent/Cargo.toml").contains("vmm"),
        "the agent knows no VMM"
    );
}

#[test]
fn devices_know_neither_kvm_nor_the_bus() {
    // The transport is no device: it is what connects one to the bus.
    let is_device = |name: &str| !name.starts_with("vmm/src/virtio/transport");
    for (name, text) in sources("vmm/src/virtio")
        .iter()
        .filter(|(name, _)| is_device(name))
    {
        for forbidden in ["kvm_ioctls", "kvm_bindings", "crate::bus", "crate::machine"] {
            assert!(!text.contains(forbidden), "{name} uses {forbidden}");
        }
    }
}

#[test]
fn unsafe_stays_in_the_listed_files() {
    let map = read("ARCHITECTURE.md");
    let list = map
        .split("## Unsafe code")
        .nth(1)
        .expect("a list of files with unsafe code");
    let list = list.split("\n## ").next().unwrap();
    let is_unsafe = |line: &str| {
        !line.trim_start().starts_with("//")
            && ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"]
                .iter()
                .any(|word| line.contains(word))
    };
    let mut files = Vec::new();
    for folder in [
        "src",
        "vmm/src",
        "guest-agent/src",
        "guest-agent/files/src",
        "guest-agent/netlink/src",
        "guest-agent/protocol/src",
    ] {
        let all = sources(folder).into_iter();
        files.extend(
            all.filter(|(_, text)| text.lines().any(is_unsafe))
                .map(|(name, _)| name),
        );
    }
    for name in &files {
        assert!(
            list.contains(&format!("`{name}`")),
            "{name} has unsafe code and is not listed"
        );
    }
    for listed in list
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|path| path.ends_with(".rs"))
    {
        assert!(
            files.iter().any(|name| name == listed),
            "{listed} is listed and has no unsafe code"
        );
    }
    for path in [
        "src/lib.rs",
        "guest-agent/files/src/lib.rs",
        "guest-agent/netlink/src/lib.rs",
        "guest-agent/protocol/src/lib.rs",
    ] {
        assert!(
            read(path).contains("#![forbid(unsafe_code)]"),
            "{path} allows unsafe code"
        );
    }
}

#[test]
fn every_path_on_the_map_exists() {
    let map = read("ARCHITECTURE.md");
    let is_path = |quoted: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        quoted.contains('/') && !quoted.starts_with('/') && quoted.chars().all(plain)
    };
    let paths: Vec<&str> = map.split('`').skip(1).step_by(2).filter(is_path).collect();
    for path in &paths {
        assert!(
            root().join(path).exists(),
            "ARCHITECTURE.md names {path}, which is not there"
        );
    }
    assert!(paths.len() > 20, "only {} paths on the map", paths.len());
}

#[test]
fn modules_say_what_they_are() {
    let forbidden = ["utils", "util", "common", "helpers", "manager", "misc"];
    for folder in [
        "src",
        "vmm/src",
        "guest-agent/src",
        "guest-agent/files/src",
        "guest-agent/netlink/src",
        "guest-agent/protocol/src",
    ] {
        for (name, text) in sources(folder) {
            let stem = Path::new(&name).file_stem().unwrap().to_str().unwrap();
            assert!(
                text.starts_with("//!"),
                "{name} does not begin with what it is"
            );
            assert!(!forbidden.contains(&stem), "{name}: name what it is");
            assert!(
                text.lines().count() <= 800,
                "{name} is above 800 lines: two things in one?"
            );
        }
    }
}
