//! Being a notary: handing on the documents of other servers with our signature.
//!
//! Specification: server-server API, "Querying Keys Through Another Server".

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use homeserver_events::{Strictness, canonical::parse_object, canonical::to_string, sign_json};
use homeserver_storage::StorageError;
use ruma::{OwnedServerName, ServerName};
use tokio::time::{Instant, timeout_at};

use crate::names::is_same_server;

use super::{For, Inner, KeyProblem, KeyRing};

/// How long somebody who asks for keys is kept waiting: less than they wait.
const PATIENCE: Duration = Duration::from_secs(8);
/// Servers asked at once for one question.
const ASKED_AT_ONCE: usize = 8;

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
    pub async fn vouch(&self, queries: Vec<KeyQuery>) -> Result<Vec<String>, StorageError> {
        let until = Instant::now() + PATIENCE;
        let asked = stream::iter(queries.into_iter().take(MAX_ASKED));
        let documents = asked.map(|query| self.inner.document_for(query, until));
        let mut documents = pin!(documents.buffered(ASKED_AT_ONCE));
        let mut vouched = Vec::new();
        while let Some(document) = documents.next().await {
            vouched.extend(document?);
        }
        Ok(vouched)
    }
}

impl Inner {
    /// The document that answers a query, with our signature.
    async fn document_for(
        self: &Arc<Self>,
        query: KeyQuery,
        until: Instant,
    ) -> Result<Option<String>, StorageError> {
        let server: &ServerName = &query.server;
        let now = self.now();
        if is_same_server(server, self.own.server()) {
            return Ok(Some(self.own.document(now)));
        }
        if !self.admission.admits(server) {
            return Ok(None);
        }
        let known = self.seen(server).await?;
        let stands = known.as_ref().is_some_and(|keys| {
            // What is fresh is not fetched again for anybody: it is the newest there is.
            keys.is_fresh(now) || keys.valid_until() >= query.minimum_valid_until.max(now)
        });
        let mut keys = known;
        if !stands {
            match timeout_at(until, self.fetch(server, For::Others)).await {
                Ok(Ok(fetched)) => keys = Some(fetched.keys),
                Ok(Err(KeyProblem::Storage(error))) => return Err(error),
                // What is known is given.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        Ok(keys.and_then(|keys| self.vouched_for(keys.document())))
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
