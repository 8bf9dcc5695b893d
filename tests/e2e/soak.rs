//! Services that are used, stopped and killed at random, for as long as somebody has time: what is on the host afterwards
//! is what was there before.
//!
//! `SOAK_MINUTES` says how long (one minute unless it is set), `SOAK_SEED` repeats a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    command::{processes, program, state_root, traces},
    lifecycle::process_end,
};

/// Longest that a command may take on an emulated processor which others use as well.
const LIMIT: Duration = Duration::from_secs(240);

/// What the host may have less at the end, in KiB: caches of the kernel that nobody can empty.
const MEMORY_SLACK: u64 = 32 << 10;

/// What the host may have more of at the end, of what other processes use as well.
const SLACK: u64 = 48;

/// The services, and how each is made.
const SERVICES: [(&str, &[&str]); 4] = [
    ("soak-web", &["--restart", "always", "nginx"]),
    (
        "soak-cache",
        &["--restart", "unless-stopped", "--network", "none", "redis"],
    ),
    (
        "soak-box",
        &[
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do echo line; sleep 1 & wait $!; done",
        ],
    ),
    (
        "soak-gone",
        &["--rm", "--network", "none", "busybox", "sleep", "1000"],
    ),
];

#[test]
fn a70_what_is_killed_at_random_leaves_nothing_behind() {
    let minutes: u64 = number("SOAK_MINUTES").unwrap_or(1);
    let seed = number("SOAK_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(1, |now| now.subsec_nanos().into())
    });
    let mut soak = Soak {
        random: seed | 1,
        done: BTreeMap::new(),
        failed: BTreeMap::new(),
    };
    // Once round, for what is made at the first use and stays.
    for (name, _) in SERVICES {
        soak.make(name);
        soak.tell(&["rm", "-f", "-v", name]);
    }
    let before = Host::look_when_settled();

    let end = Instant::now() + Duration::from_secs(60 * minutes);
    for (name, _) in SERVICES {
        soak.make(name);
    }
    while Instant::now() < end {
        soak.step();
    }

    println!("seed {seed}: {:?}; failed: {:?}", soak.done, soak.failed);
    // Whatever was done to them, the next command works.
    for (name, _) in &SERVICES[..3] {
        assert!(soak.tell(&["start", name]), "{name} does not start");
        assert!(soak.tell(&["exec", name, "true"]), "{name} does not answer");
    }
    for (name, _) in SERVICES {
        soak.tell(&["rm", "-f", "-v", name]);
    }
    for pid in processes() {
        if let Some(end) = process_end(pid) {
            end.wait();
        }
    }
    let after = Host::look_when_settled();
    println!("before: {}\nafter:  {}", before.text(), after.text());
    after.is_as(&before);
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Who does it.
struct Soak {
    random: u64,
    done: BTreeMap<&'static str, u32>,
    failed: BTreeMap<String, u32>,
}

impl Soak {
    /// A number below `limit` (xorshift).
    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 16).unwrap_or(0) % limit
    }

    fn step(&mut self) {
        let (name, _) = SERVICES[self.below(SERVICES.len())];
        let actions = [
            "exec",
            "exec -d",
            "logs",
            "ps",
            "stop",
            "start",
            "restart",
            "kill",
            "rm -f",
            "kill -9 VMM",
            "kill -9 supervisor",
            "kill -9 exec",
            "kill -9 logs",
            "kill -9 start",
            "kill -9 restart",
            "pause",
            "system start",
        ];
        let action = actions[self.below(actions.len())];
        *self.done.entry(action).or_default() += 1;
        match action {
            "exec" => drop(self.tell(&["exec", name, "sh", "-c", "sleep 1000 & echo hi"])),
            "exec -d" => drop(self.tell(&["exec", "-d", name, "sleep", "100"])),
            "logs" => drop(self.tell(&["logs", "-n", "5", name])),
            "ps" => assert!(self.tell(&["ps", "-a"])),
            "stop" => drop(self.tell(&["stop", "-t", "2", name])),
            "start" => drop(self.tell(&["start", name])),
            "restart" => drop(self.tell(&["restart", "-t", "0", name])),
            "kill" => drop(self.tell(&["kill", name])),
            "rm -f" => {
                self.tell(&["rm", "-f", "-v", name]);
                self.make(name);
            }
            "kill -9 VMM" => self.kill_one_of("vmm-process"),
            "kill -9 supervisor" => self.kill_one_of("supervise"),
            "kill -9 exec" => self.interrupt(&["exec", name, "sleep", "1000"]),
            "kill -9 logs" => self.interrupt(&["logs", "-f", name]),
            "kill -9 start" => self.interrupt(&["start", name]),
            "kill -9 restart" => self.interrupt(&["restart", "-t", "0", name]),
            "pause" => {
                self.tell(&["pause", name]);
                self.tell(&["unpause", name]);
            }
            _ => drop(self.tell(&["system", "start"])),
        }
    }

    /// Makes a service anew, where there is none of its name.
    fn make(&mut self, name: &str) {
        let found = SERVICES.iter().find(|(service, _)| *service == name);
        let arguments = found.map_or(&[][..], |(_, arguments)| arguments);
        let run = [&["run", "-d", "--name", name], arguments].concat();
        self.tell(&run);
    }

    /// Runs `pillbug ARGUMENTS...`: it may fail, and neither hang nor panic. Whether it succeeded.
    fn tell(&mut self, arguments: &[&str]) -> bool {
        let assert = assert_cmd::Command::new(program())
            .args(arguments)
            .timeout(LIMIT)
            .assert();
        let output = assert.get_output();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code().is_some() && !said.contains("panicked"),
            "{arguments:?}: {output:?}"
        );
        if !output.status.success() {
            // Without what is different each time.
            let words = said
                .split_whitespace()
                .filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
            let said = words.take(14).collect::<Vec<_>>().join(" ");
            *self
                .failed
                .entry(format!("{}: {said}", arguments[0]))
                .or_default() += 1;
        }
        output.status.success()
    }

    /// Kills a command after up to two seconds.
    fn interrupt(&mut self, arguments: &[&str]) {
        let mut child = Command::new(program())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pillbug starts");
        let patience = Duration::from_millis(u64::try_from(self.below(2000)).unwrap_or(0));
        if let Some(end) = process_end(pid_of(&child)) {
            end.within(patience);
        }
        let _ = child.kill();
        child.wait().expect("a child can be waited for");
    }

    /// Kills a process of pillbug's of this kind.
    fn kill_one_of(&mut self, kind: &str) {
        let is_one = |pid: &i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(kind)
        };
        let found: Vec<i32> = processes().into_iter().filter(is_one).collect();
        if !found.is_empty() {
            let pid = found[self.below(found.len())];
            // It may have ended since.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("process IDs are positive")
}

/// What there is on this host of what pillbug uses.
struct Host {
    /// What must be the same.
    exact: BTreeMap<&'static str, BTreeSet<PathBuf>>,
    /// What others use as well.
    counted: BTreeMap<&'static str, u64>,
    available_kib: u64,
}

impl Host {
    /// Once the machines' processes have let go of their network devices, which may take them a moment longer than
    /// all know of their end.
    fn look_when_settled() -> Self {
        let end = Instant::now() + Duration::from_secs(20);
        let has_device = || {
            let devices = entries(Path::new("/sys/class/net"));
            devices
                .iter()
                .any(|path| path.to_string_lossy().contains("/pb-"))
        };
        while has_device() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
        Self::look()
    }

    fn look() -> Self {
        // What is only cached is free.
        let _ = fs::write("/proc/sys/vm/drop_caches", "3");
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let first = |text: String| {
            let number = text.split_whitespace().find_map(|word| word.parse().ok());
            number.unwrap_or(0_u64)
        };
        let meminfo = read("/proc/meminfo");
        let available = meminfo
            .lines()
            .find(|line| line.starts_with("MemAvailable"));
        let mounts = read("/proc/self/mountinfo");
        let mount = |line: &str| line.split(' ').nth(4).map(PathBuf::from);
        Self {
            exact: BTreeMap::from([
                ("state and processes", traces(&state_root())),
                ("control groups", folders(Path::new("/sys/fs/cgroup"))),
                ("mounts", mounts.lines().filter_map(mount).collect()),
                ("network devices", entries(Path::new("/sys/class/net"))),
            ]),
            counted: BTreeMap::from([
                ("open files", first(read("/proc/sys/fs/file-nr"))),
                (
                    "sockets",
                    u64::try_from(read("/proc/net/unix").lines().count()).unwrap_or(0),
                ),
            ]),
            available_kib: first(available.unwrap_or_default().into()),
        }
    }

    fn text(&self) -> String {
        let sizes: BTreeMap<_, _> = self
            .exact
            .iter()
            .map(|(what, all)| (what, all.len()))
            .collect();
        format!(
            "{sizes:?} {:?} {} KiB available",
            self.counted, self.available_kib
        )
    }

    fn is_as(&self, before: &Self) {
        for (what, found) in &self.exact {
            let more: Vec<_> = found.difference(&before.exact[what]).collect();
            assert!(more.is_empty(), "{what}: {more:?} stayed");
            assert_eq!(found.len(), before.exact[what].len(), "{what} went");
        }
        for (what, count) in &self.counted {
            let most = before.counted[what] + SLACK;
            assert!(*count <= most, "{what}: {count}, not {most} at most");
        }
        assert!(
            self.available_kib + MEMORY_SLACK >= before.available_kib,
            "memory did not come back"
        );
    }
}

fn entries(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn folders(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for path in entries(folder) {
        if path.is_dir() && !path.is_symlink() {
            found.extend(folders(&path));
            found.insert(path);
        }
    }
    found
}
