//! Who asked for what: subscriptions, their filters, and which of them one change concerns.
//!
//! In:     subscription parameters and filters as clients write them; changes.
//! Out:    [`Subscription`], [`Predicate`], [`TableIndex`]: the subscriptions that want a change.
//! Never:  IO (`subscribe` asks Postgres); who may see a row (`auth`); JSON envelopes (`event`).

mod datum;
mod filter;
mod index;
mod predicate;
mod subscription;

pub use filter::{CONDITIONS_MAX, Condition, FILTER_BYTES_MAX, Operator, ParseError, parse};
pub use index::TableIndex;
pub use predicate::{Bound, Image, Is, Match, Operand, Predicate, Question, Unbound, canonical};
pub use subscription::{Events, Name, Subscription, SubscriptionError};
