//! Sending blobs and manifests, as the distribution specification's "Push" has it.

use std::fs::File;

use oci_spec::image::MediaType;
use ureq::{
    Body,
    http::{Method, Response},
};

use super::{
    RegistryError, Repository,
    transport::{Content, FilePart, Request},
};
use crate::image::digest::Digest;

/// How a blob came to be in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It was there.
    Present,
    /// The registry had it in this other repository.
    Mounted(String),
    /// It was sent.
    Sent,
}

impl Repository<'_> {
    /// Brings a blob into the repository. `others` are repositories of the same registry that may have it.
    pub fn upload(
        &self,
        digest: &Digest,
        (file, size): (&File, u64),
        others: &[String],
        sent: &(dyn Fn(u64) + Sync),
    ) -> Result<Arrival, RegistryError> {
        let what = digest.to_string();
        let url = self.url(&format!("blobs/{digest}"));
        let found = self.send(&Request::head(&url), &what)?;
        match self.check(&found, &[200], &what) {
            Ok(()) => return Ok(Arrival::Present),
            Err(RegistryError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        for other in others {
            let url = self.url(&format!("blobs/uploads/?mount={digest}&from={other}"));
            let answer = self.send(
                &Request::new(Method::POST, &url, Content::Bytes(b"")),
                &what,
            )?;
            match answer.status().as_u16() {
                201 => return Ok(Arrival::Mounted(other.clone())),
                202 => {
                    let location = self.location(&answer, &what)?;
                    return self
                        .send_blob(location, digest, file, size, sent)
                        .map(|()| Arrival::Sent);
                }
                // A repository that this user may not read.
                _ => {}
            }
        }
        let mut retry = 0;
        loop {
            let url = self.url("blobs/uploads/");
            let answer = self.send(
                &Request::new(Method::POST, &url, Content::Bytes(b"")),
                &what,
            )?;
            let answer = self.accept(answer, &[202], &what)?;
            let location = self.location(&answer, &what)?;
            match self.send_blob(location, digest, file, size, sent) {
                Ok(()) => return Ok(Arrival::Sent),
                Err(error) if is_broken(&error) && self.wait(retry, None) => retry += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a manifest under a tag or its digest.
    pub fn put_manifest(
        &self,
        tag_or_digest: &str,
        media_type: &MediaType,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        let what = self.name_of(tag_or_digest);
        let url = self.url(&format!("manifests/{tag_or_digest}"));
        let request = Request::new(Method::PUT, &url, Content::Bytes(bytes))
            .header("content-type", media_type.to_string());
        let answer = self.send(&request, &what)?;
        self.accept(answer, &[200, 201, 202], &what).map(|_| ())
    }

    /// Sends a blob piece by piece to the address of an upload.
    fn send_blob(
        &self,
        mut location: String,
        digest: &Digest,
        file: &File,
        size: u64,
        sent: &(dyn Fn(u64) + Sync),
    ) -> Result<(), RegistryError> {
        let what = digest.to_string();
        let chunk = self.client.transfer().chunk_bytes.max(1);
        let mut from = 0;
        while size - from > chunk {
            let part = FilePart {
                file,
                from,
                bytes: chunk,
            };
            let report = |bytes| sent(from + bytes);
            let request = Request::new(Method::PATCH, &location, Content::Part(part, &report))
                .header("content-type", "application/octet-stream".into())
                .header("content-range", format!("{from}-{}", from + chunk - 1));
            let answer = self.accept(self.send(&request, &what)?, &[202], &what)?;
            let next = self.location(&answer, &what)?;
            drop(request);
            location = next;
            from += chunk;
        }
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={digest}");
        let part = FilePart {
            file,
            from,
            bytes: size - from,
        };
        let report = |bytes| sent(from + bytes);
        let mut request = Request::new(Method::PUT, &url, Content::Part(part, &report))
            .header("content-type", "application/octet-stream".into());
        if from > 0 {
            request = request.header("content-range", format!("{from}-{}", size - 1));
        }
        self.accept(self.send(&request, &what)?, &[201, 202, 204], &what)
            .map(|_| ())
    }

    /// Where an upload goes on.
    fn location(&self, answer: &Response<Body>, what: &str) -> Result<String, RegistryError> {
        let nonsense = || RegistryError::Nonsense {
            host: self.host.clone(),
            what: what.into(),
        };
        let location = answer
            .headers()
            .get("location")
            .and_then(|value| value.to_str().ok())
            .ok_or_else(nonsense)?;
        if location.starts_with('/') {
            return Ok(format!("{}{location}", self.base));
        }
        let is_private =
            location.starts_with("https://") || location.starts_with(&format!("{}/", self.base));
        if is_private {
            Ok(location.into())
        } else {
            Err(nonsense())
        }
    }
}

/// Whether an upload broke off rather than was refused.
fn is_broken(error: &RegistryError) -> bool {
    match error {
        RegistryError::Transport { source, .. } => super::transport::is_transient(source),
        RegistryError::Status { status, .. } => *status >= 500,
        RegistryError::TooManyRequests { .. } => true,
        _ => false,
    }
}
