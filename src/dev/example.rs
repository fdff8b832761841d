//! What `walcast dev` starts with: a table under Row Level Security, two users, tokens for them.
//!
//! In:     a database walcast is installed in; the directory's JWT secret.
//! Out:    `public.todos`; a token for each role and each user.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;
use tokio_postgres::Client;

use super::Error;

/// The schema; every statement may be repeated.
const TODOS: &str = include_str!("../../sql/examples/todos.sql");
/// Tokens in a development directory outlive the work in it.
const TOKEN_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// The user of the first change.
pub(super) const ALICE: &str = "00000000-0000-4000-8000-00000000000a";
/// A user who must not see what is alice's.
pub(super) const BOB: &str = "00000000-0000-4000-8000-00000000000b";
/// How each start's row is called; the ones before it are deleted.
const GREETING: &str = "hello from walcast dev";

/// One token for each kind of visitor.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) anon: String,
    pub(super) service_role: String,
    pub(super) alice: String,
    pub(super) bob: String,
}

/// Signs tokens (HS256), valid for ten years.
pub(super) struct Signer<'a> {
    secret: &'a str,
    iat: u64,
}

/// Who somebody is: an id, by the claim that names it, and an address.
#[derive(Debug, Clone, Copy)]
pub(super) enum User<'a> {
    /// As in Supabase.
    Sub(&'a str, &'a str),
    /// As in applications with an issuer of their own.
    UserId(&'a str, &'a str),
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    role: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    #[serde(rename = "userId", skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
    iat: u64,
    exp: u64,
}

impl<'a> Signer<'a> {
    /// From `now` on.
    pub(super) fn new(secret: &'a str, now: SystemTime) -> Self {
        Self { secret, iat: now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() }
    }

    pub(super) fn token(&self, role: &str, user: Option<User<'_>>) -> Result<String, Error> {
        let (sub, user_id, email) = match user {
            Some(User::Sub(id, email)) => (Some(id), None, Some(email)),
            Some(User::UserId(id, email)) => (None, Some(id), Some(email)),
            None => (None, None, None),
        };
        let exp = self.iat.saturating_add(TOKEN_LIFETIME.as_secs());
        let claims = Claims { iss: "walcast-dev", role, sub, user_id, email, iat: self.iat, exp };
        let key = EncodingKey::from_secret(self.secret.as_bytes());
        jsonwebtoken::encode(&Header::default(), &claims, &key).map_err(Error::Token)
    }
}

impl Tokens {
    pub(super) fn mint(signer: &Signer<'_>) -> Result<Self, Error> {
        Ok(Self {
            anon: signer.token("anon", None)?,
            service_role: signer.token("service_role", None)?,
            alice: signer.token("authenticated", Some(User::Sub(ALICE, "alice@example.com")))?,
            bob: signer.token("authenticated", Some(User::Sub(BOB, "bob@example.com")))?,
        })
    }
}

/// Makes the table where it is missing, and forgets the greetings of earlier starts.
pub(super) async fn create(client: &Client) -> Result<(), Error> {
    client.batch_execute(TODOS).await.map_err(Error::Example)?;
    let forget = "delete from public.todos where title = $1";
    client.execute(forget, &[&GREETING]).await.map_err(Error::Example)?;
    Ok(())
}

/// Adds a row of alice's.
pub(super) async fn greet(client: &Client) -> Result<(), Error> {
    let add = "insert into public.todos (owner, title) values ($1::text::uuid, $2)";
    client.execute(add, &[&ALICE, &GREETING]).await.map_err(Error::Example)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};
    use serde_json::Value;

    use super::*;

    #[test]
    fn tokens_verify_with_the_secret_and_name_role_and_user() {
        let secret = "a secret of the development server";
        let signer = Signer::new(secret, SystemTime::now());
        let tokens = Tokens::mint(&signer).unwrap();
        let claims = |token: &str| {
            let key = DecodingKey::from_secret(secret.as_bytes());
            jsonwebtoken::decode::<Value>(token, &key, &Validation::new(Algorithm::HS256))
                .unwrap()
                .claims
        };
        assert_eq!(claims(&tokens.anon)["role"], "anon");
        assert_eq!(claims(&tokens.anon).get("sub"), None);
        assert_eq!(claims(&tokens.service_role)["role"], "service_role");
        assert_eq!(claims(&tokens.alice)["role"], "authenticated");
        assert_eq!(claims(&tokens.alice)["sub"], ALICE);
        assert_eq!(claims(&tokens.bob)["sub"], BOB);
        let other =
            claims(&signer.token("authenticated", Some(User::UserId("u1", "u@x"))).unwrap());
        assert_eq!((&other["userId"], other.get("sub")), (&Value::from("u1"), None));
    }
}
