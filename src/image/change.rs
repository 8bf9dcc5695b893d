//! Changes to an image's configuration, in the words of a Dockerfile: what `--change` takes.

use std::{collections::HashMap, str::FromStr};

use oci_spec::image::Config;

/// Why a text is no change.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ChangeError {
    #[error(
        "{0:?} is no change: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR are"
    )]
    Instruction(String),
    #[error("{0} needs a value")]
    Empty(&'static str),
    #[error("{0} takes NAME=VALUE, not {1:?}")]
    Assignment(&'static str, String),
    #[error("{0} has a quote without an end")]
    Quote(&'static str),
    #[error("{0} begins like a JSON array and is none")]
    Json(&'static str, #[source] serde_json::Error),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The command.
    Cmd(Vec<String>),
    /// What the command is given to.
    Entrypoint(Vec<String>),
    /// Environment variables.
    Env(Vec<(String, String)>),
    /// Ports, as `80` or `53/udp`.
    Expose(Vec<String>),
    /// Labels.
    Label(Vec<(String, String)>),
    /// The signal that asks the command to end.
    StopSignal(String),
    /// Whom the command runs as.
    User(String),
    /// Folders that outlive a container.
    Volume(Vec<String>),
    /// Where the command runs.
    WorkingDir(String),
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let text = text.trim();
        let (instruction, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        let one = |name| match rest {
            "" => Err(ChangeError::Empty(name)),
            _ => Ok(rest.to_owned()),
        };
        Ok(match &*instruction.to_ascii_uppercase() {
            "CMD" => Self::Cmd(command("CMD", rest)?),
            "ENTRYPOINT" => Self::Entrypoint(command("ENTRYPOINT", rest)?),
            "ENV" => Self::Env(assignments("ENV", rest)?),
            "EXPOSE" => Self::Expose(words("EXPOSE", rest)?),
            "LABEL" => Self::Label(assignments("LABEL", rest)?),
            "STOPSIGNAL" => Self::StopSignal(one("STOPSIGNAL")?),
            "USER" => Self::User(one("USER")?),
            "VOLUME" => Self::Volume(match array("VOLUME", rest)? {
                Some(folders) => folders,
                None => words("VOLUME", rest)?,
            }),
            "WORKDIR" => Self::WorkingDir(one("WORKDIR")?),
            _ => return Err(ChangeError::Instruction(instruction.into())),
        })
    }
}

impl Change {
    /// Makes the change.
    pub fn apply(self, config: &mut Config) {
        match self {
            Self::Cmd(words) => _ = config.set_cmd(Some(words)),
            Self::Entrypoint(words) => _ = config.set_entrypoint(Some(words)),
            Self::Env(variables) => {
                let mut env = config.env().clone().unwrap_or_default();
                for (name, value) in variables {
                    let prefix = format!("{name}=");
                    env.retain(|variable| !variable.starts_with(&prefix));
                    env.push(prefix + &value);
                }
                config.set_env(Some(env));
            }
            Self::Expose(ports) => {
                let whole = ports.into_iter().map(|port| match port.contains('/') {
                    true => port,
                    false => port + "/tcp",
                });
                let mut all = config.exposed_ports().clone().unwrap_or_default();
                all.extend(whole);
                config.set_exposed_ports(Some(all));
            }
            Self::Label(labels) => {
                let mut all: HashMap<_, _> = config.labels().clone().unwrap_or_default();
                all.extend(labels);
                config.set_labels(Some(all));
            }
            Self::StopSignal(signal) => _ = config.set_stop_signal(Some(signal)),
            Self::User(user) => _ = config.set_user(Some(user)),
            Self::Volume(folders) => {
                let mut all = config.volumes().clone().unwrap_or_default();
                all.extend(folders);
                config.set_volumes(Some(all));
            }
            Self::WorkingDir(folder) => _ = config.set_working_dir(Some(folder)),
        }
    }
}

/// A JSON array, or a line for a shell.
fn command(name: &'static str, text: &str) -> Result<Vec<String>, ChangeError> {
    match array(name, text)? {
        Some(words) => Ok(words),
        None if text.is_empty() => Err(ChangeError::Empty(name)),
        None => Ok(["/bin/sh", "-c", text].map(String::from).into()),
    }
}

fn array(name: &'static str, text: &str) -> Result<Option<Vec<String>>, ChangeError> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let array = serde_json::from_str(text).map_err(|error| ChangeError::Json(name, error))?;
    Ok(Some(array))
}

fn words(name: &'static str, text: &str) -> Result<Vec<String>, ChangeError> {
    let words = shlex::split(text).ok_or(ChangeError::Quote(name))?;
    if words.is_empty() {
        return Err(ChangeError::Empty(name));
    }
    Ok(words)
}

/// `NAME=VALUE...`, or the older `NAME VALUE`.
fn assignments(name: &'static str, text: &str) -> Result<Vec<(String, String)>, ChangeError> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.is_empty() && !first.contains('=') && first.len() < text.len() {
        return Ok(vec![(
            first.into(),
            text[first.len()..].trim_start().into(),
        )]);
    }
    let assignment = |word: String| match word.split_once('=') {
        Some((variable, value)) if !variable.is_empty() => Ok((variable.into(), value.into())),
        _ => Err(ChangeError::Assignment(name, word)),
    };
    words(name, text)?.into_iter().map(assignment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: &[&str]) -> serde_json::Value {
        let mut config = Config::default();
        for change in changes {
            change.parse::<Change>().unwrap().apply(&mut config);
        }
        serde_json::to_value(config).unwrap()
    }

    #[test]
    fn changes_are_those_of_a_dockerfile() {
        let config = changed(&[
            "ENV A=1 B=\"two words\"",
            "env A=3",
            "ENV C old style",
            "CMD [\"a\", \"b c\"]",
            "ENTRYPOINT exec a",
            "EXPOSE 80 53/udp",
            "LABEL x=\"y z\"",
            "VOLUME /a /b",
            "VOLUME [\"/c d\"]",
            "USER 1:2",
            "WORKDIR /a b",
            "STOPSIGNAL SIGINT",
        ]);
        assert_eq!(
            config["Env"],
            serde_json::json!(["B=two words", "A=3", "C=old style"])
        );
        assert_eq!(config["Cmd"], serde_json::json!(["a", "b c"]));
        assert_eq!(
            config["Entrypoint"],
            serde_json::json!(["/bin/sh", "-c", "exec a"])
        );
        assert_eq!(
            config["ExposedPorts"],
            serde_json::json!({"80/tcp": {}, "53/udp": {}})
        );
        assert_eq!(config["Labels"], serde_json::json!({"x": "y z"}));
        assert_eq!(
            config["Volumes"],
            serde_json::json!({"/a": {}, "/b": {}, "/c d": {}})
        );
        assert_eq!(config["User"], "1:2");
        assert_eq!(config["WorkingDir"], "/a b");
        assert_eq!(config["StopSignal"], "SIGINT");
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for text in [
            "",
            "RUN x",
            "USER",
            "CMD",
            "CMD [1]",
            "CMD [",
            "ENV A",
            "ENV =1",
            "LABEL x='",
            "EXPOSE",
        ] {
            assert!(text.parse::<Change>().is_err(), "{text}");
        }
    }
}
