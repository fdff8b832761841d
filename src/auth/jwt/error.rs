//! Why a token was refused, in the words each client is told: one table.
//!
//! Source: spec of the realtime protocol, sections 1.3 (HTTP), 1.6 (channels), 2.6 (joins).

use std::borrow::Cow;

/// Characters of a key id that are repeated to the client. It chose them, so more is no help.
const KID_CHARS_SHOWN: usize = 128;

/// Why a token was refused. The caller answers with [`Self::status`] and [`Self::http_text`] before
/// the upgrade, with [`Self::reason`] to a join, with [`Self::message`] on a joined channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// There was none.
    Missing,
    /// It is not a JWT: three parts, base64url, JSON objects, nothing twice.
    Malformed,
    /// The key is known, the signature is not its own.
    Signature,
    /// No configured key may verify it: unknown algorithm, no key id, or an unknown one.
    Signer {
        /// The key id, when one was named that should have been known.
        kid: Option<Box<str>>,
    },
    /// It was valid once.
    Expired {
        /// Seconds since then; 0 in the very second.
        seconds: u64,
    },
    /// `role` or `exp` is missing.
    FieldsMissing,
    /// A claim has the wrong type or not the required value.
    Claim {
        /// Which one; `exp`, `iat` or a configured name, never a client's.
        name: Box<str>,
    },
    /// The role is not one of the configured ones.
    Role,
}

impl TokenError {
    /// An unknown key id, cut to a length fit to be repeated.
    pub(super) fn unknown_key(kid: &str) -> Self {
        Self::Signer { kid: Some(kid.chars().take(KID_CHARS_SHOWN).collect::<String>().into()) }
    }

    /// The status of the HTTP answer that refuses the upgrade.
    pub const fn status(&self) -> u16 {
        match self {
            Self::Missing
            | Self::Malformed
            | Self::Signature
            | Self::Signer { .. }
            | Self::Expired { .. }
            | Self::FieldsMissing => 401,
            Self::Role => 403,
            Self::Claim { .. } => 500,
        }
    }

    /// The text of that answer's `error`.
    pub fn http_text(&self) -> Cow<'static, str> {
        match self {
            Self::Expired { .. } => "Token has expired".into(),
            Self::Claim { .. } => "Error connecting to Realtime".into(),
            Self::Missing
            | Self::Malformed
            | Self::Signature
            | Self::Signer { .. }
            | Self::FieldsMissing
            | Self::Role => self.message(),
        }
    }

    /// The sentence for a channel that is shut down because of it.
    pub fn message(&self) -> Cow<'static, str> {
        match self {
            Self::Missing => "API key is missing".into(),
            Self::Malformed => "The token provided is not a valid JWT".into(),
            Self::Signature => "Failed to validate JWT signature".into(),
            Self::Signer { kid: None } => {
                "Failed to generate JWT signer, check your JWT secret or \
                                           JWKS configuration"
                    .into()
            }
            Self::Signer { kid: Some(kid) } => format!(
                "Failed to generate JWT signer for key ID (kid) \"{kid}\", check your JWT secret \
                 or JWKS configuration"
            )
            .into(),
            Self::Expired { seconds } => format!("Token has expired {seconds} seconds ago").into(),
            Self::FieldsMissing => "Fields `role` and `exp` are required in JWT".into(),
            Self::Claim { name } if &**name == "exp" => "Token expiration time is invalid".into(),
            Self::Claim { name } => format!("Claim `{name}` is not valid").into(),
            Self::Role => "The role in the token is not allowed".into(),
        }
    }

    /// The stable code that goes before the sentence.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing | Self::Expired { .. } | Self::FieldsMissing | Self::Claim { .. } => {
                "InvalidJWTToken"
            }
            Self::Malformed => "MalformedJWT",
            Self::Signature => "JwtSignatureError",
            Self::Signer { .. } => "JwtSignerError",
            Self::Role => "Unauthorized",
        }
    }

    /// The `reason` of a refused join.
    pub fn reason(&self) -> String {
        format!("{}: {}", self.code(), self.message())
    }
}

impl std::fmt::Display for TokenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for TokenError {}
