//! Cursors: what is read is what was written, and texts sort as places do.

use walcast::cursor::{CURSOR_BYTES, Cursor};

/// Two cursors, one behind the other.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let one = one(text);
    let Some((first, rest)) = text.split_at_checked(CURSOR_BYTES) else { return };
    let (Ok(first), Ok(second)) = (first.parse::<Cursor>(), rest.parse::<Cursor>()) else { return };
    assert!(one.is_none(), "two are not one");
    if first.epoch == second.epoch {
        let (a, b) = (first.to_string(), second.to_string());
        assert_eq!(first.place.cmp(&second.place), a.cmp(&b));
    }
}

fn one(text: &str) -> Option<Cursor> {
    let cursor = text.parse::<Cursor>().ok()?;
    let written = cursor.to_string();
    assert_eq!((written.len(), text.len()), (CURSOR_BYTES, CURSOR_BYTES));
    assert!(written.eq_ignore_ascii_case(text));
    assert_eq!(written.parse(), Ok(cursor));
    Some(cursor)
}
