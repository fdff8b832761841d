//! Tokens and key sets: whom the verifier lets in, a verifier of its own that knows only JSON lets
//! in too; a token with one character changed is refused; a set of keys is read or refused.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};
use walcast::auth::jwt::{TOKEN_BYTES_MAX, Verifier, usable_keys};
use walcast::config::{Jwt, Secret};

const SECRET: &str = "a-shared-secret-that-is-long-enough";
const JWKS: &str = include_str!("../../tests/data/jwt/jwks.json");
const ROLES: [&str; 3] = ["anon", "authenticated", "service_role"];

/// Seconds since 1970 that it is here.
const NOW: u64 = 1_800_000_000;

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| verifier(JWKS).expect("the keys are good"));

fn verifier(jwks: &str) -> Result<Verifier, walcast::config::Error> {
    let settings = Jwt { secret: Secret::new(SECRET), jwks: jwks.to_owned(), ..Jwt::default() };
    Verifier::new(&settings, &ROLES.map(String::from))
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

/// The first byte says what the rest is: `0` a token, `1` a header and, in the next line, claims
/// that are signed here, `2` a key set.
pub fn check(bytes: &[u8]) {
    let Some((&selector, content)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(content) else { return };
    match selector % 3 {
        0 => token(text),
        1 => {
            if let Some((header, claims)) = text.split_once('\n') {
                signed(header, claims);
            }
        }
        _ => key_set(text),
    }
}

/// Whoever is let in has claims that say so, and a token in which nothing can be changed.
fn token(text: &str) {
    let claims = match VERIFIER.verify(text, now()) {
        Ok(claims) => claims,
        Err(error) => {
            assert!((400..=599).contains(&error.status()));
            assert!(error.reason().len() < 1024, "it repeats too much of a token");
            return;
        }
    };
    assert!(ROLES.contains(&&*claims.role) && claims.expires_at > now());
    let said = serde_json::from_str::<Value>(&claims.json).expect("claims are JSON");
    assert_eq!(said["role"], *claims.role);
    assert_eq!(said["sub"].as_str(), claims.subject.as_deref());
    let spaced = format!(" {}\n", text.replace('.', " . "));
    assert_eq!(VERIFIER.verify(&spaced, now()).map(|claims| claims.json), Ok(claims.json));
    tampered(text.trim());
}

/// One character of what is signed, or of the signature, is another.
fn tampered(text: &str) {
    let letters = text.bytes().filter(u8::is_ascii_alphanumeric).count();
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) {
        return; // percent codes
    }
    let at = (letters * 7919) % text.len();
    let mut other = text.as_bytes().to_vec();
    other[at] = match other[at] {
        b'.' => b'-',
        b'A' => b'B',
        _ => b'A',
    };
    let other = String::from_utf8(other).expect("it was ASCII");
    assert!(VERIFIER.verify(&other, now()).is_err(), "{other}");
}

/// A token made here is accepted exactly if its parts say so.
fn signed(header: &str, claims: &str) {
    let named = strict(header).and_then(|header| {
        let name = header.get("alg")?.as_str()?.to_owned();
        Some((name, header))
    });
    let algorithm = named.as_ref().and_then(|(name, _)| match &**name {
        "HS256" => Some(Algorithm::HS256),
        "HS384" => Some(Algorithm::HS384),
        "HS512" => Some(Algorithm::HS512),
        _ => None,
    });
    let [first, second] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    let message = format!("{first}.{second}");
    if message.len() + 128 > TOKEN_BYTES_MAX {
        return;
    }
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let with = algorithm.unwrap_or(Algorithm::HS256);
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &key, with).expect("HMAC always signs");
    let token = format!("{message}.{signature}");
    let verified = VERIFIER.verify(&token, now());
    let header_is_good = algorithm.is_some()
        && named.as_ref().is_some_and(|(_, header)| !header.contains_key("crit"));
    let expected = if header_is_good { accepted(claims) } else { Some(false) };
    // A key that is named may be another.
    let names_key = named.as_ref().is_some_and(|(_, header)| header.contains_key("kid"));
    match expected {
        Some(true) if !names_key => assert!(verified.is_ok(), "{header} {claims} {verified:?}"),
        Some(false) => assert!(verified.is_err(), "{header} {claims} {verified:?}"),
        Some(true) | None => {}
    }
    if let Ok(verified) = verified {
        assert_eq!(&*verified.json, claims);
        tampered(&token);
    }
}

/// Whether claims let their bearer in; none where only rounding would tell.
fn accepted(claims: &str) -> Option<bool> {
    let Some(claims) = strict(claims) else { return Some(false) };
    let is_role = |role: &Value| role.as_str().is_some_and(|role| ROLES.contains(&role));
    if !claims.get("role").is_some_and(is_role)
        || !claims.get("exp").is_some_and(Value::is_number)
        || !claims.get("iat").is_none_or(Value::is_number)
    {
        return Some(false);
    }
    let expiry = &claims["exp"];
    if let Some(expiry) = expiry.as_u64() {
        return Some(expiry > NOW);
    }
    let expiry = expiry.as_f64()?;
    if expiry < 1.7e9 {
        return Some(false);
    }
    (expiry > 1.9e9).then_some(true)
}

/// An object in which nothing is named twice.
fn strict(json: &str) -> Option<Map<String, Value>> {
    struct Once(Map<String, Value>);
    struct Members;

    impl<'de> Deserialize<'de> for Once {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Members)
        }
    }

    impl<'de> Visitor<'de> for Members {
        type Value = Once;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Once, A::Error> {
            let mut members = Vec::<(String, Value)>::new();
            while let Some(member) = access.next_entry()? {
                members.push(member);
            }
            let names: BTreeSet<&String> = members.iter().map(|(name, _)| name).collect();
            if names.len() < members.len() {
                return Err(A::Error::custom("twice"));
            }
            Ok(Once(members.into_iter().collect()))
        }
    }

    serde_json::from_str::<Once>(json).ok().map(|once| once.0)
}

fn key_set(json: &str) {
    let fetched = usable_keys(json.as_bytes());
    let listed = serde_json::from_str::<Value>(json)
        .ok()
        .and_then(|set| set.get("keys")?.as_array().map(Vec::len));
    if let (Ok((usable, left_out)), Some(listed)) = (&fetched, listed) {
        assert!(*usable > 0 && usable + left_out <= listed, "{json}");
    }
    // What begins otherwise is the name of a file, or a URL.
    if !json.trim().starts_with(['{', '[']) {
        assert!(fetched.is_err());
        return;
    }
    match verifier(json) {
        Ok(verifier) => {
            assert!(listed.is_none_or(|listed| listed <= 256));
            // No key in a set is good for a secret that it does not have.
            let shown = format!("{verifier:?}");
            assert!(!shown.contains(SECRET));
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("jwt.jwks") && error.len() < 512, "{error}");
        }
    }
}
