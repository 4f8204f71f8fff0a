//! TLS of a listener, from PEM files that can be read again while it runs.

use std::{fmt::Display, path::Path, sync::Arc};

use parking_lot::RwLock;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::TlsAcceptor;

use super::ListenError;
use crate::config::TlsFiles;

/// HTTP/2 as TLS negotiates it.
pub(super) const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// The certificate of a listener: what new connections are shown.
#[derive(Debug)]
pub(crate) struct Certificate {
    files: TlsFiles,
    /// Which listener of the configuration it is, for errors.
    index: usize,
    provider: Arc<CryptoProvider>,
    shown: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads the certificate of the listener that stands at `index` in the configuration.
    pub(super) fn open(files: &TlsFiles, index: usize) -> Result<Arc<Self>, ListenError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let read = read(files, index, &provider)?;
        Ok(Arc::new(Self {
            files: files.clone(),
            index,
            provider,
            shown: RwLock::new(Arc::new(read)),
        }))
    }

    /// Reads the files again; what is wrong with them leaves the old certificate in place.
    pub(crate) fn reload(&self) -> Result<(), ListenError> {
        let read = read(&self.files, self.index, &self.provider)?;
        *self.shown.write() = Arc::new(read);
        Ok(())
    }

    /// What makes connections of a listener's.
    pub(super) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, ListenError> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| refused(self.index, "certificate", &self.files.certificate, error))?;
        let resolver = Arc::clone(self) as Arc<dyn ResolvesServerCert>;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.shown.read()))
    }
}

fn refused(index: usize, key: &str, file: &Path, problem: impl Display) -> ListenError {
    ListenError::Tls {
        key: format!("listeners[{index}].tls.{key}"),
        file: file.display().to_string(),
        problem: problem.to_string(),
    }
}

/// Reads certificate and key, and checks that they belong together.
fn read(
    files: &TlsFiles,
    index: usize,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, ListenError> {
    let certificate =
        |problem: &dyn Display| refused(index, "certificate", &files.certificate, problem);
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| certificate(&error))?;
    if chain.is_empty() {
        return Err(certificate(&"it holds no certificate in PEM form"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| refused(index, "key", &files.key, error))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let problem = format!("it is not the key of {}", files.certificate.display());
            refused(index, "key", &files.key, problem)
        }
        error => certificate(&error),
    })
}
