//! Tokens: text + keys + now → [`Claims`].
//!
//! In:     a JWT or an API key as a client sent it, the configured keys and roles, the time.
//! Out:    verified claims, or why not in the words the client is told.
//! Never:  a clock of its own for a token, IO while one is verified, a claim from a token whose signature was not checked, a token's text
//!         in an error.
//! Source: RFC 7515, RFC 7519, RFC 8725.

mod error;
mod keys;
mod rotation;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

use tokio_util::sync::CancellationToken;

use super::Claims;
use crate::config;
use keys::{Keys, Origin};
use rotation::Rotation;

pub use error::TokenError;
pub use rotation::{KeyWait, RefreshError, Refreshed};

/// Bytes of a token before anything is decoded. Real ones have under 16 KiB, and the headers of a
/// request are bounded at the same 64 KiB by default.
pub const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// The last second of the year 9999: later expiry times are no better, and could overflow a clock.
const EXPIRY_MAX: u64 = 253_402_300_799;

/// Which token it was, without keeping it: equal fingerprints mean equal token texts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a token's text, as the client sent it.
    pub fn of(token: &str) -> Self {
        Self::of_bytes(token.as_bytes())
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(***)")
    }
}

/// Claims that may say who the bearer is, the first that is a string: that of the standard, and
/// what many applications with tokens of their own have instead.
const SUBJECT: [&str; 2] = ["sub", "userId"];

/// Verifies tokens against the configured keys.
///
/// When the settings give the URL of a key set, that set is empty until [`Self::keep_fresh`] runs;
/// its tokens are refused as those of unknown keys while it is.
pub struct Verifier {
    keys: Keys,
    /// How the key set is kept; none when it is part of the settings.
    rotation: Option<Rotation>,
    /// What the bearer of an API key is, by the key's digest.
    api_keys: HashMap<Fingerprint, Claims>,
    roles: Vec<Arc<str>>,
    required: BTreeMap<String, Value>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("roles", &self.roles).finish_non_exhaustive()
    }
}

struct Header {
    algorithm: Option<String>,
    kid: Option<String>,
}

impl Verifier {
    /// A verifier for these settings; `roles` are those a token may name.
    ///
    /// # Errors
    /// When a key is missing, weak or broken: the service must not start with it.
    pub fn new(settings: &config::Jwt, roles: &[String]) -> Result<Self, config::Error> {
        let api_keys = keys::api_keys(&settings.api_keys, roles)?;
        let bearer = |(key, role): (_, String)| (key, bearer(&role));
        let (keys, origin) = Keys::load(settings)?;
        let rotation = match origin {
            Origin::Settings => None,
            Origin::Url(url) => Some(Rotation::new(&url, settings)?),
        };
        Ok(Self {
            keys,
            rotation,
            api_keys: api_keys.into_iter().map(bearer).collect(),
            roles: roles.iter().map(|role| role.as_str().into()).collect(),
            required: settings.required_claims.clone(),
        })
    }

    /// The claims of a token that is valid at `now`.
    ///
    /// # Errors
    /// Why it is refused. The order is that of the reference server: shape, key, signature,
    /// expiry, other claims, missing fields; the role comes last. An API key is known or malformed.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        let token = normalise(token)?;
        if token.starts_with(keys::API_KEY_PREFIX) {
            let bearer = self.api_keys.get(&Fingerprint::of(&token));
            return bearer.cloned().ok_or(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let (json, claims) = object(payload)?;
        let header = Header::decode(header)?;
        URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
        let name = header.algorithm.ok_or(TokenError::Signer { kid: None })?;
        let set = self.keys.set();
        let (algorithm, key) = self.keys.select(&set, &name, header.kid.as_deref())?;
        match jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, algorithm) {
            Ok(true) => self.accept(json, &claims, now),
            Ok(false) | Err(_) => Err(TokenError::Signature),
        }
    }

    /// As [`Self::verify`]; a token that names an unknown key waits for a fetch that may bring it,
    /// within the settings' bound.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub async fn verify_fresh(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        let refused = match self.verify(token, now) {
            Err(error @ TokenError::Signer { kid: Some(_) }) => error,
            answer => return answer,
        };
        let Some(rotation) = &self.rotation else { return Err(refused) };
        let Some(wait) = rotation.want() else { return Err(refused) };
        let asked = Instant::now();
        wait.over().await;
        self.verify(token, now + asked.elapsed())
    }

    /// What to wait for before `token` is verified: it names a key that is unknown, and a fetch
    /// under way may bring it. Nothing is said about the token but that.
    ///
    /// Asking is what makes the fetch happen, at most as often as the settings allow. None when no
    /// wait would help: the key is known, there is no such fetch now, or too many wait already.
    pub fn awaited_key(&self, token: &str) -> Option<KeyWait> {
        let rotation = self.rotation.as_ref()?;
        let token = normalise(token).ok()?;
        let header = Header::decode(token.split_once('.')?.0).ok()?;
        let set = self.keys.set();
        let selected = self.keys.select(&set, &header.algorithm?, header.kid.as_deref());
        if let Err(TokenError::Signer { kid: Some(_) }) = selected { rotation.want() } else { None }
    }

    /// Whether keys come and go: [`Self::awaited_key`] may have something to wait for.
    pub fn rotates(&self) -> bool {
        self.rotation.is_some()
    }

    /// How often a key was taken away. What was verified under another number may have been
    /// verified with such a key.
    pub fn epoch(&self) -> u64 {
        self.rotation.as_ref().map_or(0, Rotation::epoch)
    }

    /// The URL the key set is fetched from, without its query; none when there is none.
    pub fn key_source(&self) -> Option<String> {
        Some(self.rotation.as_ref()?.source())
    }

    /// Fetches the key set now; nothing to do when it is part of the settings.
    ///
    /// # Errors
    /// Why there is no new set. The one before stays, unless it is too old.
    pub async fn refresh(&self) -> Result<Refreshed, RefreshError> {
        match &self.rotation {
            Some(rotation) => rotation.refresh(&self.keys).await,
            None => Ok(Refreshed::default()),
        }
    }

    /// Fetches the key set now and whenever it is due, until `stop`. `removed` is called after a
    /// key was taken away: who was let in by it has to go.
    pub async fn keep_fresh(&self, stop: CancellationToken, removed: impl Fn()) {
        match &self.rotation {
            Some(rotation) => {
                stop.run_until_cancelled(rotation.run(&self.keys, removed)).await;
            }
            None => stop.cancelled().await,
        }
    }

    /// The claims rules, for a payload whose signature was right.
    fn accept(
        &self,
        json: String,
        claims: &Map<String, Value>,
        now: SystemTime,
    ) -> Result<Claims, TokenError> {
        let refused = |name: &str| TokenError::Claim { name: name.into() };
        let number = |name| match claims.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(whole_seconds(number))),
            Some(_) => Err(refused(name)),
        };
        let expiry = number("exp")?;
        if let Some(expiry) = expiry {
            let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let now = i64::try_from(now).unwrap_or(i64::MAX);
            if expiry <= now {
                let seconds = u64::try_from(now.saturating_sub(expiry)).unwrap_or(0);
                return Err(TokenError::Expired { seconds });
            }
        }
        number("iat")?;
        for (name, value) in &self.required {
            if claims.get(name) != Some(value) {
                return Err(refused(name));
            }
        }
        let (Some(expiry), Some(role)) = (expiry, claims.get("role")) else {
            return Err(TokenError::FieldsMissing);
        };
        let role = role
            .as_str()
            .and_then(|role| self.roles.iter().find(|allowed| ***allowed == *role))
            .ok_or(TokenError::Role)?;
        let expiry = u64::try_from(expiry).unwrap_or(0).min(EXPIRY_MAX);
        Ok(Claims {
            role: Arc::clone(role),
            subject: SUBJECT.iter().find_map(|name| claims.get(*name)?.as_str()).map(Arc::from),
            json: json.into(),
            expires_at: UNIX_EPOCH + Duration::from_secs(expiry),
        })
    }
}

/// What a key set that was fetched is good for: how many keys of it can be used, and how many of a
/// known kind are left out.
///
/// # Errors
/// Why it is of no use as a whole.
pub fn usable_keys(body: &[u8]) -> Result<(usize, usize), &'static str> {
    keys::fetched_set(body).map(|set| (set.keys.len(), set.left_out))
}

/// The claims of everybody who has an API key of this role. They never expire.
fn bearer(role: &str) -> Claims {
    let claims = Map::from_iter([
        ("role".to_owned(), Value::from(role)),
        ("exp".to_owned(), Value::from(EXPIRY_MAX)),
    ]);
    Claims {
        role: role.into(),
        subject: None,
        json: Value::Object(claims).to_string().into(),
        expires_at: UNIX_EPOCH + Duration::from_secs(EXPIRY_MAX),
    }
}

/// The token with percent codes decoded and white space removed, as some clients and proxies make
/// both necessary.
fn normalise(token: &str) -> Result<Cow<'_, str>, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Malformed);
    }
    let decoded = percent_encoding::percent_decode_str(token)
        .decode_utf8()
        .map_err(|_| TokenError::Malformed)?;
    if decoded.contains(char::is_whitespace) {
        return Ok(decoded.split_whitespace().collect::<String>().into());
    }
    Ok(decoded)
}

/// A part of the token as JSON text and as the object it must be.
fn object(part: &str) -> Result<(String, Map<String, Value>), TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    let json = String::from_utf8(bytes).map_err(|_| TokenError::Malformed)?;
    let Unique(members) = serde_json::from_str(&json).map_err(|_| TokenError::Malformed)?;
    Ok((json, members))
}

impl Header {
    fn decode(part: &str) -> Result<Self, TokenError> {
        let (_, mut members) = object(part)?;
        // Extensions that must be understood are not (RFC 7515, 4.1.11).
        if members.contains_key("crit") {
            return Err(TokenError::Malformed);
        }
        let mut text = |name| match members.remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        Ok(Self { algorithm: text("alg"), kid: text("kid") })
    }
}

/// Seconds since 1970 that a JSON number means: decimals are rounded, what is beyond 64 bits is as
/// far away as they reach.
fn whole_seconds(number: &Number) -> i64 {
    if let Some(seconds) = number.as_i64() {
        return seconds;
    }
    let value = number.as_f64().unwrap_or(f64::MAX).round();
    let distance = Duration::try_from_secs_f64(value.abs())
        .map_or(i64::MAX, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    if value < 0.0 { -distance } else { distance }
}

/// A JSON object in which no member is named twice: what was verified is what others will read.
struct Unique(Map<String, Value>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Unique, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(de::Error::custom("a member is named twice"));
                    }
                }
                Ok(Unique(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}
