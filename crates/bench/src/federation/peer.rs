//! The other server: its key, its HTTPS listener, the requests it signs.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path as Parts, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{any, get, put},
};
use homeserver_events::{CanonicalObject, SigningKey, Strictness, canonical, sign_json};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Mutex};
use tokio_rustls::TlsAcceptor;

use super::room::Generated;
use crate::Error;

/// How long the peer's key document holds: longer than any run.
const KEYS_HOLD: Duration = Duration::from_hours(24);

/// A certificate authority, and a certificate for `localhost` by it.
pub(super) struct Certificates {
    pub(super) authority: String,
    pub(super) certificate: String,
    pub(super) key: KeyPair,
}

impl Certificates {
    pub(super) fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate for self-signed whose issuer has its own name.
        let name = "authority of the load tool";
        params.distinguished_name.push(DnType::CommonName, name);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec!["localhost".to_owned()])?;
        let certificate = params.signed_by(&key, &authority)?;
        Ok(Self {
            authority: authority.pem(),
            certificate: certificate.pem(),
            key,
        })
    }

    /// Writes what a server's configuration names: `authority.pem`, `certificate.pem`, `key.pem`.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("authority.pem"), &self.authority)?;
        std::fs::write(folder.join("certificate.pem"), &self.certificate)?;
        std::fs::write(folder.join("key.pem"), self.key.serialize_pem())?;
        Ok(())
    }

    fn acceptor(&self) -> Result<TlsAcceptor, Error> {
        let unusable = |error: &dyn std::fmt::Display| Error::Server(error.to_string());
        let pem = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        let chain = vec![pem.map_err(|error| unusable(&error))?];
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::Pkcs8(key))
            .map_err(|error| unusable(&error))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// The peer.
pub(super) struct Peer {
    /// `localhost:PORT`.
    pub(super) name: String,
    pub(super) key: SigningKey,
    /// Whether it leaves out members where that is asked for.
    pub(super) omits: AtomicBool,
    rooms: Mutex<HashMap<String, Arc<Generated>>>,
}

impl Peer {
    /// Starts to listen.
    pub(super) async fn start(certificates: &Certificates) -> Result<Arc<Self>, Error> {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = socket.local_addr()?.port();
        let key = SigningKey::from_seed("bench", &[7; 32]);
        let peer = Arc::new(Self {
            name: format!("localhost:{port}"),
            key: key.map_err(|error| Error::Server(error.to_string()))?,
            omits: AtomicBool::new(true),
            rooms: Mutex::default(),
        });
        let acceptor = certificates.acceptor()?;
        let router = router(Arc::clone(&peer));
        #[expect(
            clippy::disallowed_methods,
            reason = "the load tool has no task tracker"
        )]
        tokio::spawn(accept(socket, acceptor, router));
        Ok(peer)
    }

    /// Serves a room.
    pub(super) async fn offer(&self, room: Arc<Generated>) {
        self.rooms.lock().await.insert(room.id.to_string(), room);
    }

    /// The `Authorization` header of a request to `destination`.
    pub(super) fn authorization(
        &self,
        method: &str,
        target: &str,
        destination: &str,
        body: Option<&str>,
    ) -> Result<String, Error> {
        let unsigned = |error: &dyn std::fmt::Display| Error::Server(error.to_string());
        let content = body.map_or_else(String::new, |body| format!(",\"content\":{body}"));
        let text = format!(
            "{{\"method\":\"{method}\",\"uri\":\"{target}\",\"origin\":\"{}\",\
             \"destination\":\"{destination}\"{content}}}",
            self.name
        );
        let mut object = object(&text)?;
        sign_json(&mut object, &self.name, &self.key);
        let signed: Value = serde_json::from_str(&canonical::to_string(&object))
            .map_err(|error| unsigned(&error))?;
        let id = self.key.id().to_string();
        let signature = signed["signatures"][&*self.name][&*id].as_str();
        Ok(format!(
            "X-Matrix origin=\"{}\",destination=\"{destination}\",key=\"{id}\",sig=\"{}\"",
            self.name,
            signature.unwrap_or_default()
        ))
    }

    fn key_document(&self) -> Result<String, Error> {
        let until = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            + KEYS_HOLD;
        let document = json!({
            "server_name": self.name,
            "valid_until_ts": until.as_millis() as u64,
            "verify_keys": { self.key.id().to_string(): { "key": self.key.verify_key().to_base64() } },
            "old_verify_keys": {},
        });
        let mut object = object(&document.to_string())?;
        sign_json(&mut object, &self.name, &self.key);
        Ok(canonical::to_string(&object))
    }
}

fn object(text: &str) -> Result<CanonicalObject, Error> {
    let parsed = canonical::parse_object(text.as_bytes(), Strictness::Lenient);
    parsed.map_err(|error| Error::Server(error.to_string()))
}

fn router(peer: Arc<Peer>) -> Router {
    Router::new()
        .route("/_matrix/key/v2/server", get(keys))
        .route("/_matrix/federation/v1/send/{id}", put(take))
        .route(
            "/_matrix/federation/v1/make_join/{room}/{user}",
            get(make_join),
        )
        .route(
            "/_matrix/federation/v2/send_join/{room}/{event}",
            put(send_join),
        )
        .route("/_matrix/federation/v1/state/{room}", get(state))
        .fallback(any(async || StatusCode::NOT_FOUND))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(peer)
}

fn answer(json: impl Into<Body>) -> Response {
    ([("content-type", "application/json")], json.into()).into_response()
}

async fn keys(State(peer): State<Arc<Peer>>) -> Response {
    match peer.key_document() {
        Ok(document) => answer(document),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Transactions are taken and forgotten.
async fn take(_: Bytes) -> Response {
    answer("{\"pdus\":{}}")
}

async fn make_join(
    State(peer): State<Arc<Peer>>,
    Parts((room, user)): Parts<(String, String)>,
) -> Response {
    match peer.rooms.lock().await.get(&room) {
        Some(room) => answer(room.join_template(&user).to_string()),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn send_join(
    State(peer): State<Arc<Peer>>,
    Parts((room, _)): Parts<(String, String)>,
    RawQuery(query): RawQuery,
    join: String,
) -> Response {
    let room = peer.rooms.lock().await.get(&room).cloned();
    let omit = query.is_some_and(|query| query.contains("omit_members=true"));
    match room {
        Some(room) => {
            let omit = omit && peer.omits.load(Ordering::Relaxed);
            let pieces = room.join_answer(&peer.name, &join, omit);
            let pieces = pieces.map(Ok::<_, std::convert::Infallible>);
            answer(Body::from_stream(futures_util::stream::iter(pieces)))
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The state before a join.
async fn state(State(peer): State<Arc<Peer>>, Parts(room): Parts<String>) -> Response {
    match peer.rooms.lock().await.get(&room) {
        Some(room) => answer(room.state_answer()),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Serves connections until the process ends.
async fn accept(socket: TcpListener, acceptor: TlsAcceptor, router: Router) {
    while let Ok((stream, _)) = socket.accept().await {
        let (acceptor, router) = (acceptor.clone(), router.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "the load tool has no task tracker"
        )]
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = TowerToHyperService::new(router);
            let builder = auto::Builder::new(TokioExecutor::new());
            // Whoever hangs up has what it wanted.
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// Time since some moment, in milliseconds.
pub(super) fn milliseconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
