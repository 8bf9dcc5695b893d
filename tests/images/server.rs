//! Registries for tests: Debian's `docker-registry` on a port of its own, and one of our own that misbehaves.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use tempfile::TempDir;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    Nothing,
    Password,
    Tls,
}

impl Registry {
    pub fn start(demand: Demand) -> Self {
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
fn certify(at: &dyn Fn(&str) -> String) {
    let certificate = |name: &str, more: &[&str]| {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "2", "-subj"])
            .arg(format!("/CN={name}"))
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-keyout", &at(&format!("{name}.key"))])
            .args(["-out", &at(&format!("{name}.pem"))])
            .args(more)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
    };
    certificate("ca", &[]);
    let (authority, key) = (at("ca.pem"), at("ca.key"));
    certificate(
        "cert",
        &[
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

/// A request that [`Hostile`] got.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What it answers.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Sends only so many bytes of the body and then nothing, the connection left open.
    pub stall_after: Option<usize>,
    /// Sends only so many bytes of the body and closes the connection.
    pub cut_after: Option<usize>,
}

impl Answer {
    pub fn ok(body: &[u8]) -> Self {
        Self {
            status: 200,
            body: body.into(),
            ..Self::default()
        }
    }

    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A registry that answers as a test says.
pub struct Hostile {
    /// `127.0.0.1:PORT`.
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Hostile {
    /// `answer` is told each request and how many of its path there were before.
    pub fn start(answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        Self { address, requests }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request, usize) -> Answer,
) {
    let Some(request) = read_request(&stream) else {
        // TLS, which is tried first.
        return;
    };
    let before = {
        let mut seen = seen.lock().unwrap();
        let before = seen
            .iter()
            .filter(|other| other.path == request.path && other.method == request.method)
            .count();
        seen.push(request.clone());
        before
    };
    let answer = answer(&request, before);
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", answer.status);
    if !answer
        .headers
        .iter()
        .any(|(name, _)| *name == "content-length")
    {
        head.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let sent = answer
        .stall_after
        .or(answer.cut_after)
        .unwrap_or(answer.body.len());
    let body: &[u8] = if request.method == "HEAD" {
        &[]
    } else {
        &answer.body[..sent.min(answer.body.len())]
    };
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
    if answer.stall_after.is_some() {
        // Until the other side has had enough.
        let _ = stream.read(&mut [0; 1]);
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .and_then(|(_, value)| value.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        method,
        path,
        headers,
    })
}
