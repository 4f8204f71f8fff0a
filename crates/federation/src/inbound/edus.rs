//! EDUs: what is looked at here, and who takes them then.
//!
//! Specification: server-server API, "EDUs" and the sections of each type.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use homeserver_rooms::Room;
use ruma::{
    OwnedEventId, OwnedUserId, ServerName, UserId,
    api::federation::transactions::edu::{
        DeviceListUpdateContent, DirectDeviceContent, PresenceUpdate, SigningKeyUpdateContent,
    },
    events::receipt::ReceiptThread,
};

/// Why an EDU had no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EduFailure {
    /// It never will: it is dropped.
    #[error("{0}")]
    Refused(String),
    /// It may have one later: it is tried again, if it is one that is kept.
    #[error("{0}")]
    Passing(String),
}

/// A public read receipt of a user of another server.
#[derive(Clone, Debug)]
pub struct RemoteReceipt {
    /// Who read.
    pub user: OwnedUserId,
    /// Up to which event; the last counts where several are named.
    pub event_ids: Vec<OwnedEventId>,
    /// In which thread.
    pub thread: ReceiptThread,
    /// When, in milliseconds since 1970, as the server says; zero if it does not.
    pub ts: u64,
}

/// Takes the EDUs of other servers. Whoever calls it has checked that each speaks of a user of the
/// server that sent it, and where it belongs to a room, that the server has a joined user there and
/// that the room's ACL admits it.
#[async_trait]
pub trait EduSink: Debug + Send + Sync {
    /// A user begins or stops typing in a room.
    async fn typing(&self, room: &Arc<Room>, user: &UserId, typing: bool)
    -> Result<(), EduFailure>;

    /// A user has read.
    async fn receipt(&self, room: &Arc<Room>, receipt: RemoteReceipt) -> Result<(), EduFailure>;

    /// A user is there or away.
    async fn presence(&self, update: PresenceUpdate) -> Result<(), EduFailure>;

    /// A device changed. Called from a row on disk, one after the other for each server; perhaps
    /// again for the same after a crash.
    async fn device_list_update(
        &self,
        origin: &ServerName,
        update: DeviceListUpdateContent,
    ) -> Result<(), EduFailure>;

    /// Cross-signing keys changed. Called like [`EduSink::device_list_update`].
    async fn signing_key_update(
        &self,
        origin: &ServerName,
        update: SigningKeyUpdateContent,
    ) -> Result<(), EduFailure>;

    /// A message to devices. Called like [`EduSink::device_list_update`]; one that came before is
    /// known by its origin and `message_id`.
    async fn to_device(
        &self,
        origin: &ServerName,
        message: DirectDeviceContent,
    ) -> Result<(), EduFailure>;
}

/// Takes none: all EDUs are passed over.
#[derive(Clone, Copy, Debug)]
pub struct NoEdus;

#[async_trait]
impl EduSink for NoEdus {
    async fn typing(&self, _: &Arc<Room>, _: &UserId, _: bool) -> Result<(), EduFailure> {
        Ok(())
    }

    async fn receipt(&self, _: &Arc<Room>, _: RemoteReceipt) -> Result<(), EduFailure> {
        Ok(())
    }

    async fn presence(&self, _: PresenceUpdate) -> Result<(), EduFailure> {
        Ok(())
    }

    async fn device_list_update(
        &self,
        _: &ServerName,
        _: DeviceListUpdateContent,
    ) -> Result<(), EduFailure> {
        Ok(())
    }

    async fn signing_key_update(
        &self,
        _: &ServerName,
        _: SigningKeyUpdateContent,
    ) -> Result<(), EduFailure> {
        Ok(())
    }

    async fn to_device(&self, _: &ServerName, _: DirectDeviceContent) -> Result<(), EduFailure> {
        Ok(())
    }
}
