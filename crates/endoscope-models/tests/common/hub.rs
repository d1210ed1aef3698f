//! A hub for tests: two HTTP servers on 127.0.0.1, one that plays the hub, one that plays the store to which it sends
//! those who ask for a large file. Both write down every request.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// The commit that `main` stands for.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The repository.
pub const ID: &str = "some-org/tiny.model";

/// What the servers do.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// The repository's files.
    pub files: BTreeMap<String, Vec<u8>>,
    /// What `main` stands for; a lie in some tests.
    pub commit: String,
    /// An answer to everything: status line and headers.
    pub refusal: Option<(&'static str, &'static str)>,
    /// After how many bytes of a body the connection is closed, and how often that happens.
    pub breaks: (usize, usize),
    /// Whether parts of files can be asked for.
    pub ranges: bool,
    /// Flips a bit of every large file.
    pub corrupt: bool,
    /// An ETag for every file, instead of its own.
    pub etag: Option<&'static str>,
    /// Bytes more than are sent, in every announced length.
    pub longer: u64,
    /// Where large files are said to be, instead of the store.
    pub elsewhere: Option<&'static str>,
    /// A name that the repository had before: the hub points from it to the new one.
    pub former: Option<&'static str>,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// Whether it came to the hub, not to the store.
    pub at_hub: bool,
    /// How many bytes of a body were sent.
    pub sent: usize,
}

/// The running servers.
pub struct Hub {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Behaviour {
    /// An honest hub with the files of a directory.
    pub fn of(directory: &Path) -> Self {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
        let files = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with("seq"));
        let file =
            |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
        Self {
            files: files.map(file).collect(),
            commit: COMMIT.into(),
            refusal: None,
            breaks: (usize::MAX, 0),
            ranges: true,
            corrupt: false,
            etag: None,
            longer: 0,
            elsewhere: None,
            former: None,
        }
    }

    pub fn with(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(name.into(), bytes.into());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.files.remove(name).unwrap();
        self
    }
}

impl Hub {
    pub fn start(behaviour: Behaviour) -> Self {
        let (hub, store) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [&hub, &store].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        let behaviour = Arc::new(Mutex::new(behaviour));
        let requests = Arc::new(Mutex::new(Vec::new()));
        for (listener, at_hub) in [(hub, true), (store, false)] {
            let (behaviour, requests, store) = (behaviour.clone(), requests.clone(), addresses[1].clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    // A client that goes away in the middle is no concern of a server.
                    let _ = answer(stream.unwrap(), at_hub, &store, &behaviour, &requests);
                }
            });
        }
        Self { endpoint: addresses[0].clone(), behaviour, requests }
    }

    /// Changes what the servers do from now on.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// The requests since the last time this was called.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

fn answer(
    mut stream: TcpStream,
    at_hub: bool,
    store: &str,
    behaviour: &Mutex<Behaviour>,
    requests: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let Some(request) = read(&stream, at_hub)? else { return Ok(()) };
    let number = {
        let mut requests = requests.lock().unwrap();
        requests.push(request.clone());
        requests.len() - 1
    };
    let now = behaviour.lock().unwrap().clone();
    let reply = reply(&request, store, &now);
    let body = if request.method == "HEAD" { &[][..] } else { &reply.body };
    let mut cut = body.len();
    if reply.is_large && body.len() > now.breaks.0 && now.breaks.1 > 0 {
        behaviour.lock().unwrap().breaks.1 -= 1;
        cut = now.breaks.0;
    }
    if let Some(request) = requests.lock().unwrap().get_mut(number) {
        request.sent = cut;
    }
    let length = reply.body.len() as u64 + now.longer;
    write!(
        stream,
        "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {length}\r\n{}\r\n",
        reply.status, reply.headers
    )?;
    stream.write_all(&body[..cut])
}

fn read(stream: &TcpStream, at_hub: bool) -> std::io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next() else { return Ok(None) };
    let first = first?;
    let mut words = first.split(' ').map(String::from);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_string());
    }
    Ok(Some(Request { method, path, headers, at_hub, sent: 0 }))
}

#[derive(Default)]
struct Reply {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
    is_large: bool,
}

fn reply(request: &Request, store: &str, now: &Behaviour) -> Reply {
    if let Some((status, headers)) = now.refusal {
        return Reply { status, headers: headers.into(), ..Reply::default() };
    }
    if !request.at_hub {
        let name = request.path.trim_start_matches("/store/");
        let mut body = now.files[name].clone();
        if now.corrupt {
            *body.last_mut().unwrap() ^= 1;
        }
        return part(request, body, now, true);
    }
    let missing = |code: &str| Reply {
        status: "404 Not Found",
        headers: format!("X-Error-Code: {code}\r\n"),
        ..Reply::default()
    };
    if let Some(former) = now.former
        && request.path.contains(former)
    {
        let headers = format!("Location: {}\r\n", request.path.replace(former, ID));
        return Reply { status: "307 Temporary Redirect", headers, ..Reply::default() };
    }
    if let Some(revision) = request.path.strip_prefix(&format!("/api/models/{ID}/revision/")) {
        if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return missing("RevisionNotFound");
        }
        let siblings: Vec<_> = now.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"id": ID, "sha": now.commit, "siblings": siblings}).to_string().into_bytes();
        return Reply { status: "200 OK", body, ..Reply::default() };
    }
    let Some(name) = request.path.strip_prefix(&format!("/{ID}/resolve/{}/", now.commit)) else {
        return missing("RepoNotFound");
    };
    let Some(body) = now.files.get(name) else { return missing("EntryNotFound") };
    let hash: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    let commit = format!("X-Repo-Commit: {}\r\n", now.commit);
    if name.ends_with(".safetensors") {
        let size = body.len() as u64 + now.longer;
        let etag = now.etag.unwrap_or(&hash);
        let elsewhere = now.elsewhere.map_or_else(|| format!("{store}/store/{name}"), String::from);
        let headers =
            format!("{commit}X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\nLocation: {elsewhere}\r\n");
        return Reply { status: "302 Found", headers, ..Reply::default() };
    }
    let mut reply = part(request, body.clone(), now, false);
    reply.headers += &format!("{commit}ETag: \"{}\"\r\n", now.etag.unwrap_or(&hash[..40]));
    reply
}

/// The whole body, or the part that was asked for.
fn part(request: &Request, body: Vec<u8>, now: &Behaviour, is_large: bool) -> Reply {
    let range = request.headers.get("range").filter(|_| now.ranges);
    let Some((start, end)) = range.map(|range| range.strip_prefix("bytes=").unwrap().split_once('-').unwrap()) else {
        return Reply { status: "200 OK", headers: String::new(), body, is_large };
    };
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(body.len(), |end: usize| body.len().min(end + 1));
    let headers = format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, body.len());
    Reply { status: "206 Partial Content", headers, body: body[start..end].to_vec(), is_large }
}
