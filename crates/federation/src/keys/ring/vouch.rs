//! Being a notary: handing on the documents of other servers with our signature.
//!
//! Specification: server-server API, "Querying Keys Through Another Server".

use homeserver_events::{Strictness, canonical::parse_object, canonical::to_string, sign_json};
use homeserver_storage::StorageError;
use ruma::{OwnedServerName, ServerName};

use super::{Inner, KeyProblem, KeyRing};

/// Servers that may be asked for in one request.
pub const MAX_ASKED: usize = 100;

/// Whose keys somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyQuery {
    /// The server.
    pub server: OwnedServerName,
    /// Until when its document should be valid at least, in milliseconds since 1970.
    pub minimum_valid_until: u64,
}

impl KeyRing {
    /// The documents of these servers, each as JSON with our signature added; the first
    /// [`MAX_ASKED`]. Servers whose keys are not to be had are left out. One that is not valid for
    /// long enough is fetched anew; if that fails, what is known is given.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub async fn vouch(&self, queries: &[KeyQuery]) -> Result<Vec<String>, StorageError> {
        let mut vouched = Vec::new();
        for query in queries.iter().take(MAX_ASKED) {
            if query.server == *self.inner.own.server() {
                vouched.push(self.inner.own.document(self.inner.now()));
            } else if let Some(document) = self.inner.document_for(query).await? {
                vouched.extend(self.inner.vouched_for(&document));
            }
        }
        Ok(vouched)
    }
}

impl Inner {
    async fn document_for(&self, query: &KeyQuery) -> Result<Option<String>, StorageError> {
        let server: &ServerName = &query.server;
        if !self.admission.admits(server) {
            return Ok(None);
        }
        let known = self.known(server).await?;
        let now = self.now();
        let stands = known.as_ref().is_some_and(|keys| {
            // What is fresh is not fetched again for anybody: it is the newest there is.
            keys.is_fresh(now) || keys.valid_until() >= query.minimum_valid_until.max(now)
        });
        if stands {
            return Ok(known.map(|keys| keys.document().to_owned()));
        }
        match self.fetch(server).await {
            Ok(keys) => Ok(Some(keys.document().to_owned())),
            Err(KeyProblem::Storage(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    fn vouched_for(&self, document: &str) -> Option<String> {
        let mut object = parse_object(document.as_bytes(), Strictness::Lenient).ok()?;
        sign_json(
            &mut object,
            self.own.server().as_str(),
            self.own.signing_key(),
        );
        Some(to_string(&object))
    }
}
