//! Bookmarks: how far clients that know nothing of cursors have surely come.
//!
//! In:     the id that a client has on all its sockets; who it is and what it joined; how far it
//!         certainly has everything; the time.
//! Out:    where a channel of the same client goes on.
//! Never:  authority: an id is a name, and finds nothing of another user or role. The text of an id,
//!         of a topic or of a claim: digests are kept. More than the settings say.
//!
//! Two clients with one id should not be, and are: a browser's tab is duplicated with all that it
//! stores. While it is not known which of them comes back, it goes on where the last of them is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::auth::Claims;
use crate::config;
use crate::cursor::Cursor;

/// Bytes of an id. A UUID fits; what is shorter could be another client's by chance.
const ID_BYTES: std::ops::RangeInclusive<usize> = 16..=128;

/// Sockets of one client on one channel that are kept apart.
const MARKS_MAX: usize = 4;

/// Claims that differ between two tokens of one bearer.
const OF_THE_TOKEN: [&str; 4] = ["exp", "iat", "nbf", "jti"];

type Fingerprint = [u8; 32];

/// What a client calls itself on all its sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionId(Fingerprint);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId")
    }
}

/// The text is no id of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("session is not 16 to 128 visible ASCII characters")]
pub struct ParseSessionIdError;

impl std::str::FromStr for SessionId {
    type Err = ParseSessionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !ID_BYTES.contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ParseSessionIdError);
        }
        Ok(Self(Sha256::digest(text).into()))
    }
}

/// What a channel asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its full topic.
    pub topic: &'a str,
    /// Whether policies decide who may be in its room.
    pub private: bool,
    /// Elements of `config.postgres_changes`.
    pub postgres_changes: &'a [Box<RawValue>],
    /// The topic itself is the subscription.
    pub legacy: bool,
}

/// Whose bookmark, and of what.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BookmarkName {
    /// Of a client's id, its role and its user.
    session: Fingerprint,
    /// Of all that was asked for.
    channel: Fingerprint,
}

impl fmt::Debug for BookmarkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BookmarkName")
    }
}

impl BookmarkName {
    /// Of a client with these claims.
    pub fn new(id: &SessionId, claims: &Claims, asked: &Asked<'_>) -> Self {
        let session = if let Some(subject) = &claims.subject {
            fingerprint([&id.0[..], b"user", bytes(&claims.role), bytes(subject)])
        } else {
            // Nobody in particular: whatever else the token says.
            let others = others(&claims.json);
            fingerprint([&id.0[..], b"claims", bytes(&claims.role), bytes(&others)])
        };
        let Asked { topic, private, postgres_changes, legacy } = *asked;
        let manner = [u8::from(private), u8::from(legacy)];
        let parameters = postgres_changes.iter().map(|element| bytes(element.get()));
        let channel = fingerprint([bytes(topic), &manner[..]].into_iter().chain(parameters));
        Self { session, channel }
    }
}

fn bytes(text: &str) -> &[u8] {
    text.as_bytes()
}

/// Of several texts, whichever way they are cut.
fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Fingerprint {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The claims that are the same in the bearer's next token.
fn others(claims: &str) -> String {
    match serde_json::from_str(claims) {
        Ok(Value::Object(mut claims)) => {
            for name in OF_THE_TOKEN {
                claims.remove(name);
            }
            Value::Object(claims).to_string()
        }
        Ok(_) | Err(_) => claims.to_owned(),
    }
}

/// All bookmarks.
#[derive(Debug)]
pub struct Bookmarks {
    kept: Mutex<Kept>,
    /// Of all clients.
    most: usize,
    /// Of one of them.
    session_most: usize,
    /// How long one is kept that no socket has.
    lifetime: Duration,
    /// How long of several.
    window: Duration,
}

#[derive(Debug, Default)]
struct Kept {
    sessions: HashMap<Fingerprint, Session>,
    /// Those that no socket has, the longest first.
    idle: BTreeMap<u64, (BookmarkName, u64)>,
    /// How many there ever were, and how often one became idle.
    made: u64,
    idled: u64,
    count: usize,
}

#[derive(Debug, Default)]
struct Session {
    channels: HashMap<Fingerprint, Line>,
    count: usize,
}

/// The bookmarks of one channel, the oldest first: one, unless it is not known that a socket is
/// dead, or there are two clients.
#[derive(Debug, Default)]
struct Line {
    marks: Vec<Mark>,
    /// Where one of them was that had to go, and when it did.
    floor: Option<(Cursor, Instant)>,
}

#[derive(Debug)]
struct Mark {
    number: u64,
    cursor: Cursor,
    /// Since when no socket has it.
    idle: Option<(u64, Instant)>,
    /// The client said something after it got this far.
    proven: bool,
}

/// A live channel's own bookmark. Dropping it leaves it to whoever comes back.
#[derive(Debug)]
pub struct Bookmark {
    bookmarks: Arc<Bookmarks>,
    name: BookmarkName,
    /// None: there was no room.
    number: Option<u64>,
}

impl Bookmarks {
    /// None yet; `window` is how much of the log is kept.
    pub fn new(settings: &config::Server, window: Duration) -> Self {
        Self {
            kept: Mutex::default(),
            most: settings.session_places_max,
            session_most: settings.channels_per_connection_max,
            lifetime: Duration::from_millis(settings.session_lifetime_ms),
            window,
        }
    }

    /// Where a channel of this name goes on; none: nothing is known of it.
    pub fn find(&self, name: &BookmarkName, now: Instant) -> Option<Cursor> {
        let mut kept = self.lock();
        kept.expire(name, now, self);
        kept.line(name)?.oldest()
    }

    /// A channel of this name was joined, and has everything up to there.
    pub fn open(self: &Arc<Self>, name: BookmarkName, cursor: Cursor, now: Instant) -> Bookmark {
        let mut kept = self.lock();
        kept.expire(&name, now, self);
        if let Some([Mark { number, idle: Some(_), .. }]) = kept.line(&name).map(|l| &l.marks[..]) {
            // Whose else should it be.
            let number = *number;
            kept.remove(&name, number);
        }
        let crowded = |line: &&mut Line| line.marks.len() >= MARKS_MAX;
        if let Some(line) = kept.line_mut(&name).filter(crowded) {
            let first = line.marks[0].number;
            line.sink(line.marks[0].cursor, now);
            kept.remove(&name, first);
        }
        let number = kept.add(name, cursor, now, self);
        Bookmark { bookmarks: Arc::clone(self), name, number }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Every holder leaves it whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bookmark {
    /// Its client has everything up to there: it has said something since it was sent that.
    pub fn come_to(&self, cursor: Cursor) {
        let Some(number) = self.number else { return };
        let mut kept = self.bookmarks.lock();
        let Some(mark) = kept.mark(&self.name, number) else { return };
        mark.proven = true;
        // Of another log nothing is older.
        if cursor.epoch != mark.cursor.epoch || cursor.place > mark.cursor.place {
            mark.cursor = cursor;
        }
    }

    /// Its client has left the channel. If it surely knew that it was there, it begins anew when it
    /// joins again; else it gave up on a join, and has missed what came since.
    pub fn leave(&self) {
        let Some(number) = self.number else { return };
        let mut kept = self.bookmarks.lock();
        if kept.mark(&self.name, number).is_some_and(|mark| mark.proven) {
            kept.remove(&self.name, number);
        }
    }

    /// The same of another name: its client became somebody else.
    pub fn renamed(&self, name: BookmarkName, now: Instant) -> Option<Self> {
        let cursor = self.bookmarks.lock().mark(&self.name, self.number?)?.cursor;
        Some(self.bookmarks.open(name, cursor, now))
    }

    /// Whose it is.
    pub const fn name(&self) -> BookmarkName {
        self.name
    }
}

impl Drop for Bookmark {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut kept = self.bookmarks.lock();
        let idled = kept.idled + 1;
        if let Some(mark) = kept.mark(&self.name, number) {
            mark.idle = Some((idled, Instant::now()));
            kept.idled = idled;
            kept.idle.insert(idled, (self.name, number));
        }
    }
}

impl Line {
    /// Where the last of all that have the name is.
    fn oldest(&self) -> Option<Cursor> {
        // Whoever is in another log than the newest will be told of a gap.
        let epoch = self.marks.last()?.cursor.epoch;
        let floor = self.floor.map(|(cursor, _)| cursor);
        let cursors = self.marks.iter().map(|mark| mark.cursor).chain(floor);
        cursors.min_by_key(|cursor| (cursor.epoch == epoch, cursor.place))
    }

    /// Whoever was there may still come back.
    fn sink(&mut self, cursor: Cursor, now: Instant) {
        let lower = match self.floor {
            Some((floor, _)) if floor.epoch == cursor.epoch && floor.place < cursor.place => floor,
            _ => cursor,
        };
        self.floor = Some((lower, now));
    }
}

impl Kept {
    fn line(&self, name: &BookmarkName) -> Option<&Line> {
        self.sessions.get(&name.session)?.channels.get(&name.channel)
    }

    fn line_mut(&mut self, name: &BookmarkName) -> Option<&mut Line> {
        self.sessions.get_mut(&name.session)?.channels.get_mut(&name.channel)
    }

    fn mark(&mut self, name: &BookmarkName, number: u64) -> Option<&mut Mark> {
        self.line_mut(name)?.marks.iter_mut().find(|mark| mark.number == number)
    }

    /// Adds one, in place of the longest idle where there is no room; none: nothing is idle.
    fn add(
        &mut self,
        name: BookmarkName,
        cursor: Cursor,
        now: Instant,
        limits: &Bookmarks,
    ) -> Option<u64> {
        let full = self.sessions.get(&name.session).is_some_and(|s| s.count >= limits.session_most);
        let mut room = true;
        if full {
            let own = self.idle.values().find(|(other, _)| other.session == name.session).copied();
            room = own.is_some_and(|(name, number)| self.evict(&name, number, now));
        }
        if room && self.count >= limits.most {
            let first = self.idle.values().next().copied();
            room = first.is_some_and(|(name, number)| self.evict(&name, number, now));
        }
        if !room {
            // It must not be taken for one that is further.
            if let Some(line) = self.line_mut(&name) {
                line.sink(cursor, now);
            }
            return None;
        }
        self.made += 1;
        let number = self.made;
        let session = self.sessions.entry(name.session).or_default();
        session.count += 1;
        self.count += 1;
        let line = session.channels.entry(name.channel).or_default();
        line.marks.push(Mark { number, cursor, idle: None, proven: false });
        Some(number)
    }

    fn evict(&mut self, name: &BookmarkName, number: u64, now: Instant) -> bool {
        let cursor = self.mark(name, number).map(|mark| mark.cursor);
        if let (Some(line), Some(cursor)) = (self.line_mut(name), cursor) {
            line.sink(cursor, now);
        }
        self.remove(name, number);
        cursor.is_some()
    }

    fn remove(&mut self, name: &BookmarkName, number: u64) {
        let Some(session) = self.sessions.get_mut(&name.session) else { return };
        let Some(line) = session.channels.get_mut(&name.channel) else { return };
        let Some(at) = line.marks.iter().position(|mark| mark.number == number) else { return };
        if let Some((idle, _)) = line.marks.remove(at).idle {
            self.idle.remove(&idle);
        }
        session.count -= 1;
        self.count -= 1;
        if line.marks.is_empty() {
            session.channels.remove(&name.channel);
        }
        if session.channels.is_empty() {
            self.sessions.remove(&name.session);
        }
    }

    /// Forgets what is too old: of all, and of this name what another one has overtaken.
    fn expire(&mut self, name: &BookmarkName, now: Instant, limits: &Bookmarks) {
        let idle_for = |kept: &Self, name: &BookmarkName, number: u64| {
            let mark = kept.line(name)?.marks.iter().find(|mark| mark.number == number)?;
            mark.idle.map(|(_, since)| now.saturating_duration_since(since))
        };
        while let Some((name, number)) = self.idle.values().next().copied() {
            if idle_for(self, &name, number).is_some_and(|idle| idle <= limits.lifetime) {
                break;
            }
            self.remove(&name, number);
        }
        let Some(line) = self.line_mut(name) else { return };
        let is_old = |since: Instant| now.saturating_duration_since(since) > limits.window;
        line.floor = line.floor.filter(|(_, since)| !is_old(*since));
        let old = |mark: &&Mark| mark.idle.is_some_and(|(_, since)| is_old(since));
        let mut old: Vec<(u64, u64)> = line
            .marks
            .iter()
            .filter(old)
            .filter_map(|mark| Some((mark.idle?.0, mark.number)))
            .collect();
        if old.len() == line.marks.len() {
            // The last one that was there.
            old.sort_unstable();
            old.pop();
        }
        for (_, number) in old {
            self.remove(name, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::cursor::{Epoch, Place};
    use crate::lsn::Lsn;

    const WINDOW: Duration = Duration::from_mins(1);
    const LIFETIME: Duration = Duration::from_hours(1);

    fn bookmarks(most: usize, session_most: usize) -> Arc<Bookmarks> {
        let settings = config::Server {
            session_places_max: most,
            channels_per_connection_max: session_most,
            session_lifetime_ms: 3_600_000,
            ..config::Server::default()
        };
        Arc::new(Bookmarks::new(&settings, WINDOW))
    }

    fn claims(role: &str, subject: Option<&str>, json: &str) -> Claims {
        let (role, subject, json) = (role.into(), subject.map(Into::into), json.into());
        Claims { role, subject, json, expires_at: SystemTime::UNIX_EPOCH }
    }

    fn alice() -> Claims {
        claims("authenticated", Some("alice"), "{}")
    }

    fn named(id: &str, claims: &Claims, topic: &str) -> BookmarkName {
        let id = format!("{id:-<16}").parse().unwrap();
        let asked = Asked { topic, private: false, postgres_changes: &[], legacy: false };
        BookmarkName::new(&id, claims, &asked)
    }

    fn name(topic: &str) -> BookmarkName {
        named("a", &alice(), topic)
    }

    fn at(commit: u64) -> Cursor {
        Cursor { place: Place::after(Lsn::new(commit)), epoch: Epoch::default() }
    }

    #[test]
    fn an_id_is_a_word_of_some_length() {
        for (text, good) in [
            ("0123456789abcde", false),
            ("0123456789abcdef", true),
            ("3b241101-e2bb-4255-8caf-4136c566a962", true),
            ("0123456789 abcdef", false),
            ("0123456789abcdeé", false),
        ] {
            assert_eq!(text.parse::<SessionId>().is_ok(), good, "{text}");
        }
        assert!("x".repeat(128).parse::<SessionId>().is_ok());
        assert!("x".repeat(129).parse::<SessionId>().is_err());
    }

    #[test]
    fn another_id_user_role_or_channel_is_another_name() {
        let own = name("t");
        assert_eq!(own, name("t"));
        assert_eq!(own, named("a", &claims("authenticated", Some("alice"), r#"{"exp":1}"#), "t"));
        for other in [
            named("b", &alice(), "t"),
            named("a", &claims("authenticated", Some("bob"), "{}"), "t"),
            named("a", &claims("service_role", Some("alice"), "{}"), "t"),
            named("a", &claims("authenticated", None, "{}"), "t"),
            named("a", &alice(), "u"),
        ] {
            assert_ne!(own, other);
        }
        let nobody = |json| named("a", &claims("anon", None, json), "t");
        assert_eq!(nobody(r#"{"exp":1,"x":2,"iat":3}"#), nobody(r#"{"x":2,"exp":4}"#));
        assert_ne!(nobody(r#"{"exp":1,"x":2}"#), nobody(r#"{"exp":1,"x":3}"#));
        let asked = |private, legacy, changes: &[&str]| {
            let raw = |text: &&str| RawValue::from_string((*text).to_owned()).unwrap();
            let changes: Vec<_> = changes.iter().map(raw).collect();
            let asked = Asked { topic: "t", private, postgres_changes: &changes, legacy };
            BookmarkName::new(&"0123456789abcdef".parse().unwrap(), &alice(), &asked)
        };
        let all = [
            asked(false, false, &[]),
            asked(true, false, &[]),
            asked(false, true, &[]),
            asked(false, false, &["1", "23"]),
            asked(false, false, &["12", "3"]),
        ];
        for (number, one) in all.iter().enumerate() {
            assert!(all[..number].iter().all(|other| one != other), "{number}");
        }
    }

    #[test]
    fn whoever_comes_back_goes_on_where_he_surely_was() {
        let (bookmarks, now) = (bookmarks(10, 10), Instant::now());
        assert_eq!(bookmarks.find(&name("t"), now), None);
        let first = bookmarks.open(name("t"), at(1), now);
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(1)));
        first.come_to(at(5));
        first.come_to(at(3));
        drop(first);
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(5)));
        let second = bookmarks.open(name("t"), at(5), now);
        second.come_to(at(9));
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(9)));
        assert_eq!(bookmarks.find(&name("u"), now), None);
    }

    #[test]
    fn of_two_with_one_name_neither_is_taken_for_the_other() {
        let (bookmarks, now) = (bookmarks(10, 10), Instant::now());
        let slow = bookmarks.open(name("t"), at(1), now);
        let fast = bookmarks.open(name("t"), at(1), now);
        fast.come_to(at(9));
        drop(slow);
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(1)));
        let back = bookmarks.open(name("t"), at(1), now);
        back.come_to(at(12));
        // It may have been the fast one, whose socket is dead.
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(1)));
        // Nobody is that late.
        let later = Instant::now() + WINDOW * 2;
        assert_eq!(bookmarks.find(&name("t"), later), Some(at(9)));
        drop(fast);
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(9)));
    }

    #[test]
    fn of_many_with_one_name_the_last_is_remembered() {
        let (bookmarks, now) = (bookmarks(100, 100), Instant::now());
        let first = bookmarks.open(name("t"), at(1), now);
        let others: Vec<_> = (2..10).map(|n| bookmarks.open(name("t"), at(n), now)).collect();
        assert_eq!(bookmarks.lock().count, MARKS_MAX);
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(1)));
        first.come_to(at(50));
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(1)), "it has none of its own any more");
        drop((first, others));
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(1)));
    }

    #[test]
    fn a_place_in_another_log_is_not_passed_over() {
        let (bookmarks, now) = (bookmarks(10, 10), Instant::now());
        drop(bookmarks.open(name("t"), at(7), now));
        let _dead = bookmarks.open(name("t"), at(7), now);
        let other = Cursor { place: Place::after(Lsn::new(3)), epoch: Epoch::of("1", 2) };
        let new = bookmarks.open(name("t"), at(7), now);
        new.come_to(other);
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(7)));
    }

    #[test]
    fn whoever_leaves_knowing_that_he_was_there_begins_anew() {
        let (bookmarks, now) = (bookmarks(10, 10), Instant::now());
        let gave_up = bookmarks.open(name("t"), at(1), now);
        gave_up.leave();
        drop(gave_up);
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(1)));
        let knew = bookmarks.open(name("t"), at(1), now);
        knew.come_to(at(1));
        knew.leave();
        drop(knew);
        assert_eq!(bookmarks.find(&name("t"), now), None);
        assert!(bookmarks.lock().idle.is_empty() && bookmarks.lock().sessions.is_empty());
    }

    #[test]
    fn what_nobody_has_gives_way_and_goes_with_time() {
        let (bookmarks, now) = (bookmarks(3, 2), Instant::now());
        drop(bookmarks.open(name("t"), at(1), now));
        let u = bookmarks.open(name("u"), at(1), now);
        let _v = bookmarks.open(name("v"), at(1), now);
        assert_eq!(bookmarks.find(&name("t"), now), None, "a client has two");
        let w = bookmarks.open(name("w"), at(1), now);
        assert_eq!(bookmarks.find(&name("w"), now), None, "and both are in use");
        w.come_to(at(2));
        let bob = claims("authenticated", Some("bob"), "{}");
        let kept = bookmarks.open(named("a", &bob, "t"), at(1), now);
        drop(kept);
        let carol = claims("authenticated", Some("carol"), "{}");
        let _kept = bookmarks.open(named("a", &carol, "t"), at(1), now);
        assert_eq!(bookmarks.find(&named("a", &bob, "t"), now), None, "all have three");
        assert!(bookmarks.find(&named("a", &carol, "t"), now).is_some());
        let _kept = bookmarks.open(named("a", &bob, "t"), at(1), now);
        assert_eq!(bookmarks.find(&named("a", &bob, "t"), now), None);
        drop(u);
        let later = Instant::now() + LIFETIME.saturating_sub(Duration::from_secs(1));
        assert_eq!(bookmarks.find(&name("u"), later), Some(at(1)));
        assert_eq!(bookmarks.find(&name("u"), later + Duration::from_secs(2)), None);
        assert_eq!(bookmarks.lock().count, 2);
    }

    #[test]
    fn one_that_found_no_room_is_not_taken_for_another() {
        let (bookmarks, now) = (bookmarks(1, 1), Instant::now());
        let kept = bookmarks.open(name("t"), at(9), now);
        let _unkept = bookmarks.open(name("t"), at(1), now);
        kept.come_to(at(12));
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(1)));
    }

    #[test]
    fn a_client_that_becomes_another_user_leaves_its_bookmark_behind() {
        let (bookmarks, now) = (bookmarks(10, 10), Instant::now());
        let bob = named("a", &claims("authenticated", Some("bob"), "{}"), "t");
        let own = bookmarks.open(name("t"), at(4), now);
        let renamed = own.renamed(bob, now).unwrap();
        drop(own);
        renamed.come_to(at(9));
        assert_eq!(bookmarks.find(&name("t"), now), Some(at(4)));
        assert_eq!(bookmarks.find(&bob, now), Some(at(9)));
    }
}
