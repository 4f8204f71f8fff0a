//! Listeners over real sockets: an answer, the configured surfaces, an orderly end.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;

use homeserver::{
    Homeserver,
    config::{Config, Surface},
    storage::engines::memory::MemoryEngine,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const REQUEST: &[u8] = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: localhost\r\n\r\n";

async fn serving(surfaces: &[Surface]) -> (Homeserver, std::net::SocketAddr) {
    let mut config = Config::default();
    config.listeners[0].address = ([127, 0, 0, 1], 0).into();
    config.listeners[0].serves = surfaces.to_vec();
    let homeserver = Homeserver::configured(config)
        .engine(Arc::new(MemoryEngine::new()))
        .open()
        .await
        .unwrap();
    let listening = homeserver.listen().await.unwrap();
    (homeserver, listening[0].address)
}

/// Sends a request and reads until the end of the head of its answer.
async fn head(stream: &mut TcpStream) -> String {
    stream.write_all(REQUEST).await.unwrap();
    let mut read = Vec::new();
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let length = stream.read(&mut part).await.unwrap();
        assert!(length > 0, "closed early");
        read.extend_from_slice(&part[..length]);
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn a_connection_is_served_and_ended_by_shutdown() {
    let (homeserver, address) = serving(&[Surface::Client]).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(
        answer.contains("access-control-allow-origin: *"),
        "{answer}"
    );
    // The idle connection does not hold the end up.
    assert!(homeserver.shutdown().await);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_listener_serves_what_it_is_told_and_no_more() {
    let (homeserver, address) = serving(&[Surface::Metrics]).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 404 Not Found"), "{answer}");
    assert!(homeserver.shutdown().await);
}
