//! Real clients, installed by `cargo xtask test`.

use std::{env, path::PathBuf, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

/// A real client's whole conversation takes at most this long.
const PATIENCE: Duration = Duration::from_mins(5);

/// The programs that run real clients.
#[derive(Debug)]
pub struct Peers {
    python: PathBuf,
    node: PathBuf,
    scripts: PathBuf,
}

impl Peers {
    /// What `cargo xtask test` installed.
    ///
    /// # Panics
    /// With the command to run, where it has not.
    pub fn installed() -> Self {
        let program = |name: &str| match env::var_os(name) {
            Some(path) => PathBuf::from(path),
            None => panic!("{name} is not set: run `cargo xtask test`, which installs the clients"),
        };
        Self {
            python: program("HOMESERVER_PYTHON"),
            node: program("HOMESERVER_NODE"),
            scripts: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers"),
        }
    }

    /// A script on matrix-nio, by its name under `tests/peers/nio`.
    pub fn nio(&self, script: &str, base: &str) -> Command {
        let mut command = Command::new(&self.python);
        command
            .arg("-u")
            .arg(self.scripts.join("nio").join(script))
            .arg(base);
        command
    }

    /// A script on matrix-js-sdk, by its name under `tests/peers/js-sdk`.
    pub fn js_sdk(&self, script: &str, base: &str) -> Command {
        let mut command = Command::new(&self.node);
        command
            .arg(self.scripts.join("js-sdk").join(script))
            .arg(base);
        command
    }
}

/// Runs a client to its end; `on_line` hears every line it prints. It must say `ok` and end well.
pub async fn run_peer(mut command: Command, mut on_line: impl AsyncFnMut(&str)) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut process = command
        .kill_on_drop(true)
        .spawn()
        .expect("the client must start");
    let output = process.stdout.take().expect("its output is piped");
    let talk = async {
        let mut lines = BufReader::new(output).lines();
        let mut said_ok = false;
        while let Some(line) = lines.next_line().await.expect("its output is text") {
            said_ok |= line == "ok";
            on_line(&line).await;
        }
        let status = process.wait().await.expect("its status");
        assert!(
            status.success() && said_ok,
            "the client ended with {status}"
        );
    };
    tokio::time::timeout(PATIENCE, talk)
        .await
        .expect("the client took too long");
}
