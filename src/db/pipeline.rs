//! A connection on which many messages are sent at once and answered at once.
//!
//! In:     a [`Login`]; [`Batch`]es of the extended protocol, and texts of several statements.
//! Out:    [`Answers`]: the rows of each step in text format, and why the first one failed.
//! Never:  a task of its own; an answer given to whoever comes after one that was not waited for; more
//!         bytes of one answer than its bound.
//! Source: postgresql.org/docs/17/protocol-flow.html#PROTOCOL-FLOW-PIPELINING
//!
//! The server writes to the socket when it comes to the end of a batch, and waking up for each step
//! costs both sides more than most steps do. `tokio-postgres`, which logs in here, ends a batch behind
//! every statement.

use std::fmt;
use std::future::{Ready, poll_fn, ready};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready as come};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend::{self, BindError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_postgres::CancelToken;
use tokio_postgres::config::{LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::socket::{self, Socket};
use super::{Endpoint, Error as ConnectError, Login, tls};

/// Bytes of one answer: what Postgres itself puts into one value at most.
pub const ANSWER_BYTES_MAX: usize = 1 << 30;

/// Bytes of one message: Postgres builds none that is longer.
const MESSAGE_BYTES_MAX: usize = (1 << 30) + 64;

/// Room for what comes next. Smaller and long answers take many calls of the system; larger and
/// every idle connection keeps more.
const READ_BYTES: usize = 16 * 1024;

/// Room that a connection keeps between answers.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// When a link that carries nothing is taken for dead.
const DEAD_AFTER: Duration = Duration::from_mins(1);

/// What the server said went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
#[error("{message} (SQLSTATE {code})")]
pub struct Said {
    /// SQLSTATE, such as `42704`.
    pub code: String,
    /// The primary message, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// The server's advice.
    pub hint: Option<String>,
}

impl Said {
    /// From the body of an `ErrorResponse`.
    fn parse(body: &[u8]) -> Self {
        let mut said = Self::default();
        for field in body.split(|&byte| byte == 0) {
            let Some((tag, text)) = field.split_first() else { break };
            let text = || String::from_utf8_lossy(text).into_owned();
            match tag {
                b'C' => said.code = text(),
                b'M' => said.message = text(),
                b'D' => said.detail = Some(text()),
                b'H' => said.hint = Some(text()),
                _other_field => {}
            }
        }
        said
    }
}

/// Why there is no answer. The connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It ended, or the server said that it will.
    #[error("the connection is lost")]
    Lost(#[from] io::Error),
    /// A bug here or an unknown kind of server.
    #[error("the server sent what is not the protocol: {0}")]
    Malformed(&'static str),
    /// More than [`ANSWER_BYTES_MAX`].
    #[error("the answer is too long")]
    TooLong,
    /// What was to be sent is no message: too long, or with a null character in a text.
    #[error("no message can be made of this")]
    Unsendable(#[source] io::Error),
}

/// Messages of the extended protocol, to be sent together. The server skips what is behind the
/// first one that fails, up to the next [`Batch::sync`].
#[derive(Debug, Default)]
pub struct Batch {
    bytes: BytesMut,
    syncs: u32,
}

impl Batch {
    /// A statement by this name; the one without a name lives until the next without one. Its
    /// parameters have the types that Postgres infers.
    ///
    /// # Errors
    /// [`Error::Unsendable`]; the batch must not be sent.
    pub fn parse(&mut self, name: &str, text: &str) -> Result<(), Error> {
        frontend::parse(name, text, [], &mut self.bytes).map_err(Error::Unsendable)
    }

    /// The next step: runs a statement to its end, all values in text format.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn run<'a>(
        &mut self,
        name: &str,
        parameters: impl IntoIterator<Item = Option<&'a [u8]>>,
    ) -> Result<(), Error> {
        self.bind(name, parameters)?;
        frontend::execute("", 0, &mut self.bytes).map_err(Error::Unsendable)
    }

    /// The same, and tells what columns there are.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn run_described<'a>(
        &mut self,
        name: &str,
        parameters: impl IntoIterator<Item = Option<&'a [u8]>>,
    ) -> Result<(), Error> {
        self.bind(name, parameters)?;
        frontend::describe(b'P', "", &mut self.bytes).map_err(Error::Unsendable)?;
        frontend::execute("", 0, &mut self.bytes).map_err(Error::Unsendable)
    }

    fn bind<'a>(
        &mut self,
        name: &str,
        parameters: impl IntoIterator<Item = Option<&'a [u8]>>,
    ) -> Result<(), Error> {
        let write = |value: Option<&[u8]>, out: &mut BytesMut| match value {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                out.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
        };
        frontend::bind("", name, [], parameters, write, [], &mut self.bytes).map_err(|error| {
            Error::Unsendable(match error {
                BindError::Serialization(error) => error,
                BindError::Conversion(error) => io::Error::other(error),
            })
        })
    }

    /// Forgets a statement, if there is one by this name.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn close(&mut self, name: &str) -> Result<(), Error> {
        frontend::close(b'S', name, &mut self.bytes).map_err(Error::Unsendable)
    }

    /// The end of what is answered at once. What comes behind it runs whatever failed before.
    pub fn sync(&mut self) {
        frontend::sync(&mut self.bytes);
        self.syncs += 1;
    }

    /// Several statements without parameters, answered by themselves; only behind a sync.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn query(&mut self, text: &str) -> Result<(), Error> {
        frontend::query(text, &mut self.bytes).map_err(Error::Unsendable)?;
        self.syncs += 1;
        Ok(())
    }
}

/// Whether a transaction is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    /// None is.
    #[default]
    Idle,
    /// One is.
    Open,
    /// One is that can only be rolled back.
    Failed,
}

/// The rows of one step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Name and type of each column, if that was asked for.
    pub columns: Option<Vec<(Vec<u8>, u32)>>,
    /// Bodies of `DataRow` messages, one behind the other.
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Rows {
    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many bytes they came in.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        // A row is only kept with a count of its columns.
        starts.zip(&self.ends).map(|(start, &end)| Row(&self.bytes[start + 2..end]))
    }

    /// The first, if there is one.
    pub fn first(&self) -> Option<Row<'_>> {
        self.iter().next()
    }

    /// A value of the first row as text, if it is one.
    pub fn text(&self, column: usize) -> Option<&str> {
        std::str::from_utf8(self.first()?.nth(column)??).ok()
    }

    fn push(&mut self, body: &[u8]) -> Result<(), Error> {
        let (count, mut rest) =
            body.split_first_chunk::<2>().ok_or(Error::Malformed("a row without columns"))?;
        for _ in 0..u16::from_be_bytes(*count) {
            value(&mut rest).map_err(|Cut| Error::Malformed("a row is cut off"))?;
        }
        if !rest.is_empty() {
            return Err(Error::Malformed("a row is too long"));
        }
        self.bytes.extend_from_slice(body);
        self.ends.push(self.bytes.len());
        Ok(())
    }
}

/// One row: its values in order, none for NULL.
#[derive(Debug, Clone)]
pub struct Row<'a>(&'a [u8]);

impl<'a> Iterator for Row<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        value(&mut self.0).ok()
    }
}

/// There is no whole value.
struct Cut;

/// Takes the value in front; none is NULL.
fn value<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Cut> {
    let (length, behind) = rest.split_first_chunk::<4>().ok_or(Cut)?;
    let length = i32::from_be_bytes(*length);
    if length == -1 {
        *rest = behind;
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| Cut)?;
    let (value, behind) = behind.split_at_checked(length).ok_or(Cut)?;
    *rest = behind;
    Ok(Some(value))
}

/// What the server answered up to one sync.
#[derive(Debug, Default)]
pub struct Answers {
    /// Of the steps that came to their end, in order.
    pub steps: Vec<Rows>,
    /// Why the next step did not.
    pub failed: Option<Said>,
    /// Statements that were parsed.
    pub parsed: usize,
    /// How it ended.
    pub standing: Standing,
}

impl Answers {
    /// All steps.
    ///
    /// # Errors
    /// What the server said when one failed.
    pub fn whole(self) -> Result<Vec<Rows>, Said> {
        match self.failed {
            None => Ok(self.steps),
            Some(said) => Err(said),
        }
    }
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The server refused it.
    #[error(transparent)]
    Said(#[from] Said),
    /// The connection is of no more use.
    #[error(transparent)]
    Connection(#[from] Error),
}

/// A connection.
pub struct Connection {
    socket: Socket,
    /// What is still to be sent.
    output: BytesMut,
    needs_flush: bool,
    /// What came and was not looked at.
    input: BytesMut,
    /// Syncs whose answer is not here.
    owed: u32,
    /// An answer was not read to its end.
    is_broken: bool,
    /// The server has ended it.
    has_ended: bool,
    endpoint: Endpoint,
    cancel: CancelToken,
    process: (i32, String),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("endpoint", &self.endpoint)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects and logs in to the first server of the login that lets us, called `name` in
    /// `pg_stat_activity`.
    ///
    /// # Errors
    /// Of the last server tried.
    pub async fn open(login: &Login, name: &str) -> Result<Self, ConnectError> {
        let mut endpoints = login.endpoints();
        if login.config().get_load_balance_hosts() == LoadBalanceHosts::Random {
            rand::seq::SliceRandom::shuffle(&mut *endpoints, &mut rand::rng());
        }
        let mut last = ConnectError::Url { problem: "it names no host".into() };
        for endpoint in endpoints {
            let opening = Box::pin(Self::open_at(login, endpoint, name));
            last = match tokio::time::timeout(login.timeout(), opening).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_elapsed) => ConnectError::Timeout(login.timeout()),
            };
        }
        Err(last)
    }

    async fn open_at(login: &Login, endpoint: Endpoint, name: &str) -> Result<Self, ConnectError> {
        let mut socket = Socket::open(login, &endpoint, DEAD_AFTER).await?;
        let mut config = login.config().clone();
        config.application_name(name);
        // The socket is encrypted already, where it is to be.
        let is_encrypted = matches!(socket, Socket::Tls(_));
        config.ssl_mode(if is_encrypted { SslMode::Require } else { SslMode::Disable });
        config.ssl_negotiation(SslNegotiation::Direct);
        let binding = Binding::of(&socket);
        let opened = config.connect_raw(&mut socket, binding).await;
        let (client, connection) = opened.map_err(ConnectError::Connect)?;
        let cancel = client.cancel_token();
        // From here on we speak ourselves; nothing was sent that is not answered.
        drop((client, connection));
        let mut connection = Self {
            socket,
            output: BytesMut::new(),
            needs_flush: false,
            input: BytesMut::with_capacity(READ_BYTES),
            owed: 0,
            is_broken: false,
            has_ended: false,
            endpoint,
            cancel,
            process: (0, String::new()),
        };
        connection.introduce(login.config().get_target_session_attrs()).await?;
        Ok(connection)
    }

    /// Finds out which process it is, and whether it is on a server of the wanted kind.
    async fn introduce(&mut self, wanted: TargetSessionAttrs) -> Result<(), ConnectError> {
        const PROCESS: &str = "select a.pid, a.backend_start::text, \
                                   pg_catalog.current_setting('transaction_read_only') \
                               from pg_catalog.pg_stat_activity as a \
                               where a.pid = pg_catalog.pg_backend_pid()";
        let rows = self.ask(PROCESS, []).await.map_err(lost)?;
        let unknown = || lost(io::Error::other("the server does not say which process it is"));
        let pid = rows.text(0).and_then(|pid| pid.parse().ok()).ok_or_else(unknown)?;
        self.process = (pid, rows.text(1).ok_or_else(unknown)?.to_owned());
        let is_writable = rows.text(2) == Some("off");
        let is_wanted = match wanted {
            TargetSessionAttrs::ReadWrite => is_writable,
            TargetSessionAttrs::ReadOnly => !is_writable,
            TargetSessionAttrs::Any | _ => true,
        };
        if is_wanted {
            return Ok(());
        }
        Err(lost(io::Error::other("the server is not of the kind that target_session_attrs says")))
    }

    /// The process that serves it: its number, which is used again, and its start, which is not.
    pub fn process(&self) -> &(i32, String) {
        &self.process
    }

    /// Asks the server to give up what this connection is doing, over a link encrypted and checked
    /// like it. Whether it does shows here.
    ///
    /// # Errors
    /// When the server cannot be reached a second time.
    pub async fn cancel(&self, login: &Login) -> Result<(), ConnectError> {
        let asking = async {
            let socket = Socket::open(login, &self.endpoint, DEAD_AFTER).await?;
            let binding = Binding::of(&socket);
            let asked = self.cancel.cancel_query_raw(socket, binding).await;
            asked.map_err(ConnectError::Connect)
        };
        let asked = tokio::time::timeout(login.timeout(), Box::pin(asking)).await;
        asked.unwrap_or_else(|_elapsed| Err(ConnectError::Timeout(login.timeout())))
    }

    /// Whether it has ended, as far as can be seen without waiting. While answers are owed that
    /// shows to who waits for them.
    pub fn is_closed(&mut self) -> bool {
        if self.has_ended || self.owed > 0 {
            return self.has_ended;
        }
        // An answer that could not be read leaves nothing that could be told from the next one.
        self.has_ended = self.is_broken || self.has_said_goodbye();
        self.has_ended
    }

    /// Between answers there are notices, parameters and notifications; or the end.
    fn has_said_goodbye(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match self.header() {
                Ok(Some((b'N' | b'S' | b'A', length))) if self.input.len() > length => {
                    self.input.advance(length + 1);
                    continue;
                }
                Ok(None | Some((b'N' | b'S' | b'A', _))) => {}
                Ok(Some(_)) | Err(_) => return true,
            }
            match self.poll_read(&mut context) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return true,
            }
        }
    }

    /// Sends a batch; its answers come in the order of its syncs.
    pub fn send(&mut self, batch: Batch) {
        self.owed += batch.syncs;
        if self.output.is_empty() {
            self.output = batch.bytes;
        } else {
            self.output.extend_from_slice(&batch.bytes);
        }
    }

    /// How many answers are to come.
    pub fn owed(&self) -> u32 {
        self.owed
    }

    /// The rows of one statement, in a transaction of its own if none is open.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn ask<'a>(
        &mut self,
        text: &str,
        parameters: impl IntoIterator<Item = Option<&'a [u8]>>,
    ) -> Result<Rows, AskError> {
        let mut batch = Batch::default();
        batch.parse("", text)?;
        batch.run("", parameters)?;
        batch.sync();
        self.send(batch);
        let steps = self.answers().await?.whole()?;
        Ok(steps.into_iter().next().unwrap_or_default())
    }

    /// Waits for the next answers. Dropped before it has them, the connection is of no more use, but
    /// for [`Self::settle`].
    ///
    /// # Errors
    /// [`Error`]
    pub async fn answers(&mut self) -> Result<Answers, Error> {
        let was_broken = std::mem::replace(&mut self.is_broken, true);
        if was_broken || self.has_ended {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        }
        let answers = self.read_answers().await?;
        self.is_broken = self.has_ended;
        Ok(answers)
    }

    async fn read_answers(&mut self) -> Result<Answers, Error> {
        let mut answers = Answers::default();
        let mut rows = Rows::default();
        let mut bytes = 0_usize;
        loop {
            let (tag, length) = match self.message().await {
                Ok(message) => message,
                // What it said as it went is worth more than that it went.
                Err(Error::Lost(_)) if answers.failed.is_some() => return Ok(answers),
                Err(error) => return Err(error),
            };
            let body = &self.input[5..=length];
            match tag {
                b'D' => {
                    bytes += body.len();
                    if bytes > ANSWER_BYTES_MAX {
                        return Err(Error::TooLong);
                    }
                    rows.push(body)?;
                }
                b'1' => answers.parsed += 1,
                b'T' => rows.columns = Some(columns(body)?),
                b'C' | b'I' => answers.steps.push(std::mem::take(&mut rows)),
                b'E' => {
                    let said = Said::parse(body);
                    rows = Rows::default();
                    if answers.failed.is_none() {
                        answers.failed = Some(said);
                    }
                }
                b'Z' => {
                    answers.standing = match body {
                        b"I" => Standing::Idle,
                        b"T" => Standing::Open,
                        b"E" => Standing::Failed,
                        _ => return Err(Error::Malformed("an unknown state")),
                    };
                    self.input.advance(length + 1);
                    self.owed = self.owed.saturating_sub(1);
                    if self.input.is_empty() && self.input.capacity() > KEPT_BYTES_MAX {
                        self.input = BytesMut::with_capacity(READ_BYTES);
                    }
                    return Ok(answers);
                }
                // Bound, closed, no columns; notices, parameters, notifications.
                b'2' | b'3' | b'n' | b't' | b'N' | b'S' | b'A' => {}
                _ => return Err(Error::Malformed("an unknown message")),
            }
            self.input.advance(length + 1);
        }
    }

    /// Ends when nothing runs on it any more, however that comes. Only to be dropped then. What was
    /// not sent yet is not sent.
    pub async fn settle(&mut self) {
        self.is_broken = true;
        if !self.output.is_empty() {
            // The server may have a part of a message; it ends when there is no more.
            self.output.clear();
            let _ = self.socket.shutdown().await;
        }
        while self.owed > 0 {
            let Ok((tag, length)) = self.message().await else { return };
            if tag == b'Z' {
                self.owed -= 1;
            }
            self.input.advance(length + 1);
        }
    }

    /// Waits until a whole message is in front; its tag and its length without that.
    async fn message(&mut self) -> Result<(u8, usize), Error> {
        loop {
            if let Some((tag, length)) = self.header()? {
                if self.input.len() > length {
                    return Ok((tag, length));
                }
                let missing = length + 1 - self.input.len();
                self.input.reserve(missing.min(1024 * 1024));
            }
            let carried = poll_fn(|context| {
                self.poll_write(context)?;
                self.poll_read(context)
            });
            if let Err(error) = carried.await {
                self.has_ended = true;
                return Err(error.into());
            }
        }
    }

    /// Tag and length (which counts itself, not the tag) of the message in front.
    fn header(&self) -> Result<Option<(u8, usize)>, Error> {
        let Some(&[tag, ref length @ ..]) = self.input.first_chunk::<5>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(Error::Malformed("a message of impossible length"));
        }
        Ok(Some((tag, length)))
    }

    /// Reads at least one byte.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.input.capacity() - self.input.len() < READ_BYTES / 4 {
            self.input.reserve(READ_BYTES);
        }
        let read = pin!(self.socket.read_buf(&mut self.input));
        match come!(read.poll(context))? {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Writes what can be written now. The server may wait for us to read before it takes the rest.
    fn poll_write(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while !self.output.is_empty() {
            match Pin::new(&mut self.socket).poll_write(context, &self.output)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => self.output.advance(written),
                Poll::Pending => return Ok(()),
            }
            self.needs_flush = true;
        }
        if self.needs_flush && Pin::new(&mut self.socket).poll_flush(context)?.is_ready() {
            self.needs_flush = false;
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The server ends it either way; told, it does not write that to its log.
        if self.output.is_empty() && self.owed == 0 && !self.has_ended {
            frontend::terminate(&mut self.output);
            let _ = self.poll_write(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// Names and types of a `RowDescription`.
fn columns(body: &[u8]) -> Result<Vec<(Vec<u8>, u32)>, Error> {
    /// Behind the name: table, number, type, its size, its modifier, format.
    const FACTS: usize = 18;
    let parse = || {
        let (count, mut rest) = body.split_first_chunk::<2>()?;
        let count = u16::from_be_bytes(*count);
        let mut columns = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let end = rest.iter().position(|&byte| byte == 0)?;
            let (name, behind) = rest.split_at(end);
            let (facts, behind) = behind.get(1..)?.split_first_chunk::<FACTS>()?;
            let [_, _, _, _, _, _, a, b, c, d, ..] = *facts;
            columns.push((name.to_vec(), u32::from_be_bytes([a, b, c, d])));
            rest = behind;
        }
        rest.is_empty().then_some(columns)
    };
    parse().ok_or(Error::Malformed("a description is cut off"))
}

fn lost(error: impl std::error::Error + Send + Sync + 'static) -> ConnectError {
    ConnectError::Lost(io::Error::other(error))
}

impl From<socket::Error> for ConnectError {
    fn from(error: socket::Error) -> Self {
        match error {
            socket::Error::Lost(error) => Self::Lost(error),
            socket::Error::Refused(problem) => Self::Refused { problem },
        }
    }
}

/// Tells `tokio-postgres` what a login on an encrypted socket can be bound to.
struct Binding(Option<Vec<u8>>);

impl Binding {
    fn of(socket: &Socket) -> Self {
        match socket {
            Socket::Tls(stream) => Self(tls::channel_binding(stream)),
            Socket::Tcp(_) | Socket::Unix(_) => Self(None),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsConnect<S> for Binding {
    type Stream = Bound<S>;
    type Error = io::Error;
    type Future = Ready<io::Result<Bound<S>>>;

    fn connect(self, stream: S) -> Self::Future {
        ready(Ok(Bound { stream, binding: self.0 }))
    }
}

/// A socket whose handshake was made.
struct Bound<S> {
    stream: S,
    binding: Option<Vec<u8>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Bound<S> {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.binding {
            Some(hash) => ChannelBinding::tls_server_end_point(hash.clone()),
            None => ChannelBinding::none(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_and_a_cut_one_refused() {
        let body = b"\0\x03\0\0\0\x02ab\xFF\xFF\xFF\xFF\0\0\0\0";
        let mut rows = Rows::default();
        rows.push(body).unwrap();
        rows.push(b"\0\0").unwrap();
        let values: Vec<Vec<_>> = rows.iter().map(Iterator::collect).collect();
        assert_eq!(values, [vec![Some(&b"ab"[..]), None, Some(&b""[..])], vec![]]);
        assert_eq!((rows.text(0), rows.text(1), rows.text(3)), (Some("ab"), None, None));
        for length in 0..body.len() {
            assert!(rows.push(&body[..length]).is_err(), "{length}");
        }
        for body in [&b"\0\x01\xFF\xFF\xFF\xFE"[..], b"\0\x01\x7F\xFF\xFF\xFF", b"\0\0\0"] {
            assert!(rows.push(body).is_err(), "{body:?}");
        }
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn a_description_is_read_and_a_cut_one_refused() {
        let body = b"\0\x01id\0\0\0\x40\0\0\x01\0\0\0\x17\0\x04\xFF\xFF\xFF\xFF\0\0";
        assert_eq!(columns(body).unwrap(), [(b"id".to_vec(), 23)]);
        assert_eq!(columns(b"\0\0").unwrap(), []);
        for length in 0..body.len() {
            assert!(columns(&body[..length]).is_err(), "{length}");
        }
        assert!(columns(&[&body[..], b"\0"].concat()).is_err());
    }

    #[test]
    fn what_the_server_says_is_read_however_much_of_it_there_is() {
        let body = b"SERROR\0VERROR\0C42704\0Mno \"x\"\0Dmore\0Hmake it\0Fslot.c\0\0Mnot this\0";
        let said = Said::parse(body);
        assert_eq!((&*said.code, &*said.message), ("42704", "no \"x\""));
        assert_eq!((said.detail.as_deref(), said.hint.as_deref()), (Some("more"), Some("make it")));
        for length in 0..body.len() {
            Said::parse(&body[..length]);
        }
    }
}
