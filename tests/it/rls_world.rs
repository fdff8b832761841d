//! A small application for the RLS tests: maps, their members and notes, and changes built from
//! real transactions, as the log would carry them.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::json;
use tokio_postgres::Client;
use walcast::auth::rls::{Answer, Authorizer, Question, Shown, Verdict, Visibility, decide};
use walcast::change::value::Type;
use walcast::change::{
    Change, Column, Commit, OldImage, Operation, Relation, ReplicaIdentity, Tuple, Value,
};
use walcast::config::{self, DeleteMode};
use walcast::db::Login;
use walcast::lsn::Lsn;

use crate::cluster::{self, Database};

pub(crate) use Visibility::{Failed, No, Unknown, Yes, YesNow};

/// A member of map 1.
pub(crate) const A: &str = "aaaaaaaa-0000-0000-0000-000000000001";
/// A member of map 2.
pub(crate) const B: &str = "bbbbbbbb-0000-0000-0000-000000000002";
/// A member of nothing.
pub(crate) const C: &str = "cccccccc-0000-0000-0000-000000000003";

/// One database with its own roles, and an authorizer on a powerless login.
pub(crate) struct World {
    pub(crate) database: Database,
    /// As the superuser.
    pub(crate) admin: Client,
    pub(crate) authorizer: Authorizer,
    /// Roles are cluster-wide: each world has its own.
    pub(crate) user: Arc<str>,
    pub(crate) anon: Arc<str>,
    pub(crate) service: Arc<str>,
}

pub(crate) fn claims(role: &str, subject: &str) -> Arc<str> {
    json!({ "sub": subject, "role": role, "aud": "authenticated" }).to_string().into()
}

/// About every change.
pub(crate) fn question(role: &Arc<str>, subject: &str, changes: &[Change]) -> Question {
    let claims = claims(role, subject);
    let changes = (0..changes.len()).map(|place| place.try_into().unwrap()).collect();
    Question { role: Arc::clone(role), claims, changes }
}

/// `select`-list items that give each column's text as the log has it.
fn texts(columns: &[Column]) -> String {
    let text = |column: &Column| {
        let name = format!("\"{}\"", column.name.replace('"', "\"\""));
        format!("case when num_nulls({name}) = 0 then format('%s', {name}) end")
    };
    columns.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn tuple(row: &tokio_postgres::Row) -> Tuple {
    let values = (0..row.len()).map(|place| row.get::<_, Option<&str>>(place));
    Tuple::copied(values.map(|text| text.map_or(Value::Null, |text| Value::Text(text.as_bytes()))))
}

impl World {
    /// Roles and the helper functions, no tables.
    pub(crate) async fn empty() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn with(settle: impl FnOnce(&mut config::Database)) -> Self {
        let database = Database::create().await;
        let admin = database.client().await;
        let name = &database.name;
        admin
            .batch_execute(&format!(
                "create role {name}_user;
                create role {name}_anon;
                create role {name}_service bypassrls;
                create role {name}_check login noinherit;
                grant {name}_user, {name}_anon, {name}_service to {name}_check;
                grant usage on schema public to {name}_user, {name}_anon, {name}_service;
                alter default privileges grant all on tables
                    to {name}_user, {name}_anon, {name}_service;
                create schema auth;
                grant usage on schema auth to public;
                create function auth.uid() returns uuid language sql stable as $$
                    select coalesce(
                        nullif(current_setting('request.jwt.claim.sub', true), ''),
                        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
                    )::uuid
                $$;
                create function auth.role() returns text language sql stable as $$
                    select nullif(current_setting('request.jwt.claim.role', true), '')
                $$;
                create function auth.jwt() returns jsonb language sql stable as $$
                    select nullif(current_setting('request.jwt.claims', true), '')::jsonb
                $$;"
            ))
            .await
            .unwrap();
        let url =
            database.url.replace("postgres://postgres@", &format!("postgres://{name}_check@"));
        let role = |suffix: &str| Arc::from(format!("{name}_{suffix}"));
        let (user, anon, service) = (role("user"), role("anon"), role("service"));
        let roles = [&user, &anon, &service].map(|role: &Arc<str>| role.to_string()).to_vec();
        let mut settings = config::Database { roles, ..config::Database::default() };
        settle(&mut settings);
        let login = Login::parse(&url, std::time::Duration::from_secs(10)).unwrap();
        let authorizer = Authorizer::new(login, &settings, &["published".into()]);
        Self { database, admin, authorizer, user, anon, service }
    }

    /// With the tables: notes are seen by the members of their map.
    pub(crate) async fn notes() -> Self {
        let world = Self::empty().await;
        world.create_notes().await;
        world
    }

    pub(crate) async fn create_notes(&self) {
        self.run(&format!(
            "create table maps (id int primary key);
            create table map_members (
                map_id int references maps on delete cascade,
                user_id uuid,
                primary key (map_id, user_id)
            );
            create table notes (
                id int primary key,
                map_id int references maps on delete cascade,
                user_id uuid,
                body text
            );
            alter table notes replica identity full;
            alter table notes enable row level security;
            create policy members on notes for select using (
                map_id in (select m.map_id from map_members as m where m.user_id = auth.uid())
            );
            insert into maps values (1), (2);
            insert into map_members values (1, '{A}'), (2, '{B}');"
        ))
        .await;
    }

    /// Replaces the policies of `notes` by one.
    pub(crate) async fn policy(&self, condition: &str) {
        self.run(&format!(
            "drop policy members on notes;
            create policy members on notes for select using ({condition});"
        ))
        .await;
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap();
    }

    /// The table as the log would describe it now.
    pub(crate) async fn relation(&self, table: &str) -> Arc<Relation> {
        let row = self
            .admin
            .query_one(
                "select c.oid, n.nspname, c.relname, c.relreplident::text
                from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
                where c.oid = $1::text::regclass",
                &[&table],
            )
            .await
            .unwrap();
        let oid: u32 = row.get(0);
        let full = row.get::<_, &str>(3) == "f";
        let columns = self
            .admin
            .query(
                "select a.attname::text, a.atttypid, t.typname::text,
                    coalesce(a.attnum = any (p.indkey), false),
                    coalesce(a.attnum = any (i.indkey), false)
                from pg_attribute as a
                join pg_type as t on t.oid = a.atttypid
                left join pg_index as p on p.indrelid = a.attrelid and p.indisprimary
                left join pg_index as i on i.indrelid = a.attrelid and i.indisreplident
                where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
                    and a.attgenerated = ''
                order by a.attnum",
                &[&oid],
            )
            .await
            .unwrap();
        let replica_identity = match row.get::<_, &str>(3) {
            "f" => ReplicaIdentity::Full,
            "i" => ReplicaIdentity::Index,
            "n" => ReplicaIdentity::Nothing,
            _ => ReplicaIdentity::Default,
        };
        let column = |row: &tokio_postgres::Row| {
            let in_primary_key: bool = row.get(3);
            let by_index = replica_identity == ReplicaIdentity::Index;
            Column {
                name: row.get::<_, &str>(0).into(),
                attnum: None,
                type_oid: row.get(1),
                type_name: row.get::<_, &str>(2).into(),
                kind: Type::Text,
                in_identity: full || if by_index { row.get(4) } else { in_primary_key },
                in_primary_key,
            }
        };
        Arc::new(Relation {
            oid,
            schema: row.get::<_, &str>(1).into(),
            table: row.get::<_, &str>(2).into(),
            replica_identity,
            columns: columns.iter().map(column).collect(),
        })
    }

    /// Begins a transaction whose changes are recorded.
    pub(crate) async fn begin(&self) -> Writer<'_> {
        let client = self.database.client().await;
        client.batch_execute("begin").await.unwrap();
        Writer { world: self, client, changes: Vec::new() }
    }

    /// One recorded INSERT in a transaction of its own.
    pub(crate) async fn insert(&self, table: &str, values: &str) -> Vec<Change> {
        let mut writer = self.begin().await;
        writer.insert(table, values).await;
        writer.commit().await
    }

    /// One recorded UPDATE in a transaction of its own.
    pub(crate) async fn update(&self, table: &str, set: &str, of: &str) -> Vec<Change> {
        let mut writer = self.begin().await;
        writer.update(table, set, of).await;
        writer.commit().await
    }

    /// One recorded DELETE in a transaction of its own.
    pub(crate) async fn delete(&self, table: &str, of: &str) -> Vec<Change> {
        let mut writer = self.begin().await;
        writer.delete(table, of).await;
        writer.commit().await
    }

    /// Asks as users of the ordinary role about every change.
    pub(crate) async fn ask(&self, changes: &[Change], subjects: &[&str]) -> Vec<Answer> {
        let question = |subject: &&str| question(&self.user, subject, changes);
        let questions: Vec<_> = subjects.iter().map(question).collect();
        self.authorizer.visible_to(changes, &questions).await.unwrap()
    }

    pub(crate) async fn ask_as(&self, role: &Arc<str>, changes: &[Change]) -> Answer {
        let questions = [question(role, A, changes)];
        self.authorizer.visible_to(changes, &questions).await.unwrap().remove(0)
    }

    /// Who of the ordinary role sees the new row of a single change.
    pub(crate) async fn new_of<const N: usize>(
        &self,
        changes: &[Change],
        subjects: [&str; N],
    ) -> [Visibility; N] {
        let answers = self.ask(changes, &subjects).await;
        std::array::from_fn(|place| answers[place].verdicts[0].new)
    }

    /// Who of the ordinary role sees the old row of a single change.
    pub(crate) async fn old_of<const N: usize>(
        &self,
        changes: &[Change],
        subjects: [&str; N],
    ) -> [Visibility; N] {
        let answers = self.ask(changes, &subjects).await;
        std::array::from_fn(|place| answers[place].verdicts[0].old)
    }

    /// What each change shows to each subject, in the mode where only what is certain is shown.
    pub(crate) async fn shown(
        &self,
        changes: &[Change],
        subjects: &[&str],
    ) -> Vec<Vec<(Operation, Shown)>> {
        let answers = self.ask(changes, subjects).await;
        answers.iter().map(|answer| shown(changes, answer, DeleteMode::Full)).collect()
    }

    /// Native SELECT, the oracle: whether this user finds the row.
    pub(crate) async fn selects(
        &self,
        role: &str,
        claims: &str,
        table: &str,
        of: &str,
    ) -> Result<bool, tokio_postgres::Error> {
        let mut client =
            cluster::connect(&self.database.url.replace(
                "postgres://postgres@",
                &format!("postgres://{}_check@", self.database.name),
            ))
            .await;
        let transaction = client.transaction().await?;
        transaction
            .execute(
                "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)",
                &[&role, &claims],
            )
            .await?;
        let row = transaction.query_opt(&format!("select from {table} where {of}"), &[]).await?;
        Ok(row.is_some())
    }
}

pub(crate) fn shown(
    changes: &[Change],
    answer: &Answer,
    mode: DeleteMode,
) -> Vec<(Operation, Shown)> {
    let sides = answer.verdicts.iter().zip(&answer.row_security);
    let one = |(change, (verdict, row_security)): (&Change, (&Verdict, &bool))| {
        let image = change.old_record.as_ref().map(|(image, _)| *image);
        decide(change.operation, image, *verdict, mode, true, *row_security)
    };
    changes.iter().zip(sides).map(one).collect()
}

/// A transaction whose changes are recorded.
pub(crate) struct Writer<'a> {
    world: &'a World,
    pub(crate) client: Client,
    changes: Vec<Change>,
}

impl Writer<'_> {
    pub(crate) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    pub(crate) async fn insert(&mut self, table: &str, values: &str) {
        let relation = self.world.relation(table).await;
        let list = texts(&relation.columns);
        let insert = format!("insert into {table} {values} returning {list}");
        for row in self.client.query(&insert, &[]).await.unwrap() {
            self.push(Operation::Insert, &relation, Some(tuple(&row)), None);
        }
    }

    /// Updates one row.
    pub(crate) async fn update(&mut self, table: &str, set: &str, of: &str) {
        let relation = self.world.relation(table).await;
        let list = texts(&relation.columns);
        let select = format!("select {list} from {table} where {of}");
        let old = tuple(&self.client.query_one(&select, &[]).await.unwrap());
        let update = format!("update {table} set {set} where {of} returning {list}");
        let new = tuple(&self.client.query_one(&update, &[]).await.unwrap());
        let key_changed = relation
            .columns
            .iter()
            .enumerate()
            .any(|(place, column)| column.in_identity && old.get(place) != new.get(place));
        let full = relation.replica_identity == ReplicaIdentity::Full;
        let old = (full || key_changed).then(|| identity(&relation, &old));
        self.push(Operation::Update, &relation, Some(new), old);
    }

    pub(crate) async fn delete(&mut self, table: &str, of: &str) {
        let relation = self.world.relation(table).await;
        let list = texts(&relation.columns);
        let delete = format!("delete from {table} where {of} returning {list}");
        for row in self.client.query(&delete, &[]).await.unwrap() {
            let old = identity(&relation, &tuple(&row));
            self.push(Operation::Delete, &relation, None, Some(old));
        }
    }

    /// Records a DELETE that a cascade will do: call it before the statement that causes it.
    pub(crate) async fn expect_delete(&mut self, table: &str, of: &str) {
        let relation = self.world.relation(table).await;
        let select = format!("select {} from {table} where {of}", texts(&relation.columns));
        for row in self.client.query(&select, &[]).await.unwrap() {
            let old = identity(&relation, &tuple(&row));
            self.push(Operation::Delete, &relation, None, Some(old));
        }
    }

    fn push(
        &mut self,
        operation: Operation,
        relation: &Arc<Relation>,
        record: Option<Tuple>,
        old_record: Option<(OldImage, Tuple)>,
    ) {
        self.changes.push(Change {
            operation,
            relation: Arc::clone(relation),
            record,
            old_record,
            commit: Commit { xid: 0, lsn: Lsn::ZERO, time: SystemTime::now() },
            ordinal: self.changes.len().try_into().unwrap(),
            origin: None,
        });
    }

    /// Commits; the changes as a consumer of the log gets them.
    pub(crate) async fn commit(self) -> Vec<Change> {
        let changes = self.prepare().await;
        changes.1.batch_execute("commit").await.unwrap();
        changes.0
    }

    /// The changes, and the connection that has yet to commit.
    pub(crate) async fn prepare(self) -> (Vec<Change>, Client) {
        let row = self
            .client
            .query_one("select pg_current_xact_id()::text, pg_current_wal_insert_lsn()::text", &[])
            .await
            .unwrap();
        let xid: u64 = row.get::<_, &str>(0).parse().unwrap();
        let xid = u32::try_from(xid & 0xFFFF_FFFF).unwrap();
        let lsn = row.get::<_, &str>(1).parse().unwrap();
        let mut changes = self.changes;
        for change in &mut changes {
            change.commit = Commit { xid, lsn, time: SystemTime::now() };
        }
        (changes, self.client)
    }
}

/// What the log carries of an old row.
fn identity(relation: &Relation, old: &Tuple) -> (OldImage, Tuple) {
    if relation.replica_identity == ReplicaIdentity::Full {
        return (OldImage::Full, old.clone());
    }
    let values = relation.columns.iter().zip(old.values());
    let part = values.map(|(column, value)| if column.in_identity { value } else { Value::Null });
    (OldImage::Key, Tuple::copied(part.collect::<Vec<_>>()))
}
