//! One connection and the namespaces it is in.
//!
//! In:     packets of one client, hostile or not; what comes back from elsewhere as mail.
//! Out:    packets to each of its [`Client`]s; a namespace entered, or why not.
//! Never:  a wait: what takes time runs as a task and comes back as mail; an event in a namespace that
//!         was not entered.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::value::RawValue;

use super::client::{Asked, Client, Ending};
use super::entrance::{self, Admitted, Came, Wanted};
use super::packet::{self, Kind, Packet};
use super::{Shown, SocketIo};
use crate::auth::access::{Asker, ReadGrants};
use crate::command::{Outcome, Refused};
use crate::hub::Inbox;
use crate::hub::outbox::{CloseReason, DirtyList, Outbox};
use crate::telemetry;
use crate::transport::deadlines::Expires;
use crate::transport::websocket::{Peer, text_frame};

/// Namespaces of one connection.
const NAMESPACES_MAX: usize = 16;

/// What is told to others before it is written: as much as one write takes.
const GATHERED_MAX: usize = 64;

/// Sockets that a connection writes to itself when it ends.
const TOLD_WHEN_ENDING_MAX: usize = 64;

/// Notices that wait for one connection; what is doubted is not counted, since it is told once.
const MAIL_MAX: usize = 10_000;

/// What comes back to a connection, for the client with this number.
pub(super) enum Mail {
    Admitted(u32, Result<Box<Admitted>, Box<str>>),
    Came(u32, Asked, Vec<Came>),
    /// What was asked for is done, or not.
    Settled(u32, Asked, Result<(), Refused>),
    Answered(u32, Asked, Option<Box<str>>, Outcome),
    Doubted(u32, Arc<str>),
    Renewed(u32, Arc<str>, Renewed),
    Expired(u32),
    Tick(u32),
}

/// What may be heard in a room now.
pub(super) struct Renewed {
    /// How often the seat had been doubted before it was asked.
    pub(super) doubts: u32,
    pub(super) outcome: Result<ReadGrants, String>,
}

/// The part of a connection that others hold.
pub(super) struct Mailbox {
    outbox: Arc<Outbox>,
    /// Its checks of rooms take turns.
    asker: Asker,
    mail: Mutex<Vec<Mail>>,
}

impl Mailbox {
    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    pub(super) fn asker(&self) -> &Asker {
        &self.asker
    }

    fn mail(&self) -> MutexGuard<'_, Vec<Mail>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn post(&self, mail: Mail) {
        let mut waiting = self.mail();
        let is_full = waiting.len() >= MAIL_MAX;
        waiting.push(mail);
        drop(waiting);
        if is_full {
            self.outbox.close(CloseReason::TooSlow);
        }
        self.outbox.wake();
    }

    /// Once is enough, however many rows changed.
    fn doubt(&self, client: u32, topic: &Arc<str>) {
        let mut mail = self.mail();
        let is_this =
            |mail: &Mail| matches!(mail, Mail::Doubted(c, t) if *c == client && t == topic);
        if !mail.iter().any(is_this) {
            mail.push(Mail::Doubted(client, Arc::clone(topic)));
            drop(mail);
            self.outbox.wake();
        }
    }
}

impl Expires for Mailbox {
    fn expired(&self, client: u64) {
        self.post(Mail::Expired(u32::try_from(client).unwrap_or(u32::MAX)));
    }
}

/// How the hub reaches a seat's client.
pub(super) struct Notices {
    mailbox: Weak<Mailbox>,
    client: u32,
    topic: Arc<str>,
}

impl Notices {
    pub(super) fn new(mailbox: &Arc<Mailbox>, client: u32, topic: Arc<str>) -> Self {
        Self { mailbox: Arc::downgrade(mailbox), client, topic }
    }
}

impl Inbox for Notices {
    // It has no subscriptions to row changes, which are all that notices are about.
    fn notice(&self, _message: String) {}

    fn doubted(&self) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.doubt(self.client, &self.topic);
        }
    }
}

/// What a client needs of its connection.
pub(super) struct Around<'a> {
    pub(super) shared: &'a Arc<SocketIo>,
    pub(super) mailbox: &'a Arc<Mailbox>,
    /// Whoever was told something and has not been written to.
    pub(super) dirty: &'a mut DirtyList,
    /// How much was told since they were.
    pub(super) gathered: &'a mut usize,
}

impl Around<'_> {
    /// Runs what takes time; what it comes to is posted, if somebody is left to read it.
    pub(super) fn ask(
        &self,
        work: impl FnOnce(Arc<SocketIo>) -> std::pin::Pin<Box<dyn Future<Output = Mail> + Send>>,
    ) {
        let (work, mailbox) = (work(Arc::clone(self.shared)), Arc::downgrade(self.mailbox));
        self.shared.realtime.spawn(async move {
            let mail = work.await;
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.post(mail);
            }
        });
    }

    /// Sends a packet.
    pub(super) fn send(&self, packet: &[u8]) -> ControlFlow<CloseReason> {
        let sent = self.mailbox.outbox.send(text_frame(packet));
        sent.map_or_else(ControlFlow::Break, ControlFlow::Continue)
    }
}

/// See the module's header.
pub(super) struct Connection {
    shared: Arc<SocketIo>,
    shown: Arc<Shown>,
    mailbox: Arc<Mailbox>,
    clients: Vec<Client>,
    /// Those that wait to be let in.
    entering: Vec<(u32, Box<str>)>,
    /// Clients so far.
    made: u32,
    /// Those of this second, and which one that is.
    entered: (u64, usize),
    dirty: DirtyList,
    gathered: usize,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(shared: Arc<SocketIo>, shown: Shown, outbox: Arc<Outbox>) -> Self {
        metrics::gauge!(telemetry::CONNECTIONS).increment(1);
        Self {
            shared,
            shown: Arc::new(shown),
            mailbox: Arc::new(Mailbox { outbox, asker: Asker::default(), mail: Mutex::default() }),
            clients: Vec::new(),
            entering: Vec::new(),
            made: 0,
            entered: (0, 0),
            dirty: DirtyList::default(),
            gathered: 0,
        }
    }

    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.mailbox.outbox
    }

    /// Takes a packet of Socket.IO.
    pub(super) fn packet(&mut self, text: &str) -> ControlFlow<CloseReason> {
        // Whoever came in by a key that is gone was told to go, unless that was just before.
        if self.shown.epoch != self.shared.realtime.verifier.epoch() {
            return ControlFlow::Break(CloseReason::Shutdown);
        }
        let Packet { namespace, kind } = match packet::packet(text) {
            Ok(packet) => packet,
            Err(error) => return ControlFlow::Break(error.into()),
        };
        match kind {
            Kind::Connect(auth) => self.connect(namespace, auth),
            Kind::Disconnect => {
                self.entering.retain(|(_, entering)| **entering != *namespace);
                if let Some(at) = self.position(namespace) {
                    let client = self.clients.remove(at);
                    client.ends(&mut self.around(), Ending::Left);
                }
                ControlFlow::Continue(())
            }
            Kind::Event(event) => match self.position(namespace) {
                Some(at) => self.with(at, |client, around| client.event(around, &event)),
                // It left, or was never there.
                None => ControlFlow::Continue(()),
            },
            Kind::Ack => ControlFlow::Continue(()),
        }
    }

    fn position(&self, namespace: &str) -> Option<usize> {
        self.clients.iter().position(|client| *client.who().namespace == *namespace)
    }

    fn around(&mut self) -> Around<'_> {
        let Self { shared, mailbox, dirty, gathered, .. } = self;
        Around { shared, mailbox, dirty, gathered }
    }

    fn with(
        &mut self,
        at: usize,
        work: impl FnOnce(&mut Client, &mut Around<'_>) -> ControlFlow<CloseReason>,
    ) -> ControlFlow<CloseReason> {
        let Self { shared, mailbox, dirty, gathered, clients, .. } = self;
        let Some(client) = clients.get_mut(at) else { return ControlFlow::Continue(()) };
        work(client, &mut Around { shared, mailbox, dirty, gathered })
    }

    fn connect(&mut self, namespace: &str, auth: Option<&RawValue>) -> ControlFlow<CloseReason> {
        let enters = self.entering.iter().any(|(_, entering)| **entering == *namespace);
        if enters || self.position(namespace).is_some() {
            return ControlFlow::Break(CloseReason::Protocol("connected twice to a namespace"));
        }
        if self.clients.len() + self.entering.len() >= NAMESPACES_MAX {
            let refused = packet::refused(namespace, "Too many namespaces on one connection");
            return self.around().send(&refused);
        }
        let realtime = &self.shared.realtime;
        let (now, limits) = (SystemTime::now(), &realtime.limits);
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if self.entered.0 != second {
            self.entered = (second, 0);
        }
        self.entered.1 += 1;
        if self.entered.1 > limits.connection_joins_per_second_max {
            return ControlFlow::Break(CloseReason::Session { code: 1008, text: "too many joins" });
        }
        if !realtime.rates.admit_join(limits.joins_per_second_max, now) {
            let refused = packet::refused(namespace, "Too many joins: try again");
            return self.around().send(&refused);
        }
        self.made += 1;
        let client = self.made;
        self.entering.push((client, namespace.into()));
        let shown = Arc::clone(&self.shown);
        let (namespace, auth) = (namespace.into(), auth.map(ToOwned::to_owned));
        let wanted = Wanted { client, namespace, auth, mailbox: Arc::clone(&self.mailbox) };
        self.around().ask(|shared| {
            Box::pin(async move {
                let admitted = entrance::admit(&shared, &shown, wanted).await;
                let admitted = admitted.map(Box::new).map_err(Into::into);
                Mail::Admitted(client, admitted)
            })
        });
        ControlFlow::Continue(())
    }

    fn admitted(
        &mut self,
        client: u32,
        admitted: Result<Box<Admitted>, Box<str>>,
    ) -> ControlFlow<CloseReason> {
        let Some(at) = self.entering.iter().position(|(entering, _)| *entering == client) else {
            // It gave up.
            return ControlFlow::Continue(());
        };
        let (_, namespace) = self.entering.swap_remove(at);
        match admitted {
            Ok(admitted) => {
                let mut around = Around {
                    shared: &self.shared,
                    mailbox: &self.mailbox,
                    dirty: &mut self.dirty,
                    gathered: &mut self.gathered,
                };
                let (client, flow) = Client::begin(*admitted, &mut around);
                self.clients.push(client);
                flow
            }
            Err(message) => self.around().send(&packet::refused(&namespace, &message)),
        }
    }

    fn delivered(&mut self, mail: Mail) -> ControlFlow<CloseReason> {
        let client = match &mail {
            Mail::Admitted(..) => {
                let Mail::Admitted(client, admitted) = mail else {
                    return ControlFlow::Continue(());
                };
                return self.admitted(client, admitted);
            }
            Mail::Came(client, ..)
            | Mail::Settled(client, ..)
            | Mail::Answered(client, ..)
            | Mail::Doubted(client, ..)
            | Mail::Renewed(client, ..)
            | Mail::Expired(client)
            | Mail::Tick(client) => *client,
        };
        // Of one that left, whatever it asked for is dropped, and with it the seats.
        let Some(at) = self.clients.iter().position(|known| known.who().client == client) else {
            return ControlFlow::Continue(());
        };
        self.with(at, |client, around| client.delivered(around, mail))
    }
}

impl Peer for Connection {
    fn text(&mut self, text: &str) -> ControlFlow<CloseReason> {
        self.packet(text)
    }

    fn binary(&mut self, _data: &[u8]) -> ControlFlow<CloseReason> {
        ControlFlow::Break(CloseReason::Protocol("binary packets are not spoken here"))
    }

    fn woken(&mut self) -> ControlFlow<CloseReason> {
        let mail = std::mem::take(&mut *self.mailbox.mail());
        for mail in mail {
            self.delivered(mail)?;
        }
        ControlFlow::Continue(())
    }

    fn is_full(&self) -> bool {
        self.gathered >= GATHERED_MAX
    }

    fn settle(&mut self, until: Instant) -> bool {
        self.gathered = 0;
        self.dirty.flush_until(until)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::gauge!(telemetry::CONNECTIONS).decrement(1);
        let ending = match self.mailbox.outbox.closing() {
            Some(CloseReason::Peer(_)) => Ending::Closed,
            Some(_) | None => Ending::Lost,
        };
        for client in std::mem::take(&mut self.clients) {
            client.ends(&mut self.around(), ending);
        }
        // A crowd is told by a task that takes turns.
        if self.dirty.len() > TOLD_WHEN_ENDING_MAX {
            let mut dirty = std::mem::take(&mut self.dirty);
            self.shared.realtime.spawn(async move { dirty.flush_in_turns().await });
        }
    }
}
