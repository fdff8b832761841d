//! One login to one server: address, credentials, TLS mode, and how to connect as it.
//!
//! In:     a `postgres://` URL: libpq's parameters, `sslmode=verify-full` and `sslrootcert`
//!         included, and `sslfingerprint=sha256:…`, which pins one certificate.
//! Out:    [`Login`], and connections whose text output does not depend on server settings.
//! Never:  a password in `Debug`, in an error or in a log.

use std::fmt;
use std::future::poll_fn;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::{ChannelBinding, Host, SslMode, SslNegotiation};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls::{self, Demand, Tls};
use crate::config::Secret;

/// Every setting that changes how Postgres writes a value as text, and what `value` expects.
/// A database or a role may have other defaults; without these, dates and floats change shape.
pub const OUTPUT_SETTINGS: [(&str, &str); 7] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("xmlbinary", "base64"),
];

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is malformed: fix the setting.
    #[error("not a usable Postgres connection URL: {problem}")]
    Url {
        /// What is wrong with it; never contains the password.
        problem: String,
    },
    /// The server did not let us in.
    #[error("cannot connect to Postgres")]
    Connect(#[source] tokio_postgres::Error),
    /// It cannot be reached, or went away.
    #[error("cannot connect to Postgres")]
    Lost(#[source] std::io::Error),
    /// A person must act; the sentence says how.
    #[error("cannot connect to Postgres: {problem}")]
    Refused {
        /// What is wrong.
        problem: String,
    },
    /// No answer in time.
    #[error("Postgres did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// Where one server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A name or an address, and a port. `address` replaces looking the name up.
    Tcp {
        /// What a certificate must be for.
        host: String,
        /// Known address of that host.
        address: Option<IpAddr>,
        /// TCP port.
        port: u16,
    },
    /// The socket file.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// How to reach one server as one login.
#[derive(Clone)]
pub struct Login {
    config: tokio_postgres::Config,
    tls: Tls,
    timeout: Duration,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user())
            .field("endpoints", &self.endpoints())
            .field("dbname", &self.dbname())
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl Login {
    /// From a connection URL. `timeout` bounds each attempt to connect.
    ///
    /// # Errors
    /// [`Error::Url`] when it is malformed or its certificates cannot be read.
    pub fn parse(url: &str, timeout: Duration) -> Result<Self, Error> {
        let refuse = |problem: String| Error::Url { problem };
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(refuse("it must start with postgres://".into()));
        }
        let (bare, parameters) = take_tls_parameters(url).map_err(refuse)?;
        let tls = Tls::new(&parameters).map_err(refuse)?;
        let mut config: tokio_postgres::Config =
            bare.parse().map_err(|error: tokio_postgres::Error| {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                refuse(source.unwrap_or_else(|| error.to_string()))
            })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(refuse("it names no host".into()));
        }
        if config.get_user().is_none_or(str::is_empty) {
            return Err(refuse("it names no user".into()));
        }
        if !matches!(config.get_ports().len(), 0 | 1)
            && config.get_ports().len() != config.get_hosts().len()
        {
            return Err(refuse("it has one port for some hosts and none for others".into()));
        }
        if config.get_ssl_negotiation() == SslNegotiation::Direct {
            return Err(refuse("sslnegotiation=direct is not supported".into()));
        }
        config.ssl_mode(match tls.demand() {
            Demand::Never => SslMode::Disable,
            Demand::Prefer => SslMode::Prefer,
            Demand::Require => SslMode::Require,
        });
        let pinned = OUTPUT_SETTINGS.map(|(name, value)| format!("-c {name}={value}")).join(" ");
        config.options(match config.get_options() {
            Some(own) => format!("{own} {pinned}"),
            None => pinned,
        });
        Ok(Self { config, tls, timeout })
    }

    /// The same server and database as somebody else.
    #[must_use]
    pub fn with_user(&self, user: &str, password: &Secret) -> Self {
        let mut login = self.clone();
        login.config.user(user).password(password.expose());
        login
    }

    /// The same server and login in another database.
    #[must_use]
    pub fn with_dbname(&self, dbname: &str) -> Self {
        let mut login = self.clone();
        login.config.dbname(dbname);
        login
    }

    /// Name or address of the first server, or its socket's directory.
    pub fn host(&self) -> String {
        match (self.config.get_hosts().first(), self.config.get_hostaddrs().first()) {
            (Some(Host::Tcp(name)), _) => name.clone(),
            (Some(Host::Unix(directory)), _) => directory.display().to_string(),
            (None, address) => address.map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// Port of the first server.
    pub fn port(&self) -> u16 {
        self.config.get_ports().first().copied().unwrap_or(5432)
    }

    /// Database name: the user's name unless the URL has one.
    pub fn dbname(&self) -> &str {
        self.config.get_dbname().filter(|name| !name.is_empty()).unwrap_or_else(|| self.user())
    }

    /// User name.
    pub fn user(&self) -> &str {
        self.config.get_user().expect("checked by parse")
    }

    /// How long one attempt to connect may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// All of it, for whoever makes the socket.
    pub(super) fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }

    /// The password, for whoever speaks the protocol.
    pub(crate) fn password(&self) -> Option<&[u8]> {
        self.config.get_password()
    }

    /// How connections are encrypted.
    pub(crate) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Whether a password must prove that there is nobody in between.
    pub(crate) fn channel_binding(&self) -> ChannelBinding {
        self.config.get_channel_binding()
    }

    /// Every server of the URL, in its order.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        let (hosts, addresses) = (self.config.get_hosts(), self.config.get_hostaddrs());
        let ports = self.config.get_ports();
        (0..hosts.len().max(addresses.len()))
            .map(|index| {
                let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
                let address = addresses.get(index).copied();
                match hosts.get(index) {
                    Some(Host::Unix(directory)) => {
                        Endpoint::Unix(directory.join(format!(".s.PGSQL.{port}")))
                    }
                    Some(Host::Tcp(name)) => Endpoint::Tcp { host: name.clone(), address, port },
                    None => Endpoint::Tcp {
                        host: address.map(|address| address.to_string()).unwrap_or_default(),
                        address,
                        port,
                    },
                }
            })
            .collect()
    }

    /// A new connection, called `name` in `pg_stat_activity`. Its task ends with the client.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::Timeout`].
    pub async fn connect(&self, name: &str) -> Result<Client, Error> {
        let mut config = self.config.clone();
        config.application_name(name);
        // Boxed, for it is large and part of many others.
        self.within(Box::pin(async {
            if self.tls.demand() == Demand::Never {
                let (client, connection) = config.connect(NoTls).await?;
                tokio::spawn(connection);
                return Ok(client);
            }
            let (client, connection) = config.connect(self.connector()).await?;
            tokio::spawn(connection);
            Ok(client)
        }))
        .await
    }

    /// As [`Self::connect`], and each notification's payload is told to `heard`, which is dropped
    /// when the connection ends.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::Timeout`].
    pub async fn connect_listening(
        &self,
        name: &str,
        heard: impl FnMut(&str) + Send + 'static,
    ) -> Result<Client, Error> {
        let mut config = self.config.clone();
        config.application_name(name);
        self.within(Box::pin(async {
            if self.tls.demand() == Demand::Never {
                let (client, connection) = config.connect(NoTls).await?;
                tokio::spawn(hear(connection, heard));
                return Ok(client);
            }
            let (client, connection) = config.connect(self.connector()).await?;
            tokio::spawn(hear(connection, heard));
            Ok(client)
        }))
        .await
    }

    /// Asks the server to give up what a connection of this login is doing, over a link encrypted
    /// and checked like that connection's. Whether it does shows there.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::Timeout`].
    pub async fn cancel(&self, token: &CancelToken) -> Result<(), Error> {
        self.within(Box::pin(async {
            if self.tls.demand() == Demand::Never {
                token.cancel_query(NoTls).await
            } else {
                token.cancel_query(self.connector()).await
            }
        }))
        .await
    }

    fn connector(&self) -> MakeRustlsConnect {
        MakeRustlsConnect::new(self.tls.client_config().clone())
    }

    async fn within<T>(
        &self,
        connecting: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        let connected = tokio::time::timeout(self.timeout, connecting).await;
        connected.map_err(|_| Error::Timeout(self.timeout))?.map_err(Error::Connect)
    }
}

/// Drives a connection until it ends.
async fn hear<S, T>(mut connection: Connection<S, T>, mut heard: impl FnMut(&str))
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notification(notification) = message {
            heard(notification.payload());
        }
    }
}

/// The URL without the parameters that tokio-postgres does not know, and those parameters.
fn take_tls_parameters(url: &str) -> Result<(String, tls::Parameters), String> {
    let mut parameters = tls::Parameters::default();
    // A password may hold a question mark; only what follows the `@` can start the parameters.
    let from = url.find('@').unwrap_or(0);
    let Some(start) = url[from..].find('?').map(|offset| from + offset) else {
        return Ok((url.to_owned(), parameters));
    };
    let mut kept = Vec::new();
    for pair in url[start + 1..].split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = || {
            let decoded = percent_decode_str(value).decode_utf8();
            decoded.map(|text| Some(text.into_owned())).map_err(|_| format!("{name} is not UTF-8"))
        };
        match name {
            "sslmode" => parameters.mode = decoded()?,
            "sslrootcert" => parameters.root_cert = decoded()?,
            "sslfingerprint" => parameters.fingerprint = decoded()?,
            "sslcert" | "sslkey" => {
                return Err(format!("{name}: client certificates are not supported"));
            }
            _ => kept.push(pair),
        }
    }
    let mut bare = url[..start].to_owned();
    for (index, pair) in kept.iter().enumerate() {
        bare.push(if index == 0 { '?' } else { '&' });
        bare.push_str(pair);
    }
    Ok((bare, parameters))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Login, Error> {
        Login::parse(url, Duration::from_secs(1))
    }

    #[test]
    fn a_url_is_taken_apart() {
        let login = parse("postgres://me:pa%3Fss@db.example:6543/app?sslmode=require").unwrap();
        assert_eq!((login.user(), login.dbname()), ("me", "app"));
        assert_eq!((login.host().as_str(), login.port()), ("db.example", 6543));
        assert_eq!(login.password(), Some(&b"pa?ss"[..]));
        assert_eq!(login.tls().demand(), Demand::Require);
    }

    #[test]
    fn a_unix_socket_is_an_endpoint() {
        let login = parse("postgres://me@%2Ftmp%2Fpg:5433/app").unwrap();
        assert_eq!(login.endpoints(), [Endpoint::Unix("/tmp/pg/.s.PGSQL.5433".into())]);
        let login = parse("postgres://me@/app?host=/tmp/pg&port=5433").unwrap();
        assert_eq!(login.endpoints(), [Endpoint::Unix("/tmp/pg/.s.PGSQL.5433".into())]);
    }

    #[test]
    fn the_database_is_called_like_the_user_unless_named() {
        assert_eq!(parse("postgres://me@localhost").unwrap().dbname(), "me");
        assert_eq!(parse("postgres://me@localhost").unwrap().with_dbname("x").dbname(), "x");
    }

    #[test]
    fn somebody_else_keeps_the_address() {
        let login = parse("postgres://me:one@localhost/app").unwrap();
        let other = login.with_user("you", &Secret::new("two"));
        assert_eq!((other.user(), other.password()), ("you", Some(&b"two"[..])));
        assert_eq!(other.endpoints(), login.endpoints());
    }

    #[test]
    fn nothing_printed_holds_the_password() {
        let login = parse("postgres://me:hunter2@localhost/app?options=-c%20a=hunter2").unwrap();
        assert!(!format!("{login:?}").contains("hunter2"));
        for url in [
            "postgres://me:hunter2@localhost:port/app",
            "postgres://me:hunter2@localhost/app?no_such=1",
            "mysql://me:hunter2@localhost",
            "postgres://me:hunter2@localhost/app?sslmode=perhaps",
        ] {
            let error = parse(url).unwrap_err();
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn what_we_cannot_do_is_refused_not_ignored() {
        for (url, problem) in [
            ("postgres://me@/app", "no host"),
            ("postgres://localhost/app", "no user"),
            ("postgres://me@/app?host=a,b,c&port=1,2", "one port"),
            ("postgres://me@a/app?sslcert=x.pem", "client certificates"),
            ("postgres://me@a/app?unheard_of=1", "unheard_of"),
            ("postgres://me@a/app?sslmode=verify-full&sslrootcert=/no/file", "/no/file"),
        ] {
            let error = parse(url).expect_err(url).to_string();
            assert!(error.contains(problem), "{url}: {error}");
        }
    }
}
