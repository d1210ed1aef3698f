//! Requests to the hub: what it says of a repository and of a file, and the bytes of a file from some place on.
//!
//! Redirects are followed here rather than by the HTTP library, for two reasons: the token goes to the hub and to nobody
//! whom it points to, and what the hub says of a file stands in the answer that points elsewhere.

use std::collections::BTreeSet;
use std::io::Read;
use std::ops::Range;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use super::reference::is_commit;
use super::{HubError, Repository, Settings, Token};

type Result<T> = std::result::Result<T, HubError>;

/// How often an answer may point elsewhere.
const REDIRECTS: usize = 10;
/// The longest list of files that is read: tens of thousands of names.
const LONGEST_LISTING: u64 = 16 << 20;
/// How long the hub may take to accept a connection, to answer, and to go on with an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// One repository of the hub, over HTTP.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    repository: Repository,
}

/// What a revision stands for, and the files that are there.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub names: BTreeSet<String>,
}

/// What the hub says of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Description {
    /// Its name in the cache: the SHA-256 of a large file, git's hash of a small one.
    pub etag: String,
    pub bytes: u64,
}

/// A file as it comes.
pub(super) struct Incoming {
    /// Where in the file it begins: where it was asked to, or at 0.
    pub from: u64,
    /// How long the whole file is, if the answer says so.
    pub whole: Option<u64>,
    pub reader: Box<dyn Read>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
}

impl Client {
    pub(super) fn new(settings: &Settings, repository: &Repository) -> Self {
        let mut config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent(concat!("endoscope/", env!("CARGO_PKG_VERSION")));
        if ["http://127.0.0.1", "http://localhost"].iter().any(|here| settings.endpoint.starts_with(here)) {
            // No proxy leads to this machine itself.
            config = config.proxy(None);
        }
        Self {
            agent: config.build().into(),
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            repository: repository.clone(),
        }
    }

    /// The commit that the revision stands for now, and its files.
    pub(super) fn listing(&self) -> Result<Listing> {
        #[derive(serde::Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let (id, revision) = (self.repository.id(), escaped(self.repository.revision()));
        let url = format!("{}/api/models/{id}/revision/{revision}", self.endpoint);
        let response = self.successful(Method::Get, &url, None)?;
        let text = response.into_body().into_with_config().limit(LONGEST_LISTING).read_to_vec();
        let text = text.map_err(|error| unreachable_because(&url, error))?;
        let info: Info = serde_json::from_slice(&text).map_err(|error| not_a_hub(&url, error))?;
        if !is_commit(&info.sha) {
            return Err(not_a_hub(&url, format!("`{}` is no commit", printable(&info.sha))));
        }
        let names = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Listing { commit: info.sha, names })
    }

    /// The address of a file at a commit.
    pub(super) fn url(&self, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.repository.id(), escaped(name))
    }

    /// What the hub says of the file at `url`, without its bytes.
    pub(super) fn describe(&self, url: &str) -> Result<Description> {
        let (mut etag, mut bytes) = (None, None);
        let mut at = url.to_string();
        for _ in 0..REDIRECTS {
            let response = self.send(Method::Head, &at, None)?;
            let headers = response.headers();
            etag = etag.or_else(|| text(headers, "x-linked-etag"));
            bytes = bytes.or_else(|| text(headers, "x-linked-size"));
            match location(&at, &response)? {
                // Where the hub itself has it now; elsewhere there is nothing more to learn.
                Some(next) if origin(&next) == origin(&at) => at = next,
                Some(_) => break,
                None if response.status().is_success() => {
                    etag = etag.or_else(|| text(headers, "etag"));
                    bytes = bytes.or_else(|| text(headers, "content-length"));
                    break;
                }
                None => return Err(self.refusal(url, &response)),
            }
        }
        let etag = etag.and_then(|etag| file_name(&etag)).ok_or_else(|| not_a_hub(url, "it gives no usable ETag"))?;
        let bytes = bytes.and_then(|bytes| bytes.parse().ok()).ok_or_else(|| not_a_hub(url, "it gives no size"))?;
        Ok(Description { etag, bytes })
    }

    /// The bytes of the file at `url`, from `from` on if the server can do that, else from the beginning.
    pub(super) fn read_from(&self, url: &str, from: u64) -> Result<Incoming> {
        self.incoming(url, (from > 0).then(|| format!("bytes={from}-")), from)
    }

    /// A part of the file at `url`; a server that knows no parts sends everything, of which no more is read than needed.
    pub(super) fn read_part(&self, url: &str, part: Range<u64>) -> Result<Incoming> {
        let last = part.end.saturating_sub(1);
        self.incoming(url, Some(format!("bytes={}-{last}", part.start)), part.start)
    }

    fn incoming(&self, url: &str, range: Option<String>, from: u64) -> Result<Incoming> {
        let response = self.successful(Method::Get, url, range.as_deref())?;
        let (from, whole) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text(response.headers(), "content-range");
                let range = range.as_deref().and_then(content_range).filter(|(start, _)| *start == from);
                let (start, whole) = range.ok_or_else(|| not_a_hub(url, "it sends another part than was asked for"))?;
                (start, Some(whole))
            }
            _ => (0, text(response.headers(), "content-length").and_then(|length| length.parse().ok())),
        };
        Ok(Incoming { from, whole, reader: Box::new(response.into_body().into_reader()) })
    }

    /// Follows redirects to an answer that is a success.
    fn successful(&self, method: Method, url: &str, range: Option<&str>) -> Result<Response<Body>> {
        let mut at = url.to_string();
        for _ in 0..REDIRECTS {
            let response = self.send(method, &at, range)?;
            match location(&at, &response)? {
                Some(next) => at = next,
                None if response.status().is_success() => return Ok(response),
                None => return Err(self.refusal(url, &response)),
            }
        }
        Err(not_a_hub(url, format!("it points elsewhere more than {REDIRECTS} times")))
    }

    fn send(&self, method: Method, url: &str, range: Option<&str>) -> Result<Response<Body>> {
        let mut request = match method {
            Method::Get => self.agent.get(url),
            Method::Head => self.agent.head(url),
        };
        // Lengths must be those of the files.
        request = request.header("accept-encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| origin(url) == origin(&self.endpoint)) {
            request = request.header("authorization", token.authorization());
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Protocol(_) => not_a_hub(url, error),
            other => unreachable_because(url, other),
        })
    }

    /// What an answer that is no success means.
    fn refusal(&self, url: &str, response: &Response<Body>) -> HubError {
        let (id, endpoint) = (self.repository.id().to_string(), self.endpoint.clone());
        let code = text(response.headers(), "x-error-code").unwrap_or_default();
        let message = text(response.headers(), "x-error-message").unwrap_or_default();
        let detail = if message.is_empty() { String::new() } else { format!(" (it says: {})", printable(&message)) };
        let refuses_token = message.contains("Invalid credentials");
        match (response.status().as_u16(), code.as_str()) {
            (_, "GatedRepo") => HubError::Gated { id, endpoint, detail },
            (401, _) if refuses_token => HubError::Token { id, endpoint, detail },
            (404, "RevisionNotFound") => {
                HubError::NoRevision { id, revision: self.repository.revision().into(), endpoint }
            }
            (_, "RepoNotFound") => HubError::NoRepository { id, endpoint },
            // Without a token the hub does not tell what is private from what is not there.
            (401, _) if self.token.is_none() => HubError::NoRepository { id, endpoint },
            (401, _) => HubError::Token { id, endpoint, detail },
            (403, _) => HubError::Gated { id, endpoint, detail },
            (404, "") if url.contains("/api/models/") => HubError::NoRepository { id, endpoint },
            (status, _) => HubError::Status { url: url.to_string(), status, detail, advice: advice(status) },
        }
    }
}

fn advice(status: u16) -> &'static str {
    match status {
        404 => ": the file is not there",
        429 => ": too many requests; wait a while, or set HF_TOKEN",
        500.. => ": the hub has trouble of its own; try again later",
        _ => "",
    }
}

fn not_a_hub(url: &str, reason: impl ToString) -> HubError {
    HubError::Answer { url: url.to_string(), reason: reason.to_string() }
}

fn unreachable_because(url: &str, reason: impl ToString) -> HubError {
    HubError::Unreachable { url: url.to_string(), reason: reason.to_string() }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_string())
}

/// Somebody else's words, for a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Where a redirect leads from `url`; `None` if the answer is none.
fn location(url: &str, response: &Response<Body>) -> Result<Option<String>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let target = text(response.headers(), "location").ok_or_else(|| not_a_hub(url, "it points nowhere"))?;
    let next = match target.starts_with('/') && !target.starts_with("//") {
        true => format!("{}{target}", origin(url)),
        false => target,
    };
    let safe = next.starts_with("https://") || (next.starts_with("http://") && url.starts_with("http://"));
    if !safe {
        return Err(not_a_hub(url, format!("it points to `{}`", printable(&next))));
    }
    Ok(Some(next))
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#', '\\']).map_or(url.len(), |at| host + at);
    &url[..end]
}

/// An ETag as the name of a file in the cache; nothing that could lead elsewhere is one.
fn file_name(etag: &str) -> Option<String> {
    let etag = etag.trim().trim_start_matches("W/").trim_matches('"');
    let plain = etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    (plain && (1..=128).contains(&etag.len())).then(|| etag.to_string())
}

/// First byte and whole length of `bytes 5-9/10`.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (part, whole) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = part.split_once('-')?;
    let (start, end, whole): (u64, u64, u64) = (start.parse().ok()?, end.parse().ok()?, whole.parse().ok()?);
    (start <= end && end < whole).then_some((start, whole))
}

/// Percent-encoded as one part of a path.
fn escaped(part: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    part.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_that_lead_elsewhere_are_none() {
        for (etag, name) in [
            ("\"abc123\"", Some("abc123")),
            ("W/\"a-b_c\"", Some("a-b_c")),
            ("\"../x\"", None),
            ("a/b", None),
            ("a.lock", None),
            ("\"\"", None),
        ] {
            assert_eq!(file_name(etag).as_deref(), name, "{etag}");
        }
        assert_eq!(file_name(&"a".repeat(129)), None);
    }

    #[test]
    fn origins_are_scheme_host_and_port() {
        for (url, expected) in [
            ("https://a.b/c?d", "https://a.b"),
            ("http://127.0.0.1:80/x", "http://127.0.0.1:80"),
            ("http://a:1", "http://a:1"),
            ("https://hub@evil/x", "https://hub@evil"),
            ("https://hub?@evil", "https://hub"),
        ] {
            assert_eq!(origin(url), expected);
        }
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 10)));
        for text in ["", "bytes */10", "bytes 5-9/*", "bytes 9-5/10", "bytes 5-10/10", "5-9/10"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_escaped_as_one_part() {
        assert_eq!(escaped("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escaped("a b?ü.json"), "a%20b%3F%C3%BC.json");
    }
}
