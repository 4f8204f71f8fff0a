//! Deletion, and the sweep of what was left behind.

use std::{collections::BTreeSet, time::Duration};

use homeserver_storage::{Batch, BlobId, Direction, ScanRange};
use ruma::{ServerName, UserId};

use crate::{
    Failure, Media, MediaId,
    remote::OF_OTHERS,
    tables::{BLOBS_IN_USE, MEDIA, MediaRow, MediaState, PENDING, REMOTE, THUMBNAILS, UPLOADS},
    thumbnails::MAX_THUMBNAILS,
    upload::{MAX_ATTEMPTS, put_usage},
};

/// Time between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_hours(1);

/// Rows or blobs looked at in one step of a sweep.
const STEP: usize = 500;

/// Blobs without a row that are remembered from one sweep to the next.
const MAX_ORPHANS: usize = 10_000;

impl Media {
    /// Deletes a medium with its thumbnails; `false` if there is no such medium.
    pub async fn delete(&self, server: &ServerName, id: &MediaId) -> Result<bool, Failure> {
        self.delete_if(server, id, |_| true).await
    }

    async fn delete_if(
        &self,
        server: &ServerName,
        id: &MediaId,
        condition: fn(&MediaState) -> bool,
    ) -> Result<bool, Failure> {
        let key = (server.as_str(), id.as_str());
        for _ in 0..MAX_ATTEMPTS {
            let Some(row) = self.parts.store.get(&MEDIA, &key).await? else {
                return Ok(false);
            };
            if !condition(&row.state) {
                return Ok(false);
            }
            let mut batch = Batch::new();
            let mut blobs = Vec::new();
            batch.assert_value(&MEDIA, &key, &row);
            batch.delete(&MEDIA, &key);
            self.give_back(&mut batch, server, id, &row).await?;
            if let MediaState::Stored(file) = &row.state {
                blobs.push(BlobId(file.blob));
            }
            let range = ScanRange::prefix(&key);
            let scan = Direction::Forward;
            // Keeping one asserts the medium's row, so there are never more than this.
            let thumbnails = self
                .parts
                .store
                .scan(&THUMBNAILS, range, scan, MAX_THUMBNAILS + 1);
            for (key, thumbnail) in thumbnails.await? {
                batch.delete(&THUMBNAILS, &key);
                blobs.extend(thumbnail.blob.map(|(blob, _)| BlobId(blob)));
            }
            for blob in &blobs {
                batch.delete(&BLOBS_IN_USE, blob);
            }
            if self.committed(batch).await? {
                for blob in blobs {
                    self.delete_blob(blob).await;
                }
                return Ok(true);
            }
        }
        Err(Failure::Busy)
    }

    /// A user's uploads, oldest first, those after `after` (time of upload and id); at most
    /// `limit`.
    pub async fn uploads_of(
        &self,
        uploader: &UserId,
        after: Option<(u64, &MediaId)>,
        limit: usize,
    ) -> Result<Vec<(u64, MediaId)>, Failure> {
        let mut range = ScanRange::prefix(&uploader.as_str());
        if let Some((at, id)) = after {
            range = range.after(&(uploader.as_str(), at, id.as_str()));
        }
        let rows = self
            .parts
            .store
            .scan(&UPLOADS, range, Direction::Forward, limit)
            .await?;
        let ids = rows
            .into_iter()
            .map(|((_, at, id), ())| Some((at, MediaId::parse(&id).ok()?)));
        Ok(ids.flatten().collect())
    }

    /// Takes a medium out of its uploader's account.
    async fn give_back(
        &self,
        batch: &mut Batch,
        server: &ServerName,
        id: &MediaId,
        row: &MediaRow,
    ) -> Result<(), Failure> {
        if *server != self.parts.options.server_name {
            if let MediaState::Stored(file) = &row.state {
                let (before, mut usage) = self.usage_row(OF_OTHERS).await?;
                usage.files = usage.files.saturating_sub(1);
                usage.bytes = usage.bytes.saturating_sub(file.length);
                let key = (file.stored_at, server.as_str(), id.as_str());
                batch.delete(&REMOTE, &key);
                put_usage(batch, OF_OTHERS, before, usage);
            }
            return Ok(());
        }
        let Ok(uploader) = UserId::parse(row.uploader.as_str()) else {
            return Ok(());
        };
        let (before, mut usage) = self.usage_row(uploader.as_str()).await?;
        match &row.state {
            MediaState::Stored(file) => {
                usage.files = usage.files.saturating_sub(1);
                usage.bytes = usage.bytes.saturating_sub(file.length);
                batch.delete(&UPLOADS, &(uploader.as_str(), file.stored_at, id.as_str()));
            }
            MediaState::Pending { expires_at } => {
                usage.pending = usage.pending.saturating_sub(1);
                batch.delete(&PENDING, &(*expires_at, id.as_str()));
            }
        }
        put_usage(batch, uploader.as_str(), before, usage);
        Ok(())
    }

    /// Removes reserved ids whose time is over, what is too much of other servers, and blobs that no row has named since the sweep
    /// before this one. Runs hourly by itself.
    pub async fn sweep(&self) -> Result<(), Failure> {
        self.sweep_pending().await?;
        while self.make_room(0).await? {}
        self.sweep_blobs().await
    }

    async fn sweep_pending(&self) -> Result<(), Failure> {
        let server = self.parts.options.server_name.clone();
        loop {
            let range = ScanRange::all().before(&self.now());
            let rows = self
                .parts
                .store
                .scan(&PENDING, range, Direction::Forward, STEP)
                .await?;
            if rows.is_empty() {
                return Ok(());
            }
            for ((expires_at, id), _) in rows {
                let known = match MediaId::parse(&id) {
                    // One that arrived at the last moment stays.
                    Ok(id) => self.delete_if(&server, &id, is_pending).await?,
                    Err(_) => false,
                };
                if !known {
                    let mut batch = Batch::new();
                    batch.delete(&PENDING, &(expires_at, id));
                    self.parts.store.commit(batch).await?;
                }
            }
        }
    }

    /// A blob is only deleted when two sweeps in a row find it without a row: one that is being
    /// uploaded just now gets its row in between.
    async fn sweep_blobs(&self) -> Result<(), Failure> {
        let mut before = self.parts.orphans.lock().await;
        let mut orphans = BTreeSet::new();
        let mut after = None;
        loop {
            let blobs = self.parts.blobs.list(after, STEP).await?;
            let rows = self.parts.store.multi_get(&BLOBS_IN_USE, &blobs).await?;
            let unnamed = blobs.iter().zip(rows).filter(|(_, row)| row.is_none());
            for (blob, _) in unnamed {
                if before.contains(blob) {
                    self.delete_blob(*blob).await;
                } else if orphans.len() < MAX_ORPHANS {
                    orphans.insert(*blob);
                }
            }
            match blobs.last() {
                Some(last) => after = Some(*last),
                None => break,
            }
        }
        *before = orphans;
        Ok(())
    }
}

fn is_pending(state: &MediaState) -> bool {
    matches!(state, MediaState::Pending { .. })
}

pub(crate) async fn sweep_hourly(media: Media) {
    let tasks = media.parts.runtime.tasks.clone();
    loop {
        tokio::select! {
            biased;
            () = tasks.stopping() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
        if let Err(error) = media.sweep().await {
            tracing::warn!(%error, "sweep of media interrupted; the next one goes on");
        }
    }
}
