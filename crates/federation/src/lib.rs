//! The server-server protocol: what this server asks of others and what others may ask of it.
//!
//! HTTP stays in the crate `homeserver`; here is what a request must hold ([`x_matrix`],
//! [`signed_request`]), the keys that vouch for it
//! ([`keys`]), what carries it ([`transport`]), how a server is found by its name ([`ways`]), and the calls that
//! are made of all this ([`peers`], [`health`]), of events above all ([`fetch`]); what others send
//! without being asked ([`inbound`]), and what identity servers are asked ([`identity`]). What belongs to users across servers is in [`users`].
//!
//! Specification: server-server API.

pub mod admission;
pub mod error;
pub mod fetch;
pub mod front;
#[cfg(test)]
mod fuzz;
pub mod health;
pub mod history;
pub mod identity;
pub mod inbound;
pub mod keys;
pub mod membership;
pub mod peers;
pub mod policy;
pub mod remote_media;
pub mod resident;
pub mod sender;
pub mod signed_request;
mod split;
pub mod tables;
pub mod transport;
pub mod users;
pub mod verify;
pub mod ways;
mod written;
pub mod x_matrix;

pub use admission::Admission;
pub use error::CallError;
pub use fetch::{FetchError, Fetched, Fetcher, MissingEvents, RoomOf, StateEvents, StateIds};
pub use front::{Front, FrontError};
pub use health::{Health, Retry};
pub use history::History;
pub use homeserver_events::names::{self, is_same_server};
pub use identity::{IdentityError, IdentityServers};
pub use inbound::{Inbound, InboundParts, TransactionError};
pub use keys::{Asking, KeyDocument, KeyRing, OwnKeys};
pub use membership::{Joined, MembershipError, Memberships, Wanted};
pub use peers::{Answer, Call, Path, Peers, PeersOptions};
pub use policy::{Policies, PolicyError};
pub use remote_media::RemoteContent;
pub use resident::{InviteError, Resident, ResidentError};
pub use sender::{Pending, Sender, SenderError, SenderParts};
pub use signed_request::{Claim, RequestError, SignedRequest};
pub use tables::TABLES;
pub use transport::{Body, Limits, Nowhere, Outgoing, Reply, Transport, TransportError};
pub use users::{RemoteUsers, UsersError};
pub use verify::{CheckError, Dropped, Verifier};
pub use ways::{Ports, Ways};
pub use x_matrix::{XMatrix, XMatrixError};

use std::{ops::Deref, sync::Arc, time::Duration};

use homeserver_events::SigningKey;
use homeserver_runtime::Runtime;
use homeserver_storage::{StorageError, Store};
use ruma::OwnedServerName;

use crate::keys::OldKey;

/// How this server federates, from the configuration.
#[derive(Clone, Debug)]
pub struct FederationOptions {
    /// Whether it does at all (`federation.enabled`).
    pub enabled: bool,
    /// Its name.
    pub server_name: OwnedServerName,
    /// The key that it signs with.
    pub signing_key: Arc<SigningKey>,
    /// Keys that it signed with before.
    pub old_keys: Vec<OldKey>,
    /// Which servers it speaks to.
    pub admission: Admission,
    /// Servers that are asked for the keys of others (`federation.key_servers`).
    pub key_servers: Vec<OwnedServerName>,
    /// Calls to one server at once (`federation.requests_per_destination`).
    pub requests_per_destination: usize,
    /// The deadline of usual calls (`federation.request_timeout`).
    pub request_timeout: Duration,
    /// The pauses of servers that fail.
    pub retry: Retry,
}

/// All parts of this crate. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Federation {
    parts: Arc<Parts>,
}

impl Deref for Federation {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// The parts of [`Federation`], each for those who need no other.
#[derive(Debug)]
pub struct Parts {
    /// Whether this server federates at all.
    pub enabled: bool,
    /// Its own keys.
    pub own_keys: OwnKeys,
    /// Keys of other servers.
    pub ring: KeyRing,
    /// Lets requests of other servers in.
    pub front: Front,
    /// Checks events of other servers.
    pub verifier: Verifier,
    /// Asks other servers.
    pub peers: Peers,
    /// Asks other servers for events, and checks them.
    pub fetcher: Fetcher,
    /// Which of them fail.
    pub health: Health,
    /// Asks identity servers.
    pub identity: IdentityServers,
}

impl Federation {
    /// The parts over a store that knows [`TABLES`], and a way to other servers. Starts the task
    /// that writes down who fails, which ends with the runtime's shutdown.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub async fn open(
        options: FederationOptions,
        store: &Store,
        transport: Arc<dyn Transport>,
        runtime: &Runtime,
    ) -> Result<Self, StorageError> {
        let own_keys = OwnKeys::new(options.server_name, options.signing_key, options.old_keys);
        let health = Health::open(options.retry, store.clone(), runtime.clone()).await?;
        let ring = KeyRing::new(
            own_keys.clone(),
            options.admission.clone(),
            options.key_servers,
            store.clone(),
            Arc::clone(&transport),
            runtime.clone(),
        );
        let peers = PeersOptions {
            enabled: options.enabled,
            at_once: options.requests_per_destination,
            deadline: options.request_timeout,
        };
        let identity = IdentityServers::new(options.enabled, Arc::clone(&transport));
        let peers = Peers::new(
            peers,
            own_keys.clone(),
            options.admission.clone(),
            transport,
            health.clone(),
            runtime.clone(),
        );
        health.start();
        let verifier = Verifier::new(ring.clone(), runtime.clone());
        let fetcher = Fetcher::new(peers.clone(), verifier.clone(), runtime.clone());
        Ok(Self {
            parts: Arc::new(Parts {
                enabled: options.enabled,
                own_keys,
                front: Front::new(
                    ring.clone(),
                    options.admission,
                    health.clone(),
                    runtime.cpu.clone(),
                ),
                verifier,
                fetcher,
                ring,
                peers,
                health,
                identity,
            }),
        })
    }
}
