//! Servers that federate with each other: over TLS on loopback, with certificates of an authority of
//! their own. Ours, and Synapse (installed by `cargo xtask test`).

use std::{env, net::SocketAddr, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::server::{Launch, Server, ServerOptions, free_port};

/// An authority, and the certificate of this machine's loopback names that all servers show.
#[derive(Debug)]
pub struct Federation {
    folder: TempDir,
}

/// The way of others to a server, which can be closed: then connections end, and new ones too. The
/// server itself, its clients and its own ways to others do not notice.
#[derive(Debug)]
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    _connections: JoinSet<()>,
}

impl Federation {
    /// A new authority.
    pub fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate for self-signed whose issuer has its own name.
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of the tests");
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let leaf = CertificateParams::new(names).expect("valid names");
        let leaf = leaf.signed_by(&key, &authority).expect("a certificate");
        let write = |name: &str, text: String| {
            std::fs::write(folder.path().join(name), text).expect("a file must be written");
        };
        write("authority.pem", authority.pem());
        write("certificate.pem", leaf.pem());
        write("key.pem", key.serialize_pem());
        Self { folder }
    }

    /// One of our servers.
    pub async fn ours(&self) -> Server {
        let (gate, outside, port) = Gate::before_a_server().await;
        let path = |name| self.path(name).display().to_string();
        let configuration = format!(
            "[[listeners]]\n\
             address = \"127.0.0.1:{port}\"\n\
             serves = [\"federation\"]\n\
             tls = {{ certificate = {:?}, key = {:?} }}\n\
             [federation]\n\
             enabled = true\n\
             extra_ca_certificates = [{:?}]\n\
             allowed_private_ranges = [\"127.0.0.0/8\", \"::1/128\"]\n",
            path("certificate.pem"),
            path("key.pem"),
            path("authority.pem"),
        );
        let options = ServerOptions {
            server_name: format!("localhost:{outside}"),
            configuration,
            ..ServerOptions::default()
        };
        Server::start_with(options).await.behind(gate)
    }

    /// A Synapse.
    ///
    /// # Panics
    /// With the command to run, where it is not installed.
    pub async fn synapse(&self) -> Server {
        let Some(program) = env::var_os("HOMESERVER_PYTHON") else {
            panic!("HOMESERVER_PYTHON is not set: run `cargo xtask test`, which installs Synapse");
        };
        let (gate, outside, port) = Gate::before_a_server().await;
        let name = format!("localhost:{outside}");
        let clients = free_port();
        let launch = Launch {
            program: program.into(),
            arguments: ["-m", "synapse.app.homeserver", "-c", "homeserver.yaml"]
                .map(Into::into)
                .into(),
            log: None,
            judged: false,
        };
        // JSON is YAML.
        let text = self.synapse_configuration(&name, port, clients).to_string();
        let file = ("homeserver.yaml", text.as_str());
        Server::launch(launch, name, clients, file)
            .await
            .behind(gate)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn synapse_configuration(&self, name: &str, port: u16, clients: u16) -> Value {
        let mut configuration: Value =
            serde_json::from_str(include_str!("../peers/synapse.json")).expect("it is JSON");
        let mut seed = [0; 32];
        seed[..2].copy_from_slice(&port.to_be_bytes());
        configuration["server_name"] = name.into();
        configuration["signing_key"] =
            format!("ed25519 a_test {}", STANDARD_NO_PAD.encode(seed)).into();
        configuration["listeners"] = json!([
            listener(clients, false, "client"),
            listener(port, true, "federation"),
        ]);
        configuration["tls_certificate_path"] = json!(self.path("certificate.pem"));
        configuration["tls_private_key_path"] = json!(self.path("key.pem"));
        configuration["federation_custom_ca_list"] = json!([self.path("authority.pem")]);
        configuration
    }
}

impl Default for Federation {
    fn default() -> Self {
        Self::new()
    }
}

fn listener(port: u16, tls: bool, resource: &str) -> Value {
    json!({
        "port": port,
        "bind_addresses": ["127.0.0.1"],
        "type": "http",
        "tls": tls,
        "resources": [{ "names": [resource], "compress": false }],
    })
}

impl Gate {
    /// An open gate before a port that a server is about to listen on: the gate, its port, and the
    /// server's.
    async fn before_a_server() -> (Self, u16, u16) {
        let inside = free_port();
        let socket = TcpListener::bind(("127.0.0.1", 0)).await;
        let socket = socket.expect("a free port");
        let outside = socket.local_addr().expect("its address").port();
        let (open, state) = watch::channel(true);
        let to = SocketAddr::from(([127, 0, 0, 1], inside));
        let accepting = async move {
            let mut connections = JoinSet::new();
            while let Ok((outer, _)) = socket.accept().await {
                connections.spawn(forward(outer, to, state.clone()));
                while connections.try_join_next().is_some() {}
            }
        };
        let gate = Self {
            open,
            _connections: JoinSet::from_iter([accepting]),
        };
        (gate, outside, inside)
    }

    /// Ends the connections of others, and lets none in.
    pub(crate) fn close(&self) {
        self.open.send_replace(false);
    }

    /// Lets others in again.
    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }
}

/// Carries one connection until it ends or the gate is closed.
#[expect(
    clippy::disallowed_methods,
    reason = "the guarded client refuses loopback by design"
)]
async fn forward(mut outer: TcpStream, to: SocketAddr, mut open: watch::Receiver<bool>) {
    if !*open.borrow_and_update() {
        return;
    }
    let carry = async {
        if let Ok(mut inner) = TcpStream::connect(to).await {
            // Its end is the end of the connection, however it came.
            let _ended = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
        }
    };
    tokio::select! {
        () = carry => {}
        _closed = open.wait_for(|open| !open) => {}
    }
}
