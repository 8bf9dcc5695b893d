//! Registries: a client of the OCI distribution specification, as far as images need it.
//!
//! Bytes are fetched and sent; what they are is never believed here, only their sizes are bounded: whoever asks checks
//! digests. Credentials go to the registry of an image and to the token server it names, to nobody else, and never
//! over plain HTTP unless the registry itself may be spoken to so.

mod challenge;
pub mod credentials;
mod exchange;
pub mod search;
pub mod settings;
mod token;
mod transport;
mod upload;

use std::{
    collections::HashMap,
    io::Read,
    sync::{Condvar, Mutex, PoisonError},
};

use oci_spec::image::MediaType;
use serde::Deserialize;
use ureq::Agent;

pub(crate) use self::upload::Arrival;
use self::{
    credentials::{CredentialError, Credentials},
    settings::{Settings, SettingsError},
    transport::{Content, Line, Request},
};
use crate::image::{
    digest::{Algorithm, Digest, Hasher},
    manifest::{Blob, MANIFEST_TYPES, MAX_DOCUMENT},
    reference::Reference,
};

/// Where the images of docker.io really are.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RegistryError {
    #[error("cannot use the registry settings")]
    Settings(#[from] SettingsError),
    #[error("cannot use the credentials for {domain}")]
    Credentials {
        domain: String,
        source: CredentialError,
    },
    #[error("cannot use the certificates in {path}")]
    Certificates {
        path: String,
        source: std::io::Error,
    },
    #[error("{0} offers no search: ask for a repository by its whole name")]
    NoSearch(String),
    #[error("cannot reach {host}")]
    Transport { host: String, source: ureq::Error },
    #[error("{0} asks for a login that is not supported: {1:?}")]
    Challenge(String, String),
    #[error(
        "{name} is not there or not for everybody: check the name, or run `pillbug login {domain}`"
    )]
    Denied { name: String, domain: String },
    #[error("{domain} does not accept the login: run `pillbug login {domain}`")]
    Login { domain: String },
    #[error("the registry has no {0}")]
    NotFound(String),
    #[error("{host} is limiting requests: try again later, or run `pillbug login`")]
    TooManyRequests { host: String },
    #[error("{host} answered {status} to {what}{detail}")]
    Status {
        host: String,
        status: u16,
        what: String,
        detail: String,
    },
    #[error("{what} is larger than the {MAX_DOCUMENT} bytes allowed")]
    TooLarge { what: String },
    #[error("cannot read {what} from {host}")]
    Read {
        host: String,
        what: String,
        source: std::io::Error,
    },
    #[error("{host} answered nonsense to {what}")]
    Nonsense { host: String, what: String },
}

/// What this user can reach registries with.
pub struct Client {
    settings: Settings,
    credentials: Option<Credentials>,
    lines: Mutex<HashMap<String, Line>>,
}

/// What is to be done in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read.
    Pull,
    /// Read and write.
    Push,
}

impl Access {
    fn actions(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        }
    }
}

impl Client {
    /// A client with the settings and the credentials of this user.
    ///
    /// # Errors
    ///
    /// Where the settings cannot be read.
    pub fn new() -> Result<Self, RegistryError> {
        Ok(Self {
            settings: Settings::load()?,
            credentials: Credentials::locate().ok(),
            lines: Mutex::default(),
        })
    }

    /// Checks that a registry accepts a name and a password, and keeps them for it.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Login`] where it does not.
    pub fn log_in(&self, domain: &str, user: &str, password: &str) -> Result<(), RegistryError> {
        let registry = self.repository_at(host_of(domain), domain, "", Access::Pull)?;
        registry.try_login(user, password)?;
        let failed = |source| RegistryError::Credentials {
            domain: domain.into(),
            source,
        };
        Credentials::locate()
            .and_then(|kept| kept.put(domain, user, password))
            .map_err(failed)
    }

    /// Forgets the login for a registry, and says whether there was one.
    ///
    /// # Errors
    ///
    /// Where it cannot be forgotten.
    pub fn log_out(&self, domain: &str) -> Result<bool, RegistryError> {
        let failed = |source| RegistryError::Credentials {
            domain: domain.into(),
            source,
        };
        Credentials::locate()
            .and_then(|kept| kept.remove(domain))
            .map_err(failed)
    }

    /// The repository of a reference at its own registry.
    pub(crate) fn repository(
        &self,
        reference: &Reference,
        access: Access,
    ) -> Result<Repository<'_>, RegistryError> {
        let domain = reference.domain();
        self.repository_at(host_of(domain), domain, reference.path(), access)
    }

    /// The repositories of a reference at the mirrors of its registry, in the order in which to ask them.
    pub(crate) fn mirrors(
        &self,
        reference: &Reference,
    ) -> Result<Vec<Repository<'_>>, RegistryError> {
        let mirrors = self.settings.of(reference.domain()).mirrors;
        mirrors
            .iter()
            .map(|host| self.repository_at(host, host, reference.path(), Access::Pull))
            .collect()
    }

    fn repository_at(
        &self,
        host: &str,
        domain: &str,
        path: &str,
        access: Access,
    ) -> Result<Repository<'_>, RegistryError> {
        let Line { agent, base } = self.line(host)?;
        Ok(Repository {
            client: self,
            agent,
            base,
            host: host.into(),
            domain: domain.into(),
            path: path.into(),
            scope: if path.is_empty() {
                String::new()
            } else {
                format!("repository:{path}:{}", access.actions())
            },
            authorization: Mutex::default(),
            is_over: Mutex::default(),
            is_over_changed: Condvar::new(),
        })
    }

    /// One line a host, since each may trust other certificates.
    fn line(&self, host: &str) -> Result<Line, RegistryError> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(host) {
            return Ok(line.clone());
        }
        let settings = self.settings.of(host);
        let line = Line::open(host, &settings, self.settings.transfer.progress_timeout())?;
        lines.insert(host.into(), line.clone());
        Ok(line)
    }

    /// How content is transferred.
    #[must_use]
    pub fn transfer(&self) -> &settings::TransferSettings {
        &self.settings.transfer
    }
}

/// The host that answers for a registry.
fn host_of(domain: &str) -> &str {
    if domain == "docker.io" {
        DOCKER_HUB_HOST
    } else {
        domain
    }
}

/// One repository at one registry.
pub(crate) struct Repository<'c> {
    client: &'c Client,
    agent: Agent,
    /// `https://HOST`, or `http://HOST`.
    base: String,
    host: String,
    /// What credentials are kept for.
    domain: String,
    path: String,
    scope: String,
    /// Value of the header that the registry accepted last.
    authorization: Mutex<Option<String>>,
    is_over: Mutex<bool>,
    is_over_changed: Condvar,
}

/// A document and what the registry calls it.
pub(crate) struct FoundManifest {
    /// What it is; its digest is that of the bytes.
    pub blob: Blob,
    /// The document.
    pub bytes: Vec<u8>,
}

impl Repository<'_> {
    /// The manifest or index that a tag or digest means.
    pub fn manifest(&self, tag_or_digest: &str) -> Result<FoundManifest, RegistryError> {
        let what = self.name_of(tag_or_digest);
        let url = self.url(&format!("manifests/{tag_or_digest}"));
        let response = self.send(&Request::get(&url).accept(MANIFEST_TYPES), &what)?;
        let mut response = self.accept(response, &[200], &what)?;
        let media_type = response
            .headers()
            .get("content-type")
            .and_then(|value| value.to_str().ok())
            .map_or(MediaType::ImageManifest, |text| {
                text.split(';').next().unwrap_or_default().trim().into()
            });
        let bytes = self.read(&mut response, MAX_DOCUMENT, &what)?;
        let algorithm = tag_or_digest
            .parse()
            .map_or(Algorithm::Sha256, |digest: Digest| digest.algorithm());
        let mut hasher = Hasher::new(algorithm);
        hasher.update(&bytes);
        let digest = hasher.finish();
        let size = bytes.len() as u64;
        Ok(FoundManifest {
            blob: Blob {
                media_type,
                digest,
                size,
            },
            bytes,
        })
    }

    /// The bytes of a blob, or of a manifest, from the byte number `from` on. They are not checked.
    pub fn open(&self, blob: &Blob, from: u64) -> Result<Box<dyn Read + Send>, RegistryError> {
        let is_document = MANIFEST_TYPES.contains(&blob.media_type.as_ref());
        let kind = if is_document { "manifests" } else { "blobs" };
        let what = blob.digest.to_string();
        let url = self.url(&format!("{kind}/{what}"));
        let mut request = Request::get(&url);
        if is_document {
            request = request.accept(MANIFEST_TYPES);
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = self.send(&request, &what)?;
        let response = self.accept(response, &[200, 206], &what)?;
        let is_partial = response.status() == 206;
        let mut reader =
            transport::body_reader(response, self.client.transfer().progress_timeout());
        if from > 0 && !is_partial {
            // The registry knows no ranges and begins at the beginning.
            std::io::copy(
                &mut Read::by_ref(&mut reader).take(from),
                &mut std::io::sink(),
            )
            .map_err(|source| RegistryError::Read {
                host: self.host.clone(),
                what,
                source,
            })?;
        }
        Ok(Box::new(reader))
    }

    /// All tags of the repository, as "Listing Tags" of the distribution specification has it.
    pub fn tags(&self) -> Result<Vec<String>, RegistryError> {
        /// More than any repository has; a registry could go on for ever.
        const MAX_PAGES: usize = 100;
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let what = format!("{}/{}", self.domain, self.path);
        let mut tags = Vec::new();
        let mut next = Some(self.url("tags/list"));
        for _ in 0..MAX_PAGES {
            let Some(url) = next else { break };
            let response = self.send(&Request::get(&url), &what)?;
            let mut response = self.accept(response, &[200], &what)?;
            next = transport::next_page(&response).map(|path| format!("{}{path}", self.base));
            let bytes = self.read(&mut response, MAX_DOCUMENT, &what)?;
            let page: Page =
                serde_json::from_slice(&bytes).map_err(|_| RegistryError::Nonsense {
                    host: self.host.clone(),
                    what: what.clone(),
                })?;
            tags.extend(page.tags.unwrap_or_default());
        }
        Ok(tags)
    }
}
