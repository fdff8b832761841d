//! A server that fails over: what the log of the old one said after they parted is not in the new one's.

use std::fs;
use std::process::Command;

use tokio::time::timeout;
use tokio_postgres::Client;
use walcast::config::Replication;
use walcast::db::Login;
use walcast::dev::StopMode;
use walcast::lsn::Lsn;
use walcast::telemetry::chain;
use walcast::wal::{self, Error, WalStream};

use super::resumed::Resumed;
use crate::cluster::{Cluster, Database, connect};
use crate::operations::{POLL, until};
use crate::service::{DEADLINE, Service, anon};

/// A server and a copy of it that follows its log.
struct Pair {
    old: Cluster,
    new: Cluster,
}

impl Pair {
    fn start() -> Self {
        let keep = ("wal_keep_size", "1GB");
        let old = Cluster::start("failover-old", &[keep]);
        let socket = old.server.socket_dir().display();
        let from = format!("host={socket} port={} user=postgres", old.server.port());
        let new = Cluster::start("failover-new", &[keep, ("primary_conninfo", &from)]);
        for cluster in [&old, &new] {
            cluster.server.stop(StopMode::Fast).unwrap();
        }
        // At rest, files can be copied as they are; not every build of the server has pg_basebackup.
        let settings = fs::read(new.server.data().join("walcast.conf")).unwrap();
        for entry in fs::read_dir(new.server.data()).unwrap() {
            let path = entry.unwrap().path();
            let removed =
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.unwrap();
        }
        let everything = old.server.data().join(".");
        let copied = Command::new("cp").arg("-a").arg(everything).arg(new.server.data()).status();
        assert!(copied.unwrap().success());
        new.write("walcast.conf", &settings);
        new.write("standby.signal", b"");
        for cluster in [&old, &new] {
            cluster.server.start_again().unwrap();
        }
        Self { old, new }
    }

    /// As a client that knows both, and asks the old one first.
    fn url(&self, database: &str) -> String {
        let [old, new] = [&self.old, &self.new].map(|cluster| cluster.server.port());
        let both = format!(":{old},127.0.0.1:{new}/");
        self.old.tcp_url(database).replace(&format!(":{old}/"), &both)
    }

    /// The copy has all that is in the log so far, and is a server of its own from now on.
    async fn part(&self, old: &Client) {
        let end = "select pg_current_wal_lsn()::text";
        let end: String = old.query_one(end, &[]).await.unwrap().get(0);
        let new = connect(&self.new.url("postgres")).await;
        until(&new, &format!("select pg_last_wal_replay_lsn() >= '{end}'")).await;
        new.execute("select pg_promote(true, 120)", &[]).await.unwrap();
        until(&new, "select not pg_is_in_recovery()").await;
    }
}

async fn insert(client: &Client, table: &str, id: i64) {
    client.execute(&format!("insert into {table} values ($1)"), &[&id]).await.unwrap();
}

/// What follows another's log is no server to read from, nor one whose slots say anything.
async fn a_copy_is_passed_over(pair: &Pair) {
    let [old, new] = [&pair.old, &pair.new].map(|cluster| cluster.server.port());
    let url = pair.old.tcp_url("failover");
    let copy = url.replace(&format!(":{old}/"), &format!(":{new}/"));
    let both = url.replace(&format!(":{old}/"), &format!(":{new},127.0.0.1:{old}/"));
    let login = |url: &str| Login::parse(url, DEADLINE).unwrap();
    let publications = vec!["supabase_realtime".into()];
    let settings =
        Replication { slot: "passed_over".into(), publications, ..Replication::default() };
    let refused = WalStream::open(&login(&copy), &settings, Lsn::ZERO).await.unwrap_err();
    assert!(matches!(refused, Error::Disconnected(_)), "{refused:?}");
    assert!(chain(&refused).ends_with("the server is a standby"), "{}", chain(&refused));
    let stream = WalStream::open(&login(&both), &settings, Lsn::ZERO).await.unwrap();
    assert!(stream.identity().created_slot);
    stream.close().await;
    let gone = async {
        while !matches!(wal::drop_slot(&login(&both), &settings.slot).await, Ok(true)) {
            tokio::time::sleep(POLL).await;
        }
    };
    timeout(DEADLINE, gone).await.expect("the slot is free");
}

#[tokio::test]
async fn f37_after_a_failover_every_cursor_of_the_old_timeline_is_one_gap() {
    let pair = Pair::start();
    let old = connect(&pair.old.url("postgres")).await;
    old.batch_execute("create database failover").await.unwrap();
    let database = Database { name: "failover".into(), url: pair.url("failover") };
    let mut service = Service::on(database, Service::keep_all).await;
    let table = service.table("value text").await;
    let address = service.address;
    let old = connect(&pair.old.url("failover")).await;
    a_copy_is_passed_over(&pair).await;
    let mut channel = Resumed::join(address, &anon(), &table, None).await;
    let mut cursors = vec![channel.cursor.clone()];
    insert(&old, &table, 1).await;
    channel.until(1).await;
    cursors.push(channel.cursor.clone());
    pair.part(&old).await;
    // Told, and lost with its server: it did not wait for its copy.
    insert(&old, &table, 2).await;
    channel.until(2).await;
    cursors.push(channel.cursor.clone());
    drop(old);
    pair.old.server.stop(StopMode::Immediate).unwrap();
    let new = connect(&pair.new.url("failover")).await;
    insert(&new, &table, 3).await;
    assert_eq!(channel.end().await, Some(1012), "everybody has to read again");
    assert_eq!(channel.ids, [1, 2], "nothing of the new log comes to whoever knows the old one");
    service.ready().await;
    let mut id = 3;
    for again in [false, true] {
        if again {
            // A new process never knew the old log.
            service.stop().await.unwrap();
            service.start_again().await;
        }
        let mut last = String::new();
        for cursor in &cursors {
            let mut channel = Resumed::join(address, &anon(), &table, Some(cursor)).await;
            let gap = channel.word().await;
            assert_eq!((&gap["kind"], &gap["reason"]), (&"gap".into(), &"another_history".into()));
            assert_eq!(gap["from"], **cursor);
            assert_eq!(channel.word().await["kind"], "caught_up");
            assert_eq!(channel.ids, [0_i64; 0], "the gap is all of it");
            id += 1;
            insert(&new, &table, id).await;
            channel.until(id).await;
            assert_eq!(channel.ids, [id]);
            last.clone_from(&channel.cursor);
        }
        // In the new log everything is as ever.
        id += 1;
        insert(&new, &table, id).await;
        let mut channel = Resumed::join(address, &anon(), &table, Some(&last)).await;
        channel.until(id).await;
        assert_eq!(channel.ids, [id]);
    }
    service.stop().await.unwrap();
}
