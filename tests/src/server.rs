//! The homeserver as a process of its own: started, stopped, killed and started again.

use std::{
    ffi::OsString,
    fmt::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{Client, federation::Gate};

/// A start takes at most this long, also in an unoptimised build on a busy machine.
const START_PATIENCE: Duration = Duration::from_mins(1);
/// How often a server that is starting is asked whether it answers.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// How a server is to be started.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The domain of its users.
    pub server_name: String,
    /// `fjall`, `sled` or `memory`.
    pub engine: &'static str,
    /// The program; by default what `cargo xtask test` built.
    pub program: PathBuf,
    /// Whether rate limits apply.
    pub rate_limits: bool,
    /// The lines of the configuration's `[registration]`, but for the shared secret.
    pub registration: &'static str,
    /// More lines for the configuration file, whole sections.
    pub configuration: String,
    /// What is logged, as `RUST_LOG` says it; the server's default when unset.
    pub log: Option<&'static str>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            server_name: "localhost".to_owned(),
            engine: "fjall",
            program: program(),
            rate_limits: false,
            registration: "mode = \"open\"\n",
            configuration: String::new(),
            log: None,
        }
    }
}

/// The command of a server's program.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// Filters of `RUST_LOG`.
    pub(crate) log: Option<&'static str>,
    /// Whether it is the one under test, whose answers are judged and recorded.
    pub(crate) judged: bool,
}

/// A running server with its own folder. Dropping it kills the process.
#[derive(Debug)]
pub struct Server {
    process: Child,
    folder: TempDir,
    launch: Launch,
    name: String,
    base: String,
    /// The way of other servers to this one, where it federates.
    gate: Option<Gate>,
}

impl Server {
    /// Starts a server with the defaults on a free port of the loopback interface.
    pub async fn start() -> Self {
        Self::start_with(ServerOptions::default()).await
    }

    /// Starts a server and waits until it answers.
    pub async fn start_with(options: ServerOptions) -> Self {
        let port = free_port();
        let launch = Launch {
            program: options.program.clone(),
            arguments: ["--config".into(), "conduit.toml".into()].into(),
            log: options.log,
            judged: true,
        };
        let text = configuration(&options, port);
        Self::launch(launch, options.server_name, port, ("conduit.toml", &text)).await
    }

    /// Starts any homeserver whose configuration is one file, and whose clients are served on `port`.
    pub(crate) async fn launch(
        launch: Launch,
        name: String,
        port: u16,
        (file, text): (&str, &str),
    ) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        std::fs::write(folder.path().join(file), text).expect("the configuration must be written");
        let process = spawn(&launch, folder.path());
        let mut server = Self {
            process,
            folder,
            launch,
            name,
            base: format!("http://127.0.0.1:{port}"),
            gate: None,
        };
        server.answers().await;
        server
    }

    pub(crate) fn behind(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Ends the connections of other servers and lets none in. Its own ways to others stay.
    pub fn close_to_others(&self) {
        self.gate.as_ref().expect("it federates").close();
    }

    /// Lets other servers in again.
    pub fn open_to_others(&self) {
        self.gate.as_ref().expect("it federates").open();
    }

    /// Whether it is the program under test.
    pub fn is_ours(&self) -> bool {
        self.launch.judged
    }

    /// The domain of its users.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL of the server, without a slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The folder with its configuration and data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.id().expect("the server runs")
    }

    /// Somebody who is not logged in.
    pub fn client(&self) -> Client {
        let client = Client::anonymous(&self.base);
        if self.launch.judged {
            client
        } else {
            client.unjudged()
        }
    }

    /// Ends the process at once (SIGKILL), as a crash would.
    pub async fn kill(&mut self) {
        self.process.kill().await.expect("the server must die");
    }

    /// Asks the process to stop (SIGTERM) and waits for it; gives whether it ended well.
    pub async fn stop(&mut self) -> bool {
        let pid = self.pid().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(asked.expect("kill must start").success());
        let ended = tokio::time::timeout(START_PATIENCE, self.process.wait()).await;
        ended
            .expect("the server did not stop")
            .expect("its status")
            .success()
    }

    /// Starts the program again on the same folder and port.
    pub async fn restart(&mut self) {
        self.process = spawn(&self.launch, self.folder.path());
        self.answers().await;
    }

    async fn answers(&mut self) {
        let client = self.client();
        let asking = async {
            loop {
                if let Some(status) = self.process.try_wait().expect("the server's state") {
                    panic!("the server ended ({status}):\n{}", self.log());
                }
                let asked = client.send(
                    reqwest::Method::GET,
                    "/_matrix/client/versions",
                    None,
                    Vec::new(),
                );
                if asked.await.is_ok_and(|answer| answer.status == 200) {
                    return;
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        };
        let answered = tokio::time::timeout(START_PATIENCE, asking).await;
        assert!(
            answered.is_ok(),
            "the server did not answer:\n{}",
            self.log()
        );
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

fn spawn(launch: &Launch, folder: &Path) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"));
    let log = log.expect("a log file");
    Command::new(&launch.program)
        .args(&launch.arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .envs(launch.log.map(|filter| ("RUST_LOG", filter)))
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "{} does not start ({error}); `cargo xtask test` installs or builds it",
                launch.program.display()
            )
        })
}

fn configuration(options: &ServerOptions, port: u16) -> String {
    let mut text = String::new();
    let written = write!(
        text,
        "server_name = \"{}\"\n\
         [[listeners]]\n\
         address = \"127.0.0.1:{port}\"\n\
         serves = [\"client\"]\n\
         [storage]\n\
         engine = \"{}\"\n\
         path = \"data\"\n\
         [registration]\n\
         {}\
         shared_secret = \"shared secret of the tests\"\n\
         [rate_limits]\n\
         enabled = {}\n\
         {}",
        options.server_name,
        options.engine,
        options.registration,
        options.rate_limits,
        options.configuration,
    );
    written.expect("text can be written");
    text
}

/// The program under test: what `HOMESERVER_BINARY` names, else what lies beside this test.
fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("HOMESERVER_BINARY") {
        return program.into();
    }
    let test = std::env::current_exe().expect("the path of this test");
    let folder = test
        .ancestors()
        .nth(2)
        .expect("tests lie under the build folder");
    folder.join("homeserver")
}

/// A port nobody listens on now. Another program may take it before the server does, in which case
/// the server says so and the test fails.
pub(crate) fn free_port() -> u16 {
    let socket = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    socket.local_addr().expect("its address").port()
}
