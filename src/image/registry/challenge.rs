//! What a registry demands when it answers 401: the `WWW-Authenticate` header (RFC 9110, 11.6.1).
//!
//! Fulfilling the demand is not done here.

/// A demand that can be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password with each request.
    Basic,
    /// A token of a token server.
    Bearer {
        /// Address of the token server.
        realm: String,
        /// What the token server knows the registry by.
        service: Option<String>,
        /// What the token must be good for.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The first demand in a header that can be met: for a token if there is a choice.
    pub fn parse(header: &str) -> Option<Self> {
        let mut found = None;
        let mut rest = header.trim_start();
        while !rest.is_empty() {
            let Some((scheme, after)) = take_token(rest) else {
                break;
            };
            let (parameters, after) = parameters(after.trim_start());
            let value = |name: &str| {
                parameters
                    .iter()
                    .find(|(key, _)| key == name)
                    .map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = value("realm")
            {
                return Some(Self::Bearer {
                    realm,
                    service: value("service"),
                    scope: value("scope"),
                });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                found = Some(Self::Basic);
            }
            rest = after.trim_start_matches([' ', ',', '\t']);
        }
        found
    }
}

/// Parameters up to the next scheme, and what follows.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut parameters = Vec::new();
    while let Some((key, after)) = take_token(rest) {
        let Some(after) = after.trim_start().strip_prefix('=') else {
            // A token without a value is the next scheme.
            break;
        };
        let after = after.trim_start();
        let Some((value, after)) = take_quoted(after)
            .or_else(|| take_token(after).map(|(value, after)| (value.into(), after)))
        else {
            break;
        };
        parameters.push((key.to_ascii_lowercase(), value));
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start(),
            None => break,
        }
    }
    (parameters, rest)
}

fn take_token(text: &str) -> Option<(&str, &str)> {
    let end = text
        .find(|character: char| {
            !(character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character))
        })
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn take_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.strip_prefix('"')?.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 2..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        })
    }

    #[test]
    fn demands_of_real_registries_are_understood() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull,push""#;
        assert_eq!(
            Challenge::parse(hub),
            bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/busybox:pull,push")
            )
        );
        assert_eq!(
            Challenge::parse(r#"Basic realm="Registry Realm""#),
            Some(Challenge::Basic)
        );
        assert_eq!(
            Challenge::parse(r#"Basic realm="x", bearer Realm = "a\"b" "#),
            bearer("a\"b", None, None)
        );
        assert_eq!(Challenge::parse("Negotiate, Basic"), Some(Challenge::Basic));
        assert_eq!(
            Challenge::parse("bearer realm=plain"),
            bearer("plain", None, None)
        );
    }

    #[test]
    fn other_demands_cannot_be_met() {
        for header in [
            "",
            "Negotiate",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm=\"unfinished",
            "=,=",
            "\"\"",
        ] {
            assert_eq!(Challenge::parse(header), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_an_answer(header: String) {
            let _ = Challenge::parse(&header);
        }

        #[test]
        fn any_pieces_are_an_answer(header in r#"(Bearer|Basic|realm|=|"|\\|,| |x|é){0,20}"#) {
            let _ = Challenge::parse(&header);
        }
    }
}
