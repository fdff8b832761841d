//! Upgrade requests: who gets a socket.
//!
//! In:     requests for a WebSocket.
//! Out:    101 and a running socket, or a refusal as JSON.
//! Never:  decides by a token (that is [`Admit`]); keeps a refused request while it waits.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::time::sleep;

use super::{Origins, Service, error};
use crate::config;
use crate::transport::admit::{Admit, Refusal};
use crate::transport::websocket::{self, HandshakeError};

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self.error {
            Some(text) => error(self.status, &text),
            None => self.status.into_response(),
        }
    }
}

/// From where a socket may be opened, and by how many.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    /// Pages that may talk to us.
    pub origins: Origins,
    /// Header in which a proxy in front of us names the client; none: the peer is the client.
    address_header: Option<HeaderName>,
}

impl Gate {
    /// As the settings say.
    pub fn new(settings: &config::Limits) -> Self {
        Self {
            origins: Origins::new(&settings.origins),
            address_header: settings.address_header.parse().ok(),
        }
    }

    /// The client's address. Where a proxy appends to a list, the last entry is the one it wrote;
    /// what stands before it may be the client's invention.
    pub(super) fn address(&self, request: &Parts) -> Option<IpAddr> {
        let told = self.address_header.as_ref().and_then(|name| {
            let last = request.headers.get_all(name).iter().next_back()?.to_str().ok()?;
            parse_address(last.rsplit(',').next()?.trim())
        });
        told.or_else(|| {
            let peer = request.extensions.get::<ConnectInfo<SocketAddr>>();
            peer.map(|ConnectInfo(address)| address.ip())
        })
    }
}

/// An address, with or without a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// Answers a request for a socket.
pub(super) async fn open<A: Admit>(
    State(service): State<Arc<Service<A>>>,
    request: Request,
) -> Response {
    let (mut parts, _body) = request.into_parts();
    let accept = match websocket::accept_handshake(&parts.method, parts.version, &parts.headers) {
        Ok(accept) => accept,
        Err(problem) => return handshake_refusal(problem),
    };
    if !service.gate.origins.admit(&parts.headers) {
        return error(StatusCode::FORBIDDEN, "Origin is not allowed");
    }
    let Some(place) = service.connections.reserve() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "Too many connections");
    };
    let Some(place) = place.of(service.gate.address(&parts)) else {
        return error(StatusCode::TOO_MANY_REQUESTS, "Too many connected users");
    };
    service.admit.prepare(&parts).await;
    let refusal = match service.admit.admit(&parts) {
        Ok(start) => {
            place.upgrade(hyper::upgrade::on(Request::from_parts(parts, ())), start);
            return switching_protocols(&accept);
        }
        Err(refusal) => refusal,
    };
    drop(place);
    // The request may hold a token, and waits with its connection: keep neither.
    parts.headers.clear();
    drop(parts);
    sleep(refusal.delay).await;
    refusal.into_response()
}

pub(super) fn switching_protocols(accept: &str) -> Response {
    let headers = [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

pub(super) fn handshake_refusal(problem: HandshakeError) -> Response {
    let status = match problem {
        HandshakeError::NotAnUpgrade | HandshakeError::WrongVersion => StatusCode::UPGRADE_REQUIRED,
        HandshakeError::Malformed => StatusCode::BAD_REQUEST,
    };
    let mut response = error(status, &problem.to_string());
    let headers = response.headers_mut();
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The address of a request from 192.0.2.1 with these values of `x-forwarded-for`.
    fn address(header: &str, values: &[&'static str]) -> String {
        let limits = config::Limits { address_header: header.into(), ..Default::default() };
        let (mut parts, ()) = axum::http::Request::new(()).into_parts();
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        parts.extensions.insert(ConnectInfo(peer));
        for value in values {
            parts.headers.append("x-forwarded-for", HeaderValue::from_static(value));
        }
        Gate::new(&limits).address(&parts).unwrap().to_string()
    }

    #[test]
    fn the_peer_is_the_client_unless_a_header_is_trusted() {
        assert_eq!(address("", &["203.0.113.9"]), "192.0.2.1");
        assert_eq!(address("x-real-ip", &["203.0.113.9"]), "192.0.2.1");
        assert_eq!(address("X-Forwarded-For", &["203.0.113.9"]), "203.0.113.9");
    }

    #[test]
    fn the_last_entry_is_the_one_the_proxy_wrote() {
        let header = "x-forwarded-for";
        assert_eq!(address(header, &["1.1.1.1, 203.0.113.9"]), "203.0.113.9");
        assert_eq!(address(header, &["1.1.1.1", "203.0.113.9"]), "203.0.113.9");
        assert_eq!(address(header, &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(address(header, &["203.0.113.9:5000"]), "203.0.113.9");
        assert_eq!(address(header, &["nonsense"]), "192.0.2.1");
    }
}
