//! The configuration: one TOML file, overlaid with pairs of an environment, checked as a whole.
//!
//! Text becomes `raw` tables (what may be written), these become [`Config`] (what is meant:
//! addresses, names and networks are parsed, defaults filled in). This module reads no file and no
//! environment: the binary hands both in.

mod error;
mod keys;
mod overlay;
mod raw;
mod resolve;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use ruma::{OwnedServerName, RoomVersionId};

pub use error::ConfigError;
pub use overlay::ENVIRONMENT_PREFIX;

/// The documented configuration file with every key at its default, as `generate-config` prints it.
pub const DOCUMENTED: &str = include_str!("../../../conduit.toml");

/// What one homeserver is told to be. [`Config::parse`] makes it from text; an embedding program
/// may as well start from [`Config::default`] and set fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The domain in user ids and room aliases. Never changes once there is data.
    pub server_name: OwnedServerName,
    /// Where HTTP is served by `Homeserver::serve`.
    pub listeners: Vec<Listener>,
    /// How connections are treated.
    pub http: HttpConfig,
    /// Where rooms and accounts are kept.
    pub storage: StorageConfig,
    /// Who may create an account.
    pub registration: RegistrationConfig,
    /// How access tokens live.
    pub sessions: SessionConfig,
    /// Who may read profiles.
    pub profiles: ProfilesConfig,
    /// Rooms that are created here.
    pub rooms: RoomsConfig,
    /// Other servers.
    pub federation: FederationConfig,
    /// How much each client may ask for.
    pub rate_limits: RateLimitConfig,
    /// What `/.well-known/matrix/` says.
    pub well_known: WellKnownConfig,
    /// Name resolution for outbound requests.
    pub dns: DnsConfig,
    /// Uploads.
    pub media: MediaConfig,
}

/// One address that is listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Which parts of the API are served there.
    pub serves: Vec<Surface>,
    /// TLS, if this listener does not stand behind a proxy that does it.
    pub tls: Option<TlsFiles>,
}

/// A part of the API that a listener can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Surface {
    /// What Matrix clients use, `/.well-known/matrix/` and the welcome page.
    Client,
    /// What other servers use.
    Federation,
    /// What administrators' tools use.
    Admin,
    /// What monitoring uses.
    Metrics,
}

/// PEM files of a TLS listener.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate chain, own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// How connections are treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Connections that a listener keeps open at once; further ones wait.
    pub max_connections: usize,
    /// Of these, connections of one address, or of one IPv6 network; further ones are closed.
    /// Loopback and trusted proxies may have any number.
    pub max_connections_per_address: usize,
    /// How long a connection may be idle, and how long the head of a request may take.
    pub idle_timeout: Duration,
    /// How long a client may go without reading anything of an answer that waits for it, or without
    /// sending anything of an upload.
    pub stall_timeout: Duration,
    /// Networks of reverse proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// The embedded engines, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The default: an embedded log-structured store.
    Fjall,
    /// An embedded tree.
    Sled,
    /// Nothing is kept when the process ends; for tests.
    Memory,
}

/// Where rooms and accounts are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    /// The engine.
    pub engine: EngineKind,
    /// The data folder.
    pub path: PathBuf,
    /// Bytes that all caches hold together.
    pub cache_bytes: u64,
}

/// Who may create an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationMode {
    /// Nobody, except by the shared secret or on the command line.
    Closed,
    /// Whoever knows the token.
    Token,
    /// Everybody.
    Open,
}

/// Who may create an account.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistrationConfig {
    /// The rule.
    pub mode: RegistrationMode,
    /// The token of [`RegistrationMode::Token`]; one is generated for the first account when unset.
    pub token: Option<String>,
    /// Key of the operators' registration endpoint, which is off when unset.
    pub shared_secret: Option<String>,
}

/// Secrets are not shown.
impl std::fmt::Debug for RegistrationConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RegistrationConfig")
            .field("mode", &self.mode)
            .field("token", &self.token.is_some())
            .field("shared_secret", &self.shared_secret.is_some())
            .finish()
    }
}

/// How access tokens live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Seconds after which an access token expires if its client can refresh it. Tokens of other
    /// clients do not expire.
    pub access_token_lifetime: u64,
    /// Whether `?access_token=` is accepted beside the `Authorization` header.
    pub allow_token_in_query: bool,
}

/// Who may read profiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfilesConfig {
    /// Whether only those who are logged in may.
    pub require_login: bool,
}

/// Rooms that are created here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomsConfig {
    /// The version of rooms whose creator names none.
    pub default_version: RoomVersionId,
}

/// Other servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederationConfig {
    /// Whether this server speaks to others.
    pub enabled: bool,
    /// Globs over the hosts of servers that it speaks to; none allows all.
    pub allowed_servers: Vec<String>,
    /// Globs over the hosts of servers that it does not speak to, also if they are allowed.
    pub denied_servers: Vec<String>,
    /// Requests to one server at once.
    pub requests_per_destination: usize,
    /// How long an answer to a usual request is waited for.
    pub request_timeout: Duration,
    /// How long a server that failed once is left alone.
    pub retry_min: Duration,
    /// How long a server that fails again and again is left alone.
    pub retry_max: Duration,
    /// PEM files of certificate authorities trusted beside the system's.
    pub extra_ca_certificates: Vec<PathBuf>,
    /// Private networks that outbound requests may reach nevertheless.
    pub allowed_private_ranges: Vec<IpNet>,
    /// Servers that are asked for other servers' signing keys.
    pub key_servers: Vec<OwnedServerName>,
}

/// How much each client may ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimitConfig {
    /// Whether any limit applies.
    pub enabled: bool,
    /// Attempts to log in, per address and per account.
    pub login: Rate,
    /// Access tokens renewed, per address.
    pub refresh: Rate,
    /// Attempts to register, per address.
    pub registration: Rate,
    /// Events sent, per account.
    pub message: Rate,
    /// Rooms joined or created, per account.
    pub join: Rate,
    /// Invitations, per account.
    pub invite: Rate,
    /// Uploads and downloads, per account or address.
    pub media: Rate,
    /// Whatever else the specification marks as limited, per account or address.
    pub other: Rate,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests that come back each second.
    pub per_second: f64,
    /// Requests that may be made at once after a pause.
    pub burst: u32,
}

/// What `/.well-known/matrix/` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WellKnownConfig {
    /// The URL that clients are sent to; without it there is no `/.well-known/matrix/client`.
    pub client_base_url: Option<String>,
    /// Name and port that other servers are sent to; without it there is no
    /// `/.well-known/matrix/server`.
    pub server: Option<String>,
    /// An e-mail address or Matrix id of the administrator.
    pub support_contact: Option<String>,
}

/// Name resolution for outbound requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Servers to ask instead of the system's.
    pub servers: Vec<SocketAddr>,
}

/// Uploads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaConfig {
    /// The folder of uploaded files; `media` in the data folder when unset.
    pub path: Option<PathBuf>,
    /// Bytes of the largest upload.
    pub max_upload_size: u64,
    /// Bytes of all uploads of one user; any number when unset.
    pub user_quota: Option<u64>,
    /// Bytes of all that is kept of other servers: the oldest makes room.
    pub remote_quota: u64,
    /// Whether the old download endpoints, which ask for no token, are served.
    pub allow_legacy_unauthenticated: bool,
}

impl Config {
    /// Reads a configuration from TOML text and `HOMESERVER__SECTION__KEY` pairs, which win.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, and for an unknown key the nearest known one.
    pub fn parse<N, V>(
        text: &str,
        environment: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, ConfigError>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        let table = text.parse::<toml::Table>();
        let mut table = table.map_err(|error| ConfigError::toml(&error, text))?;
        overlay::apply(&mut table, environment)?;
        keys::refuse_unknown(&table)?;
        let raw = table.try_into::<raw::Raw>();
        let raw = raw.map_err(|error| ConfigError::toml(&error, ""))?;
        raw.resolve()
    }
}

impl Default for Config {
    #[expect(clippy::expect_used, reason = "a test resolves the defaults")]
    fn default() -> Self {
        raw::Raw::default().resolve().expect("the defaults resolve")
    }
}
