//! Key sets by URL, against a source that each test scripts; claim validators on a whole service.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use walcast::auth::jwt::{Refreshed, TokenError, Verifier};
use walcast::config::{self, Secret};

use crate::service::{
    self, DEADLINE, SECRET, Service, Socket, VERSIONS, Version, anon, token, with_expiry,
};

/// What the source does with a request.
#[derive(Debug, Clone)]
enum Act {
    /// A head without its end, and a body.
    Answer(String, Vec<u8>),
    /// Nothing, for ever.
    Hang,
    /// Closes the connection.
    Close,
    /// A head, then bytes without an end.
    Endless,
    /// A set under an `ETag`; whoever has it is told so.
    Tagged(&'static str, Value),
}

fn ok(body: impl Into<Vec<u8>>) -> Act {
    Act::Answer("HTTP/1.1 200 OK".into(), body.into())
}

fn set(kids: &[&str]) -> Act {
    ok(json!({ "keys": public(kids) }).to_string())
}

/// An HTTP server that answers everything in one way, until it is told another.
struct Source {
    address: SocketAddr,
    act: Arc<Mutex<Act>>,
    /// Heads of the requests, in the order they came.
    asked: watch::Receiver<Vec<String>>,
    /// Closed: requests are counted, and answered once it is open.
    gate: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Source {
    async fn start(act: Act) -> Self {
        Self::with(act, None).await
    }

    async fn with(act: Act, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let act = Arc::new(Mutex::new(act));
        let (count, asked) = watch::channel(Vec::new());
        let (gate, open) = watch::channel(true);
        let script = Arc::clone(&act);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answering = Answering {
                    act: Arc::clone(&script),
                    count: count.clone(),
                    open: open.clone(),
                };
                let tls = tls.clone();
                connections.spawn(async move {
                    match tls {
                        None => answering.answer(stream).await,
                        Some(tls) => {
                            // A client that does not trust us goes away.
                            if let Ok(stream) = tls.accept(stream).await {
                                answering.answer(stream).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, act, asked, gate, task }
    }

    fn url(&self) -> String {
        format!("http://{}/auth/v1/jwks.json?apikey=hunter2", self.address)
    }

    fn now(&self, act: Act) {
        *self.act.lock().unwrap() = act;
    }

    fn asked(&self) -> usize {
        self.asked.borrow().len()
    }

    /// Until so many requests came, this one's head included.
    async fn until_asked(&self, times: usize) -> String {
        let mut asked = self.asked.clone();
        let enough = asked.wait_for(|heads| heads.len() >= times);
        timeout(DEADLINE, enough).await.expect("asked in time").unwrap()[times - 1].clone()
    }

    fn settings(&self) -> config::Jwt {
        config::Jwt { jwks: self.url(), ..config::Jwt::default() }
    }

    fn verifier(&self) -> Arc<Verifier> {
        verifier(&self.settings())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Answering {
    act: Arc<Mutex<Act>>,
    count: watch::Sender<Vec<String>>,
    open: watch::Receiver<bool>,
}

impl Answering {
    async fn answer(mut self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        self.count.send_modify(|heads| heads.push(head.clone()));
        if self.open.wait_for(|open| *open).await.is_err() {
            return;
        }
        let act = self.act.lock().unwrap().clone();
        let whole = |head: &str, body: &[u8]| {
            [format!("{head}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
        };
        let answer = match act {
            Act::Answer(head, body) => whole(&head, &body),
            Act::Tagged(tag, _) if head.contains(&format!("if-none-match: {tag}\r\n")) => {
                b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()
            }
            Act::Tagged(tag, set) => {
                whole(&format!("HTTP/1.1 200 OK\r\netag: {tag}"), set.to_string().as_bytes())
            }
            Act::Close => return,
            Act::Hang => std::future::pending().await,
            Act::Endless => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                while stream.write_all(&[b' '; 16 * 1024]).await.is_ok() {}
                return;
            }
        };
        // Who hung up needs no answer.
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
    }
}

/// The public halves of keys in `tests/data/jwt`.
fn public(kids: &[&str]) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../data/jwt/jwks.json")).unwrap();
    let all = all["keys"].as_array().unwrap();
    let of = |kid: &&str| all.iter().find(|key| key["kid"] == *kid).unwrap().clone();
    kids.iter().map(of).collect()
}

fn private(kid: &str) -> (Algorithm, EncodingKey) {
    match kid {
        "rsa" => {
            let der = include_bytes!("../data/jwt/rsa.der");
            (Algorithm::RS256, EncodingKey::from_rsa_der(der))
        }
        "p256" => {
            let der = include_bytes!("../data/jwt/p256.der");
            (Algorithm::ES256, EncodingKey::from_ec_der(der))
        }
        "p384" => {
            let der = include_bytes!("../data/jwt/p384.der");
            (Algorithm::ES384, EncodingKey::from_ec_der(der))
        }
        "ed25519" => {
            let der = include_bytes!("../data/jwt/ed25519.der");
            (Algorithm::EdDSA, EncodingKey::from_ed_der(der))
        }
        other => panic!("no key {other}"),
    }
}

/// A token of one hour, signed by that key.
fn signed(kid: &str) -> String {
    let (algorithm, key) = private(kid);
    let header = Header { kid: Some(kid.into()), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, &with_expiry(&json!({ "role": "anon" })), &key).unwrap()
}

/// A token of a key that nobody has.
fn forged(kid: &str) -> String {
    let header = json!({ "alg": "ES256", "kid": kid }).to_string();
    let claims = with_expiry(&json!({ "role": "anon" })).to_string();
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode([7; 64]))
}

fn verifier(settings: &config::Jwt) -> Arc<Verifier> {
    let roles = ["anon", "authenticated"].map(String::from);
    Arc::new(Verifier::new(settings, &roles).unwrap())
}

fn unknown(kid: &str) -> TokenError {
    TokenError::Signer { kid: Some(kid.into()) }
}

fn unknown_text(kid: &str) -> String {
    format!(
        "Failed to generate JWT signer for key ID (kid) \"{kid}\", check your JWT secret or JWKS \
         configuration"
    )
}

#[track_caller]
fn accepts(verifier: &Verifier, kids: &[&str]) {
    for kid in ["rsa", "p256", "p384", "ed25519"] {
        let answer = verifier.verify(&signed(kid), SystemTime::now()).map(|_| ());
        let expected = if kids.contains(&kid) { Ok(()) } else { Err(unknown(kid)) };
        assert_eq!(answer, expected, "{kid}");
    }
}

/// A verifier that is kept fresh for the rest of the test, and whose first set is there.
struct KeptFresh {
    verifier: Arc<Verifier>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    removals: watch::Receiver<u32>,
}

impl KeptFresh {
    async fn start(settings: &config::Jwt, kid: &str) -> Self {
        let verifier = verifier(settings);
        let stop = CancellationToken::new();
        let (removed, removals) = watch::channel(0);
        let (kept, token) = (Arc::clone(&verifier), stop.clone());
        let task = tokio::spawn(async move {
            kept.keep_fresh(token, || removed.send_modify(|count| *count += 1)).await;
        });
        let first = async {
            while verifier.verify_fresh(&signed(kid), SystemTime::now()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, first).await.expect("a first set in time");
        Self { verifier, stop, task, removals }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.task).await.expect("stops in time").unwrap();
    }
}

#[tokio::test]
async fn each_fetch_replaces_the_whole_set() {
    let source = Source::start(set(&["rsa", "p256"])).await;
    let verifier = source.verifier();
    accepts(&verifier, &[]);
    let fetched = verifier.refresh().await.unwrap();
    assert_eq!(fetched, Refreshed { keys: 2, added: 2, removed: 0, left_out: 0 });
    accepts(&verifier, &["rsa", "p256"]);
    assert_eq!(verifier.epoch(), 0);
    source.now(set(&["p256", "ed25519"]));
    let fetched = verifier.refresh().await.unwrap();
    assert_eq!(fetched, Refreshed { keys: 2, added: 1, removed: 1, left_out: 0 });
    accepts(&verifier, &["p256", "ed25519"]);
    assert_eq!(verifier.epoch(), 1, "a key was taken away");
    let fetched = verifier.refresh().await.unwrap();
    assert_eq!(fetched, Refreshed { keys: 2, ..Refreshed::default() });
    assert_eq!(verifier.epoch(), 1, "nothing changed");
    // The same id for another key: the old key is gone.
    let mut other = public(&["p256"]);
    other[0]["kid"] = "ed25519".into();
    source.now(ok(json!({ "keys": other }).to_string()));
    assert_eq!(verifier.refresh().await.unwrap().removed, 2);
    accepts(&verifier, &[]);
}

#[tokio::test]
async fn f80_an_answer_of_no_use_never_replaces_a_good_set() {
    let source = Source::start(set(&["rsa"])).await;
    let mut settings = source.settings();
    settings.jwks_timeout_ms = 300;
    let verifier = verifier(&settings);
    verifier.refresh().await.unwrap();
    // Good but for one thing, so that it is this thing that is found.
    let good = json!({ "keys": public(&["p256"]) }).to_string();
    let huge = json!({ "keys": public(&["p256"]), "x": "x".repeat(1024 * 1024) }).to_string();
    let many: Vec<Value> = (0..257).flat_map(|_| public(&["p256"])).collect();
    let mut private_only = public(&["p256"]);
    private_only[0]["use"] = "enc".into();
    let status = |status: &str| Act::Answer(format!("HTTP/1.1 {status}"), good.clone().into());
    let compressed = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip";
    // Promises less than comes.
    let two_lengths = Act::Answer("HTTP/1.1 200 OK\r\ncontent-length: 5".into(), b"{}".into());
    for (what, act) in [
        ("closed", Act::Close),
        ("hangs", Act::Hang),
        ("endless", Act::Endless),
        ("500", status("500 Internal Server Error")),
        ("404", status("404 Not Found")),
        ("204", status("204 No Content")),
        ("304 unasked", status("304 Not Modified")),
        ("not HTTP", Act::Answer("SSH-2.0-x".into(), Vec::new())),
        (
            "long head",
            Act::Answer(format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(1 << 20)), vec![]),
        ),
        ("two lengths", two_lengths),
        ("compressed", Act::Answer(compressed.into(), good.clone().into())),
        ("huge", ok(huge)),
        ("empty", ok("")),
        ("no JSON", ok("<html>")),
        ("no UTF-8", ok([0xff, 0xfe])),
        ("an end too early", ok(good.trim_end_matches('}'))),
        ("a list", ok("[]")),
        ("no keys", ok("{}")),
        ("keys of another type", ok(r#"{"keys":{}}"#)),
        ("no key", set(&[])),
        ("broken keys", ok(r#"{"keys":[{},7,{"kty":"RSA","kid":"a","n":"!"}]}"#)),
        ("too many keys", ok(json!({ "keys": many }).to_string())),
        ("keys for something else", ok(json!({ "keys": private_only }).to_string())),
        ("a secret", set(&["oct"])),
    ] {
        source.now(act);
        let error = verifier.refresh().await.expect_err(what);
        accepts(&verifier, &["rsa"]);
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    drop(source);
    verifier.refresh().await.expect_err("nobody there");
    accepts(&verifier, &["rsa"]);
    assert_eq!(verifier.epoch(), 0);
}

#[tokio::test]
async fn f80_a_set_is_not_used_beyond_its_age() {
    let source = Source::start(set(&["rsa"])).await;
    let mut settings = source.settings();
    settings.jwks_age_max_ms = 0;
    let verifier = verifier(&settings);
    verifier.refresh().await.unwrap();
    accepts(&verifier, &["rsa"]);
    source.now(Act::Close);
    verifier.refresh().await.unwrap_err();
    accepts(&verifier, &[]);
    assert_eq!(verifier.epoch(), 1, "those whom it let in have to go");
    source.now(set(&["rsa"]));
    verifier.refresh().await.unwrap();
    accepts(&verifier, &["rsa"]);
}

#[tokio::test]
async fn one_broken_key_does_not_take_the_others_with_it() {
    let mut keys = public(&["rsa", "p256", "oct"]);
    keys[0]["n"] = "AQAB".into();
    let source = Source::start(ok(json!({ "keys": keys }).to_string())).await;
    let mut settings = source.settings();
    settings.secret = Secret::new(SECRET);
    let verifier = verifier(&settings);
    let fetched = verifier.refresh().await.unwrap();
    assert_eq!(fetched, Refreshed { keys: 1, added: 1, removed: 0, left_out: 2 });
    accepts(&verifier, &["p256"]);
    // A secret that can be fetched verifies nothing; nor does a public key used as one.
    for key in
        [&b"the-secret-of-the-key-set-0123456789"[..], keys[1]["x"].as_str().unwrap().as_bytes()]
    {
        for kid in ["oct", "p256"] {
            let header = Header { kid: Some(kid.into()), ..Header::default() };
            let claims = with_expiry(&json!({ "role": "anon" }));
            let token =
                jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(key)).unwrap();
            let answer = verifier.verify_fresh(&token, SystemTime::now()).await;
            assert_eq!(answer, Err(TokenError::Signature), "{kid}");
        }
    }
}

#[tokio::test]
async fn a_set_that_did_not_change_is_not_sent_again() {
    let keys = json!({ "keys": public(&["rsa"]) });
    let source = Source::start(Act::Tagged("\"one\"", keys)).await;
    let verifier = source.verifier();
    for times in 1..=3 {
        let fetched = verifier.refresh().await.unwrap();
        assert_eq!(fetched.keys, 1);
        let head = source.until_asked(times).await;
        assert!(head.starts_with("GET /auth/v1/jwks.json?apikey=hunter2 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("cache-control: no-cache\r\n"), "{head}");
        assert_eq!(head.contains("if-none-match: \"one\"\r\n"), times > 1, "{head}");
    }
    accepts(&verifier, &["rsa"]);
    source.now(Act::Tagged("\"two\"", json!({ "keys": public(&["p256"]) })));
    verifier.refresh().await.unwrap();
    accepts(&verifier, &["p256"]);
}

#[tokio::test]
async fn a_set_is_fetched_again_when_it_is_due_by_its_own_account() {
    let source = Source::start(set(&["rsa"])).await;
    let mut settings = source.settings();
    settings.jwks_pause_ms = 1;
    let kept = KeptFresh::start(&settings, "rsa").await;
    let body = json!({ "keys": public(&["rsa"]) }).to_string();
    let short = "HTTP/1.1 200 OK\r\ncache-control: public, max-age=0";
    source.now(Act::Answer(short.into(), body.into()));
    let wait = kept.verifier.awaited_key(&forged("nobody")).expect("a fetch begins");
    timeout(DEADLINE, wait.over()).await.unwrap();
    // Nobody asks any more, and the interval of the settings is ten minutes.
    source.until_asked(source.asked() + 3).await;
    let before = source.asked();
    source.now(set(&["p256"]));
    source.until_asked(before + 1).await;
    let mut removals = kept.removals.clone();
    timeout(DEADLINE, removals.wait_for(|count| *count == 1)).await.unwrap().unwrap();
    accepts(&kept.verifier, &["p256"]);
    kept.stop().await;
}

#[tokio::test]
async fn redirects_stay_on_the_host_and_end() {
    let source = Source::start(set(&["rsa"])).await;
    let moved = |location: &str| {
        Act::Answer(format!("HTTP/1.1 302 Found\r\nlocation: {location}"), Vec::new())
    };
    let there = format!("http://{}/elsewhere", source.address);
    let door = Source::start(moved(&there)).await;
    let verifier = door.verifier();
    verifier.refresh().await.unwrap();
    accepts(&verifier, &["rsa"]);
    let head = source.until_asked(1).await;
    assert!(head.starts_with("GET /elsewhere HTTP/1.1\r\n"), "{head}");
    for location in
        ["http://localhost/", "http://169.254.169.254/", "x", "//127.0.0.1/", "file:///a"]
    {
        door.now(moved(location));
        let error = verifier.refresh().await.unwrap_err().to_string();
        assert!(error.starts_with("it redirects to "), "{location}: {error}");
    }
    let before = door.asked();
    door.now(moved("/again"));
    let error = verifier.refresh().await.unwrap_err().to_string();
    assert_eq!(error, "it redirects more than 3 times");
    assert_eq!(door.asked() - before, 4);
    accepts(&verifier, &["rsa"]);
}

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn openssl(directory: &Path, arguments: &str) {
    let output = std::process::Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Two authorities, `ca.pem` and `other.pem`, and a certificate of the first for `localhost`.
fn certificates() -> (Directory, TlsAcceptor) {
    let path = std::env::temp_dir().join(format!("walcast-jwks-tls-{}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    let directory = Directory(path);
    let path = &directory.0;
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for name in ["ca", "other"] {
        openssl(
            path,
            &format!(
                "req -x509 {curve} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem \
                 -addext keyUsage=critical,keyCertSign"
            ),
        );
    }
    std::fs::write(path.join("san"), "subjectAltName=DNS:localhost").unwrap();
    openssl(path, &format!("req {curve} -subj /CN=leaf -keyout leaf.key -out leaf.csr"));
    openssl(
        path,
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san \
         -out leaf.pem",
    );
    let chain = CertificateDer::pem_file_iter(path.join("leaf.pem")).unwrap();
    let chain = chain.map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(path.join("leaf.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(chain, key)
    .unwrap();
    (directory, TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn a_host_that_cannot_prove_its_name_is_not_asked() {
    let (directory, tls) = certificates();
    let source = Source::with(set(&["rsa"]), Some(tls)).await;
    let port = source.address.port();
    let with = |host: &str, authority: &str| config::Jwt {
        jwks: format!("https://{host}:{port}/jwks"),
        jwks_root_cert: directory.0.join(authority).to_str().unwrap().into(),
        ..config::Jwt::default()
    };
    let good = verifier(&with("localhost", "ca.pem"));
    good.refresh().await.unwrap();
    accepts(&good, &["rsa"]);
    for (host, authority) in [("localhost", "other.pem"), ("127.0.0.1", "ca.pem")] {
        let verifier = verifier(&with(host, authority));
        let error = verifier.refresh().await.unwrap_err().to_string();
        assert_eq!(error, format!("cannot connect to {host}:{port}"));
        accepts(&verifier, &[]);
    }
    assert_eq!(source.asked(), 1);
    source.now(Act::Answer(
        format!("HTTP/1.1 301 Moved\r\nlocation: http://localhost:{port}/"),
        Vec::new(),
    ));
    let error = good.refresh().await.unwrap_err().to_string();
    assert_eq!(error, "it redirects to plain http");
}

#[tokio::test]
async fn a_thousand_tokens_of_a_new_key_share_one_fetch() {
    let source = Source::start(set(&["rsa"])).await;
    let mut settings = source.settings();
    settings.jwks_pause_ms = 1;
    let kept = KeptFresh::start(&settings, "rsa").await;
    let before = source.asked();
    source.gate.send_replace(false);
    source.now(set(&["rsa", "p256"]));
    let mut waiting = JoinSet::new();
    for _ in 0..1000 {
        let verifier = Arc::clone(&kept.verifier);
        let token = signed("p256");
        waiting.spawn(async move { verifier.verify_fresh(&token, SystemTime::now()).await });
    }
    source.until_asked(before + 1).await;
    source.gate.send_replace(true);
    // All of them, also those that asked only after it was over.
    let answers = timeout(DEADLINE, waiting.join_all()).await.unwrap();
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(source.asked(), before + 1);
    assert!(!kept.removals.has_changed().unwrap());
    kept.stop().await;
}

#[tokio::test]
async fn f80_a_flood_of_unknown_keys_costs_few_fetches_and_no_wait() {
    let source = Source::start(set(&["rsa"])).await;
    let mut settings = source.settings();
    settings.jwks_pause_ms = 300;
    let kept = KeptFresh::start(&settings, "rsa").await;
    let begin = Instant::now();
    let first = source.asked();
    let mut waiting = JoinSet::new();
    for number in 0..10_000 {
        let verifier = Arc::clone(&kept.verifier);
        waiting.spawn(async move {
            let kid = format!("flood {number}");
            let answer = verifier.verify_fresh(&forged(&kid), SystemTime::now()).await;
            assert_eq!(answer, Err(unknown(&kid)));
        });
    }
    timeout(DEADLINE, waiting.join_all()).await.unwrap();
    let asked = source.asked() - first;
    let pauses = usize::try_from(begin.elapsed().as_millis() / 300).unwrap();
    assert!(asked <= pauses + 1, "{asked} fetches in {pauses} pauses");
    // What they asked for is done once, later.
    source.until_asked(first + 1).await;
    accepts(&kept.verifier, &["rsa"]);
    kept.stop().await;

    // With the defaults: not a single one within the pause.
    let source = Source::start(set(&["rsa"])).await;
    let kept = KeptFresh::start(&source.settings(), "rsa").await;
    for number in 0..10_000 {
        assert!(kept.verifier.awaited_key(&forged(&number.to_string())).is_none());
    }
    assert_eq!(source.asked(), 1);
    kept.stop().await;
}

#[tokio::test]
async fn f80_a_slow_source_is_waited_for_no_longer_than_allowed() {
    let source = Source::start(set(&["rsa"])).await;
    let mut settings = source.settings();
    settings.jwks_pause_ms = 1;
    settings.jwks_wait_ms = 50;
    let kept = KeptFresh::start(&settings, "rsa").await;
    let before = source.asked();
    source.gate.send_replace(false);
    let (token, begin) = (signed("p256"), Instant::now());
    let answer = kept.verifier.verify_fresh(&token, SystemTime::now()).await;
    assert_eq!(answer, Err(unknown("p256")));
    assert!(begin.elapsed() >= Duration::from_millis(50), "{:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    // Other tokens do not wait at all, and nobody asks twice.
    accepts(&kept.verifier, &["rsa"]);
    assert!(kept.verifier.awaited_key(&signed("rsa")).is_none(), "a known key");
    assert!(kept.verifier.awaited_key(&anon()).is_none(), "a secret's token");
    assert!(kept.verifier.awaited_key("garbage").is_none());
    // So many may wait, and not one more.
    let waits: Vec<_> =
        std::iter::from_fn(|| kept.verifier.awaited_key(&token)).take(2000).collect();
    assert_eq!(waits.len(), 1024);
    drop(waits);
    assert!(kept.verifier.awaited_key(&token).is_some());
    assert_eq!(source.until_asked(before + 1).await, source.asked.borrow().last().unwrap().clone());
    assert_eq!(source.asked(), before + 1);
    kept.stop().await;
}

#[tokio::test]
async fn nobody_waits_for_a_fetch_that_nobody_makes() {
    let source = Source::start(set(&["rsa"])).await;
    let verifier = source.verifier();
    assert!(verifier.awaited_key(&signed("rsa")).is_none());
    let kept = KeptFresh::start(&source.settings(), "rsa").await;
    let verifier = Arc::clone(&kept.verifier);
    kept.stop().await;
    assert!(verifier.awaited_key(&signed("p256")).is_none());
}

/// A service whose key set comes from `source`, which may be asked at any time.
async fn serve(source: &Source, change: impl FnOnce(&mut config::Jwt)) -> Service {
    Service::with(|settings| {
        settings.jwt = config::Jwt {
            secret: Secret::new(SECRET),
            jwks_pause_ms: 1,
            // Only the source ends a wait.
            jwks_timeout_ms: 60_000,
            jwks_wait_ms: 60_000,
            ..source.settings()
        };
        change(&mut settings.jwt);
    })
    .await
}

async fn try_connect(service: &Service, token: &str) -> Result<Socket, service::Refused> {
    let url = service.url(&format!("/socket/websocket?apikey={token}&vsn=2.0.0"));
    Socket::open(Version::V2, &url, &[]).await
}

fn with_token(token: &str) -> Value {
    json!({ "config": { "postgres_changes": [] }, "access_token": token })
}

#[tokio::test]
async fn f80_the_first_token_after_a_rotation_is_accepted_wherever_it_comes() {
    let source = Source::start(set(&["rsa"])).await;
    let mut service = serve(&source, |_| ()).await;
    // As soon as it serves, also when the first set is still on its way.
    service.connect(Version::V2, &signed("rsa")).await.heartbeat().await;
    source.now(set(&["rsa", "p256"]));
    let mut socket = service.connect(Version::V2, &signed("p256")).await;
    source.now(set(&["rsa", "p256", "p384"]));
    let reply = socket.join("realtime:a", &with_token(&signed("p384"))).await;
    assert_eq!(reply["status"], "ok", "{reply}");

    // A new token for a channel, and what follows it on that channel, in this order.
    source.now(set(&["rsa", "p256", "p384", "ed25519"]));
    source.gate.send_replace(false);
    let before = source.asked();
    let payload = json!({ "access_token": signed("ed25519") });
    socket.send(&Value::Null, &json!("t"), "realtime:a", "access_token", &payload).await;
    source.until_asked(before + 1).await;
    socket.send(&Value::Null, &json!("l"), "realtime:a", "phx_leave", &json!({})).await;
    let again = socket.send_join("realtime:a", &with_token(&signed("ed25519"))).await;
    // Meanwhile the rest of the socket goes on.
    socket.nothing_came().await;
    assert_eq!(socket.join("realtime:b", &with_token(&signed("rsa"))).await["status"], "ok");
    source.gate.send_replace(true);
    let left = socket.next().await;
    assert_eq!((&*left.event, left.reference), ("phx_reply", json!("l")));
    socket.expect("phx_close").await;
    assert_eq!(socket.reply(&again).await.payload["status"], "ok");
    socket.nothing_came().await;

    // A key that does not come is refused in the words of the protocol.
    let refusal = try_connect(&service, &forged("nobody")).await.map(|_| ()).unwrap_err();
    assert_eq!(refusal, (401, json!({ "error": unknown_text("nobody") }).to_string()));
    let reply = socket.join("realtime:c", &with_token(&forged("nobody"))).await;
    let reason = format!("JwtSignerError: {}", unknown_text("nobody"));
    assert_eq!(reply, json!({ "status": "error", "response": { "reason": reason } }));
    let payload = json!({ "access_token": forged("nobody") });
    socket.send(&Value::Null, &json!("t"), "realtime:b", "access_token", &payload).await;
    let system = socket.expect("system").await;
    assert_eq!(system.payload["message"], unknown_text("nobody"));
    socket.expect("phx_close").await;
    service.stop().await.unwrap();
}

#[tokio::test]
async fn frames_that_wait_are_bounded() {
    let source = Source::start(set(&["rsa"])).await;
    let mut service = serve(&source, |_| ()).await;
    for version in VERSIONS {
        let mut socket = service.connect(version, &signed("rsa")).await;
        source.gate.send_replace(false);
        let join = socket.send_join("realtime:a", &with_token(&forged("nobody"))).await;
        socket.nothing_came().await;
        for _ in 0..63 {
            socket.send(&Value::Null, &json!("l"), "realtime:a", "phx_leave", &json!({})).await;
        }
        socket.nothing_came().await;
        // One more than may wait: all are answered, in order, while the source still thinks.
        socket.send(&Value::Null, &json!("last"), "realtime:a", "phx_leave", &json!({})).await;
        let refusal = socket.next().await;
        assert_eq!((refusal.reference, &refusal.payload["status"]), (join, &json!("error")));
        for _ in 0..63 {
            assert_eq!(socket.expect("phx_reply").await.reference, "l");
        }
        assert_eq!(socket.expect("phx_reply").await.reference, "last");
        // One that is too long to be held does not wait either.
        let mut payload = with_token(&forged("nobody"));
        payload["config"]["x"] = "x".repeat(300 * 1024).into();
        assert_eq!(socket.join("realtime:a", &payload).await["status"], "error");
        source.gate.send_replace(true);
        socket.nothing_came().await;
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn who_came_by_a_key_that_is_gone_has_to_show_another() {
    let source = Source::start(set(&["rsa", "p256"])).await;
    let mut service = serve(&source, |jwt| jwt.jwks_refresh_interval_ms = 200).await;
    let mut socket = service.connect(Version::V2, &signed("rsa")).await;
    assert_eq!(socket.join("realtime:a", &with_token(&signed("rsa"))).await["status"], "ok");
    // Fetched again and again, and nothing happens.
    source.until_asked(source.asked() + 3).await;
    socket.nothing_came().await;
    source.now(set(&["p256"]));
    assert_eq!(socket.closed().await, Some(1012));
    let refusal = try_connect(&service, &signed("rsa")).await.map(|_| ()).unwrap_err();
    assert_eq!(refusal, (401, json!({ "error": unknown_text("rsa") }).to_string()));
    let mut socket = service.connect(Version::V2, &signed("p256")).await;
    let reply = socket.join("realtime:a", &with_token(&signed("rsa"))).await;
    assert_eq!(reply["status"], "error", "{reply}");
    // An outage of the source is none of the service.
    source.now(Act::Close);
    source.until_asked(source.asked() + 2).await;
    socket.nothing_came().await;
    service.connect(Version::V2, &signed("p256")).await.heartbeat().await;
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_service_starts_without_its_key_set_and_heals() {
    let source = Source::start(Act::Close).await;
    let mut service = serve(&source, |jwt| jwt.jwks_wait_ms = 10).await;
    assert!(service.request("/readyz").await.starts_with("HTTP/1.1 200 "));
    source.until_asked(1).await;
    let refusal = try_connect(&service, &signed("rsa")).await.map(|_| ()).unwrap_err();
    assert_eq!(refusal, (401, json!({ "error": unknown_text("rsa") }).to_string()));
    service.connect(Version::V2, &anon()).await.heartbeat().await;
    source.now(set(&["rsa"]));
    let healed = async {
        while try_connect(&service, &signed("rsa")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, healed).await.expect("accepted once the set is there");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn claim_validators_hold_at_every_door() {
    const KEY: &str = "sb_publishable_0123456789abcdefghij";
    let mut service = Service::with(|settings| {
        let claims = json!({ "iss": "https://me", "level": 2 });
        settings.jwt.required_claims = serde_json::from_value(claims).unwrap();
        settings.jwt.api_keys = Secret::new(json!({ KEY: "anon" }).to_string());
    })
    .await;
    let with = |claims: Value| {
        let mut all = json!({ "role": "anon" });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        token(&all)
    };
    let good = with(json!({ "iss": "https://me", "level": 2 }));
    for (claims, name) in [
        (json!({}), "iss"),
        (json!({ "iss": "https://you", "level": 2 }), "iss"),
        (json!({ "iss": ["https://me"], "level": 2 }), "iss"),
        (json!({ "iss": "https://me" }), "level"),
        (json!({ "iss": "https://me", "level": "2" }), "level"),
        (json!({ "iss": "https://me", "level": null }), "level"),
    ] {
        let bad = with(claims);
        let refusal = try_connect(&service, &bad).await.map(|_| ()).unwrap_err();
        assert_eq!(refusal, (500, json!({ "error": "Error connecting to Realtime" }).to_string()));
        let mut socket = service.connect(Version::V2, &good).await;
        let reply = socket.join("realtime:a", &with_token(&bad)).await;
        let reason = format!("InvalidJWTToken: Claim `{name}` is not valid");
        assert_eq!(reply, json!({ "status": "error", "response": { "reason": reason } }));
        assert_eq!(socket.join("realtime:a", &with_token(&good)).await["status"], "ok");
        let payload = json!({ "access_token": bad });
        socket.send(&Value::Null, &json!("t"), "realtime:a", "access_token", &payload).await;
        let system = socket.expect("system").await.payload;
        assert_eq!(system["message"], format!("Claim `{name}` is not valid"));
        socket.expect("phx_close").await;
    }
    // A key that is no token has no claims to look at; in the header it wins over the query.
    service.connect(Version::V2, KEY).await.heartbeat().await;
    let url = service.url("/socket/websocket?apikey=garbage&vsn=2.0.0");
    Socket::open(Version::V2, &url, &[("x-api-key", KEY)]).await.unwrap().heartbeat().await;
    service.stop().await.unwrap();
}

#[tokio::test]
async fn the_program_explains_tokens_and_sources() {
    let source = Source::start(set(&["rsa"])).await;
    let run = async |arguments: &[&str]| {
        let environment: BTreeMap<_, _> = [("WALCAST_JWKS", source.url())].into();
        let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_walcast"))
            .args(arguments)
            .env_clear()
            .envs(environment)
            .kill_on_drop(true)
            .output();
        let output = timeout(DEADLINE, run).await.unwrap().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        text
    };
    let check = async |token: &str| run(&["token", "--check", token]).await;
    let text = check(&signed("rsa")).await;
    assert!(
        text.contains("signature: verifies (RS256)\n") && text.ends_with("accepted\n"),
        "{text}"
    );
    let text = check(&signed("p256")).await;
    assert!(text.contains("its key (kid) is not in the key set") && text.ends_with("refused\n"));
    let shown = format!("http://{}/auth/v1/jwks.json", source.address);
    let text = run(&["doctor"]).await;
    assert!(text.contains(&format!("ok    the key set at {shown} has 1 keys\n")), "{text}");
    source.now(Act::Answer("HTTP/1.1 404 Not Found".into(), Vec::new()));
    let text = run(&["doctor"]).await;
    let finding =
        format!("red   the key set at {shown} cannot be used: it answers with status 404\n");
    assert!(text.contains(&finding), "{text}");
    let text = check(&signed("rsa")).await;
    let line = format!("the key set at {shown} is not looked at: it answers with status 404\n");
    assert!(text.contains(&line) && text.ends_with("refused\n"), "{text}");
}
