//! One request for an event stream, and its answer as it comes.
//!
//! In:     the URL of a service, what is asked for, a token, the last place that is known.
//! Out:    a stream of events; or whether to ask again later, and why.
//! Never:  a redirect followed: the token is for the host that was named.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::blocks::{Blocks, Event};

/// How long a connection and the head of an answer may take; a join there waits for 7 s at most.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);

/// Bytes of a refusal that are read.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Whom to ask for what.
pub(super) struct Service {
    host: String,
    port: u16,
    authority: String,
    target: String,
    tls: Option<TlsConnector>,
    bearer: HeaderValue,
    silence_max: Duration,
}

/// What the service said.
pub(super) enum Answer {
    Stream(Box<Stream>),
    /// Why not now, and how long to wait if it says so.
    Later(String, Option<Duration>),
    /// Why not.
    Never(String),
}

/// An answer without end.
pub(super) struct Stream {
    body: Incoming,
    blocks: Blocks,
    silence_max: Duration,
    /// Without it the connection would take the answer for one that nobody waits for.
    _sender: SendRequest<String>,
    _connection: JoinSet<()>,
}

impl Service {
    pub(super) fn new(
        url: &str,
        query: &str,
        token: &str,
        silence_max: Duration,
    ) -> anyhow::Result<Self> {
        let no_url = || anyhow!("--url {url}: is no URL of a service, such as https://host/path");
        let uri: Uri = url.parse().map_err(|_| no_url())?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => bail!(no_url()),
        };
        let authority =
            uri.authority().filter(|it| !it.as_str().contains('@')).ok_or_else(no_url)?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| anyhow!("the token holds characters that no token has"))?;
        bearer.set_sensitive(true);
        Ok(Self {
            host,
            port,
            authority: authority.to_string(),
            target: format!("{}/events{query}", uri.path().trim_end_matches('/')),
            tls: secure.then(tls).transpose()?,
            bearer,
            silence_max,
        })
    }

    /// Asks once.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) async fn ask(&self, last_id: Option<&str>) -> anyhow::Result<Answer> {
        let asked = timeout(ANSWER_TIME_MAX, self.exchange(last_id)).await;
        let late = || anyhow!("no answer from {} in time", self.authority);
        asked.unwrap_or_else(|_elapsed| Err(late()))
    }

    async fn exchange(&self, last_id: Option<&str>) -> anyhow::Result<Answer> {
        let mut request = Request::get(&self.target)
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, "text/event-stream")
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::CACHE_CONTROL, "no-store")
            .header(header::USER_AGENT, concat!("walcast/", env!("CARGO_PKG_VERSION")))
            .header(header::AUTHORIZATION, self.bearer.clone());
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let request = request.body(String::new()).context("this cannot be asked for")?;
        let place = || format!("cannot connect to {}", self.authority);
        let tcp = TcpStream::connect((&*self.host, self.port)).await.with_context(place)?;
        match &self.tls {
            None => self.send(tcp, request).await,
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone()).with_context(place)?;
                let stream = tls.connect(name, tcp).await.with_context(place)?;
                self.send(stream, request).await
            }
        }
    }

    async fn send(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<String>,
    ) -> anyhow::Result<Answer> {
        let broken = || format!("the exchange with {} failed", self.authority);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.with_context(broken)?;
        let mut running = JoinSet::new();
        let _: AbortHandle = running.spawn(async move {
            // Whoever reads the answer meets the same error.
            let _ = connection.await;
        });
        let response = sender.send_request(request).await.with_context(broken)?;
        self.answer(response, sender, running).await
    }

    async fn answer(
        &self,
        response: Response<Incoming>,
        sender: SendRequest<String>,
        running: JoinSet<()>,
    ) -> anyhow::Result<Answer> {
        let (head, body) = response.into_parts();
        let kind = head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        let is_stream = kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"));
        match head.status {
            StatusCode::OK if is_stream => Ok(Answer::Stream(Box::new(Stream {
                body,
                blocks: Blocks::default(),
                silence_max: self.silence_max,
                _sender: sender,
                _connection: running,
            }))),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let wait = retry_after(&head.headers);
                Ok(Answer::Later(refusal(head.status, body).await, wait))
            }
            StatusCode::OK => Ok(Answer::Never(format!("{} serves no events", self.authority))),
            status => Ok(Answer::Never(refusal(status, body).await)),
        }
    }
}

impl Stream {
    /// The next events; none at the end.
    ///
    /// # Errors
    /// When nothing has come for too long, or what came cannot be read.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Vec<Event>>> {
        let body = &mut self.body;
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
        let frame = timeout(self.silence_max, frame).await;
        let frame = frame.map_err(|_elapsed| anyhow!("the service is silent"))?;
        let Some(frame) = frame else { return Ok(None) };
        let data = frame.context("the stream broke")?.into_data();
        Ok(Some(data.map_or_else(|_| Ok(Vec::new()), |data| self.blocks.take(&data))?))
    }

    /// How long to wait before coming back, as the stream says.
    pub(super) fn retry_ms(&self) -> Option<u64> {
        self.blocks.retry_ms
    }
}

/// What a refusal says.
async fn refusal(status: StatusCode, mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > REFUSAL_BYTES_MAX {
            break;
        }
    }
    let said: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let text = said.as_ref().and_then(|said| said.get("error").or(said.get("message"))?.as_str());
    match text {
        Some(text) => format!("{text} ({})", status.as_u16()),
        None => format!("the service answers with status {}", status.as_u16()),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn tls() -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        bail!("this machine has no root certificates, so https:// cannot be trusted");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS has no usable version")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
