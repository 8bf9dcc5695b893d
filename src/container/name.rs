//! Container IDs and names.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

/// Characters of an ID that people are shown.
const SHORT: usize = 12;

/// Longest name.
const MAX_NAME: usize = 128;

/// 256 random bits as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

/// Text that is no ID or name of a container.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NameError {
    #[error("{0:?} is no container ID: 64 hexadecimal digits")]
    Id(String),
    #[error(
        "{0:?} is no container name: 2 to {MAX_NAME} letters, digits, `_`, `.` and `-`, the first one \
         a letter or digit"
    )]
    Name(String),
}

impl Id {
    /// A new ID.
    ///
    /// # Errors
    ///
    /// Where the system has no random bits to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bits = [0; 32];
        getrandom::fill(&mut bits)?;
        Ok(Self(hex::encode(bits)))
    }

    /// The whole ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its first 12 digits.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..SHORT]
    }
}

impl TryFrom<String> for Id {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 64 && text.bytes().all(digit) {
            Ok(Self(text))
        } else {
            Err(NameError::Id(text))
        }
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl Display for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Checks a name given by a user. A name is also a file name, so nothing that means more is let in.
///
/// # Errors
///
/// [`NameError::Name`].
pub fn check(name: &str) -> Result<(), NameError> {
    let mut bytes = name.bytes();
    let first = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && rest && (2..=MAX_NAME).contains(&name.len()) {
        Ok(())
    } else {
        Err(NameError::Name(name.into()))
    }
}

/// A name for the container `id` whose user gave none: what the ID's first bits pick from two lists.
#[must_use]
pub fn made_up(id: &Id) -> String {
    const MANNERS: [&str; 32] = [
        "agile", "amber", "brave", "brisk", "calm", "clever", "coiled", "curious", "dapper",
        "dusky", "earthy", "gentle", "glossy", "hardy", "humble", "jolly", "keen", "lively",
        "lucky", "mellow", "mossy", "nimble", "patient", "polite", "quiet", "rolling", "shy",
        "sleek", "steady", "stout", "sunny", "tidy",
    ];
    const ANIMALS: [&str; 32] = [
        "ant",
        "armadillo",
        "barnacle",
        "beetle",
        "chiton",
        "cicada",
        "clam",
        "cowrie",
        "crab",
        "crayfish",
        "cricket",
        "firefly",
        "hedgehog",
        "isopod",
        "katydid",
        "krill",
        "ladybird",
        "limpet",
        "lobster",
        "mantis",
        "mussel",
        "nautilus",
        "oyster",
        "pangolin",
        "prawn",
        "scallop",
        "shrimp",
        "snail",
        "terrapin",
        "tortoise",
        "turtle",
        "woodlouse",
    ];
    let pick = |at: usize| usize::from_str_radix(&id.0[at..at + 4], 16).unwrap_or(0) % 32;
    format!("{}_{}", MANNERS[pick(0)], ANIMALS[pick(4)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a62_only_plain_names_are_taken() {
        for name in ["web", "web-1.a_b", "0a"] {
            assert_eq!(check(name), Ok(()));
        }
        for name in [
            "",
            "a",
            "../x",
            "-rf",
            ".a",
            "a/b",
            "a b",
            "a\0",
            "é1",
            &"a".repeat(300),
        ] {
            assert_eq!(check(name), Err(NameError::Name(name.into())));
        }
    }

    #[test]
    fn made_up_names_are_names_and_ids_differ() {
        let (one, other) = (Id::random().unwrap(), Id::random().unwrap());
        assert_ne!(one, other);
        assert_eq!(check(&made_up(&one)), Ok(()));
        assert_eq!(Id::try_from(one.to_string()), Ok(one));
        assert!(Id::try_from("../x".to_owned()).is_err());
    }
}
