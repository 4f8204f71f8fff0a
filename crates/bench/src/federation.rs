//! Federation: what a server takes from another, and how long a join takes.
//!
//! The other server is this tool: it has a key and an HTTPS listener, makes up rooms, signs
//! everything before the measurement begins, and pushes. Its transactions go to a listener without
//! TLS, as from a proxy on the same machine.

mod delivery;
mod floor;
mod outage;
mod pair;
mod peer;
mod room;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use homeserver_events::Pdu;
use ruma::OwnedEventId;
use serde_json::json;

use self::{
    peer::{Certificates, Peer, milliseconds_since},
    room::Generated,
};
use crate::{
    Error, FederationArguments, Part,
    client::Client,
    load::percentile,
    process::{Prepared, Server},
};

/// Events of one transaction: as many as the specification allows.
const IN_ONE: usize = 50;

/// Transactions on their way at once where there are many rooms. Of one room there is one: a server
/// sends one at a time.
const ROOMS_AT_ONCE: usize = 8;

/// How long everything that was pushed may take to be there.
const PATIENCE: Duration = Duration::from_mins(2);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// A transaction, ready to be sent.
struct Transaction {
    target: String,
    authorization: String,
    body: String,
}

/// The server under test, with the tool as its peer.
struct Scene {
    server: Server,
    client: Client,
    peer: Arc<Peer>,
    /// The name of the server under test.
    name: String,
    http: reqwest::Client,
    /// Where transactions go.
    base: String,
}

impl Scene {
    async fn new(
        arguments: &FederationArguments,
        engine: &str,
        folder: &Path,
    ) -> Result<Self, Error> {
        let certificates = Certificates::new().map_err(|error| Error::Server(error.to_string()))?;
        certificates.write(folder)?;
        let peer = Peer::start(&certificates).await?;
        let prepared = Prepared::federating(&arguments.program, engine, folder)?;
        let (name, base) = (prepared.name(), prepared.federation());
        let server = prepared.start().await?;
        let client = server.client()?.register("alice").await?;
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true);
        Ok(Self {
            client,
            peer,
            name,
            http: crate::client::without_certificates(http)?,
            base,
            server,
        })
    }

    /// Joins a room of the peer; gives the event.
    async fn join(&self, room: &Generated) -> Result<OwnedEventId, Error> {
        let path = format!(
            "/_matrix/client/v3/join/{}?via={}",
            room.id,
            self.peer.name.replace(':', "%3A")
        );
        self.client.post(&path, &json!({})).await?;
        let member = format!(
            "/_matrix/client/v3/rooms/{}/state/m.room.member/@alice:{}?format=event",
            room.id, self.name
        );
        let event = self.client.get(&member).await?;
        let id = event["event_id"].as_str().unwrap_or_default();
        id.try_into()
            .map_err(|_| Error::Server(format!("no event id: {event}")))
    }

    fn transactions(&self, events: &[Pdu]) -> Result<Vec<Transaction>, Error> {
        let transaction = |some: &[Pdu]| {
            let first = some.first().map_or("", |event| event.event_id().as_str());
            let id = first.trim_start_matches('$');
            let target = format!("/_matrix/federation/v1/send/{id}");
            let pdus: Vec<_> = some.iter().map(Pdu::json_str).collect();
            let body = format!(
                "{{\"edus\":[],\"origin\":\"{}\",\"origin_server_ts\":1,\"pdus\":[{}]}}",
                self.peer.name,
                pdus.join(",")
            );
            let authorization = self
                .peer
                .authorization("PUT", &target, &self.name, Some(&body))?;
            Ok(Transaction {
                target,
                authorization,
                body,
            })
        };
        events.chunks(IN_ONE).map(transaction).collect()
    }

    /// Sends transactions one after the other; gives how long each took.
    async fn push(&self, transactions: &[Transaction]) -> Result<Vec<Duration>, Error> {
        let mut times = Vec::with_capacity(transactions.len());
        for transaction in transactions {
            let started = Instant::now();
            let request = self
                .http
                .put(format!("{}{}", self.base, transaction.target));
            let request = request
                .header("authorization", &transaction.authorization)
                .header("content-type", "application/json")
                .body(transaction.body.clone());
            let response = request.send().await?;
            let status = response.status().as_u16();
            let body = response.text().await?;
            if status != 200 || body.contains("\"error\"") {
                let request = transaction.target.clone();
                return Err(Error::Answer {
                    request,
                    status,
                    body,
                });
            }
            times.push(started.elapsed());
        }
        Ok(times)
    }

    /// Waits until the event can be read by a client.
    async fn see(&self, room: &Generated, event: &Pdu) -> Result<(), Error> {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/event/{}",
            room.id,
            event.event_id()
        );
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if self.client.get(&path).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(Error::Server(format!(
            "{} did not arrive",
            event.event_id()
        )))
    }
}

/// Why a figure of Synapse is not there.
const NO_SYNAPSE: &str = "not measured, since no Synapse is prepared (`cargo xtask test` installs \
                          it; --synapse-python names a Python that has it)";

/// Measures everything that was asked for on one engine.
pub(crate) async fn measure(
    arguments: &FederationArguments,
    engine: &str,
    folder: &Path,
) -> Result<(), Error> {
    let wants = |part| arguments.parts.contains(&part);
    let place = |part: &str| folder.join(format!("{engine}-{part}"));
    if wants(Part::Push) {
        let scene = Scene::new(arguments, engine, &place("push")).await?;
        let floor = floor::of_a_pdu(&scene.peer)?;
        println!(
            "  floor: {:.1} µs of CPU a PDU (hashes and one signature)",
            floor * 1e6
        );
        taken(&scene, ("1 room", 1), arguments.events, floor).await?;
        taken(&scene, ("100 rooms", 100), arguments.events, floor).await?;
    }
    if wants(Part::Join) {
        for members in &arguments.members {
            for (name, omits) in [("part", true), ("whole", false)] {
                let place = place(&format!("join-{members}-{name}"));
                let scene = Scene::new(arguments, engine, &place).await?;
                scene.peer.omits.store(omits, Ordering::Relaxed);
                joined(&scene, *members, name).await?;
            }
        }
    }
    let synapse = synapse(arguments);
    let (program, synapse) = (&*arguments.program, synapse.as_deref());
    if wants(Part::Delivery) {
        let (count, folder) = (arguments.deliveries, place("delivery"));
        delivery::measure(program, engine, synapse, count, &folder).await?;
    }
    if wants(Part::Outage) {
        let (time, folder) = (Duration::from_secs(arguments.outage), place("outage"));
        outage::measure(program, engine, synapse, time, &folder).await?;
    }
    Ok(())
}

/// A Python that has Synapse, if there is one.
fn synapse(arguments: &FederationArguments) -> Option<PathBuf> {
    let named = || std::env::var_os("HOMESERVER_PYTHON").map(PathBuf::from);
    let python = arguments.synapse_python.clone().or_else(named)?;
    let asked = Command::new(&python).args(["-c", SYNAPSE_VERSION]).output();
    let asked = asked.ok().filter(|asked| asked.status.success())?;
    println!(
        "  Synapse {}",
        String::from_utf8_lossy(&asked.stdout).trim()
    );
    Some(python)
}

/// Prints the version.
const SYNAPSE_VERSION: &str = "import importlib.metadata as m; print(m.version('matrix-synapse'))";

/// How many events a second are taken, and shown to clients.
async fn taken(
    scene: &Scene,
    (name, rooms): (&str, usize),
    events: usize,
    floor: f64,
) -> Result<(), Error> {
    let mut lines = Vec::new();
    let peer = &scene.peer;
    for _ in 0..rooms {
        let room = Arc::new(Generated::new(&peer.name, &peer.key, 1)?);
        peer.offer(Arc::clone(&room)).await;
        let join = scene.join(&room).await?;
        let messages = room.messages(&peer.name, &peer.key, &join, events / rooms)?;
        let transactions = scene.transactions(&messages)?;
        lines.push((room, messages, transactions));
    }
    let (cpu, started) = (scene.server.cpu()?, Instant::now());
    let mut times = Vec::new();
    for some in lines.chunks(ROOMS_AT_ONCE) {
        let pushes = some
            .iter()
            .map(|(_, _, transactions)| scene.push(transactions));
        for pushed in futures_util::future::join_all(pushes).await {
            times.extend(pushed?);
        }
    }
    let pushed = started.elapsed().as_secs_f64();
    for (room, messages, _) in &lines {
        if let Some(last) = messages.last() {
            scene.see(room, last).await?;
        }
    }
    let all = started.elapsed().as_secs_f64();
    let cpu = scene.server.cpu()?.saturating_sub(cpu).as_secs_f64();
    let count = (events / rooms * rooms) as f64;
    println!(
        "  {name:<12}{:>8.0} PDUs/s until they are seen, {:>8.0}/s until they are answered",
        count / all,
        count / pushed
    );
    println!(
        "  {:<12}{:>8.1} µs of CPU a PDU ({:.1} times the floor), transaction p50 {:.2} ms, p99 {:.2} ms",
        "",
        cpu * 1e6 / count,
        cpu / count / floor,
        percentile(&mut times, 50).as_secs_f64() * 1e3,
        percentile(&mut times, 99).as_secs_f64() * 1e3,
    );
    Ok(())
}

/// How long a join of a large room takes: until it is answered, and until all members are there. The
/// peer leaves out the members at first ("part"), or does not.
async fn joined(scene: &Scene, members: usize, name: &str) -> Result<(), Error> {
    let peer = &scene.peer;
    let room = Arc::new(Generated::new(&peer.name, &peer.key, members)?);
    peer.offer(Arc::clone(&room)).await;
    let (idle, cpu) = (scene.server.resident()?, scene.server.cpu()?);
    let started = Instant::now();
    scene.join(&room).await?;
    let answered = milliseconds_since(started);
    let joining = scene.server.peak_resident()?;
    let path = format!("/_matrix/client/v3/rooms/{}/joined_members", room.id);
    loop {
        let answer = scene.client.get(&path).await?;
        let there = answer["joined"].as_object().map_or(0, serde_json::Map::len);
        if there == members + 1 {
            break;
        }
        if started.elapsed() > PATIENCE {
            let text = format!("{there} of {members} members are there");
            return Err(Error::Server(text));
        }
        tokio::time::sleep(PAUSE).await;
    }
    let whole = milliseconds_since(started);
    let cpu = scene.server.cpu()?.saturating_sub(cpu).as_secs_f64();
    println!(
        "  join of {members:>7} members, {name:<5}: answered after {answered:.0} ms, whole after {whole:.0} ms, {cpu:.1} s of CPU, memory {idle:.0} → {joining:.0} MiB at most, {:.0} with its members read",
        scene.server.peak_resident()?,
    );
    Ok(())
}
