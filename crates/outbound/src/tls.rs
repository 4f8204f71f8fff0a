//! Whom to trust: the operating system's certificate authorities and those of the configuration.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider};
use rustls_pki_types::CertificateDer;

use crate::client::SetupError;

/// A TLS configuration with `extra` certificate authorities besides the system's.
///
/// A system without any is no error: a server that talks to nobody needs none. Connections then
/// fail on their own.
pub(crate) fn client_config(extra: &[CertificateDer<'static>]) -> Result<ClientConfig, SetupError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "a certificate store of the system could not be read");
    }
    let (_, unusable) = roots.add_parsable_certificates(system.certs);
    if unusable > 0 {
        tracing::debug!(unusable, "certificates of the system were not understood");
    }
    for certificate in extra {
        roots
            .add(certificate.clone())
            .map_err(SetupError::Certificate)?;
    }
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SetupError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
