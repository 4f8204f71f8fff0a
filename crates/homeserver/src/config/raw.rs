//! The configuration as it is written: texts and numbers, with the defaults.

use std::path::PathBuf;

use serde::Deserialize;

use super::{EngineKind, RegistrationMode, Surface, TlsFiles};

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) server_name: String,
    pub(super) listeners: Vec<Listener>,
    pub(super) http: Http,
    pub(super) storage: Storage,
    pub(super) registration: Registration,
    pub(super) sessions: Sessions,
    pub(super) profiles: Profiles,
    pub(super) rooms: Rooms,
    pub(super) federation: Federation,
    pub(super) rate_limits: RateLimits,
    pub(super) well_known: WellKnown,
    pub(super) dns: Dns,
    pub(super) media: Media,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            server_name: "localhost".to_owned(),
            listeners: vec![Listener::default()],
            http: Http::default(),
            storage: Storage::default(),
            registration: Registration::default(),
            sessions: Sessions::default(),
            profiles: Profiles::default(),
            rooms: Rooms::default(),
            federation: Federation::default(),
            rate_limits: RateLimits::default(),
            well_known: WellKnown::default(),
            dns: Dns::default(),
            media: Media::default(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Listener {
    pub(super) address: String,
    pub(super) serves: Vec<Surface>,
    pub(super) tls: Option<TlsFiles>,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:8008".to_owned(),
            serves: vec![Surface::Client],
            tls: None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Http {
    pub(super) max_connections: usize,
    pub(super) max_connections_per_address: usize,
    pub(super) idle_timeout: u64,
    pub(super) stall_timeout: u64,
    pub(super) trusted_proxies: Vec<String>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            max_connections: 8192,
            max_connections_per_address: 256,
            idle_timeout: 150,
            stall_timeout: 60,
            trusted_proxies: Vec::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Storage {
    pub(super) engine: EngineKind,
    pub(super) path: PathBuf,
    pub(super) cache_bytes: u64,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            engine: EngineKind::Fjall,
            path: PathBuf::from("data"),
            cache_bytes: homeserver_runtime::DEFAULT_CACHE_BYTES,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Registration {
    pub(super) mode: RegistrationMode,
    pub(super) token: Option<String>,
    pub(super) shared_secret: Option<String>,
}

impl Default for Registration {
    fn default() -> Self {
        Self {
            mode: RegistrationMode::Token,
            token: None,
            shared_secret: None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Sessions {
    pub(super) access_token_lifetime: u64,
    pub(super) allow_token_in_query: bool,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            access_token_lifetime: 3600,
            allow_token_in_query: true,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Profiles {
    pub(super) require_login: bool,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Rooms {
    pub(super) default_version: String,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            default_version: "12".to_owned(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Federation {
    pub(super) enabled: bool,
    pub(super) allowed_servers: Vec<String>,
    pub(super) denied_servers: Vec<String>,
    pub(super) extra_ca_certificates: Vec<PathBuf>,
    pub(super) allowed_private_ranges: Vec<String>,
    pub(super) key_servers: Vec<String>,
    pub(super) requests_per_destination: usize,
    pub(super) request_timeout: u64,
    pub(super) retry_min: u64,
    pub(super) retry_max: u64,
}

impl Default for Federation {
    fn default() -> Self {
        Self {
            enabled: true,
            allowed_servers: Vec::new(),
            denied_servers: Vec::new(),
            extra_ca_certificates: Vec::new(),
            allowed_private_ranges: Vec::new(),
            key_servers: Vec::new(),
            requests_per_destination: 8,
            request_timeout: 30,
            retry_min: 1,
            retry_max: 3600,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RateLimits {
    pub(super) enabled: bool,
    pub(super) login: Rate,
    pub(super) refresh: Rate,
    pub(super) registration: Rate,
    pub(super) message: Rate,
    pub(super) join: Rate,
    pub(super) invite: Rate,
    pub(super) media: Rate,
    pub(super) other: Rate,
}

/// The key of each default is repeated in `conduit.toml`, which a test compares.
impl Default for RateLimits {
    fn default() -> Self {
        let rate = |per_second, burst| Rate {
            per_second: Some(per_second),
            burst: Some(burst),
        };
        Self {
            enabled: true,
            login: rate(0.5, 10),
            refresh: rate(5.0, 50),
            registration: rate(0.2, 10),
            message: rate(10.0, 100),
            join: rate(1.0, 30),
            invite: rate(1.0, 30),
            media: rate(20.0, 200),
            other: rate(50.0, 300),
        }
    }
}

/// A class given in part keeps the rest of its default.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Rate {
    pub(super) per_second: Option<f64>,
    pub(super) burst: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WellKnown {
    pub(super) client_base_url: Option<String>,
    pub(super) server: Option<String>,
    pub(super) support_contact: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Dns {
    pub(super) servers: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Media {
    pub(super) path: Option<PathBuf>,
    pub(super) max_upload_size: u64,
    pub(super) user_quota: Option<u64>,
    pub(super) remote_quota: u64,
    pub(super) allow_legacy_unauthenticated: bool,
}

impl Default for Media {
    fn default() -> Self {
        Self {
            path: None,
            max_upload_size: 50 * 1024 * 1024,
            user_quota: None,
            remote_quota: 10 * 1024 * 1024 * 1024,
            allow_legacy_unauthenticated: false,
        }
    }
}
