//! Meeting a registry's demand for a login, as the distribution project's "Token Authentication" specifies it.

use std::sync::PoisonError;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use ureq::{
    Body,
    http::{Method, Response, Uri, uri::Authority},
};

use super::{
    Content, RegistryError, Repository, Request, challenge::Challenge, credentials::Credential,
};

/// Most bytes of a token server's answer.
const MAX_ANSWER: u64 = 1 << 20;
/// What this client calls itself where OAuth2 wants a name.
const CLIENT_ID: &str = "pillbug";

/// A token server's answer: `token`, or `access_token` as OAuth2 calls it.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Repository<'_> {
    /// Asks for the base of the registry as a user, which needs no repository.
    pub(super) fn try_login(&self, user: &str, password: &str) -> Result<(), RegistryError> {
        let url = format!("{}/v2/", self.base);
        let transport = |source| RegistryError::Transport {
            host: self.host.clone(),
            source,
        };
        let refused = || RegistryError::Login {
            domain: self.domain.clone(),
        };
        let anonymous = Request::get(&url)
            .send(&self.agent, None)
            .map_err(transport)?;
        if anonymous.status() != 401 {
            return self.accept(anonymous, &[200], "a login").map(|_| ());
        }
        let credential = Credential::Password {
            user: user.into(),
            password: password.into(),
        };
        let authorization = self.token(&self.demand(&anonymous)?, Some(credential))?;
        let answer = Request::get(&url)
            .send(&self.agent, authorization.as_deref())
            .map_err(transport)?;
        match answer.status().as_u16() {
            200 => Ok(()),
            401 | 403 => Err(refused()),
            _ => Err(self.status(answer, "a login")),
        }
    }

    fn demand(&self, response: &Response<Body>) -> Result<Challenge, RegistryError> {
        let headers = response.headers().get_all("www-authenticate");
        let texts: Vec<&str> = headers
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let demand = texts.join(", ");
        Challenge::parse(&demand).ok_or_else(|| {
            RegistryError::Challenge(self.host.clone(), demand.chars().take(200).collect())
        })
    }

    /// Meets the demand of an answer 401. Where another thread has met it since `used` was sent, that is enough.
    pub(super) fn log_in(
        &self,
        response: &Response<Body>,
        used: Option<&str>,
    ) -> Result<(), RegistryError> {
        let mut authorization = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if authorization.as_deref() != used {
            return Ok(());
        }
        let challenge = self.demand(response)?;
        let credential = match &self.client.credentials {
            Some(credentials) => {
                credentials
                    .get(&self.domain)
                    .map_err(|source| RegistryError::Credentials {
                        domain: self.domain.clone(),
                        source,
                    })?
            }
            None => None,
        };
        *authorization = self.token(&challenge, credential)?;
        Ok(())
    }

    /// The header that meets a demand; none where there is nothing to meet it with.
    pub(super) fn token(
        &self,
        challenge: &Challenge,
        credential: Option<Credential>,
    ) -> Result<Option<String>, RegistryError> {
        let (realm, service, scope) = match challenge {
            Challenge::Basic => {
                return Ok(match credential {
                    Some(Credential::Password { user, password }) => Some(basic(&user, &password)),
                    _ => None,
                });
            }
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => (realm, service, scope),
        };
        if !self.may_log_in_at(realm) {
            return Err(RegistryError::Challenge(
                self.host.clone(),
                realm.chars().take(200).collect(),
            ));
        }
        // Registries sometimes ask for less than what is about to be done, and for a mount for more.
        let mut query = Vec::new();
        let asked = scope.as_deref().unwrap_or_default().split_whitespace();
        for scope in Some(self.scope.as_str()).into_iter().chain(asked) {
            if !scope.is_empty() && !query.contains(&("scope", scope)) {
                query.push(("scope", scope));
            }
        }
        query.extend(service.as_deref().map(|service| ("service", service)));
        let answer = match credential {
            Some(Credential::IdentityToken(token)) => {
                query.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", CLIENT_ID),
                    ("refresh_token", &token),
                ]);
                let form = encode(&query);
                let request = Request::new(Method::POST, realm, Content::Bytes(form.as_bytes()))
                    .header("content-type", "application/x-www-form-urlencoded".into());
                self.ask_token_server(&request, None)?
            }
            credential => {
                let authorization = match &credential {
                    Some(Credential::Password { user, password }) => Some(basic(user, password)),
                    _ => None,
                };
                let separator = if realm.contains('?') { '&' } else { '?' };
                let url = format!("{realm}{separator}{}", encode(&query));
                self.ask_token_server(&Request::get(&url), authorization.as_deref())?
            }
        };
        let token = answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty());
        match token {
            // What is no header value would come back as an unreadable error.
            Some(token) if token.bytes().all(|byte| (0x21..0x7f).contains(&byte)) => {
                Ok(Some(format!("Bearer {token}")))
            }
            _ => Err(RegistryError::Nonsense {
                host: self.host.clone(),
                what: "the request for a token".into(),
            }),
        }
    }

    /// Whether a token server may be given a login: over plain HTTP only one that is allowed to be spoken to so, by a
    /// registry that is itself.
    fn may_log_in_at(&self, realm: &str) -> bool {
        let Ok(uri) = realm.parse::<Uri>() else {
            return false;
        };
        let Some(host) = uri
            .authority()
            .map(Authority::as_str)
            .filter(|host| !host.contains('@'))
        else {
            return false;
        };
        match uri.scheme_str() {
            Some("https") => true,
            Some("http") => {
                self.base.starts_with("http://") && self.client.settings.of(host).plain_http
            }
            _ => false,
        }
    }

    fn ask_token_server(
        &self,
        request: &Request<'_>,
        authorization: Option<&str>,
    ) -> Result<Answer, RegistryError> {
        let what = "the request for a token";
        let mut retry = 0;
        let mut response = loop {
            match request.send(&self.agent, authorization) {
                Ok(response) if response.status().as_u16() < 500 && response.status() != 429 => {
                    break response;
                }
                Ok(response) => {
                    if !self.wait(retry, super::transport::retry_after(&response)) {
                        return Err(self.status(response, what));
                    }
                }
                Err(source) => {
                    if !super::transport::is_transient(&source) || !self.wait(retry, None) {
                        return Err(RegistryError::Transport {
                            host: self.host.clone(),
                            source,
                        });
                    }
                }
            }
            retry += 1;
        };
        match response.status().as_u16() {
            200 => {}
            401 | 403 => {
                return Err(RegistryError::Login {
                    domain: self.domain.clone(),
                });
            }
            _ => return Err(self.status(response, what)),
        }
        let bytes = self.read(&mut response, MAX_ANSWER, what)?;
        serde_json::from_slice(&bytes).map_err(|_| RegistryError::Nonsense {
            host: self.host.clone(),
            what: what.into(),
        })
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Form encoding of names and values.
pub(super) fn encode(query: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in query {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let query = [("scope", "repository:a/b:pull,push"), ("service", "x y&z")];
        assert_eq!(
            encode(&query),
            "scope=repository%3Aa%2Fb%3Apull%2Cpush&service=x%20y%26z"
        );
    }
}
