//! Channels that come back: what they missed is read again from the history, and published to them.
//!
//! In:     channels with the cursor they came with, each in the hub already, what comes through the
//!         log for it waiting.
//! Out:    the changes after the cursor and what was said to their rooms, once each, in commit order,
//!         decided as of now; then a word, and what waited. Where that cannot be: one gap, and what
//!         happens from now on.
//! Never:  what clients said to each other, which is in no log; anything that was not decided for the
//!         claims of now; a queue that grows because a client does not read; a state between what
//!         was replayed and what is live.
//!
//! Those that wait together are shown the past together, in a hub of their own, so that thousands
//! that lost the same server cost one reading of the log.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::Status;
use super::history::{History, Picture};
use super::memory::Memory;
use super::publish::Publisher;
use crate::catalog::Catalog;
use crate::cursor::{Cursor, Place};
use crate::hub::{Comeback, Format, Hub, Newest, Returner, Subscriber, Word};
use crate::kill;
use crate::lsn::Lsn;
use crate::mapping::Gathered;
use crate::telemetry;

/// Bytes that a client may have left unread when it is shown more of the past.
const UNREAD_MAX: usize = 1024 * 1024;

/// How often clients that have not read yet are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why the changes after a cursor cannot be shown.
mod reason {
    /// The text is not one of ours.
    pub(super) const MALFORMED: &str = "malformed_cursor";
    /// It is of another log: another server, or one that was restored or failed over.
    pub(super) const EPOCH: &str = "another_history";
    /// It is older than what is kept.
    pub(super) const EXPIRED: &str = "history_expired";
    /// It is from the future.
    pub(super) const AHEAD: &str = "ahead_of_the_log";
    /// A subscription ended, and what is left of the channel is not what it asked for.
    pub(super) const ENDED: &str = "subscription_ended";
    /// A row was deleted, and who saw it before cannot be found out any more: the transaction changed
    /// that too.
    pub(super) const UNDECIDED: &str = "undecided";
    /// What was kept could not be read again.
    pub(super) const UNREADABLE: &str = "history_unreadable";
}

/// A channel that came back.
#[derive(Debug)]
struct Returning {
    channel: Comeback,
    /// What it has; none: it came with what is no cursor.
    from: Option<Cursor>,
    format: Format,
    topic: Arc<str>,
    /// Only the last of what it is shown is sent, when all of it was.
    newest: Option<Arc<Newest>>,
    /// It was told of a gap and goes on behind it.
    told: bool,
}

/// Channels that wait to be shown what they missed.
#[derive(Debug, Default)]
pub struct Replays {
    returning: Mutex<Vec<Returning>>,
    came: Notify,
}

/// How a channel came back, until its join is answered.
#[derive(Debug)]
pub struct Resume {
    /// What it has; none: it came with what is no cursor.
    pub from: Option<Cursor>,
    /// How it is told.
    pub format: Format,
    /// Its topic as it stands in frames.
    pub topic: Arc<str>,
    /// It wants so much of what was said, and only the last of that.
    pub newest: Option<usize>,
}

impl Replays {
    /// Shows a channel what it missed. To be called when its join was answered.
    pub fn begin(&self, channel: Comeback, resume: Resume) {
        let Resume { from, format, topic, newest } = resume;
        let newest = newest.map(|most| Arc::new(Newest::new(most)));
        self.lock().push(Returning { channel, from, format, topic, newest, told: false });
        self.came.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Returning>> {
        self.returning.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that is shown the past.
struct Shown {
    returning: Returning,
    channel: Returner,
    /// It has everything up to there.
    at: Place,
    /// In the hub of the past.
    subscriber: Arc<Subscriber>,
}

/// Shows channels what they missed.
#[derive(Debug)]
pub struct Replayer {
    /// Who waits.
    pub replays: Arc<Replays>,
    /// What they are shown.
    pub history: Arc<History>,
    /// The hub that they are in.
    pub hub: Arc<Hub>,
    /// Of the feed that fills the history.
    pub feed: Arc<Status>,
    /// That of the feed.
    pub catalog: Arc<Catalog>,
    /// Decides what they may see, with a catalog and answers of its own: those of the feed are of
    /// another place in the log. Its hub is replaced each time.
    pub publisher: Publisher,
}

impl Replayer {
    /// Runs until it is dropped or `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        shutdown
            .run_until_cancelled_owned(async move {
                let mut waiting: Vec<Returning> = Vec::new();
                loop {
                    if waiting.is_empty() {
                        self.replays.came.notified().await;
                    } else {
                        // Some did not read, or have no claims for now.
                        let _elapsed =
                            tokio::time::timeout(LOOK_AGAIN, self.replays.came.notified()).await;
                    }
                    waiting.append(&mut self.replays.lock());
                    let mut ready = Vec::new();
                    for returning in std::mem::take(&mut waiting) {
                        let Some(channel) = returning.channel.find() else { continue };
                        if channel.queued_bytes() > UNREAD_MAX {
                            waiting.push(returning);
                        } else {
                            ready.push((returning, channel));
                        }
                    }
                    if !ready.is_empty() {
                        waiting.append(&mut self.show(ready).await);
                    }
                }
            })
            .await;
    }

    /// Shows channels what is kept now. Those that are not done.
    async fn show(&mut self, channels: Vec<(Returning, Returner)>) -> Vec<Returning> {
        let mut waiting = Vec::new();
        let picture = self.picture().await;
        let past = Arc::new(Hub::default());
        let mut shown = Vec::new();
        for (returning, channel) in channels {
            let (mut returning, at) = self.begin(returning, &channel, &picture);
            if at >= picture.ends {
                waiting.extend(finish(returning, &channel, at, &picture));
                continue;
            }
            returning.from = Some(Cursor { place: at, epoch: picture.epoch });
            let newest = returning.newest.clone();
            match self.hub.enter_past(&channel, &past, (at, picture.ends), newest) {
                Ok(Some(subscriber)) => shown.push(Shown { returning, channel, at, subscriber }),
                // Its claims are being looked at.
                Ok(None) => waiting.push(returning),
                Err(_ended) => {
                    gap(&returning, &channel, reason::ENDED, picture.ends, &picture);
                    waiting.extend(finish(returning, &channel, picture.ends, &picture));
                }
            }
        }
        if let Some(first) = shown.iter().map(|shown| shown.at).min() {
            self.publisher.hub = past;
            waiting.append(&mut Box::pin(self.read(first, shown, &picture)).await);
            self.publisher.hub = Arc::default();
        }
        waiting
    }

    /// What is kept, with all that was in the log when this process began.
    async fn picture(&self) -> Picture {
        loop {
            if let Some(picture) = self.history.picture() {
                let live_from = picture.live_from;
                self.feed.passed(live_from).await;
                let now = self.history.picture().filter(|now| now.live_from == live_from);
                if let Some(picture) = now {
                    return picture;
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Where a channel goes on from; it is told when something is missing there.
    fn begin(
        &self,
        mut returning: Returning,
        channel: &Returner,
        picture: &Picture,
    ) -> (Returning, Place) {
        let known_to = self.known_to(picture);
        let reason = match returning.from {
            None => reason::MALFORMED,
            Some(from) if from.epoch != picture.epoch => reason::EPOCH,
            Some(from) if from.place > known_to => reason::AHEAD,
            Some(from) if from.place < picture.begins => reason::EXPIRED,
            Some(from) => {
                let result = telemetry::RESULT;
                if !returning.told {
                    metrics::counter!(telemetry::RESUMES, result => "ok").increment(1);
                }
                returning.told = true;
                return (returning, from.place);
            }
        };
        gap(&returning, channel, reason, picture.ends, picture);
        returning.told = true;
        (returning, picture.ends)
    }

    /// A cursor beyond this was given to nobody.
    fn known_to(&self, picture: &Picture) -> Place {
        let before = |lsn: u64| Place::before(Lsn::new(lsn));
        let current = before(self.feed.current.load(Ordering::Relaxed));
        picture.ends.max(Place::before(picture.live_from)).max(current)
    }

    /// Reads the history from `first` on to those that are shown it. Those that are not done.
    async fn read(&self, first: Place, mut shown: Vec<Shown>, picture: &Picture) -> Vec<Returning> {
        let mut waiting = Vec::new();
        let publisher = &self.publisher;
        // What is known of the catalog may be of a later place than what is read now, or an older one.
        publisher.catalog.forget_all();
        publisher.catalog.forget_definers();
        publisher.catalog.begin_after(picture.horizon);
        publisher.catalog.look_back(&self.catalog);
        publisher.authorizer.forget(None);
        let mut memory = Memory { epoch: picture.epoch, ..Memory::default() };
        let payload_bytes_max = publisher.payload_bytes_max;
        let (number, mut reader) = picture.reader_after(first, payload_bytes_max);
        publisher.catalog.observe_definers(&picture.definers_before(number));
        for (entry, number) in picture.entries[number..].iter().zip(0_usize..) {
            if entry.fresh && number > 0 {
                let read = reader.at().max(first);
                // The open transaction comes again from its beginning.
                memory.gathered = Gathered::default();
                reader = Picture::fresh_reader(entry, read, payload_bytes_max);
            }
            kill::point(kill::Point::OnResume);
            let one_transaction = entry.one_transaction;
            let read = publisher.read(&entry.batch, &mut reader, &mut memory, one_transaction);
            let segments = match read {
                Ok(segments) => segments,
                Err(error) => {
                    error!(error = telemetry::chain(&error), "what was read once cannot be again");
                    for Shown { mut returning, channel, .. } in shown {
                        gap(&returning, &channel, reason::UNREADABLE, picture.ends, picture);
                        returning.from = Some(Cursor { place: picture.ends, epoch: picture.epoch });
                        waiting.push(returning);
                        channel.leave_past();
                    }
                    return waiting;
                }
            };
            for segment in segments {
                publisher.observe(&segment).await;
                if !segment.is_empty() {
                    publisher.publish(&segment, &mut memory).await;
                }
                publisher.report_refused(segment.messages_refused, &mut memory);
            }
            for mut one in std::mem::take(&mut shown) {
                tell_missed(&one, picture);
                // Otherwise its claims changed, or it left: it has what it was offered until then.
                let stayed = !one.subscriber.is_gone();
                let reads = one.channel.queued_bytes() <= UNREAD_MAX;
                one.at = one.at.max(one.subscriber.reached());
                if stayed {
                    one.at = one.at.max(entry.ends);
                }
                if stayed && reads {
                    shown.push(one);
                    continue;
                }
                one.channel.leave_past();
                let place = one.at.max(one.subscriber.reached());
                one.returning.from = Some(Cursor { place, epoch: picture.epoch });
                waiting.push(one.returning);
            }
            if shown.is_empty() {
                return waiting;
            }
            tokio::task::yield_now().await;
        }
        for one in shown {
            waiting.extend(finish(one.returning, &one.channel, picture.ends, picture));
        }
        waiting
    }
}

/// Tells a channel between which places something was that could not be decided any more.
fn tell_missed(one: &Shown, picture: &Picture) {
    let Some((first, last)) = one.subscriber.take_missed() else { return };
    let cursor = |place| Cursor { place, epoch: picture.epoch };
    let from = Some(cursor(Place::before(first.commit)));
    let word = Word::Gap { from, to: cursor(last), reason: reason::UNDECIDED };
    metrics::counter!(telemetry::RESUMES, telemetry::RESULT => "gap").increment(1);
    one.channel.tell((one.returning.format.word)(
        one.returning.format.namespace,
        &one.returning.topic,
        &word,
    ));
}

/// The channel has everything up to `reached`. It comes back if it has to be shown more.
fn finish(
    mut returning: Returning,
    channel: &Returner,
    reached: Place,
    picture: &Picture,
) -> Option<Returning> {
    let cursor = Cursor { place: reached, epoch: picture.epoch };
    let word = (returning.format.word)(
        returning.format.namespace,
        &returning.topic,
        &Word::CaughtUp(cursor),
    );
    // What comes from here on is sent as it comes.
    for frame in returning.newest.take().into_iter().flat_map(|newest| newest.take()) {
        channel.tell(frame);
    }
    channel.caught_up(reached, word)?;
    debug!(topic = &*returning.topic, "more came than could wait: it is replayed too");
    returning.from = Some(cursor);
    Some(returning)
}

fn gap(
    returning: &Returning,
    channel: &Returner,
    reason: &'static str,
    to: Place,
    picture: &Picture,
) {
    metrics::counter!(telemetry::RESUMES, telemetry::RESULT => "gap").increment(1);
    let to = Cursor { place: to, epoch: picture.epoch };
    let word = Word::Gap { from: returning.from, to, reason };
    channel.tell((returning.format.word)(returning.format.namespace, &returning.topic, &word));
}
