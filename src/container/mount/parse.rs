//! `-v`, `--mount` and `--volumes-from`, as Docker writes them.

use std::{collections::BTreeMap, path::PathBuf};

use protocol::Mount;

use super::{MountRequest, RequestedSource, VolumesFrom};
use crate::{
    container::options::{self, OptionError},
    volume::{self, VolumeError},
};

/// A mount that does not say what it is to be.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MountSyntaxError {
    #[error("invalid volume specification: '{0}'")]
    Specification(String),
    #[error("invalid mount path: '{0}' mount path must be absolute")]
    Relative(String),
    #[error("invalid specification: destination can't be '/'")]
    Root,
    #[error("invalid mode: {0}")]
    Mode(String),
    #[error(transparent)]
    Name(#[from] VolumeError),
    #[error("invalid field '{0}' must be a key=value pair")]
    Field(String),
    #[error("unexpected key '{key}' in '{field}'")]
    Key { key: String, field: String },
    #[error("invalid value for {key}: {value}")]
    Value { key: &'static str, value: String },
    #[error("{0} is required")]
    Missing(&'static str),
    #[error("cannot mix '{key}' with mount type '{kind}'")]
    Mixed { key: String, kind: String },
    #[error("mount type {0:?} is not known: one of bind, volume, tmpfs")]
    Type(String),
    #[error("volume driver {0:?} is not known: only local")]
    Driver(String),
    #[error(transparent)]
    Size(#[from] OptionError),
    #[error("cannot tell the current folder")]
    Here(#[source] std::io::Error),
}

/// What `--mount` gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// A folder, a file or a volume.
    Shared(MountRequest),
    /// Memory of the guest's.
    Tmpfs(Mount),
}

/// `[SOURCE:]TARGET[:OPTIONS]`: a path as SOURCE is a folder or file of the host, a name a volume.
///
/// # Errors
///
/// [`MountSyntaxError`].
pub fn short(text: &str) -> Result<MountRequest, MountSyntaxError> {
    let refused = || MountSyntaxError::Specification(text.to_owned());
    let parts: Vec<&str> = text.split(':').collect();
    let (source, path, mode) = match parts[..] {
        [path] => ("", path, ""),
        [source, path] if !source.is_empty() => (source, path, ""),
        [source, path, mode] if !source.is_empty() && !mode.is_empty() => (source, path, mode),
        _ => return Err(refused()),
    };
    let (mut read_only, mut copy) = (false, true);
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "nocopy" => copy = false,
            // Labels of a kernel module that this has nothing to do with, hints for other systems, and
            // propagation, which there is none of between machines.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" | "default" | "private"
            | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => {}
            _ => return Err(MountSyntaxError::Mode(mode.to_owned())),
        }
    }
    let is_path = source.starts_with('/')
        || source == "."
        || source == ".."
        || source.starts_with("./")
        || source.starts_with("../");
    let source = match source {
        "" => RequestedSource::Volume {
            name: None,
            copy,
            labels: BTreeMap::new(),
        },
        path if is_path => RequestedSource::Bind {
            path: absolute(path)?,
            create: true,
        },
        name => {
            volume::check_name(name)?;
            RequestedSource::Volume {
                name: Some(name.to_owned()),
                copy,
                labels: BTreeMap::new(),
            }
        }
    };
    Ok(MountRequest {
        source,
        target: target(path)?,
        read_only,
    })
}

/// `CONTAINER[:ro|rw]`.
///
/// # Errors
///
/// [`MountSyntaxError::Mode`] for another mode.
pub fn from(text: &str) -> Result<VolumesFrom, MountSyntaxError> {
    let (container, mode) = text.split_once(':').unwrap_or((text, "rw"));
    match (container, mode) {
        ("", _) => Err(MountSyntaxError::Specification(text.to_owned())),
        (_, "ro" | "rw") => Ok(VolumesFrom {
            container: container.to_owned(),
            read_only: mode == "ro",
        }),
        _ => Err(MountSyntaxError::Mode(mode.to_owned())),
    }
}

/// Fields of `--mount`.
#[derive(Default)]
struct Fields {
    kind: String,
    source: Option<String>,
    target: Option<String>,
    read_only: bool,
    nocopy: bool,
    labels: BTreeMap<String, String>,
    tmpfs: Vec<String>,
    /// Keys that only one type has.
    of_volume: Option<String>,
    of_tmpfs: Option<String>,
    of_bind: Option<String>,
}

/// `type=TYPE,target=PATH[,KEY[=VALUE]]...`
///
/// # Errors
///
/// [`MountSyntaxError`].
pub fn long(text: &str) -> Result<Given, MountSyntaxError> {
    let mut fields = Fields {
        kind: "volume".into(),
        ..Fields::default()
    };
    for field in text.split(',') {
        fields.take(field)?;
    }
    fields.finish()
}

impl Fields {
    fn take(&mut self, field: &str) -> Result<(), MountSyntaxError> {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value)),
            None => (field.trim(), None),
        };
        let key = key.to_ascii_lowercase();
        let flag = |name| match value {
            None => Ok(true),
            Some(value) => boolean(name, value),
        };
        match key.as_str() {
            "readonly" | "ro" => self.read_only = flag("readonly")?,
            "volume-nocopy" => {
                self.nocopy = flag("volume-nocopy")?;
                self.of_volume = Some(key);
            }
            "bind-nonrecursive" | "bind-create-src" => self.of_bind = Some(key),
            _ => {
                let Some(value) = value else {
                    return Err(MountSyntaxError::Field(field.to_owned()));
                };
                return self.set(key, value, field);
            }
        }
        Ok(())
    }

    fn set(&mut self, key: String, value: &str, field: &str) -> Result<(), MountSyntaxError> {
        match key.as_str() {
            "type" => self.kind = value.to_ascii_lowercase(),
            "source" | "src" => self.source = Some(value.to_owned()),
            "target" | "dst" | "destination" => self.target = Some(value.to_owned()),
            "consistency" => {}
            "bind-propagation" | "bind-recursive" => self.of_bind = Some(key),
            "volume-label" => {
                let (name, value) = value.split_once('=').unwrap_or((value, ""));
                self.labels.insert(name.to_owned(), value.to_owned());
                self.of_volume = Some(key);
            }
            "volume-driver" if value == "local" => self.of_volume = Some(key),
            "volume-driver" => return Err(MountSyntaxError::Driver(value.to_owned())),
            "tmpfs-size" => {
                self.tmpfs.push(format!("size={}", options::size(value)?));
                self.of_tmpfs = Some(key);
            }
            "tmpfs-mode" => {
                let is_mode = u16::from_str_radix(value, 8).is_ok_and(|mode| mode <= 0o7777);
                if !is_mode {
                    return Err(MountSyntaxError::Value {
                        key: "tmpfs-mode",
                        value: value.to_owned(),
                    });
                }
                self.tmpfs.push(format!("mode={value}"));
                self.of_tmpfs = Some(key);
            }
            _ => {
                return Err(MountSyntaxError::Key {
                    key,
                    field: field.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Given, MountSyntaxError> {
        let foreign = match self.kind.as_str() {
            "bind" => self.of_volume.or(self.of_tmpfs),
            "volume" => self.of_bind.or(self.of_tmpfs),
            "tmpfs" => self.of_bind.or(self.of_volume),
            _ => return Err(MountSyntaxError::Type(self.kind)),
        };
        if let Some(key) = foreign {
            return Err(MountSyntaxError::Mixed {
                key,
                kind: self.kind,
            });
        }
        let target = target(&self.target.ok_or(MountSyntaxError::Missing("target"))?)?;
        let source = match self.kind.as_str() {
            "bind" => RequestedSource::Bind {
                path: absolute(&self.source.ok_or(MountSyntaxError::Missing("source"))?)?,
                create: false,
            },
            "volume" => {
                if let Some(name) = &self.source {
                    volume::check_name(name)?;
                }
                RequestedSource::Volume {
                    name: self.source,
                    copy: !self.nocopy,
                    labels: self.labels,
                }
            }
            _ => {
                return match self.source {
                    Some(_) => Err(MountSyntaxError::Mixed {
                        key: "source".into(),
                        kind: self.kind,
                    }),
                    None => Ok(Given::Tmpfs(tmpfs_long(target, self.tmpfs, self.read_only))),
                };
            }
        };
        Ok(Given::Shared(MountRequest {
            source,
            target,
            read_only: self.read_only,
        }))
    }
}

/// A tmpfs of `--mount`, with what Docker's are mounted with.
fn tmpfs_long(target: String, mut options: Vec<String>, read_only: bool) -> Mount {
    if !options.iter().any(|option| option.starts_with("mode=")) {
        options.push("mode=1777".into());
    }
    options.extend(["nosuid", "nodev", "noexec"].map(str::to_owned));
    if read_only {
        options.push("ro".into());
    }
    Mount {
        fs_type: "tmpfs".into(),
        source: "tmpfs".into(),
        target,
        options,
        fill: false,
    }
}

fn boolean(key: &'static str, value: &str) -> Result<bool, MountSyntaxError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(MountSyntaxError::Value {
            key,
            value: value.to_owned(),
        }),
    }
}

fn absolute(path: &str) -> Result<PathBuf, MountSyntaxError> {
    if path.contains('\0') || path.is_empty() {
        return Err(MountSyntaxError::Specification(path.to_owned()));
    }
    std::path::absolute(path).map_err(MountSyntaxError::Here)
}

/// Where something is mounted, without `.`, `..` and double slashes.
///
/// # Errors
///
/// For a path that is not absolute, or the root.
pub fn target(path: &str) -> Result<String, MountSyntaxError> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(MountSyntaxError::Relative(path.to_owned()));
    }
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    match names.is_empty() {
        true => Err(MountSyntaxError::Root),
        false => Ok(format!("/{}", names.join("/"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, target: &str, read_only: bool, copy: bool) -> MountRequest {
        MountRequest {
            source: RequestedSource::Volume {
                name: (!name.is_empty()).then(|| name.to_owned()),
                copy,
                labels: BTreeMap::new(),
            },
            target: target.into(),
            read_only,
        }
    }

    fn bind(path: &str, create: bool, read_only: bool) -> MountRequest {
        MountRequest {
            source: RequestedSource::Bind {
                path: path.into(),
                create,
            },
            target: "/x".into(),
            read_only,
        }
    }

    #[test]
    fn a_volume_flag_is_a_path_or_a_name() {
        assert_eq!(short("/data").unwrap(), volume("", "/data", false, true));
        assert_eq!(
            short("db:/data//./a/../b").unwrap(),
            volume("db", "/data/b", false, true)
        );
        assert_eq!(
            short("db:/x:ro,nocopy").unwrap(),
            volume("db", "/x", true, false)
        );
        assert_eq!(short("/a b:/x:ro").unwrap(), bind("/a b", true, true));
        let RequestedSource::Bind { path, .. } = short("./a:/x").unwrap().source else {
            panic!("it is a path");
        };
        assert!(path.is_absolute() && path.ends_with("a"));
    }

    #[test]
    fn a61_what_is_no_mount_is_refused_with_dockers_words() {
        for (text, words) in [
            ("a:b:c:d", "invalid volume specification: 'a:b:c:d'"),
            (":/x", "invalid volume specification: ':/x'"),
            (
                "db:x",
                "invalid mount path: 'x' mount path must be absolute",
            ),
            ("db:/", "invalid specification: destination can't be '/'"),
            (
                "db:/a/..",
                "invalid specification: destination can't be '/'",
            ),
            ("db:/x:rx", "invalid mode: rx"),
        ] {
            assert_eq!(short(text).unwrap_err().to_string(), words);
        }
        let error = short("a/b:/x").unwrap_err().to_string();
        assert!(error.contains("includes invalid characters"), "{error}");
    }

    #[test]
    fn a_mount_flag_has_fields() {
        let long = |text| long(text);
        assert_eq!(
            long("type=bind,source=/a,target=/x,readonly").unwrap(),
            Given::Shared(bind("/a", false, true))
        );
        assert_eq!(
            long("src=db,dst=/x,volume-nocopy,ro=false").unwrap(),
            Given::Shared(volume("db", "/x", false, false))
        );
        let Given::Tmpfs(tmpfs) =
            long("type=tmpfs,target=/x,tmpfs-size=64m,tmpfs-mode=0700").unwrap()
        else {
            panic!("it is a tmpfs");
        };
        assert_eq!(
            tmpfs.options,
            ["size=67108864", "mode=0700", "nosuid", "nodev", "noexec"]
        );
        for (text, words) in [
            ("type=bind,target=/x", "source is required"),
            ("type=bind,source=/a", "target is required"),
            (
                "type=x,target=/x",
                "mount type \"x\" is not known: one of bind, volume, tmpfs",
            ),
            ("target", "invalid field 'target' must be a key=value pair"),
            ("wings=2", "unexpected key 'wings' in 'wings=2'"),
            ("target=/x,readonly=2", "invalid value for readonly: 2"),
            (
                "type=bind,src=/a,dst=/x,tmpfs-size=1m",
                "cannot mix 'tmpfs-size' with mount type 'bind'",
            ),
            (
                "type=tmpfs,dst=/x,tmpfs-mode=9",
                "invalid value for tmpfs-mode: 9",
            ),
        ] {
            assert_eq!(long(text).unwrap_err().to_string(), words);
        }
    }

    #[test]
    fn volumes_come_from_a_container() {
        let taken = from("db:ro").unwrap();
        assert_eq!((taken.container.as_str(), taken.read_only), ("db", true));
        assert!(!from("db").unwrap().read_only);
        assert!(from("db:x").is_err() && from("").is_err());
    }
}
