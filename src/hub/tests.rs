//! The hub as a whole, against a list of who is where.

use std::collections::BTreeMap;
use std::time::Instant;

use proptest::prelude::*;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::outbox::Outbox;
use super::predicate::tests::{bound, relation};
use super::*;
use crate::change::{Commit, OldImage, Tuple, Value};
use crate::event::broadcast::{Encoding, Meta, UserEvent};
use crate::lsn::Lsn;

const INT: u32 = 23;
const TEXT: u32 = 25;

/// An outbox that everybody shares: what is held for a join never reaches it.
fn outbox() -> Arc<Outbox> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_server, _) = listener.accept().await.unwrap();
        Arc::new(Outbox::new(client, 1_000_000))
    })
}

#[derive(Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Inbox for Told {
    fn doubted(&self) {}

    fn notice(&self, message: String) {
        self.0.lock().unwrap().push(message);
    }
}

fn claims(role: u8, user: u8) -> Arc<Claims> {
    Arc::new(Claims {
        role: format!("role{role}").into(),
        subject: None,
        json: format!("user{user}").into(),
        expires_at: SystemTime::now() + Duration::from_hours(1),
    })
}

const FORMAT: Format = Format {
    id: 1,
    namespace: "",
    encode: |shown| Bytes::copy_from_slice(shown.data),
    broadcast: |_, _, broadcast, _| broadcast.payload(),
    push: |_, _, payload| Bytes::copy_from_slice(payload),
    word: |_, _, word| Bytes::from(format!("{word:?}")),
};

/// `table=t`, of rows whose first column is `value`, if one is given.
fn interest(value: Option<u8>) -> Interest {
    let Some(value) = value else {
        let subscription = json!({"schema": "public", "table": "t"});
        let subscription = Subscription::parse(&subscription).unwrap();
        return Interest { subscription, conditions: Box::default(), partitioned: false };
    };
    let subscription =
        json!({"schema": "public", "table": "t", "filter": format!("c0=eq.{value}")});
    let subscription = Subscription::parse(&subscription).unwrap();
    let operand = Operand::Value(value.to_string().into());
    Interest {
        subscription,
        conditions: [bound(0, INT, Operator::Eq, false, operand)].into(),
        partitioned: false,
    }
}

fn registration(
    subscriber: &Arc<Subscriber>,
    claims: Arc<Claims>,
    interests: impl Into<Arc<[Interest]>>,
) -> Registration {
    let (subscriber, topic) = (Arc::clone(subscriber), Arc::from("realtime:t"));
    Registration { subscriber, format: FORMAT, topic, claims, interests: interests.into() }
}

fn change(operation: Operation, old: Option<(OldImage, u8)>, new: Option<u8>) -> Change {
    let tuple = |value: u8| Tuple::copied([Value::Text(value.to_string().as_bytes())]);
    Change {
        operation,
        relation: Arc::new(relation(&[INT])),
        record: new.map(tuple),
        old_record: old.map(|(image, value)| (image, tuple(value))),
        commit: Commit { xid: 1, lsn: Lsn::new(1), time: SystemTime::UNIX_EPOCH },
        ordinal: 0,
        origin: None,
    }
}

struct World {
    hub: Arc<Hub>,
    outbox: Arc<Outbox>,
}

impl World {
    fn new() -> Self {
        Self { hub: Arc::default(), outbox: outbox() }
    }

    fn subscriber(&self) -> Arc<Subscriber> {
        let later = SystemTime::now() + Duration::from_hours(1);
        Subscriber::new(Arc::clone(&self.outbox), Box::new(Told::default()), later)
    }

    fn join(&self, claims: Arc<Claims>, interest: Interest) -> (Arc<Membership>, Arc<Subscriber>) {
        let subscriber = self.subscriber();
        let registration = registration(&subscriber, claims, [interest]);
        (Arc::new(self.hub.join(registration)), subscriber)
    }

    fn candidates(&self, change: &Change) -> Vec<Candidate> {
        self.hub.define(&change.relation, false);
        self.hub.candidates(std::slice::from_ref(change), true)
    }

    /// A frame with this text for everybody in the audiences of these candidates.
    fn publish(&self, candidates: &[Candidate], text: &'static str) {
        let deliveries = candidates.iter().map(|candidate| {
            let (audience, to) = (candidate.audience, Recipients::All);
            rows(audience, to, Bytes::from_static(text.as_bytes()))
        });
        self.hub.publish(&deliveries.collect::<Vec<_>>());
        self.hub.end_batch();
    }
}

/// One frame, of some change.
fn rows(audience: AudienceId, to: Recipients, frame: Bytes) -> Outgoing {
    Outgoing::Rows(Delivery::new(audience, to, Place::after(Lsn::ZERO), frame))
}

/// Its outbox, and the client's end.
async fn connected() -> (Arc<Outbox>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    server.writable().await.unwrap();
    (Arc::new(Outbox::new(server, 1_000_000)), client)
}

/// The next so many bytes.
async fn read(client: &mut TcpStream, count: usize) -> String {
    let mut bytes = vec![0; count];
    client.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn what_was_shown_of_the_past_does_not_come_again_when_it_is_published() {
    let hub = Arc::new(Hub::default());
    let (outbox, mut client) = connected().await;
    let later = SystemTime::now() + Duration::from_hours(1);
    let subscriber = Subscriber::new(outbox, Box::new(Told::default()), later);
    let registration = registration(&subscriber, claims(0, 0), [interest(None)]);
    let membership = Arc::new(hub.join_from(registration, Some(Place::ZERO)));
    subscriber.go_live();
    let change = change(Operation::Insert, None, Some(1));
    hub.define(&change.relation, false);
    let audience = hub.candidates(std::slice::from_ref(&change), true)[0].audience;
    let publish = |commit: u64, text: &'static str| {
        let (place, frame) = (Place::after(Lsn::new(commit)), Bytes::from_static(text.as_bytes()));
        let rows = Outgoing::Rows(Delivery::new(audience, Recipients::All, place, frame));
        hub.publish(&[rows]).1.flush();
    };
    publish(10, "shown and published;");
    publish(30, "published;");
    let reached = Place::after(Lsn::new(20));
    let returner = Comeback::new(&subscriber, Some(&membership), []).find().unwrap();
    assert_eq!(returner.caught_up(reached, Bytes::from_static(b"caught up;")), None);
    // It was read, and so shown, before it was decided here.
    publish(20, "shown and published;");
    publish(40, "live;");
    let expected = "caught up;published;live;";
    assert_eq!(read(&mut client, expected.len()).await, expected);
}

#[tokio::test]
async fn a_crowd_is_written_to_in_turns_and_everybody_in_order() {
    let hub = Arc::new(Hub::default());
    let mut clients = Vec::new();
    let mut memberships = Vec::new();
    for _ in 0..3 {
        let (outbox, client) = connected().await;
        let later = SystemTime::now() + Duration::from_hours(1);
        let subscriber = Subscriber::new(outbox, Box::new(Told::default()), later);
        memberships.push(hub.join(registration(&subscriber, claims(0, 0), [interest(None)])));
        subscriber.go_live();
        clients.push(client);
    }
    let change = change(Operation::Insert, None, Some(1));
    hub.define(&change.relation, false);
    let audience = hub.candidates(std::slice::from_ref(&change), true)[0].audience;
    let publish = |text: &'static str| {
        let frame = Bytes::from_static(text.as_bytes());
        hub.publish(&[rows(audience, Recipients::All, frame)])
    };
    let (delivered, mut first) = publish("1;");
    assert_eq!((delivered, first.len()), (3, 3), "nobody was written to yet");
    let is_over = Instant::now();
    assert!(!first.flush_until(is_over), "one turn is one write where time is short");
    let (_, mut second) = publish("2;");
    assert_eq!(second.len(), 1, "two still wait for their turn, with more to be written then");
    first.flush_in_turns().await;
    second.flush_in_turns().await;
    for mut client in clients {
        assert_eq!(read(&mut client, 4).await, "1;2;");
    }
}

#[test]
fn what_was_decided_for_an_audience_never_reaches_the_next_one() {
    let world = World::new();
    let (service, _) = world.join(claims(0, 0), interest(None));
    let candidates = world.candidates(&change(Operation::Insert, None, Some(1)));
    assert_eq!(candidates.len(), 1);
    world.hub.leave(&service);
    let (_anonymous, subscriber) = world.join(claims(1, 1), interest(None));
    world.publish(&candidates, "for role0");
    assert!(subscriber.waiting().is_empty());
}

#[test]
fn what_was_decided_for_a_party_never_reaches_the_next_one() {
    let world = World::new();
    let (_stays, _) = world.join(claims(0, 0), interest(None));
    let (leaves, _) = world.join(claims(0, 1), interest(None));
    let candidates = world.candidates(&change(Operation::Insert, None, Some(1)));
    let view = world.hub.audience(candidates[0].audience).unwrap();
    let party = view.parties.iter().find(|(_, json)| **json == *"user1").unwrap().0;
    world.hub.leave(&leaves);
    let (_comes, subscriber) = world.join(claims(0, 2), interest(None));
    let (audience, to) = (candidates[0].audience, Recipients::Parties([party].into()));
    world.hub.publish(&[rows(audience, to, Bytes::from_static(b"x"))]);
    assert!(subscriber.waiting().is_empty());
}

#[test]
fn a_refresh_waits_for_the_batch_that_is_being_decided() {
    let world = World::new();
    let (membership, subscriber) = world.join(claims(0, 0), interest(None));
    let candidates = world.candidates(&change(Operation::Insert, None, Some(1)));
    let turn = membership.begin_refresh();
    let other = registration(&subscriber, claims(1, 1), [interest(None)]);
    world.hub.refresh(&membership, turn, other);
    let role = |candidate: &Candidate| world.hub.audience(candidate.audience).unwrap().role;
    assert_eq!(&*role(&candidates[0]), "role0");
    world.publish(&candidates, "decided before");
    assert_eq!(subscriber.waiting().len(), 1);
    let candidates = world.candidates(&change(Operation::Insert, None, Some(1)));
    assert_eq!(&*role(&candidates[0]), "role1");
    assert_eq!(candidates.len(), 1);
}

/// Claims of this user that are valid for so many seconds more, or less.
fn valid(user: &str, seconds: i64) -> Arc<Claims> {
    let length = Duration::from_secs(seconds.unsigned_abs());
    let now = SystemTime::now();
    let expires_at = if seconds < 0 { now - length } else { now + length };
    let (role, json) = ("role0".into(), format!("{user} {seconds}").into());
    Arc::new(Claims { role, subject: Some(user.into()), json, expires_at })
}

/// Of a change, what the party with these claims is shown.
fn show(world: &World, claims: &Claims, text: &'static str) {
    let candidates = world.candidates(&change(Operation::Insert, None, Some(1)));
    for candidate in candidates {
        let view = world.hub.audience(candidate.audience).unwrap();
        let party = view.parties.iter().find(|(_, json)| *json == claims.json);
        let Some((party, _)) = party else { continue };
        let to = Recipients::Parties([*party].into());
        let frame = Bytes::from_static(text.as_bytes());
        world.hub.publish(&[rows(candidate.audience, to, frame)]);
    }
    world.hub.end_batch();
}

fn texts(subscriber: &Subscriber) -> Vec<String> {
    let waiting = subscriber.waiting().into_iter();
    waiting.map(|frame| String::from_utf8(frame.to_vec()).unwrap()).collect()
}

#[test]
fn what_newer_claims_are_shown_after_the_older_ones_expired_waits_for_their_check() {
    for (allowed, in_batch) in [(true, false), (true, true), (false, false), (false, true)] {
        let world = World::new();
        let (old, new) = (valid("a", -5), valid("a", 60));
        let subscriber =
            Subscriber::new(Arc::clone(&world.outbox), Box::new(Told::default()), old.expires_at);
        let first = registration(&subscriber, Arc::clone(&old), [interest(None)]);
        let membership = Arc::new(world.hub.join(first));
        show(&world, &old, "before");
        assert!(texts(&subscriber).is_empty(), "the older ones have expired");
        let turn = membership.begin_refresh();
        if in_batch {
            world.candidates(&change(Operation::Insert, None, Some(1)));
        }
        world.hub.stand_in(&membership, turn, &new);
        world.hub.stand_in(&membership, turn, &new);
        world.hub.end_batch();
        show(&world, &old, "by the older ones");
        show(&world, &new, "1");
        show(&world, &new, "2");
        assert!(texts(&subscriber).is_empty(), "nobody knows yet whether they may subscribe");
        if allowed {
            let again = registration(&subscriber, Arc::clone(&new), [interest(None)]);
            world.hub.refresh(&membership, turn, again);
            show(&world, &new, "3");
            assert_eq!(texts(&subscriber), ["1", "2", "3"]);
        } else {
            world.hub.suspend(&membership, turn);
            show(&world, &new, "3");
            assert!(texts(&subscriber).is_empty());
        }
        drop(membership);
        assert!(world.hub.is_empty() && world.hub.subscribers() == 0);
    }
}

#[test]
fn until_the_older_claims_expire_they_alone_decide() {
    let world = World::new();
    let (old, new) = (valid("a", 15), valid("a", 60));
    let subscriber =
        Subscriber::new(Arc::clone(&world.outbox), Box::new(Told::default()), old.expires_at);
    let first = registration(&subscriber, Arc::clone(&old), [interest(None)]);
    let membership = Arc::new(world.hub.join(first));
    assert!(membership.until_stand_in().is_zero());
    let turn = membership.begin_refresh();
    world.hub.stand_in(&membership, turn, &new);
    show(&world, &old, "1");
    show(&world, &new, "2");
    let again = registration(&subscriber, Arc::clone(&new), [interest(None)]);
    world.hub.refresh(&membership, turn, again);
    show(&world, &new, "3");
    assert_eq!(texts(&subscriber), ["1", "3"]);
    // Long before, there is nothing to do.
    assert!(membership.until_stand_in() > Duration::from_secs(30));
    world.hub.stand_in(&membership, membership.begin_refresh(), &valid("a", 70));
    assert_eq!(world.hub.subscribers(), 1);
}

#[test]
fn what_was_held_for_one_token_is_kept_for_the_next_one_of_its_user_only() {
    for (next, expected) in [("a", &["1", "2"][..]), ("b", &["2"])] {
        let world = World::new();
        let (old, new, next) = (valid("a", -5), valid("a", 60), valid(next, 90));
        let subscriber =
            Subscriber::new(Arc::clone(&world.outbox), Box::new(Told::default()), old.expires_at);
        let first = registration(&subscriber, old, [interest(None)]);
        let membership = Arc::new(world.hub.join(first));
        world.hub.stand_in(&membership, membership.begin_refresh(), &new);
        show(&world, &new, "1");
        let turn = membership.begin_refresh();
        world.hub.stand_in(&membership, turn, &next);
        show(&world, &new, "not any more");
        show(&world, &next, "2");
        world.hub.refresh(&membership, turn, registration(&subscriber, next, [interest(None)]));
        assert_eq!(texts(&subscriber), expected);
        world.hub.leave(&membership);
        assert!(world.hub.is_empty());
    }
}

#[test]
fn only_the_latest_refresh_counts() {
    let world = World::new();
    let (membership, subscriber) = world.join(claims(0, 0), interest(None));
    let (first, second) = (membership.begin_refresh(), membership.begin_refresh());
    let to = |user| registration(&subscriber, claims(0, user), [interest(None)]);
    world.hub.refresh(&membership, second, to(2));
    world.hub.refresh(&membership, first, to(1));
    world.hub.suspend(&membership, first);
    let candidates = world.candidates(&change(Operation::Insert, None, Some(1)));
    let view = world.hub.audience(candidates[0].audience).unwrap();
    assert_eq!(view.parties.iter().map(|(_, json)| &**json).collect::<Vec<_>>(), ["user2"]);
    assert!(!membership.is_awaiting(first) && membership.is_awaiting(second));
}

#[test]
fn a_refused_channel_comes_back_with_claims_that_are_not() {
    let world = World::new();
    let (membership, subscriber) = world.join(claims(0, 0), interest(None));
    world.hub.suspend(&membership, membership.begin_refresh());
    assert_eq!(world.hub.subscribers(), 0);
    let turn = membership.begin_refresh();
    let registration = registration(&subscriber, claims(0, 1), [interest(None)]);
    world.hub.refresh(&membership, turn, registration);
    let candidates = world.candidates(&change(Operation::Insert, None, Some(1)));
    world.publish(&candidates, "again");
    assert_eq!(subscriber.waiting().len(), 1);
    world.hub.leave(&membership);
    assert!(!membership.is_awaiting(turn));
}

#[test]
fn a_refresh_never_brings_back_what_left() {
    let world = World::new();
    let (membership, subscriber) = world.join(claims(0, 0), interest(None));
    let turn = membership.begin_refresh();
    world.hub.leave(&membership);
    let registration = registration(&subscriber, claims(0, 0), [interest(None)]);
    world.hub.refresh(&membership, turn, registration);
    assert_eq!(world.hub.subscribers(), 0);
}

#[test]
fn an_ended_subscription_is_told_and_a_new_one_is_not_part_of_it() {
    let world = World::new();
    let told = Told::default();
    let heard = Arc::clone(&told.0);
    let later = SystemTime::now() + Duration::from_hours(1);
    let subscriber = Subscriber::new(Arc::clone(&world.outbox), Box::new(told), later);
    let first = world.hub.join(registration(&subscriber, claims(0, 0), [interest(Some(1))]));
    let inserted = change(Operation::Insert, None, Some(1));
    let candidates = world.candidates(&inserted);
    world.hub.end_binding(candidates[0].binding, "it ended");
    assert_eq!(*heard.lock().unwrap(), ["it ended"]);
    assert!(world.candidates(&inserted).is_empty());
    assert!(!world.hub.wants("public", "t"));
    let (_second, subscriber) = world.join(claims(0, 0), interest(Some(1)));
    let candidates = world.candidates(&inserted);
    world.publish(&candidates, "for the second");
    assert_eq!(subscriber.waiting().len(), 1);
    drop(first);
    assert_eq!(world.candidates(&inserted).len(), 1);
}

#[test]
fn the_generation_changes_with_what_is_wanted_and_only_then() {
    let world = World::new();
    let start = world.hub.generation();
    let (first, _) = world.join(claims(0, 0), interest(None));
    let one = world.hub.generation();
    assert_ne!(start, one);
    let (second, _) = world.join(claims(1, 1), interest(Some(3)));
    world.hub.leave(&first);
    assert_eq!(world.hub.generation(), one);
    world.hub.leave(&second);
    assert_ne!(world.hub.generation(), one);
    assert!(!world.hub.wants("public", "t"));
}

#[test]
fn a_subscription_checked_against_the_next_definition_fits_once_that_comes() {
    let world = World::new();
    let (_other, _) = world.join(claims(0, 0), interest(None));
    let old = change(Operation::Insert, None, Some(1));
    assert_eq!(world.candidates(&old).len(), 1);
    let mut ahead = interest(Some(1));
    ahead.conditions[0].type_oid = TEXT;
    ahead.conditions[0].base_oid = TEXT;
    let (_early, _) = world.join(claims(0, 0), ahead);
    // Until then, those who fit the old definition go on.
    assert_eq!(world.hub.candidates(std::slice::from_ref(&old), true).len(), 1);
    let relation = Arc::new(relation(&[TEXT]));
    assert!(world.hub.define(&relation, false).is_empty());
    let new = Change { relation, ..old.clone() };
    assert_eq!(world.hub.candidates(&[new], true).len(), 2);
    let unfit = world.hub.define(&old.relation, false);
    assert_eq!(unfit.len(), 1, "{unfit:?}");
}

#[derive(Debug, Clone)]
enum Step {
    Join { role: u8, user: u8, filter: Option<u8> },
    Leave(usize),
    Refresh { who: usize, user: u8 },
    Suspend(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let filter = || prop_oneof![Just(None), (0..3_u8).prop_map(Some)];
    prop_oneof![
        4 => (0..2_u8, 0..3_u8, filter())
            .prop_map(|(role, user, filter)| Step::Join { role, user, filter }),
        2 => (0..8_usize).prop_map(Step::Leave),
        2 => (0..8_usize, 0..3_u8).prop_map(|(who, user)| Step::Refresh { who, user }),
        1 => (0..8_usize).prop_map(Step::Suspend),
    ]
}

/// One subscriber as the model has it.
struct Member {
    membership: Arc<Membership>,
    subscriber: Arc<Subscriber>,
    role: u8,
    filter: Option<u8>,
    /// Whose claims; none: out, or gone.
    user: Option<u8>,
    joined_as: u8,
    gone: bool,
    received: usize,
}

fn run(world: &World, members: &mut Vec<Member>, step: &Step) {
    match *step {
        Step::Join { role, user, filter } => {
            let (membership, subscriber) = world.join(claims(role, user), interest(filter));
            members.push(Member {
                membership,
                subscriber,
                role,
                filter,
                user: Some(user),
                joined_as: user,
                gone: false,
                received: 0,
            });
        }
        Step::Leave(who) => {
            if let Some(member) = members.get_mut(who) {
                world.hub.leave(&member.membership);
                (member.user, member.gone) = (None, true);
            }
        }
        Step::Refresh { who, user } => {
            if let Some(member) = members.get_mut(who) {
                let turn = member.membership.begin_refresh();
                let interests = [interest(member.filter)];
                let claims = claims(member.role, user);
                let registration = registration(&member.subscriber, claims, interests);
                world.hub.refresh(&member.membership, turn, registration);
                if !member.gone {
                    member.user = Some(user);
                }
            }
        }
        Step::Suspend(who) => {
            if let Some(member) = members.get_mut(who) {
                world.hub.suspend(&member.membership, member.membership.begin_refresh());
                member.user = None;
            }
        }
    }
}

proptest! {
    /// Users see rows with their own number; role 1 sees all. Whoever was there when the
    /// candidates were found, and still is at the end, gets exactly what it may see by the claims
    /// of then; whoever is not gets nothing.
    #[test]
    fn everybody_gets_what_was_decided_for_their_claims(
        batches in proptest::collection::vec(
            (proptest::collection::vec(step(), 0..6), proptest::collection::vec(step(), 0..4), 0..3_u8),
            1..5),
    ) {
        let world = World::new();
        let mut members: Vec<Member> = Vec::new();
        for (before, between, value) in &batches {
            for step in before {
                run(&world, &mut members, step);
            }
            let candidates = world.candidates(&change(Operation::Insert, None, Some(*value)));
            let mut deliveries = Vec::new();
            for candidate in &candidates {
                let view = world.hub.audience(candidate.audience).unwrap();
                let to = if *view.role == *"role1" {
                    Recipients::All
                } else {
                    let sees = format!("user{value}");
                    let parties = view.parties.iter().filter(|(_, json)| **json == *sees);
                    Recipients::Parties(parties.map(|(id, _)| *id).collect())
                };
                let frame = Bytes::from(format!("{}", view.role));
                deliveries.push(rows(candidate.audience, to, frame));
            }
            let decided: BTreeMap<usize, bool> = members
                .iter()
                .enumerate()
                .filter_map(|(who, member)| {
                    let matches = member.filter.is_none_or(|filter| filter == *value);
                    let sees = member.role == 1 || member.user == Some(*value);
                    member.user.map(|_| (who, matches && sees))
                })
                .collect();
            let there = members.len();
            let mut interrupted = Vec::new();
            for step in between {
                if let Step::Leave(who) | Step::Suspend(who) = step {
                    interrupted.push(*who);
                }
                run(&world, &mut members, step);
            }
            world.hub.publish(&deliveries);
            world.hub.end_batch();
            for (who, member) in members.iter_mut().enumerate() {
                let now = member.subscriber.waiting();
                let own = format!("role{}", member.role);
                prop_assert!(now.iter().all(|frame| **frame == *own.as_bytes()));
                if member.gone {
                    prop_assert!(now.is_empty(), "{who} left");
                    continue;
                }
                let got = now.len() - member.received;
                member.received = now.len();
                let allowed = decided.get(&who).copied().unwrap_or(false);
                if who >= there {
                    // Came in between: into a party that was decided about, or none.
                    let matches = member.filter.is_none_or(|filter| filter == *value);
                    let sees = member.role == 1 || member.joined_as == *value;
                    prop_assert!(got <= usize::from(matches && sees), "{who} got {got}");
                } else if interrupted.contains(&who) {
                    prop_assert!(got <= usize::from(allowed), "{who} got {got}");
                } else {
                    prop_assert_eq!(got, usize::from(allowed), "{}", who);
                }
            }
            prop_assert_eq!(world.hub.subscribers(), members.iter().filter(|m| m.user.is_some()).count());
        }
        for member in &members {
            world.hub.leave(&member.membership);
        }
        prop_assert!(!world.hub.wants("public", "t"));
        prop_assert!(world.hub.is_empty());
    }
}

/// A channel whose join is not answered, its claims valid for so many seconds.
fn entrant(outbox: &Arc<Outbox>, valid_seconds: u64) -> Entrant {
    let expires_at = SystemTime::now() + Duration::from_secs(valid_seconds);
    let subscriber = Subscriber::new(Arc::clone(outbox), Box::new(Told::default()), expires_at);
    let (hears, replays, connection_id) = (true, false, None);
    Entrant { subscriber, format: FORMAT, hears, expires_at, replays, connection_id }
}

fn room(topic: &str) -> RoomName {
    RoomName { topic: topic.into(), private: true }
}

fn said(bytes: usize) -> Broadcast {
    Broadcast::Whole(vec![b'x'; bytes].into())
}

#[test]
fn what_waits_for_the_joins_of_one_connection_is_bounded_in_bytes() {
    let hub = Arc::new(Hub::default());
    let (joining, replaying) = (outbox(), outbox());
    let mut dirty = DirtyList::default();
    let tell = |topic: &str, dirty: &mut DirtyList| {
        hub.broadcast(&room(topic), &said(400_000), dirty);
        (joining.closing(), replaying.closing())
    };
    // What waited is forgotten with its channels: the second time is as the first.
    for _ in 0..2 {
        let places = ["a", "b", "c"].map(|topic| {
            let replays = Entrant { replays: true, ..entrant(&replaying, 60) };
            [entrant(&joining, 60), replays].map(|entrant| hub.enter(&room(topic), entrant))
        });
        assert_eq!(tell("a", &mut dirty), (None, None));
        assert_eq!(tell("b", &mut dirty), (None, None));
        drop(places);
    }
    let _places = ["a", "b", "c"].map(|topic| {
        let replays = Entrant { replays: true, ..entrant(&replaying, 60) };
        [entrant(&joining, 60), replays].map(|entrant| hub.enter(&room(topic), entrant))
    });
    for topic in ["a", "b"] {
        assert_eq!(tell(topic, &mut dirty), (None, None));
    }
    let too_slow = Some(outbox::CloseReason::TooSlow);
    assert_eq!(tell("c", &mut dirty), (too_slow, too_slow));
}

#[test]
fn several_rooms_are_told_once_a_connection_and_not_the_one_that_wrote() {
    let hub = Arc::new(Hub::default());
    let (both, second, writer) = (outbox(), outbox(), outbox());
    let enter = |topic: &str, outbox: &Arc<Outbox>, id: Option<&str>| {
        let entrant = Entrant { connection_id: id.map(Into::into), ..entrant(outbox, 60) };
        let subscriber = Arc::clone(&entrant.subscriber);
        (hub.enter(&room(topic), entrant), subscriber)
    };
    let members = [
        enter("a", &both, None),
        enter("b", &both, Some("another")),
        enter("b", &second, None),
        enter("b", &writer, Some("writer")),
    ];
    let cursor = Cursor { place: Place::ZERO, epoch: Epoch::default() };
    let told = |except: Option<&str>| {
        Outgoing::Told(super::Told {
            rooms: ["a", "b", "nobody's"].map(room).into(),
            what: said(10),
            except: except.map(Into::into),
            place: Place::after(Lsn::new(1)),
            cursor,
        })
    };
    let count = || members.iter().map(|(_, member)| member.waiting().len()).collect::<Vec<_>>();
    assert_eq!(hub.publish(&[told(Some("writer"))]).0, 2);
    assert_eq!(count(), [1, 0, 1, 0]);
    assert_eq!(hub.publish(&[told(None)]).0, 3);
    assert_eq!(count(), [2, 0, 2, 1]);
}

#[test]
fn what_comes_while_newer_claims_are_looked_at_is_kept_and_not_lost() {
    let hub = Arc::new(Hub::default());
    let later = SystemTime::now() + Duration::from_mins(1);
    let mut dirty = DirtyList::default();
    for (awaits, expected) in [(true, true), (false, false)] {
        let outbox = outbox();
        let entrant = entrant(&outbox, 0);
        let subscriber = Arc::clone(&entrant.subscriber);
        let place = hub.enter(&room("r"), entrant);
        if awaits {
            place.await_renewal();
        }
        hub.broadcast(&room("r"), &said(10), &mut dirty);
        assert!(subscriber.waiting().is_empty(), "older claims have expired");
        place.renew(true, later, 0, &mut dirty);
        assert_eq!(!subscriber.waiting().is_empty(), expected);
        hub.broadcast(&room("r"), &said(20), &mut dirty);
        let lengths: Vec<usize> = subscriber.waiting().iter().map(Bytes::len).collect();
        assert_eq!(lengths, if expected { vec![10, 20] } else { vec![20] });
    }
}

#[test]
fn what_was_kept_is_for_nobody_who_no_longer_hears() {
    let hub = Arc::new(Hub::default());
    let later = SystemTime::now() + Duration::from_mins(1);
    let mut dirty = DirtyList::default();
    let entrant = entrant(&outbox(), 0);
    let subscriber = Arc::clone(&entrant.subscriber);
    let place = hub.enter(&room("r"), entrant);
    place.await_renewal();
    hub.broadcast(&room("r"), &said(10), &mut dirty);
    place.renew(false, later, 0, &mut dirty);
    assert!(subscriber.waiting().is_empty());
}

#[test]
fn who_is_doubted_hears_nothing_until_that_is_answered() {
    let hub = Arc::new(Hub::default());
    let later = SystemTime::now() + Duration::from_mins(1);
    let mut dirty = DirtyList::default();
    let private =
        |topic: &str| RoomName { topic: format!("realtime:{topic}").into(), private: true };
    let enter = |name: &RoomName| {
        let entrant = Entrant { expires_at: later, ..entrant(&outbox(), 0) };
        let subscriber = Arc::clone(&entrant.subscriber);
        (hub.enter(name, entrant), subscriber)
    };
    let (place, subscriber) = enter(&private("map:1"));
    let (_other, unconcerned) = enter(&private("map:2"));
    let (_public, everybody) = enter(&RoomName { private: false, ..private("map:1") });
    let before = (place.doubts(), hub.doubts());
    assert_eq!(hub.doubt(|topic| topic == "map:1"), 1);
    assert_ne!(hub.doubts(), before.1);
    for room in
        [private("map:1"), private("map:2"), RoomName { private: false, ..private("map:1") }]
    {
        hub.broadcast(&room, &said(10), &mut dirty);
    }
    assert_eq!(unconcerned.waiting().len(), 1);
    assert_eq!(everybody.waiting().len(), 1);
    // The answer to a question from before is none.
    place.renew(true, later, before.0, &mut dirty);
    assert!(subscriber.waiting().is_empty());
    place.renew(true, later, place.doubts(), &mut dirty);
    assert_eq!(subscriber.waiting().len(), 1);
    // An answer without hearing is one too: what came meanwhile is for nobody.
    hub.doubt(|_| true);
    hub.broadcast(&private("map:1"), &said(20), &mut dirty);
    place.renew(false, later, place.doubts(), &mut dirty);
    assert_eq!(subscriber.waiting().len(), 1);
}

/// An event of two rooms, both of one connection: what it hears when the rooms that are `doubted` are
/// answered with whether it may stay.
#[track_caller]
fn heard_of_two_rooms(doubted: &[(&str, bool)], at_once: usize, in_the_end: usize) {
    let hub = Arc::new(Hub::default());
    let later = SystemTime::now() + Duration::from_mins(1);
    let outbox = outbox();
    let private =
        |topic: &str| RoomName { topic: format!("realtime:{topic}").into(), private: true };
    let mut members: Vec<_> = ["a", "b"]
        .map(|topic| {
            let entrant = Entrant { expires_at: later, ..entrant(&outbox, 0) };
            let subscriber = Arc::clone(&entrant.subscriber);
            (topic, Some(hub.enter(&private(topic), entrant)), subscriber)
        })
        .into();
    hub.doubt(|topic| doubted.iter().any(|(doubted, _)| *doubted == topic));
    let cursor = Cursor { place: Place::ZERO, epoch: Epoch::default() };
    let (what, place) = (said(10), Place::after(Lsn::new(1)));
    let rooms = ["a", "b"].map(private).into();
    hub.publish(&[Outgoing::Told(super::Told { rooms, what, except: None, place, cursor })]);
    let count = |members: &[(&str, Option<Occupancy>, Arc<Subscriber>)]| {
        members.iter().map(|(_, _, member)| member.waiting().len()).sum::<usize>()
    };
    assert_eq!(count(&members), at_once, "{doubted:?}");
    for (topic, stays) in doubted {
        let (_, place, _) = members.iter_mut().find(|(known, ..)| known == topic).unwrap();
        if *stays {
            let place = place.as_ref().unwrap();
            place.renew(true, later, place.doubts(), &mut DirtyList::default());
        } else {
            *place = None;
        }
    }
    assert_eq!(count(&members), in_the_end, "{doubted:?}");
}

#[test]
fn an_event_of_several_rooms_is_heard_once_in_whichever_lets_its_hearer_stay() {
    heard_of_two_rooms(&[], 1, 1);
    heard_of_two_rooms(&[("a", true)], 1, 1);
    heard_of_two_rooms(&[("a", false)], 1, 1);
    heard_of_two_rooms(&[("b", false)], 1, 1);
    heard_of_two_rooms(&[("a", true), ("b", true)], 0, 1);
    heard_of_two_rooms(&[("a", false), ("b", true)], 0, 1);
    heard_of_two_rooms(&[("b", true), ("a", false)], 0, 1);
    heard_of_two_rooms(&[("a", false), ("b", false)], 0, 0);
}

/// What a client gets that replays `stored` after `live` has come; a message is its name and the
/// second it was stored in, if it was.
fn replayed(stored: &[(&str, u8)], live: &[(&str, Option<u8>)]) -> String {
    let hub = Arc::new(Hub::default());
    let entrant = Entrant { replays: true, ..entrant(&outbox(), 60) };
    let subscriber = Arc::clone(&entrant.subscriber);
    let place = hub.enter(&room("r"), entrant);
    let time = |second: u8| Box::from(format!("2026-11-21 00:00:{second:02}"));
    let mut dirty = DirtyList::default();
    for (name, second) in live {
        let stored_at = second.map(time);
        let meta = Meta { id: Some((*name).into()), stored_at, ..Meta::default() };
        let (event, data) = ("e".into(), Bytes::from(format!("{name:?}")));
        let user = UserEvent { event, encoding: Encoding::Json, data, meta };
        hub.broadcast(&room("r"), &Broadcast::User(user), &mut dirty);
    }
    assert!(subscriber.waiting().is_empty());
    let stored = stored.iter().map(|(name, second)| Replayed {
        id: (*name).into(),
        at: Some(time(*second)),
        frame: Some(Bytes::from(format!("*{name}"))),
    });
    place.replay(stored.collect());
    let texts = subscriber.waiting().into_iter().map(|frame| {
        let text = String::from_utf8(frame.to_vec()).unwrap();
        // A live one is as rooms render it.
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        json["meta"]["id"].as_str().map_or(text.clone(), str::to_owned)
    });
    texts.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_replay_and_what_came_meanwhile_are_in_one_order() {
    let stored = [("c", 3), ("d", 4), ("e", 5)];
    for (live, expected) in [
        (&[][..], "*c *d *e"),
        // More were stored than are replayed, and none of these has come live yet.
        (&[("a", Some(1)), ("b", Some(2))], "a b *c *d *e"),
        (&[("a", Some(1)), ("b", Some(2)), ("c", Some(3)), ("d", Some(4))], "a b *c *d *e"),
        (&[("e", Some(5)), ("f", Some(6))], "*c *d *e f"),
        (&[("f", Some(6)), ("g", Some(7))], "*c *d *e f g"),
        // In between, but hidden from who reads the store.
        (&[("x", Some(4)), ("e", Some(5)), ("f", Some(6))], "*c *d x *e f"),
        // What a client said has no time; what was stored before it came was there before.
        (&[("x", None), ("f", Some(6))], "*c *d *e x f"),
        (&[("x", None), ("e", Some(5)), ("y", None)], "*c *d x *e y"),
        // Of one transaction: only the log tells.
        (&[("a", Some(3)), ("c", Some(3)), ("d", Some(4)), ("e", Some(5))], "a *c *d *e"),
        // It began before the others and ended after them.
        (&[("d", Some(4)), ("e", Some(5)), ("x", Some(1))], "*c *d *e x"),
        // What came live stays in its order.
        (&[("f", Some(6)), ("x", Some(1))], "*c *d *e f x"),
    ] {
        assert_eq!(replayed(&stored, live), expected, "{live:?}");
    }
    assert_eq!(replayed(&[], &[("f", Some(6)), ("g", None)]), "f g");
}

/// Whoever makes frames for a room has its lock; who wants in there waits, and nobody else.
#[test]
fn a_crowded_room_holds_up_no_other() {
    type Busy = Box<dyn FnOnce()>;
    thread_local! {
        static BUSY: std::cell::RefCell<Option<Busy>> = std::cell::RefCell::default();
    }
    let busy = Format {
        broadcast: |_, _, broadcast, _| {
            BUSY.with_borrow_mut(Option::take).into_iter().for_each(|busy| busy());
            broadcast.payload()
        },
        ..FORMAT
    };
    let (hub, outbox) = (Arc::new(Hub::default()), outbox());
    let crowded = hub.enter(&room("crowded"), Entrant { format: busy, ..entrant(&outbox, 60) });
    let visit = move |topic: &'static str, times: usize| {
        let (hub, outbox) = (Arc::clone(&hub), Arc::clone(&outbox));
        let (over, is_over) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..times {
                drop(hub.enter(&room(topic), entrant(&outbox, 60)));
            }
            let _ = over.send(());
        });
        move || is_over.recv_timeout(Duration::from_secs(5)).is_ok()
    };
    let (told, verdict) = std::sync::mpsc::channel();
    BUSY.set(Some(Box::new(move || {
        let _waits = visit("crowded", 1);
        let passes = visit("other", 100_000);
        told.send(passes()).unwrap();
    })));
    crowded.broadcast(&said(10), true, &mut DirtyList::default());
    assert_eq!(verdict.recv(), Ok(true));
}

#[test]
fn rooms_that_open_and_close_at_once_keep_every_member() {
    let hub = Arc::new(Hub::default());
    let outbox = outbox();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (hub, outbox) = (Arc::clone(&hub), Arc::clone(&outbox));
            std::thread::spawn(move || {
                for _ in 0..2000 {
                    let entrant = entrant(&outbox, 60);
                    let subscriber = Arc::clone(&entrant.subscriber);
                    let place = hub.enter(&room("r"), entrant);
                    hub.broadcast(&room("r"), &said(1), &mut DirtyList::default());
                    assert!(!subscriber.waiting().is_empty(), "whoever is in hears");
                    drop(place);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(hub.broadcast(&room("r"), &said(1), &mut DirtyList::default()), 0);
}
