//! Requests to a repository until they are answered for good: repeated where the registry is busy or not reached, after
//! a login where one is asked for; and what answers mean.

use std::{io::Read, sync::PoisonError, time::Duration};

use ureq::{Body, http::Response};

use super::{
    RegistryError, Repository,
    transport::{self, Request},
};

impl Repository<'_> {
    /// How a failed request or transfer that may be tried again is waited for; false when it has been tried often
    /// enough, or is of no more use.
    pub fn wait(&self, retry: u32, asked: Option<Duration>) -> bool {
        let transfer = self.client.transfer();
        if retry >= transfer.retries {
            return false;
        }
        let is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        let (is_over, _) = self
            .is_over_changed
            .wait_timeout_while(is_over, transfer.wait(retry, asked), |is_over| !*is_over)
            .unwrap_or_else(PoisonError::into_inner);
        !*is_over
    }

    /// Ends all waiting, now and later: one transfer has failed, and the others are of no use without it.
    pub fn give_up(&self) {
        *self.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.is_over_changed.notify_all();
    }

    /// Whether [`give_up`](Self::give_up) was called.
    pub fn is_over(&self) -> bool {
        *self.is_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of something in the repository.
    pub(super) fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.path)
    }

    /// What errors call a manifest.
    pub(super) fn name_of(&self, tag_or_digest: &str) -> String {
        let separator = if tag_or_digest.contains(':') {
            '@'
        } else {
            ':'
        };
        format!("{}/{}{separator}{tag_or_digest}", self.domain, self.path)
    }

    /// Sends a request until it is answered for good: logs in when that is asked for, waits and tries again when the
    /// registry is busy or not reached.
    pub(super) fn send(
        &self,
        request: &Request<'_>,
        what: &str,
    ) -> Result<Response<Body>, RegistryError> {
        let mut retry = 0;
        let mut has_logged_in = false;
        loop {
            let authorization = self
                .authorization
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            // Where a registry sends us for an upload may be another host, which has no business with the login.
            let is_ours = request.url().starts_with(&format!("{}/", self.base));
            let authorization = authorization.filter(|_| is_ours);
            let (asked, error) = match request.send(&self.agent, authorization.as_deref()) {
                Ok(response) => match response.status().as_u16() {
                    401 if is_ours && !has_logged_in => {
                        has_logged_in = true;
                        self.log_in(&response, authorization.as_deref())?;
                        continue;
                    }
                    429 => (
                        transport::retry_after(&response),
                        RegistryError::TooManyRequests {
                            host: self.host.clone(),
                        },
                    ),
                    500 | 502..=504 => (
                        transport::retry_after(&response),
                        self.status(response, what),
                    ),
                    _ => return Ok(response),
                },
                Err(source) => {
                    let is_transient = transport::is_transient(&source);
                    let error = RegistryError::Transport {
                        host: self.host.clone(),
                        source,
                    };
                    if !is_transient {
                        return Err(error);
                    }
                    (None, error)
                }
            };
            if !request.may_be_repeated() || !self.wait(retry, asked) {
                return Err(error);
            }
            retry += 1;
        }
    }

    /// The response, or its error.
    pub(super) fn accept(
        &self,
        response: Response<Body>,
        wanted: &[u16],
        what: &str,
    ) -> Result<Response<Body>, RegistryError> {
        match self.check(&response, wanted, what) {
            Err(RegistryError::Status { .. }) => Err(self.status(response, what)),
            Err(error) => Err(error),
            Ok(()) => Ok(response),
        }
    }

    /// The error that an answer is, unless it is a wanted one.
    pub(super) fn check(
        &self,
        response: &Response<Body>,
        wanted: &[u16],
        what: &str,
    ) -> Result<(), RegistryError> {
        let (host, domain) = (self.host.clone(), self.domain.clone());
        match response.status().as_u16() {
            status if wanted.contains(&status) => Ok(()),
            401 | 403 => Err(RegistryError::Denied {
                name: what.into(),
                domain,
            }),
            404 => Err(RegistryError::NotFound(what.into())),
            status => Err(RegistryError::Status {
                host,
                status,
                what: what.into(),
                detail: String::new(),
            }),
        }
    }

    /// An error with what the registry says about it.
    pub(super) fn status(&self, mut response: Response<Body>, what: &str) -> RegistryError {
        let status = response.status().as_u16();
        let detail = transport::error_text(&mut response)
            .map_or_else(String::new, |text| format!(": {text}"));
        RegistryError::Status {
            host: self.host.clone(),
            status,
            what: what.into(),
            detail,
        }
    }

    /// The content of an answer, of at most `limit` bytes.
    pub(super) fn read(
        &self,
        response: &mut Response<Body>,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        response
            .body_mut()
            .as_reader()
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| RegistryError::Read {
                host: self.host.clone(),
                what: what.into(),
                source,
            })?;
        if bytes.len() as u64 > limit {
            return Err(RegistryError::TooLarge { what: what.into() });
        }
        Ok(bytes)
    }
}
