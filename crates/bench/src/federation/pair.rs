//! Two servers that speak TLS with each other, with a user on each of them and a room of both.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{PATIENCE, PAUSE, peer::Certificates};
use crate::{
    Error,
    client::Client,
    load::next_batch,
    process::{Prepared, Server},
};

/// Which program a server runs.
pub(super) enum Kind<'a> {
    /// Ours, with its engine.
    Ours(&'a Path, &'a str),
    /// Synapse, by a Python that has it.
    Synapse(&'a Path),
}

impl Kind<'_> {
    fn prepare(&self, folder: &Path) -> Result<Prepared, Error> {
        match self {
            Self::Ours(program, engine) => Prepared::over_tls(program, engine, folder),
            Self::Synapse(python) => Prepared::synapse(python, folder),
        }
    }
}

/// Where servers of one authority have their folders.
pub(super) struct Place {
    folder: PathBuf,
    certificates: Certificates,
}

impl Place {
    pub(super) fn new(folder: &Path) -> Result<Self, Error> {
        let certificates = Certificates::new().map_err(|error| Error::Server(error.to_string()))?;
        Ok(Self {
            folder: folder.into(),
            certificates,
        })
    }

    async fn start(&self, kind: &Kind<'_>, name: &str) -> Result<(Server, String), Error> {
        let folder = self.folder.join(name);
        self.certificates.write(&folder)?;
        let prepared = kind.prepare(&folder)?;
        let name = prepared.name();
        Ok((prepared.start().await?, name))
    }
}

/// A server and its user.
pub(super) struct Side {
    pub(super) server: Server,
    pub(super) user: Client,
}

/// Two servers with a room that a user of each is in.
pub(super) struct Pair {
    pub(super) name: String,
    pub(super) near: Side,
    pub(super) far: Side,
    pub(super) room: String,
}

impl Pair {
    /// Starts both; the room is made on the near one.
    pub(super) async fn start(
        place: &Place,
        name: &str,
        near: &Kind<'_>,
        far: &Kind<'_>,
    ) -> Result<Self, Error> {
        let (near, at) = place.start(near, &format!("{name}-near")).await?;
        let (far, far_name) = place.start(far, &format!("{name}-far")).await?;
        let alice = near.client()?.register("alice").await?;
        let bob = far.client()?.register("bob").await?;
        let public = json!({ "preset": "public_chat" });
        let room = alice.create_room(&public).await?;
        let via = at.replace(':', "%3A");
        let path = format!("/_matrix/client/v3/join/{room}?server_name={via}&via={via}");
        bob.post(&path, &json!({})).await?;
        let pair = Self {
            name: name.to_owned(),
            near: Side {
                server: near,
                user: alice,
            },
            far: Side {
                server: far,
                user: bob,
            },
            room,
        };
        let member = format!(
            "/_matrix/client/v3/rooms/{}/state/m.room.member/@bob:{far_name}",
            pair.room
        );
        pair.wait("the join", async || {
            Ok(pair.near.user.get(&member).await.is_ok())
        })
        .await?;
        Ok(pair)
    }

    /// Asks until something is so.
    pub(super) async fn wait(
        &self,
        what: &str,
        mut asked: impl AsyncFnMut() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if asked().await? {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(Error::Server(format!("{}: {what} never came", self.name)))
    }

    /// From the start of a send on the near server to the end of the waiting /sync on the far one
    /// that holds the event; so often, one after the other.
    pub(super) async fn deliver(&self, part: &str, count: usize) -> Result<Vec<Duration>, Error> {
        let (alice, bob) = (&self.near.user, &self.far.user);
        let mut since = next_batch(&bob.sync("timeout=0").await?);
        let mut times = Vec::with_capacity(count);
        for number in 0..count {
            let name = format!("{part}-{number}");
            let send = async {
                // The /sync is under way before the send starts.
                tokio::time::sleep(PAUSE).await;
                let started = Instant::now();
                alice.say(&self.room, &name).await.map(|_| started)
            };
            let said = format!("\"message {name}\"");
            let hear = self.hear(&mut since, &said);
            let (started, heard) = tokio::try_join!(send, hear)?;
            times.push(heard - started);
        }
        Ok(times)
    }

    /// When a /sync of the far user held some text.
    async fn hear(&self, since: &mut String, text: &str) -> Result<Instant, Error> {
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            let query = format!("timeout=30000&since={since}");
            let answer = self.far.user.sync(&query).await?;
            let heard = Instant::now();
            *since = next_batch(&answer);
            if answer.to_string().contains(text) {
                return Ok(heard);
            }
        }
        Err(Error::Server(format!("{}: {text} never came", self.name)))
    }
}
