//! The proxy itself, and the service behind it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::Rng as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::proxy::{Direction, End, Fault, Proxy};
use crate::cluster::{Database, cluster};
use crate::service::{DEADLINE, Service, Socket, Version, anon};
use crate::stream::all_of;

/// Everybody may do everything with it.
const TABLE_T: &str = "
    create table t (id bigint primary key, value text);
    grant all on t to anon, authenticated, service_role;
    alter publication supabase_realtime add table t;
";

/// A listener that hands out one connection, a proxy before it, and both ends.
async fn link(seed: u64) -> (Proxy, TcpStream, TcpStream) {
    let (proxy, listener) = target(seed).await;
    let (near, far) = tokio::join!(TcpStream::connect(proxy.address), listener.accept());
    (proxy, near.unwrap(), far.unwrap().0)
}

async fn target(seed: u64) -> (Proxy, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap(), seed).await;
    (proxy, listener)
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut random = rand::rng();
    (0..bytes).map(|_| random.random()).collect()
}

/// Reads to the end in a task of its own.
fn drain(mut stream: TcpStream) -> JoinHandle<(Vec<u8>, Option<ErrorKind>)> {
    tokio::spawn(async move {
        let mut read = Vec::new();
        let ended = timeout(DEADLINE, stream.read_to_end(&mut read)).await.expect("an end in time");
        (read, ended.err().map(|error| error.kind()))
    })
}

#[tokio::test]
async fn what_comes_late_or_in_pieces_is_the_same() {
    let (least, jitter) = (Duration::from_millis(1), Duration::from_millis(2));
    for fault in [Fault::Pass, Fault::Split { bytes_max: 1 }, Fault::Delay { least, jitter }] {
        let (proxy, mut near, far) = link(1).await;
        proxy.set(Direction::Up, fault);
        let sent = noise(5000);
        let reading = drain(far);
        near.write_all(&sent).await.unwrap();
        drop(near);
        assert_eq!(reading.await.unwrap(), (sent, None), "{fault:?}");
    }
}

#[tokio::test]
async fn a_stalled_direction_keeps_everything_until_it_moves_again() {
    let (proxy, mut near, mut far) = link(1).await;
    proxy.set(Direction::Up, Fault::Stall);
    near.write_all(b"up").await.unwrap();
    far.write_all(b"down").await.unwrap();
    let mut down = [0; 4];
    timeout(DEADLINE, near.read_exact(&mut down)).await.unwrap().unwrap();
    assert_eq!(&down, b"down", "the other direction goes on");
    assert_eq!(far.try_read(&mut [0; 2]).unwrap_err().kind(), ErrorKind::WouldBlock);
    proxy.heal();
    let mut up = [0; 2];
    timeout(DEADLINE, far.read_exact(&mut up)).await.unwrap().unwrap();
    assert_eq!(&up, b"up");
}

#[tokio::test]
async fn a_cut_comes_at_its_byte_in_its_own_way() {
    for (end, error) in
        [(End::HalfClose, None), (End::Close, None), (End::Reset, Some(ErrorKind::ConnectionReset))]
    {
        let (proxy, mut near, far) = link(1).await;
        proxy.set(Direction::Up, Fault::Cut { at: 1000, end });
        let reading = drain(far);
        let sent = noise(1001);
        near.write_all(&sent).await.unwrap();
        let (read, ended) = reading.await.unwrap();
        // A reset takes along what was not read yet.
        if end == End::Reset {
            assert!(sent[..1000].starts_with(&read));
        } else {
            assert_eq!(read, sent[..1000], "{end:?}");
        }
        assert_eq!(ended, error, "{end:?}");
    }
}

#[tokio::test]
async fn a_half_close_leaves_the_other_direction_open() {
    let (proxy, mut near, mut far) = link(1).await;
    proxy.set(Direction::Up, Fault::Cut { at: 0, end: End::HalfClose });
    near.write_all(b"lost").await.unwrap();
    let count = timeout(DEADLINE, far.read(&mut [0; 4])).await.unwrap().unwrap();
    assert_eq!(count, 0);
    far.write_all(b"down").await.unwrap();
    let mut down = [0; 4];
    timeout(DEADLINE, near.read_exact(&mut down)).await.unwrap().unwrap();
    assert_eq!(&down, b"down");
}

#[tokio::test]
async fn bits_flip_where_the_seed_says() {
    let mut all = Vec::new();
    let sent = noise(20_000);
    for seed in [1, 1, 2] {
        let (proxy, mut near, far) = link(seed).await;
        proxy.set(Direction::Up, Fault::Flip { one_in: 100 });
        let reading = drain(far);
        near.write_all(&sent).await.unwrap();
        drop(near);
        let (read, _) = reading.await.unwrap();
        let bits = |(a, b): (&u8, &u8)| (a ^ b).count_ones();
        let flipped: u32 = sent.iter().zip(&read).map(bits).sum();
        assert_eq!(read.len(), sent.len());
        assert!((100..400).contains(&flipped), "{flipped} bits");
        all.push(read);
    }
    assert!(all[0] == all[1] && all[0] != all[2]);
}

#[tokio::test]
async fn each_connection_has_what_the_plan_gives_it_until_a_command_comes() {
    let (proxy, listener) = target(7).await;
    proxy.plan(Some(|random| {
        let at = random.random_range(0..100);
        [Fault::Cut { at, end: End::Close }, Fault::Pass]
    }));
    let mut lengths = Vec::new();
    for _ in 0..2 {
        let (again, listener_again) = target(7).await;
        again.plan(Some(|random| {
            let at = random.random_range(0..100);
            [Fault::Cut { at, end: End::Close }, Fault::Pass]
        }));
        let mut of_run = Vec::new();
        for _ in 0..5 {
            let (near, far) =
                tokio::join!(TcpStream::connect(again.address), listener_again.accept());
            let reading = drain(far.unwrap().0);
            near.unwrap().write_all(&[0; 100]).await.unwrap();
            of_run.push(reading.await.unwrap().0.len());
        }
        lengths.push(of_run);
    }
    assert_eq!(lengths[0], lengths[1], "the same seed, the same faults");
    assert!(lengths[0].iter().any(|length| *length != lengths[0][0]), "{lengths:?}");
    let (near, far) = tokio::join!(TcpStream::connect(proxy.address), listener.accept());
    proxy.heal();
    let reading = drain(far.unwrap().0);
    let mut near = near.unwrap();
    near.write_all(&[0; 100]).await.unwrap();
    drop(near);
    assert_eq!(reading.await.unwrap(), (vec![0; 100], None));
}

#[tokio::test]
async fn every_connection_can_be_reset_at_once() {
    let (proxy, near, far) = link(1).await;
    let (near, far) = (drain(near), drain(far));
    proxy.reset_all();
    for end in [near, far] {
        assert_eq!(end.await.unwrap(), (Vec::new(), Some(ErrorKind::ConnectionReset)));
    }
}

/// A service whose way to Postgres leads through a proxy, and one for its clients.
async fn service_between() -> (Proxy, Proxy, Service) {
    let database = Database::create().await;
    let port = cluster().server.port();
    let to_database = Proxy::start((Ipv4Addr::LOCALHOST, port).into(), 1).await;
    let url = cluster().tcp_url(&database.name);
    let url = url.replace(&format!(":{port}/"), &format!(":{}/", to_database.address.port()));
    let change = |config: &mut walcast::config::Config| {
        config.database.url = walcast::config::Secret::new(&*url);
    };
    let service = Service::on(database, change).await;
    let to_clients = Proxy::start(service.address, 2).await;
    service.admin().await.batch_execute(TABLE_T).await.unwrap();
    (to_database, to_clients, service)
}

async fn subscribe(address: SocketAddr) -> Socket {
    let url = format!("ws://{address}/realtime/v1/websocket?apikey={}&vsn=2.0.0", anon());
    let mut socket = Socket::open(Version::V2, &url, &[]).await.unwrap();
    socket.subscribe("realtime:test", all_of("t").into()).await;
    socket
}

#[tokio::test]
async fn f50_links_that_delay_jitter_and_split_change_no_event() {
    let (to_database, to_clients, service) = service_between().await;
    let mut through = subscribe(to_clients.address).await;
    let mut direct = subscribe(service.address).await;
    let admin = service.admin().await;
    let (least, jitter) = (Duration::from_millis(1), Duration::from_millis(5));
    let mut next = 0_i64;
    for fault in [Fault::Split { bytes_max: 1 }, Fault::Delay { least, jitter }, Fault::Pass] {
        for proxy in [&to_database, &to_clients] {
            proxy.set(Direction::Up, fault);
            proxy.set(Direction::Down, fault);
        }
        for _ in 0..5 {
            let insert = "insert into t select i, repeat('v', 50) from generate_series($1::int8, $1 + 4) as i";
            admin.execute(insert, &[&next]).await.unwrap();
            next += 5;
        }
    }
    for id in 0..next {
        let (one, other) = (through.change().await, direct.change().await);
        assert_eq!(one, other);
        assert_eq!(one["record"]["id"], id);
    }
}

#[tokio::test]
async fn f51_a_stream_cut_at_any_byte_is_taken_up_again_without_loss_or_repetition() {
    let (to_database, _to_clients, service) = service_between().await;
    let mut socket = subscribe(service.address).await;
    let admin = service.admin().await;
    let mut next = 0_i64;
    // What is cut is every connection of the service: its stream, its checks, its catalog.
    for at in (0..2000).step_by(97).chain([5000, 20_000]) {
        for end in [End::Reset, End::Close, End::HalfClose] {
            to_database.set(Direction::Down, Fault::Cut { at, end });
            to_database.reset_all();
            admin.execute("insert into t values ($1, 'cut')", &[&next]).await.unwrap();
            to_database.heal();
            admin.execute("insert into t values ($1, 'healed')", &[&(next + 1)]).await.unwrap();
            next += 2;
        }
    }
    let ids: Vec<Value> = {
        let mut ids = Vec::new();
        while ids.last() != Some(&Value::from(next - 1)) {
            ids.push(socket.change().await["record"]["id"].clone());
        }
        ids
    };
    assert_eq!(ids, (0..next).map(Value::from).collect::<Vec<_>>());
    socket.nothing_came().await;
}
