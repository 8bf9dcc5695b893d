//! Searching a registry, as far as it can be: Docker's own search where it is offered, else the catalog of all
//! repositories.

use serde::Deserialize;

use super::{Access, Client, RegistryError, Repository, Request, token};
use crate::image::manifest::MAX_DOCUMENT;

/// Where the search of docker.io is.
const DOCKER_HUB_SEARCH: &str = "index.docker.io";
/// Repositories to ask for at once, and most pages of them.
const PAGE: usize = 1000;
const MAX_PAGES: usize = 100;

/// A repository that was found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Hit {
    /// Its name within the registry.
    pub name: String,
    /// What its owner says of it.
    #[serde(default)]
    pub description: String,
    /// How many people like it.
    #[serde(default, rename = "star_count")]
    pub stars: u64,
    /// Whether the registry itself stands for it.
    #[serde(default)]
    pub is_official: bool,
}

#[derive(Deserialize)]
struct Results {
    results: Vec<Hit>,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

impl Client {
    /// The repositories of a registry that have to do with `term`, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NoSearch`] where the registry offers no search and no catalog, or not to this user.
    pub fn search(
        &self,
        domain: &str,
        term: &str,
        limit: usize,
    ) -> Result<Vec<Hit>, RegistryError> {
        let host = if domain == "docker.io" {
            DOCKER_HUB_SEARCH
        } else {
            domain
        };
        let registry = self.repository_at(host, domain, "", Access::Pull)?;
        let found = match registry.search(term, limit)? {
            Some(found) => Some(found),
            None => registry.search_catalog(term, limit)?,
        };
        let mut found = found.ok_or_else(|| RegistryError::NoSearch(domain.into()))?;
        found.truncate(limit);
        Ok(found)
    }
}

impl Repository<'_> {
    /// Docker's search, none where there is no such thing.
    fn search(&self, term: &str, limit: usize) -> Result<Option<Vec<Hit>>, RegistryError> {
        let query = token::encode(&[("q", term), ("n", &limit.to_string())]);
        let url = format!("{}/v1/search?{query}", self.base);
        let answer: Option<Results> = self.json(&url, "a search")?;
        Ok(answer.map(|answer| answer.results))
    }

    /// The distribution project's catalog, page by page, none where there is no such thing.
    fn search_catalog(&self, term: &str, limit: usize) -> Result<Option<Vec<Hit>>, RegistryError> {
        let mut found = Vec::new();
        let mut last = String::new();
        for _ in 0..MAX_PAGES {
            let query = token::encode(&[("n", &PAGE.to_string()), ("last", &last)]);
            let url = format!("{}/v2/_catalog?{query}", self.base);
            let Some(page): Option<Catalog> = self.json(&url, "the catalog")? else {
                return Ok(None);
            };
            let names = page.repositories.unwrap_or_default();
            let is_last = names.len() < PAGE;
            // A registry that pages through the same names for ever would never come to the end.
            if names.last().is_some_and(|name| *name <= last) {
                break;
            }
            last = names.last().cloned().unwrap_or_default();
            found.extend(
                names
                    .into_iter()
                    .filter(|name| name.contains(term))
                    .map(|name| Hit {
                        name,
                        description: String::new(),
                        stars: 0,
                        is_official: false,
                    }),
            );
            if is_last || found.len() >= limit {
                break;
            }
        }
        Ok(Some(found))
    }

    /// A document of the registry's, none where it says that it has none or not for this user.
    fn json<T: for<'de> Deserialize<'de>>(
        &self,
        url: &str,
        what: &str,
    ) -> Result<Option<T>, RegistryError> {
        let mut response = self.send(&Request::get(url), what)?;
        if matches!(response.status().as_u16(), 401 | 403..=405) {
            return Ok(None);
        }
        response = self.accept(response, &[200], what)?;
        let bytes = self.read(&mut response, MAX_DOCUMENT, what)?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| RegistryError::Nonsense {
                host: self.host.clone(),
                what: what.into(),
            })
    }
}
