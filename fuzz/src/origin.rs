//! The message that says who made a transaction: bounded texts, written as they were read.

use walcast::change::Origin;
use walcast::change::origin::TEXT_BYTES_MAX;

/// The whole input is the message's content.
pub fn check(bytes: &[u8]) {
    let Some(origin) = Origin::parse(bytes) else { return };
    let texts = [&origin.id, &origin.sub, &origin.connection_id, &origin.mutation_id];
    for text in texts.into_iter().flatten() {
        assert!((1..=TEXT_BYTES_MAX).contains(&text.len()));
    }
    assert_eq!(origin.is_told(), texts[1..].iter().any(|text| text.is_some()));
    let message = origin.to_message();
    assert_eq!(Origin::parse(message.as_bytes()).as_ref(), Some(&origin), "{message}");
    let told = serde_json::to_value(&origin).expect("texts are JSON");
    assert!(told.get("id").is_none());
    assert_eq!(told["sub"].as_str(), origin.sub.as_deref());
}
