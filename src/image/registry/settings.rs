//! What a person settles about registries: one TOML file, documented in docs/images.md.
//!
//! Reading it is all that happens here. Credentials are not in it but in Docker's config.json.

use std::{
    collections::BTreeMap,
    env, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::image::reference::ShortNames;

/// Environment variable that names the file.
pub const VARIABLE: &str = "PILLBUG_REGISTRIES";

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SettingsError {
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("{0} is not valid")]
    Syntax(PathBuf, #[source] Box<toml::de::Error>),
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// What names without a registry are completed with.
    pub short_names: ShortNames,
    /// Settings of single registries, by their domain with its port.
    pub registry: BTreeMap<String, RegistrySettings>,
    /// How content is transferred, from and to all of them.
    pub transfer: TransferSettings,
}

/// What is particular about one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RegistrySettings {
    /// Registries that are asked for its images first, in this order, as `HOST[:PORT]`.
    pub mirrors: Vec<String>,
    /// Plain HTTP may be used where HTTPS is not answered. Always so for loopback addresses.
    pub plain_http: bool,
    /// Files with certificates in PEM form that are trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
}

/// How content is transferred.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct TransferSettings {
    /// Layers that are transferred at once, 1 to 16.
    pub parallel: u8,
    /// How often something is tried again without progress in between.
    pub retries: u32,
    /// Milliseconds before the first retry; twice as many before each further one.
    pub backoff_ms: u64,
    /// Longest wait that a registry can impose, in milliseconds.
    pub longest_wait_ms: u64,
    /// Most bytes of a blob that are sent in one request, 1 at least: proxies before registries have limits.
    pub chunk_bytes: u64,
    /// A transfer has stalled when less than 1 KiB arrives in this many milliseconds.
    pub progress_timeout_ms: u64,
}

impl Default for TransferSettings {
    fn default() -> Self {
        Self {
            parallel: 3,
            retries: 5,
            backoff_ms: 500,
            longest_wait_ms: 60_000,
            chunk_bytes: 64 << 20,
            progress_timeout_ms: 30_000,
        }
    }
}

impl TransferSettings {
    /// How long to wait before trying again for the time number `retry`, 0 being the first, where the registry
    /// may have asked for `asked`.
    #[must_use]
    pub fn wait(&self, retry: u32, asked: Option<Duration>) -> Duration {
        let ours = Duration::from_millis(self.backoff_ms.saturating_mul(1 << retry.min(16)));
        ours.max(asked.unwrap_or_default())
            .min(Duration::from_millis(self.longest_wait_ms))
    }

    /// [`progress_timeout_ms`](Self::progress_timeout_ms).
    #[must_use]
    pub fn progress_timeout(&self) -> Duration {
        Duration::from_millis(self.progress_timeout_ms)
    }
}

impl Settings {
    /// The settings of this user: the file that `PILLBUG_REGISTRIES` names, else the first there is of
    /// `$XDG_CONFIG_HOME/pillbug/registries.toml` (`~/.config`) and `/etc/pillbug/registries.toml`, else none.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read or has anything in it that is not known.
    pub fn load() -> Result<Self, SettingsError> {
        if let Some(path) = set(VARIABLE) {
            return Self::read(&path)?
                .ok_or_else(|| SettingsError::Read(path, io::ErrorKind::NotFound.into()));
        }
        let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
        for folder in config.into_iter().chain([PathBuf::from("/etc")]) {
            if let Some(settings) = Self::read(&folder.join("pillbug/registries.toml"))? {
                return Ok(settings);
            }
        }
        Ok(Self::default())
    }

    fn read(path: &Path) -> Result<Option<Self>, SettingsError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SettingsError::Read(path.into(), source)),
        };
        toml::from_str(&text)
            .map(Some)
            .map_err(|source| SettingsError::Syntax(path.into(), Box::new(source)))
    }

    /// What is settled for one registry.
    #[must_use]
    pub fn of(&self, domain: &str) -> RegistrySettings {
        let mut settings = self.registry.get(domain).cloned().unwrap_or_default();
        settings.plain_http |= is_loopback(domain);
        settings
    }
}

fn set(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Whether a domain is this machine by its very text: no name server has a say.
fn is_loopback(domain: &str) -> bool {
    let host = match domain.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => domain,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for domain in [
            "localhost",
            "localhost:5000",
            "127.0.0.1",
            "127.1.2.3:80",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_loopback(domain), "{domain}");
        }
        for domain in [
            "localhost.example.com",
            "example.com:5000",
            "10.0.0.1",
            "[fe80::1]:5000",
            "127.0.0.1.example.com",
        ] {
            assert!(!is_loopback(domain), "{domain}");
        }
    }

    #[test]
    fn a41_waits_grow_and_have_an_end() {
        let settings = TransferSettings::default();
        let waits: Vec<_> = (0..4)
            .map(|retry| settings.wait(retry, None).as_millis())
            .collect();
        assert_eq!(waits, [500, 1000, 2000, 4000]);
        assert_eq!(settings.wait(0, Some(Duration::from_secs(7))).as_secs(), 7);
        assert_eq!(
            settings
                .wait(0, Some(Duration::from_secs(1_000_000_000)))
                .as_secs(),
            60
        );
        assert_eq!(settings.wait(u32::MAX, None).as_secs(), 60);
    }

    #[test]
    fn the_file_is_read_strictly() {
        let text = "short-names.registry = \"r.example\"\n[registry.\"a.example:5000\"]\nplain-http = true\nmirrors = [\"m.example\"]\n[transfer]\nretries = 1\n";
        let settings: Settings = toml::from_str(text).unwrap();
        assert_eq!(settings.short_names.registry.as_deref(), Some("r.example"));
        assert!(settings.of("a.example:5000").plain_http);
        assert!(!settings.of("b.example").plain_http);
        assert_eq!(
            (settings.transfer.retries, settings.transfer.parallel),
            (1, 3)
        );
        assert!(toml::from_str::<Settings>("[transfer]\nretry = 1\n").is_err());
    }
}
