//! Declarations as the log carries them, and which of them are in force.
//!
//! In:     transactional messages [`PREFIX`]: `{"mac": "…", "body": "…"}`, the body
//!         `{"id", "relation", "declaration"}` (null: no events from here on).
//! Out:    [`Rules`], as of a place in the log; cheap to keep for every place.
//! Never:  a declaration that is not signed: whoever may connect may write such a message, and
//!         only the trigger of `walcast.mappings`, behind its policy, knows the key.
//! Source: `sql/functions/walcast.announce_mapping.sql`

use std::fmt::Write as _;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::declaration::{Declaration, DeclarationError};

/// Of the message.
pub const PREFIX: &str = "walcast.mapping";

/// Bytes of a message that is looked at.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// What declarations are signed with.
#[derive(Clone)]
pub struct Key(Arc<str>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(***)")
    }
}

impl Key {
    /// As `walcast.mappings_at` tells it.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The signature of a body.
    fn sign(&self, body: &str) -> String {
        let inner = Sha256::new().chain_update(&*self.0).chain_update(body).finalize();
        let outer = Sha256::new().chain_update(&*self.0).chain_update(inner).finalize();
        let mut hex = String::with_capacity(64);
        for byte in outer {
            write!(hex, "{byte:02x}").expect("memory takes every write");
        }
        hex
    }
}

/// Why a message changes nothing.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// It is too long, or no JSON of ours.
    #[error("it is no announcement")]
    Malformed,
    /// Somebody wrote it by hand, or there is no key.
    #[error("it is not signed with the key of this database")]
    Unsigned,
    /// What it declares for this table is not understood: the table says nothing from here on.
    #[error("the declaration of relation {0} is not understood")]
    Declaration(u32, #[source] DeclarationError),
}

#[derive(Deserialize)]
struct Message {
    mac: String,
    body: String,
}

#[derive(Deserialize)]
struct Body<'a> {
    id: i64,
    relation: u32,
    #[serde(borrow)]
    declaration: Option<&'a RawValue>,
}

/// The table that a message is about, and what is in force from there on.
///
/// # Errors
/// Why nothing changes, or why the table has no events any more.
pub fn verified(
    content: &[u8],
    key: Option<&Key>,
) -> Result<(u32, Option<Declaration>), AnnounceError> {
    if content.len() > MESSAGE_BYTES_MAX {
        return Err(AnnounceError::Malformed);
    }
    let message = serde_json::from_slice(content);
    let Message { mac, body } = message.map_err(|_| AnnounceError::Malformed)?;
    // How long the comparison takes tells nobody anything: who writes is not who reads.
    if key.is_none_or(|key| key.sign(&body) != mac) {
        return Err(AnnounceError::Unsigned);
    }
    let Body { id, relation, declaration } =
        serde_json::from_str(&body).map_err(|_| AnnounceError::Malformed)?;
    let parse = |json: &RawValue| Declaration::parse(id, relation, json.get());
    let declaration = declaration.map(parse).transpose();
    let failed = |error| AnnounceError::Declaration(relation, error);
    Ok((relation, declaration.map_err(failed)?))
}

/// What is in force at a place in the log.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    key: Option<Key>,
    by_relation: Arc<HashMap<u32, Arc<Declaration>>>,
}

impl Rules {
    /// With these in force.
    pub fn new(key: Option<Key>, declarations: impl IntoIterator<Item = Declaration>) -> Self {
        let declarations = declarations.into_iter();
        let by_relation =
            declarations.map(|declaration| (declaration.relation, Arc::new(declaration)));
        Self { key, by_relation: Arc::new(by_relation.collect()) }
    }

    /// What a table's changes mean.
    pub fn of(&self, relation: u32) -> Option<&Arc<Declaration>> {
        self.by_relation.get(&relation)
    }

    /// Whether these are the same, without a look at them.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.by_relation, &other.by_relation)
    }

    /// Whether one of them is told in private rooms of this topic.
    pub fn tell(&self, topic: &str) -> bool {
        let mut rules = self.by_relation.values().flat_map(|declaration| &declaration.rules);
        rules.any(|rule| {
            !rule.public && rule.topics.iter().any(|template| template.values(topic).is_some())
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_relation.is_empty()
    }

    /// Takes what a message of the log declares; for which table.
    ///
    /// # Errors
    /// Why it is not taken. A table whose declaration is signed and not understood has none.
    pub fn announce(&mut self, content: &[u8]) -> Result<u32, AnnounceError> {
        match verified(content, self.key.as_ref()) {
            Ok((relation, declaration)) => {
                let by_relation = Arc::make_mut(&mut self.by_relation);
                match declaration {
                    Some(declaration) => by_relation.insert(relation, Arc::new(declaration)),
                    None => by_relation.remove(&relation),
                };
                Ok(relation)
            }
            Err(error) => {
                if let AnnounceError::Declaration(relation, _) = &error {
                    Arc::make_mut(&mut self.by_relation).remove(relation);
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "0123456789abcdef";

    fn message(body: &str, key: &str) -> Vec<u8> {
        json!({ "mac": Key::new(key).sign(body), "body": body }).to_string().into()
    }

    fn body(relation: u32, event: &str) -> String {
        let rule = json!({ "event": event, "on": ["insert"], "payload": {} });
        let declaration = json!({ "topics": ["t"], "rules": [rule] });
        json!({ "id": 1, "relation": relation, "declaration": declaration }).to_string()
    }

    #[test]
    fn only_what_is_signed_is_in_force() {
        let mut rules = Rules::new(Some(Key::new(KEY)), []);
        let forged = message(&body(10, "e"), "another key");
        assert!(matches!(rules.announce(&forged), Err(AnnounceError::Unsigned)));
        assert!(rules.is_empty());
        rules.announce(&message(&body(10, "e"), KEY)).unwrap();
        assert_eq!(&*rules.of(10).unwrap().rules[0].event, "e");
        let before = rules.clone();
        rules.announce(&message(r#"{"id":2,"relation":10,"declaration":null}"#, KEY)).unwrap();
        assert!(rules.is_empty() && before.of(10).is_some(), "each place has its own");
        let mut without = Rules::default();
        let refused = without.announce(&message(&body(10, "e"), KEY));
        assert!(matches!(refused, Err(AnnounceError::Unsigned)));
    }

    #[test]
    fn a_body_is_signed_as_postgres_signs_it() {
        // select encode(sha256('k' || sha256('kbody')), 'hex')
        let expected = "fd565cbfdc348291c1542e58e4f0fc4039cb4ace3f839a4a73f57f6385f4efd0";
        assert_eq!(Key::new("k").sign("body"), expected);
    }

    #[test]
    fn what_is_not_understood_takes_what_was_there_out_of_force() {
        let mut rules = Rules::new(Some(Key::new(KEY)), []);
        rules.announce(&message(&body(10, "e"), KEY)).unwrap();
        let refused = rules.announce(&message(&body(10, "connect"), KEY));
        assert!(matches!(refused, Err(AnnounceError::Declaration(10, _))), "{refused:?}");
        assert!(rules.is_empty());
        for content in ["", "{}", "null", r#"{"mac":"","body":""}"#] {
            assert!(rules.announce(content.as_bytes()).is_err(), "{content}");
        }
        let long = vec![b' '; MESSAGE_BYTES_MAX + 1];
        assert!(matches!(rules.announce(&long), Err(AnnounceError::Malformed)));
    }
}
