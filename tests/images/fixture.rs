//! Images made in memory, right or wrong in any way, and the commands that tests run on them.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use pillbug::image::digest::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    pub const ALL: [Self; 3] = [Self::Plain, Self::Gzip, Self::Zstd];

    pub fn pack(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => bytes.to_vec(),
            Self::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image. Whatever a test changes in it stands: only the index is made when it is written out.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// Content by its digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// The uncompressed layers.
    pub tars: Vec<Vec<u8>>,
    /// Descriptors of the layers.
    pub layers: Vec<Value>,
    /// The configuration; takes effect with [`Fixture::seal`].
    pub config: Value,
    /// The manifest; takes effect when it is written out.
    pub manifest: Value,
    /// Entries of the index instead of one for the manifest.
    pub entries: Option<Value>,
    /// What the index calls the image.
    pub name: Option<String>,
}

impl Fixture {
    /// An image of one layer for each of `packings`, its contents made of `seed`.
    pub fn new(seed: &str, packings: &[Packing]) -> Self {
        let tars: Vec<_> = (0..packings.len())
            .map(|number| tar_of(&format!("file{number}"), &format!("{seed} {number}")))
            .collect();
        let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
        let mut fixture = Self {
            blobs: BTreeMap::new(),
            tars,
            layers: Vec::new(),
            config: json!({
                "created": "2020-01-02T03:04:05Z",
                "os": "linux",
                "architecture": "amd64",
                "config": {"Cmd": ["sh"], "Labels": {"seed": seed}},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
            manifest: Value::Null,
            entries: None,
            name: None,
        };
        for (number, packing) in packings.iter().enumerate() {
            let blob = packing.pack(&fixture.tars[number]);
            let descriptor = fixture.put(packing.media_type(), blob);
            fixture.layers.push(descriptor);
        }
        fixture.seal();
        fixture
    }

    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a blob and gives its descriptor.
    pub fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes).to_string();
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }

    /// Makes a manifest of the configuration and the layers as they are.
    pub fn seal(&mut self) {
        let config = self.put(
            "application/vnd.oci.image.config.v1+json",
            self.config.to_string().into_bytes(),
        );
        self.manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": self.layers,
        });
    }

    /// The image's ID.
    pub fn id(&self) -> String {
        self.manifest["config"]["digest"].as_str().unwrap().into()
    }

    /// Digest of the first layer's blob.
    pub fn first_layer(&self) -> String {
        self.layers[0]["digest"].as_str().unwrap().into()
    }

    /// All files of an OCI layout, the blobs in the order of their digests.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut written = self.clone();
        let mut entry = written.put(
            "application/vnd.oci.image.manifest.v1+json",
            self.manifest.to_string().into_bytes(),
        );
        if let Some(name) = &self.name {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        let entries = self.entries.clone().unwrap_or(json!([entry]));
        let index = json!({"schemaVersion": 2, "manifests": entries});
        let mut files: Vec<_> = written
            .blobs
            .into_iter()
            .map(|(digest, bytes)| (format!("blobs/{}", digest.replace(':', "/")), bytes))
            .collect();
        files.push(("index.json".into(), index.to_string().into_bytes()));
        files.push((
            "oci-layout".into(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ));
        files
    }

    /// Writes the image as the OCI layout in the folder `path`.
    pub fn write_layout(&self, path: &Path) {
        for (name, bytes) in self.files() {
            let file = path.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        }
    }

    /// The image as an OCI archive.
    pub fn archive(&self) -> Vec<u8> {
        archive(&self.files())
    }

    /// The files of what `docker save` wrote for years, the layers behind manifest.json or before it.
    pub fn docker_files(&self, tags: &[&str]) -> Vec<(String, Vec<u8>)> {
        let config = self.config.to_string().into_bytes();
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let names: Vec<_> = (0..self.tars.len())
            .map(|number| format!("{number}/layer.tar"))
            .collect();
        let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
        let mut files = vec![
            ("manifest.json".into(), manifest.to_string().into_bytes()),
            (config_name, config),
        ];
        files.extend(names.into_iter().zip(self.tars.clone()));
        files
    }
}

/// A tar file of one file.
pub fn tar_of(name: &str, content: &str) -> Vec<u8> {
    archive(&[(name.into(), content.as_bytes().to_vec())])
}

/// A tar file.
pub fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, bytes.as_slice())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

/// A folder of a test's own, with a state folder of pillbug in it.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new() -> Self {
        // In memory, where bringing something to disk takes no time.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(folder.path().join("state"))
            .unwrap();
        fs::write(folder.path().join("registries.toml"), "").unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Writes a file and gives its path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// The command under test, working on this place's state.
    pub fn pillbug(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pillbug"));
        command
            .args(arguments)
            .env("PILLBUG_ROOT", self.state())
            .env("DOCKER_CONFIG", self.path("docker"))
            .env("PILLBUG_REGISTRIES", self.path("registries.toml"));
        command
    }

    pub fn load(&self, path: &Path) -> Output {
        self.pillbug(&["load", "-i", path.to_str().unwrap()])
            .output()
            .unwrap()
    }

    /// Loads what must be loadable and gives what was printed.
    pub fn load_well(&self, path: &Path) -> String {
        succeed(self.load(path))
    }

    /// The lines that `images` prints, the words of each.
    pub fn images(&self) -> Vec<Vec<String>> {
        let printed = succeed(self.pillbug(&["images", "--no-trunc"]).output().unwrap());
        let lines = printed.lines().skip(1);
        lines
            .map(|line| line.split_whitespace().map(String::from).collect())
            .collect()
    }

    /// Everything in the store but its folders and its lock, as paths within it.
    pub fn content(&self) -> Vec<String> {
        let root = self.state().join("images");
        let mut content = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    content.push(
                        entry
                            .path()
                            .strip_prefix(&root)
                            .unwrap()
                            .to_str()
                            .unwrap()
                            .into(),
                    );
                }
            }
        }
        content.retain(|path: &String| path != "lock");
        content.sort();
        content
    }
}

/// The standard output of a command that must have succeeded.
pub fn succeed(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The standard error of a command that must have failed with pillbug's own exit code.
pub fn fail(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert!(
        error.starts_with("pillbug: ") && error.lines().count() == 1,
        "{error}"
    );
    error
}
