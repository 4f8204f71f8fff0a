//! Listeners over real sockets: an answer, the configured surfaces, an orderly end.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "these are tests, and clients of the server"
)]

use std::{path::Path, sync::Arc, time::Duration};

use homeserver::{
    Homeserver,
    config::{Config, Surface, TlsFiles},
    storage::engines::memory::MemoryEngine,
};
use reqwest::Version;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const REQUEST: &[u8] = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: localhost\r\n\r\n";

async fn open(change: impl FnOnce(&mut Config)) -> Homeserver {
    let mut config = Config::default();
    config.listeners[0].address = ([127, 0, 0, 1], 0).into();
    change(&mut config);
    Homeserver::configured(config)
        .engine(Arc::new(MemoryEngine::new()))
        .open()
        .await
        .unwrap()
}

async fn serving_with(change: impl FnOnce(&mut Config)) -> (Homeserver, std::net::SocketAddr) {
    let homeserver = open(change).await;
    let listening = homeserver.listen().await.unwrap();
    (homeserver, listening[0].address)
}

async fn serving(surfaces: &[Surface]) -> (Homeserver, std::net::SocketAddr) {
    serving_with(|config| config.listeners[0].serves = surfaces.to_vec()).await
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

/// Sends `request` and reads until the server closes the connection, which it does at the latest
/// when no further request comes.
async fn all_answers(request: &str) -> String {
    let (homeserver, address) =
        serving_with(|config| config.http.idle_timeout = Duration::from_millis(500)).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    // What the server does not read may make the end of the connection a rough one.
    let _ = stream.read_to_end(&mut read).await;
    assert!(homeserver.shutdown().await);
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn an_announced_length_is_refused_unread() {
    for (method, path, status) in [
        ("POST", "/_matrix/client/v3/login", "413"),
        ("POST", "/_synapse/admin/v1/register", "400"),
        ("POST", "/_matrix/client/v3/register", "413"),
        ("GET", "/_matrix/client/versions", "200"),
    ] {
        let answer = all_answers(&format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n"
        ))
        .await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{method} {path}: {answer}");
    }
}

/// Where a request ends must not be a matter of opinion between a proxy and this server.
#[tokio::test]
async fn a_body_of_two_lengths_is_no_second_request() {
    for lengths in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 40",
        "Content-Length: +4",
        "Content-Length: 4, 40",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
    ] {
        let answer = all_answers(&format!(
            "POST /_matrix/client/v3/login HTTP/1.1\r\nHost: localhost\r\n{lengths}\r\n\r\n\
             0\r\n\r\nGET /_matrix/client/versions HTTP/1.1\r\nHost: localhost\r\n\r\n"
        ))
        .await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{lengths}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "{lengths}: {answer}"
        );
    }
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_requests() {
    let get = |path| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let asked = [
        get("/_matrix/client/v3/login"),
        get("/_matrix/client/versions"),
        get("/nowhere"),
    ];
    let answers = all_answers(&asked.concat()).await;
    let at = |text| {
        answers
            .find(text)
            .unwrap_or_else(|| panic!("{text}: {answers}"))
    };
    let places = [at("\"flows\""), at("\"versions\""), at("M_UNRECOGNIZED")];
    assert!(places.is_sorted(), "{answers}");
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let (homeserver, address) =
        serving_with(|config| config.http.idle_timeout = Duration::from_millis(200)).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&REQUEST[..20]).await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(homeserver.shutdown().await);
}

/// Files of a certificate for `localhost` that signs itself.
struct Certificate {
    files: TlsFiles,
    der: CertificateDer<'static>,
}

fn certificate(folder: &Path, name: &str) -> Certificate {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let der = made.cert.der().clone();
    Certificate { files, der }
}

/// A client that trusts one certificate and speaks these protocols.
fn client(trusted: &Certificate, protocols: &[&[u8]]) -> reqwest::Client {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .no_proxy()
        .build()
        .unwrap()
}

async fn version(client: &reqwest::Client, port: u16) -> reqwest::Result<Version> {
    let url = format!("https://localhost:{port}/_matrix/client/versions");
    let answer = client.get(url).send().await?.error_for_status()?;
    Ok(answer.version())
}

#[tokio::test]
async fn tls_speaks_what_the_client_can_and_shows_a_renewed_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let shown = certificate(folder.path(), "shown");
    let files = shown.files.clone();
    let (homeserver, address) =
        serving_with(|config| config.listeners[0].tls = Some(files.clone())).await;
    let port = address.port();
    let both: &[&[u8]] = &[b"h2", b"http/1.1"];
    let client_of = |protocols| client(&shown, protocols);
    assert_eq!(
        version(&client_of(both), port).await.unwrap(),
        Version::HTTP_2
    );
    let old: &[&[u8]] = &[b"http/1.1"];
    assert_eq!(
        version(&client_of(old), port).await.unwrap(),
        Version::HTTP_11
    );
    assert_eq!(
        version(&client_of(&[]), port).await.unwrap(),
        Version::HTTP_11
    );

    let renewed = certificate(folder.path(), "renewed");
    version(&client(&renewed, both), port).await.unwrap_err();
    // Half of a renewal is none: the key does not fit, and the old certificate stays.
    std::fs::copy(&renewed.files.certificate, &files.certificate).unwrap();
    let error = homeserver.reload_certificates().unwrap_err().to_string();
    assert!(error.starts_with("listeners[0].tls.key: "), "{error}");
    version(&client(&shown, both), port).await.unwrap();
    std::fs::copy(&renewed.files.key, &files.key).unwrap();
    assert_eq!(homeserver.reload_certificates().unwrap(), 1);
    version(&client(&renewed, both), port).await.unwrap();
    version(&client(&shown, both), port).await.unwrap_err();
    assert!(homeserver.shutdown().await);
}

#[tokio::test]
async fn a_certificate_of_no_use_keeps_no_other_from_being_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let [broken, good] = ["broken", "good"].map(|name| certificate(folder.path(), name));
    let homeserver = open(|config| {
        let mut second = config.listeners[0].clone();
        second.tls = Some(good.files.clone());
        config.listeners[0].tls = Some(broken.files.clone());
        config.listeners.push(second);
    })
    .await;
    let port = homeserver.listen().await.unwrap()[1].address.port();
    let renewed = certificate(folder.path(), "renewed");
    std::fs::write(&broken.files.certificate, "nothing").unwrap();
    std::fs::copy(&renewed.files.certificate, &good.files.certificate).unwrap();
    std::fs::copy(&renewed.files.key, &good.files.key).unwrap();
    let error = homeserver.reload_certificates().unwrap_err().to_string();
    assert!(
        error.starts_with("listeners[0].tls.certificate: "),
        "{error}"
    );
    version(&client(&renewed, &[b"h2"]), port).await.unwrap();
    assert!(homeserver.shutdown().await);
}

#[tokio::test]
async fn files_that_are_of_no_use_for_tls_are_named_with_their_key() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| certificate(folder.path(), name));
    let none = folder.path().join("none.pem");
    let cases = [
        (&none, &one.files.key, "certificate"),
        (&one.files.key, &one.files.key, "certificate"),
        (&one.files.certificate, &none, "key"),
        (&one.files.certificate, &one.files.certificate, "key"),
        (&one.files.certificate, &other.files.key, "key"),
    ];
    for (certificate, key, named) in cases {
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
        };
        let homeserver = open(|config| {
            let plain = config.listeners[0].clone();
            config.listeners.insert(0, plain);
            config.listeners[1].tls = Some(files);
        })
        .await;
        let error = homeserver.listen().await.unwrap_err().to_string();
        let wrong = if named == "key" { key } else { certificate };
        let expected = format!("listeners[1].tls.{named}: cannot use {}", wrong.display());
        assert!(error.starts_with(&expected), "{error}");
        assert!(homeserver.shutdown().await);
    }
}
