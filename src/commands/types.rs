//! `walcast types`: the TypeScript types of the events that are declared, and of what clients of Socket.IO
//! send and hear.
//!
//! In:     the declarations in the database.
//! Out:    interfaces on standard output.
//! Never:  anything of rows.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use hashbrown::HashMap;
use tokio_postgres::types::ToSql;
use walcast::db::Login;
use walcast::mapping::{self, ColumnType, Declaration, MappedTable};
use walcast::profile::{self, Profiles, Relation, Row};

/// As the service reads them.
const ROWS_MAX: i64 = 20_000;
const DECLARATION_BYTES_MAX: i32 = 100_000;

/// Prints them.
pub(super) async fn print(login: &Login) -> anyhow::Result<ExitCode> {
    let client = login.connect("walcast types").await?;
    let rows = client
        .query(include_str!("../../sql/mapped_tables.sql"), &[])
        .await
        .context("cannot read what is declared; `walcast migrate` makes what is missing")?;
    let (mut tables, mut others, mut written) = (Vec::new(), BTreeMap::new(), HashMap::new());
    for row in rows {
        let (oid, name): (u32, String) = (row.try_get(0)?, row.try_get(1)?);
        let (id, declaration): (Option<i64>, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
        let columns: Option<String> = row.try_get(4)?;
        let columns: Vec<ColumnType> = serde_json::from_str(columns.as_deref().unwrap_or("[]"))?;
        others.insert(oid, columns.clone());
        written.extend(Relation::parse(&name).map(|relation| (relation, columns.clone())));
        if let (Some(id), Some(json)) = (id, declaration) {
            let declaration = Declaration::parse(id, oid, &json)
                .with_context(|| format!("the declaration of {name} is not understood"))?;
            tables.push(MappedTable { name, declaration, columns });
        }
    }
    let limits: [&(dyn ToSql + Sync); 2] = [&ROWS_MAX, &DECLARATION_BYTES_MAX];
    let declared = client
        .query(include_str!("../../sql/declarations.sql"), &limits)
        .await
        .context("cannot read the profiles; `walcast migrate` makes what is missing")?;
    let text = |row: &tokio_postgres::Row, place| {
        row.try_get::<_, String>(place).map(String::into_boxed_str)
    };
    let rows = declared.iter().map(|row| {
        Ok(Row {
            namespace: text(row, 0)?,
            kind: text(row, 1)?,
            name: text(row, 2)?,
            declaration: text(row, 3)?,
        })
    });
    let rows: Vec<Row> = rows.collect::<Result<_, tokio_postgres::Error>>()?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}", mapping::typescript(&tables, &others))?;
    if !rows.is_empty() {
        write!(out, "{}", profile::typescript(&Profiles::new(&rows), &written))?;
    }
    Ok(ExitCode::SUCCESS)
}
