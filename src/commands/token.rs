//! `walcast token`: makes tokens with the configured secret, and says what is wrong with others'.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value};
use walcast::auth::jwt::{TokenError, Verifier};
use walcast::config::Config;
use walcast::telemetry;

#[derive(Args)]
pub(crate) struct Flags {
    /// Postgres role the token stands for.
    #[arg(long, required_unless_present = "check")]
    role: Option<String>,
    /// Subject: the user's id, what `auth.uid()` returns.
    #[arg(long)]
    sub: Option<String>,
    /// Another claim, its value as JSON: --claim 'level=2' --claim 'org="a"'.
    #[arg(long, value_name = "NAME=JSON")]
    claim: Vec<String>,
    /// How long it is valid: 90s, 15m, 1h, 7d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    expires: Duration,
    /// Explain this token instead; - reads it from standard input.
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["role", "sub", "claim", "expires"])]
    check: Option<String>,
}

/// A token of more bytes is not looked at; headers could not carry it either.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;

/// What a token is worth here.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// Whether a subscriber with this token is let in now.
    pub(crate) accepted: bool,
    /// Sentences, in the order of what is checked.
    pub(crate) lines: Vec<String>,
}

pub(crate) fn run(flags: &Flags, config: &Config, now: SystemTime) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let Some(token) = &flags.check else {
        writeln!(out, "{}", mint(flags, config, now)?)?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut text = token.clone();
    if token == "-" {
        text.clear();
        std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
    }
    let explanation = explain(text.trim(), config, now)?;
    for line in &explanation.lines {
        writeln!(out, "{line}")?;
    }
    let verdict = if explanation.accepted { "accepted" } else { "refused" };
    writeln!(out, "{verdict}")?;
    Ok(if explanation.accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn mint(flags: &Flags, config: &Config, now: SystemTime) -> anyhow::Result<String> {
    let secret = &config.jwt.secret;
    ensure!(
        !secret.is_empty(),
        "WALCAST_JWT_SECRET is not set; tokens are made with it (a key set can only verify)"
    );
    let role = flags.role.as_deref().unwrap_or_default();
    ensure!(
        config.database.roles.iter().any(|allowed| allowed == role),
        "role {role} is not one of {}; WALCAST_ROLES lists those a token may name",
        config.database.roles.join(", ")
    );
    let issued = seconds(now);
    let mut claims = Map::new();
    for (name, value) in &config.jwt.required_claims {
        claims.insert(name.clone(), value.clone());
    }
    for claim in &flags.claim {
        let (name, json) = claim.split_once('=').context("a claim is written NAME=JSON")?;
        ensure!(
            !["role", "sub", "iat", "exp"].contains(&name),
            "claim {name} has a flag of its own or is set by itself"
        );
        let value = serde_json::from_str(json)
            .with_context(|| format!("the value of claim {name} is not JSON; text needs quotes"))?;
        claims.insert(name.into(), value);
    }
    claims.insert("role".into(), role.into());
    if let Some(subject) = &flags.sub {
        claims.insert("sub".into(), subject.as_str().into());
    }
    claims.insert("iat".into(), issued.into());
    claims.insert("exp".into(), issued.saturating_add(flags.expires.as_secs()).into());
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
        .context("cannot sign the token")
}

/// Says in words what becomes of a token here: the verdict is the service's own.
///
/// # Errors
/// When the keys in the settings are of no use; a bad token is an explanation, not an error.
pub(crate) fn explain(
    token: &str,
    config: &Config,
    now: SystemTime,
) -> anyhow::Result<Explanation> {
    let verifier = Verifier::new(&config.jwt, &config.database.roles)?;
    let mut lines = Vec::new();
    if let Some(source) = verifier.key_source()
        && let Err(error) = super::runtime()?.block_on(verifier.refresh())
    {
        let error = telemetry::chain(&error);
        lines.push(format!("the key set at {source} is not looked at: {error}"));
    }
    let verdict = verifier.verify(token, now);
    let accepted = verdict.is_ok();
    if token.starts_with("sb_") {
        lines.push(match verdict {
            Ok(claims) => format!("an API key that stands for the role {}", claims.role),
            Err(_) => "an API key that is not in WALCAST_API_KEYS".into(),
        });
        return Ok(Explanation { accepted, lines });
    }
    let mut parts = token.split('.');
    let (header, claims) = (parts.next().and_then(object), parts.next().and_then(object));
    let (Some(header), Some(claims)) = (header, claims) else {
        lines.push(match verdict {
            Ok(claims) => format!("role: {}; the token is percent-encoded or wrapped", claims.role),
            Err(_) => "not a token: it has not three parts, the first two JSON in base64url".into(),
        });
        return Ok(Explanation { accepted, lines });
    };
    let algorithm = header.get("alg").and_then(Value::as_str).unwrap_or("none");
    lines.push(match &verdict {
        Err(TokenError::Missing | TokenError::Malformed) => {
            "not a token: a part is not base64url, or a member is named twice".into()
        }
        Err(TokenError::Signer { kid: None }) => {
            format!("signature: no key here may verify the algorithm {algorithm}")
        }
        Err(TokenError::Signer { kid: Some(_) }) => {
            "signature: its key (kid) is not in the key set (WALCAST_JWKS)".into()
        }
        Err(TokenError::Signature) => {
            "signature: does not verify, it was made with another key or the token was changed"
                .into()
        }
        // Looked at once the signature was right.
        Ok(_)
        | Err(
            TokenError::Expired { .. }
            | TokenError::FieldsMissing
            | TokenError::Claim { .. }
            | TokenError::Role,
        ) => format!("signature: verifies ({algorithm})"),
    });
    for (name, wanted) in &config.jwt.required_claims {
        if claims.get(name) != Some(wanted) {
            lines.push(format!("claim {name}: must be {wanted} here"));
        }
    }
    let roles = &config.database.roles;
    lines.push(match claims.get("role") {
        Some(Value::String(role)) if roles.contains(role) => format!("role: {role}, allowed"),
        Some(Value::String(role)) => {
            format!("role: {role}, which is not one of {}", roles.join(", "))
        }
        Some(_) => "role: is not text".into(),
        None => "role: missing; a token must name one".into(),
    });
    lines.push(match claims.get("sub") {
        Some(Value::String(subject)) => format!("subject: {subject}"),
        Some(_) => "subject: is not text, so auth.uid() may fail".into(),
        None => "subject: none, so auth.uid() is null".into(),
    });
    let now = seconds(now);
    lines.push(match moment(claims.get("exp")) {
        Some(at) if at > now => format!("expires: in {}", span(at - now)),
        Some(at) => format!("expires: it did, {} ago", span(now - at)),
        None => "expires: missing or not a number; a token must expire".into(),
    });
    if let Some(at) = moment(claims.get("nbf")).filter(|at| *at > now) {
        lines.push(format!("valid from: in {}, which is not looked at here", span(at - now)));
    }
    if let Err(error) = verdict {
        lines.push(format!("a client is told: {error}"));
    }
    Ok(Explanation { accepted, lines })
}

fn object(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// A time claim in whole seconds; fractions are cut.
fn moment(claim: Option<&Value>) -> Option<u64> {
    let number = claim?;
    number.as_u64().or_else(|| {
        let text = number.as_f64().filter(|at| at.is_finite() && *at >= 0.0)?;
        format!("{:.0}", text.floor()).parse().ok()
    })
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A span of time a person can read.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn duration(text: &str) -> anyhow::Result<Duration> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(number.len()..).unwrap_or_default() {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => bail!("write it like 90s, 15m, 1h or 7d"),
    };
    let number: u64 = number.parse().context("write it like 90s, 15m, 1h or 7d")?;
    let seconds = number.checked_mul(unit).filter(|seconds| (1..=3_153_600_000).contains(seconds));
    Ok(Duration::from_secs(seconds.context("must be 1 second to 100 years")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use walcast::config::Secret;

    const NOW: u64 = 1_800_000_000;

    fn config() -> Config {
        let mut config = Config::default();
        config.jwt.secret = Secret::new("a-secret-of-thirty-two-bytes-or-more");
        config
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn flags(role: &str, claims: &[&str]) -> Flags {
        Flags {
            role: Some(role.into()),
            sub: Some("alice".into()),
            claim: claims.iter().map(|claim| (*claim).into()).collect(),
            expires: Duration::from_hours(1),
            check: None,
        }
    }

    fn lines(token: &str, config: &Config, now: u64) -> (bool, String) {
        let explanation = explain(token, config, at(now)).unwrap();
        (explanation.accepted, explanation.lines.join("\n"))
    }

    #[test]
    fn a_minted_token_is_accepted_until_it_expires() {
        let mut config = config();
        config.jwt.required_claims.insert("iss".into(), "me".into());
        let token = mint(&flags("authenticated", &["org=\"a\"", "n=2"]), &config, at(NOW)).unwrap();
        let (accepted, text) = lines(&token, &config, NOW + 10);
        assert!(accepted, "{text}");
        assert!(text.contains("role: authenticated, allowed"), "{text}");
        assert!(text.contains("subject: alice"), "{text}");
        assert!(text.contains("expires: in 59 minutes"), "{text}");
        let (accepted, text) = lines(&token, &config, NOW + 3600);
        assert!(!accepted && text.contains("expires: it did, 0 seconds ago"), "{text}");
        let claims = object(token.split('.').nth(1).unwrap()).unwrap();
        assert_eq!(claims["org"], "a");
        assert_eq!(claims["n"], 2);
        assert_eq!(claims["iss"], "me");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let config = config();
        let token = mint(&flags("anon", &[]), &config, at(NOW)).unwrap();
        let mut other = config.clone();
        other.jwt.secret = Secret::new("another-secret-of-thirty-two-bytes-or-more");
        assert!(lines(&token, &other, NOW).1.contains("made with another key"));
        other.database.roles = vec!["web".into()];
        assert!(lines(&token, &other, NOW).1.contains("role: anon, which is not one of web"));
        other.jwt.required_claims.insert("iss".into(), "me".into());
        assert!(lines(&token, &other, NOW).1.contains("claim iss: must be \"me\" here"));
        for bad in ["", "a.b", "a.b.c", "e30.e30.", "..", "sb_publishable_x"] {
            assert!(!lines(bad, &config, NOW).0, "{bad}");
        }
        let key = "sb_secret_0123456789abcdefghijklmnop";
        assert_eq!(lines(key, &config, NOW).1, "an API key that is not in WALCAST_API_KEYS");
        let mut config = config.clone();
        config.jwt.api_keys = Secret::new(format!("{{\"{key}\":\"service_role\"}}"));
        let known = (true, "an API key that stands for the role service_role".into());
        assert_eq!(lines(key, &config, NOW), known);
        let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}"), "e30");
        let (accepted, text) = lines(&unsigned, &config, NOW);
        assert!(!accepted && text.contains("no key here may verify the algorithm none"), "{text}");
        // What the service takes, this takes: a proxy may have wrapped or escaped the token.
        let wrapped = token.replace('.', "%2E");
        assert!(lines(&wrapped, &config, NOW).0, "{wrapped}");
    }

    #[test]
    fn a_changed_token_does_not_verify() {
        let config = config();
        let token = mint(&flags("anon", &[]), &config, at(NOW)).unwrap();
        let mut parts: Vec<&str> = token.split('.').collect();
        let payload = format!("{{\"role\":\"service_role\",\"exp\":{}}}", NOW + 100);
        let payload = URL_SAFE_NO_PAD.encode(payload);
        parts[1] = &payload;
        let (accepted, text) = lines(&parts.join("."), &config, NOW);
        assert!(!accepted && text.contains("does not verify"), "{text}");
    }

    #[test]
    fn claims_with_a_meaning_and_unknown_roles_are_refused() {
        let config = config();
        for claim in ["role=\"x\"", "exp=1", "novalue", "x=text"] {
            assert!(mint(&flags("anon", &[claim]), &config, at(NOW)).is_err(), "{claim}");
        }
        assert!(mint(&flags("postgres", &[]), &config, at(NOW)).is_err());
        assert!(mint(&flags("anon", &[]), &Config::default(), at(NOW)).is_err());
    }

    #[test]
    fn times_are_read() {
        assert_eq!(duration("90s").unwrap().as_secs(), 90);
        assert_eq!(duration("15m").unwrap().as_secs(), 900);
        assert_eq!(duration("7d").unwrap().as_secs(), 604_800);
        for bad in ["", "h", "1y", "-1h", "0s", "99999999999999999999d", "9999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
