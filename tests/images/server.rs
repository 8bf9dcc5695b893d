//! A real registry for tests: Debian's `docker-registry` on a port of its own.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use tempfile::TempDir;

use crate::token::TokenServer;

/// `user` with the password `secret`, as bcrypt.
const HTPASSWD: &str = "user:$2b$04$/Yzb0aDlQrddJgAYi3J01eJQ5PsG41kjeEFi.thOV3y0lQshMr9qq\n";

/// A running docker-registry.
pub struct Registry {
    process: Child,
    folder: TempDir,
    /// `127.0.0.1:PORT`.
    pub address: String,
    log: Arc<Mutex<Vec<String>>>,
}

/// What a registry demands.
#[derive(Clone, Copy)]
pub enum Demand<'t> {
    Nothing,
    Password,
    Tls,
    Token(&'t TokenServer),
}

impl Registry {
    pub fn start(demand: Demand<'_>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog:\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            at("data")
        );
        match demand {
            Demand::Nothing => {}
            Demand::Password => {
                fs::write(at("htpasswd"), HTPASSWD).unwrap();
                config.push_str(&format!(
                    "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                    at("htpasswd")
                ));
            }
            Demand::Tls => {
                certify(&at);
                config.push_str(&format!(
                    "  tls:\n    certificate: {}\n    key: {}\n",
                    at("cert.pem"),
                    at("cert.key")
                ));
            }
            Demand::Token(server) => config.push_str(&server.config()),
        }
        fs::write(at("config.yml"), config).unwrap();
        let mut process = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (ready, wait) = std::sync::mpsc::channel();
        for output in [
            Box::new(process.stdout.take().unwrap()) as Box<dyn Read + Send>,
            Box::new(process.stderr.take().unwrap()),
        ] {
            let (log, ready) = (Arc::clone(&log), ready.clone());
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if let Some((_, rest)) = line.split_once("listening on ") {
                        let address: String = rest
                            .chars()
                            .take_while(|c| c.is_ascii_digit() || ".:".contains(*c))
                            .collect();
                        let _ = ready.send(address);
                    }
                    log.lock().unwrap().push(line);
                }
            });
        }
        let address = wait.recv().expect("docker-registry did not come up");
        Self {
            process,
            folder,
            address,
            log,
        }
    }

    /// A file of the registry's: `ca.pem`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// How many requests of this method were answered for paths that contain `part`.
    pub fn requests(&self, method: &str, part: &str) -> usize {
        let log = self.log.lock().unwrap();
        let request = format!("\"{method} ");
        log.iter()
            .filter(|line| {
                line.contains(&request) && line.contains(part) && line.contains("HTTP/1.1\"")
            })
            .count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes an authority and a certificate of it for this machine, as files that `at` places.
pub fn certify(at: &dyn Fn(&str) -> String) {
    const CURVE: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    certificate(at, "ca", &CURVE);
    let (authority, key) = (at("ca.pem"), at("ca.key"));
    certificate(
        at,
        "cert",
        &[
            CURVE[0],
            CURVE[1],
            CURVE[2],
            CURVE[3],
            "-CA",
            &authority,
            "-CAkey",
            &key,
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ],
    );
}

/// Makes the certificate `name.pem` with the key `name.key`, signed with itself unless `more` says with what.
pub fn certificate(at: &dyn Fn(&str) -> String, name: &str, more: &[&str]) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-days", "2", "-subj"])
        .arg(format!("/CN={name}"))
        .args(["-keyout", &at(&format!("{name}.key"))])
        .args(["-out", &at(&format!("{name}.pem"))])
        .args(more)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
}
