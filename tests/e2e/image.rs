//! Small images made on the spot, honest ones and hostile ones.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// An image to be: layers from bottom to top, and what its configuration says.
pub struct Image {
    layers: Vec<Layer>,
    config: serde_json::Map<String, Value>,
}

impl Image {
    /// Without any layer and with nothing configured but `PATH`.
    pub fn new() -> Self {
        let mut config = serde_json::Map::new();
        config.insert("Env".into(), json!(["PATH=/bin"]));
        Self {
            layers: Vec::new(),
            config,
        }
    }

    /// With the host's static busybox as its shell and `/etc/passwd`, the base of most tests.
    pub fn busybox() -> Self {
        Self::new().layer(Layer::busybox())
    }

    /// With one more layer on top.
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// With a field of the configuration set, such as `User` or `WorkingDir`.
    pub fn config(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.config.insert(field.into(), value.into());
        self
    }

    /// Writes it as an OCI layout to `folder` and returns that folder's path.
    pub fn write(self, folder: &Path) -> String {
        let layout = Layout::new(folder);
        let layers: Vec<Vec<u8>> = self.layers.into_iter().map(Layer::finish).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": self.config,
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>(),
            },
        });
        let config = layout.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| layout.blob("application/vnd.oci.image.layer.v1.tar", layer))
            .collect();
        layout.manifest(&json!({ "schemaVersion": 2, "config": config, "layers": layers }));
        layout.path()
    }
}

/// The OCI archive of a layout.
pub fn archive(layout: &str) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    archive.append_dir_all("", layout).expect("memory takes it");
    archive.into_inner().expect("memory takes it")
}

/// An OCI layout, for those tests that write its parts themselves.
pub struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// An empty one.
    pub fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder.join("blobs/sha256")).expect("the folder is writable");
        fs::write(
            folder.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .expect("the folder is writable");
        Self {
            folder: folder.to_path_buf(),
        }
    }

    /// Adds a blob and returns its descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        fs::write(self.blob_path(&digest), bytes).expect("the folder is writable");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Where the blob with this digest lies.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs").join(digest.replacen(':', "/", 1))
    }

    /// Makes this the manifest of the only image.
    pub fn manifest(&self, manifest: &Value) {
        let manifest = self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        );
        self.index(&json!({ "schemaVersion": 2, "manifests": [manifest] }));
    }

    /// Writes `index.json`.
    pub fn index(&self, index: &Value) {
        fs::write(self.folder.join("index.json"), index.to_string())
            .expect("the folder is writable");
    }

    /// Its path, as a command line wants it.
    pub fn path(&self) -> String {
        self.folder
            .to_str()
            .expect("temporary folders have plain names")
            .into()
    }
}

/// The digest of `bytes` as images name it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A layer's tar archive in the making. Names go into it as they are, however bad.
pub struct Layer {
    archive: Builder<Vec<u8>>,
}

impl Layer {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            archive: Builder::new(Vec::new()),
        }
    }

    /// The host's static busybox with a shell, `/etc/passwd` and `/etc/group`.
    pub fn busybox() -> Self {
        let busybox =
            fs::read("/bin/busybox").expect("busybox-static is installed: run `make setup`");
        let mut layer = Self::new()
            .folder("bin")
            .file("bin/busybox", 0o755, &busybox);
        for applet in [
            "sh", "cat", "ls", "stat", "id", "echo", "env", "pwd", "test", "head",
        ] {
            layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
        }
        layer
            .folder("etc")
            .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")
            .file("etc/group", 0o644, b"root:x:0:\n")
    }

    pub fn file(self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(name, EntryType::Regular, mode, "", content)
    }

    pub fn folder(self, name: &str) -> Self {
        self.entry(name, EntryType::Directory, 0o755, "", &[])
    }

    pub fn symbolic_link(self, name: &str, target: &str) -> Self {
        self.entry(name, EntryType::Symlink, 0o777, target, &[])
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(name, EntryType::Link, 0o644, target, &[])
    }

    /// Any entry: its name and link target are written byte by byte into the header.
    pub fn entry(
        mut self,
        name: &str,
        kind: EntryType,
        mode: u32,
        target: &str,
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        if kind == EntryType::Char {
            header.set_device_major(1).expect("it fits");
            header.set_device_minor(3).expect("it fits");
        }
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.archive
            .append(&header, content)
            .expect("memory takes it");
        self
    }

    /// Pax attributes for the entry that follows, such as `SCHILY.xattr.user.name`.
    pub fn attributes(mut self, attributes: &[(&str, &[u8])]) -> Self {
        self.archive
            .append_pax_extensions(attributes.iter().copied())
            .expect("memory takes it");
        self
    }

    /// The archive's bytes.
    pub fn finish(self) -> Vec<u8> {
        self.archive.into_inner().expect("memory takes it")
    }
}
