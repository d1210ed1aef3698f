//! What object_store needs of an HTTP client, from ureq, which the hub is reached with already: no second HTTP and TLS stack.
//!
//! Requests block. Shards go one after the other, so nothing else waits meanwhile.

use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use ureq::Agent;
use ureq::http::{Request, Response};

/// How long a server may take to accept a connection, to answer, and to go on with an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes clients.
#[derive(Debug)]
pub(crate) struct Connector;

#[derive(Debug)]
struct Client {
    agent: Agent,
    /// For this machine itself, to which no proxy leads.
    here: Agent,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let config = || {
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .timeout_connect(Some(PATIENCE))
                .timeout_recv_response(Some(PATIENCE))
                .timeout_per_read(Some(PATIENCE))
                .user_agent(concat!("endoscope/", env!("CARGO_PKG_VERSION")))
        };
        let agent = config().build().into();
        let here = config().proxy(None).build().into();
        Ok(HttpClient::new(Client { agent, here }))
    }
}

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let local = matches!(head.uri.host(), Some("127.0.0.1" | "localhost" | "[::1]"));
        let agent = if local { &self.here } else { &self.agent };
        let answer = match body.is_empty() && !matches!(head.method.as_str(), "PUT" | "POST") {
            true => agent.run(Request::from_parts(head, ())),
            false => agent.run(Request::from_parts(head, &body[..])),
        };
        let (head, mut body) = answer.map_err(failed)?.into_parts();
        let bytes = body.with_config().limit(u64::MAX).read_to_vec().map_err(failed)?;
        Ok(Response::from_parts(head, HttpResponseBody::from(bytes)))
    }
}

fn failed(error: ureq::Error) -> HttpError {
    let kind = match &error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => HttpErrorKind::Connect,
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::Io(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}
