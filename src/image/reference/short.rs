//! Short names: what a name without a registry is completed with where a person has settled that.
//!
//! Only what a person types is completed so. Names in archives mean what they mean to everybody.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Reference, ReferenceError};

/// The settings about short names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ShortNames {
    /// The registry of names without one, in place of docker.io.
    pub registry: Option<String>,
    /// Whole repositories for single short names.
    pub names: BTreeMap<String, String>,
}

impl ShortNames {
    /// What a text means that a person typed.
    ///
    /// # Errors
    ///
    /// Where it is no name, or what was settled makes it none.
    pub fn parse(&self, text: &str) -> Result<Reference, ReferenceError> {
        let end = text.find('@').unwrap_or(text.len());
        let last = text[..end].rfind('/').map_or(0, |slash| slash + 1);
        let end = text[last..end].find(':').map_or(end, |colon| last + colon);
        let (name, suffix) = text.split_at(end);
        let is_domain = |part: &str| part.contains(['.', ':']) || part == "localhost";
        let has_domain = name
            .split_once('/')
            .is_some_and(|(first, _)| is_domain(first));
        match (self.names.get(name), &self.registry) {
            (Some(whole), _) => format!("{whole}{suffix}").parse(),
            (None, Some(registry)) if !has_domain && !name.is_empty() => {
                format!("{registry}/{text}").parse()
            }
            _ => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_names_are_completed() {
        let settled = ShortNames {
            registry: Some("registry.lan:5000".into()),
            names: [("debian".into(), "mirror.lan/base/debian".into())].into(),
        };
        for (text, whole) in [
            ("app", "registry.lan:5000/app:latest"),
            ("team/app:1", "registry.lan:5000/team/app:1"),
            ("debian", "mirror.lan/base/debian:latest"),
            ("debian:12", "mirror.lan/base/debian:12"),
            ("docker.io/debian", "docker.io/library/debian:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("a.b:80/app:1", "a.b:80/app:1"),
        ] {
            assert_eq!(settled.parse(text).unwrap().to_string(), whole);
        }
        let digest = format!("debian@sha256:{}", "0".repeat(64));
        let parsed = settled.parse(&digest).unwrap().to_string();
        assert_eq!(parsed, format!("mirror.lan/base/{digest}"));
        for text in ["", ":1", "App", "@"] {
            assert!(settled.parse(text).is_err(), "{text}");
        }
        let nothing = ShortNames::default();
        assert_eq!(nothing.parse("debian"), "debian".parse());
    }
}
