//! A key set behind a URL: one GET, bounded in time, bytes and redirects.
//!
//! In:     the URL of the settings, what the last answer said.
//! Out:    the body of a key set, not yet looked at, and how long it is fresh; or why there is none.
//! Never:  a URL or a host that a token names (`jku`, `x5u`); another host than that of the
//!         settings; plain text after https; a retry (`jwt` decides when).
//! Source: RFC 9110, RFC 9111 section 5.2.2.1.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config;

/// Bytes of a key set. A real one has a few keys of a few hundred bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Redirects that are followed; a key set that moved has one, `http` to `https` another.
const REDIRECTS_MAX: usize = 3;

/// Bytes of the head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes of an `ETag` that is kept and sent back.
const ETAG_BYTES_MAX: usize = 1024;

/// Why there is no answer. The next try may have one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It took longer than the settings allow.
    #[error("no answer in {} ms", .0.as_millis())]
    Timeout(Duration),
    /// There is no connection, or the host could not prove its name.
    #[error("cannot connect to {host}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// The exchange broke off or was not HTTP.
    #[error("the exchange failed")]
    Exchange(#[from] hyper::Error),
    /// An answer that is no key set.
    #[error("{0}")]
    Refused(String),
}

/// What the source said.
#[derive(Debug)]
pub struct Answer {
    /// The body; none when the one with the given `ETag` is still the one.
    pub body: Option<Vec<u8>>,
    /// The `ETag` to give the next time.
    pub etag: Option<HeaderValue>,
    /// How much longer it is fresh by its own account.
    pub fresh_for: Option<Duration>,
}

/// Where a key set is fetched from.
pub struct Source {
    url: Address,
    tls: TlsConnector,
    timeout: Duration,
    plain_http: bool,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("url", &self.to_string()).finish_non_exhaustive()
    }
}

/// The URL without its query, which may hold a key.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { secure, authority, target, .. } = &self.url;
        let scheme = if *secure { "https" } else { "http" };
        let path = target.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{authority}{path}")
    }
}

/// An absolute URL that may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    secure: bool,
    /// As the `Host` header has it.
    authority: String,
    /// Without brackets, in lower case.
    host: String,
    port: u16,
    /// Path and query.
    target: String,
}

impl Address {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let uri: Uri = text.parse().map_err(|_| "is not a URL")?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("must begin with https://"),
        };
        let authority = uri.authority().ok_or("names no host")?;
        if authority.as_str().contains('@') {
            return Err("holds a user or a password, which is not supported");
        }
        let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
        if host.is_empty() {
            return Err("names no host");
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str().ends_with(':') => return Err("is not a URL"),
            None if secure => 443,
            None => 80,
        };
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Self { secure, authority: authority.as_str().into(), host, port, target: target.into() })
    }

    /// Whether nobody is between this process and the host.
    fn is_loopback(&self) -> bool {
        self.host.parse::<IpAddr>().map_or(self.host == "localhost", |ip| ip.is_loopback())
    }

    /// Where `location` leads from here.
    fn redirect(&self, location: &str) -> Result<Self, &'static str> {
        if location.starts_with('/') && !location.starts_with("//") {
            let uri: Uri = location.parse().map_err(|_| "no URL")?;
            let target = uri.path_and_query().ok_or("no URL")?.as_str().into();
            return Ok(Self { target, ..self.clone() });
        }
        let next = Self::parse(location).map_err(|_| "no absolute URL")?;
        if next.host != self.host {
            return Err("another host; give that URL in the settings if it is the right one");
        }
        if self.secure && !next.secure {
            return Err("plain http");
        }
        Ok(next)
    }
}

impl Source {
    /// The source at `url`.
    ///
    /// # Errors
    /// When it is no URL that may be asked, or there is no authority to trust.
    pub fn new(url: &str, settings: &config::Jwt) -> Result<Self, config::Error> {
        let invalid = |name: &str, problem: String| config::Error::Invalid {
            name: format!("jwt.{name}"),
            problem,
        };
        let url = Address::parse(url).map_err(|problem| invalid("jwks", problem.into()))?;
        if !url.secure && !settings.jwks_plain_http && !url.is_loopback() {
            let problem = "is http:// to another machine, where whoever is between could put a key \
                           of its own into the set; use https://, or set jwt.jwks_plain_http \
                           (WALCAST_JWT_JWKS_PLAIN_HTTP=true) when that network is yours";
            return Err(invalid("jwks", problem.into()));
        }
        let roots = if url.secure {
            roots(&settings.jwks_root_cert).map_err(|problem| invalid("jwks_root_cert", problem))?
        } else {
            RootCertStore::empty()
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring offers the default protocol versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            url,
            tls: TlsConnector::from(Arc::new(tls)),
            timeout: Duration::from_millis(settings.jwks_timeout_ms),
            plain_http: settings.jwks_plain_http,
        })
    }

    /// Asks once; `etag` is that of the set one has.
    ///
    /// # Errors
    /// Why there is no answer; what one has is as good as before.
    pub async fn fetch(&self, etag: Option<&HeaderValue>) -> Result<Answer, Error> {
        let asked = timeout(self.timeout, self.follow(etag)).await;
        asked.unwrap_or(Err(Error::Timeout(self.timeout)))
    }

    async fn follow(&self, etag: Option<&HeaderValue>) -> Result<Answer, Error> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            match self.ask(&url, etag).await? {
                Reply::Answer(answer) => return Ok(answer),
                Reply::Moved(location) => {
                    let refused = |why| Error::Refused(format!("it redirects to {why}"));
                    url = url.redirect(&location).map_err(refused)?;
                    // From loopback to another port of it is no way around the settings either.
                    if !url.secure && !self.plain_http && !url.is_loopback() {
                        return Err(refused("plain http"));
                    }
                }
            }
        }
        Err(Error::Refused(format!("it redirects more than {REDIRECTS_MAX} times")))
    }

    async fn ask(&self, url: &Address, etag: Option<&HeaderValue>) -> Result<Reply, Error> {
        let mut request = Request::get(&url.target)
            .header(header::HOST, &url.authority)
            .header(header::ACCEPT, "application/json, application/jwk-set+json")
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::USER_AGENT, concat!("walcast/", env!("CARGO_PKG_VERSION")))
            // A cache on the way would keep a key alive that was taken out.
            .header(header::CACHE_CONTROL, "no-cache")
            .header(header::CONNECTION, "close");
        if let Some(etag) = etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let request = request
            .body(String::new())
            .map_err(|error| Error::Refused(format!("its URL cannot be asked: {error}")))?;
        let unreachable =
            |source| Error::Unreachable { host: format!("{}:{}", url.host, url.port), source };
        let tcp = TcpStream::connect((&*url.host, url.port)).await.map_err(unreachable)?;
        if !url.secure {
            return exchange(tcp, request, etag.is_some()).await;
        }
        let name = ServerName::try_from(url.host.clone())
            .map_err(|error| unreachable(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = self.tls.connect(name, tcp).await.map_err(unreachable)?;
        exchange(stream, request, etag.is_some()).await
    }
}

/// What one request led to.
enum Reply {
    Answer(Answer),
    /// Ask there.
    Moved(String),
}

/// One request and its answer on a connection that ends with them.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    request: Request<String>,
    conditional: bool,
) -> Result<Reply, Error> {
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
    let mut connection = pin!(connection);
    let mut answer =
        pin!(async move { read(sender.send_request(request).await?, conditional).await });
    tokio::select! {
        answer = &mut answer => answer,
        // All has come; or the end is an error of the answer, too.
        _ = &mut connection => answer.await,
    }
}

async fn read(response: Response<Incoming>, conditional: bool) -> Result<Reply, Error> {
    let (head, mut body) = response.into_parts();
    let etag = head.headers.get(header::ETAG).filter(|etag| etag.len() <= ETAG_BYTES_MAX);
    let answer = |body| {
        let fresh_for = fresh_for(&head.headers);
        Ok(Reply::Answer(Answer { body, etag: etag.cloned(), fresh_for }))
    };
    match head.status {
        StatusCode::OK => {}
        StatusCode::NOT_MODIFIED if conditional => return answer(None),
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => {
            let location = head.headers.get(header::LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            let location = location.ok_or_else(|| Error::Refused("it redirects nowhere".into()))?;
            return Ok(Reply::Moved(location.into()));
        }
        status => {
            return Err(Error::Refused(format!("it answers with status {}", status.as_u16())));
        }
    }
    let encoding = head.headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        return Err(Error::Refused("its answer is compressed, which was not asked for".into()));
    }
    let too_large = || Error::Refused(format!("it has more than {BODY_BYTES_MAX} bytes"));
    let mut bytes = Vec::new();
    while let Some(frame) =
        poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context)).await
    {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len() + data.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    answer(Some(bytes))
}

/// `max-age` less `age`. Other directives are for caches that many share.
fn fresh_for(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get_all(header::CACHE_CONTROL).iter().find_map(|value| {
        value.to_str().ok()?.split(',').find_map(|directive| {
            let (name, seconds) = directive.trim().split_once('=')?;
            let seconds = seconds.trim_matches('"').parse::<u64>().ok()?;
            name.eq_ignore_ascii_case("max-age").then_some(seconds)
        })
    })?;
    let age = headers.get(header::AGE).and_then(|age| age.to_str().ok()?.trim().parse().ok());
    Some(Duration::from_secs(seconds.saturating_sub(age.unwrap_or(0))))
}

/// The authorities in this PEM file, or those of the machine.
fn roots(path: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if path.is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err("is not set, and this machine has no root certificates: name a file".into());
        }
        return Ok(roots);
    }
    let certificates = CertificateDer::pem_file_iter(Path::new(path))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("cannot read {path}: {error}"))?;
    if roots.add_parsable_certificates(certificates).0 == 0 {
        return Err(format!("{path} has no certificate"));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> config::Jwt {
        config::Jwt { jwks_root_cert: "/nonexistent".into(), ..config::Jwt::default() }
    }

    fn refused(url: &str) -> String {
        Source::new(url, &settings()).map(|_| ()).expect_err(url).to_string()
    }

    #[test]
    fn plain_text_stays_on_this_machine_unless_the_settings_allow_it() {
        let url = |url| Source::new(url, &settings()).map(|source| source.to_string());
        for here in ["http://127.0.0.1:1/a", "http://[::1]/", "http://LOCALHOST:80/x/y"] {
            assert!(url(here).is_ok(), "{here}");
        }
        for elsewhere in ["http://auth:9999/jwks", "http://10.0.0.1/", "http://localhost.evil/"] {
            assert!(refused(elsewhere).starts_with("setting jwt.jwks: is http://"), "{elsewhere}");
            let allowed = config::Jwt { jwks_plain_http: true, ..settings() };
            assert!(Source::new(elsewhere, &allowed).is_ok(), "{elsewhere}");
        }
        let secure = refused("https://example.org/");
        assert!(secure.starts_with("setting jwt.jwks_root_cert: cannot read"), "{secure}");
    }

    #[test]
    fn what_is_no_url_is_refused_and_no_query_is_shown() {
        for url in ["ftp://a/b", "http://", "https://user:pw@a/", "://", "http://a b/", "HTTP//x"] {
            assert!(refused(url).starts_with("setting jwt.jwks: "), "{url}");
        }
        let source = Source::new("http://127.0.0.1:9/a/b?apikey=hunter2", &settings()).unwrap();
        assert_eq!(source.to_string(), "http://127.0.0.1:9/a/b");
        assert!(!format!("{source:?}").contains("hunter2"));
    }

    #[test]
    fn a_redirect_stays_on_its_host_and_encrypted() {
        let check = |from: &str, location: &str, expected: Result<&str, &str>| {
            let next = Address::parse(from).unwrap().redirect(location);
            let expected = expected.map(|url| Address::parse(url).unwrap());
            match (next, expected) {
                (Ok(next), Ok(expected)) => assert_eq!(next, expected, "{from} {location}"),
                (Err(problem), Err(begin)) => assert!(problem.starts_with(begin), "{problem}"),
                (next, _) => panic!("{from} {location}: {next:?}"),
            }
        };
        check("https://a/x", "/y?z", Ok("https://a/y?z"));
        check("http://a:81/x", "https://a/x", Ok("https://a/x"));
        check("https://a/x", "https://A:444/y", Ok("https://A:444/y"));
        check("https://a/x", "http://a/x", Err("plain http"));
        check("https://a/x", "https://b/x", Err("another host"));
        check("https://a/x", "http://169.254.169.254/latest", Err("another host"));
        check("https://a/x", "//b/x", Err("no absolute URL"));
        check("https://a/x", "y", Err("no absolute URL"));
        check("https://a/x", "file:///etc/passwd", Err("no absolute URL"));
        check("https://a/x", "/y z", Err("no URL"));
    }

    #[test]
    fn max_age_is_read_less_the_age() {
        let fresh = |control: &'static str, age: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
            age.map(|age| headers.insert(header::AGE, HeaderValue::from_static(age)));
            fresh_for(&headers).map(|fresh| fresh.as_secs())
        };
        assert_eq!(fresh("public, max-age=600", None), Some(600));
        assert_eq!(fresh("Max-Age=\"60\", public", Some("20")), Some(40));
        assert_eq!(fresh("max-age=60", Some("100")), Some(0));
        assert_eq!(fresh("max-age=18446744073709551616", None), None);
        assert_eq!(fresh("max-age=-1", None), None);
        assert_eq!(fresh("no-store, s-maxage=5", None), None);
        assert_eq!(fresh_for(&HeaderMap::new()), None);
    }
}
