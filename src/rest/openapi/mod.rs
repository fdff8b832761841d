//! What can be asked for, as an `OpenAPI` 3.1 document.
//!
//! In:     the picture of the schema, what the caller may do with what is in it (`sql/rest/privileges.sql`).
//! Out:    the document, kept for whoever may do the same.
//! Never:  a name that the caller has no right to use; more than [`BYTES_MAX`].
//! Source: spec.openapis.org/oas/v3.1.0

mod document;
mod value;

use std::sync::{Arc, PoisonError};

use axum::http::StatusCode;
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use serde::Deserialize;

use super::Problem;
use super::schema::Schema;
use super::sql::{Sql, Statement};

/// Bytes of one document. A usual table has 5 kB.
pub const BYTES_MAX: usize = 32 << 20;

/// Bytes of all that are kept, and how many: roles that may see them, by exposed schemas.
const KEPT_BYTES_MAX: usize = 64 << 20;
const KEPT_MAX: usize = 16;

/// What a role may do with the relations and functions of one schema.
#[derive(Debug, Default)]
pub struct Privileges {
    relations: HashMap<u32, Rights>,
    functions: HashSet<u32>,
}

/// What may be done with one relation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Rights {
    read: Columns,
    insert: Columns,
    update: Columns,
    delete: bool,
}

/// Which of its columns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Columns {
    /// None of them.
    #[default]
    None,
    /// All, also those that are added.
    All,
    /// Those with these numbers.
    Some(Box<[i16]>),
}

impl Columns {
    fn of(is_all: bool, some: Option<Vec<i16>>) -> Self {
        match some {
            _ if is_all => Self::All,
            Some(some) if !some.is_empty() => Self::Some(some.into()),
            _ => Self::None,
        }
    }

    fn any(&self) -> bool {
        *self != Self::None
    }

    fn has(&self, attnum: i16) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(some) => some.contains(&attnum),
        }
    }
}

impl Privileges {
    /// What asks for them in a transaction of the caller.
    pub fn statement(schema: &str) -> Statement {
        let mut statement = Sql::new();
        statement.value(schema.to_owned());
        let parameters = statement.finish().parameters;
        Statement { text: include_str!("../../../sql/rest/privileges.sql").into(), parameters }
    }

    /// From the answer. None when it is no such answer.
    pub fn parse(text: &str) -> Option<Self> {
        type Told = (u32, String, Option<Vec<i16>>, Option<Vec<i16>>, Option<Vec<i16>>);
        #[derive(Deserialize)]
        struct All {
            relations: Option<Vec<Told>>,
            functions: Option<Vec<u32>>,
        }
        let all: All = serde_json::from_str(text).ok()?;
        let relations = all.relations.unwrap_or_default().into_iter();
        let relations = relations.map(|(oid, whole, read, insert, update)| {
            let rights = Rights {
                read: Columns::of(whole.contains('r'), read),
                insert: Columns::of(whole.contains('a'), insert),
                update: Columns::of(whole.contains('w'), update),
                delete: whole.contains('d'),
            };
            (oid, rights)
        });
        let functions = all.functions.unwrap_or_default().into_iter().collect();
        Some(Self { relations: relations.collect(), functions })
    }
}

/// Documents that were made, the newest last.
#[derive(Debug, Default)]
pub struct Documents {
    kept: std::sync::Mutex<Vec<Kept>>,
    /// Who makes one now: all who come meanwhile may want the same.
    making: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Kept {
    /// The picture it was made of.
    number: u64,
    schema: Box<str>,
    privileges: String,
    document: Bytes,
}

impl Documents {
    /// That of `schema` in `picture`, for whoever has these `privileges`, told as they came.
    ///
    /// # Errors
    /// 404 when it would be too large; 500 when the privileges cannot be read.
    pub async fn get(
        &self,
        picture: &Arc<Schema>,
        schema: &str,
        privileges: String,
    ) -> Result<Bytes, Problem> {
        let known = |this: &Self| {
            let kept = this.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let mut found = kept.iter().filter(|kept| {
                kept.number == picture.number
                    && *kept.schema == *schema
                    && kept.privileges == privileges
            });
            found.next().map(|kept| kept.document.clone())
        };
        if let Some(document) = known(self) {
            return Ok(document);
        }
        let _turn = self.making.lock().await;
        if let Some(document) = known(self) {
            return Ok(document);
        }
        let rights = Privileges::parse(&privileges).ok_or_else(Problem::internal)?;
        let (whole, name) = (Arc::clone(picture), schema.to_owned());
        // Of a large schema it takes a while.
        let make = move || document::document(&whole, &name, &rights, BYTES_MAX);
        let document = tokio::task::spawn_blocking(make).await.map_err(|_| Problem::internal())?;
        let document = Bytes::from(document.ok_or_else(too_large)?);
        let kept = Kept {
            number: picture.number,
            schema: schema.into(),
            privileges,
            document: document.clone(),
        };
        self.keep(kept);
        Ok(document)
    }

    fn keep(&self, new: Kept) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // What an older picture showed nobody asks for again.
        kept.retain(|kept| kept.number >= new.number);
        kept.push(new);
        let size = |kept: &Kept| kept.document.len() + kept.privileges.len();
        while kept.len() > KEPT_MAX || kept.iter().map(size).sum::<usize>() > KEPT_BYTES_MAX {
            kept.remove(0);
        }
    }
}

fn too_large() -> Problem {
    let text = "The description of this schema would be too large";
    Problem::new(StatusCode::NOT_FOUND, "PGRST125", text)
        .with_hint("Expose fewer relations and functions")
}
