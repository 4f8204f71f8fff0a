//! Listeners: sockets, TLS, connections with limits and deadlines, and an orderly end.
//!
//! A connection that is asked to stop finishes the request it is serving. Plain listeners speak
//! HTTP/1.1, TLS listeners also HTTP/2.

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
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::{config::Listener, http::PeerAddress};

/// How long the head of a request, and an idle connection between two requests, may take.
const HEAD_PATIENCE: Duration = Duration::from_secs(90);
/// How long a TLS handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;
/// Requests that one HTTP/2 connection serves at once.
const MAX_STREAMS: u32 = 100;
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
    #[error("cannot use {file} for TLS: {problem}")]
    Tls {
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
    /// The address with the port that was taken.
    pub(crate) address: SocketAddr,
}

/// Opens the socket of `listener`.
pub(crate) async fn bind(listener: &Listener) -> Result<Bound, ListenError> {
    let tls = listener.tls.as_ref().map(tls::acceptor).transpose()?;
    let failed = |source| ListenError::Bind {
        address: listener.address,
        source,
    };
    let socket = TcpListener::bind(listener.address).await.map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(Bound {
        socket,
        tls,
        address,
    })
}

/// Accepts connections, at most `max_connections` at once, until the runtime's tasks stop.
pub(crate) async fn accept(bound: Bound, router: Router, max_connections: usize, runtime: Runtime) {
    let room = Arc::new(Semaphore::new(max_connections));
    loop {
        let permit = tokio::select! {
            () = runtime.tasks.stopping() => return,
            permit = Arc::clone(&room).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            () = runtime.tasks.stopping() => return,
            accepted = bound.socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = Connection {
                    stream,
                    peer,
                    tls: bound.tls.clone(),
                    router: router.clone(),
                    runtime: runtime.clone(),
                    _permit: permit,
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

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    runtime: Runtime,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self) {
        // Answers are small and somebody waits for them.
        if let Err(error) = self.stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY is not available");
        }
        let Some(acceptor) = self.tls else {
            serve(self.stream, false, self.peer, self.router, &self.runtime).await;
            return;
        };
        let handshake = tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(self.stream));
        match handshake.await {
            Ok(Ok(stream)) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
                serve(stream, http2, self.peer, self.router, &self.runtime).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, peer = %self.peer, "TLS handshake failed"),
            Err(_) => tracing::debug!(peer = %self.peer, "TLS handshake took too long"),
        }
    }
}

async fn serve<S>(stream: S, http2: bool, peer: SocketAddr, router: Router, runtime: &Runtime)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = router.map_request(move |mut request: http::Request<_>| {
        request.extensions_mut().insert(PeerAddress(peer.ip()));
        request
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_PATIENCE)
        .max_header_list_size(MAX_HEAD as u32)
        .max_concurrent_streams(MAX_STREAMS);
    let builder = if http2 {
        builder.http2_only()
    } else {
        builder.http1_only()
    };
    let service = TowerToHyperService::new(service);
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
