//! Listeners: sockets, TLS, connections with limits and deadlines, and an orderly end.
//!
//! A connection that is asked to stop finishes the request it is serving. Plain listeners speak
//! HTTP/1.1, TLS listeners also HTTP/2.

mod room;
mod stall;
mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use homeserver_runtime::Runtime;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::{
    config::{HttpConfig, Listener},
    http::PeerAddress,
};

use room::{Room, Seat};
use stall::Impatient;

pub(crate) use tls::Certificate;

/// How long a TLS handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;
/// Requests that one HTTP/2 connection serves at once.
const MAX_STREAMS: u32 = 100;
/// Bytes that wait to be sent for one request of an HTTP/2 connection.
const MAX_WAITING: usize = 128 * 1024;
/// How long accepting rests after it failed, as it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("{key}: cannot use {file} for TLS: {problem}")]
    Tls {
        /// Where the configuration names the file.
        key: String,
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// An open socket that nobody is served on yet.
pub(crate) struct Bound {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    /// What it shows by TLS.
    pub(crate) certificate: Option<Arc<Certificate>>,
    /// The address with the port that was taken.
    pub(crate) address: SocketAddr,
}

/// Opens the socket of the listener that stands at `index` in the configuration.
pub(crate) async fn bind(listener: &Listener, index: usize) -> Result<Bound, ListenError> {
    let files = listener.tls.as_ref();
    let certificate = files.map(|files| Certificate::open(files, index));
    let certificate = certificate.transpose()?;
    let tls = certificate
        .as_ref()
        .map(Certificate::acceptor)
        .transpose()?;
    let failed = |source| ListenError::Bind {
        address: listener.address,
        source,
    };
    let socket = TcpListener::bind(listener.address).await.map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(Bound {
        socket,
        tls,
        certificate,
        address,
    })
}

/// Accepts connections, as many as `config` allows, until the runtime's tasks stop.
pub(crate) async fn accept(bound: Bound, router: Router, config: HttpConfig, runtime: Runtime) {
    let room = Room::new(&config);
    let patience = Patience {
        idle: config.idle_timeout,
        stall: config.stall_timeout,
    };
    loop {
        let permit = tokio::select! {
            () = runtime.tasks.stopping() => return,
            permit = room.wait() => permit,
        };
        let Some(permit) = permit else { return };
        let accepted = tokio::select! {
            () = runtime.tasks.stopping() => return,
            accepted = bound.socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(seat) = room.seat(peer.ip(), permit) else {
                    tracing::debug!(%peer, "closed: too many connections from this address");
                    continue;
                };
                let connection = Connection {
                    stream,
                    peer,
                    patience,
                    tls: bound.tls.clone(),
                    router: router.clone(),
                    runtime: runtime.clone(),
                    _seat: seat,
                };
                runtime.tasks.spawn(connection.run());
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How long is waited for a client.
#[derive(Clone, Copy)]
struct Patience {
    /// For the head of a request.
    idle: Duration,
    /// For it to read something.
    stall: Duration,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    patience: Patience,
    tls: Option<TlsAcceptor>,
    router: Router,
    runtime: Runtime,
    _seat: Seat,
}

impl Connection {
    async fn run(self) {
        // Answers are small and somebody waits for them.
        if let Err(error) = self.stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY is not available");
        }
        let stream = Impatient::new(self.stream, self.patience.stall);
        let serving = Serving {
            peer: self.peer,
            idle: self.patience.idle,
            router: self.router,
        };
        let Some(acceptor) = self.tls else {
            return serving.run(stream, Protocol::Http1, &self.runtime).await;
        };
        let handshake = tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream));
        match handshake.await {
            Ok(Ok(stream)) => {
                let protocol = match stream.get_ref().1.alpn_protocol() {
                    Some(tls::HTTP2) => Protocol::Http2,
                    _ => Protocol::Http1,
                };
                serving.run(stream, protocol, &self.runtime).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, peer = %self.peer, "TLS handshake failed"),
            Err(_) => tracing::debug!(peer = %self.peer, "TLS handshake took too long"),
        }
    }
}

#[derive(Clone, Copy)]
enum Protocol {
    Http1,
    Http2,
}

/// A connection that speaks HTTP.
struct Serving {
    peer: SocketAddr,
    idle: Duration,
    router: Router,
}

impl Serving {
    async fn run<S>(self, stream: S, protocol: Protocol, runtime: &Runtime)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let peer = self.peer;
        let service = self
            .router
            .map_request(move |mut request: http::Request<_>| {
                request.extensions_mut().insert(PeerAddress(peer.ip()));
                request
            });
        let service = TowerToHyperService::new(service);
        let builder = builder(protocol, self.idle);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = runtime.tasks.stopping() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, %peer, "a connection ended badly");
        }
    }
}

fn builder(protocol: Protocol, idle: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(idle)
        .max_header_list_size(MAX_HEAD as u32)
        .max_send_buf_size(MAX_WAITING)
        .max_concurrent_streams(MAX_STREAMS);
    match protocol {
        Protocol::Http2 => builder.http2_only(),
        Protocol::Http1 => builder.http1_only(),
    }
}
