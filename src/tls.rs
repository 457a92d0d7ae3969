//! TLS settings for both directions: rustls with ring, TLS 1.2 and 1.3.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use serde::Deserialize;

use crate::config::TlsFiles;
#[cfg(feature = "server")]
use crate::proto::UnixMillis;

/// Why TLS cannot be set up. For the operator; trying again does not help.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or holds no PEM.
    #[error("{file}: {error}")]
    File {
        /// Which file.
        file: String,
        /// What is wrong with it.
        error: rustls::pki_types::pem::Error,
    },
    /// A file holds none of what it is for.
    #[error("{0}: holds no certificate")]
    Empty(String),
    /// A certificate makes no sense.
    #[cfg(feature = "server")]
    #[error("{0}: holds a certificate that makes no sense: {1}")]
    Unread(String, x509_cert::der::Error),
    /// Key and certificate do not fit, or are of a kind that is not supported.
    #[error("{certificate} with the key {key} cannot be used: {error}")]
    Pair {
        /// The file of the certificate.
        certificate: String,
        /// The file of the key.
        key: String,
        /// What is wrong with them.
        error: rustls::Error,
    },
    /// A certificate that nothing can be authenticated with.
    #[error("{0}: holds a certificate that cannot be used: {1}")]
    Root(String, rustls::Error),
    /// No client could be authenticated with it.
    #[error("{0}: cannot authenticate devices: {1}")]
    Clients(String, rustls::server::VerifierBuilderError),
    /// No server could be authenticated.
    #[error("servers cannot be authenticated: {0}")]
    Servers(#[from] rustls::server::VerifierBuilderError),
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Unfit(#[from] rustls::Error),
}

/// The settings of a listener; with `clients`, whoever connects must show a certificate that one of
/// these authorities has signed.
pub fn server(files: &TlsFiles, clients: Option<&Path>) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = pair(files)?;
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let config = match clients {
        Some(file) => {
            let roots = Arc::new(roots(Some(file))?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            config.with_client_cert_verifier(
                verifier.map_err(|error| TlsError::Clients(file.display().to_string(), error))?,
            )
        }
        None => config.with_no_client_auth(),
    };
    let mut config = config.with_single_cert(chain, key).map_err(unfit_pair(files))?;
    // A device that comes back then needs no signature: what it was told is in its ticket.
    config.ticketer = Ticketer::new()?;
    Ok(Arc::new(config))
}

/// The settings of a client that trusts the certificates in `authorities`, or else those the
/// system trusts.
pub fn client(authorities: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    device(authorities, &[], None)
}

/// The same for a device: the server's chain must also hold one of these keys, if there are any, and
/// the device shows this certificate to a server that asks for one.
pub fn device(
    authorities: Option<&Path>,
    pins: &[Pin],
    identity: Option<&TlsFiles>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = Arc::new(roots(authorities)?);
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let config = match pins {
        [] => config.with_root_certificates(roots),
        // It is as strict as the usual one, and then stricter.
        pins => config.dangerous().with_custom_certificate_verifier(Arc::new(Pinned {
            usual: WebPkiServerVerifier::builder_with_provider(roots, provider()).build()?,
            pins: pins.to_owned(),
        })),
    };
    let Some(files) = identity else { return Ok(Arc::new(config.with_no_client_auth())) };
    let (chain, key) = pair(files)?;
    Ok(Arc::new(config.with_client_auth_cert(chain, key).map_err(unfit_pair(files))?))
}

fn roots(authorities: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| TlsError::Root(file.display().to_string(), error))?;
            }
        }
        // What the system's store holds besides usable certificates is no error of ours; with
        // none at all every connection fails with "unknown issuer", which says it.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

/// The SHA-256 of a public key that a server's chain must hold: `sha256//BASE64`, as curl takes it, over
/// the DER of its SubjectPublicKeyInfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// A text that is no pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pin is sha256// and the SHA-256 of a public key in base64")]
pub struct PinError;

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let base64 = text.strip_prefix("sha256//").ok_or(PinError)?;
        let bytes = STANDARD.decode(base64).map_err(|_| PinError)?;
        Ok(Self(bytes.try_into().map_err(|_| PinError)?))
    }
}

impl<'de> Deserialize<'de> for Pin {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Believes a server that the usual verifier believes and in whose chain is one of the keys.
#[derive(Debug)]
struct Pinned {
    usual: Arc<WebPkiServerVerifier>,
    pins: Vec<Pin>,
}

impl Pinned {
    fn holds(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
        let hash = digest::digest(&digest::SHA256, parsed.subject_public_key_info().as_ref());
        self.pins.iter().any(|pin| pin.0 == hash.as_ref())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.usual.verify_server_cert(end_entity, intermediates, name, ocsp, now)?;
        match std::iter::once(end_entity).chain(intermediates).any(|certificate| self.holds(certificate)) {
            true => Ok(verified),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Why a server was not believed, or could not be spoken to, for whoever looks after the device.
// The enums are another crate's: what has no sentence of its own here has one there.
#[allow(clippy::wildcard_enum_match_arm)]
pub fn explain(error: &std::io::Error) -> String {
    use rustls::{AlertDescription, CertificateError as Invalid, Error};
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else { return error.to_string() };
    let sentence = match tls {
        // Authorities of one name differ in their keys alone.
        Error::InvalidCertificate(
            Invalid::UnknownIssuer
            | Invalid::BadSignature
            | Invalid::UnsupportedSignatureAlgorithmContext { .. }
            | Invalid::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => "its certificate is not signed by an authority that this device trusts; see `ca`",
        Error::InvalidCertificate(Invalid::Expired | Invalid::ExpiredContext { .. }) => {
            "its certificate has expired, or the clock of this device is wrong"
        }
        Error::InvalidCertificate(Invalid::NotValidYet | Invalid::NotValidYetContext { .. }) => {
            "its certificate is not valid yet, or the clock of this device is wrong"
        }
        Error::InvalidCertificate(Invalid::NotValidForName | Invalid::NotValidForNameContext { .. }) => {
            "its certificate is for another name"
        }
        Error::InvalidCertificate(Invalid::ApplicationVerificationFailure) => "none of its keys is among `pins`",
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "it wants a certificate of this device; see `client-certificate`"
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion) => "it speaks no version of TLS from 1.2 on",
        Error::PeerIncompatible(_) => "it speaks no version of TLS from 1.2 on, or nothing else that this device does",
        other => return other.to_string(),
    };
    format!("{sentence} ({tls})")
}

/// When the first certificate of a listener's chain expires.
#[cfg(feature = "server")]
pub fn expiry(files: &TlsFiles) -> Result<UnixMillis, TlsError> {
    use x509_cert::der::Decode;
    let expiry = |certificate: CertificateDer<'static>| {
        let read = x509_cert::Certificate::from_der(&certificate);
        let unread = |error| TlsError::Unread(files.certificate.display().to_string(), error);
        let after = read.map_err(unread)?.tbs_certificate().validity().not_after.to_unix_duration();
        Ok(UnixMillis(i64::try_from(after.as_millis()).unwrap_or(i64::MAX)))
    };
    let chain: Vec<UnixMillis> =
        certificates(&files.certificate)?.into_iter().map(expiry).collect::<Result<_, TlsError>>()?;
    chain.into_iter().min().ok_or_else(|| TlsError::Empty(files.certificate.display().to_string()))
}

fn pair(files: &TlsFiles) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(in_file(&files.key))?;
    Ok((certificates(&files.certificate)?, key))
}

fn unfit_pair(files: &TlsFiles) -> impl FnOnce(rustls::Error) -> TlsError {
    let (certificate, key) = (files.certificate.display().to_string(), files.key.display().to_string());
    move |error| TlsError::Pair { certificate, key, error }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).map_err(in_file(file))?;
    let chain: Vec<_> = read.collect::<Result<_, _>>().map_err(in_file(file))?;
    if chain.is_empty() {
        return Err(TlsError::Empty(file.display().to_string()));
    }
    Ok(chain)
}

fn in_file(file: &Path) -> impl Fn(rustls::pki_types::pem::Error) -> TlsError {
    let file = file.display().to_string();
    move |error| TlsError::File { file: file.clone(), error }
}
