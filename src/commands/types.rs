//! `walcast types`: the TypeScript types of the events that are declared.
//!
//! In:     the declarations in the database.
//! Out:    one interface on standard output.
//! Never:  anything of rows.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use walcast::db::Login;
use walcast::mapping::{ColumnType, Declaration, MappedTable, typescript};

/// Prints them.
pub(super) async fn print(login: &Login) -> anyhow::Result<ExitCode> {
    let client = login.connect("walcast types").await?;
    let rows = client
        .query(include_str!("../../sql/mapped_tables.sql"), &[])
        .await
        .context("cannot read what is declared; `walcast migrate` makes what is missing")?;
    let (mut tables, mut others) = (Vec::new(), BTreeMap::new());
    for row in rows {
        let (oid, name): (u32, String) = (row.try_get(0)?, row.try_get(1)?);
        let (id, declaration): (Option<i64>, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
        let columns: Option<String> = row.try_get(4)?;
        let columns: Vec<ColumnType> = serde_json::from_str(columns.as_deref().unwrap_or("[]"))?;
        others.insert(oid, columns.clone());
        if let (Some(id), Some(json)) = (id, declaration) {
            let declaration = Declaration::parse(id, oid, &json)
                .with_context(|| format!("the declaration of {name} is not understood"))?;
            tables.push(MappedTable { name, declaration, columns });
        }
    }
    write!(std::io::stdout().lock(), "{}", typescript(&tables, &others))?;
    Ok(ExitCode::SUCCESS)
}
