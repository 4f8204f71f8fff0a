//! From what is written to what is meant.

use std::{fmt::Display, net::SocketAddr, str::FromStr, time::Duration};

use ruma::{OwnedServerName, RoomVersionId};

use super::{
    Config, ConfigError, DnsConfig, FederationConfig, HttpConfig, Listener, MediaConfig,
    ProfilesConfig, Rate, RateLimitConfig, RegistrationConfig, RoomsConfig, SessionConfig,
    StorageConfig, WellKnownConfig, raw,
};

/// Bytes of the shortest key of the operators' registration endpoint.
const MIN_SHARED_SECRET: usize = 16;

/// The port of a DNS server that is given without one.
const DNS_PORT: u16 = 53;

fn refused(key: impl Into<String>, value: impl Display, problem: impl Display) -> ConfigError {
    ConfigError::Value {
        key: key.into(),
        value: value.to_string(),
        problem: problem.to_string(),
    }
}

fn parsed<T>(key: &str, value: &str) -> Result<T, ConfigError>
where
    T: FromStr,
    T::Err: Display,
{
    value
        .parse()
        .map_err(|error: T::Err| refused(key, value, error))
}

fn all_parsed<T>(key: &str, values: &[String]) -> Result<Vec<T>, ConfigError>
where
    T: FromStr,
    T::Err: Display,
{
    values.iter().map(|value| parsed(key, value)).collect()
}

impl raw::Raw {
    /// Checks and completes.
    pub(super) fn resolve(self) -> Result<Config, ConfigError> {
        let default_version = room_version(&self.rooms.default_version)?;
        let listeners = self.listeners.into_iter().map(raw::Listener::resolve);
        Ok(Config {
            server_name: server_name("server_name", &self.server_name)?,
            listeners: listeners.collect::<Result<_, _>>()?,
            http: self.http.resolve()?,
            storage: StorageConfig {
                engine: self.storage.engine,
                path: self.storage.path,
                cache_bytes: self.storage.cache_bytes,
            },
            registration: self.registration.resolve()?,
            sessions: SessionConfig {
                access_token_lifetime: self.sessions.access_token_lifetime,
                allow_token_in_query: self.sessions.allow_token_in_query,
            },
            profiles: ProfilesConfig {
                require_login: self.profiles.require_login,
            },
            rooms: RoomsConfig { default_version },
            federation: self.federation.resolve()?,
            rate_limits: self.rate_limits.resolve()?,
            well_known: WellKnownConfig {
                client_base_url: self.well_known.client_base_url,
                server: self.well_known.server,
                support_contact: self.well_known.support_contact,
            },
            dns: self.dns.resolve()?,
            media: MediaConfig {
                path: self.media.path,
                max_upload_size: self.media.max_upload_size,
                user_quota: self.media.user_quota,
                remote_quota: self.media.remote_quota,
                allow_legacy_unauthenticated: self.media.allow_legacy_unauthenticated,
            },
        })
    }
}

fn server_name(key: &str, value: &str) -> Result<OwnedServerName, ConfigError> {
    OwnedServerName::try_from(value).map_err(|error| refused(key, value, error))
}

fn room_version(value: &str) -> Result<RoomVersionId, ConfigError> {
    let key = "rooms.default_version";
    let version = RoomVersionId::try_from(value).map_err(|error| refused(key, value, error))?;
    if matches!(version, RoomVersionId::_Custom(_)) {
        return Err(refused(key, value, "this room version is not known"));
    }
    Ok(version)
}

impl raw::Listener {
    fn resolve(self) -> Result<Listener, ConfigError> {
        Ok(Listener {
            address: parsed("listeners[].address", &self.address)?,
            serves: self.serves,
            tls: self.tls,
        })
    }
}

impl raw::Http {
    fn resolve(self) -> Result<HttpConfig, ConfigError> {
        let seconds = [
            ("http.idle_timeout", self.idle_timeout),
            ("http.stall_timeout", self.stall_timeout),
        ];
        let counts = [
            ("http.max_connections", self.max_connections),
            (
                "http.max_connections_per_address",
                self.max_connections_per_address,
            ),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(refused(*key, 0, "nobody could connect"));
        }
        if let Some((key, _)) = seconds.iter().find(|(_, seconds)| *seconds == 0) {
            return Err(refused(*key, 0, "no request could be served"));
        }
        Ok(HttpConfig {
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            idle_timeout: Duration::from_secs(self.idle_timeout),
            stall_timeout: Duration::from_secs(self.stall_timeout),
            trusted_proxies: all_parsed("http.trusted_proxies", &self.trusted_proxies)?,
        })
    }
}

impl raw::Registration {
    fn resolve(self) -> Result<RegistrationConfig, ConfigError> {
        let secrets = [
            ("registration.token", &self.token),
            ("registration.shared_secret", &self.shared_secret),
        ];
        for (key, secret) in secrets {
            if secret.as_ref().is_some_and(String::is_empty) {
                return Err(refused(key, "", "an empty secret protects nothing"));
            }
        }
        // Whoever guesses it makes administrators.
        let secret = self.shared_secret.as_ref();
        if secret.is_some_and(|secret| secret.len() < MIN_SHARED_SECRET) {
            let problem = format!("must have at least {MIN_SHARED_SECRET} characters");
            return Err(refused(
                "registration.shared_secret",
                "(not shown)",
                problem,
            ));
        }
        Ok(RegistrationConfig {
            mode: self.mode,
            token: self.token,
            shared_secret: self.shared_secret,
        })
    }
}

impl raw::Federation {
    fn resolve(self) -> Result<FederationConfig, ConfigError> {
        let numbers = [
            (
                "requests_per_destination",
                self.requests_per_destination as u64,
            ),
            ("request_timeout", self.request_timeout),
            ("retry_min", self.retry_min),
        ];
        for (key, number) in numbers {
            if number == 0 {
                let key = format!("federation.{key}");
                return Err(refused(key, number, "must be greater than zero"));
            }
        }
        if self.retry_max < self.retry_min {
            let problem = "must not be less than federation.retry_min";
            return Err(refused("federation.retry_max", self.retry_max, problem));
        }
        let key_servers = self.key_servers.iter();
        let key_servers = key_servers.map(|name| server_name("federation.key_servers", name));
        Ok(FederationConfig {
            enabled: self.enabled,
            allowed_servers: self.allowed_servers,
            denied_servers: self.denied_servers,
            requests_per_destination: self.requests_per_destination,
            request_timeout: Duration::from_secs(self.request_timeout),
            retry_min: Duration::from_secs(self.retry_min),
            retry_max: Duration::from_secs(self.retry_max),
            extra_ca_certificates: self.extra_ca_certificates,
            allowed_private_ranges: all_parsed(
                "federation.allowed_private_ranges",
                &self.allowed_private_ranges,
            )?,
            key_servers: key_servers.collect::<Result<_, _>>()?,
        })
    }
}

impl raw::RateLimits {
    fn resolve(self) -> Result<RateLimitConfig, ConfigError> {
        let defaults = Self::default();
        Ok(RateLimitConfig {
            enabled: self.enabled,
            login: rate("login", self.login, defaults.login)?,
            refresh: rate("refresh", self.refresh, defaults.refresh)?,
            registration: rate("registration", self.registration, defaults.registration)?,
            message: rate("message", self.message, defaults.message)?,
            join: rate("join", self.join, defaults.join)?,
            invite: rate("invite", self.invite, defaults.invite)?,
            media: rate("media", self.media, defaults.media)?,
            other: rate("other", self.other, defaults.other)?,
        })
    }
}

fn rate(class: &str, written: raw::Rate, default: raw::Rate) -> Result<Rate, ConfigError> {
    let per_second = written.per_second.or(default.per_second).unwrap_or(1.0);
    let burst = written.burst.or(default.burst).unwrap_or(1);
    if !per_second.is_finite() || per_second <= 0.0 {
        let key = format!("rate_limits.{class}.per_second");
        return Err(refused(key, per_second, "must be greater than zero"));
    }
    if burst == 0 {
        let key = format!("rate_limits.{class}.burst");
        return Err(refused(key, burst, "must be greater than zero"));
    }
    Ok(Rate { per_second, burst })
}

impl raw::Dns {
    fn resolve(self) -> Result<DnsConfig, ConfigError> {
        let address = |text: &String| match text.parse() {
            Ok(ip) => Ok(SocketAddr::new(ip, DNS_PORT)),
            Err(_) => parsed("dns.servers", text),
        };
        let servers = self.servers.iter().map(address);
        Ok(DnsConfig {
            servers: servers.collect::<Result<_, _>>()?,
        })
    }
}
