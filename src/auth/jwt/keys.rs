//! Which key verifies which token, and which keys need no token.
//!
//! In:     the shared secret, a JSON Web Key Set and API keys, from the settings.
//! Out:    one key and one algorithm for a token's `alg` and `kid`; the role of an API key.
//! Never:  a key for an algorithm of another kind, so `alg` cannot turn a public key into a secret.
//! Source: RFC 7517, RFC 7518 section 6, RFC 8037, RFC 8725.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Fingerprint, TokenError};
use crate::config::{self, Secret};

/// Bytes of a key set. A real one has a few keys of a few hundred bytes.
const JWKS_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a shared secret below which it could be guessed (RFC 7518, 3.2, for HS256).
const SECRET_BYTES_MIN: usize = 32;

/// Bytes of an RSA modulus: RFC 7518 asks for 2048 bits, the verifier takes at most 4096.
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=512;

/// How every API key begins. Clients know by it that a key is no token.
pub(super) const API_KEY_PREFIX: &str = "sb_";

/// Bytes of an API key below which it could be guessed. Real ones have over 40.
const API_KEY_BYTES_MIN: usize = 32;

/// What a key can be used for: an algorithm fits exactly one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Secret,
    Rsa,
    P256,
    P384,
    Ed25519,
}

struct Key {
    kid: String,
    family: Family,
    /// The only algorithm this key is meant for, when the key set says so.
    algorithm: Option<Algorithm>,
    material: DecodingKey,
}

/// The keys tokens are verified with.
pub(super) struct Keys {
    secret: Option<DecodingKey>,
    set: Vec<Key>,
}

/// A signature algorithm by its name in a token. Everything else, `none` and PS* included, is
/// refused; ES512 and Ed448 have no verifier here.
fn algorithm(name: &str) -> Option<(Algorithm, Family)> {
    Some(match name {
        "HS256" => (Algorithm::HS256, Family::Secret),
        "HS384" => (Algorithm::HS384, Family::Secret),
        "HS512" => (Algorithm::HS512, Family::Secret),
        "RS256" => (Algorithm::RS256, Family::Rsa),
        "RS384" => (Algorithm::RS384, Family::Rsa),
        "RS512" => (Algorithm::RS512, Family::Rsa),
        "ES256" => (Algorithm::ES256, Family::P256),
        "ES384" => (Algorithm::ES384, Family::P384),
        "EdDSA" | "Ed25519" => (Algorithm::EdDSA, Family::Ed25519),
        _ => return None,
    })
}

impl Keys {
    /// From the settings, checked so that a key that could never verify is found at start.
    pub(super) fn load(settings: &config::Jwt) -> Result<Self, config::Error> {
        let secret = shared_secret(&settings.secret)?;
        let set = match settings.jwks.trim() {
            "" => Vec::new(),
            json if json.starts_with(['{', '[']) => key_set(json)?,
            path => key_set(&read(Path::new(path))?)?,
        };
        if secret.is_none() && set.is_empty() {
            return Err(invalid("jwt.secret", "no key to verify tokens with: set it or jwt.jwks"));
        }
        Ok(Self { secret, set })
    }

    /// The key for a token's header.
    ///
    /// An HS token falls back to the shared secret when the key set has no such secret: the tokens
    /// of the usual auth server carry a key id that no key set lists.
    pub(super) fn select(
        &self,
        name: &str,
        kid: Option<&str>,
    ) -> Result<(Algorithm, &DecodingKey), TokenError> {
        let (algorithm, family) = algorithm(name).ok_or(TokenError::Signer { kid: None })?;
        let listed = kid.and_then(|kid| {
            self.set.iter().find(|key| {
                key.kid == kid
                    && key.family == family
                    && key.algorithm.is_none_or(|meant| meant == algorithm)
            })
        });
        match (listed, family, kid) {
            (Some(key), _, _) => Ok((algorithm, &key.material)),
            (None, Family::Secret, _) => self
                .secret
                .as_ref()
                .map(|secret| (algorithm, secret))
                .ok_or(TokenError::Signer { kid: None }),
            (None, Family::Rsa | Family::P256 | Family::P384 | Family::Ed25519, Some(kid)) => {
                Err(TokenError::unknown_key(kid))
            }
            (None, Family::Rsa | Family::P256 | Family::P384 | Family::Ed25519, None) => {
                Err(TokenError::Signer { kid: None })
            }
        }
    }
}

/// The role that each API key stands for. They are found by their digest, so that the time a search
/// takes says nothing about a key.
///
/// # Errors
/// When a key could be guessed, or names a role that no token may name.
pub(super) fn api_keys(
    settings: &Secret,
    roles: &[String],
) -> Result<HashMap<Fingerprint, String>, config::Error> {
    let refuse = |problem: &str| Err(invalid("jwt.api_keys", problem));
    if settings.is_empty() {
        return Ok(HashMap::new());
    }
    let Ok(keys) = serde_json::from_str::<BTreeMap<String, String>>(settings.expose()) else {
        return refuse("must be a JSON object of keys and the role of each");
    };
    for (key, role) in &keys {
        if !key.starts_with(API_KEY_PREFIX) || key.len() < API_KEY_BYTES_MIN {
            return refuse("each key must begin with sb_ and have at least 32 bytes");
        }
        if !roles.contains(role) {
            return refuse(&format!("{role} is not one of database.roles"));
        }
    }
    Ok(keys.into_iter().map(|(key, role)| (Fingerprint::of(&key), role)).collect())
}

fn invalid(name: &str, problem: impl Into<String>) -> config::Error {
    config::Error::Invalid { name: name.into(), problem: problem.into() }
}

fn shared_secret(secret: &Secret) -> Result<Option<DecodingKey>, config::Error> {
    if secret.is_empty() {
        return Ok(None);
    }
    let text = secret.expose();
    if text.len() < SECRET_BYTES_MIN {
        let problem = format!("has {} bytes; at least {SECRET_BYTES_MIN} are needed", text.len());
        return Err(invalid("jwt.secret", problem));
    }
    // With a public key as the secret, everybody who knows that key could sign.
    if text.trim_start().starts_with("-----BEGIN") || text.contains("\"kty\"") {
        return Err(invalid("jwt.secret", "is a key file; asymmetric keys belong in jwt.jwks"));
    }
    Ok(Some(DecodingKey::from_secret(text.as_bytes())))
}

fn read(path: &Path) -> Result<String, config::Error> {
    if path.to_str().is_some_and(|path| path.contains("://")) {
        return Err(invalid("jwt.jwks", "is a URL; give the key set itself or a file"));
    }
    let failed = |source| config::Error::Read { path: path.into(), source };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if usize::try_from(bytes).map_or(true, |bytes| bytes > JWKS_BYTES_MAX) {
        return Err(invalid("jwt.jwks", format!("has more than {JWKS_BYTES_MAX} bytes")));
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[derive(Deserialize)]
struct JsonKeySet<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The members that matter; others, private ones included, are ignored.
#[derive(Deserialize)]
struct JsonKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

/// Decodes a key set. Keys of a kind that cannot be verified here are left out, since a set may be
/// shared with others; a broken key of a known kind is an error, because its tokens would fail.
fn key_set(json: &str) -> Result<Vec<Key>, config::Error> {
    if json.len() > JWKS_BYTES_MAX {
        return Err(invalid("jwt.jwks", format!("has more than {JWKS_BYTES_MAX} bytes")));
    }
    // The text of these errors could quote a secret, so only the place is told.
    if !json.trim_start().starts_with('{') {
        return Err(invalid("jwt.jwks", "is not a JSON object with a list called keys"));
    }
    let set: JsonKeySet<'_> = serde_json::from_str(json).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let problem = format!("is not a JSON object with a list called keys ({line}:{column})");
        invalid("jwt.jwks", problem)
    })?;
    let mut keys = Vec::with_capacity(set.keys.len());
    for (number, raw) in set.keys.iter().enumerate() {
        let broken = |what: &str| invalid("jwt.jwks", format!("key {number}: {what}"));
        if !raw.get().starts_with('{') {
            return Err(broken("not a JSON object"));
        }
        let key = serde_json::from_str::<JsonKey>(raw.get())
            .map_err(|_| broken("kty is missing or a member is not a string"))?;
        if let Some(key) = decode(key).map_err(broken)? {
            keys.push(key);
        }
    }
    Ok(keys)
}

fn decode(json: JsonKey) -> Result<Option<Key>, &'static str> {
    // Without an id no token can name it.
    let Some(kid) = json.kid else { return Ok(None) };
    if json.usage.is_some_and(|usage| usage != "sig") {
        return Ok(None);
    }
    let meant = match json.alg.as_deref().map(algorithm) {
        None => None,
        Some(None) => return Ok(None),
        Some(Some(meant)) => Some(meant),
    };
    let member = |value: Option<String>, what| {
        let value = value.ok_or(what)?;
        URL_SAFE_NO_PAD.decode(value.trim_end_matches('=')).map_err(|_| what)
    };
    let (family, probe, material) = match (&*json.kty, json.crv.as_deref()) {
        ("oct", _) => {
            let secret = member(json.k, "k is not base64url")?;
            if secret.len() < SECRET_BYTES_MIN {
                return Err("k is shorter than 32 bytes");
            }
            (Family::Secret, Algorithm::HS256, DecodingKey::from_secret(&secret))
        }
        ("RSA", _) => {
            let modulus = member(json.n, "n is not base64url")?;
            let exponent = member(json.e, "e is not base64url")?;
            let significant = modulus.iter().skip_while(|byte| **byte == 0).count();
            if !RSA_MODULUS_BYTES.contains(&significant) {
                return Err("n has less than 2048 or more than 4096 bits");
            }
            let odd = exponent.last().is_some_and(|byte| byte % 2 == 1);
            if !odd || exponent == [1] || exponent.len() > 4 {
                return Err("e is not an odd number between 3 and 4294967295");
            }
            let key = DecodingKey::from_rsa_raw_components(&modulus, &exponent);
            (Family::Rsa, Algorithm::RS256, key)
        }
        ("EC", Some(curve @ ("P-256" | "P-384"))) => {
            let x = member(json.x, "x is not base64url")?;
            let y = member(json.y, "y is not base64url")?;
            let (family, probe, length) = match curve {
                "P-256" => (Family::P256, Algorithm::ES256, 32),
                _ => (Family::P384, Algorithm::ES384, 48),
            };
            if x.len() != length || y.len() != length {
                return Err("x or y has the wrong length for crv");
            }
            // An uncompressed point (SEC 1, 2.3.3).
            (family, probe, DecodingKey::from_ec_der(&[&[4], &*x, &*y].concat()))
        }
        ("OKP", Some("Ed25519")) => {
            let x = member(json.x, "x is not base64url")?;
            // The verifier slices without looking, so a short key must not reach it.
            if x.len() != 32 {
                return Err("x has the wrong length for crv");
            }
            (Family::Ed25519, Algorithm::EdDSA, DecodingKey::from_ed_der(&x))
        }
        _ => return Ok(None),
    };
    if meant.is_some_and(|(_, needs)| needs != family) {
        return Err("alg does not fit kty and crv");
    }
    // Fails when the numbers are not a point on their curve.
    jsonwebtoken::crypto::verify("", b"", &material, probe)
        .map_err(|_| "not a valid public key")?;
    Ok(Some(Key { kid, family, algorithm: meant.map(|(algorithm, _)| algorithm), material }))
}
