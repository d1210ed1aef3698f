//! Moving harvests: to a folder, and to a server on 127.0.0.1 that plays S3.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use common::*;
use endoscope_harvest::*;
use tempfile::tempdir;

/// What the server holds and has heard.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Vec<u8>>,
    requests: usize,
    broken: bool,
}

fn serve() -> (String, Arc<Mutex<Server>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = Arc::new(Mutex::new(Server::default()));
    let shared = server.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that goes away in the middle is no concern of a server.
            let _ = answer(stream.unwrap(), &shared);
        }
    });
    (address, server)
}

/// PUT, GET and HEAD of `/bucket/key`, as S3 answers them.
fn answer(mut stream: TcpStream, server: &Mutex<Server>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap().to_string(), words.next().unwrap_or_default().to_string());
    let (mut length, mut signed) = (0, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => signed = value.starts_with("AWS4-HMAC-SHA256 Credential=key/"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut server = server.lock().unwrap();
    server.requests += 1;
    let status = match method.as_str() {
        _ if server.broken => "503 Service Unavailable",
        _ if !signed => "403 Forbidden",
        "PUT" => {
            server.objects.insert(path.clone(), body);
            "200 OK"
        }
        _ if server.objects.contains_key(&path) => "200 OK",
        _ => "404 Not Found",
    };
    let found =
        server.objects.get(&path).filter(|_| status == "200 OK" && method != "PUT").cloned().unwrap_or_default();
    let length = found.len();
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\nETag: \"x\"\r\n")?;
    write!(stream, "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n")?;
    if method == "GET" {
        stream.write_all(&found)?;
    }
    Ok(())
}

/// No S3 is needed.
fn none() -> Access {
    Access::default()
}

fn quiet(_: usize, _: usize) -> Result<()> {
    Ok(())
}

fn harvested() -> tempfile::TempDir {
    let directory = tempdir().unwrap();
    harvest_to(directory.path(), &settings(), &documents(60, 1)).unwrap();
    fs::write(directory.path().join("provenance.json"), "{}").unwrap();
    directory
}

#[test]
fn a_folder_and_back() {
    let (from, to, back) = (harvested(), tempdir().unwrap(), tempdir().unwrap());
    let place = to.path().join("a/b");
    let url = format!("file://{}", place.display());
    let shards = Manifest::read(from.path()).unwrap().unwrap().shards.len();
    let moved = push(from.path(), &url, &none(), &mut quiet).unwrap();
    assert_eq!((moved.moved, moved.there), (shards, 0));
    assert!(contents(from.path()) == contents(&place));
    let moved = push(from.path(), place.to_str().unwrap(), &none(), &mut quiet).unwrap();
    assert_eq!((moved.moved, moved.there, moved.bytes), (0, shards, 0));
    assert_eq!(pull(&url, back.path(), &none(), &mut quiet).unwrap().moved, shards);
    assert!(contents(from.path()) == contents(back.path()));
    // A pull that was broken off goes on; a shard that is damaged comes again.
    fs::remove_file(back.path().join("shard-000001.safetensors")).unwrap();
    fs::write(back.path().join("shard-000002.safetensors"), "damaged").unwrap();
    let moved = pull(&url, back.path(), &none(), &mut quiet).unwrap();
    assert_eq!((moved.moved, moved.there), (2, shards - 2));
    assert!(contents(from.path()) == contents(back.path()));
}

#[test]
fn faults_of_moves_are_named() {
    let (from, to) = (harvested(), tempdir().unwrap());
    let place = to.path().join("place").display().to_string();
    let check = |result: Result<Moved>, part: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    check(pull(&place, &to.path().join("x"), &none(), &mut quiet), "no such folder");
    check(push(from.path(), "ftp://host/x", &none(), &mut quiet), "nothing is known of ftp://");
    push(from.path(), &place, &none(), &mut quiet).unwrap();
    let other = tempdir().unwrap();
    harvest_to(other.path(), &Settings { dtype: Dtype::F16, ..settings() }, &documents(60, 1)).unwrap();
    check(push(other.path(), &place, &none(), &mut quiet), "another harvest is there");
    check(pull(&place, other.path(), &none(), &mut quiet), "was begun with dtype");
    // What is damaged here is not sent, what is damaged there is not taken.
    let shard = from.path().join("shard-000000.safetensors");
    let good = fs::read(&shard).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&shard, &bad).unwrap();
    check(push(from.path(), &to.path().join("new").display().to_string(), &none(), &mut quiet), "SHA-256");
    fs::write(to.path().join("place/shard-000000.safetensors"), &bad).unwrap();
    check(pull(&place, &to.path().join("x"), &none(), &mut quiet), "damaged there");
    let error = ActivationReader::open(to.path().join("x")).unwrap_err();
    assert!(matches!(error, Error::Incomplete { .. }), "{error}");
}

#[test]
fn a_store_that_speaks_s3() {
    let (endpoint, server) = serve();
    let access = |key: &str| {
        let options = [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", key),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "nowhere-1"),
            ("HOME", "/somewhere"),
        ];
        Access::of(options.map(|(name, value)| (name.to_string(), value.to_string())))
    };
    let may = access("key");
    let (from, back) = (harvested(), tempdir().unwrap());
    let url = "s3://bucket/some/folder";
    let shards = Manifest::read(from.path()).unwrap().unwrap().shards.len();
    // It ends after two shards, and goes on with the third.
    let error =
        push(from.path(), url, &may, &mut |shards, _| if shards == 2 { Err(Error::Interrupted) } else { Ok(()) });
    assert!(matches!(error, Err(Error::Interrupted)));
    let moved = push(from.path(), url, &may, &mut quiet).unwrap();
    assert_eq!((moved.moved, moved.there), (shards - 2, 2));
    let there: Vec<(String, Vec<u8>)> = {
        let server = server.lock().unwrap();
        let name = |key: &str| key.strip_prefix("/bucket/some/folder/").unwrap().to_string();
        server.objects.iter().map(|(key, bytes)| (name(key), bytes.clone())).collect()
    };
    assert!(there == contents(from.path()));
    let moved = pull(url, back.path(), &may, &mut quiet).unwrap();
    assert_eq!((moved.moved, moved.there), (shards, 0));
    assert!(contents(from.path()) == contents(back.path()));
    let nothing = pull("s3://bucket/nothing", &back.path().join("x"), &may, &mut quiet).unwrap_err().to_string();
    assert!(nothing.contains("there is no harvest.json"), "{nothing}");
    // A server that has broken down is asked again some times, and then it is an error that names the place.
    server.lock().unwrap().broken = true;
    server.lock().unwrap().requests = 0;
    let broken = pull(url, &back.path().join("y"), &may, &mut quiet).unwrap_err().to_string();
    assert!(broken.contains(url) && broken.contains("503"), "{broken}");
    assert!(server.lock().unwrap().requests > 1);
    server.lock().unwrap().broken = false;
    // Those who may not are told so.
    let refused = pull(url, &back.path().join("z"), &access("stranger"), &mut quiet).unwrap_err().to_string();
    assert!(refused.contains(url) && refused.contains("403"), "{refused}");
}
