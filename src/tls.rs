//! TLS settings for both directions: rustls with ring, TLS 1.2 and 1.3.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::Ticketer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

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
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Unfit(#[from] rustls::Error),
}

/// The settings of a listener.
pub fn server(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(in_file(&files.key))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| TlsError::Pair {
            certificate: files.certificate.display().to_string(),
            key: files.key.display().to_string(),
            error,
        })?;
    // A device that comes back then needs no signature: what it was told is in its ticket.
    config.ticketer = Ticketer::new()?;
    Ok(Arc::new(config))
}

/// The settings of a client that trusts the certificates in `authorities`, or else those the
/// system trusts.
pub fn client(authorities: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
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
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
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
