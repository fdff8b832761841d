//! A connection in replication mode, up to the moment the stream starts.
//!
//! In:     a [`Login`]; commands of the replication grammar and SQL, as text.
//! Out:    rows as text; after `START_REPLICATION`, the bytes of the stream.
//! Never:  a password in clear text without TLS; more memory for a message than its bound.
//! Source: postgresql.org/docs/17/protocol-flow.html, RFC 5802, RFC 5929

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_postgres::config::ChannelBinding;

use super::Error;
use super::pgoutput::{DecodeError, Input};
use crate::db::socket::{self, Socket};
use crate::db::tls;
use crate::db::{Endpoint, Login, OUTPUT_SETTINGS};
use crate::lsn::Lsn;

/// Bytes of one message before the stream starts: results here are a few rows of a few numbers,
/// error texts at most some kilobytes. A server, or something that only claims to be one, that
/// announces more is cut off.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// How long the server may take to answer a command that only looks things up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Name in `pg_stat_activity` and `pg_stat_replication`.
const APPLICATION_NAME: &str = "walcast replication";

/// What the server said went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {code}){}", .hint.as_deref().map(|hint| format!(", hint: {hint}")).unwrap_or_default())]
pub struct ServerError {
    /// SQLSTATE, such as `42704`.
    pub code: String,
    /// The primary message, in the server's language.
    pub message: String,
    /// The server's advice.
    pub hint: Option<String>,
    /// The place in the log that it was at, as far as its context tells.
    pub place: Option<Lsn>,
}

impl ServerError {
    /// From the body of an `ErrorResponse`.
    pub(super) fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        let (mut code, mut message) = (String::new(), String::new());
        let (mut hint, mut place) = (None, None);
        let mut input = Input(body);
        loop {
            match input.u8()? {
                0 => return Ok(Self { code, message, hint, place }),
                b'C' => code = input.text()?.into_owned(),
                b'M' => message = input.text()?.into_owned(),
                b'H' => hint = Some(input.text()?.into_owned()),
                b'W' => place = last_place(&input.text()?),
                _other_field => {
                    input.terminated()?;
                }
            }
        }
    }
}

/// The last position in a text of whatever language, such as `…, associated LSN 0/16B3748`.
fn last_place(context: &str) -> Option<Lsn> {
    let words = context.rsplit(|c: char| !(c.is_ascii_hexdigit() || c == '/'));
    words.filter(|word| word.contains('/')).find_map(|word| word.parse().ok())
}

/// One row of a result; a null column is none.
pub(super) type Row = Vec<Option<String>>;

/// A replication connection that has not started to stream.
pub(super) struct Connection {
    /// Once the stream has started, whoever runs it reads and writes here.
    pub(super) socket: Socket,
    /// What was read and not yet taken.
    pub(super) input: BytesMut,
    endpoint: Endpoint,
    login: Login,
    process_id: i32,
    secret_key: i32,
    /// Encoding of the database.
    server_encoding: String,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("endpoint", &self.endpoint)
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects and logs in to the first server of the login that lets us and is no standby. A standby
    /// is waited for: its log is still another's, and what it is promoted to will say so. Until then its
    /// slots, or that it has none, mean nothing.
    ///
    /// # Errors
    /// Of the last server tried.
    pub(super) async fn open(login: &Login, sender_timeout: Duration) -> Result<Self, Error> {
        let mut last = refused("the connection URL names no host");
        for endpoint in login.endpoints() {
            let opening = async {
                let mut connection = Self::open_at(login, endpoint, sender_timeout).await?;
                let asked = connection.query("select pg_catalog.pg_is_in_recovery()").await;
                let standby = match asked {
                    Ok(rows) => rows.first().and_then(|row| row.first()?.clone()),
                    // Who does not even answer this is told from a server by whoever goes on.
                    Err(QueryError::Server(_)) => return Ok(connection),
                    Err(QueryError::Connection(error)) => return Err(error),
                };
                if standby.as_deref() == Some("f") {
                    Ok(connection)
                } else {
                    Err(lost(io::Error::other("the server is a standby")))
                }
            };
            last = match tokio::time::timeout(login.timeout(), opening).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_elapsed) => lost(io::ErrorKind::TimedOut.into()),
            };
        }
        Err(last)
    }

    async fn open_at(
        login: &Login,
        endpoint: Endpoint,
        sender_timeout: Duration,
    ) -> Result<Self, Error> {
        let mut connection = Self {
            socket: Socket::open(login, &endpoint, sender_timeout).await?,
            input: BytesMut::new(),
            endpoint,
            login: login.clone(),
            process_id: 0,
            secret_key: 0,
            server_encoding: String::new(),
        };
        let sender_timeout_ms = sender_timeout.as_millis().to_string();
        let settings = [
            ("user", login.user()),
            ("database", login.dbname()),
            ("replication", "database"),
            ("application_name", APPLICATION_NAME),
            ("client_encoding", "UTF8"),
            ("statement_timeout", "0"),
            ("lock_timeout", "0"),
            ("idle_session_timeout", "0"),
            ("wal_sender_timeout", &sender_timeout_ms),
        ];
        let mut startup = BytesMut::new();
        frontend::startup_message(settings.into_iter().chain(OUTPUT_SETTINGS), &mut startup)
            .map_err(lost)?;
        connection.send(&startup).await?;
        connection.authenticate().await?;
        connection.await_ready().await?;
        // Such a database holds any bytes; asked for UTF-8 it fails at the first row that is not.
        if connection.server_encoding == "SQL_ASCII" {
            connection.query("SET client_encoding TO 'SQL_ASCII'").await?;
        }
        Ok(connection)
    }

    /// The server's process for this connection.
    pub(super) fn process_id(&self) -> i32 {
        self.process_id
    }

    /// Answers whatever the server asks until it is satisfied.
    async fn authenticate(&mut self) -> Result<(), Error> {
        let login = self.login.clone();
        let no_password = || refused("the server asks for a password, and the URL has none");
        let password = || login.password().ok_or_else(no_password);
        // A server that asks for no proof of the channel gets nothing that was to be bound to it.
        let bind_always = login.channel_binding() == ChannelBinding::Require;
        let unbound =
            || refused("the server does not bind the login to its certificate (channel_binding)");
        let mut scram: Option<sasl::ScramSha256> = None;
        let mut bound = false;
        loop {
            let (tag, frame) = self.frame().await?;
            let mut body = Input(&frame);
            match tag {
                b'R' => {}
                b'E' => return Err(startup_error(ServerError::parse(&frame)?)),
                b'N' => continue, // a notice
                b'v' => return Err(refused("the server does not speak protocol 3.0")),
                tag => return Err(unexpected(tag)),
            }
            let mut answer = BytesMut::new();
            let request = body.u32()?;
            if bind_always && !matches!(request, 0 | 10..=12) {
                return Err(unbound());
            }
            match (request, scram.as_mut()) {
                (0, _) if bind_always && !bound => return Err(unbound()),
                (0, None) => return Ok(()),
                (0, Some(_)) => {
                    return Err(refused("the server ended the login without proving who it is"));
                }
                (3, _) => {
                    if matches!(self.socket, Socket::Tcp(_)) {
                        return Err(refused(
                            "the server asks for the password in clear text on an unencrypted \
                             connection: use sslmode=require, or scram-sha-256 in pg_hba.conf",
                        ));
                    }
                    frontend::password_message(password()?, &mut answer).map_err(lost)?;
                }
                (5, _) => {
                    let salt = body.u32()?.to_be_bytes();
                    let hash = md5_hash(login.user().as_bytes(), password()?, salt);
                    frontend::password_message(hash.as_bytes(), &mut answer).map_err(lost)?;
                }
                (10, None) => {
                    let mechanisms = sasl_mechanisms(&mut body)?;
                    let offered = |name: &str| mechanisms.iter().any(|known| known == name);
                    let binding = match &self.socket {
                        Socket::Tls(stream)
                            if login.channel_binding() != ChannelBinding::Disable =>
                        {
                            tls::channel_binding(stream)
                        }
                        Socket::Tls(_) | Socket::Tcp(_) | Socket::Unix(_) => None,
                    };
                    let (mechanism, binding) = match binding {
                        Some(hash) if offered(sasl::SCRAM_SHA_256_PLUS) => {
                            bound = true;
                            let binding = sasl::ChannelBinding::tls_server_end_point(hash);
                            (sasl::SCRAM_SHA_256_PLUS, binding)
                        }
                        _ if bind_always => return Err(unbound()),
                        // "We could have": lets the server notice that its offer was taken out.
                        Some(_) if offered(sasl::SCRAM_SHA_256) => {
                            (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())
                        }
                        None if offered(sasl::SCRAM_SHA_256) => {
                            (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported())
                        }
                        Some(_) | None => {
                            return Err(refused("the server wants a login that we do not speak"));
                        }
                    };
                    let exchange = sasl::ScramSha256::new(password()?, binding);
                    frontend::sasl_initial_response(mechanism, exchange.message(), &mut answer)
                        .map_err(lost)?;
                    scram = Some(exchange);
                }
                (11, Some(exchange)) => {
                    exchange.update(body.rest()).map_err(|error| unproved(&error))?;
                    frontend::sasl_response(exchange.message(), &mut answer).map_err(lost)?;
                }
                (12, Some(exchange)) => {
                    exchange.finish(body.rest()).map_err(|error| unproved(&error))?;
                    scram = None;
                    continue;
                }
                (other, _) => {
                    return Err(refused(&format!(
                        "the server wants a kind of login that we do not speak (request {other})"
                    )));
                }
            }
            self.send(&answer).await?;
        }
    }

    /// Reads what the server tells of itself until it takes commands.
    async fn await_ready(&mut self) -> Result<(), Error> {
        loop {
            let (tag, frame) = self.frame().await?;
            let mut body = Input(&frame);
            match tag {
                b'K' => (self.process_id, self.secret_key) = (body.i32()?, body.i32()?),
                b'S' => {
                    if body.text()? == "server_encoding" {
                        self.server_encoding = body.text()?.into_owned();
                    }
                }
                b'N' => {}
                b'Z' => return Ok(()),
                b'E' => return Err(startup_error(ServerError::parse(&frame)?)),
                tag => return Err(unexpected(tag)),
            }
        }
    }

    /// Runs one command and gives its rows. The connection stays usable after a server error.
    ///
    /// # Errors
    /// [`QueryError::Server`] when the server refuses it.
    pub(super) async fn query(&mut self, command: &str) -> Result<Vec<Row>, QueryError> {
        in_time(self.query_for_long(command)).await
    }

    /// The same, for a command that may wait: the caller has the deadline.
    ///
    /// # Errors
    /// [`QueryError::Server`] when the server refuses it.
    pub(super) async fn query_for_long(&mut self, command: &str) -> Result<Vec<Row>, QueryError> {
        let mut message = BytesMut::new();
        frontend::query(command, &mut message).map_err(lost)?;
        self.send(&message).await?;
        self.answer().await
    }

    /// The rows of a command already sent, or what is left of a stream the server broke off.
    pub(super) async fn answer(&mut self) -> Result<Vec<Row>, QueryError> {
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            let (tag, frame) = self.frame().await?;
            match tag {
                b'D' => rows.push(row(&frame).map_err(Error::Malformed)?),
                b'E' => error = Some(ServerError::parse(&frame).map_err(Error::Malformed)?),
                // Row description, completion, empty query, notice, parameter, and the end of a
                // stream that an error broke off.
                b'T' | b'C' | b'I' | b'N' | b'S' | b'c' => {}
                b'Z' => return error.map_or(Ok(rows), |error| Err(error.into())),
                tag => return Err(unexpected(tag).into()),
            }
            if let Some(error) = error.take_if(|error| error.code.starts_with("57P")) {
                return Err(error.into()); // The server closes this connection.
            }
        }
    }

    /// Starts the stream. After a server error the connection stays usable.
    ///
    /// # Errors
    /// [`QueryError::Server`] when the server refuses it.
    pub(super) async fn start(&mut self, command: &str) -> Result<(), QueryError> {
        in_time(self.start_at_last(command)).await
    }

    async fn start_at_last(&mut self, command: &str) -> Result<(), QueryError> {
        let mut message = BytesMut::new();
        frontend::query(command, &mut message).map_err(lost)?;
        self.send(&message).await?;
        loop {
            let (tag, frame) = self.frame().await?;
            match tag {
                b'W' => return Ok(()), // CopyBothResponse
                b'N' | b'S' => {}
                b'E' => {
                    let error = ServerError::parse(&frame).map_err(Error::Malformed)?;
                    self.answer().await?;
                    return Err(error.into());
                }
                tag => return Err(unexpected(tag).into()),
            }
        }
    }

    /// Can ask the server to stop what this connection waits for, while it waits.
    pub(super) fn canceller(&self) -> Canceller {
        Canceller {
            login: self.login.clone(),
            endpoint: self.endpoint.clone(),
            process_id: self.process_id,
            secret_key: self.secret_key,
        }
    }

    /// Says goodbye; the server's process ends at once.
    pub(super) async fn terminate(mut self) {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        if self.send(&message).await.is_ok() {
            self.socket.shutdown().await.ok();
        }
    }

    async fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        self.socket.write_all(message).await.map_err(lost)?;
        self.socket.flush().await.map_err(lost)
    }

    /// The next message: its tag and body.
    async fn frame(&mut self) -> Result<(u8, BytesMut), Error> {
        loop {
            if let Some((tag, length)) = frame_header(&self.input)? {
                if length > MESSAGE_BYTES_MAX {
                    return Err(refused(&format!("{} is not a Postgres server", self.endpoint)));
                }
                if self.input.len() > length {
                    let mut frame = self.input.split_to(length + 1);
                    frame.advance(5);
                    return Ok((tag, frame));
                }
            }
            if self.socket.read_buf(&mut self.input).await.map_err(lost)? == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// Tag and length (which counts itself, not the tag) of the message that starts here.
pub(super) fn frame_header(bytes: &[u8]) -> Result<Option<(u8, usize)>, Error> {
    let Some(&[tag, ref length @ ..]) = bytes.first_chunk::<5>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| DecodeError::Length)?;
    if length < 4 {
        return Err(Error::Malformed(DecodeError::Length));
    }
    Ok(Some((tag, length)))
}

async fn in_time<T>(answer: impl Future<Output = Result<T, QueryError>>) -> Result<T, QueryError> {
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
    answered.unwrap_or_else(|_elapsed| Err(lost(io::ErrorKind::TimedOut.into()).into()))
}

/// See [`Connection::canceller`].
#[derive(Clone)]
pub(super) struct Canceller {
    login: Login,
    endpoint: Endpoint,
    process_id: i32,
    secret_key: i32,
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canceller").field("process_id", &self.process_id).finish_non_exhaustive()
    }
}

impl Canceller {
    /// Asks once. The connection gets the answer: an error, or the result that was faster.
    ///
    /// # Errors
    /// When the server cannot be reached a second time.
    pub(super) async fn cancel(&self) -> Result<(), Error> {
        let asking = async {
            let timeout = self.login.timeout();
            let mut socket = Socket::open(&self.login, &self.endpoint, timeout).await?;
            let mut request = BytesMut::new();
            frontend::cancel_request(self.process_id, self.secret_key, &mut request);
            socket.write_all(&request).await.map_err(lost)?;
            socket.flush().await.map_err(lost)?;
            // The server closes when it has passed the request on.
            socket.read_u8().await.ok();
            Ok(())
        };
        let asked = tokio::time::timeout(self.login.timeout(), asking).await;
        asked.unwrap_or_else(|_elapsed| Err(lost(io::ErrorKind::TimedOut.into())))
    }
}

/// Why a command has no result.
#[derive(Debug)]
pub(super) enum QueryError {
    /// The server refused it.
    Server(ServerError),
    /// The connection is gone or not one to Postgres.
    Connection(Error),
}

impl From<ServerError> for QueryError {
    fn from(error: ServerError) -> Self {
        Self::Server(error)
    }
}

impl From<Error> for QueryError {
    fn from(error: Error) -> Self {
        Self::Connection(error)
    }
}

/// For commands whose refusal has no meaning of its own.
impl From<QueryError> for Error {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Server(error) => lost(io::Error::other(error)),
            QueryError::Connection(error) => error,
        }
    }
}

impl From<socket::Error> for Error {
    fn from(error: socket::Error) -> Self {
        match error {
            socket::Error::Lost(error) => lost(error),
            socket::Error::Refused(problem) => refused(&problem),
        }
    }
}

pub(super) fn lost(error: io::Error) -> Error {
    Error::Disconnected(error)
}

pub(super) fn refused(problem: &str) -> Error {
    Error::Refused { problem: problem.to_owned(), source: None }
}

pub(super) fn unexpected(tag: u8) -> Error {
    Error::Malformed(DecodeError::Tag { what: "protocol message", tag })
}

/// The server could not show that it knows the password too, or talks nonsense.
fn unproved(error: &io::Error) -> Error {
    let problem = format!("the SCRAM exchange failed: {error}");
    Error::Refused { problem, source: None }
}

/// What a refusal at start-up means for the caller.
fn startup_error(error: ServerError) -> Error {
    let problem = match error.code.as_str() {
        "28000" | "28P01" => return Error::LoginRefused(Box::new(error)),
        "3D000" => "the database does not exist",
        "42501" => {
            "the login may not replicate: run `alter role … replication`, or on Amazon RDS \
             `grant rds_replication to …`"
        }
        "08P01" if error.message.contains("startup parameter") => POOLER,
        "42704" | "22023" => "the server does not know a setting we need: it is older than 14",
        "53300" => {
            let advice = "raise max_wal_senders or max_connections, or end another connection";
            return lost(io::Error::other(format!("{error}; {advice}")));
        }
        // Starting, stopping, recovering: it will pass.
        _ => return lost(io::Error::other(error)),
    };
    Error::Refused { problem: problem.to_owned(), source: Some(Box::new(error)) }
}

/// What a connection that does not know the replication grammar is.
pub(super) const POOLER: &str = "this address is a connection pooler, which cannot carry \
     replication: use the database's direct address and port";

fn sasl_mechanisms(body: &mut Input<'_>) -> Result<Vec<String>, DecodeError> {
    let mut mechanisms = Vec::new();
    loop {
        match body.text()? {
            name if name.is_empty() => return Ok(mechanisms),
            name => mechanisms.push(name.into_owned()),
        }
    }
}

fn row(body: &[u8]) -> Result<Row, DecodeError> {
    let mut input = Input(body);
    (0..input.u16()?)
        .map(|_| match input.i32()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| DecodeError::Length)?;
                Ok(Some(String::from_utf8_lossy(input.take(length)?).into_owned()))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_response_is_read() {
        let body = b"SERROR\0VERROR\0C42704\0Mslot \"x\" does not exist\0Hmake it\0Fslot.c\0\0";
        let error = ServerError::parse(body).unwrap();
        assert_eq!((error.code.as_str(), error.hint.as_deref()), ("42704", Some("make it")));
        assert_eq!(error.to_string(), "slot \"x\" does not exist (SQLSTATE 42704), hint: make it");
        for length in 0..body.len() {
            assert!(ServerError::parse(&body[..length]).is_err());
        }
    }

    #[test]
    fn a_row_is_read_and_a_cut_one_refused() {
        let body = b"\0\x03\0\0\0\x02ab\xFF\xFF\xFF\xFF\0\0\0\0";
        assert_eq!(row(body).unwrap(), [Some("ab".into()), None, Some(String::new())]);
        for length in 0..body.len() {
            assert!(row(&body[..length]).is_err(), "{length}");
        }
        assert!(row(b"\0\x01\xFF\xFF\xFF\xFE").is_err());
    }

    #[test]
    fn refusals_at_startup_say_what_to_do() {
        let problem = |code: &str, message: &str| {
            let error =
                ServerError { code: code.into(), message: message.into(), hint: None, place: None };
            startup_error(error).to_string()
        };
        assert!(problem("42501", "must be superuser").contains("alter role"));
        assert!(problem("08P01", "unsupported startup parameter: replication").contains("pooler"));
        let password =
            ServerError { code: "28P01".into(), message: String::new(), hint: None, place: None };
        assert!(matches!(startup_error(password), Error::LoginRefused(_)));
        let full =
            ServerError { code: "53300".into(), message: "full".into(), hint: None, place: None };
        let Error::Disconnected(full) = startup_error(full) else { panic!("it will pass") };
        assert!(full.to_string().contains("raise max_wal_senders"), "{full}");
        let passing =
            ServerError { code: "57P03".into(), message: String::new(), hint: None, place: None };
        assert!(matches!(startup_error(passing), Error::Disconnected(_)));
    }
}
