//! The server asked from outside, by guests that are up to no good.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, socketpair},
    stat::{Mode, umask},
};
use proptest::prelude::*;

use super::*;

const ROOT: u64 = 1;
const READLINK: u32 = 5;
const SYMLINK: u32 = 6;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RENAME: u32 = 12;
const LINK: u32 = 13;

/// A server of the folder `shared`, beside which is another.
struct Bench {
    folder: tempfile::TempDir,
    server: Server,
    device: OwnedFd,
    socket: OwnedFd,
}

impl Drop for Bench {
    /// The library clears the process's umask, which other tests have as well.
    fn drop(&mut self) {
        umask(Mode::from_bits_truncate(0o022));
    }
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["shared/sub", "outside"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("outside/canary"), "alive").unwrap();
        symlink("../outside", folder.path().join("shared/link")).unwrap();
        let (device, socket) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let root = folder.path().join("shared");
        Self {
            server: Server::new(root.to_str().unwrap()).unwrap(),
            folder,
            device,
            socket,
        }
    }

    fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    /// The answer to a request, if there is one: its error number, and what follows.
    fn ask(&self, opcode: u32, node: u64, body: &[u8]) -> Option<(i32, Vec<u8>)> {
        let mut request = ((HEADER + body.len()) as u32).to_le_bytes().to_vec();
        request.extend(opcode.to_le_bytes());
        request.extend(7u64.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.resize(HEADER, 0);
        request.extend(body);
        let mut buffer = vec![0; LONGEST];
        self.server.answer(&self.socket, &mut request, &mut buffer);
        let mut answer = vec![0; LONGEST];
        let length = recv(self.device.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT).ok()?;
        assert!(length >= ANSWER_HEADER);
        assert_eq!(number(&answer, 0) as usize, length);
        assert_eq!(answer[8..16], 7u64.to_le_bytes());
        let error = -(number(&answer, 4).cast_signed());
        Some((error, answer[ANSWER_HEADER..length].to_vec()))
    }

    fn error(&self, opcode: u32, node: u64, body: &[u8]) -> i32 {
        self.ask(opcode, node, body).expect("an answer").0
    }

    /// What the server calls `name` in the root.
    fn node(&self, name: &[u8]) -> u64 {
        let (error, entry) = self.ask(LOOKUP, ROOT, name).unwrap();
        assert_eq!(error, 0);
        u64::from_le_bytes(entry[..8].try_into().unwrap())
    }

    fn is_whole(&self) -> bool {
        let entries = fs::read_dir(self.outside()).unwrap().count();
        entries == 1 && fs::read(self.outside().join("canary")).unwrap() == b"alive"
    }
}

fn names(front: &[u8], names: &[&[u8]]) -> Vec<u8> {
    let mut body = front.to_vec();
    for name in names {
        body.extend(*name);
        body.push(0);
    }
    body
}

#[test]
fn a23_names_that_are_paths_lead_nowhere() {
    let bench = Bench::new();
    let sub = bench.node(b"sub\0");
    for name in [
        &b"."[..],
        b"..",
        b"../outside",
        b"/etc/passwd",
        b"link/canary",
        b"sub/..",
    ] {
        for node in [ROOT, sub] {
            assert_ne!(
                bench.error(LOOKUP, node, &names(b"", &[name])),
                0,
                "{name:?}"
            );
            assert_ne!(bench.error(MKDIR, node, &names(&[0; 8], &[name])), 0);
            assert_ne!(bench.error(UNLINK, node, &names(b"", &[name])), 0);
            assert_ne!(bench.error(CREATE, node, &names(&[0; 16], &[name])), 0);
            let to = ROOT.to_le_bytes();
            assert_ne!(bench.error(RENAME, node, &names(&to, &[b"sub", name])), 0);
            assert_ne!(
                bench.error(LINK, node, &names(&sub.to_le_bytes(), &[name])),
                0
            );
        }
    }
    assert!(bench.is_whole());
}

#[test]
fn a24_links_are_shown_and_never_followed() {
    let bench = Bench::new();
    let link = bench.node(b"link\0");
    assert_eq!(bench.ask(READLINK, link, b"").unwrap().1, b"../outside");
    assert_ne!(bench.error(OPEN, link, &[0; 8]), 0);
    assert_ne!(bench.error(LOOKUP, link, b"canary\0"), 0);
    assert_ne!(bench.error(CREATE, link, &names(&[0; 16], &[b"new"])), 0);
    let target = bench.outside().join("canary");
    let absolute = names(b"", &[b"absolute", target.to_str().unwrap().as_bytes()]);
    assert_eq!(bench.error(SYMLINK, ROOT, &absolute), 0);
    let absolute = bench.node(b"absolute\0");
    assert_ne!(bench.error(OPEN, absolute, &2u64.to_le_bytes()), 0);
    assert!(bench.is_whole());
}

#[test]
fn writes_are_as_large_as_requests_may_be() {
    let bench = Bench::new();
    let mut body = [0; 64];
    body[..4].copy_from_slice(&7u32.to_le_bytes());
    body[4..8].copy_from_slice(&41u32.to_le_bytes());
    body[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let (error, answer) = bench.ask(INIT, 0, &body).unwrap();
    assert_eq!((error, answer.len()), (0, INIT_ANSWER));
    assert_eq!(number(&answer, 20), MAX_DATA);
    let flags = number(&answer, 12);
    let kept_back = FsOptions::WRITEBACK_CACHE.bits() as u32;
    assert_eq!(flags & kept_back, 0);
    body[0] = 6;
    assert_eq!(bench.error(INIT, 0, &body), libc::EPROTO);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn a16_any_request_is_answered_or_dropped(
        opcode in prop_oneof![0..64u32, any::<u32>()],
        node in prop_oneof![0..4u64, any::<u64>()],
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let bench = Bench::new();
        bench.node(b"sub\0");
        bench.ask(opcode, node, &body);
        prop_assert!(bench.is_whole());
        prop_assert!(bench.ask(LOOKUP, ROOT, b"nothing\0").is_some());
    }
}
