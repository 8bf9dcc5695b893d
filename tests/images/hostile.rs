//! A registry that answers as a test says: slowly, wrongly, elsewhere or not at all.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::server::certify;

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
    /// Sends so many bytes of the body, then tells the gate, and sends the rest when that opens.
    pub gate: Option<(usize, Arc<Gate>)>,
    /// Sends byte by byte, twenty in a second.
    pub trickles: bool,
}

/// Where a transfer stands still until a test has done what it wants to do meanwhile.
#[derive(Debug, Default)]
pub struct Gate {
    /// Whether a transfer has reached it, whether it is open.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    /// Waits until a transfer has reached it.
    pub fn reached(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| !state.0).unwrap());
    }

    /// Lets the transfer go on.
    pub fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| !state.1).unwrap());
    }
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
        Self::listen(None, answer)
    }

    /// The same over HTTPS, with the authority and the certificate in `folder`.
    pub fn start_secure(
        folder: &Path,
        answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        certify(&|name| folder.join(name).display().to_string());
        let certificate = CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(folder.join("cert.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        Self::listen(Some(Arc::new(config)), answer)
    }

    fn listen(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, answer, tls) = (Arc::clone(&seen), Arc::clone(&answer), tls.clone());
                thread::spawn(move || match tls {
                    None => serve(&stream, &stream, &seen, &*answer),
                    Some(config) => {
                        let tcp = stream.try_clone().unwrap();
                        let connection = ServerConnection::new(config).unwrap();
                        serve(StreamOwned::new(connection, stream), &tcp, &seen, &*answer);
                    }
                });
            }
        });
        Self { address, requests }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: impl Read + Write,
    tcp: &TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request, usize) -> Answer,
) {
    let Some(request) = read_request(&mut stream) else {
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
    // Whoever asked may be gone, which is what some tests are about.
    let _ = send(&mut stream, tcp, &request, &answer);
}

fn send(
    stream: &mut (impl Read + Write),
    tcp: &TcpStream,
    request: &Request,
    answer: &Answer,
) -> io::Result<()> {
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
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let sent = answer
        .stall_after
        .or(answer.cut_after)
        .unwrap_or(answer.body.len());
    let mut body = &answer.body[..sent.min(answer.body.len())];
    if let Some((first, gate)) = &answer.gate {
        stream.write_all(&body[..*first])?;
        stream.flush()?;
        body = &body[*first..];
        gate.pass();
    }
    if answer.trickles {
        tcp.set_read_timeout(Some(Duration::from_millis(50)))?;
        for byte in body.chunks(1) {
            stream.write_all(byte)?;
            // Nothing comes, so this takes its time; the end comes when the other side has had enough.
            match stream.read(&mut [0; 1]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return Ok(()),
            }
        }
    } else {
        stream.write_all(body)?;
    }
    stream.flush()?;
    if answer.stall_after.is_some() {
        // Until the other side has had enough.
        let _ = stream.read(&mut [0; 1])?;
    }
    Ok(())
}

fn read_request(stream: &mut impl Read) -> Option<Request> {
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
