//! One topic's presence, against clients that apply states and diffs as Phoenix' do.

use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;

fn supply(settings: config::Presence) -> Arc<Supply> {
    Arc::new(Supply::new(settings, [1, 2, 3, 4]))
}

/// A topic, and time.
struct Topic {
    presence: Presence,
    now: Instant,
    receivers: usize,
}

impl Topic {
    fn new() -> Self {
        Self::with(supply(config::Presence::default()))
    }

    fn with(supply: Arc<Supply>) -> Self {
        let now = Instant::now();
        Self { presence: Presence::new(supply, now), now, receivers: 1 }
    }

    fn track(&mut self, member: u64, key: &str, meta: &str) {
        self.presence.track(MemberId(member), key, meta).unwrap();
    }

    fn refused(&mut self, member: u64, key: &str, meta: &str) -> TrackError {
        let before = format!("{:?}", self.presence);
        let error = self.presence.track(MemberId(member), key, meta).unwrap_err();
        // A number of the supply may have been used; all else is as it was.
        let before = before.split("next: ").collect::<Vec<_>>();
        let after = format!("{:?}", self.presence);
        let after = after.split("next: ").collect::<Vec<_>>();
        assert_eq!(before.first(), after.first());
        let tail = |parts: &[&str]| parts.get(1).unwrap().split_once(", ").unwrap().1.to_owned();
        assert_eq!(tail(&before), tail(&after));
        error
    }

    fn untrack(&mut self, member: u64) {
        self.presence.untrack(MemberId(member));
    }

    fn diff(&mut self) -> Option<String> {
        let diff = self.presence.take_diff(self.now, self.receivers)?;
        Some(String::from_utf8(diff.into()).unwrap())
    }

    fn state(&mut self) -> String {
        let state = self.presence.state(b']');
        String::from_utf8(state.strip_suffix(b"]").unwrap().into()).unwrap()
    }
}

fn number(phx_ref: &str) -> u64 {
    let bytes = URL_SAFE_NO_PAD.decode(phx_ref).unwrap();
    assert_eq!(bytes.len(), 12);
    u64::from_be_bytes(bytes[4..].try_into().unwrap())
}

/// With `#0`, `#1`, … in the place of refs.
fn numbered(json: &str) -> String {
    let mut parts = json.split(r#""AQIDB"#);
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (rest, tail) = part.split_once('"').unwrap();
        write!(out, r##""#{}""##, number(&format!("AQIDB{rest}"))).unwrap();
        out.push_str(tail);
    }
    out
}

#[test]
fn a_join_an_update_and_a_leave_are_one_diff_each() {
    let mut topic = Topic::new();
    assert_eq!(topic.state(), "{}");
    assert_eq!(topic.diff(), None);

    topic.track(7, "ann", r#"{"at":1}"#);
    assert_eq!(topic.state(), "{}", "nobody was told yet");
    assert_eq!(
        numbered(&topic.diff().unwrap()),
        r##"{"joins":{"ann":{"metas":[{"phx_ref":"#0","at":1}]}},"leaves":{}}"##
    );
    assert_eq!(numbered(&topic.state()), r##"{"ann":{"metas":[{"phx_ref":"#0","at":1}]}}"##);
    assert_eq!(topic.diff(), None);

    topic.track(7, "ann", r#"{"at":2}"#);
    assert_eq!(
        numbered(&topic.diff().unwrap()),
        r##"{"joins":{"ann":{"metas":[{"phx_ref":"#1","phx_ref_prev":"#0","at":2}]}},"leaves":{"ann":{"metas":[{"phx_ref":"#0","at":1}]}}}"##
    );

    topic.untrack(7);
    assert_eq!(
        numbered(&topic.diff().unwrap()),
        r##"{"joins":{},"leaves":{"ann":{"metas":[{"phx_ref":"#1","phx_ref_prev":"#0","at":2}]}}}"##
    );
    assert_eq!(topic.state(), "{}");
    topic.untrack(7);
    assert_eq!(topic.diff(), None);

    topic.track(7, "ann", r#"{"at":2}"#);
    assert_eq!(
        numbered(&topic.diff().unwrap()),
        r##"{"joins":{"ann":{"metas":[{"phx_ref":"#2","at":2}]}},"leaves":{}}"##
    );
}

#[test]
fn the_same_meta_again_is_no_diff() {
    let mut topic = Topic::new();
    topic.track(1, "k", r#"{"a":1,"b":{"c":[true,null]}}"#);
    assert!(topic.diff().is_some());
    for same in [
        r#"{"a":1,"b":{"c":[true,null]}}"#,
        r#" {"b" : {"c":[true,null]},"\u0061":1} "#,
        r#"{"a":2,"a":1,"b":{"c":[true,null]}}"#,
        r#"{"phx_ref":"mine","a":1,"b":{"c":[true,null]}}"#,
    ] {
        topic.track(1, "k", same);
        assert_eq!(topic.diff(), None, "{same}");
    }
    for other in [
        r#"{"a":1}"#,
        r"{}",
        r#"{"a":12345678901234567890123}"#,
        r#"{"a":12345678901234567890124}"#,
        r#"{"a":"12345678901234567890124"}"#,
    ] {
        topic.track(1, "k", other);
        let diff = topic.diff().unwrap();
        assert!(diff.contains("phx_ref_prev"), "{other}: {diff}");
    }
}

#[test]
fn members_of_one_key_each_have_a_meta() {
    let mut topic = Topic::new();
    topic.track(1, "ann", r#"{"tab":1}"#);
    topic.track(2, "ann", r#"{"tab":2}"#);
    topic.track(3, "bob", "{}");
    topic.track(4, "ann", r#"{"tab":3}"#);
    assert!(topic.diff().is_some());
    topic.track(1, "ann", r#"{"tab":4}"#);
    assert!(topic.diff().is_some());
    // As clients have them: what came last stands last.
    assert_eq!(
        numbered(&topic.state()),
        r##"{"ann":{"metas":[{"phx_ref":"#1","tab":2},{"phx_ref":"#3","tab":3},{"phx_ref":"#4","phx_ref_prev":"#0","tab":4}]},"bob":{"metas":[{"phx_ref":"#2"}]}}"##
    );
    topic.untrack(2);
    assert_eq!(
        numbered(&topic.diff().unwrap()),
        r##"{"joins":{},"leaves":{"ann":{"metas":[{"phx_ref":"#1","tab":2}]}}}"##
    );
}

#[test]
fn a_member_under_another_key_leaves_the_first() {
    let mut topic = Topic::new();
    topic.track(1, "a", "{}");
    assert!(topic.diff().is_some());
    topic.track(1, "b", "{}");
    assert_eq!(
        numbered(&topic.diff().unwrap()),
        r##"{"joins":{"b":{"metas":[{"phx_ref":"#1"}]}},"leaves":{"a":{"metas":[{"phx_ref":"#0"}]}}}"##
    );
}

#[test]
fn a_client_cannot_choose_its_ref() {
    let mut topic = Topic::new();
    topic.track(1, "k", r#"{"phx_ref":"x","phx\u005fref":"y","phx_ref_prev":"z","phx_ref":{}}"#);
    assert_eq!(
        numbered(&topic.diff().unwrap()),
        r##"{"joins":{"k":{"metas":[{"phx_ref":"#0"}]}},"leaves":{}}"##
    );
}

#[test]
fn keys_and_names_are_written_as_json_text() {
    let mut topic = Topic::new();
    let key = "\"\\\u{1}\u{1f600}é";
    topic.track(1, key, r#"{"\"\u0001":"\u0000é","n":1.50,"":[ 1 ]}"#);
    topic.track(2, "__proto__", "{}");
    topic.track(3, "", "{}");
    let diff: Value = serde_json::from_str(&topic.diff().unwrap()).unwrap();
    let meta = &diff["joins"][key]["metas"][0];
    assert_eq!(meta["\"\u{1}"], "\0é");
    assert_eq!(meta[""], json!([1]));
    assert!(topic.state().contains(r#""n":1.50"#), "values stay as they were written");
    let state: Value = serde_json::from_str(&topic.state()).unwrap();
    assert_eq!(state, diff["joins"]);
    assert_eq!(state.as_object().unwrap().len(), 3);
}

#[test]
fn what_is_no_object_or_unreadable_is_refused() {
    let mut topic = Topic::new();
    for meta in ["[]", "null", "1", r#""a""#, "true"] {
        assert_eq!(topic.refused(1, "k", meta), TrackError::NotAnObject, "{meta}");
    }
    let deep = |levels| format!(r#"{{"a":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    topic.track(2, "k", &deep(126));
    for meta in [
        "",
        "{",
        r#"{"a":1}}"#,
        r#"{"a"}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"\ud800":1}"#,
        r#"{"a":1e999}"#,
        "{\"a\":\"\u{1}\"}",
        &deep(127),
        &deep(30_000),
    ] {
        assert_eq!(topic.refused(1, "k", meta), TrackError::Malformed, "{meta:.40}");
    }
    assert_eq!(TrackError::NotAnObject.to_string(), "Presence track payload must be a map");
}

#[test]
fn each_bound_has_its_answer_and_what_was_tracked_stays() {
    let settings = config::Presence {
        meta_bytes_max: 100,
        meta_keys_max: 2,
        key_bytes_max: 4,
        members_max: 3,
        ..config::Presence::default()
    };
    let mut topic = Topic::with(supply(settings));
    let padded = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8));

    topic.track(1, "k", &padded(100));
    assert_eq!(topic.refused(1, "k", &padded(101)), TrackError::TooLarge);
    assert_eq!(topic.refused(2, "k", &padded(1_000_000)), TrackError::TooLarge);
    assert!(TrackError::TooLarge.closes_channel() && !TrackError::TopicFull.closes_channel());
    assert_eq!(TrackError::TooLarge.to_string(), "Track message size exceeded");

    topic.track(1, "k", r#"{"phx_ref":1,"a":1,"b":1,"b":2}"#);
    assert_eq!(topic.refused(1, "k", r#"{"a":1,"b":1,"c":1}"#), TrackError::TooManyKeys);

    topic.track(2, "éé", "{}");
    assert_eq!(topic.refused(2, "ééé", "{}"), TrackError::KeyTooLong);

    topic.track(3, "k", "{}");
    assert_eq!(topic.refused(4, "k", "{}"), TrackError::TopicFull);
    topic.track(3, "k", r#"{"a":2}"#);
    topic.untrack(1);
    topic.track(4, "k", "{}");
}

#[test]
fn the_state_never_grows_beyond_its_bytes() {
    let settings = config::Presence { topic_bytes_max: 64 * 1024, ..config::Presence::default() };
    let mut topic = Topic::with(supply(settings));
    let meta = |n: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(n));
    let mut members = 0;
    while topic.presence.track(MemberId(members), "\u{1}key", &meta(1000)).is_ok() {
        members += 1;
    }
    assert!((55..64).contains(&members), "{members}");
    assert_eq!(topic.refused(members, "k", &meta(1000)), TrackError::TopicFull);
    assert_eq!(topic.refused(0, "k", &meta(3000)), TrackError::TopicFull);
    assert!(topic.diff().is_some());
    let state = topic.state().len();
    assert!((60_000..64 * 1024).contains(&state), "{state}");
    topic.track(0, "k", &meta(10));
    topic.track(members, "k", &meta(900));
}

#[test]
fn all_topics_together_hold_no_more_than_allowed() {
    let settings = config::Presence { bytes_max: 64 * 1024, ..config::Presence::default() };
    let supply = supply(settings);
    let meta = format!(r#"{{"a":"{}"}}"#, "x".repeat(30_000));
    let mut topics: Vec<Topic> = (0..3).map(|_| Topic::with(Arc::clone(&supply))).collect();
    topics[0].track(1, "k", &meta);
    topics[1].track(1, "k", &meta);
    assert_eq!(topics[2].refused(1, "k", &meta), TrackError::ServerFull);
    topics[0].track(1, "k", &meta.replace('a', "b"));
    topics[0].untrack(1);
    topics[2].track(1, "k", &meta);
    assert_eq!(topics[0].refused(1, "k", &meta), TrackError::ServerFull);
    // A topic that ends gives back what it held.
    topics.remove(1);
    topics[0].track(1, "k", &meta);
    drop(topics);
    assert_eq!(supply.bytes(), 0);
}

#[test]
fn refs_are_never_used_twice_by_the_topics_of_a_process() {
    let supply = supply(config::Presence::default());
    let mut topics = [Topic::with(Arc::clone(&supply)), Topic::with(supply)];
    let mut refs = Vec::new();
    for round in 0..100 {
        for topic in &mut topics {
            topic.track(1, "k", &format!(r#"{{"a":{round}}}"#));
            let diff: Value = serde_json::from_str(&topic.diff().unwrap()).unwrap();
            refs.push(diff["joins"]["k"]["metas"][0]["phx_ref"].as_str().unwrap().to_owned());
        }
    }
    assert!(refs.iter().all(|phx_ref| phx_ref.len() == 16));
    refs.sort_unstable();
    refs.dedup();
    assert_eq!(refs.len(), 200);
    let other = Supply::new(config::Presence::default(), [9, 9, 9, 9]);
    assert!(!refs.contains(&other.phx_ref(0)), "another process has other refs");
}

#[test]
fn a_diff_folds_what_happened_since_the_last() {
    let mut topic = Topic::new();
    topic.receivers = 1000;
    topic.track(1, "told", r#"{"v":1}"#);
    topic.track(2, "gone", "{}");
    assert!(topic.diff().is_some());

    topic.track(1, "told", r#"{"v":2}"#);
    topic.track(1, "told", r#"{"v":3}"#);
    topic.untrack(2);
    topic.track(3, "new", r#"{"v":1}"#);
    topic.track(3, "new", r#"{"v":2}"#);
    topic.track(4, "passing", "{}");
    topic.untrack(4);
    assert_eq!(topic.diff(), None, "too early");
    topic.now = topic.presence.due_at().unwrap();
    assert_eq!(
        numbered(&topic.diff().unwrap()),
        r##"{"joins":{"new":{"metas":[{"phx_ref":"#5","v":2}]},"told":{"metas":[{"phx_ref":"#3","phx_ref_prev":"#0","v":3}]}},"leaves":{"gone":{"metas":[{"phx_ref":"#1"}]},"told":{"metas":[{"phx_ref":"#0","v":1}]}}}"##
    );

    topic.track(5, "passing", "{}");
    assert!(topic.presence.due_at().is_some());
    topic.untrack(5);
    assert_eq!(topic.presence.due_at(), None, "nothing is left to tell");
}

#[test]
fn the_pause_grows_with_the_receivers_and_a_quiet_topic_tells_at_once() {
    let mut topic = Topic::new();
    let mut pause_after = |receivers| {
        topic.receivers = receivers;
        topic.now += Duration::from_mins(1);
        topic.track(1, "k", &format!(r#"{{"{receivers}":"a"}}"#));
        assert!(topic.presence.due_at().unwrap() <= topic.now, "quiet: at once");
        assert!(topic.diff().is_some());
        assert_eq!(topic.presence.due_at(), None);
        topic.track(1, "k", &format!(r#"{{"{receivers}":"b"}}"#));
        let due_at = topic.presence.due_at().unwrap();
        let pause = due_at.saturating_duration_since(topic.now);
        if !pause.is_zero() {
            topic.now = due_at.checked_sub(Duration::from_nanos(1)).unwrap();
            assert_eq!(topic.diff(), None);
            assert_eq!(topic.presence.due_at(), Some(due_at), "a wait is not prolonged");
        }
        topic.now = due_at;
        assert!(topic.diff().is_some());
        pause
    };
    let pauses = [0, 1, 32, 33, 1000, 4000, 100_000, usize::MAX].map(&mut pause_after);
    let micros = [0, 0, 0, 1650, 50_000, 200_000, 200_000, 200_000].map(Duration::from_micros);
    assert_eq!(pauses, micros);
}

#[test]
fn a_state_that_stands_still_is_rendered_once() {
    let mut topic = Topic::new();
    topic.receivers = 1000;
    topic.track(1, "k", "{}");
    assert!(topic.diff().is_some());
    let first = topic.presence.state(b']');
    let other = topic.presence.state(b'}');
    assert_eq!(first.strip_suffix(b"]"), other.strip_suffix(b"}"));
    topic.track(2, "k", "{}");
    topic.untrack(1);
    for _ in 0..1000 {
        assert_eq!(topic.presence.state(b']').as_ptr(), first.as_ptr());
        assert_eq!(topic.presence.state(b'}').as_ptr(), other.as_ptr());
    }
    topic.now += Duration::from_secs(1);
    assert!(topic.diff().is_some());
    assert_ne!(topic.presence.state(b']'), first);
    assert_ne!(topic.presence.state(b'}'), other);
}

#[test]
fn five_thousand_joins_cost_what_their_members_cost() {
    const JOINS: usize = 5000;
    let mut topic = Topic::new();
    topic.receivers = 0;
    let end = topic.now + Duration::from_secs(1);
    let (mut diffs, mut frames, mut told_bytes, mut metas) = (0, 0, 0, 0);
    let (mut renderings, mut last) = (0, Bytes::new());
    let mut take = |topic: &mut Topic| {
        if let Some(diff) = topic.diff() {
            diffs += 1;
            frames += topic.receivers;
            told_bytes += diff.len();
            metas += diff.matches("phx_ref").count();
        }
    };
    for join in 0..JOINS {
        topic.now += Duration::from_micros(200);
        take(&mut topic);
        topic.receivers += 1;
        let state = topic.presence.state(b']');
        if state.as_ptr() != last.as_ptr() {
            renderings += 1;
            last = state;
        }
        topic.track(join.try_into().unwrap(), &format!("user-{join}"), r#"{"status":"online"}"#);
        take(&mut topic);
    }
    assert_eq!(topic.now, end);
    topic.now += Duration::from_secs(1);
    take(&mut topic);

    assert_eq!(metas, JOINS, "each join is told once");
    let each = r#""user-1234":{"metas":[{"phx_ref":"0123456789abcdef","status":"online"}]},"#;
    assert!(told_bytes <= JOINS * each.len() + diffs * 30, "{told_bytes}");
    // 20,000 in the second, a quarter more because receivers come during each pause, and the last
    // diff. With one for each change it would be 12.5 million.
    assert!(frames <= 25_000 + 5000, "{frames}");
    assert!(renderings <= diffs + 1 && diffs < 200, "{renderings} of {diffs}");
    assert_eq!(topic.state().matches("phx_ref").count(), JOINS);
}

#[test]
fn a_crowd_under_one_key_leaves_in_one_diff() {
    const CROWD: u64 = 5000;
    let mut topic = Topic::new();
    topic.receivers = usize::try_from(CROWD).unwrap();
    for member in 0..CROWD {
        topic.track(member, "everybody", "{}");
    }
    let diff = topic.diff().unwrap();
    assert_eq!(diff.matches("phx_ref").count(), topic.receivers);
    assert_eq!(diff.matches("everybody").count(), 1);
    assert!(topic.state().len() < diff.len());

    let mut left = 0;
    let mut diffs = 0;
    for member in 0..CROWD {
        topic.untrack(member);
        if let Some(diff) = topic.diff() {
            (diffs, left) = (diffs + 1, left + diff.matches("phx_ref").count());
        }
    }
    assert_eq!((diffs, left), (0, 0), "not before the pause is over");
    topic.now = topic.presence.due_at().unwrap();
    assert_eq!(topic.diff().unwrap().matches("phx_ref").count(), topic.receivers);
    assert_eq!(topic.state(), "{}");
}

/// A client's own copy of a state, kept as `syncState` and `syncDiff` of @supabase/phoenix and
/// `RealtimePresence` of realtime-js 2.8 keep it: by key, a list of (ref, meta without ref).
#[derive(Debug, Default)]
struct Client {
    state: BTreeMap<String, Vec<(String, Value)>>,
    /// Diffs that came before the state did; none while the client is not waiting for one.
    early: Option<Vec<Value>>,
    joined: bool,
    /// The state came before any diff: each join and leave must be heard once.
    strict: bool,
}

fn entries(metas: &Value) -> Vec<(String, Value)> {
    let metas = metas["metas"].as_array().unwrap();
    assert!(!metas.is_empty());
    metas
        .iter()
        .map(|meta| {
            let mut meta = meta.as_object().unwrap().clone();
            let phx_ref = meta.remove("phx_ref").unwrap();
            meta.remove("phx_ref_prev");
            (phx_ref.as_str().unwrap().to_owned(), Value::Object(meta))
        })
        .collect()
}

fn without(list: &[(String, Value)], refs: &[(String, Value)]) -> Vec<(String, Value)> {
    let known = |(phx_ref, _): &&(String, Value)| !refs.iter().any(|(known, _)| known == phx_ref);
    list.iter().filter(known).cloned().collect()
}

impl Client {
    fn sync_state(&mut self, state: &Value) {
        let new: BTreeMap<String, Vec<(String, Value)>> =
            state.as_object().unwrap().iter().map(|(k, v)| (k.clone(), entries(v))).collect();
        let (mut joins, mut leaves) = (BTreeMap::new(), BTreeMap::new());
        for (key, metas) in &self.state {
            let gone = without(metas, new.get(key).map_or(&[], Vec::as_slice));
            if !gone.is_empty() {
                leaves.insert(key.clone(), gone);
            }
        }
        for (key, metas) in &new {
            let came = without(metas, self.state.get(key).map_or(&[], Vec::as_slice));
            if !came.is_empty() {
                joins.insert(key.clone(), came);
            }
        }
        self.apply(&joins, &leaves);
        for diff in self.early.take().unwrap_or_default() {
            self.sync_diff(&diff);
        }
    }

    fn sync_diff(&mut self, diff: &Value) {
        if let Some(early) = &mut self.early {
            early.push(diff.clone());
            return;
        }
        let side = |name: &str| -> BTreeMap<String, Vec<(String, Value)>> {
            diff[name].as_object().unwrap().iter().map(|(k, v)| (k.clone(), entries(v))).collect()
        };
        let (joins, leaves) = (side("joins"), side("leaves"));
        if self.strict {
            let known = |key: &str, phx_ref: &str| {
                self.state.get(key).is_some_and(|metas| metas.iter().any(|m| m.0 == phx_ref))
            };
            for (key, metas) in &joins {
                assert!(metas.iter().all(|m| !known(key, &m.0)), "told twice: {diff}");
            }
            for (key, metas) in &leaves {
                assert!(metas.iter().all(|m| known(key, &m.0)), "never told: {diff}");
            }
        }
        self.apply(&joins, &leaves);
    }

    fn apply(
        &mut self,
        joins: &BTreeMap<String, Vec<(String, Value)>>,
        leaves: &BTreeMap<String, Vec<(String, Value)>>,
    ) {
        for (key, metas) in joins {
            let mut list = without(self.state.get(key).map_or(&[], Vec::as_slice), metas);
            list.extend(metas.iter().cloned());
            self.state.insert(key.clone(), list);
        }
        for (key, metas) in leaves {
            let Some(list) = self.state.get_mut(key) else { continue };
            *list = without(list, metas);
            if list.is_empty() {
                self.state.remove(key);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Track {
        member: u64,
        key: u8,
        meta: u8,
    },
    Untrack(u64),
    Pass(u64),
    /// A client joins (again): it is a receiver, and its state comes now.
    Join(usize),
    /// The same, but its state comes with a later step: diffs may be before it. What an owner
    /// must not do: the real clients keep such diffs for their next join if they are cut before
    /// the state comes, and apply them then. Here they are not cut.
    JoinSlowly(usize),
    /// The states that are late come.
    Arrive,
    /// A client's socket is cut; it keeps what it knows.
    Cut(usize),
}

const CLIENTS: usize = 4;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5_u64, 0..3_u8, 0..3_u8)
            .prop_map(|(member, key, meta)| Step::Track { member, key, meta }),
        3 => (0..5_u64).prop_map(Step::Untrack),
        3 => (0..80_u64).prop_map(Step::Pass),
        2 => (0..CLIENTS).prop_map(Step::Join),
        1 => (0..CLIENTS).prop_map(Step::JoinSlowly),
        1 => Just(Step::Arrive),
        1 => (0..CLIENTS).prop_map(Step::Cut),
    ]
}

/// What a diff promises whoever receives it.
fn check_diff(diff: &Value, told: &Value) {
    assert_eq!(diff.as_object().unwrap().keys().collect::<Vec<_>>(), ["joins", "leaves"]);
    let empty = Map::new();
    let side = |name: &str| diff[name].as_object().unwrap_or(&empty);
    assert!(!side("joins").is_empty() || !side("leaves").is_empty(), "an empty diff");
    for (key, left) in side("leaves") {
        for meta in left["metas"].as_array().unwrap() {
            assert!(told[key]["metas"].as_array().unwrap().contains(meta), "never told: {meta}");
        }
    }
    for (key, joined) in side("joins") {
        for meta in joined["metas"].as_array().unwrap() {
            let Some(previous) = meta.get("phx_ref_prev") else { continue };
            let left = &diff["leaves"][key]["metas"];
            let left = left.as_array().map_or(&[][..], Vec::as_slice);
            assert!(left.iter().any(|m| m["phx_ref"] == *previous), "replaces nothing: {diff}");
        }
    }
}

fn run(steps: &[Step], receivers: usize) {
    let mut topic = Topic::new();
    topic.receivers = receivers;
    let mut truth: BTreeMap<u64, (String, Value)> = BTreeMap::new();
    let mut clients: [Client; CLIENTS] = std::array::from_fn(|_| Client::default());
    let end = [Step::Arrive, Step::Pass(1000)];
    for step in steps.iter().chain(&end) {
        match *step {
            Step::Track { member, key, meta } => {
                let (key, meta) = (format!("key{key}"), json!({ "meta": meta }));
                topic.track(member, &key, &meta.to_string());
                truth.insert(member, (key, meta));
            }
            Step::Untrack(member) => {
                topic.untrack(member);
                truth.remove(&member);
            }
            Step::Pass(ms) => topic.now += Duration::from_millis(ms),
            Step::Join(client) => {
                let client = &mut clients[client];
                if client.early.is_some() {
                    continue;
                }
                client.sync_state(&serde_json::from_str(&topic.state()).unwrap());
                (client.joined, client.strict) = (true, true);
            }
            Step::JoinSlowly(client) => {
                let client = &mut clients[client];
                if client.early.is_some() {
                    continue;
                }
                client.early = Some(Vec::new());
                (client.joined, client.strict) = (true, false);
            }
            Step::Arrive => {
                let state = serde_json::from_str(&topic.state()).unwrap();
                for client in &mut clients {
                    if client.early.is_some() {
                        client.sync_state(&state);
                    }
                }
            }
            Step::Cut(client) => {
                clients[client].joined &= clients[client].early.is_some();
            }
        }
        let told = serde_json::from_str(&topic.state()).unwrap();
        if let Some(diff) = topic.diff() {
            let diff = serde_json::from_str(&diff).unwrap();
            check_diff(&diff, &told);
            for client in clients.iter_mut().filter(|client| client.joined) {
                client.sync_diff(&diff);
            }
        }
    }

    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, meta) in truth.values() {
        expected.entry(key.clone()).or_default().push(meta.to_string());
    }
    for metas in expected.values_mut() {
        metas.sort();
    }
    let mut last = Client::default();
    last.sync_state(&serde_json::from_str(&topic.state()).unwrap());
    for client in clients.iter().filter(|client| client.joined).chain([&last]) {
        let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, metas) in &client.state {
            let metas = metas.iter().map(|(_, meta)| meta.to_string());
            known.entry(key.clone()).or_default().extend(metas);
        }
        for metas in known.values_mut() {
            metas.sort();
        }
        assert_eq!(known, expected);
        // The same versions, too; in the same order unless an early diff was applied twice.
        if client.strict {
            assert_eq!(client.state, last.state);
        }
    }
    assert_eq!(topic.presence.members(), truth.len());
    let bytes: usize = topic.presence.members.values().map(Tracked::bytes).sum();
    assert_eq!(topic.presence.bytes, bytes);
    let memory = bytes + truth.len() * MEMBER_OVERHEAD_BYTES;
    assert_eq!(topic.presence.supply.bytes(), memory);
    assert!(topic.presence.joins.is_empty() && topic.presence.leaves.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whoever_joins_whenever_ends_with_the_truth(
        steps in proptest::collection::vec(step(), 0..60),
        receivers in prop_oneof![Just(1_usize), Just(1000), Just(10_000)],
    ) {
        run(&steps, receivers);
    }

    #[test]
    fn no_text_panics_or_makes_a_state_that_is_no_json(
        key in any::<String>(),
        meta in r#"(\{|\[)?("(a|phx_ref|\\u00e9|\\ud800|é)":("x"|1|1e9|\{\}|null|\[ \]),?){0,4}\}?"#,
    ) {
        let mut topic = Topic::new();
        if topic.presence.track(MemberId(1), &key, &meta).is_ok() {
            let diff: Value = serde_json::from_str(&topic.diff().unwrap()).unwrap();
            let shown = diff["joins"][&key]["metas"][0].as_object().unwrap().clone();
            let mut sent: Map<String, Value> = serde_json::from_str(&meta).unwrap();
            sent.insert("phx_ref".into(), shown["phx_ref"].clone());
            prop_assert_eq!(Value::Object(shown), Value::Object(sent));
        }
    }
}
