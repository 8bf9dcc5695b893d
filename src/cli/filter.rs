//! `--filter KEY=VALUE` over containers.

use std::str::FromStr;

use anyhow::{Context, bail};

use crate::container::{
    health::HealthStatus,
    name::Id,
    state::{Containers, Record},
    status::Status,
};

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// The start of an ID.
    Id(String),
    /// A part of a name.
    Name(String),
    /// A label, and what it must be set to.
    Label(String, Option<String>),
    /// A state.
    Status(String),
    /// A health, or none.
    Health(String),
    /// A network that it is on.
    Network(String),
    /// An exit code.
    Exited(u8),
    /// An image's name or ID.
    Ancestor(String),
    /// Created before this container.
    Before(String),
    /// Created after this container.
    Since(String),
    /// A volume that it has, or where it has one.
    Volume(String),
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (key, value) = text
            .split_once('=')
            .with_context(|| format!("{text:?} is no filter: give KEY=VALUE"))?;
        let value = value.to_owned();
        Ok(match key {
            "id" => Self::Id(value),
            "name" => Self::Name(value),
            "label" => match value.split_once('=') {
                Some((name, value)) => Self::Label(name.into(), Some(value.into())),
                None => Self::Label(value, None),
            },
            "status" => match value.as_str() {
                "created" | "running" | "exited" | "paused" | "restarting" | "removing"
                | "dead" => Self::Status(value),
                _ => bail!("{value:?} is no state: one of created, running, exited"),
            },
            "health" => match value.as_str() {
                "starting" | "healthy" | "unhealthy" | "none" => Self::Health(value),
                _ => bail!("{value:?} is no health: one of starting, healthy, unhealthy, none"),
            },
            "network" => Self::Network(value),
            "exited" => Self::Exited(
                value
                    .parse()
                    .with_context(|| format!("{value:?} is no exit code"))?,
            ),
            "ancestor" => Self::Ancestor(value),
            "before" => Self::Before(value),
            "since" => Self::Since(value),
            "volume" => Self::Volume(value),
            _ => bail!(
                "{key:?} is nothing to filter by: one of id, name, label, status, health, exited, ancestor, network, before, since, volume"
            ),
        })
    }
}

/// All conditions of one command.
pub struct Filters<'a> {
    filters: &'a [Filter],
    /// For each filter by another container: when that was created.
    others: Vec<std::time::SystemTime>,
}

impl<'a> Filters<'a> {
    /// Looks up the containers that others are compared with.
    pub fn new(filters: &'a [Filter], containers: &Containers) -> anyhow::Result<Self> {
        let mut others = Vec::new();
        for filter in filters {
            if let Filter::Before(other) | Filter::Since(other) = filter {
                let id: Id = containers.find(other)?;
                others.push(containers.record(&id)?.spec.created);
            }
        }
        Ok(Self { filters, others })
    }

    /// Whether containers that do not run are asked for.
    pub fn choose_status(&self) -> bool {
        self.filters
            .iter()
            .any(|filter| matches!(filter, Filter::Status(_) | Filter::Exited(_)))
    }

    /// Whether a container meets, of each kind, one condition; of labels, all.
    pub fn matches(&self, record: &Record) -> bool {
        let mut others = self.others.iter();
        let met: Vec<(std::mem::Discriminant<Filter>, bool)> = self
            .filters
            .iter()
            .map(|filter| {
                let met = match filter {
                    Filter::Before(_) => others
                        .next()
                        .is_some_and(|other| record.spec.created < *other),
                    Filter::Since(_) => others
                        .next()
                        .is_some_and(|other| record.spec.created > *other),
                    filter => filter.is_met(record),
                };
                (std::mem::discriminant(filter), met)
            })
            .collect();
        self.filters
            .iter()
            .zip(&met)
            .all(|(filter, (kind, is_met))| {
                *is_met
                    || !matches!(filter, Filter::Label(..))
                        && met.iter().any(|(other, met)| other == kind && *met)
            })
    }
}

impl Filter {
    fn is_met(&self, record: &Record) -> bool {
        let spec = &record.spec;
        match self {
            Self::Id(start) => spec.id.as_str().starts_with(start.as_str()),
            Self::Name(part) => spec.name.contains(part.trim_start_matches('/')),
            Self::Label(name, value) => spec
                .labels
                .get(name)
                .is_some_and(|is| value.as_ref().is_none_or(|value| value == is)),
            Self::Status(word) => record.status.word() == word,
            Self::Health(word) => record.health.map_or("none", HealthStatus::word) == word,
            Self::Network(name) => {
                let mut endpoints = spec.network.endpoints.iter();
                endpoints.any(|endpoint| endpoint.network == *name)
            }
            Self::Exited(code) => {
                matches!(&record.status, Status::Exited(exited) if exited.code == *code)
            }
            Self::Ancestor(image) => {
                let name = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
                let id = spec.image_id.to_string();
                name(&spec.image) == name(image)
                    || id.starts_with(image.as_str())
                    || image.len() >= 4 && id.starts_with(&format!("sha256:{image}"))
            }
            // By the one who knows the other.
            Self::Volume(wanted) => record
                .spec
                .mounts
                .iter()
                .any(|mount| mount.target == *wanted || mount.volume() == Some(wanted.as_str())),
            Self::Before(_) | Self::Since(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::example;

    fn record(name: &str, label: Option<(&str, &str)>) -> Record {
        let mut spec = example(name);
        spec.labels
            .extend(label.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Record {
            spec,
            status: Status::Created { error: None },
            health: None,
        }
    }

    fn matches(filters: &[&str], record: &Record) -> bool {
        let filters: Vec<Filter> = filters.iter().map(|text| text.parse().unwrap()).collect();
        Filters {
            filters: &filters,
            others: Vec::new(),
        }
        .matches(record)
    }

    #[test]
    fn of_one_kind_one_must_match_and_of_labels_all() {
        let web = record("web", Some(("team", "a")));
        assert!(matches(&[], &web));
        assert!(matches(&["name=we", "name=db"], &web));
        assert!(!matches(&["name=web", "status=running"], &web));
        assert!(matches(&["label=team", "label=team=a"], &web));
        assert!(!matches(&["label=team=a", "label=team=b"], &web));
        assert!(matches(&["ancestor=busybox:latest"], &web));
        assert!(!matches(&["exited=0"], &web));
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for text in ["name", "colour=red", "status=happy", "exited=256"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }
}
