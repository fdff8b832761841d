//! A TCP proxy that does to connections what networks do to them.
//!
//! In:     where to connect to; per direction a [`Fault`], by command ([`Proxy::set`]) or for each
//!         connection by a seeded plan ([`Proxy::plan`]).
//! Out:    the same bytes, late, in pieces, not at all, or one bit off; connections that end.
//! Never:  bytes in another order, twice, or made up; anything but loopback.
//!
//! The same seed gives the same faults to the same connections, by their number. What the two ends
//! send is not the proxy's to repeat.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Bytes taken from a socket at once.
const BUFFER_BYTES: usize = 16 * 1024;

/// Connections at a time; more are reset. No run comes near it unless a client loops.
const CONNECTIONS_MAX: usize = 10_000;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From whoever connected.
    Up,
    /// To whoever connected.
    Down,
}

/// Both.
pub(crate) const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];

/// How a connection, or one direction of it, ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// This direction alone: the receiver reads an end, the other direction goes on.
    HalfClose,
    /// Both directions, in good order.
    Close,
    /// Both directions, by RST.
    Reset,
}

/// What happens to one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    Pass,
    /// Each piece comes later by `least`, and by up to `jitter` more.
    Delay { least: Duration, jitter: Duration },
    /// The connection stays, nothing moves.
    Stall,
    /// Pieces of at most so many bytes, each written by itself.
    Split { bytes_max: usize },
    /// After so many bytes of this direction, counted from its beginning: 0 is at once.
    Cut { at: u64, end: End },
    /// One bit in about so many bytes is the other one.
    Flip { one_in: u32 },
}

/// A seeded choice for each connection, of what both directions get.
pub(crate) type Plan = fn(&mut StdRng) -> [Fault; 2];

/// A running proxy. Ends with all its connections when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    ended: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    /// By [`Direction`].
    commands: [watch::Sender<Fault>; 2],
    seed: u64,
    plan: Mutex<Option<Plan>>,
    /// Ends every connection that there is now.
    connections: Mutex<CancellationToken>,
}

impl Proxy {
    /// In front of `target`; passes everything until it is told otherwise.
    pub(crate) async fn start(target: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let ended = CancellationToken::new();
        let shared = Arc::new(Shared {
            target,
            commands: [watch::Sender::new(Fault::Pass), watch::Sender::new(Fault::Pass)],
            seed,
            plan: Mutex::new(None),
            connections: Mutex::new(ended.child_token()),
        });
        tokio::spawn(accept(listener, Arc::clone(&shared), ended.clone()));
        Self { address, shared, ended }
    }

    /// From now on, for the connections there are and those to come.
    pub(crate) fn set(&self, direction: Direction, fault: Fault) {
        self.shared.commands[usize::from(direction == Direction::Down)].send_replace(fault);
    }

    /// Both directions pass again. What was cut stays cut, and plans go on.
    pub(crate) fn heal(&self) {
        for direction in BOTH {
            self.set(direction, Fault::Pass);
        }
    }

    /// What connections to come get, until something is commanded; none: nothing.
    pub(crate) fn plan(&self, plan: Option<Plan>) {
        *self.shared.plan.lock().unwrap() = plan;
    }

    /// Ends every connection that there is now, by RST.
    pub(crate) fn reset_all(&self) {
        let mut connections = self.shared.connections.lock().unwrap();
        connections.cancel();
        *connections = self.ended.child_token();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, ended: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut number = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            // Dropping the set ends what is left.
            () = ended.cancelled() => return,
        };
        let Ok((client, _)) = accepted else { continue };
        if connections.len() >= CONNECTIONS_MAX {
            let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
            continue;
        }
        let ending = shared.connections.lock().unwrap().clone();
        connections.spawn(connection(client, Arc::clone(&shared), number, ending));
        number += 1;
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>, number: u64, ended: CancellationToken) {
    let mut random =
        StdRng::seed_from_u64(shared.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let plan = *shared.plan.lock().unwrap();
    let planned = plan.map(|plan| plan(&mut random));
    let ending = CancellationToken::new();
    // What is commanded once the connection stands is for it, too.
    let commands = shared.commands.each_ref().map(watch::Sender::subscribe);
    let Ok(server) = TcpStream::connect(shared.target).await else {
        // As if nobody listened here either.
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        return;
    };
    let (client, server) = (Arc::new(client), Arc::new(server));
    let [up, down] = commands;
    let [planned_up, planned_down] = planned.map_or([None; 2], |planned| planned.map(Some));
    let mut pump = |from: &Arc<TcpStream>, to: &Arc<TcpStream>, planned, command| Pump {
        from: Arc::clone(from),
        to: Arc::clone(to),
        planned,
        command,
        random: StdRng::seed_from_u64(random.random()),
        passed: 0,
        ending: ending.clone(),
    };
    let up = pump(&client, &server, planned_up, up);
    let down = pump(&server, &client, planned_down, down);
    for socket in [&client, &server] {
        // What is written in pieces arrives in pieces.
        let _ = socket.set_nodelay(true);
    }
    tokio::select! {
        _ = async { tokio::join!(up.run(), down.run()) } => {}
        () = ended.cancelled() => {
            for socket in [&client, &server] {
                let _ = SockRef::from(&**socket).set_linger(Some(Duration::ZERO));
            }
        }
    }
}

/// One direction of one connection.
struct Pump {
    from: Arc<TcpStream>,
    to: Arc<TcpStream>,
    /// In force until a command comes.
    planned: Option<Fault>,
    command: watch::Receiver<Fault>,
    random: StdRng,
    /// Bytes that went this way.
    passed: u64,
    /// Ends both directions.
    ending: CancellationToken,
}

/// Why a direction moves no more.
struct Over;

impl Pump {
    async fn run(mut self) {
        let mut buffer = vec![0; BUFFER_BYTES];
        let ending = self.ending.clone();
        tokio::select! {
            ended = async { loop { if let Err(over) = self.step(&mut buffer).await { break over } } } => {
                let Over = ended;
            }
            () = ending.cancelled() => {}
        }
    }

    fn fault(&mut self) -> Fault {
        if self.command.has_changed().unwrap_or(false) {
            self.planned = None;
        }
        let commanded = *self.command.borrow_and_update();
        self.planned.unwrap_or(commanded)
    }

    async fn step(&mut self, buffer: &mut [u8]) -> Result<(), Over> {
        let fault = self.fault();
        let mut most = buffer.len();
        match fault {
            Fault::Stall => {
                // A proxy that is dropped ends this in another way.
                if self.command.changed().await.is_ok() {
                    self.planned = None;
                }
                return Ok(());
            }
            Fault::Cut { at, end } => {
                let left = at.saturating_sub(self.passed);
                if left == 0 {
                    return Err(self.end(end));
                }
                most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
            }
            Fault::Pass | Fault::Delay { .. } | Fault::Split { .. } | Fault::Flip { .. } => {}
        }
        let count = tokio::select! {
            read = read(&self.from, &mut buffer[..most]) => match read {
                Ok(0) => return Err(self.end(End::HalfClose)),
                Ok(count) => count,
                Err(_) => return Err(self.end(End::Reset)),
            },
            changed = self.command.changed() => {
                if changed.is_ok() {
                    self.planned = None;
                }
                return Ok(());
            }
        };
        let piece = &mut buffer[..count];
        let mut split = None;
        match fault {
            Fault::Delay { least, jitter } => {
                let jitter = jitter.mul_f64(self.random.random());
                tokio::time::sleep(least + jitter).await;
            }
            Fault::Split { bytes_max } => split = Some(bytes_max.max(1)),
            Fault::Flip { one_in } => {
                for byte in piece.iter_mut() {
                    if self.random.random_ratio(1, one_in.max(1)) {
                        *byte ^= 1 << self.random.random_range(0..8);
                    }
                }
            }
            Fault::Pass | Fault::Stall | Fault::Cut { .. } => {}
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let length = match split {
                Some(bytes_max) => self.random.random_range(1..=bytes_max).min(rest.len()),
                None => rest.len(),
            };
            let (next, after) = rest.split_at(length);
            if write(&self.to, next).await.is_err() {
                return Err(self.end(End::Reset));
            }
            rest = after;
            if split.is_some() {
                tokio::task::yield_now().await;
            }
        }
        self.passed += u64::try_from(count).unwrap();
        Ok(())
    }

    fn end(&self, end: End) -> Over {
        match end {
            End::HalfClose => {
                let _ = SockRef::from(&*self.to).shutdown(Shutdown::Write);
            }
            End::Close => self.ending.cancel(),
            End::Reset => {
                for socket in [&self.from, &self.to] {
                    let _ = SockRef::from(&**socket).set_linger(Some(Duration::ZERO));
                }
                self.ending.cancel();
            }
        }
        Over
    }
}

async fn read(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        match socket.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

async fn write(socket: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        socket.writable().await?;
        match socket.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => bytes = &bytes[written?..],
        }
    }
    Ok(())
}
