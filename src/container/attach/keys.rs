//! The keys that detach a terminal from a container.

use std::str::FromStr;

/// Text that names no keys.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} are no detach keys: give characters and ctrl-X separated by commas, such as ctrl-p,ctrl-q"
)]
pub struct UnknownKeys(String);

/// A sequence of keys to look for in what is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys {
    sequence: Vec<u8>,
    /// How many of them were typed last, and held back.
    seen: usize,
}

impl Default for DetachKeys {
    /// Ctrl-P, Ctrl-Q.
    fn default() -> Self {
        Self {
            sequence: vec![0x10, 0x11],
            seen: 0,
        }
    }
}

impl FromStr for DetachKeys {
    type Err = UnknownKeys;

    /// Characters and `ctrl-` with a letter or one of `@ [ \ ] ^ _`, with commas between.
    fn from_str(text: &str) -> Result<Self, UnknownKeys> {
        let key = |name: &str| match name.as_bytes() {
            [byte] if byte.is_ascii() => Some(*byte),
            [b'c', b't', b'r', b'l', b'-', byte] => match byte.to_ascii_uppercase() {
                byte @ b'@'..=b'_' => Some(byte - b'@'),
                _ => None,
            },
            _ => None,
        };
        let sequence: Option<Vec<u8>> = text.split(',').map(key).collect();
        sequence
            .map(|sequence| Self { sequence, seen: 0 })
            .ok_or_else(|| UnknownKeys(text.into()))
    }
}

impl DetachKeys {
    /// What of `bytes`, and of what was held back before, goes on; and whether the keys were typed. What comes after
    /// them is dropped.
    pub fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut typed = Vec::with_capacity(bytes.len() + self.seen);
        for byte in bytes {
            if *byte != self.sequence[self.seen] && self.seen > 0 {
                typed.extend_from_slice(&self.sequence[..self.seen]);
                self.seen = 0;
            }
            if *byte != self.sequence[self.seen] {
                typed.push(*byte);
                continue;
            }
            self.seen += 1;
            if self.seen == self.sequence.len() {
                self.seen = 0;
                return (typed, true);
            }
        }
        (typed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_docker_names_them() {
        let keys = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.sequence);
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(vec![0x10, 0x11]));
        assert_eq!(keys("a,ctrl-[,ctrl-@"), Ok(vec![b'a', 0x1b, 0]));
        for text in ["", "ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-p ctrl-q"] {
            assert_eq!(keys(text), Err(UnknownKeys(text.into())));
        }
    }

    #[test]
    fn all_but_the_whole_sequence_goes_through() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"b"), (b"\x10b".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10\x11rest"), (b"\x10".to_vec(), true));
        assert_eq!(keys.filter(b"\x11"), (b"\x11".to_vec(), false));
    }
}
