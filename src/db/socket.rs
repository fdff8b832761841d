//! The bytes' way to one server, for whoever speaks the protocol.
//!
//! In:     a [`Login`], one of its [`Endpoint`]s.
//! Out:    a [`Socket`], encrypted and its server checked as the login says.
//! Never:  a byte of the protocol, but for asking whether there is TLS.
//! Source: postgresql.org/docs/17/protocol-flow.html#PROTOCOL-FLOW-SSL

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::tls::{self, Demand};
use super::{Endpoint, Login};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Try again.
    #[error("the server cannot be reached")]
    Lost(#[from] io::Error),
    /// A person must act; the sentence says how.
    #[error("{0}")]
    Refused(String),
}

/// An open one.
#[derive(Debug)]
pub enum Socket {
    /// Over the network, in clear text.
    Tcp(TcpStream),
    /// On this machine.
    Unix(UnixStream),
    /// Over the network, encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(context, buffer),
            Self::Unix(socket) => Pin::new(socket).poll_read(context, buffer),
            Self::Tls(socket) => Pin::new(socket).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Unix(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Tls(socket) => Pin::new(socket).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(context),
            Self::Unix(socket) => Pin::new(socket).poll_flush(context),
            Self::Tls(socket) => Pin::new(socket).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Tls(socket) => Pin::new(socket).poll_shutdown(context),
        }
    }
}

impl Socket {
    /// Connects, asks for TLS as the login says, and makes a dead link show: after `dead_after`
    /// without a sign of life or, for whoever sends all the time, without one being taken.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn open(
        login: &Login,
        endpoint: &Endpoint,
        dead_after: Duration,
    ) -> Result<Self, Error> {
        let (host, address, port) = match endpoint {
            Endpoint::Unix(path) => {
                return Ok(Self::Unix(UnixStream::connect(path).await?));
            }
            Endpoint::Tcp { host, address, port } => (host, *address, *port),
        };
        let mut socket = match address {
            Some(address) => TcpStream::connect((address, port)).await,
            None => TcpStream::connect((host.as_str(), port)).await,
        }?;
        socket.set_nodelay(true)?;
        let quarter = (dead_after / 4).max(Duration::from_secs(1));
        let keepalive =
            TcpKeepalive::new().with_time(quarter).with_interval(quarter).with_retries(3);
        let options = SockRef::from(&socket);
        options.set_tcp_keepalive(&keepalive)?;
        // Something is sent every third of the time, so that a cut link shows within it.
        #[cfg(target_os = "linux")]
        options.set_tcp_user_timeout(Some(dead_after * 2 / 3))?;

        let tls = login.tls();
        if tls.demand() == Demand::Never {
            return Ok(Self::Tcp(socket));
        }
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request).await?;
        // Exactly one byte: what an attacker could slip in after it goes into the handshake.
        match (socket.read_u8().await?, tls.demand()) {
            (b'S', _) => {}
            (b'N', Demand::Prefer) => return Ok(Self::Tcp(socket)),
            (b'N', _) => {
                let problem = "the server has no TLS, and sslmode demands it";
                return Err(Error::Refused(problem.into()));
            }
            (_, _) => {
                return Err(Error::Refused(format!("{endpoint} is not a Postgres server")));
            }
        }
        match tls.handshake(socket, host).await {
            Ok(socket) => Ok(Self::Tls(Box::new(socket))),
            Err(error) if tls::is_refused_certificate(&error) => Err(Error::Refused(format!(
                "the certificate of {endpoint} is not one we trust: {error}"
            ))),
            Err(error) => Err(Error::Lost(error)),
        }
    }
}
