//! What is around the host in these tests: another host, in a network namespace of its own, over which everything goes.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use netlink::{Netlink, Part};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::retry_on_intr,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// How long to wait for an answer that may never come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The other host, until this is dropped.
pub struct World;

/// Packets of an interface, as tcpdump tells them.
pub struct Capture {
    tcpdump: Child,
    lines: BufReader<std::process::ChildStdout>,
}

/// The firewall's rules, and what the kernel tells of their changes.
pub struct Rules(Netlink);

/// Runs a line of a shell, which must succeed; what it printed.
pub fn host(line: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", line])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stderr(Stdio::inherit())
        .output()
        .expect("there is a shell");
    assert!(output.status.success(), "{line}");
    String::from_utf8(output.stdout).expect("output is text")
}

/// Says hello to whoever connects, for as long as this process lives.
pub fn greet(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello\n");
        }
    });
}

/// Kills processes and waits until they are gone; how many there were.
pub fn kill_all(processes: &[i32]) -> usize {
    let ends = ends(processes);
    for (pid, _) in &ends {
        // One that has just gone is gone.
        let _ = kill_process(*pid, Signal::KILL);
    }
    wait(&ends);
    ends.len()
}

/// Waits until processes are gone.
pub fn wait_for_end(processes: &[i32]) {
    wait(&ends(processes));
}

fn ends(processes: &[i32]) -> Vec<(Pid, OwnedFd)> {
    let pids = processes.iter().filter_map(|pid| Pid::from_raw(*pid));
    pids.filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
        .collect()
}

fn wait(ends: &[(Pid, OwnedFd)]) {
    let limit = PATIENCE.try_into().expect("it is short");
    for (pid, end) in ends {
        let mut wait = [PollFd::new(end, PollFlags::IN)];
        let ended = retry_on_intr(|| poll(&mut wait, Some(&limit)));
        let ended = ended.expect("a process can be waited for");
        assert_eq!(ended, 1, "process {pid:?} goes on");
    }
}

/// Begins to watch an interface of the host.
pub fn capture(interface: &str) -> Capture {
    let mut tcpdump = Command::new("tcpdump")
        .args(["-l", "-nn", "-e", "-i", interface])
        .env("PATH", "/usr/sbin:/usr/bin:/bin")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tcpdump is installed");
    let said = tcpdump.stderr.take().expect("it is a pipe");
    let mut said = BufReader::new(said).lines();
    assert!(
        said.any(|line| line.is_ok_and(|line| line.contains("listening on"))),
        "it does not listen"
    );
    // What else it says is nobody's concern, and must not hold it up.
    thread::spawn(move || said.for_each(drop));
    let lines = BufReader::new(tcpdump.stdout.take().expect("it is a pipe"));
    Capture { tcpdump, lines }
}

/// Begins to watch the firewall's rules.
pub fn rules() -> Rules {
    let group = libc::NFNLGRP_NFTABLES as u32;
    Rules(Netlink::listen(Part::Netfilter, group).expect("root may listen"))
}

impl Rules {
    /// All of them.
    pub fn now() -> String {
        host("nft -s list ruleset")
    }

    /// Types of the changes since the last time (linux/netfilter/nf_tables.h).
    pub fn changes(&self) -> Vec<u16> {
        let mut found = Vec::new();
        let heard = self.0.hear(|kind, _| found.push(kind & 0xff));
        heard.expect("there is room for that many");
        found
    }

    /// Waits until they are these.
    pub fn until(&self, wanted: &str) {
        while Self::now() != wanted {
            let mut wait = [PollFd::new(&self.0, PollFlags::IN)];
            let limit = PATIENCE.try_into().expect("it is short");
            let told = retry_on_intr(|| poll(&mut wait, Some(&limit)));
            let told = told.expect("the kernel can be heard");
            assert_eq!(told, 1, "they stay\n{}", Self::now());
            self.changes();
        }
    }
}

impl World {
    /// Makes it: 203.0.113.2 there, 203.0.113.1 here, and a few addresses behind.
    pub fn new() -> Self {
        host(
            "set -e; sysctl -qw net.ipv4.ip_forward=0; ip link set lo up; ip netns add outside; \
             ip link add out0 type veth peer name out1 netns outside; \
             ip addr add 203.0.113.1/24 dev out0; ip link set out0 up; \
             ip -n outside link set lo up; ip -n outside addr add 203.0.113.2/24 dev out1; \
             ip -n outside link set out1 up; \
             for a in 198.51.100.9 169.254.169.254 192.168.7.7; do ip -n outside addr add $a/32 dev lo; done; \
             ip route add default via 203.0.113.2; ip route add 169.254.0.0/16 via 203.0.113.2",
        );
        Self
    }

    /// Does something as the other host: what it opens is there.
    pub fn outside<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let there = File::open("/run/netns/outside").expect("it was made");
        thread::spawn(move || {
            use std::os::fd::AsFd;
            move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may go there");
            act()
        })
        .join()
        .expect("it did not panic")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Command::new("sh")
            .args(["-c", "ip link del out0; ip netns del outside"])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .status();
    }
}

impl Capture {
    /// Everything up to the first packet that `text` is in.
    pub fn until(mut self, text: &str) -> String {
        let mut seen = String::new();
        loop {
            let start = seen.len();
            let length = self.lines.read_line(&mut seen).expect("output is text");
            assert_ne!(length, 0, "it ended without {text}: {seen}");
            if seen[start..].contains(text) {
                return seen;
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}
