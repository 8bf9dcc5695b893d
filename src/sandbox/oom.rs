//! Whether the host's out-of-memory killer ended a process: its kernel's log says so, where one may read that.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

use nix::libc::O_NONBLOCK;

/// Longest record that the kernel hands out.
const MAX_RECORD: usize = 8 << 10;
/// Most records that are looked through: a log that is written to faster than it is read has no end.
const MAX_RECORDS: usize = 1 << 16;

/// Whether the log names this process, which has just died of a signal that nobody here sent. Process IDs are those of the
/// host's outermost namespace there, so that within another nothing is found.
pub fn killed(pid: u32) -> bool {
    let log = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open("/dev/kmsg");
    log.is_ok_and(|mut log| tells_of(&mut log, pid))
}

fn tells_of(log: &mut File, pid: u32) -> bool {
    let mut record = [0; MAX_RECORD];
    for _ in 0..MAX_RECORDS {
        match log.read(&mut record) {
            Ok(length) if names(&record[..length], pid) => return true,
            Ok(1..) => {}
            // Overwritten before it was read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Ok(0) | Err(_) => return false,
        }
    }
    false
}

/// Whether a record ("priority,number,time,flags;text", then lines of no matter here) is the killer's word on this one.
fn names(record: &[u8], pid: u32) -> bool {
    let record = String::from_utf8_lossy(record);
    let Some((prefix, text)) = record.split_once(';') else {
        return false;
    };
    // The kernel's own: those of facility 0. Anybody else can say anything.
    let priority = prefix.split(',').next().and_then(|text| text.parse().ok());
    let killed = text.split_once("Killed process ").map(|(_, rest)| rest);
    priority.is_some_and(|priority: u32| priority < 8)
        && killed
            .and_then(|rest| rest.split_once(' '))
            .is_some_and(|(number, _)| number.parse() == Ok(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a56_only_the_kernels_word_on_that_process_counts() {
        let record = b"3,812,92731004,-;Memory cgroup out of memory: Killed process 417 (pillbug) total-vm:270000kB\n";
        assert!(names(record, 417));
        assert!(!names(record, 41));
        let global =
            b"3,9,9,-;Out of memory: Killed process 41 (pillbug) total-vm:1kB\n SUBSYSTEM=x\n";
        assert!(names(global, 41));
        // Written to /dev/kmsg by a process: of facility 1.
        assert!(!names(b"11,9,9,-;Out of memory: Killed process 41 (x)", 41));
        for nonsense in [&b""[..], b";", b"3,1,1,-;Killed process ", b"\xff;\xff"] {
            assert!(!names(nonsense, 41));
        }
    }
}
