//! The other services of a Supabase project, passed through, so that an app needs one URL.
//!
//! In:     requests for `/auth/v1`, `/rest/v1` and their like; `[proxy]` settings.
//! Out:    the upstream's answers, both bodies streamed as they come.
//! Never:  holds a body; follows a redirect; opens a WebSocket; sends what is not under these
//!         paths; logs a path, a query or a header.
//! Source: RFC 9110 section 7.6 (what an intermediary must remove)

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tower::Service as Tower;
use tracing::debug;

use super::{Service, error};
use crate::config;
use crate::db::tls;
use crate::telemetry;
use crate::transport::admit::Admit;

/// What is passed through: these paths and what is below them.
const PATHS: [&str; 5] = ["/auth/v1", "/rest/v1", "/storage/v1", "/functions/v1", "/graphql/v1"];

/// Connections kept open for the next request.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// How long they are kept: below what load balancers usually allow.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(50);

/// Marks what we passed on, so that an upstream that is ourselves ends at once.
const MARK: HeaderName = HeaderName::from_static("x-walcast-proxied");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What belongs to one connection, besides what `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What an upstream promises for its own host and we cannot keep for ours.
const OF_THEIR_HOST: [HeaderName; 2] = [header::STRICT_TRANSPORT_SECURITY, header::ALT_SVC];

/// The way to one upstream.
pub struct Proxy {
    client: Client<Connector, Upload>,
    scheme: Scheme,
    authority: Authority,
    places: Arc<Semaphore>,
    silence_max: Duration,
}

impl Proxy {
    /// None when no upstream is set.
    ///
    /// # Errors
    /// When its URL is no base of other URLs, or this machine trusts nobody.
    pub fn new(settings: &config::Proxy) -> Result<Option<Self>, config::Error> {
        let refuse =
            |problem: String| config::Error::Invalid { name: "proxy.upstream".into(), problem };
        if settings.upstream.is_empty() {
            return Ok(None);
        }
        let (scheme, authority) = settings.upstream_parts().map_err(|text| refuse(text.into()))?;
        let tls = if scheme == Scheme::HTTPS {
            Some(TlsConnector::from(Arc::new(tls::web_client().map_err(refuse)?)))
        } else {
            None
        };
        let connector =
            Connector { tls, timeout: Duration::from_millis(settings.connect_timeout_ms) };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Ok(Some(Self {
            client,
            scheme,
            authority,
            places: Arc::new(Semaphore::new(settings.requests_max)),
            silence_max: Duration::from_millis(settings.silence_max_ms),
        }))
    }

    /// What the upstream answers.
    pub(super) async fn pass(&self, request: Request) -> Response {
        // Other upgrades are offers that need not be taken.
        let upgrades = request.headers().get_all(header::UPGRADE);
        if upgrades.iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket")) {
            return error(StatusCode::NOT_IMPLEMENTED, "WebSockets are not passed through");
        }
        if request.headers().contains_key(MARK) {
            return error(StatusCode::LOOP_DETECTED, "The upstream is this server");
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return error(StatusCode::SERVICE_UNAVAILABLE, "Too many requests are passed through");
        };
        let (mut parts, body) = request.into_parts();
        let public = Public::of(&parts.headers);
        let path = parts.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build();
        let Ok(uri) = uri else { return StatusCode::BAD_REQUEST.into_response() };
        remove_hop_by_hop(&mut parts.headers);
        // The client below writes the upstream's name there; a body is never held back for an
        // answer that our own server has given already.
        parts.headers.remove(header::HOST);
        parts.headers.remove(header::EXPECT);
        parts.headers.insert(MARK, HeaderValue::from_static("1"));
        if let Some(ConnectInfo(peer)) = parts.extensions.get::<ConnectInfo<SocketAddr>>() {
            append_peer(&mut parts.headers, *peer);
        }
        let activity = Arc::new(Activity::new(self.silence_max));
        let mut onward = Request::new(Upload { body, activity: Arc::clone(&activity) });
        *onward.method_mut() = parts.method;
        *onward.uri_mut() = uri;
        *onward.headers_mut() = parts.headers;
        let response = match activity.watch(self.client.request(onward)).await {
            Some(Ok(response)) => response,
            Some(Err(failed)) => {
                debug!(error = telemetry::chain(&failed), "the upstream gave no answer");
                return error(StatusCode::BAD_GATEWAY, "The upstream cannot be reached");
            }
            None => {
                return error(StatusCode::GATEWAY_TIMEOUT, "The upstream did not answer in time");
            }
        };
        let (mut parts, body) = response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        for name in OF_THEIR_HOST {
            parts.headers.remove(name);
        }
        self.rewrite_location(&mut parts.headers, &public);
        self.rewrite_cookies(&mut parts.headers);
        let alarm = Box::pin(sleep_until(activity.due()));
        let body = Download { body, activity, alarm, _place: place };
        Response::from_parts(parts, Body::new(body))
    }

    /// A place on the upstream is the same place here; other hosts stay what they are.
    fn rewrite_location(&self, headers: &mut HeaderMap, public: &Public) {
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            let Some(place) = headers.get(&name).and_then(|value| value.to_str().ok()) else {
                continue;
            };
            let Some(path) = self.path_of(place) else { continue };
            if let Ok(value) = HeaderValue::from_str(&public.url(path)) {
                headers.insert(name, value);
            }
        }
    }

    /// Path and query of a URL on the upstream; `None` for every other.
    fn path_of<'a>(&self, url: &'a str) -> Option<&'a str> {
        let (scheme, rest) = url.split_once("://")?;
        let port = match scheme.to_ascii_lowercase().as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority: Authority = authority.parse().ok()?;
        let own = self.authority.port_u16().unwrap_or(default_port(&self.scheme));
        let same_host = authority.host().eq_ignore_ascii_case(self.authority.host());
        // A redirect from http to https of the same host is one to us as well.
        let known_ports = [own, 80, 443];
        (same_host && known_ports.contains(&authority.port_u16().unwrap_or(port))).then_some(path)
    }

    /// A cookie for the upstream's host or its parents becomes one for ours alone.
    fn rewrite_cookies(&self, headers: &mut HeaderMap) {
        let cookies: Vec<HeaderValue> =
            headers.get_all(header::SET_COOKIE).iter().cloned().collect();
        if cookies.is_empty() {
            return;
        }
        headers.remove(header::SET_COOKIE);
        for cookie in cookies {
            let own = cookie.to_str().ok().and_then(|text| {
                HeaderValue::from_str(&without_domain(text, self.authority.host())).ok()
            });
            headers.append(header::SET_COOKIE, own.unwrap_or(cookie));
        }
    }
}

/// Answers what none of our own routes is.
pub(super) async fn pass<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    request: Request,
) -> Response {
    let path = request.uri().path();
    if !is_passed(path) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let Some(proxy) = &service.proxy else {
        // Not without a body: supabase-js takes that for success.
        return error(StatusCode::NOT_FOUND, "This service is not served here");
    };
    if climbs(path) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    proxy.pass(request).await
}

fn is_passed(path: &str) -> bool {
    PATHS.iter().any(|prefix| {
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Whether a server that tidies paths would read this one as a path elsewhere.
pub(super) fn climbs(path: &str) -> bool {
    let decoded = percent_encoding::percent_decode_str(path).collect::<Vec<u8>>();
    decoded.split(|&byte| byte == b'/' || byte == b'\\').any(|part| part == b"..")
}

fn default_port(scheme: &Scheme) -> u16 {
    if *scheme == Scheme::HTTPS { 443 } else { 80 }
}

/// What the client calls us.
struct Public {
    https: bool,
    host: Option<String>,
}

impl Public {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let host = text(header::HOST).filter(|host| host.parse::<Authority>().is_ok());
        Self {
            https: text(FORWARDED_PROTO).is_some_and(|proto| proto.eq_ignore_ascii_case("https")),
            host: host.map(str::to_owned),
        }
    }

    /// The URL of a path here; without a name for us, the path alone means the same.
    fn url(&self, path: &str) -> String {
        let slash = if path.starts_with('/') { "" } else { "/" };
        match &self.host {
            Some(host) => {
                let scheme = if self.https { "https" } else { "http" };
                format!("{scheme}://{host}{slash}{path}")
            }
            None => format!("{slash}{path}"),
        }
    }
}

/// Removes what belongs to the connection and not to the message.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.into_iter().chain(HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Says on whose behalf this is asked.
fn append_peer(headers: &mut HeaderMap, peer: SocketAddr) {
    let before: Vec<&str> =
        headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let mut chain = before.join(", ");
    if !chain.is_empty() {
        chain.push_str(", ");
    }
    chain.push_str(&peer.ip().to_canonical().to_string());
    if let Ok(value) = HeaderValue::from_str(&chain) {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// A `Set-Cookie` without its `Domain`, if that is `host` or a parent of it.
fn without_domain(cookie: &str, host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let is_theirs = |attribute: &str| {
        let Some((name, value)) = attribute.split_once('=') else { return false };
        let domain = value.trim().trim_start_matches('.').to_ascii_lowercase();
        name.trim().eq_ignore_ascii_case("domain")
            && host.strip_suffix(&domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let mut parts = cookie.split(';');
    let pair = parts.next().unwrap_or_default();
    let kept = parts.filter(|attribute| !is_theirs(attribute));
    std::iter::once(pair).chain(kept).collect::<Vec<_>>().join(";")
}

/// When a byte last moved in either direction.
struct Activity {
    start: Instant,
    last_ms: AtomicU64,
    silence_max: Duration,
}

impl Activity {
    fn new(silence_max: Duration) -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(0), silence_max }
    }

    fn note(&self) {
        let since = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(since, Ordering::Relaxed);
    }

    /// When the silence becomes too long.
    fn due(&self) -> Instant {
        self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + self.silence_max
    }

    /// What `work` gives; `None` when nothing moved for too long.
    async fn watch<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        loop {
            let due = self.due();
            match tokio::time::timeout_at(due, poll_fn(|cx| work.as_mut().poll(cx))).await {
                Ok(done) => return Some(done),
                Err(_) if self.due() > due => {}
                Err(_) => return None,
            }
        }
    }
}

/// The client's body on its way up.
struct Upload {
    body: Body,
    activity: Arc<Activity>,
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            self.activity.note();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The upstream's body on its way down; it ends in an error when nothing moves any more.
struct Download {
    body: Incoming,
    activity: Arc<Activity>,
    alarm: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl hyper::body::Body for Download {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.activity.note();
            return Poll::Ready(frame.map(|frame| frame.map_err(axum::Error::new)));
        }
        while this.alarm.as_mut().poll(cx).is_ready() {
            let due = this.activity.due();
            if due <= Instant::now() {
                let silence = io::Error::from(io::ErrorKind::TimedOut);
                return Poll::Ready(Some(Err(axum::Error::new(silence))));
            }
            this.alarm.as_mut().reset(due);
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Opens connections to the upstream.
#[derive(Clone)]
struct Connector {
    tls: Option<TlsConnector>,
    timeout: Duration,
}

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Link>> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let scheme = uri.scheme().unwrap_or(&Scheme::HTTP);
        let port = uri.port_u16().unwrap_or(default_port(scheme));
        let opening = async {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let Some(tls) = &self.tls else { return Ok(Link(Box::new(stream))) };
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            Ok(Link(Box::new(tls.connect(name, stream).await?)))
        };
        timeout(self.timeout, opening).await?.map(TokioIo::new)
    }
}

impl Tower<Uri> for Connector {
    type Response = TokioIo<Link>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Link>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One connection, in TLS or not.
struct Link(Box<dyn Duplex>);

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(upstream: &str) -> Proxy {
        let settings = config::Proxy { upstream: upstream.into(), ..config::Proxy::default() };
        Proxy::new(&settings).unwrap().unwrap()
    }

    #[test]
    fn only_the_services_of_a_project_are_passed_through() {
        for path in ["/auth/v1", "/auth/v1/token", "/rest/v1/", "/storage/v1/object/a"] {
            assert!(is_passed(path), "{path}");
        }
        for path in ["/", "/auth/v10", "/auth/v2/x", "/pg/", "/realtime/v1/api/ping", "//auth/v1"] {
            assert!(!is_passed(path), "{path}");
        }
    }

    #[test]
    fn a_path_that_climbs_is_seen_in_every_spelling() {
        for path in ["/rest/v1/../x", "/rest/v1/%2e%2E/x", "/rest/v1/..%2fx", "/rest/v1/..\\x"] {
            assert!(climbs(path), "{path}");
        }
        assert!(!climbs("/storage/v1/object/a..b/...c"));
    }

    #[test]
    fn places_on_the_upstream_become_places_here() {
        let headers = |proto: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("rt.example:8443"));
            if let Some(proto) = proto {
                headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
            }
            headers
        };
        let proxy = proxy("http://ref.supabase.co");
        let rewritten = |location: &'static str, proto| {
            let mut answer = HeaderMap::new();
            answer.insert(header::LOCATION, HeaderValue::from_static(location));
            proxy.rewrite_location(&mut answer, &Public::of(&headers(proto)));
            answer[header::LOCATION].to_str().unwrap().to_owned()
        };
        let here = "http://rt.example:8443/storage/v1/u?x=1";
        assert_eq!(rewritten("http://ref.supabase.co/storage/v1/u?x=1", None), here);
        assert_eq!(rewritten("HTTPS://REF.supabase.co:443/storage/v1/u?x=1", None), here);
        assert_eq!(rewritten("http://ref.supabase.co", Some("https")), "https://rt.example:8443/");
        for other in [
            "https://accounts.example/o?redirect_uri=http://ref.supabase.co/auth/v1/callback",
            "/storage/v1/u",
            "http://ref.supabase.co.evil.example/",
            "http://ref.supabase.co:9999/",
            "myapp://callback",
        ] {
            assert_eq!(rewritten(other, None), other);
        }
    }

    #[test]
    fn cookies_of_the_upstream_become_ours() {
        let host = "ref.supabase.co";
        let cases = [
            ("a=b; Domain=ref.supabase.co; Path=/", "a=b; Path=/"),
            ("a=b; domain=.supabase.co;HttpOnly", "a=b;HttpOnly"),
            ("a=b; Domain=other.example", "a=b; Domain=other.example"),
            ("a=b; Domain=base.co", "a=b; Domain=base.co"),
            ("domain=x; Secure", "domain=x; Secure"),
        ];
        for (given, expected) in cases {
            assert_eq!(without_domain(given, host), expected);
        }
    }

    #[test]
    fn what_belongs_to_a_connection_ends_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer x"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["authorization"]);
    }
}
