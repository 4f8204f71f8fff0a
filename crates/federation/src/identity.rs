//! Identity servers: which user an address belongs to, and invites of those whose user is not known.
//!
//! Which server is asked is up to clients and to events, so that nothing is believed of it but what it
//! is asked about: it is reached by the guarded client only (no private addresses, no redirects, TLS),
//! and its answers are small, quick and checked.
//!
//! Specification: identity service API; client-server API, "Third-party invites".

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use homeserver_events::VerifyKey;
use homeserver_outbound::{Exchange, Limits, OutboundError, Url};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use ruma::{OwnedUserId, ServerName};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::Transport;

/// Bytes of the largest answer: keys and a name.
const MAX_ANSWER: usize = 64 * 1024;

/// How long an identity server may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Requests to identity servers at once; more are refused, since clients choose the servers.
const AT_ONCE: usize = 32;

/// Bytes of a token of an invite (identity service API), which becomes a state key.
const MAX_TOKEN: usize = 255;

/// Bytes of the name that an invited person is shown by.
const MAX_DISPLAY_NAME: usize = 255;

/// Keys of one invite; there should be two.
const MAX_KEYS: usize = 8;

/// Bytes of a URL at which the validity of a key is asked.
const MAX_URL: usize = 1_024;

/// Bytes of the token by which a client is known to its identity server, and of an address.
const MAX_ACCESS_TOKEN: usize = 2_048;
const MAX_ADDRESS: usize = 512;

/// Why an identity server was of no use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// This server asks nobody.
    #[error("this server does not speak to other servers")]
    Disabled,
    /// What the client says is not what it should be.
    #[error("{0}")]
    Request(&'static str),
    /// Too many are asked at once.
    #[error("too many identity servers are asked at once")]
    Busy,
    /// It was not reached, or may not be.
    #[error("the identity server is not reached")]
    Unreachable(#[source] OutboundError),
    /// It refused.
    #[error("the identity server refuses: {message}")]
    Refused {
        /// What it answered.
        status: StatusCode,
        /// The error code.
        errcode: String,
        /// Its words, for people.
        message: String,
    },
    /// What it answered makes no sense.
    #[error("the answer of the identity server is not usable: {0}")]
    Answer(String),
}

/// Somebody known by an address.
#[derive(Clone, Debug)]
pub struct Addressee {
    /// Name and port of the identity server.
    pub id_server: String,
    /// By which the client is known there.
    pub access_token: String,
    /// What kind of address it is: `email`.
    pub medium: String,
    /// The address.
    pub address: String,
}

impl Addressee {
    /// With the address as it is bound and looked up: in those of e-mail case does not count
    /// (appendices, "3PID Types").
    #[must_use]
    pub fn canonical(self) -> Self {
        if self.medium != "email" {
            return self;
        }
        // Folding differs from lower case in these letters, as far as addresses have any.
        let lower = self.address.to_lowercase();
        let address = lower.replace('ß', "ss").replace('ς', "σ").replace('ſ', "s");
        Self { address, ..self }
    }
}

/// What is stored at an identity server for somebody whose user is not known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoredInvite {
    /// The room.
    pub room_id: String,
    /// Who invites.
    pub sender: String,
    /// The display name of who invites.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_display_name: Option<String>,
    /// The avatar of who invites.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_avatar_url: Option<String>,
    /// The alias of the room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_alias: Option<String>,
    /// The name of the room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_name: Option<String>,
    /// The avatar of the room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_avatar_url: Option<String>,
    /// Who may join.
    pub room_join_rules: String,
    /// The type of the room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_type: Option<String>,
}

/// An invite that is stored at an identity server.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Names it, and is the state key of its event.
    pub token: String,
    /// What everybody in the room may see of who is invited.
    pub display_name: String,
    /// Keys with which the proof is signed; one at least.
    pub public_keys: Vec<PublicKey>,
}

/// A key with which a proof is signed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PublicKey {
    /// The key.
    pub public_key: String,
    /// Where one may ask whether it still holds.
    pub key_validity_url: String,
}

/// What became of an invite.
#[derive(Clone, Debug)]
pub enum Found {
    /// The address belongs to this user.
    User(OwnedUserId),
    /// It belongs to nobody yet; the invite is stored.
    Nobody(Offer),
}

/// Asks identity servers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct IdentityServers {
    enabled: bool,
    transport: Arc<dyn Transport>,
    at_once: Arc<Semaphore>,
}

impl IdentityServers {
    /// Asks over this transport, or nobody.
    pub fn new(enabled: bool, transport: Arc<dyn Transport>) -> Self {
        Self {
            enabled,
            transport,
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Fails if an identity server cannot even be asked so.
    ///
    /// # Errors
    /// When the client names no server, or says too much.
    pub fn check(&self, addressee: &Addressee) -> Result<(), IdentityError> {
        Server::of(addressee)?;
        if self.enabled {
            Ok(())
        } else {
            Err(IdentityError::Disabled)
        }
    }

    /// The user of an address, if the identity server knows one; otherwise the invite is stored there.
    ///
    /// # Errors
    /// When the server is not reached, or does not do its part.
    pub async fn find_or_store(
        &self,
        addressee: &Addressee,
        invite: &StoredInvite,
    ) -> Result<Found, IdentityError> {
        let server = Server::of(addressee)?;
        if let Some(user) = self.look_up(&server, addressee).await? {
            return Ok(Found::User(user));
        }
        match self.store(&server, addressee, invite).await {
            // It was bound in between.
            Err(IdentityError::Refused { errcode, .. }) if errcode == "M_THREEPID_IN_USE" => {
                let bound = self.look_up(&server, addressee).await?;
                let none = || IdentityError::Answer("an address is bound to nobody".to_owned());
                Ok(Found::User(bound.ok_or_else(none)?))
            }
            other => Ok(Found::Nobody(other?)),
        }
    }

    /// The user of an address.
    async fn look_up(
        &self,
        server: &Server,
        addressee: &Addressee,
    ) -> Result<Option<OwnedUserId>, IdentityError> {
        match self.look_up_once(server, addressee).await {
            // It was changed in between; once more, and not for ever.
            Err(IdentityError::Refused { errcode, .. }) if errcode == "M_INVALID_PEPPER" => {
                self.look_up_once(server, addressee).await
            }
            other => other,
        }
    }

    async fn look_up_once(
        &self,
        server: &Server,
        addressee: &Addressee,
    ) -> Result<Option<OwnedUserId>, IdentityError> {
        #[derive(Deserialize)]
        struct HashDetails {
            lookup_pepper: String,
            algorithms: Vec<String>,
        }
        #[derive(Serialize)]
        struct Query<'a> {
            algorithm: &'a str,
            pepper: &'a str,
            addresses: [&'a str; 1],
        }
        #[derive(Deserialize)]
        struct Mappings {
            mappings: std::collections::BTreeMap<String, String>,
        }
        let details: HashDetails = self.ask(server.get("hash_details")?).await?;
        if !details.algorithms.iter().any(|known| known == "sha256") {
            let what = "there is no algorithm that both know";
            return Err(IdentityError::Answer(what.to_owned()));
        }
        let pepper = details.lookup_pepper.as_str();
        let hashed = hashed(&addressee.address, &addressee.medium, pepper);
        let query = Query {
            algorithm: "sha256",
            pepper,
            addresses: [&hashed],
        };
        let found: Mappings = self.ask(server.post("lookup", &query)?).await?;
        let Some(user) = found.mappings.get(&hashed) else {
            return Ok(None);
        };
        let user = OwnedUserId::try_from(user.as_str());
        let user = user.map_err(|error| IdentityError::Answer(error.to_string()))?;
        Ok(Some(user))
    }

    async fn store(
        &self,
        server: &Server,
        addressee: &Addressee,
        invite: &StoredInvite,
    ) -> Result<Offer, IdentityError> {
        #[derive(Serialize)]
        struct Body<'a> {
            medium: &'a str,
            address: &'a str,
            #[serde(flatten)]
            invite: &'a StoredInvite,
        }
        #[derive(Deserialize)]
        struct Stored {
            token: String,
            display_name: String,
            public_keys: Vec<PublicKey>,
        }
        let body = Body {
            medium: &addressee.medium,
            address: &addressee.address,
            invite,
        };
        let stored: Stored = self.ask(server.post("store-invite", &body)?).await?;
        let offer = Offer {
            token: stored.token,
            display_name: stored.display_name,
            public_keys: stored.public_keys,
        };
        checked(offer, &addressee.address)
    }

    /// Whether a key still holds, as its URL tells.
    ///
    /// # Errors
    /// When nobody tells.
    pub async fn is_valid(&self, url: &str, public_key: &str) -> Result<bool, IdentityError> {
        #[derive(Deserialize)]
        struct Validity {
            valid: bool,
        }
        let unusable = IdentityError::Request("the URL of a key cannot be asked");
        if url.len() > MAX_URL {
            return Err(unusable);
        }
        let Ok(mut url) = Url::parse(url) else {
            return Err(unusable);
        };
        url.query_pairs_mut().append_pair("public_key", public_key);
        let validity: Validity = self.ask(Exchange::fetch(url, limits())).await?;
        Ok(validity.valid)
    }

    async fn ask<T: DeserializeOwned>(&self, exchange: Exchange) -> Result<T, IdentityError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Refusal {
            errcode: String,
            error: String,
        }
        if !self.enabled {
            return Err(IdentityError::Disabled);
        }
        let _turn = self
            .at_once
            .try_acquire()
            .map_err(|_| IdentityError::Busy)?;
        let answer = self.transport.exchange(exchange).await;
        let answer = answer.map_err(IdentityError::Unreachable)?;
        if answer.status != StatusCode::OK {
            let refusal: Refusal = serde_json::from_slice(&answer.body).unwrap_or_default();
            return Err(IdentityError::Refused {
                status: answer.status,
                errcode: refusal.errcode,
                message: refusal.error,
            });
        }
        let read = serde_json::from_slice(&answer.body);
        read.map_err(|error| IdentityError::Answer(error.to_string()))
    }
}

/// An identity server, and by which token it is asked.
struct Server {
    base: Url,
    authorization: HeaderValue,
}

impl Server {
    fn of(addressee: &Addressee) -> Result<Self, IdentityError> {
        let fits = |text: &str| (1..=MAX_ADDRESS).contains(&text.len());
        if !fits(&addressee.address) || !fits(&addressee.medium) {
            return Err(IdentityError::Request("the address is none, or too long"));
        }
        if addressee.access_token.len() > MAX_ACCESS_TOKEN {
            return Err(IdentityError::Request("id_access_token is too long"));
        }
        let name = <&ServerName>::try_from(addressee.id_server.as_str());
        let name = name.map_err(|_| IdentityError::Request("id_server is no host name"))?;
        let base = Url::parse(&format!("https://{name}/_matrix/identity/v2/"));
        let base = base.map_err(|_| IdentityError::Request("id_server is no host name"))?;
        let bearer = format!("Bearer {}", addressee.access_token);
        let mut authorization = HeaderValue::try_from(bearer)
            .map_err(|_| IdentityError::Request("id_access_token is no token"))?;
        authorization.set_sensitive(true);
        Ok(Self {
            base,
            authorization,
        })
    }

    fn get(&self, endpoint: &str) -> Result<Exchange, IdentityError> {
        let url = self.base.join(endpoint);
        let url = url.map_err(|_| IdentityError::Request("id_server is no host name"))?;
        let mut exchange = Exchange::fetch(url, limits());
        let headers = &mut exchange.headers;
        headers.insert(header::AUTHORIZATION, self.authorization.clone());
        Ok(exchange)
    }

    fn post(&self, endpoint: &str, body: &impl Serialize) -> Result<Exchange, IdentityError> {
        let body = serde_json::to_vec(body);
        let body = body.map_err(|error| IdentityError::Answer(error.to_string()))?;
        let json = HeaderValue::from_static("application/json");
        let asked = self.get(endpoint)?;
        let headers: HeaderMap = asked
            .headers
            .into_iter()
            .filter_map(|(name, value)| Some((name?, value)))
            .chain([(header::CONTENT_TYPE, json)])
            .collect();
        Ok(Exchange {
            method: Method::POST,
            headers,
            body: Bytes::from(body),
            ..Exchange::fetch(asked.url, asked.limits)
        })
    }
}

fn limits() -> Limits {
    Limits {
        body: MAX_ANSWER,
        deadline: DEADLINE,
        redirects: 0,
        https_only: true,
    }
}

/// An address as it is looked up: only who knows it can ask for it.
fn hashed(address: &str, medium: &str, pepper: &str) -> String {
    let digest = Sha256::digest(format!("{address} {medium} {pepper}"));
    URL_SAFE_NO_PAD.encode(digest)
}

/// An offer that can become an event which all servers can judge.
fn checked(offer: Offer, address: &str) -> Result<Offer, IdentityError> {
    let bad = |what: &str| Err(IdentityError::Answer(what.to_owned()));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".=_-".contains(&byte);
    let token = offer.token.as_bytes();
    if token.is_empty() || token.len() > MAX_TOKEN || !token.iter().all(|byte| allowed(*byte)) {
        return bad("the token is none");
    }
    if offer.display_name.len() > MAX_DISPLAY_NAME {
        return bad("the display name is too long");
    }
    // Everybody in the room reads it.
    if offer.display_name.contains(address) {
        return bad("the display name is the address");
    }
    if offer.public_keys.is_empty() || offer.public_keys.len() > MAX_KEYS {
        return bad("there have to be some public keys");
    }
    for key in &offer.public_keys {
        let usable = VerifyKey::from_base64(&key.public_key).is_ok();
        if !usable || key.key_validity_url.len() > MAX_URL {
            return bad("a public key is not usable");
        }
    }
    Ok(offer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_looked_up_by_their_hash() {
        // The examples of the identity service API.
        let hash = hashed("alice@example.com", "email", "matrixrocks");
        assert_eq!(hash, "4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc");
        let hash = hashed("18005552067", "msisdn", "matrixrocks");
        assert_eq!(hash, "nlo35_T5fzSGZzJApqu8lgIudJvmOQtDaHtr-I4rU7I");
    }

    fn addressee(id_server: &str, access_token: &str) -> Addressee {
        Addressee {
            id_server: id_server.to_owned(),
            access_token: access_token.to_owned(),
            medium: "email".to_owned(),
            address: "a@b.c".to_owned(),
        }
    }

    #[test]
    fn the_case_of_addresses_does_not_count() {
        for (medium, address, canonical) in [
            // The example of the appendices.
            ("email", "Strauß@Example.com", "strauss@example.com"),
            ("email", "A.B@c.d", "a.b@c.d"),
            // Two letters, and two addresses.
            ("email", "ı@c.d", "ı@c.d"),
            ("other", "A", "A"),
        ] {
            let addressee = Addressee {
                medium: medium.to_owned(),
                address: address.to_owned(),
                ..addressee("id.example", "t")
            };
            assert_eq!(addressee.canonical().address, canonical);
        }
    }

    #[test]
    fn only_host_names_are_asked() {
        let server = Server::of(&addressee("id.example:8090", "t")).unwrap();
        let url = server.get("lookup").unwrap().url;
        assert_eq!(
            url.as_str(),
            "https://id.example:8090/_matrix/identity/v2/lookup"
        );
        for (id_server, token) in [
            ("id.example/x?", "t"),
            ("user@id.example", "t"),
            ("https://id.example", "t"),
            ("", "t"),
            ("id.example", "new\nline"),
            ("id.example", &"t".repeat(5_000)),
        ] {
            let server = Server::of(&addressee(id_server, token));
            assert!(
                matches!(server, Err(IdentityError::Request(_))),
                "{id_server}"
            );
        }
        for (medium, address) in [("", "a@b.c"), ("email", ""), ("email", &*"a".repeat(600))] {
            let addressee = Addressee {
                medium: medium.to_owned(),
                address: address.to_owned(),
                ..addressee("id.example", "t")
            };
            let server = Server::of(&addressee);
            assert!(
                matches!(server, Err(IdentityError::Request(_))),
                "{address}"
            );
        }
    }
}
