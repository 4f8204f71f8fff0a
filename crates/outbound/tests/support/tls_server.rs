//! TLS servers on loopback that say what they are told and note who asked. For the tests of this
//! crate and of those that send with it.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls, server::TlsStream};

/// Vouches for names.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The address that was connected to.
    pub(crate) to: SocketAddr,
    /// The name that the client gave for choosing a certificate.
    pub(crate) sni: Option<String>,
    /// Which connection of the server, from 1.
    pub(crate) connection: usize,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// What to answer.
pub(crate) enum Say {
    /// These bytes, and wait for the next request.
    Keep(String),
    /// These bytes, and close.
    Close(String),
    /// These bytes, and nothing any more.
    Hang(String),
    /// These bytes, and more and more.
    Flood(String),
    /// These bytes when it is told to, and wait for the next request.
    When(Arc<Notify>, String),
}

/// A server, until it is dropped.
pub(crate) struct TlsServer {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    accepted: Arc<Mutex<usize>>,
    _tasks: JoinSet<()>,
}

/// A plain answer.
pub(crate) fn ok(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// Accepts connections as `name`, which may be an address.
    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// A server with a certificate for `name`.
    pub(crate) fn serve(
        &self,
        listener: TcpListener,
        name: &str,
        answer: impl Fn(&Seen) -> Say + Send + Sync + 'static,
    ) -> TlsServer {
        let address = listener.local_addr().unwrap();
        let acceptor = self.acceptor(name);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let accepted = Arc::new(Mutex::new(0));
        let (noted, counted) = (Arc::clone(&seen), Arc::clone(&accepted));
        let answer = Arc::new(answer);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let connection = {
                    let mut counted = counted.lock();
                    *counted += 1;
                    *counted
                };
                let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
                let noted = Arc::clone(&noted);
                connections.spawn(async move {
                    // A client that does not trust us breaks off here.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        converse(stream, connection, &noted, &*answer).await;
                    }
                });
            }
        });
        TlsServer {
            address,
            seen,
            accepted,
            _tasks: tasks,
        }
    }
}

impl TlsServer {
    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// How many connections were opened, also those that were broken off at once.
    pub(crate) fn accepted(&self) -> usize {
        *self.accepted.lock()
    }
}

impl Seen {
    /// The path and query.
    pub(crate) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }
}

async fn converse(
    mut stream: TlsStream<TcpStream>,
    connection: usize,
    noted: &Mutex<Vec<Seen>>,
    answer: &(dyn Fn(&Seen) -> Say + Send + Sync),
) {
    let to = stream.get_ref().0.local_addr().unwrap();
    let sni = stream.get_ref().1.server_name().map(str::to_owned);
    let mut unread = Vec::new();
    loop {
        let Some((head, body)) = request(&mut stream, &mut unread).await else {
            return;
        };
        let seen = Seen {
            to,
            sni: sni.clone(),
            connection,
            head,
            body,
        };
        let said = answer(&seen);
        noted.lock().push(seen);
        let text = match &said {
            Say::Keep(text) | Say::Close(text) | Say::Hang(text) | Say::Flood(text) => text,
            Say::When(told, text) => {
                told.notified().await;
                text
            }
        };
        // The client may have broken off.
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.flush().await;
        match said {
            Say::Keep(_) | Say::When(..) => {}
            Say::Close(_) => {
                let _ = stream.shutdown().await;
                return;
            }
            Say::Hang(_) => std::future::pending().await,
            Say::Flood(_) => {
                let more = [b'x'; 1_000];
                while stream.write_all(&more).await.is_ok() {}
                return;
            }
        }
    }
}

/// Head and body of the next request; `None` when the client closed.
async fn request(
    stream: &mut TlsStream<TcpStream>,
    unread: &mut Vec<u8>,
) -> Option<(String, String)> {
    loop {
        if let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(unread[..end].to_vec()).unwrap();
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length: usize = length.map_or(0, |(_, length)| length.parse().unwrap());
            let whole = end + 4 + length;
            if unread.len() >= whole {
                let body = String::from_utf8(unread[end + 4..whole].to_vec()).unwrap();
                unread.drain(..whole);
                return Some((head, body));
            }
        }
        let mut buffer = vec![0; 16 * 1024];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(length) => unread.extend(&buffer[..length]),
        }
    }
}
