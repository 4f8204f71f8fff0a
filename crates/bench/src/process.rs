//! The server under test as a process: what it uses of CPU and memory is read from `/proc`.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{Error, client::Client};

/// A start takes at most this long.
const START_PATIENCE: Duration = Duration::from_mins(2);
/// Clock ticks a second in `/proc/PID/stat`: `USER_HZ`, which Linux fixes at 100.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running server. Dropping it kills the process.
pub(crate) struct Server {
    process: Child,
    launch: Launch,
    folder: PathBuf,
    base: String,
}

/// The command that starts a server, in its folder.
struct Launch {
    program: PathBuf,
    arguments: &'static [&'static str],
}

/// How ours is started.
const OURS: &[&str] = &["--config", "conduit.toml"];

/// How Synapse is started, by a Python that has it.
const SYNAPSE: &[&str] = &["-m", "synapse.app.homeserver", "-c", "homeserver.yaml"];

impl Drop for Server {
    fn drop(&mut self) {
        // Already ended is fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A server's folder with its configuration, before its first start.
pub(crate) struct Prepared {
    launch: Launch,
    folder: PathBuf,
    base: String,
    /// The port of the listener for other servers, if there is one.
    federation: Option<u16>,
}

impl Prepared {
    /// Writes a configuration for one engine into a folder of its own.
    pub(crate) fn new(program: &Path, engine: &str, folder: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(folder)?;
        let port = free_port()?;
        let configuration = format!(
            "server_name = \"localhost\"\n[[listeners]]\naddress = \"127.0.0.1:{port}\"\n\
             serves = [\"client\"]\n[storage]\nengine = \"{engine}\"\npath = \"data\"\n\
             [registration]\nmode = \"open\"\n[rate_limits]\nenabled = false\n"
        );
        std::fs::write(folder.join("conduit.toml"), configuration)?;
        Ok(Self {
            launch: Launch {
                program: program.into(),
                arguments: OURS,
            },
            folder: folder.into(),
            base: format!("http://127.0.0.1:{port}"),
            federation: None,
        })
    }

    /// As [`Self::new`], with a listener for other servers, which trusts the authority whose
    /// certificate is in the folder.
    pub(crate) fn federating(program: &Path, engine: &str, folder: &Path) -> Result<Self, Error> {
        Self::listening(program, engine, folder, "")
    }

    /// As [`Self::federating`], but others come over TLS; the certificate is in the folder too.
    pub(crate) fn over_tls(program: &Path, engine: &str, folder: &Path) -> Result<Self, Error> {
        let tls = "tls = { certificate = \"certificate.pem\", key = \"key.pem\" }\n";
        Self::listening(program, engine, folder, tls)
    }

    fn listening(program: &Path, engine: &str, folder: &Path, tls: &str) -> Result<Self, Error> {
        let mut prepared = Self::new(program, engine, folder)?;
        let port = free_port()?;
        let path = folder.join("conduit.toml");
        let alone = std::fs::read_to_string(&path)?;
        let alone = alone.replacen("\"localhost\"", &format!("\"localhost:{port}\""), 1);
        let configuration = format!(
            "{alone}[federation]\nextra_ca_certificates = [\"authority.pem\"]\n\
             allowed_private_ranges = [\"127.0.0.0/8\", \"::1/128\"]\n[[listeners]]\n\
             address = \"127.0.0.1:{port}\"\nserves = [\"federation\"]\n{tls}"
        );
        std::fs::write(path, configuration)?;
        prepared.federation = Some(port);
        Ok(prepared)
    }

    /// A Synapse over TLS, run by a Python that has it. Its certificate, and that of the authority
    /// which it trusts, are in the folder.
    pub(crate) fn synapse(python: &Path, folder: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(folder)?;
        let (clients, port) = (free_port()?, free_port()?);
        let text = synapse_configuration(port, clients)?;
        // JSON is YAML.
        std::fs::write(folder.join("homeserver.yaml"), text)?;
        Ok(Self {
            launch: Launch {
                program: python.into(),
                arguments: SYNAPSE,
            },
            folder: folder.into(),
            base: format!("http://127.0.0.1:{clients}"),
            federation: Some(port),
        })
    }

    /// The name of the server.
    pub(crate) fn name(&self) -> String {
        match self.federation {
            Some(port) => format!("localhost:{port}"),
            None => "localhost".to_owned(),
        }
    }

    /// The URL for other servers.
    pub(crate) fn federation(&self) -> String {
        format!("http://127.0.0.1:{}", self.federation.unwrap_or_default())
    }

    /// The folder with the database.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Starts the server and waits until it answers.
    pub(crate) async fn start(self) -> Result<Server, Error> {
        let mut server = Server {
            process: spawn(&self.launch, &self.folder)?,
            launch: self.launch,
            folder: self.folder,
            base: self.base,
        };
        server.answers().await?;
        Ok(server)
    }
}

impl Server {
    /// Somebody who is not logged in.
    pub(crate) fn client(&self) -> Result<Client, Error> {
        Client::new(&self.base)
    }

    /// Starts the stopped or killed server again; gives the time until it answered.
    pub(crate) async fn restart(&mut self) -> Result<Duration, Error> {
        let started = Instant::now();
        self.process = spawn(&self.launch, &self.folder)?;
        self.answers().await?;
        Ok(started.elapsed())
    }

    /// Asks the server to stop and waits for it.
    pub(crate) async fn stop(&mut self) -> Result<(), Error> {
        Command::new("kill")
            .args(["-TERM", &self.process.id().to_string()])
            .status()?;
        let asked = Instant::now();
        while asked.elapsed() < START_PATIENCE {
            if self.process.try_wait()?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Err(Error::Server("the server did not stop".into()))
    }

    /// Ends the server at once.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// CPU time used since the start of the process, all threads together.
    pub(crate) fn cpu(&self) -> Result<Duration, Error> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name in parentheses may hold spaces; utime and stime are fields 14 and 15.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let fields = after_name.split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
    }

    /// Resident memory, in MiB.
    pub(crate) fn resident(&self) -> Result<f64, Error> {
        self.mebibytes("VmRSS:")
    }

    /// The most that resident memory has been, in MiB.
    pub(crate) fn peak_resident(&self) -> Result<f64, Error> {
        self.mebibytes("VmHWM:")
    }

    fn mebibytes(&self, name: &str) -> Result<f64, Error> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kibibytes
            .map(|k| k / 1024.0)
            .ok_or_else(|| Error::Server(format!("no {name}")))
    }

    /// The folder with the database.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    async fn answers(&mut self) -> Result<(), Error> {
        let client = self.client()?;
        let started = Instant::now();
        while started.elapsed() < START_PATIENCE {
            if let Some(status) = self.process.try_wait()? {
                let log = std::fs::read_to_string(self.folder.join("log"))?;
                return Err(Error::Server(format!(
                    "the server ended ({status}):\n{log}"
                )));
            }
            if client.get("/_matrix/client/versions").await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Err(Error::Server("the server did not answer".into()))
    }
}

fn spawn(launch: &Launch, folder: &Path) -> Result<Child, Error> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))?;
    let mut command = Command::new(&launch.program);
    command
        .args(launch.arguments)
        .current_dir(folder)
        .stdin(Stdio::null());
    let spawned = command.stdout(log.try_clone()?).stderr(log).spawn();
    spawned.map_err(|error| Error::Server(format!("{}: {error}", launch.program.display())))
}

/// A port nobody listens on now.
fn free_port() -> Result<u16, Error> {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    Ok(socket.local_addr()?.port())
}

/// The Synapse of the tests, with these ports.
fn synapse_configuration(port: u16, clients: u16) -> Result<String, Error> {
    let unusable = |error: serde_json::Error| Error::Server(error.to_string());
    let text = include_str!("../../../tests/peers/synapse.json");
    let mut configuration: Value = serde_json::from_str(text).map_err(unusable)?;
    let listener = |port: u16, tls: bool, resource: &str| {
        json!({
            "port": port,
            "bind_addresses": ["127.0.0.1"],
            "type": "http",
            "tls": tls,
            "resources": [{ "names": [resource], "compress": false }],
        })
    };
    configuration["server_name"] = format!("localhost:{port}").into();
    // A seed of 32 bytes, another one for each server.
    configuration["signing_key"] = format!("ed25519 a_bench {port:0<43}").into();
    configuration["listeners"] = json!([
        listener(clients, false, "client"),
        listener(port, true, "federation"),
    ]);
    configuration["tls_certificate_path"] = "certificate.pem".into();
    configuration["tls_private_key_path"] = "key.pem".into();
    configuration["federation_custom_ca_list"] = json!(["authority.pem"]);
    Ok(configuration.to_string())
}
