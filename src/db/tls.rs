//! TLS to Postgres: who must prove what, by libpq's `sslmode`.
//!
//! In:     `sslmode`, `sslrootcert` and `sslfingerprint` of a connection URL.
//! Out:    [`Tls`]: whether to ask for TLS, how to check the server, and the channel binding.
//! Never:  a process-wide crypto provider; a certificate accepted that the mode says to check.
//! Source: postgresql.org/docs/17/libpq-ssl.html, RFC 5929 section 4.1 (tls-server-end-point)

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Whether to ask for TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Never.
    Never,
    /// When the server has it.
    Prefer,
    /// Or no connection.
    Require,
}

/// How connections of one login are encrypted, and how the server proves who it is.
#[derive(Clone)]
pub struct Tls {
    demand: Demand,
    config: Arc<ClientConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("demand", &self.demand).finish_non_exhaustive()
    }
}

/// What a connection URL says about TLS, not yet checked.
#[derive(Debug, Clone, Default)]
pub(super) struct Parameters {
    /// `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`.
    pub(super) mode: Option<String>,
    /// A PEM file, or `system` for the machine's own certificates.
    pub(super) root_cert: Option<String>,
    /// `sha256:` and the SHA-256 of the server's certificate (DER), in hexadecimal.
    pub(super) fingerprint: Option<String>,
}

impl Tls {
    /// Reads certificates where the mode needs them.
    ///
    /// # Errors
    /// A sentence that says which parameter is wrong.
    pub(super) fn new(parameters: &Parameters) -> Result<Self, String> {
        let mode = parameters.mode.as_deref().unwrap_or("prefer");
        let root_cert = parameters.root_cert.as_deref().filter(|path| !path.is_empty());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let (demand, check_chain, check_name) = match mode {
            "disable" => (Demand::Never, false, false),
            "allow" | "prefer" => (Demand::Prefer, false, false),
            // As in libpq: a root certificate makes `require` check the chain.
            "require" => (Demand::Require, root_cert.is_some(), false),
            "verify-ca" => (Demand::Require, true, false),
            "verify-full" => (Demand::Require, true, true),
            other => return Err(format!("sslmode={other} is not a mode that libpq knows")),
        };
        let trust = if let Some(fingerprint) = &parameters.fingerprint {
            if demand != Demand::Require {
                return Err("sslfingerprint needs sslmode=require".into());
            }
            Trust::Fingerprint(parse_fingerprint(fingerprint)?)
        } else if check_chain {
            match root_cert {
                None | Some("system") => Trust::Chain {
                    roots: native_roots()?,
                    exact: Vec::new(),
                    // Anybody can get a certificate from a public authority: the name is the check.
                    check_name: check_name || root_cert == Some("system"),
                },
                Some(path) => {
                    let (roots, exact) = roots_from(Path::new(path))?;
                    Trust::Chain { roots, exact, check_name }
                }
            }
        } else {
            Trust::Anybody
        };
        let config = client_config(provider, Verifier { trust, algorithms });
        Ok(Self { demand, config: Arc::new(config) })
    }

    /// Whether to ask for TLS.
    pub fn demand(&self) -> Demand {
        self.demand
    }

    /// The settings of one handshake, as rustls wants them.
    pub(super) fn client_config(&self) -> &ClientConfig {
        &self.config
    }

    /// Makes the handshake on a socket whose server has agreed to TLS.
    ///
    /// # Errors
    /// The socket's, or the reason to refuse the server's certificate.
    pub async fn handshake(
        &self,
        socket: TcpStream,
        host: &str,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(Arc::clone(&self.config)).connect(name, socket).await
    }
}

/// The `tls-server-end-point` binding of an established connection: the hash of the server's
/// certificate, with the hash function of its signature. None where RFC 5929 defines none.
pub fn channel_binding(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    Some(match signature_hash(certificate)? {
        SignatureHash::Sha256 => Sha256::digest(certificate).to_vec(),
        SignatureHash::Sha384 => Sha384::digest(certificate).to_vec(),
        SignatureHash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

/// Whether this failure means that the server's certificate was refused, not that the link broke.
pub fn is_refused_certificate(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

fn client_config(provider: Arc<CryptoProvider>, verifier: Verifier) -> ClientConfig {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring offers the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth()
}

fn parse_fingerprint(text: &str) -> Result<[u8; 32], String> {
    let wrong = || "sslfingerprint must be sha256: and 64 hexadecimal digits".to_owned();
    let digits: Vec<u8> = text
        .strip_prefix("sha256:")
        .ok_or_else(wrong)?
        .bytes()
        .filter(|byte| *byte != b':')
        .collect();
    let mut fingerprint = [0; 32];
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(wrong());
    }
    for (byte, pair) in fingerprint.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
    }
    Ok(fingerprint)
}

/// Settings for a client of the public web: every server proves its name to the authorities that
/// this machine trusts.
///
/// # Errors
/// When it trusts none.
pub fn web_client() -> Result<ClientConfig, String> {
    let roots = native_roots()
        .map_err(|_| "this machine has no root certificates: install ca-certificates".to_owned())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

fn native_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("this machine has no root certificates: name a file with sslrootcert".into());
    }
    Ok(roots)
}

/// The file's certificates, as anchors of chains and as they are.
fn roots_from(path: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), String> {
    let unreadable = |problem: &dyn fmt::Display| {
        format!("sslrootcert={}: cannot read its certificates: {problem}", path.display())
    };
    let exact = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(&error))?;
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(exact.iter().cloned());
    if usable == 0 {
        return Err(unreadable(&"it has none"));
    }
    Ok((roots, exact))
}

/// What makes a server the right one.
#[derive(Debug)]
enum Trust {
    /// Encryption alone: `prefer` and `require`.
    Anybody,
    /// Exactly this certificate, whoever signed it.
    Fingerprint([u8; 32]),
    /// A chain to one of the roots, or one of these very certificates: what `openssl req -x509`
    /// makes is a certificate authority of its own, which no chain may end in.
    Chain { roots: RootCertStore, exact: Vec<CertificateDer<'static>>, check_name: bool },
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.trust {
            Trust::Anybody => {}
            Trust::Fingerprint(expected) => {
                if Sha256::digest(end_entity)[..] != expected[..] {
                    return Err(CertificateError::ApplicationVerificationFailure.into());
                }
            }
            Trust::Chain { roots, exact, check_name } => {
                let certificate = ParsedCertificate::try_from(end_entity)?;
                if !exact.iter().any(|known| known.as_ref() == end_entity.as_ref()) {
                    rustls::client::verify_server_cert_signed_by_trust_anchor(
                        &certificate,
                        roots,
                        intermediates,
                        now,
                        self.algorithms.all,
                    )?;
                }
                if *check_name {
                    rustls::client::verify_server_name(&certificate, server_name)?;
                }
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum SignatureHash {
    Sha256,
    Sha384,
    Sha512,
}

/// The hash function of a certificate's signature; MD5 and SHA-1 count as SHA-256 (RFC 5929).
fn signature_hash(certificate: &[u8]) -> Option<SignatureHash> {
    // PKCS#1 (1.2.840.113549.1.1.x) and ECDSA (1.2.840.10045.4.x) object identifiers.
    const RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01];
    const ECDSA_SHA1: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x01];
    const ECDSA_SHA2: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03];
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (outer, _) = der_value(certificate, SEQUENCE)?;
    let (_to_be_signed, rest) = der_value(outer, SEQUENCE)?;
    let (algorithm, _) = der_value(rest, SEQUENCE)?;
    let (identifier, _) = der_value(algorithm, OBJECT_IDENTIFIER)?;
    if identifier == ECDSA_SHA1 {
        return Some(SignatureHash::Sha256);
    }
    let (last, family) = identifier.split_last()?;
    match (family, last) {
        (RSA, 4 | 5 | 11) | (ECDSA_SHA2, 2) => Some(SignatureHash::Sha256),
        (RSA, 12) | (ECDSA_SHA2, 3) => Some(SignatureHash::Sha384),
        (RSA, 13) | (ECDSA_SHA2, 4) => Some(SignatureHash::Sha512),
        _ => None,
    }
}

/// The content of a DER value with this tag, and what follows it.
fn der_value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let digits = usize::from(first & 0x7F);
        // Certificates are far below 16 MiB, whose length takes three bytes.
        if digits == 0 || digits > 3 {
            return None;
        }
        let (length, rest) = rest.split_at_checked(digits)?;
        (length.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(mode: &str, root_cert: Option<&str>, fingerprint: Option<&str>) -> Parameters {
        Parameters {
            mode: Some(mode.into()),
            root_cert: root_cert.map(Into::into),
            fingerprint: fingerprint.map(Into::into),
        }
    }

    #[test]
    fn modes_demand_what_libpq_demands() {
        let demand = |mode| Tls::new(&parameters(mode, None, None)).unwrap().demand();
        assert_eq!(demand("disable"), Demand::Never);
        assert_eq!(demand("prefer"), Demand::Prefer);
        assert_eq!(demand("require"), Demand::Require);
        assert_eq!(Tls::new(&Parameters::default()).unwrap().demand(), Demand::Prefer);
        assert!(Tls::new(&parameters("verify_full", None, None)).is_err());
    }

    #[test]
    fn a_pin_without_demanded_tls_is_refused() {
        let pin = format!("sha256:{}", "ab".repeat(32));
        assert!(Tls::new(&parameters("require", None, Some(&pin))).is_ok());
        assert!(Tls::new(&parameters("prefer", None, Some(&pin))).is_err());
        assert!(Tls::new(&parameters("require", None, Some("sha256:ab"))).is_err());
        assert!(Tls::new(&parameters("require", None, Some("sha1:ab"))).is_err());
    }

    #[test]
    fn a_missing_root_certificate_is_named() {
        let error = Tls::new(&parameters("verify-full", Some("/no/such.pem"), None)).unwrap_err();
        assert!(error.contains("/no/such.pem"), "{error}");
    }

    #[test]
    fn the_signature_hash_is_found_in_the_outer_algorithm() {
        let certificate = |oid: &[u8]| {
            let algorithm = [&[0x06, u8::try_from(oid.len()).unwrap()], oid].concat();
            let body = [
                &[0x30, 2, 5, 0][..],
                &[0x30, u8::try_from(algorithm.len()).unwrap()],
                &algorithm,
                &[3, 1, 0],
            ]
            .concat();
            [&[0x30, 0x82, 0, u8::try_from(body.len()).unwrap()][..], &body].concat()
        };
        let rsa = |last| [&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01][..], &[last]].concat();
        assert_eq!(signature_hash(&certificate(&rsa(11))), Some(SignatureHash::Sha256));
        assert_eq!(signature_hash(&certificate(&rsa(5))), Some(SignatureHash::Sha256));
        assert_eq!(signature_hash(&certificate(&rsa(13))), Some(SignatureHash::Sha512));
        assert_eq!(signature_hash(&certificate(&[0x2B, 0x65, 0x70])), None, "Ed25519 has none");
        let whole = certificate(&rsa(11));
        for length in 0..whole.len() {
            assert_eq!(signature_hash(&whole[..length]), None, "cut after {length} bytes");
        }
    }
}
