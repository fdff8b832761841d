//! Domain events: what a change of a row means to the application, as its table's owner declared
//! it in SQL.
//!
//! In:     declarations as the log carries them, signed; changes; what was looked up for them.
//! Out:    events with their topics and payloads, in the order that the declaration fixes.
//! Never:  IO; a decision about who may be in a room; an event for a topic that a value could have
//!         led elsewhere.
//!
//! | file | from | to |
//! |---|---|---|
//! | `announced` | a message of the log | a [`Declaration`], if it is signed |
//! | `declaration` | its JSON | checked rules |
//! | `plan` | rules and a table's columns | places in its tuples |
//! | `fire` | a change | which rules say something, to which topics |
//! | `payload` | a firing rule | JSON |
//! | `gather` | rows of one transaction | one event |
//! | `typescript` | rules and types of columns | the types of payloads |

mod announced;
mod declaration;
mod fire;
mod gather;
mod payload;
mod plan;
pub mod template;
mod typescript;

pub use announced::{AnnounceError, Key, PREFIX, Rules, verified};
pub use declaration::{
    Declaration, DeclarationError, KeyCase, Operations, RESERVED, Rule, event_name_problem,
};
pub use fire::{Fired, Firing, Phase, Refusal, fire};
pub use gather::{Gathered, Group, Limits};
pub use payload::{Looked, render};
pub use plan::{LookupPlan, Plan, PlannedRule};
pub use typescript::{ColumnType, MappedTable, typescript};
