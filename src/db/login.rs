//! One login to one server: address, credentials, TLS mode, and how to connect as it.
//!
//! In:     a `postgres://` URL (libpq's parameters, `sslmode` and `sslrootcert` included).
//! Out:    [`Login`], and connections whose text output does not depend on server settings.

use std::time::Duration;

use tokio_postgres::{Client, NoTls};

use crate::config::Secret;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is malformed: fix the setting.
    #[error("not a Postgres connection URL")]
    Url(#[source] tokio_postgres::Error),
    /// The server did not let us in.
    #[error("cannot connect to Postgres")]
    Connect(#[source] tokio_postgres::Error),
    /// No answer in time.
    #[error("Postgres did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// How to reach one server as one login.
#[derive(Clone)]
pub struct Login {
    config: tokio_postgres::Config,
    timeout: Duration,
}

impl Login {
    /// From a connection URL.
    ///
    /// # Errors
    /// [`Error::Url`] when it is malformed.
    pub fn parse(url: &str, timeout: Duration) -> Result<Self, Error> {
        Ok(Self { config: url.parse().map_err(Error::Url)?, timeout })
    }

    /// The same server and database, as somebody else.
    #[must_use]
    pub fn with_user(&self, user: &str, password: &Secret) -> Self {
        let mut config = self.config.clone();
        config.user(user).password(password.expose());
        Self { config, timeout: self.timeout }
    }

    /// A new connection, called `name` in `pg_stat_activity`. Its task ends with the client.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::Timeout`].
    pub async fn connect(&self, name: &str) -> Result<Client, Error> {
        let mut config = self.config.clone();
        config.application_name(name);
        let connecting = tokio::time::timeout(self.timeout, config.connect(NoTls));
        let (client, connection) =
            connecting.await.map_err(|_| Error::Timeout(self.timeout))?.map_err(Error::Connect)?;
        tokio::spawn(connection);
        Ok(client)
    }
}
