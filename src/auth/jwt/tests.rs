//! Tokens made here with every algorithm, and by OpenSSL (`tests/data/jwt`).

use std::sync::LazyLock;

use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::Secret;

const SECRET: &str = "a-shared-secret-that-is-long-enough";
const JWKS: &str = include_str!("../../../tests/data/jwt/jwks.json");
const TOKENS: &str = include_str!("../../../tests/data/jwt/tokens.json");
const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn settings(secret: &str, jwks: &str) -> config::Jwt {
    config::Jwt { secret: Secret::new(secret), jwks: jwks.into(), ..config::Jwt::default() }
}

fn roles() -> Vec<String> {
    ["anon", "authenticated", "service_role"].map(String::from).to_vec()
}

fn verifier() -> Verifier {
    Verifier::new(&settings(SECRET, JWKS), &roles()).unwrap()
}

fn key(kid: &str) -> (Algorithm, EncodingKey) {
    let der: &[u8] = match kid {
        "rsa" => include_bytes!("../../../tests/data/jwt/rsa.der"),
        "p256" => include_bytes!("../../../tests/data/jwt/p256.der"),
        "p384" => include_bytes!("../../../tests/data/jwt/p384.der"),
        "ed25519" => include_bytes!("../../../tests/data/jwt/ed25519.der"),
        _ => SECRET.as_bytes(),
    };
    match kid {
        "rsa" => (Algorithm::RS256, EncodingKey::from_rsa_der(der)),
        "p256" => (Algorithm::ES256, EncodingKey::from_ec_der(der)),
        "p384" => (Algorithm::ES384, EncodingKey::from_ec_der(der)),
        "ed25519" => (Algorithm::EdDSA, EncodingKey::from_ed_der(der)),
        _ => (Algorithm::HS256, EncodingKey::from_secret(der)),
    }
}

fn encode(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// A token over exactly these texts, signed by the key called `kid`.
fn signed(kid: &str, algorithm: Algorithm, header: &str, payload: &str) -> String {
    let message = format!("{}.{}", encode(header), encode(payload));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key(kid).1, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn hs256(payload: &str) -> String {
    signed("", Algorithm::HS256, r#"{"alg":"HS256","typ":"JWT"}"#, payload)
}

fn payload() -> String {
    json!({ "role": "anon", "exp": NOW + 60, "sub": "u1" }).to_string()
}

fn verify(token: &str) -> Result<Claims, TokenError> {
    static VERIFIER: LazyLock<Verifier> = LazyLock::new(verifier);
    VERIFIER.verify(token, at(NOW))
}

fn claim(name: &str) -> TokenError {
    TokenError::Claim { name: name.into() }
}

#[test]
fn a_good_token_gives_its_claims_verbatim() {
    let payload = format!(r#"{{"exp": {}, "role":"anon" ,"sub":"u1","n":1.50}}"#, NOW + 60);
    let claims = verify(&hs256(&payload)).unwrap();
    assert_eq!(&*claims.role, "anon");
    assert_eq!(claims.subject.as_deref(), Some("u1"));
    assert_eq!(&*claims.json, payload);
    assert_eq!(claims.expires_at, at(NOW + 60));
}

#[test]
fn the_subject_may_be_missing_or_odd() {
    for sub in ["", r#","sub":null"#, r#","sub":7"#] {
        let payload = format!(r#"{{"role":"anon","exp":{}{sub}}}"#, NOW + 1);
        assert_eq!(verify(&hs256(&payload)).unwrap().subject, None, "{sub}");
    }
}

#[test]
fn every_refusal_has_the_documented_texts() {
    let check = |error: TokenError, status: u16, http: &str, reason: &str, message: &str| {
        assert_eq!(
            (error.status(), &*error.http_text(), &*error.reason(), &*error.message()),
            (status, http, reason, message)
        );
    };
    check(
        TokenError::Missing,
        401,
        "API key is missing",
        "InvalidJWTToken: API key is missing",
        "API key is missing",
    );
    check(
        verify(&hs256(&format!(r#"{{"role":"anon","exp":{}}}"#, NOW - 7))).unwrap_err(),
        401,
        "Token has expired",
        "InvalidJWTToken: Token has expired 7 seconds ago",
        "Token has expired 7 seconds ago",
    );
    check(
        verify(&hs256("{}")).unwrap_err(),
        401,
        "Fields `role` and `exp` are required in JWT",
        "InvalidJWTToken: Fields `role` and `exp` are required in JWT",
        "Fields `role` and `exp` are required in JWT",
    );
    check(
        verify("not a token").unwrap_err(),
        401,
        "The token provided is not a valid JWT",
        "MalformedJWT: The token provided is not a valid JWT",
        "The token provided is not a valid JWT",
    );
    let mut forged = hs256(&payload());
    forged.truncate(forged.rfind('.').unwrap() + 1);
    forged.push_str(&encode([0; 32]));
    check(
        verify(&forged).unwrap_err(),
        401,
        "Failed to validate JWT signature",
        "JwtSignatureError: Failed to validate JWT signature",
        "Failed to validate JWT signature",
    );
    let signer = "Failed to generate JWT signer, check your JWT secret or JWKS configuration";
    check(
        verify(&signed("rsa", Algorithm::RS256, r#"{"alg":"RS256"}"#, &payload())).unwrap_err(),
        401,
        signer,
        &format!("JwtSignerError: {signer}"),
        signer,
    );
    let unknown = "Failed to generate JWT signer for key ID (kid) \"k9\", check your JWT secret or \
                   JWKS configuration";
    let header = r#"{"alg":"RS256","kid":"k9"}"#;
    check(
        verify(&signed("rsa", Algorithm::RS256, header, &payload())).unwrap_err(),
        401,
        unknown,
        &format!("JwtSignerError: {unknown}"),
        unknown,
    );
    check(
        verify(&hs256(r#"{"role":"anon","exp":"later"}"#)).unwrap_err(),
        500,
        "Error connecting to Realtime",
        "InvalidJWTToken: Token expiration time is invalid",
        "Token expiration time is invalid",
    );
    check(
        verify(&hs256(&format!(r#"{{"role":"postgres","exp":{}}}"#, NOW + 1))).unwrap_err(),
        403,
        "The role in the token is not allowed",
        "Unauthorized: The role in the token is not allowed",
        "The role in the token is not allowed",
    );
}

#[test]
fn percent_codes_and_white_space_are_undone() {
    let token = hs256(&payload());
    let (first, second) = token.split_at(20);
    for disguised in [
        format!("{first}\n{second}"),
        format!(" {first} {second}\r\n"),
        format!("{first}%20%0A{second}"),
        token.replace('.', "%2E"),
        token.replace('e', "%65"),
    ] {
        assert!(verify(&disguised).is_ok(), "{disguised}");
    }
    assert_eq!(verify(&format!("{first}%FF{second}")), Err(TokenError::Malformed));
    assert_eq!(verify(&format!("{first}%zz{second}")), Err(TokenError::Malformed));
}

#[test]
fn tokens_that_openssl_signed_verify() {
    let tokens: BTreeMap<String, String> = serde_json::from_str(TOKENS).unwrap();
    for (algorithm, token) in &tokens {
        let answer = verify(token);
        if algorithm == "PS256" {
            assert_eq!(answer, Err(TokenError::Signer { kid: None }));
            continue;
        }
        let claims = answer.unwrap_or_else(|error| panic!("{algorithm}: {error}"));
        assert_eq!(&*claims.role, "authenticated", "{algorithm}");
    }
    assert_eq!(tokens.len(), 9);
}

#[test]
fn a_changed_payload_or_signature_is_refused_for_every_algorithm() {
    let tokens: BTreeMap<String, String> = serde_json::from_str(TOKENS).unwrap();
    for (algorithm, token) in tokens.iter().filter(|(algorithm, _)| *algorithm != "PS256") {
        let parts: Vec<&str> = token.split('.').collect();
        let payload = json!({ "role": "service_role", "exp": NOW + 60 }).to_string();
        let promoted = format!("{}.{}.{}", parts[0], encode(payload), parts[2]);
        assert_eq!(verify(&promoted), Err(TokenError::Signature), "{algorithm}");
        let mut signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        signature[9] ^= 1;
        let flipped = format!("{}.{}.{}", parts[0], parts[1], encode(&signature));
        assert_eq!(verify(&flipped), Err(TokenError::Signature), "{algorithm}");
        for length in [0, 1, signature.len() - 1] {
            let cut = format!("{}.{}.{}", parts[0], parts[1], encode(&signature[..length]));
            assert_eq!(verify(&cut), Err(TokenError::Signature), "{algorithm} {length}");
        }
    }
}

#[test]
fn an_hs_token_with_an_unknown_key_id_uses_the_shared_secret() {
    for header in [
        r#"{"alg":"HS256","kid":"from the auth server"}"#,
        r#"{"alg":"HS256","kid":"rsa"}"#,
        r#"{"alg":"HS256","kid":7}"#,
        r#"{"alg":"HS256","kid":null}"#,
    ] {
        assert!(verify(&signed("", Algorithm::HS256, header, &payload())).is_ok(), "{header}");
    }
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        let header = format!(r#"{{"alg":"{algorithm:?}"}}"#);
        assert!(verify(&signed("", algorithm, &header, &payload())).is_ok(), "{header}");
    }
}

#[test]
fn a_key_id_in_the_set_takes_its_own_secret() {
    let header = r#"{"alg":"HS256","kid":"oct"}"#;
    let token = signed("", Algorithm::HS256, header, &payload());
    assert_eq!(verify(&token), Err(TokenError::Signature));
}

#[test]
fn without_a_shared_secret_hs_tokens_have_no_signer() {
    let verifier = Verifier::new(&settings("", JWKS), &roles()).unwrap();
    let answer = verifier.verify(&hs256(&payload()), at(NOW));
    assert_eq!(answer, Err(TokenError::Signer { kid: None }));
}

#[test]
fn unsupported_algorithms_have_no_signer() {
    for algorithm in [
        "none", "None", "NONE", "", "hs256", "HS1", "PS256", "PS384", "PS512", "ES512", "ES256K",
        "Ed448", "dir", "RSA-OAEP", "HS256 ",
    ] {
        let header = json!({ "alg": algorithm, "kid": "rsa" }).to_string();
        for signature in ["", "AAAA"] {
            let token = format!("{}.{}.{signature}", encode(&header), encode(payload()));
            assert_eq!(verify(&token), Err(TokenError::Signer { kid: None }), "{algorithm}");
        }
    }
    for header in ["{}", r#"{"alg":null}"#, r#"{"alg":["HS256"]}"#, r#"{"typ":"JWT"}"#] {
        let token = format!("{}.{}.AAAA", encode(header), encode(payload()));
        assert_eq!(verify(&token), Err(TokenError::Signer { kid: None }), "{header}");
    }
}

#[test]
fn a_public_key_is_never_a_secret() {
    let set: Value = serde_json::from_str(JWKS).unwrap();
    for (number, name) in ["n", "x", "x", "x"].into_iter().enumerate() {
        let text = set["keys"][number][name].as_str().unwrap();
        for secret in [text.as_bytes().to_vec(), URL_SAFE_NO_PAD.decode(text).unwrap()] {
            let kid = set["keys"][number]["kid"].as_str().unwrap();
            let header = json!({ "alg": "HS256", "kid": kid }).to_string();
            let message = format!("{}.{}", encode(header), encode(payload()));
            let forged = EncodingKey::from_secret(&secret);
            let signature =
                jsonwebtoken::crypto::sign(message.as_bytes(), &forged, Algorithm::HS256).unwrap();
            assert_eq!(verify(&format!("{message}.{signature}")), Err(TokenError::Signature));
        }
    }
}

#[test]
fn a_key_verifies_only_its_own_kind() {
    for (alg, kid, by) in [
        ("RS256", "p256", "rsa"),
        ("RS256", "oct", "rsa"),
        ("ES256", "rsa", "p256"),
        ("ES256", "p384", "p256"),
        ("ES384", "p256", "p384"),
        ("EdDSA", "p256", "ed25519"),
    ] {
        let header = json!({ "alg": alg, "kid": kid }).to_string();
        let token = signed(by, key(by).0, &header, &payload());
        assert_eq!(verify(&token), Err(TokenError::unknown_key(kid)), "{alg} {kid}");
    }
    // The key is of the right kind but another one of the set's owner's choice.
    let jwks = JWKS.replace(r#""use": "sig""#, r#""alg": "RS512""#);
    let verifier = Verifier::new(&settings("", &jwks), &roles()).unwrap();
    let token = |alg: &str, algorithm| {
        let header = json!({ "alg": alg, "kid": "rsa" }).to_string();
        verifier.verify(&signed("rsa", algorithm, &header, &payload()), at(NOW))
    };
    assert!(token("RS512", Algorithm::RS512).is_ok());
    assert_eq!(token("RS256", Algorithm::RS256), Err(TokenError::unknown_key("rsa")));
}

#[test]
fn a_long_key_id_is_repeated_only_in_part() {
    let header = json!({ "alg": "RS256", "kid": "é".repeat(10_000) }).to_string();
    let token = format!("{}.{}.AAAA", encode(header), encode(payload()));
    assert!(verify(&token).unwrap_err().reason().len() < 500);
}

#[test]
fn expiry_has_no_leeway_and_decimals_are_rounded() {
    let check = |exp: &str, expected: Result<u64, TokenError>| {
        let answer = verify(&hs256(&format!(r#"{{"role":"anon","exp":{exp}}}"#)));
        assert_eq!(answer.map(|claims| claims.expires_at), expected.map(at), "{exp}");
    };
    let expired = |seconds| Err(TokenError::Expired { seconds });
    check("1800000001", Ok(NOW + 1));
    check("1800000000", expired(0));
    check("1799999999", expired(1));
    check("1800000000.4", expired(0));
    check("1800000000.5", Ok(NOW + 1));
    check("1.9e9", Ok(1_900_000_000));
    check("1e300", Ok(EXPIRY_MAX));
    check("18446744073709551615", Ok(EXPIRY_MAX));
    check("0", expired(NOW));
    check("-1", expired(NOW + 1));
    check("-1e300", expired(u64::try_from(i64::MAX).unwrap()));
    check("1e400", Err(TokenError::Malformed));
    for exp in ["null", "\"1900000000\"", "true", "[1900000000]", "{}"] {
        check(exp, Err(claim("exp")));
    }
}

#[test]
fn a_fraction_of_a_second_before_expiry_is_still_valid() {
    let token = hs256(&format!(r#"{{"role":"anon","exp":{NOW}}}"#));
    let verifier = verifier();
    assert!(verifier.verify(&token, at(NOW) - Duration::from_millis(1)).is_ok());
    assert!(verifier.verify(&token, at(NOW)).is_err());
    assert!(verifier.verify(&token, UNIX_EPOCH - Duration::from_secs(9)).is_ok());
}

#[test]
fn issue_time_must_be_a_number_of_any_value() {
    let check = |iat: &str| {
        verify(&hs256(&format!(r#"{{"role":"anon","exp":{},"iat":{iat}}}"#, NOW + 1))).map(|_| ())
    };
    for iat in ["0", "-5", "1.5", "1e30", "1900000000"] {
        assert_eq!(check(iat), Ok(()), "{iat}");
    }
    for iat in ["null", "\"0\"", "[]", "false"] {
        assert_eq!(check(iat), Err(claim("iat")), "{iat}");
    }
}

#[test]
fn unconfigured_claims_are_not_looked_at() {
    let payload = format!(r#"{{"role":"anon","exp":{},"nbf":"x","aud":[1],"iss":null}}"#, NOW + 1);
    assert!(verify(&hs256(&payload)).is_ok());
}

#[test]
fn role_and_expiry_must_both_be_there() {
    for payload in [r#"{"role":"anon"}"#, r#"{"exp":1900000000}"#, r#"{"sub":"x"}"#] {
        assert_eq!(verify(&hs256(payload)), Err(TokenError::FieldsMissing), "{payload}");
    }
    let expired = verify(&hs256(r#"{"exp":1}"#));
    assert_eq!(expired, Err(TokenError::Expired { seconds: NOW - 1 }));
}

#[test]
fn a_role_outside_the_list_is_refused() {
    for role in [
        r#""postgres""#,
        r#""""#,
        r#""Anon""#,
        r#""anon ""#,
        r#""\"anon\"""#,
        r#""anon\u0000""#,
        "null",
        "1",
        "true",
        r#"["anon"]"#,
        r#"{"0":"anon"}"#,
    ] {
        let payload = format!(r#"{{"role":{role},"exp":{}}}"#, NOW + 1);
        assert_eq!(verify(&hs256(&payload)), Err(TokenError::Role), "{role}");
    }
}

#[test]
fn an_api_key_stands_for_its_role_for_ever() {
    const KEY: &str = "sb_publishable_0123456789abcdefghij";
    let with = |keys: &serde_json::Value| {
        let api_keys = Secret::new(keys.to_string());
        Verifier::new(&config::Jwt { api_keys, ..settings(SECRET, "") }, &roles())
    };
    let verifier = with(&json!({ KEY: "anon" })).unwrap();
    let claims = verifier.verify(KEY, at(NOW)).unwrap();
    assert_eq!((&*claims.role, claims.subject.as_deref()), ("anon", None));
    assert_eq!(*claims.json, *r#"{"role":"anon","exp":253402300799}"#);
    assert_eq!(claims.expires_at, at(EXPIRY_MAX));
    for other in ["sb_", "sb_publishable_0123456789abcdefghi", &format!("{KEY}x")] {
        assert_eq!(verifier.verify(other, at(NOW)), Err(TokenError::Malformed), "{other}");
    }
    assert!(verifier.verify(&hs256(&payload()), at(NOW)).is_ok(), "tokens work as before");

    for (keys, problem) in [
        (json!([KEY]), "must be a JSON object of keys and the role of each"),
        (json!({ KEY: 1 }), "must be a JSON object of keys and the role of each"),
        (json!({ KEY: "postgres" }), "postgres is not one of database.roles"),
        (json!({ "sb_short": "anon" }), "each key must begin with sb_ and have at least 32 bytes"),
        (
            json!({ "no_prefix_0123456789abcdefghijklm": "anon" }),
            "each key must begin with sb_ and have at least 32 bytes",
        ),
    ] {
        let error = with(&keys).unwrap_err().to_string();
        assert_eq!(error, format!("setting jwt.api_keys: {problem}"));
    }
    assert!(!format!("{verifier:?}").contains("0123456789"));
}

#[test]
fn required_claims_must_have_exactly_their_values() {
    let mut settings = settings(SECRET, "");
    settings.required_claims.insert("iss".into(), json!("walcast"));
    settings.required_claims.insert("aud".into(), json!(["a"]));
    let verifier = Verifier::new(&settings, &roles()).unwrap();
    let check = |more: &str| {
        let token = hs256(&format!(r#"{{"role":"anon","exp":{}{more}}}"#, NOW + 1));
        verifier.verify(&token, at(NOW)).map(|_| ())
    };
    assert_eq!(check(r#","iss":"walcast","aud":["a"]"#), Ok(()));
    assert_eq!(check(r#","iss":"walcast""#), Err(claim("aud")));
    assert_eq!(check(r#","iss":"walcast","aud":"a""#), Err(claim("aud")));
    assert_eq!(check(r#","iss":"Walcast","aud":["a"]"#), Err(claim("iss")));
    assert_eq!(check(r#","iss":null,"aud":["a"]"#), Err(claim("iss")));
}

#[test]
fn what_is_no_token_is_malformed() {
    let good = hs256(&payload());
    let parts: Vec<&str> = good.split('.').collect();
    let (header, body, signature) = (parts[0], parts[1], parts[2]);
    for token in [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        "sb_publishable_abc".into(),
        format!("{header}.{body}"),
        format!("{good}."),
        format!("{good}.{signature}"),
        format!(".{body}.{signature}"),
        format!("{header}..{signature}"),
        format!("{header}.{body}.{signature}="),
        format!("{header}.{body}.+/"),
        format!("Bearer {good}"),
        format!("{}.{body}.{signature}", encode("[]")),
        format!("{}.{body}.{signature}", encode("\u{feff}{}")),
        format!("{}.{body}.{signature}", encode(r#"{"alg":"HS256","alg":"none"}"#)),
        format!("{}.{body}.{signature}", encode(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#)),
        hs256("null"),
        hs256("[1]"),
        hs256("\"x\""),
        hs256(""),
        hs256(&payload().replace('}', "")),
        hs256(&(payload() + "x")),
        hs256(r#"{"role":"anon","exp":1900000000,"role":"service_role"}"#),
        hs256(r#"{"role":"anon","exp":1900000000,"rol\u0065":"service_role"}"#),
        hs256(r#"{"role":"anon","exp":1900000000,"x":"\ud800"}"#),
        format!("{header}.{}.{signature}", encode([0xff, 0xfe])),
        hs256(&format!(
            r#"{{"role":"anon","exp":1900000000,"x":{}1{}}}"#,
            "[".repeat(200),
            "]".repeat(200)
        )),
    ] {
        assert_eq!(verify(&token), Err(TokenError::Malformed), "{token}");
    }
}

#[test]
fn tokens_of_16_kib_and_more_work_up_to_the_bound() {
    let with = |bytes: usize| {
        let filler = "x".repeat(bytes);
        hs256(&format!(r#"{{"role":"anon","exp":{},"app_metadata":"{filler}"}}"#, NOW + 1))
    };
    assert!(with(16 * 1024).len() > 16 * 1024);
    assert!(verify(&with(16 * 1024)).is_ok());
    assert!(verify(&with(40 * 1024)).is_ok());
    assert!(with(TOKEN_BYTES_MAX).len() > TOKEN_BYTES_MAX);
    assert_eq!(verify(&with(TOKEN_BYTES_MAX)), Err(TokenError::Malformed));
}

/// The secret and token of RFC 7515, appendix A.1: right signature, and no role.
#[test]
fn the_token_of_the_standard_verifies() {
    let key =
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODA\
                 sDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_w\
                 W1gFWFOEjXk";
    let jwks = json!({ "keys": [{ "kty": "oct", "kid": "a1", "k": key }] }).to_string();
    let named = Verifier::new(&settings("", &jwks), &roles()).unwrap();
    let answer = named.verify(token, at(1_300_819_379));
    assert_eq!(answer, Err(TokenError::Signer { kid: None }), "it names no key");
    // The same bytes as the shared secret cannot be text, so the key is tried directly.
    let key = jsonwebtoken::DecodingKey::from_secret(&URL_SAFE_NO_PAD.decode(key).unwrap());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let right = jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key, Algorithm::HS256);
    assert!(right.unwrap());
}

#[test]
fn weak_and_broken_keys_are_found_at_start() {
    let set: Value = serde_json::from_str(JWKS).unwrap();
    let with = |number: usize, name: &str, value: Value| {
        let mut set = set.clone();
        set["keys"][number][name] = value;
        set.to_string()
    };
    let short = encode([9; 31]);
    let even = encode([2]);
    let cases = [
        (String::new(), String::new()),
        (" ".repeat(31), String::new()),
        ("x".repeat(31), String::new()),
        ("-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYI".into(), String::new()),
        (JWKS.into(), String::new()),
        (SECRET.into(), "/nonexistent/jwks.json".into()),
        (SECRET.into(), "http://example.com/jwks.json".into()),
        (SECRET.into(), "ftp://example.com/jwks.json".into()),
        (SECRET.into(), "[]".into()),
        (SECRET.into(), "{}".into()),
        (SECRET.into(), r#"{"keys":{}}"#.into()),
        (SECRET.into(), r#"{"keys":[7]}"#.into()),
        (SECRET.into(), r#"{"keys":[["EC"]]}"#.into()),
        (SECRET.into(), r#"{"keys":[{}]}"#.into()),
        (SECRET.into(), r#"{"keys":["#.into()),
        (SECRET.into(), with(0, "n", json!(encode([255; 255])))),
        (SECRET.into(), with(0, "n", json!(encode([255; 513])))),
        (SECRET.into(), with(0, "n", json!("!"))),
        (SECRET.into(), with(0, "n", json!(null))),
        (SECRET.into(), with(0, "e", json!(even))),
        (SECRET.into(), with(0, "alg", json!("ES256"))),
        (SECRET.into(), with(1, "x", json!(short))),
        (SECRET.into(), with(1, "x", json!(encode([7; 32])))),
        (SECRET.into(), with(1, "crv", json!("P-384"))),
        (SECRET.into(), with(3, "x", json!(short))),
        (SECRET.into(), with(3, "x", json!(encode([7; 33])))),
        (SECRET.into(), with(4, "k", json!(short))),
        (String::new(), r#"{"keys":[]}"#.into()),
    ];
    for (secret, jwks) in cases {
        let error = Verifier::new(&settings(&secret, &jwks), &roles())
            .map(|_| ())
            .expect_err(&format!("{secret:?} {jwks}"));
        let text = format!("{error} {error:?}");
        assert!(secret.trim().is_empty() || !text.contains(&secret), "{text}");
        assert!(text.contains("jwt.") || text.contains("/nonexistent"), "{text}");
    }
}

#[test]
fn keys_of_other_kinds_in_the_set_are_left_out() {
    let mut set: Value = serde_json::from_str(JWKS).unwrap();
    for more in [
        json!({ "kty": "EC", "kid": "a", "crv": "P-521", "x": "AA", "y": "AA" }),
        json!({ "kty": "OKP", "kid": "b", "crv": "Ed448", "x": "AA" }),
        json!({ "kty": "OKP", "kid": "c", "crv": "X25519", "x": "AA" }),
        json!({ "kty": "RSA", "kid": "d", "use": "enc" }),
        json!({ "kty": "RSA", "kid": "e", "alg": "RSA-OAEP" }),
        json!({ "kty": "RSA", "n": "!" }),
        json!({ "kty": "new", "kid": "f", "q": [1] }),
    ] {
        set["keys"].as_array_mut().unwrap().insert(0, more);
    }
    let verifier = Verifier::new(&settings(SECRET, &set.to_string()), &roles()).unwrap();
    let tokens: BTreeMap<String, String> = serde_json::from_str(TOKENS).unwrap();
    assert!(verifier.verify(&tokens["ES256"], at(NOW)).is_ok());
}

#[test]
fn the_key_set_may_be_a_file_and_keep_its_private_members() {
    let mut set: Value = serde_json::from_str(JWKS).unwrap();
    set["keys"][1]["d"] = json!("cHJpdmF0ZQ");
    let path = std::env::temp_dir().join(format!("walcast-jwks-{}.json", std::process::id()));
    std::fs::write(&path, set.to_string()).unwrap();
    let verifier = Verifier::new(&settings("", path.to_str().unwrap()), &roles());
    std::fs::remove_file(&path).unwrap();
    let tokens: BTreeMap<String, String> = serde_json::from_str(TOKENS).unwrap();
    assert!(verifier.unwrap().verify(&tokens["ES256"], at(NOW)).is_ok());
}

#[test]
fn nothing_secret_is_printed() {
    let verifier = verifier();
    let fingerprint = Fingerprint::of(SECRET);
    let text = format!("{verifier:?} {fingerprint:?} {:?}", settings(SECRET, ""));
    assert!(!text.contains(SECRET), "{text}");
    assert_eq!(fingerprint, Fingerprint::of(SECRET));
    assert_ne!(fingerprint, Fingerprint::of("another"));
}

/// JSON values near the roles that are allowed, and far from them.
fn near_roles() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,12}",
        prop::sample::select(vec!["anon", "authenticated", "service_role", "postgres"])
            .prop_map(String::from),
        "(anon|ANON|Anon|an on|anon\u{0}|\"anon\"|anon;|ａnon|authenticated,anon)",
    ];
    let leaf = prop_oneof![
        text.prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            inner.prop_map(|value| json!({ "role": value })),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn f81_only_a_listed_role_is_ever_accepted(role in near_roles(), twice in any::<bool>()) {
        let second = if twice { r#""role":"anon","# } else { "" };
        let payload = format!(r#"{{{second}"exp":{},"role":{role}}}"#, NOW + 1);
        let listed = role.as_str().is_some_and(|role| roles().iter().any(|listed| listed == role));
        let answer = verify(&hs256(&payload));
        prop_assert_eq!(answer.is_ok(), listed && !twice, "{} {:?}", payload, answer);
        if let Ok(claims) = answer {
            prop_assert_eq!(Some(&*claims.role), role.as_str());
        }
    }
}

proptest! {
    #[test]
    fn no_text_panics_and_none_verifies(token in "\\PC{0,200}") {
        prop_assert!(verify(&token).is_err());
    }

    #[test]
    fn no_three_parts_panic_and_none_verifies(
        header in prop::sample::select(vec![
            r#"{"alg":"HS256"}"#, r#"{"alg":"RS256","kid":"rsa"}"#, r#"{"alg":"ES256","kid":"p256"}"#,
            r#"{"alg":"EdDSA","kid":"ed25519"}"#, r#"{"alg":"none"}"#,
        ]),
        body in prop::collection::vec(any::<u8>(), 0..64),
        signature in prop::collection::vec(any::<u8>(), 0..300),
        real in any::<bool>(),
    ) {
        let body = if real { payload().into_bytes() } else { body };
        let token = format!("{}.{}.{}", encode(header), encode(body), encode(signature));
        prop_assert!(verify(&token).is_err());
    }

    #[test]
    fn one_changed_byte_never_verifies_to_other_claims(at_byte in 0usize..150, byte in any::<u8>()) {
        let token = hs256(&payload());
        let mut bytes = token.clone().into_bytes();
        let at_byte = at_byte % bytes.len();
        bytes[at_byte] = byte;
        if let Ok(changed) = String::from_utf8(bytes) && let Ok(claims) = verify(&changed) {
            prop_assert_eq!(&*claims.json, payload());
        }
    }
}
