//! What a guest kernel that panicked said of it. What it prints is a guest's word: shown, never acted upon.

const MAX_MESSAGE: usize = 1024;

/// Why a kernel panicked, in its own words: the line of `console` that says so, and where an exception
/// led to it, the lines that say which and where. `None` where it did not panic. At most 1 KiB.
pub fn message(console: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(console);
    let (before, panic) = text.split_at(text.rfind("Kernel panic")?);
    let mut message = panic.lines().next()?.trim_end().to_owned();
    // The first of a kind is the cause: what the kernel dies of afterwards follows from it.
    for sign in ["BUG: ", "Oops: ", "RIP: "] {
        if let Some(line) = before
            .lines()
            .find_map(|line| line.find(sign).map(|at| &line[at..]))
        {
            message.push_str("; ");
            message.push_str(line.trim_end());
        }
    }
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::message;

    #[test]
    fn a_panic_is_one_line() {
        let console = b"hello\r\nKernel panic - not syncing: sysrq triggered crash\r\nCPU: 0\r\n";
        let said = message(console);
        assert_eq!(
            said.as_deref(),
            Some("Kernel panic - not syncing: sysrq triggered crash")
        );
        assert_eq!(message(b"all is well"), None);
    }

    #[test]
    fn an_exception_before_it_is_named_with_its_place() {
        let console = b"[ 0.1] BUG: unable to handle page fault for address: ffff8880\r\n\
            [ 0.1] Oops: Oops: 0002 [#1] SMP\r\n[ 0.1] RIP: 0010:ffffffff81000000\r\nCR2: 0\r\n\
            [ 0.2] RIP: 0010:0\r\n[ 0.2] Kernel panic - not syncing: Fatal exception\r\n";
        assert_eq!(
            message(console).as_deref(),
            Some(
                "Kernel panic - not syncing: Fatal exception; BUG: unable to handle page fault for \
                 address: ffff8880; Oops: Oops: 0002 [#1] SMP; RIP: 0010:ffffffff81000000"
            )
        );
    }

    #[test]
    fn a_guest_cannot_make_it_long() {
        let mut console = b"Kernel panic".to_vec();
        console.extend("\u{e9}".repeat(5000).bytes());
        assert!(message(&console).is_some_and(|said| said.len() <= 1024));
    }
}
