//! Which key verifies which token, and which keys need no token.
//!
//! In:     the shared secret, a JSON Web Key Set and API keys, from the settings; key sets that
//!         were fetched.
//! Out:    one key and one algorithm for a token's `alg` and `kid`; the role of an API key.
//! Never:  a key for an algorithm of another kind, so `alg` cannot turn a public key into a secret.
//! Source: RFC 7517, RFC 7518 section 6, RFC 8037, RFC 8725.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Fingerprint, TokenError};
use crate::config::{self, Secret};

/// Bytes of a key set. A real one has a few keys of a few hundred bytes.
const JWKS_BYTES_MAX: usize = crate::auth::jwks::BODY_BYTES_MAX;

/// Keys of a key set: a search walks them, and each costs a check when it is loaded.
const KEYS_MAX: usize = 256;

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

/// One key of a key set.
pub(super) struct Key {
    kid: String,
    family: Family,
    /// The only algorithm this key is meant for, when the key set says so.
    algorithm: Option<Algorithm>,
    material: DecodingKey,
    /// Of all of the above: equal ones verify the same tokens.
    fingerprint: Fingerprint,
}

impl Key {
    /// Whether `set` has this very key.
    pub(super) fn is_in(&self, set: &[Key]) -> bool {
        set.iter().any(|key| key.fingerprint == self.fingerprint)
    }
}

/// Where the key set comes from.
pub(super) enum Origin {
    /// The settings, for the whole life of the process; empty when they have none.
    Settings,
    /// This URL; until it is fetched the set is empty.
    Url(String),
}

/// The keys tokens are verified with.
pub(super) struct Keys {
    secret: Option<DecodingKey>,
    /// Replaced as a whole by [`Self::replace`].
    set: RwLock<Arc<Vec<Key>>>,
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
    pub(super) fn load(settings: &config::Jwt) -> Result<(Self, Origin), config::Error> {
        let secret = shared_secret(&settings.secret)?;
        let (set, origin) = match settings.jwks.trim() {
            "" => (Vec::new(), Origin::Settings),
            json if json.starts_with(['{', '[']) => (key_set(json)?, Origin::Settings),
            url if url.contains("://") => (Vec::new(), Origin::Url(url.to_owned())),
            path => (key_set(&read(Path::new(path))?)?, Origin::Settings),
        };
        if secret.is_none() && set.is_empty() && matches!(origin, Origin::Settings) {
            return Err(invalid("jwt.secret", "no key to verify tokens with: set it or jwt.jwks"));
        }
        Ok((Self { secret, set: RwLock::new(Arc::new(set)) }, origin))
    }

    /// The key set as it is now.
    pub(super) fn set(&self) -> Arc<Vec<Key>> {
        Arc::clone(&self.set.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Verifies with this set from now on; gives the one before.
    pub(super) fn replace(&self, set: Vec<Key>) -> Arc<Vec<Key>> {
        let mut current = self.set.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut current, Arc::new(set))
    }

    /// The key for a token's header, from [`Self::set`].
    ///
    /// An HS token falls back to the shared secret when the key set has no such secret: the tokens
    /// of the usual auth server carry a key id that no key set lists.
    pub(super) fn select<'a>(
        &'a self,
        set: &'a [Key],
        name: &str,
        kid: Option<&str>,
    ) -> Result<(Algorithm, &'a DecodingKey), TokenError> {
        let (algorithm, family) = algorithm(name).ok_or(TokenError::Signer { kid: None })?;
        let listed = kid.and_then(|kid| {
            set.iter().find(|key| {
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
    if set.keys.len() > KEYS_MAX {
        return Err(invalid("jwt.jwks", format!("has more than {KEYS_MAX} keys")));
    }
    let mut keys = Vec::with_capacity(set.keys.len());
    for (number, raw) in set.keys.iter().enumerate() {
        let key =
            read_key(raw).map_err(|what| invalid("jwt.jwks", format!("key {number}: {what}")))?;
        keys.extend(key);
    }
    Ok(keys)
}

/// A key set that was fetched.
pub(super) struct Fetched {
    /// At least one key, all of them asymmetric.
    pub(super) keys: Vec<Key>,
    /// How many keys of a known kind are broken or were not meant to be published.
    pub(super) left_out: usize,
}

/// Decodes a key set that was fetched. What others put into it must not make the rest useless, so
/// a broken key is left out, and refuses its own tokens only. A secret is left out, too: whoever
/// can fetch it could sign.
///
/// # Errors
/// Why the set is of no use as a whole.
pub(super) fn fetched_set(body: &[u8]) -> Result<Fetched, &'static str> {
    let malformed = "it is not a JSON object with a list called keys";
    let json = std::str::from_utf8(body).map_err(|_| malformed)?;
    if !json.trim_start().starts_with('{') {
        return Err(malformed);
    }
    let set: JsonKeySet<'_> = serde_json::from_str(json).map_err(|_| malformed)?;
    if set.keys.len() > KEYS_MAX {
        return Err("it has more than 256 keys");
    }
    let mut fetched = Fetched { keys: Vec::with_capacity(set.keys.len()), left_out: 0 };
    for raw in set.keys {
        match read_key(raw) {
            Ok(Some(key)) if key.family != Family::Secret => fetched.keys.push(key),
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => fetched.left_out += 1,
        }
    }
    if fetched.keys.is_empty() {
        return Err("it has no key that can be used");
    }
    Ok(fetched)
}

/// One key of a set; none when it is of a kind that cannot be verified here.
fn read_key(raw: &RawValue) -> Result<Option<Key>, &'static str> {
    if !raw.get().starts_with('{') {
        return Err("not a JSON object");
    }
    let key = serde_json::from_str::<JsonKey>(raw.get())
        .map_err(|_| "kty is missing or a member is not a string")?;
    decode(key)
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
    let (family, probe, material, public) = match (&*json.kty, json.crv.as_deref()) {
        ("oct", _) => {
            let secret = member(json.k, "k is not base64url")?;
            if secret.len() < SECRET_BYTES_MIN {
                return Err("k is shorter than 32 bytes");
            }
            (Family::Secret, Algorithm::HS256, DecodingKey::from_secret(&secret), secret)
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
            let [n, e] = [&modulus, &exponent].map(|part| URL_SAFE_NO_PAD.encode(part));
            (Family::Rsa, Algorithm::RS256, key, format!("{n}.{e}").into_bytes())
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
            let point = [&[4], &*x, &*y].concat();
            (family, probe, DecodingKey::from_ec_der(&point), point)
        }
        ("OKP", Some("Ed25519")) => {
            let x = member(json.x, "x is not base64url")?;
            // The verifier slices without looking, so a short key must not reach it.
            if x.len() != 32 {
                return Err("x has the wrong length for crv");
            }
            (Family::Ed25519, Algorithm::EdDSA, DecodingKey::from_ed_der(&x), x)
        }
        _ => return Ok(None),
    };
    if meant.is_some_and(|(_, needs)| needs != family) {
        return Err("alg does not fit kty and crv");
    }
    // Fails when the numbers are not a point on their curve.
    jsonwebtoken::crypto::verify("", b"", &material, probe)
        .map_err(|_| "not a valid public key")?;
    let algorithm = meant.map(|(algorithm, _)| algorithm);
    let described = format!("{kid:?} {family:?} {algorithm:?} {}", URL_SAFE_NO_PAD.encode(public));
    let fingerprint = Fingerprint::of(&described);
    Ok(Some(Key { kid, family, algorithm, material, fingerprint }))
}
