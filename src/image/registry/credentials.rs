//! Credentials for registries where Docker keeps them: `config.json` and the credential helpers that it names.
//!
//! The file is shared with other engines, so whatever else is in it stays. Secrets are not kept in memory longer
//! than a request needs them and are never part of an error.

use std::{
    env, fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::PathBuf,
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Key under which everybody keeps the credentials of docker.io.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// User name that marks a secret as an identity token.
const TOKEN_USER: &str = "<token>";
/// Most bytes of config.json and of a helper's answer.
const MAX_BYTES: u64 = 1 << 20;

/// Why credentials cannot be read or kept.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CredentialError {
    #[error("cannot tell where credentials are kept: neither DOCKER_CONFIG nor HOME is set")]
    Unknown,
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    #[error("{0} is not valid JSON")]
    Syntax(PathBuf, #[source] serde_json::Error),
    #[error("the credentials for {domain} in {path} are malformed: run `pillbug login {domain}`")]
    Malformed { domain: String, path: PathBuf },
    #[error("the name {0:?} of a credential helper is malformed")]
    HelperName(String),
    #[error("cannot run the credential helper {0}")]
    Helper(String, #[source] io::Error),
    #[error("the credential helper {helper} failed: {message}")]
    HelperFailed { helper: String, message: String },
}

/// What a registry accepts from a user.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that is exchanged for tokens of a scope.
    IdentityToken(String),
}

/// Docker's config.json.
#[derive(Debug, Clone)]
pub struct Credentials {
    path: PathBuf,
}

/// What a helper reads and answers.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperEntry {
    #[serde(rename = "ServerURL", default)]
    server: String,
    username: String,
    secret: String,
}

impl Credentials {
    /// Those of this user: in `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    ///
    /// # Errors
    ///
    /// [`CredentialError::Unknown`] where nothing says.
    pub fn locate() -> Result<Self, CredentialError> {
        let set = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let folder = set("DOCKER_CONFIG")
            .or_else(|| Some(set("HOME")?.join(".docker")))
            .ok_or(CredentialError::Unknown)?;
        Ok(Self {
            path: folder.join("config.json"),
        })
    }

    /// What is kept for a registry, if anything is.
    ///
    /// # Errors
    ///
    /// Where the file or the helper cannot be read.
    pub fn get(&self, domain: &str) -> Result<Option<Credential>, CredentialError> {
        let config = self.read()?;
        if let Some(helper) = helper(&config, domain) {
            return ask(helper, "get", &server(domain), |answer| {
                let entry: HelperEntry = serde_json::from_slice(answer).ok()?;
                Some(credential(entry.username, entry.secret))
            });
        }
        let Some(auth) = config
            .get("auths")
            .and_then(Value::as_object)
            .and_then(|auths| find(auths, domain))
        else {
            return Ok(None);
        };
        if let Some(token) = auth["identitytoken"]
            .as_str()
            .filter(|token| !token.is_empty())
        {
            return Ok(Some(Credential::IdentityToken(token.into())));
        }
        let malformed = || CredentialError::Malformed {
            domain: domain.into(),
            path: self.path.clone(),
        };
        let Some(encoded) = auth["auth"].as_str().filter(|auth| !auth.is_empty()) else {
            // A helper of another program keeps the secret, or nobody does.
            return Ok(None);
        };
        let decoded = STANDARD
            .decode(encoded.trim_end_matches('\0'))
            .map_err(|_| malformed())?;
        let text = String::from_utf8(decoded).map_err(|_| malformed())?;
        let (user, password) = text.split_once(':').ok_or_else(malformed)?;
        Ok(Some(credential(
            user.into(),
            password.trim_end_matches('\0').into(),
        )))
    }

    /// Keeps a name and a password for a registry: with its helper if there is one, else in the file.
    ///
    /// # Errors
    ///
    /// Where neither takes it.
    pub fn put(&self, domain: &str, user: &str, password: &str) -> Result<(), CredentialError> {
        let mut config = self.read()?;
        let server = server(domain);
        if let Some(name) = helper(&config, domain) {
            let entry = HelperEntry {
                server: server.clone(),
                username: user.into(),
                secret: password.into(),
            };
            let entry = serde_json::to_string(&entry)
                .map_err(|source| CredentialError::Syntax(self.path.clone(), source))?;
            return ask(name, "store", &entry, |_| Some(())).map(|_| ());
        }
        let auth = STANDARD.encode(format!("{user}:{password}"));
        let auths = config.entry("auths").or_insert_with(|| json!({}));
        if !auths.is_object() {
            *auths = json!({});
        }
        auths[server.as_str()] = json!({"auth": auth});
        self.write(&config)
    }

    /// Forgets what is kept for a registry, and says whether anything was.
    ///
    /// # Errors
    ///
    /// Where the file or the helper does not let go of it.
    pub fn remove(&self, domain: &str) -> Result<bool, CredentialError> {
        let mut config = self.read()?;
        let server = server(domain);
        if let Some(name) = helper(&config, domain) {
            return ask(name, "erase", &server, |_| Some(())).map(|done| done.is_some());
        }
        let Some(auths) = config.get_mut("auths").and_then(Value::as_object_mut) else {
            return Ok(false);
        };
        let before = auths.len();
        auths.retain(|key, _| !is_for(key, domain));
        if auths.len() == before {
            return Ok(false);
        }
        self.write(&config)?;
        Ok(true)
    }

    fn read(&self) -> Result<Map<String, Value>, CredentialError> {
        let failed = |source| CredentialError::Read(self.path.clone(), source);
        let file = match fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
            Err(source) => return Err(failed(source)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.trim_ascii().is_empty() {
            return Ok(Map::new());
        }
        serde_json::from_slice(&bytes)
            .map_err(|source| CredentialError::Syntax(self.path.clone(), source))
    }

    fn write(&self, config: &Map<String, Value>) -> Result<(), CredentialError> {
        let failed = |source| CredentialError::Write(self.path.clone(), source);
        let folder = self.path.parent().ok_or(CredentialError::Unknown)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
        let mut aside = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(folder)
            .map_err(failed)?;
        let text = serde_json::to_string_pretty(config)
            .map_err(|source| CredentialError::Syntax(self.path.clone(), source))?;
        aside
            .write_all(text.as_bytes())
            .and_then(|()| aside.as_file().sync_all())
            .map_err(failed)?;
        aside
            .persist(&self.path)
            .map_err(|error| failed(error.error))?;
        Ok(())
    }
}

fn server(domain: &str) -> String {
    if domain == "docker.io" {
        DOCKER_HUB.into()
    } else {
        domain.into()
    }
}

fn credential(user: String, secret: String) -> Credential {
    if user == TOKEN_USER {
        Credential::IdentityToken(secret)
    } else {
        Credential::Password {
            user,
            password: secret,
        }
    }
}

/// The helper that keeps the credentials of a registry.
fn helper<'c>(config: &'c Map<String, Value>, domain: &str) -> Option<&'c str> {
    let own = config
        .get("credHelpers")
        .and_then(Value::as_object)
        .and_then(|helpers| find(helpers, domain));
    own.or_else(|| config.get("credsStore"))
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
}

fn find<'m>(entries: &'m Map<String, Value>, domain: &str) -> Option<&'m Value> {
    entries.get(&server(domain)).or_else(|| {
        entries
            .iter()
            .find(|(key, _)| is_for(key, domain))
            .map(|(_, value)| value)
    })
}

/// Whether a key of config.json, which may be a whole address, is for a registry.
fn is_for(key: &str, domain: &str) -> bool {
    let address = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = address.split('/').next().unwrap_or_default();
    host == domain || (domain == "docker.io" && host == "index.docker.io")
}

/// Runs `docker-credential-NAME VERB` with `input`. Gives nothing where the helper has nothing.
fn ask<T>(
    name: &str,
    verb: &str,
    input: &str,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, CredentialError> {
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        return Err(CredentialError::HelperName(name.into()));
    }
    let program = format!("docker-credential-{name}");
    let failed = |source| CredentialError::Helper(program.clone(), source);
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input says so by its answer.
        let _ = stdin.write_all(input.as_bytes());
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(MAX_BYTES)
            .read_to_end(&mut answer)
            .map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    let message = String::from_utf8_lossy(&answer)
        .trim()
        .chars()
        .take(200)
        .collect::<String>();
    if !status.success() {
        // The words that the helpers' own library answers with.
        if message.contains("credentials not found") {
            return Ok(None);
        }
        return Err(CredentialError::HelperFailed {
            helper: program,
            message,
        });
    }
    match read(&answer) {
        Some(value) => Ok(Some(value)),
        None => Err(CredentialError::HelperFailed {
            helper: program,
            message: "its answer is malformed".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(config: &str) -> (tempfile::TempDir, Credentials) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, config).unwrap();
        (folder, Credentials { path })
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password {
            user: user.into(),
            password: password.into(),
        })
    }

    #[test]
    fn what_docker_wrote_is_read() {
        let (_folder, credentials) = credentials(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "dTpwOnE="},
                "https://old.example/v2/": {"auth": "YTpi"},
                "token.example": {"identitytoken": "t"},
                "elsewhere.example": {},
                "bad.example": {"auth": "!"}
            }}"#,
        );
        assert!(credentials.get("docker.io").unwrap() == password("u", "p:q"));
        assert!(credentials.get("old.example").unwrap() == password("a", "b"));
        assert!(
            credentials.get("token.example").unwrap()
                == Some(Credential::IdentityToken("t".into()))
        );
        assert!(credentials.get("elsewhere.example").unwrap().is_none());
        assert!(credentials.get("old.example.com").unwrap().is_none());
        assert!(matches!(
            credentials.get("bad.example"),
            Err(CredentialError::Malformed { .. })
        ));
    }

    #[test]
    fn what_is_kept_is_private_and_what_else_is_there_stays() {
        let (_folder, credentials) =
            credentials(r#"{"psFormat": "x", "auths": {"a.example": {"auth": "YTpi"}}}"#);
        credentials.put("docker.io", "u", "p").unwrap();
        assert!(credentials.get("docker.io").unwrap() == password("u", "p"));
        assert!(credentials.remove("a.example").unwrap());
        assert!(!credentials.remove("a.example").unwrap());
        let text = fs::read_to_string(&credentials.path).unwrap();
        assert!(
            text.contains("psFormat") && text.contains(DOCKER_HUB),
            "{text}"
        );
        assert_eq!(
            fs::metadata(&credentials.path)
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
    }

    #[test]
    fn a_missing_file_holds_nothing() {
        let credentials = Credentials {
            path: "/nonexistent/config.json".into(),
        };
        assert!(credentials.get("a.example").unwrap().is_none());
    }

    #[test]
    fn a_helper_is_a_program_by_its_name_only() {
        let (_folder, credentials) = credentials(
            r#"{"credHelpers": {"a.example": "../../bin/sh"}, "credsStore": "absent"}"#,
        );
        assert!(matches!(
            credentials.get("a.example"),
            Err(CredentialError::HelperName(_))
        ));
        assert!(matches!(
            credentials.get("b.example"),
            Err(CredentialError::Helper(..))
        ));
    }
}
