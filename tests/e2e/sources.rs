//! What SOURCE may be, and how layers show inside.

use std::{env, fs, path::PathBuf, process::Command};

use tempfile::TempDir;

use crate::{
    command::{output_of, pillbug},
    image::{Image, Layer},
};

/// A file of a prepared image.
fn test_image(name: &str, file: &str) -> PathBuf {
    let folder = env::var_os("PILLBUG_TEST_IMAGES")
        .expect("PILLBUG_TEST_IMAGES names the folder of the test images: run `make test`");
    PathBuf::from(folder).join(name).join(file)
}

/// The prepared busybox image in one of its forms.
fn busybox(form: &str) -> String {
    let path = test_image("busybox", form);
    path.to_str().expect("a plain name").into()
}

#[test]
fn a_layout_folder() {
    assert_eq!(output_of([&*busybox("oci"), "echo", "hi"]), "hi\n");
}

#[test]
fn a_layout_folder_with_zstd_layers() {
    assert_eq!(output_of([&*busybox("zstd"), "echo", "hi"]), "hi\n");
}

#[test]
fn an_oci_archive() {
    assert_eq!(output_of([&*busybox("oci.tar"), "echo", "hi"]), "hi\n");
}

#[test]
fn a_docker_archive() {
    assert_eq!(output_of([&*busybox("docker.tar"), "echo", "hi"]), "hi\n");
}

#[test]
fn compressed_archives_load_from_a_file_and_from_standard_input() {
    let folder = TempDir::new().expect("a temporary folder");
    for (program, name) in [("gzip", "image.tar.gz"), ("zstd", "image.tar.zst")] {
        let path = folder.path().join(name);
        let line = format!(
            "{program} -c {} > {}",
            busybox("docker.tar"),
            path.display()
        );
        assert!(
            Command::new("sh")
                .args(["-c", &line])
                .status()
                .expect("sh starts")
                .success()
        );
        let loads = |mut command: assert_cmd::Command| {
            command
                .assert()
                .success()
                .stdout("Loaded image: busybox:latest\n");
        };
        let mut from_file = pillbug();
        from_file.args(["load", "-i"]).arg(&path);
        loads(from_file);
        let mut from_stream = pillbug();
        from_stream
            .arg("load")
            .write_stdin(fs::read(&path).expect("it was just written"));
        loads(from_stream);
    }
}

#[test]
fn upper_layers_replace_hide_and_remove() {
    let folder = TempDir::new().expect("a temporary folder");
    let lower = Layer::busybox()
        .folder("a")
        .file("a/kept", 0o644, b"lower\n")
        .file("a/replaced", 0o644, b"lower\n")
        .file("a/removed", 0o644, b"lower\n")
        .folder("hidden")
        .file("hidden/below", 0o644, b"lower\n")
        .file("file-then-folder", 0o644, b"lower\n")
        .folder("folder-then-file")
        .file("folder-then-file/inner", 0o644, b"lower\n");
    let upper = Layer::new()
        .file("a/replaced", 0o600, b"upper\n")
        .file("a/.wh.removed", 0o644, b"")
        .folder("hidden")
        .file("hidden/.wh..wh..opq", 0o644, b"")
        .file("hidden/above", 0o644, b"upper\n")
        .folder("file-then-folder")
        .file("file-then-folder/inner", 0o644, b"upper\n")
        .file("folder-then-file", 0o644, b"upper\n");
    let layout = Image::new().layer(lower).layer(upper).write(folder.path());
    let script = "cd /; cat a/kept a/replaced; ls a hidden file-then-folder; cat folder-then-file; stat -c %a a/replaced";
    assert_eq!(
        output_of([&*layout, "sh", "-c", script]),
        "lower\nupper\na:\nkept\nreplaced\n\nfile-then-folder:\ninner\n\nhidden:\nabove\nupper\n600\n"
    );
}
