//! The handle of a running homeserver.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use homeserver_federation::{Pending, Sender};
use homeserver_users::{Failure, Users};
use parking_lot::Mutex;
use ruma::ServerName;

use crate::{
    Administration, ClientError, HomeserverBuilder, ListenError, LocalUser,
    config::{Config, Surface},
    http::{self, Components},
    listen::{self, Certificate},
};

/// How long shutdown waits for requests and background tasks.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(20);

/// A running homeserver. Cheap to clone; all clones are the same homeserver.
#[derive(Clone, Debug)]
pub struct Homeserver {
    config: Arc<Config>,
    components: Components,
    sender: Sender,
    /// What the listeners show by TLS.
    certificates: Arc<Mutex<Vec<Arc<Certificate>>>>,
}

/// An address that is served.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Where, with the port that was taken.
    pub address: SocketAddr,
    /// Whether by TLS.
    pub tls: bool,
    /// What.
    pub serves: Vec<Surface>,
}

impl Homeserver {
    /// A homeserver for the domain `server_name`, by default with the fjall engine in `./data`.
    pub fn builder(server_name: &str) -> HomeserverBuilder {
        HomeserverBuilder::new(server_name)
    }

    /// A homeserver as configured, its name included.
    pub fn configured(config: Config) -> HomeserverBuilder {
        HomeserverBuilder::configured(config)
    }

    pub(crate) fn new(config: Config, components: Components, sender: Sender) -> Self {
        Self {
            config: Arc::new(config),
            components,
            sender,
            certificates: Arc::default(),
        }
    }

    /// The domain in user ids.
    pub fn server_name(&self) -> &ServerName {
        &self.config.server_name
    }

    /// What it was told to be.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The whole HTTP API, to be served by the caller. Requests served this way have no address:
    /// what is limited by address is limited for all of them together, unless the caller's
    /// middleware limits by itself.
    pub fn router(&self) -> Router {
        let all = [
            Surface::Client,
            Surface::Federation,
            Surface::Admin,
            Surface::Metrics,
        ];
        http::router(self.components.clone(), &all)
    }

    /// Opens the configured listeners and serves them in the background until
    /// [`Homeserver::shutdown`].
    pub async fn listen(&self) -> Result<Vec<Listening>, ListenError> {
        let mut listening = Vec::new();
        let mut bound = Vec::new();
        for (index, listener) in self.config.listeners.iter().enumerate() {
            let socket = listen::bind(listener, index).await?;
            listening.push(Listening {
                address: socket.address,
                tls: listener.tls.is_some(),
                serves: listener.serves.clone(),
            });
            bound.push((socket, &listener.serves));
        }
        let runtime = &self.components.runtime;
        for (socket, serves) in bound {
            let router = http::router(self.components.clone(), serves);
            self.certificates.lock().extend(socket.certificate.clone());
            let config = self.config.http.clone();
            let serve = listen::accept(socket, router, config, runtime.clone());
            runtime.tasks.spawn(serve);
        }
        Ok(listening)
    }

    /// Reads the certificates of all TLS listeners again, as after their renewal; connections made
    /// from now on are shown the new ones. A certificate that cannot be used leaves the old one in
    /// place and keeps no other from being read. Gives how many were read, or the first error.
    pub fn reload_certificates(&self) -> Result<usize, ListenError> {
        let certificates = self.certificates.lock().clone();
        let mut outcome = Ok(certificates.len());
        for certificate in &certificates {
            if let Err(error) = certificate.reload() {
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    /// Serves the configured listeners until [`Homeserver::shutdown`] is called on a clone.
    pub async fn serve(&self) -> Result<(), ListenError> {
        self.listen().await?;
        self.components.runtime.tasks.stopping().await;
        Ok(())
    }

    /// A user of this homeserver (a full user id), to act as within the process.
    pub async fn user(&self, user: &str) -> Result<LocalUser, ClientError> {
        LocalUser::open(&self.components, user).await
    }

    /// What an operator does with accounts.
    pub fn administration(&self) -> Administration {
        Administration::new(self.clone())
    }

    /// What waits for another server: what it has not acknowledged of what it is to be told.
    pub fn pending_for(&self, destination: &ServerName) -> Pending {
        self.sender.pending(destination)
    }

    pub(crate) fn components(&self) -> &Components {
        &self.components
    }

    /// What belongs to its users.
    pub fn users(&self) -> &Users {
        &self.components.users
    }

    /// The token with which the first account may be registered; `None` once there is one, or
    /// where none is needed.
    pub async fn first_registration_token(&self) -> Result<Option<String>, Failure> {
        self.components.invitations.for_first_account().await
    }

    /// Ends it in order: no new connections, requests and background tasks finish, everything is
    /// on disk. Gives whether all of that succeeded.
    pub async fn shutdown(&self) -> bool {
        let left = self
            .components
            .runtime
            .tasks
            .shutdown(SHUTDOWN_PATIENCE)
            .await;
        if left > 0 {
            tracing::warn!(left, "tasks were still running at the end");
        }
        match self.components.store.close().await {
            Ok(()) => left == 0,
            Err(error) => {
                tracing::error!(%error, "the database was not closed cleanly");
                false
            }
        }
    }
}
