//! `--filter` of images, in Docker's words.

use std::str::FromStr;

use anyhow::{Context, bail};
use glob::{MatchOptions, Pattern};
use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};

use crate::image::{
    reference::Reference,
    store::{Listed, Store},
};

/// One filter. Of one kind several may be given: for `reference` any has to fit, of the others all.
#[derive(Debug, Clone)]
pub enum Filter {
    /// Without a name, or with one.
    Dangling(bool),
    /// With a label, and with this value where one is given.
    Label(String, Option<String>),
    /// Without it.
    NoLabel(String, Option<String>),
    /// Made before this image.
    Before(String),
    /// Made after this image.
    Since(String),
    /// Called like this.
    Reference(Pattern),
    /// Made before this time.
    Until(Timestamp),
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let Some((name, value)) = text.split_once('=') else {
            bail!("a filter is NAME=VALUE");
        };
        let label = |text: &str| match text.split_once('=') {
            Some((name, value)) => (name.into(), Some(value.into())),
            None => (text.into(), None),
        };
        Ok(match name {
            "dangling" => match value {
                "true" | "1" => Self::Dangling(true),
                "false" | "0" => Self::Dangling(false),
                _ => bail!("dangling is true or false"),
            },
            "label" => {
                let (name, value) = label(value);
                Self::Label(name, value)
            }
            "label!" => {
                let (name, value) = label(value);
                Self::NoLabel(name, value)
            }
            "before" => Self::Before(value.into()),
            "since" => Self::Since(value.into()),
            "reference" => Self::Reference(Pattern::new(value)?),
            "until" => Self::Until(moment(value)?),
            _ => bail!(
                "there is no filter {name}, only dangling, label, label!, before, since, reference and until"
            ),
        })
    }
}

impl Filter {
    /// Whether something with these labels that was made then passes, as far as that goes.
    pub fn has<'l>(
        &self,
        label: impl Fn(&str) -> Option<&'l str>,
        created: Option<Timestamp>,
    ) -> bool {
        let has_label = |name: &str, value: &Option<String>| {
            let found = label(name);
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        match self {
            Self::Label(name, value) => has_label(name, value),
            Self::NoLabel(name, value) => !has_label(name, value),
            Self::Until(moment) => created.is_none_or(|created| created < *moment),
            _ => true,
        }
    }
}

/// A time as a date, a time of UTC or of a given offset, seconds since 1970, or how long ago (`24h`, `1h30m`).
pub fn moment(text: &str) -> anyhow::Result<Timestamp> {
    if let Ok(seconds) = text.parse() {
        return Ok(Timestamp::from_second(seconds)?);
    }
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    if let Ok(moment) = text.parse::<DateTime>() {
        return Ok(moment.to_zoned(TimeZone::UTC)?.timestamp());
    }
    let ago: SignedDuration = text
        .parse()
        .with_context(|| format!("{text:?} is neither a time nor a duration"))?;
    Ok(Timestamp::now() - ago)
}

/// When an image says it was made.
pub fn created(image: &Listed) -> Option<Timestamp> {
    image.config.as_ref()?.created().as_deref()?.parse().ok()
}

/// What of the images in the store is asked for.
pub struct Wanted<'f> {
    filters: &'f [Filter],
    before: Vec<Timestamp>,
    since: Vec<Timestamp>,
}

impl<'f> Wanted<'f> {
    /// What passes all `filters`, which may compare with images of `store`.
    pub fn new(filters: &'f [Filter], store: &Store) -> anyhow::Result<Self> {
        let mut wanted = Self {
            filters,
            before: Vec::new(),
            since: Vec::new(),
        };
        for filter in filters {
            let (Filter::Before(name) | Filter::Since(name)) = filter else {
                continue;
            };
            let image = store.describe(name)?;
            let created = image.config["created"].as_str().unwrap_or_default();
            let moment = created
                .parse()
                .with_context(|| format!("{name} does not say when it was made"))?;
            match filter {
                Filter::Before(_) => wanted.before.push(moment),
                _ => wanted.since.push(moment),
            }
        }
        Ok(wanted)
    }

    /// Whether an image is asked for, whatever its names.
    pub fn has(&self, image: &Listed) -> bool {
        let config = image
            .config
            .as_ref()
            .and_then(|config| config.config().as_ref());
        let labels = config.and_then(|config| config.labels().as_ref());
        let label = |name: &str| Some(labels?.get(name)?.as_str());
        let created = created(image);
        self.filters.iter().all(|filter| match filter {
            Filter::Dangling(wanted) => image.names.is_empty() == *wanted,
            _ => filter.has(label, created),
        }) && self
            .before
            .iter()
            .all(|moment| created.is_some_and(|created| created < *moment))
            && self
                .since
                .iter()
                .all(|moment| created.is_some_and(|created| created > *moment))
    }

    /// Whether an image is asked for under this name, or under none.
    pub fn has_name(&self, name: Option<&Reference>) -> bool {
        let mut patterns = self
            .filters
            .iter()
            .filter_map(|filter| match filter {
                Filter::Reference(pattern) => Some(pattern),
                _ => None,
            })
            .peekable();
        patterns.peek().is_none()
            || name.is_some_and(|name| patterns.any(|pattern| is_called(name, pattern)))
    }
}

/// Whether a name, short or whole, with its tag or without, fits a pattern. A `*` goes no further than a `/`.
pub fn is_called(name: &Reference, pattern: &Pattern) -> bool {
    let options = MatchOptions {
        require_literal_separator: true,
        ..MatchOptions::new()
    };
    let repository = format!("{}/{}", name.domain(), name.path());
    [
        name.familiar_name(),
        name.familiar(),
        repository,
        name.to_string(),
    ]
    .iter()
    .any(|text| pattern.matches_with(text, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_patterns_short_and_whole() {
        let name: Reference = "localhost:5000/team/app:1.2".parse().unwrap();
        let debian: Reference = "debian".parse().unwrap();
        let is = |name: &Reference, pattern: &str| is_called(name, &Pattern::new(pattern).unwrap());
        for pattern in [
            "debian",
            "debian:latest",
            "deb*",
            "*:latest",
            "docker.io/library/debian",
        ] {
            assert!(is(&debian, pattern), "{pattern}");
        }
        for pattern in ["*/*/app", "localhost:5000/team/app:1*"] {
            assert!(is(&name, pattern), "{pattern}");
        }
        for pattern in ["app", "*", "*/app", "localhost:5000/team/app:2"] {
            assert!(!is(&name, pattern), "{pattern}");
        }
    }

    #[test]
    fn times_are_absolute_or_ago() {
        let at = |text: &str| moment(text).unwrap().as_second();
        assert_eq!(at("86400"), 86400);
        assert_eq!(at("1970-01-02"), 86400);
        assert_eq!(at("1970-01-02T01:00:00"), 90000);
        assert_eq!(at("1970-01-02T01:00:00+01:00"), 86400);
        let ago = Timestamp::now().as_second() - at("1h30m");
        assert!((5400..5410).contains(&ago), "{ago}");
        assert!(moment("yesterday").is_err());
    }

    #[test]
    fn filters_are_name_and_value() {
        assert!(
            matches!("label=a=b=c".parse(), Ok(Filter::Label(name, Some(value))) if name == "a" && value == "b=c")
        );
        assert!(matches!("label!=a".parse(), Ok(Filter::NoLabel(name, None)) if name == "a"));
        for text in [
            "dangling",
            "dangling=maybe",
            "size=3",
            "until=x",
            "reference=[",
        ] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }
}
