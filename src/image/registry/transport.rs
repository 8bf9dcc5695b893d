//! HTTP as registries speak it: agents, single requests, bodies that must make progress.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use serde::Deserialize;
use ureq::{
    Agent, Body, SendBody,
    http::{self, Method, Response},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::{RegistryError, settings::RegistrySettings};

/// Longest that a connection may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Least that must arrive within the time of no progress.
const LEAST_PROGRESS: u64 = 1024;
/// Most bytes of an error that are read.
const MAX_ERROR: u64 = 16 << 10;

/// How one registry is spoken to.
#[derive(Clone)]
pub(super) struct Line {
    /// Sends requests; connections are used again.
    pub agent: Agent,
    /// `https://HOST`, or `http://HOST` where that is allowed and HTTPS is not answered.
    pub base: String,
}

impl Line {
    /// Finds out how a registry is to be spoken to.
    pub fn open(
        host: &str,
        settings: &RegistrySettings,
        progress_timeout: Duration,
    ) -> Result<Self, RegistryError> {
        let secure = Self {
            agent: agent(settings, progress_timeout, true)?,
            base: format!("https://{host}"),
        };
        if !settings.plain_http {
            return Ok(secure);
        }
        let url = format!("{}/v2/", secure.base);
        match Request::get(&url).send(&secure.agent, None) {
            Ok(_) => Ok(secure),
            // A certificate that is not trusted is no reason to give up on being private.
            Err(source) if is_about_certificate(&source) => Err(RegistryError::Transport {
                host: host.into(),
                source,
            }),
            Err(_) => Ok(Self {
                agent: agent(settings, progress_timeout, false)?,
                base: format!("http://{host}"),
            }),
        }
    }
}

/// What sends requests to one registry; with `is_secure` over HTTPS alone, wherever it is redirected.
fn agent(
    settings: &RegistrySettings,
    progress_timeout: Duration,
    is_secure: bool,
) -> Result<Agent, RegistryError> {
    let tls = TlsConfig::builder()
        .root_certs(root_certificates(settings)?)
        .build();
    let config = Agent::config_builder()
        .https_only(is_secure)
        .http_status_as_error(false)
        .user_agent(concat!("pillbug/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(progress_timeout.max(CONNECT_TIMEOUT)))
        .timeout_per_read(Some(progress_timeout))
        .timeout_per_write(Some(progress_timeout))
        .tls_config(tls)
        .build();
    Ok(config.into())
}

/// The certificates that this system trusts, and those that are settled for the registry.
fn root_certificates(settings: &RegistrySettings) -> Result<RootCerts, RegistryError> {
    let system = rustls_native_certs::load_native_certs();
    let mut certificates: Vec<Certificate<'static>> = system
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    for path in &settings.ca_files {
        let failed = |source| RegistryError::Certificates {
            path: path.display().to_string(),
            source,
        };
        let pem = fs::read(path).map_err(failed)?;
        for item in parse_pem(&pem) {
            if let PemItem::Certificate(certificate) =
                item.map_err(|error| failed(io::Error::other(error)))?
            {
                certificates.push(certificate);
            }
        }
    }
    Ok(if certificates.is_empty() {
        RootCerts::WebPki
    } else {
        RootCerts::from(certificates)
    })
}

/// A handshake is part of the first reads and writes of its connection, and so are its errors.
fn is_about_certificate(error: &ureq::Error) -> bool {
    let cause = match error {
        ureq::Error::Rustls(cause) => Some(cause),
        ureq::Error::Io(error) => error.get_ref().and_then(|cause| cause.downcast_ref()),
        _ => None,
    };
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}

/// A request that can be sent more than once.
pub(super) struct Request<'r> {
    method: Method,
    url: &'r str,
    headers: Vec<(&'static str, String)>,
    content: Content<'r>,
}

/// What a request carries.
#[derive(Clone, Copy)]
pub(super) enum Content<'r> {
    /// Nothing.
    None,
    /// Bytes.
    Bytes(&'r [u8]),
    /// A part of a file, and who is told how much of it was sent.
    Part(FilePart<'r>, &'r (dyn Fn(u64) + Sync)),
}

/// So many bytes of a file from its byte number `from`.
#[derive(Clone, Copy)]
pub(super) struct FilePart<'r> {
    pub file: &'r File,
    pub from: u64,
    pub bytes: u64,
}

impl<'r> Request<'r> {
    pub fn get(url: &'r str) -> Self {
        Self::new(Method::GET, url, Content::None)
    }

    pub fn head(url: &'r str) -> Self {
        Self::new(Method::HEAD, url, Content::None)
    }

    pub fn new(method: Method, url: &'r str, content: Content<'r>) -> Self {
        Self {
            method,
            url,
            headers: Vec::new(),
            content,
        }
    }

    pub fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn accept(self, media_types: &[&str]) -> Self {
        self.header("accept", media_types.join(", "))
    }

    /// Whether sending it twice is no more than sending it once; a part of an upload is not.
    pub fn may_be_repeated(&self) -> bool {
        !matches!(self.content, Content::Part(..))
    }

    pub fn url(&self) -> &str {
        self.url
    }

    pub fn send(
        &self,
        agent: &Agent,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, ureq::Error> {
        let mut builder = http::Request::builder().method(&self.method).uri(self.url);
        for (name, value) in &self.headers {
            builder = builder.header(*name, value);
        }
        if let Some(authorization) = authorization {
            builder = builder.header("authorization", authorization);
        }
        match self.content {
            Content::None => agent.run(builder.body(())?),
            Content::Bytes(bytes) => agent.run(builder.body(bytes)?),
            Content::Part(part, sent) => {
                let mut reader = Sent {
                    part,
                    done: 0,
                    sent,
                };
                let builder = builder.header("content-length", part.bytes);
                agent.run(builder.body(SendBody::from_reader(&mut reader))?)
            }
        }
    }
}

/// Reads a part of a file for sending, without moving the file's position.
struct Sent<'r> {
    part: FilePart<'r>,
    done: u64,
    sent: &'r (dyn Fn(u64) + Sync),
}

impl Read for Sent<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.part.bytes - self.done).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let count = self
            .part
            .file
            .read_at(&mut buffer[..most], self.part.from + self.done)?;
        self.done += count as u64;
        (self.sent)(self.done);
        Ok(count)
    }
}

/// Whether a failure may pass.
pub(super) fn is_transient(error: &ureq::Error) -> bool {
    match error {
        // Not that there is no such host or that nobody listens: a person finds that out sooner than a retry.
        ureq::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::NotConnected
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::TimedOut
                | io::ErrorKind::WouldBlock
        ),
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// How long the registry asks to wait; a date instead of seconds is not understood and means nothing.
pub(super) fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let seconds = response
        .headers()
        .get("retry-after")?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// The path of the next page of a list (RFC 8288), if there is one and it is on the same host.
pub(super) fn next_page(response: &Response<Body>) -> Option<String> {
    let link = response.headers().get("link")?.to_str().ok()?;
    let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.contains("rel=\"next\"") || parameters.contains("rel=next");
    (is_next && address.starts_with("/v2/")).then(|| address.into())
}

/// What an error response says, as the distribution specification's "Error Codes" has it.
pub(super) fn error_text(response: &mut Response<Body>) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut bytes = Vec::new();
    response
        .body_mut()
        .as_reader()
        .take(MAX_ERROR)
        .read_to_end(&mut bytes)
        .ok()?;
    let errors: Errors = serde_json::from_slice(&bytes).ok()?;
    let first = errors.errors.first()?;
    let text = if first.message.is_empty() {
        &first.code
    } else {
        &first.message
    };
    Some(text.chars().take(200).collect())
}

/// The body of a response as a reader that fails when there is no progress.
pub(super) fn body_reader(
    response: Response<Body>,
    progress_timeout: Duration,
) -> impl Read + Send {
    Progressing {
        inner: response
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader(),
        timeout: progress_timeout,
        since: Instant::now(),
        bytes: 0,
    }
}

/// A single read has its own time limit; this ends what trickles.
struct Progressing<R> {
    inner: R,
    timeout: Duration,
    since: Instant,
    bytes: u64,
}

impl<R: Read> Read for Progressing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        if self.since.elapsed() >= self.timeout {
            if self.bytes < LEAST_PROGRESS && count > 0 {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the registry sends next to nothing",
                ));
            }
            self.since = Instant::now();
            self.bytes = 0;
        }
        Ok(count)
    }
}
