//! Presence: who is on one topic, and what its receivers were told.
//!
//! In:     what members track and when they leave; the time, where a diff is taken.
//! Out:    the state for a receiver that joins, and the diffs that follow it, each rendered once.
//! Never:  IO, a clock, a lock; a meta that names its own `phx_ref`.
//! Source: hexdocs.pm/phoenix/Phoenix.Presence.html (the shape of state and diff)
//!
//! Changes gather until a diff is due. A receiver that joins meanwhile gets the state as it was
//! *told*, not as it is: a member that comes and goes between two diffs is in neither, so whoever
//! had seen it in a state would keep it for ever. Everybody is thus at the same place, and the
//! diffs that follow are right for all. Every join is in one diff, every leave as well, and
//! clients see each of them once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hashbrown::HashMap;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::config;

#[cfg(test)]
mod tests;

/// Receivers up to which each change goes out as it comes.
const RECEIVERS_AT_ONCE: u32 = 32;

/// Time between two diffs for each receiver of a topic with more: it sends at most 20,000 frames
/// a second, whoever comes and goes. Longer is cheaper, and seen later.
const INTERVAL_PER_RECEIVER: Duration = Duration::from_micros(50);

/// How many ways there are for a message to end: one for each version of the protocol.
const ENDS_MAX: usize = 2;

/// The members of a meta that are ours. A client's own are left out.
const OURS: [&str; 2] = ["phx_ref", "phx_ref_prev"];

/// What a key costs in a state besides its own bytes: `:{"metas":[]},`.
const KEY_OVERHEAD_BYTES: usize = 14;

/// What a member costs in memory besides its texts, about: its places in the maps here. Counted
/// for the whole process only, where many empty metas could come together.
const MEMBER_OVERHEAD_BYTES: usize = 256;

/// A channel on a topic, by a number that is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(pub u64);

/// Why something is not tracked. The text is for the client; what was tracked before stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrackError {
    /// No JSON, or JSON that some clients cannot read: half a surrogate pair, a number beyond a
    /// double's range, more than 127 levels. It would break the state for them.
    #[error("Presence track payload must be valid JSON")]
    Malformed,
    /// The meta is something else.
    #[error("Presence track payload must be a map")]
    NotAnObject,
    /// More than `presence.meta_bytes_max`. The protocol closes the channel.
    #[error("Track message size exceeded")]
    TooLarge,
    /// More than `presence.meta_keys_max`.
    #[error("Presence track payload has too many keys")]
    TooManyKeys,
    /// More than `presence.key_bytes_max`.
    #[error("Presence key is too long")]
    KeyTooLong,
    /// `presence.members_max` or `presence.topic_bytes_max` is reached.
    #[error("Too many presences on this topic")]
    TopicFull,
    /// `presence.bytes_max` is reached.
    #[error("Too many presences on this server")]
    ServerFull,
}

impl TrackError {
    /// Whether the protocol closes the channel over it; the others are answered and no more.
    pub const fn closes_channel(self) -> bool {
        matches!(self, Self::TooLarge)
    }
}

/// What all topics of a process draw on: settings, numbers for refs, and bytes.
#[derive(Debug)]
pub struct Supply {
    settings: config::Presence,
    epoch: [u8; 4],
    next: AtomicU64,
    bytes: AtomicUsize,
}

impl Supply {
    /// `epoch` is random: clients compare refs from before a restart with those from after it.
    pub const fn new(settings: config::Presence, epoch: [u8; 4]) -> Self {
        Self { settings, epoch, next: AtomicU64::new(0), bytes: AtomicUsize::new(0) }
    }

    /// Bytes that are tracked now, over all topics, as `presence.bytes_max` counts them.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// 12 bytes in base64url, as clients know it from Phoenix: epoch, then number.
    fn phx_ref(&self, number: u64) -> String {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.epoch);
        bytes[4..].copy_from_slice(&number.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Whether `new` bytes may take the place of `old` ones. If so, they have.
    fn exchange(&self, old: usize, new: usize) -> bool {
        let exchanged = |bytes: usize| {
            let bytes = bytes.saturating_sub(old).saturating_add(new);
            (new <= old || bytes <= self.settings.bytes_max).then_some(bytes)
        };
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, exchanged).is_ok()
    }
}

/// Where a meta stands in a state: by key, then in the order of tracking, as clients append.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// As JSON text, so that rendering copies.
    key: Arc<str>,
    number: u64,
}

/// Finished metas, each a JSON object with its ref.
type Metas = BTreeMap<Place, Arc<str>>;

/// The newest thing that a member tracked.
#[derive(Debug)]
struct Tracked {
    place: Place,
    /// The version of this member that receivers know while this one is not told yet.
    known: Option<u64>,
    meta: Arc<str>,
    /// Where in `meta` the client's own members begin.
    body_at: usize,
}

impl Tracked {
    fn body(&self) -> &str {
        self.meta.get(self.body_at..).unwrap_or_default()
    }

    /// The most that it adds to a state.
    fn bytes(&self) -> usize {
        bytes(&self.place.key, &self.meta)
    }

    fn memory_bytes(&self) -> usize {
        self.bytes() + MEMBER_OVERHEAD_BYTES
    }
}

/// The presence of one topic.
///
/// Its owner calls [`Self::take_diff`] after every change and again at [`Self::due_at`], gives the
/// diff to every receiver, and takes [`Self::state`] for a new one in the same moment as it makes
/// it a receiver. A receiver's first frame is its state: the official clients keep diffs that come
/// before one, across joins, and would apply them to the state of a later one.
///
/// Memory: at most four times `topic_bytes_max` (what is, what was told, the rendered states).
#[derive(Debug)]
pub struct Presence {
    supply: Arc<Supply>,
    members: HashMap<MemberId, Tracked>,
    /// Of `members`, as in [`Tracked::bytes`].
    bytes: usize,
    /// What receivers know: `members`, less `joins`, and `leaves`.
    told: Metas,
    joins: Metas,
    leaves: Metas,
    /// `told` as JSON with a byte behind it, until it changes: one for each such byte.
    states: Vec<Bytes>,
    /// No diff before that.
    open_at: Instant,
}

impl Presence {
    /// Nobody is there.
    pub fn new(supply: Arc<Supply>, now: Instant) -> Self {
        Self {
            supply,
            members: HashMap::new(),
            bytes: 0,
            told: Metas::new(),
            joins: Metas::new(),
            leaves: Metas::new(),
            states: Vec::new(),
            open_at: now,
        }
    }

    /// Members that track something.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody tracks anything. What the last one's leaving means to receivers may still be
    /// to be told.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// A member shows `meta`, a JSON object, under `key`: a join, an update of what it showed
    /// before, or nothing when it is the same. Metas are the same when their members are, in any
    /// order, value for value as text.
    ///
    /// # Errors
    /// Why not; nothing has changed. The caller answers with the text, and closes the channel
    /// where [`TrackError::closes_channel`].
    pub fn track(&mut self, member: MemberId, key: &str, meta: &str) -> Result<(), TrackError> {
        let settings = &self.supply.settings;
        if key.len() > settings.key_bytes_max {
            return Err(TrackError::KeyTooLong);
        }
        if meta.len() > settings.meta_bytes_max {
            return Err(TrackError::TooLarge);
        }
        let body = body(meta, settings.meta_keys_max)?;
        let key: Arc<str> = text(key).into();

        let old = self.members.get(&member);
        let known = match old {
            None if self.members.len() >= settings.members_max => {
                return Err(TrackError::TopicFull);
            }
            Some(old) if old.place.key == key => {
                if old.body() == body {
                    return Ok(());
                }
                if self.joins.contains_key(&old.place) { old.known } else { Some(old.place.number) }
            }
            None | Some(_) => None,
        };
        let place = Place { key, number: self.supply.number() };
        let new = self.tracked(place, known, &body);

        let bytes = self.bytes - old.map_or(0, Tracked::bytes) + new.bytes();
        if bytes > settings.topic_bytes_max {
            return Err(TrackError::TopicFull);
        }
        if !self.supply.exchange(old.map_or(0, Tracked::memory_bytes), new.memory_bytes()) {
            return Err(TrackError::ServerFull);
        }
        self.bytes = bytes;
        self.joins.insert(new.place.clone(), Arc::clone(&new.meta));
        if let Some(old) = self.members.insert(member, new) {
            self.withdraw(old);
        }
        Ok(())
    }

    /// A member shows nothing any more, or has left. It may track again.
    pub fn untrack(&mut self, member: MemberId) {
        if let Some(old) = self.members.remove(&member) {
            self.bytes -= old.bytes();
            self.supply.exchange(old.memory_bytes(), 0);
            self.withdraw(old);
        }
    }

    /// What receivers were told so far, `{"key":{"metas":[…]}}`, and the byte that ends the message
    /// it is in. For a new one, together with every diff from now on. Rendered once for all who ask
    /// between two diffs: the same bytes for all whose messages end alike.
    pub fn state(&mut self, end: u8) -> Bytes {
        if let Some(state) = self.states.iter().find(|state| state.last() == Some(&end)) {
            return state.clone();
        }
        let mut json = String::with_capacity(rendered_bytes(&self.told) + 1);
        render(&self.told, &mut json);
        let mut bytes = json.into_bytes();
        bytes.push(end);
        let state = Bytes::from(bytes);
        if self.states.len() < ENDS_MAX {
            self.states.push(state.clone());
        }
        state
    }

    /// When to take the next diff; none while there is nothing to tell. It is in the past where
    /// nothing was told for a while.
    pub fn due_at(&self) -> Option<Instant> {
        let pending = !self.joins.is_empty() || !self.leaves.is_empty();
        pending.then_some(self.open_at)
    }

    /// The diff that is due now, for all receivers: `{"joins":{…},"leaves":{…}}`.
    ///
    /// Everything since the last one is in it, folded: what came and went is not there, and of
    /// several versions only the newest is, with `phx_ref_prev` of the one that receivers know.
    /// The next diff is due after a pause that grows with `receivers`.
    pub fn take_diff(&mut self, now: Instant, receivers: usize) -> Option<Bytes> {
        if self.due_at().is_none_or(|due_at| now < due_at) {
            return None;
        }
        let (joins, leaves) = (std::mem::take(&mut self.joins), std::mem::take(&mut self.leaves));
        let bytes = rendered_bytes(&joins) + rendered_bytes(&leaves);
        let mut diff = String::with_capacity(bytes + r#"{"joins":,"leaves":}"#.len());
        diff.push_str(r#"{"joins":"#);
        render(&joins, &mut diff);
        diff.push_str(r#","leaves":"#);
        render(&leaves, &mut diff);
        diff.push('}');

        for place in leaves.keys() {
            self.told.remove(place);
        }
        self.told.extend(joins);
        self.states.clear();
        self.open_at = now + self.interval(receivers);
        Some(diff.into())
    }

    /// What all members take from the supply.
    fn memory_bytes(&self) -> usize {
        self.bytes + self.members.len() * MEMBER_OVERHEAD_BYTES
    }

    fn interval(&self, receivers: usize) -> Duration {
        let most = Duration::from_millis(self.supply.settings.diff_interval_max_ms);
        match u32::try_from(receivers) {
            Ok(..=RECEIVERS_AT_ONCE) => Duration::ZERO,
            Ok(receivers) => INTERVAL_PER_RECEIVER.saturating_mul(receivers).min(most),
            Err(_) => most,
        }
    }

    fn tracked(&self, place: Place, known: Option<u64>, body: &str) -> Tracked {
        let mut meta = format!(r#"{{"phx_ref":"{}""#, self.supply.phx_ref(place.number));
        if let Some(known) = known {
            meta.push_str(r#","phx_ref_prev":""#);
            meta.push_str(&self.supply.phx_ref(known));
            meta.push('"');
        }
        let body_at = meta.len();
        meta.push_str(body);
        Tracked { place, known, meta: meta.into(), body_at }
    }

    /// What is no longer so: either receivers will not hear of it at all, or they unlearn it.
    fn withdraw(&mut self, old: Tracked) {
        if self.joins.remove(&old.place).is_none() {
            self.leaves.insert(old.place, old.meta);
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.supply.exchange(self.memory_bytes(), 0);
    }
}

/// The client's members of a meta, as they follow our own: `,"a":1,"b":2}`. Sorted, each name
/// once and with its last value: equal metas have equal text, and nobody reads one in two ways.
fn body(meta: &str, keys_max: usize) -> Result<String, TrackError> {
    // `RawValue` lets pass what `Value` refuses.
    match serde_json::from_str(meta) {
        Ok(Value::Object(_)) => {}
        Ok(_) => return Err(TrackError::NotAnObject),
        Err(_) => return Err(TrackError::Malformed),
    }
    // Values stay as they were written: a number may have more digits than a double.
    let mut members: BTreeMap<String, &RawValue> =
        serde_json::from_str(meta).map_err(|_| TrackError::Malformed)?;
    for name in OURS {
        members.remove(name);
    }
    if members.len() > keys_max {
        return Err(TrackError::TooManyKeys);
    }
    let mut body = String::with_capacity(meta.len() + 2);
    for (name, value) in members {
        body.push(',');
        body.push_str(&text(&name));
        body.push(':');
        body.push_str(value.get());
    }
    body.push('}');
    Ok(body)
}

/// As a JSON text.
fn text(value: &str) -> String {
    Value::from(value).to_string()
}

/// The most that a meta adds to a rendering.
fn bytes(key: &str, meta: &str) -> usize {
    key.len() + KEY_OVERHEAD_BYTES + meta.len()
}

/// Room enough for a rendering.
fn rendered_bytes(metas: &Metas) -> usize {
    "{}".len() + metas.iter().map(|(place, meta)| bytes(&place.key, meta)).sum::<usize>()
}

/// `{"key":{"metas":[…]}}`, metas of one key together.
fn render(metas: &Metas, json: &mut String) {
    json.push('{');
    let mut open: Option<&str> = None;
    for (place, meta) in metas {
        if open == Some(&*place.key) {
            json.push(',');
        } else {
            if open.is_some() {
                json.push_str("]},");
            }
            json.push_str(&place.key);
            json.push_str(r#":{"metas":["#);
            open = Some(&place.key);
        }
        json.push_str(meta);
    }
    if open.is_some() {
        json.push_str("]}");
    }
    json.push('}');
}
