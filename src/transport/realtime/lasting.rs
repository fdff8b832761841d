//! Sockets of clients that are to be known again: how far each channel has surely come.
//!
//! In:     the id in the URL, heartbeats, joins; what was published by then.
//! Out:    bookmarks, and where the next join of such a client goes on.
//! Never:  a bookmark beyond what the client has. A heartbeat's answer is behind all that was
//!         handed to the socket before, and a client's next heartbeat behind that answer: only then
//!         has it arrived.

use std::time::{Duration, Instant};

use super::{Kept, Socket};
use crate::auth::Claims;
use crate::cursor::Cursor;
use crate::session::{BookmarkName, ChannelId, SessionId};

/// With more channels than this, not every heartbeat counts.
const CHANNELS_FEW: usize = 16;

/// Between two that do. Clients let twenty seconds pass.
const PAUSE: Duration = Duration::from_secs(1);

/// Of a socket whose client is to be known again.
#[derive(Debug)]
pub(super) struct Lasting {
    id: SessionId,
    /// What the last answer to a heartbeat was behind of: once the next one comes, these channels
    /// have everything up to there.
    answered: Option<Answered>,
}

#[derive(Debug)]
struct Answered {
    at: Instant,
    published: Cursor,
    channels: Vec<ChannelId>,
}

impl Lasting {
    pub(super) const fn new(id: SessionId) -> Self {
        Self { id, answered: None }
    }
}

impl Socket {
    /// A heartbeat came and is about to be answered.
    pub(super) fn beat(&mut self) {
        let Some(lasting) = &mut self.lasting else { return };
        let at = Instant::now();
        if self.joined.len() > CHANNELS_FEW
            && lasting.answered.as_ref().is_some_and(|answered| at < answered.at + PAUSE)
        {
            return;
        }
        if let Some(Answered { published, channels, .. }) = lasting.answered.take() {
            for channel in channels {
                let place = self.joined.get(&channel);
                if let Some(bookmark) = place.and_then(|place| place.bookmark.as_ref()) {
                    bookmark.come_to(published);
                }
            }
        }
        // First this: whoever is current then was handed all of it.
        let Some(published) = self.realtime.joiner.published() else { return };
        let current = self.joined.iter().filter(|(_, place)| {
            let is_current = |rows: &super::Membership| rows.is_current();
            place.bookmark.is_some()
                && place.membership.as_deref().is_none_or(is_current)
                && place.occupancy.is_current()
        });
        let channels: Vec<ChannelId> = current.map(|(channel, _)| *channel).collect();
        lasting.answered = Some(Answered { at, published, channels });
    }

    /// What a channel's bookmark is known by; none: its client is not to be known again.
    pub(super) fn bookmark_name(&self, kept: &Kept, claims: &Claims) -> Option<BookmarkName> {
        let lasting = self.lasting.as_ref()?;
        Some(BookmarkName::new(&lasting.id, claims, &kept.asked()))
    }

    /// A channel has other claims. Another user does not go on where the one before was, nor the
    /// other way round.
    pub(super) fn rename_bookmark(&mut self, channel: ChannelId, claims: &Claims) {
        let Some(place) = self.joined.get(&channel) else { return };
        let Some(name) = self.bookmark_name(&place.request, claims) else { return };
        let Some(place) = self.joined.get_mut(&channel) else { return };
        let Some(before) = place.bookmark.as_ref().filter(|before| before.name() != name) else {
            return;
        };
        place.bookmark = before.renamed(name, Instant::now()).map(Box::new);
    }
}
