//! Profiles: what a namespace of Socket.IO is to its clients, as it was declared in SQL.
//!
//! In:     rows of `walcast.declarations`.
//! Out:    [`Profiles`], each with its rooms, commands, relays and presence, checked.
//! Never:  IO; a decision about who may enter a room or call a function; a profile out of a row that is
//!         not understood: its namespace is refused then.
//!
//! | file | what it has |
//! |---|---|
//! | `declared` | one declaration's JSON → its checked type |
//! | `namespaces` | all rows → what each namespace has |
//! | `naming` | a payload's values → the topic of a room |
//! | `payload` | a projection and what is known → JSON |
//! | `routine` | names of functions and tables, quoted |
//! | `typescript` | what clients send and hear, as types |

mod declared;
mod namespaces;
mod naming;
mod payload;
mod routine;
mod typescript;

pub use declared::{
    Command, DeclarationError, Operation, Presence, Relay, Room, Run, TableWrite, TokenPlace,
};
pub use namespaces::{Profile, Profiles, Row};
pub use naming::{Invalid, Named, Naming, Values, personal};
pub use payload::{Payload, PayloadError, Scope};
pub use routine::{Argument, Function, Relation};
pub use typescript::typescript;
