//! The health check of an image: a field of its configuration that Docker defined and the OCI's image specification
//! reserves. As it is written there; what it means for a container is not known here.

use serde::Deserialize;

/// What an image says of it. Times are nanoseconds; 0 stands for a default everywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `NONE`; `CMD` and a program with arguments; or `CMD-SHELL` and a line for a shell.
    pub test: Vec<String>,
    /// Between two probes.
    pub interval: i64,
    /// Until a probe has failed.
    pub timeout: i64,
    /// After the start, while failures do not count.
    pub start_period: i64,
    /// Between two probes in that time.
    pub start_interval: i64,
    /// How many failures in a row make a container unhealthy.
    pub retries: i64,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Option<Fields>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Fields {
    #[serde(default)]
    healthcheck: Option<Healthcheck>,
}

/// The health check in an image's configuration, where it has one.
///
/// # Errors
///
/// Where it is none that Docker would take.
pub fn parse(configuration: &[u8]) -> serde_json::Result<Option<Healthcheck>> {
    let configuration: Configuration = serde_json::from_slice(configuration)?;
    Ok(configuration.config.and_then(|fields| fields.healthcheck))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_where_there_is_one() {
        let text = br#"{"os": "linux", "config": {"Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5000000000}}}"#;
        let check = parse(text).unwrap().unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "true"]);
        assert_eq!((check.interval, check.retries), (5_000_000_000, 0));
        for text in [
            "{}",
            r#"{"config": null}"#,
            r#"{"config": {"Healthcheck": null}}"#,
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap(), None, "{text}");
        }
        assert!(parse(br#"{"config": {"Healthcheck": {"Test": "true"}}}"#).is_err());
    }
}
