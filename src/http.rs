//! An HTTP client as the server needs it for other regions and the tool for sending: POST,
//! of a JSON text if nothing else is said, over a pool of connections, with a deadline.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a whole exchange may take.
const EXCHANGE: Duration = Duration::from_secs(6);
/// How long an idle connection is kept: less than servers keep theirs, so that none is used in the
/// moment in which its other end closes it.
const IDLE: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

/// Why there is no answer. Whether the request was carried out is unknown.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The URL or a header makes no sense: for the operator.
    #[error("{0} is no URL or header that can be sent")]
    Unsendable(String),
    /// No connection, or it broke: try again.
    #[error("{0}")]
    Broken(String),
    /// Try again.
    #[error("no answer within {} s", EXCHANGE.as_secs())]
    Timeout,
}

/// A client; clones share its connections.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl HttpClient {
    /// A client that trusts as `tls` says and speaks both http:// and https://.
    pub fn new(tls: &Arc<ClientConfig>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(ClientConfig::clone(tls))
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Self {
            client: Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .build(connector),
        }
    }

    /// Posts a JSON text, or what the headers say it is, with these headers; returns status and body.
    pub async fn post(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        json: impl Into<Bytes>,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let request = request(url, headers, json.into())?;
        in_time(async {
            let answer = self.send(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
            Ok((status, body.map_err(|error| HttpError::Broken(error.to_string()))?.to_bytes()))
        })
        .await
    }

    /// The same for whoever wants the status alone: it is the answer, even if the body breaks off, as
    /// that of a simple server does which ends a body, and TLS, by closing the connection.
    pub async fn tell(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        json: impl Into<Bytes>,
    ) -> Result<StatusCode, HttpError> {
        let request = request(url, headers, json.into())?;
        in_time(async { Ok(self.send(request).await?.status()) }).await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, HttpError> {
        self.client.request(request).await.map_err(|error| HttpError::Broken(crate::daemon::chain(&error)))
    }
}

fn request(url: &str, headers: &[(&str, &str)], json: Bytes) -> Result<Request<Full<Bytes>>, HttpError> {
    let mut request = Request::post(url);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(json)).map_err(|error| HttpError::Unsendable(format!("{url}: {error}")))
}

async fn in_time<T>(exchange: impl Future<Output = Result<T, HttpError>>) -> Result<T, HttpError> {
    match tokio::time::timeout(EXCHANGE, exchange).await {
        Ok(result) => result,
        Err(_) => Err(HttpError::Timeout),
    }
}
