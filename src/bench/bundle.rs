//! An image as a bundle of the OCI runtime specification, unpacked by umoci.

use std::{fs, io, os::unix::fs::symlink, path::Path, process::Command};

use oci_spec::image::{
    Descriptor, DescriptorBuilder, ImageIndexBuilder, MediaType, SCHEMA_VERSION,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::image::{load::LoadError, store::Store};

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BundleError {
    #[error(transparent)]
    Image(#[from] LoadError),
    #[error("cannot write {what}")]
    Write {
        what: &'static str,
        source: io::Error,
    },
    #[error("umoci failed: {0}")]
    Umoci(String),
    #[error("the runtime configuration that umoci wrote is damaged")]
    Config(#[source] serde_json::Error),
    #[error("cannot describe the image")]
    Describe(#[source] oci_spec::OciSpecError),
}

/// The bundle; it goes when this is dropped.
#[derive(Debug)]
pub struct Bundle {
    folder: TempDir,
    config: Value,
}

impl Bundle {
    /// Unpacks `image` of the store in `state_root`.
    pub fn make(image: &str, state_root: &Path) -> Result<Self, BundleError> {
        let write = |what| move |source| BundleError::Write { what, source };
        let store = Store::open(state_root).map_err(LoadError::from)?;
        let image = store.open_source(image, &|_| {})?;
        let folder = tempfile::tempdir().map_err(write("a folder"))?;
        let layout = folder.path().join("layout");
        fs::create_dir(&layout).map_err(write("a layout"))?;
        fs::write(
            layout.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .map_err(write("a layout"))?;
        symlink(store.blobs(), layout.join("blobs")).map_err(write("a layout"))?;
        let manifest = fs::metadata(
            store
                .blobs()
                .join(image.digest.to_string().replace(':', "/")),
        )
        .map_err(write("a layout"))?;
        let descriptor = describe(&image.digest.to_string(), manifest.len())?;
        let index = ImageIndexBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .manifests(vec![descriptor])
            .build()
            .and_then(|index| index.to_string())
            .map_err(BundleError::Describe)?;
        fs::write(layout.join("index.json"), index).map_err(write("a layout"))?;
        let bundle = folder.path().join("bundle");
        let unpacked = Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:bench", layout.display()))
            .arg(&bundle)
            .output()
            .map_err(write("a bundle"))?;
        if !unpacked.status.success() {
            let said = String::from_utf8_lossy(&unpacked.stderr).trim().to_owned();
            return Err(BundleError::Umoci(said));
        }
        let config = fs::read(bundle.join("config.json")).map_err(write("a bundle"))?;
        let config = serde_json::from_slice(&config).map_err(BundleError::Config)?;
        let bundle = Self { folder, config };
        bundle.set_command(&["echo", "ready"])?;
        Ok(bundle)
    }

    /// `runtime run` of this bundle's `echo`.
    pub fn run(&self, runtime: &str, id: &str) -> Command {
        let mut command = Command::new(runtime);
        command
            .args(["run", "--bundle"])
            .arg(self.folder.path().join("bundle"))
            .arg(id);
        command
    }

    /// `runtime run` of another command, from now on.
    pub fn run_with(
        &self,
        runtime: &str,
        id: &str,
        arguments: &[&str],
    ) -> Result<Command, BundleError> {
        self.set_command(arguments)?;
        Ok(self.run(runtime, id))
    }

    fn set_command(&self, arguments: &[&str]) -> Result<(), BundleError> {
        let mut config = self.config.clone();
        config["process"]["args"] = json!(arguments);
        config["process"]["terminal"] = json!(false);
        fs::write(
            self.folder.path().join("bundle/config.json"),
            config.to_string(),
        )
        .map_err(|source| BundleError::Write {
            what: "a bundle",
            source,
        })
    }
}

fn describe(digest: &str, bytes: u64) -> Result<Descriptor, BundleError> {
    let digest: oci_spec::image::Digest = digest.parse().map_err(BundleError::Describe)?;
    let name = [(
        "org.opencontainers.image.ref.name".to_owned(),
        "bench".to_owned(),
    )];
    DescriptorBuilder::default()
        .media_type(MediaType::ImageManifest)
        .digest(digest)
        .size(bytes)
        .annotations(std::collections::HashMap::from(name))
        .build()
        .map_err(BundleError::Describe)
}
