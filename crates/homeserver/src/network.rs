//! The way to other servers, as the configuration has it: the guarded client, and finding servers
//! by their names.

use std::{path::Path, sync::Arc};

use homeserver_federation::{Nowhere, Ports, Transport, Ways};
use homeserver_outbound::{Outbound, OutboundOptions, SetupError};
use homeserver_runtime::Runtime;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::config::Config;

/// How this server names itself in its requests.
const USER_AGENT: &str = concat!("homeserver/", env!("CARGO_PKG_VERSION"));

/// The way to other servers cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A file of `federation.extra_ca_certificates` cannot be used.
    #[error("cannot use the certificates in {path}: {problem}")]
    Certificates {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The client cannot be set up.
    #[error("cannot set up the client for other servers")]
    Client(#[from] SetupError),
}

/// The transport of the real network; nobody is reached where federation is disabled.
pub(crate) fn transport(
    config: &Config,
    runtime: &Runtime,
) -> Result<Arc<dyn Transport>, NetworkError> {
    let federation = &config.federation;
    if !federation.enabled {
        return Ok(Arc::new(Nowhere));
    }
    let mut authorities = Vec::new();
    for path in &federation.extra_ca_certificates {
        authorities.extend(certificates(path)?);
    }
    let options = OutboundOptions {
        allowed_private_ranges: federation.allowed_private_ranges.clone(),
        dns_servers: config.dns.servers.clone(),
        extra_ca_certificates: authorities,
        user_agent: USER_AGENT.to_owned(),
    };
    let outbound = Outbound::new(&options)?;
    Ok(Arc::new(Ways::new(outbound, Ports::default(), runtime)))
}

/// The certificates in a file, of which there has to be one at least.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NetworkError> {
    let unusable = |problem: String| NetworkError::Certificates {
        path: path.display().to_string(),
        problem,
    };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| unusable(error.to_string()))?;
    if read.is_empty() {
        return Err(unusable("there is none".to_owned()));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use homeserver_runtime::Runtime;

    use super::*;

    fn opened(federation: &str) -> Result<Arc<dyn Transport>, NetworkError> {
        let nothing: [(&str, &str); 0] = [];
        let config = Config::parse(&format!("[federation]\n{federation}"), nothing).unwrap();
        transport(&config, &Runtime::system())
    }

    #[test]
    fn nobody_is_reached_where_federation_is_disabled() {
        let way = opened("enabled = false").unwrap();
        assert_eq!(format!("{way:?}"), "Nowhere");
        let way = opened("enabled = true").unwrap();
        assert!(format!("{way:?}").starts_with("Ways"));
    }

    #[test]
    fn a_file_without_certificates_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authority.pem");
        let line = format!("enabled = true\nextra_ca_certificates = [{path:?}]");
        let missing = opened(&line).unwrap_err().to_string();
        assert!(missing.contains("authority.pem"), "{missing}");
        std::fs::write(&path, "no certificate").unwrap();
        let empty = opened(&line).unwrap_err().to_string();
        assert!(empty.contains("authority.pem"), "{empty}");
    }
}
