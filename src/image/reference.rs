//! Names of images, in the grammar of the reference package of the distribution project that every engine
//! follows: `domain/path:tag@digest`.
//!
//! A [`Reference`] is always complete and canonical: `busybox` is `docker.io/library/busybox:latest` from the
//! moment it is parsed, and every part of it is safe as a path component. Which registry answers for a domain
//! and whether such an image exists are other modules' business.
//!
//! The parser is written out because each `run` passes through it: compiling the grammar as a regular expression
//! costs more than everything else done to find an image.

mod short;

pub use short::ShortNames;

use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::image::digest::{Digest, DigestError};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Most bytes of a repository's name, its domain included.
const MAX_NAME: usize = 255;
/// Most bytes of a tag.
const MAX_TAG: usize = 128;
/// No reference is longer: a name, a tag and a SHA-512 digest.
const MAX_REFERENCE: usize = MAX_NAME + MAX_TAG + 140;

/// Why a text names no image.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ReferenceError {
    #[error("an image's name must not be empty")]
    Empty,
    #[error(
        "an image's name is at most {MAX_NAME} bytes, with tag and digest {MAX_REFERENCE}; this one has {0}"
    )]
    TooLong(usize),
    #[error("image name {0:?} must be lower case")]
    Uppercase(String),
    #[error(
        "invalid image name {0:?}: expected [REGISTRY/]NAME[:TAG][@DIGEST], the name of lower-case \
         letters and digits with single '.', '_', '-' or '/' between them"
    )]
    Name(String),
    #[error("invalid registry {0:?} in an image's name: expected HOST or HOST:PORT")]
    Domain(String),
    #[error(
        "invalid tag {0:?}: at most {MAX_TAG} letters, digits, '_', '.' and '-', not starting with '.' or '-'"
    )]
    Tag(String),
    #[error("invalid digest in an image's name")]
    Digest(#[from] DigestError),
    #[error("{0:?} is an image ID, which cannot be used as a name")]
    Identifier(String),
}

/// A complete name of an image: a repository and a tag, a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry, with its port if it has one: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/busybox`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; absent only where there is a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index it is pinned to.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository as a person writes them: `busybox`, `quay.io/podman/hello`.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return format!("{}/{}", self.domain, self.path);
        }
        // `library/a/b` is not what `a/b` means.
        match self.path.strip_prefix(OFFICIAL) {
            Some(rest) if !rest.contains('/') => rest.into(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as a person writes it: `busybox:latest`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    /// The same repository pinned to `digest`, without a tag.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same repository with another tag, without a digest.
    ///
    /// # Errors
    ///
    /// [`ReferenceError::Tag`] where `text` is no tag.
    pub fn with_tag(&self, text: &str) -> Result<Self, ReferenceError> {
        Ok(Self {
            tag: Some(tag(text)?),
            digest: None,
            ..self.clone()
        })
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.extend([":", tag]);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(format!("{}/{}", self.domain, self.path)))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_REFERENCE {
            return Err(ReferenceError::TooLong(text.len()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let (name, tag) = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => {
                (&rest[..colon], Some(tag(&rest[colon + 1..])?))
            }
            _ => (rest, None),
        };
        let (domain, path) = name_parts(name)?;
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.into()),
            (tag, _) => tag,
        };
        Ok(Self {
            domain,
            path,
            tag,
            digest,
        })
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

/// Splits and checks a repository's name, and completes it.
fn name_parts(name: &str) -> Result<(String, String), ReferenceError> {
    if name.is_empty() {
        return Err(ReferenceError::Empty);
    }
    if name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ReferenceError::Identifier(name.into()));
    }
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if is_domain(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = match domain {
        LEGACY_DEFAULT_DOMAIN => DEFAULT_DOMAIN,
        domain => domain,
    };
    check_domain(domain)?;
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ReferenceError::Uppercase(name.into()));
    }
    if !path.split('/').all(is_path_component) {
        return Err(ReferenceError::Name(name.into()));
    }
    let path = match (domain, path.contains('/')) {
        (DEFAULT_DOMAIN, false) => format!("{OFFICIAL}{path}"),
        _ => path.into(),
    };
    let length = domain.len() + 1 + path.len();
    if length > MAX_NAME {
        return Err(ReferenceError::TooLong(length));
    }
    Ok((domain.into(), path))
}

/// Whether the first component of a name is a registry rather than part of a repository on the default one.
fn is_domain(first: &str) -> bool {
    first.contains(['.', ':', '['])
        || first == "localhost"
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_domain(domain: &str) -> Result<(), ReferenceError> {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let host_is_good = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_domain_component),
    };
    let port_is_good = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    });
    if host_is_good && port_is_good {
        Ok(())
    } else {
        Err(ReferenceError::Domain(domain.into()))
    }
}

fn is_domain_component(component: &str) -> bool {
    !component.is_empty()
        && !component.starts_with('-')
        && !component.ends_with('-')
        && component
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let plain_ends =
        bytes.first().copied().is_some_and(is_plain) && bytes.last().copied().is_some_and(is_plain);
    plain_ends
        && bytes
            .split(|byte| is_plain(*byte))
            .all(|separator| match separator {
                b"" | b"." | b"_" | b"__" => true,
                dashes => dashes.iter().all(|byte| *byte == b'-'),
            })
}

fn tag(text: &str) -> Result<String, ReferenceError> {
    let is_good = !text.is_empty()
        && text.len() <= MAX_TAG
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if is_good {
        Ok(text.into())
    } else {
        Err(ReferenceError::Tag(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed() {
        let cases = [
            (
                "busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "busybox:1.36",
                "docker.io/library/busybox:1.36",
                "busybox:1.36",
            ),
            ("foo/bar", "docker.io/foo/bar:latest", "foo/bar:latest"),
            (
                "index.docker.io/foo",
                "docker.io/library/foo:latest",
                "foo:latest",
            ),
            (
                "docker.io/library/foo",
                "docker.io/library/foo:latest",
                "foo:latest",
            ),
            (
                "library/a/b",
                "docker.io/library/a/b:latest",
                "library/a/b:latest",
            ),
            (
                "localhost/foo",
                "localhost/foo:latest",
                "localhost/foo:latest",
            ),
            ("host:5000/foo:x", "host:5000/foo:x", "host:5000/foo:x"),
            (
                "test.com:5000",
                "docker.io/library/test.com:5000",
                "test.com:5000",
            ),
            (
                "[::1]:5000/foo",
                "[::1]:5000/foo:latest",
                "[::1]:5000/foo:latest",
            ),
            ("[::1]/foo", "[::1]/foo:latest", "[::1]/foo:latest"),
            ("Host/foo", "Host/foo:latest", "Host/foo:latest"),
            (
                "a__b/c-d.e---f_g:T_-.",
                "docker.io/a__b/c-d.e---f_g:T_-.",
                "a__b/c-d.e---f_g:T_-.",
            ),
        ];
        for (text, canonical, familiar) in cases {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
    }

    #[test]
    fn a_digest_needs_no_tag() {
        let pinned: Reference = format!("busybox@{DIGEST}").parse().unwrap();
        assert_eq!(pinned.tag(), None);
        assert_eq!(pinned.familiar(), format!("busybox@{DIGEST}"));
        let both: Reference = format!("busybox:1@{DIGEST}").parse().unwrap();
        assert_eq!(both.tag(), Some("1"));
        assert_eq!(both.pinned(*both.digest().unwrap()), pinned);
    }

    #[test]
    fn a23_hostile_names_are_refused() {
        let long_name = "a".repeat(250);
        let long_tag = format!("a:{}", "t".repeat(129));
        let endless = "a/".repeat(1 << 20);
        let id = "0123456789abcdef".repeat(4);
        let hostile = [
            "",
            "/",
            "//",
            "..",
            "../x",
            "a/../b",
            "a/..",
            "./a",
            "/a",
            "a/",
            "a//b",
            "-rf",
            "a:",
            "a:-x",
            "a:.x",
            ":x",
            "a:b:c",
            "a\0b",
            "a b",
            "a\n",
            "é",
            "a@",
            "@",
            "a@sha256:../../x",
            "a@md5:00",
            "A",
            "a/B",
            "a..b",
            "a___b",
            "_a",
            "a_",
            "a.",
            "host:/a",
            "host:99999/a",
            "host:+1/a",
            "-host.com/a",
            "host-.com/a",
            "ho..st/a",
            ".com/a",
            "[::1/a",
            "[::1]x/a",
            "[zz]/a",
            "[]:1/a",
            "a@b@c",
            "localhost/",
            &long_name,
            &long_tag,
            &endless,
            &id,
        ];
        for text in hostile {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn canonical_and_familiar_forms_mean_the_same(
            text in r"([a-zA-Z0-9.-]{1,9}(:[0-9]{1,5})?/)?[a-z0-9._-]{1,8}(/[a-z0-9._-]{1,8}){0,3}(:[\w.-]{1,9})?"
        ) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
                prop_assert_eq!(reference.familiar().parse(), Ok(reference));
            }
        }

        #[test]
        fn a23_every_part_is_a_safe_path_component(text in r"[a-zA-Z0-9./:@_\[\]-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                for part in reference.path().split('/').chain([reference.domain()]).chain(reference.tag()) {
                    prop_assert!(!part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\0']));
                }
            }
        }

        #[test]
        fn anything_is_an_answer(text: String) {
            let _ = text.parse::<Reference>();
        }
    }
}
