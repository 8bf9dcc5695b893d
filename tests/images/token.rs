//! A token server for a real registry, as the distribution project's "Token Authentication" specifies it.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    hostile::{Answer, Hostile, Request},
    server::certificate,
};

/// Gives `user` with the password `secret` what they ask for, and others nothing.
pub struct TokenServer {
    folder: TempDir,
    pub server: Hostile,
}

impl TokenServer {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        certificate(&at, "tokens", &["-newkey", "rsa:2048"]);
        let path = folder.path().to_path_buf();
        let server = Hostile::start(move |request, _| answer(&path, request));
        Self { folder, server }
    }

    /// The part of a registry's configuration that sends it here.
    pub fn config(&self) -> String {
        format!(
            "auth:\n  token:\n    realm: http://{}/token\n    service: test\n    issuer: tokens\n    rootcertbundle: {}\n",
            self.server.address,
            self.folder.path().join("tokens.pem").display()
        )
    }
}

fn answer(folder: &Path, request: &Request) -> Answer {
    // user:secret
    if request.header("authorization") != Some("Basic dXNlcjpzZWNyZXQ=") {
        return Answer::status(401);
    }
    let (_, query) = request.path.split_once('?').unwrap();
    let scopes = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="));
    let access: Vec<Value> = scopes
        .map(|scope| {
            let scope = scope
                .replace("%3A", ":")
                .replace("%2F", "/")
                .replace("%2C", ",");
            let parts: Vec<&str> = scope.split(':').collect();
            let actions: Vec<&str> = parts[2].split(',').collect();
            json!({"type": parts[0], "name": parts[1], "actions": actions})
        })
        .collect();
    let token = sign(folder, &access);
    Answer::ok(json!({"token": token}).to_string().as_bytes())
}

/// A JSON web token (RFC 7519), signed by openssl.
fn sign(folder: &Path, access: &[Value]) -> String {
    let pem = fs::read_to_string(folder.join("tokens.pem")).unwrap();
    let certificate: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(json!({"typ": "JWT", "alg": "RS256", "x5c": [certificate]}));
    let claims = encode(json!({
        "iss": "tokens", "aud": "test", "sub": "user", "jti": "1",
        "iat": now, "nbf": now - 60, "exp": now + 600, "access": access,
    }));
    let text = format!("{header}.{claims}");
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-binary", "-sign"])
        .arg(folder.join("tokens.key"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = openssl.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let signature = openssl.wait_with_output().unwrap().stdout;
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
