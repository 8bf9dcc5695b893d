//! Capability names of capabilities(7), and the set that Docker gives by default.

use protocol::Capabilities;

/// Bit n has name n, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// A name that is no capability.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown capability {0:?}: capabilities(7) lists them, such as NET_ADMIN; ALL is all of them"
)]
pub struct UnknownCapability(pub String);

/// Every capability.
#[must_use]
pub fn all() -> Capabilities {
    Capabilities((1 << NAMES.len()) - 1)
}

/// The default set with `add` and `drop` applied as Docker does: adding `ALL` gives all but the
/// dropped names, dropping `ALL` gives just the added ones, and otherwise a name in both is added.
///
/// # Errors
///
/// [`UnknownCapability`] for a name that capabilities(7) does not have. Case and a leading `CAP_` do
/// not matter.
pub fn select(add: &[String], drop: &[String]) -> Result<Capabilities, UnknownCapability> {
    let (add_all, add) = split(add)?;
    let (drop_all, drop) = split(drop)?;
    let default: u64 = DEFAULT.iter().filter_map(|name| bit(name)).sum();
    Ok(Capabilities(match (add_all, drop_all) {
        (true, _) => all().0 & !drop,
        (false, true) => add,
        (false, false) => default & !drop | add,
    }))
}

/// Whether `ALL` is among the names, and the bits of the others.
fn split(names: &[String]) -> Result<(bool, u64), UnknownCapability> {
    let mut all = false;
    let mut bits = 0;
    for name in names {
        let upper = name.to_ascii_uppercase();
        match upper.strip_prefix("CAP_").unwrap_or(&upper) {
            "ALL" => all = true,
            short => bits |= bit(short).ok_or_else(|| UnknownCapability(name.clone()))?,
        }
    }
    Ok((all, bits))
}

fn bit(name: &str) -> Option<u64> {
    NAMES
        .iter()
        .position(|known| *known == name)
        .map(|position| 1 << position)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(add: &[&str], drop: &[&str]) -> u64 {
        let own = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        select(&own(add), &own(drop)).unwrap().0
    }

    #[test]
    fn the_default_set_is_dockers() {
        // As `grep CapBnd /proc/self/status` shows it in a Docker container.
        assert_eq!(chosen(&[], &[]), 0xa804_25fb);
    }

    #[test]
    fn names_are_added_and_dropped_in_any_spelling() {
        assert_eq!(chosen(&["cap_net_admin"], &["ALL"]), 1 << 12);
        assert_eq!(chosen(&["ALL"], &["SYS_ADMIN"]), all().0 & !(1 << 21));
        assert_eq!(chosen(&["KILL"], &["KILL", "CHOWN"]), 0xa804_25fb & !1);
    }

    #[test]
    fn an_unknown_name_is_named() {
        let error = select(&["FLY".into()], &[]).unwrap_err();
        assert_eq!(error, UnknownCapability("FLY".into()));
    }
}
