//! Media over the memory engine and real files.

use std::{io::Cursor, sync::Arc, time::Duration};

use homeserver_runtime::{ManualClock, Runtime};
use homeserver_storage::{
    BlobId, BlobStore, Direction, FileBlobs, Row, ScanRange, Store, engines::memory::MemoryEngine,
};
use image::{ImageFormat, Rgb, RgbImage};
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt as _, ReadBuf};

use super::*;
use crate::{
    tables::{FileRow, MEDIA, MediaRow, MediaState, THUMBNAILS, ThumbnailRow, UsageRow},
    thumbnail::{Animation, Method, ThumbnailError, Wanted},
};

struct World {
    media: Media,
    store: Store,
    blobs: Arc<dyn BlobStore>,
    clock: Arc<ManualClock>,
    runtime: Runtime,
    _folder: tempfile::TempDir,
}

fn options() -> MediaOptions {
    MediaOptions {
        server_name: server(),
        max_upload_size: 1_000_000,
        max_bytes_per_user: None,
        max_bytes_remote: 10_000_000,
        allow_legacy_unauthenticated: false,
    }
}

fn server() -> OwnedServerName {
    ServerName::parse("localhost").unwrap()
}

fn alice() -> OwnedUserId {
    UserId::parse("@alice:localhost").unwrap()
}

fn bob() -> OwnedUserId {
    UserId::parse("@bob:localhost").unwrap()
}

impl World {
    async fn new(options: MediaOptions) -> Self {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let runtime = Runtime::simulated(Arc::clone(&clock), 3);
        let engine = Arc::new(MemoryEngine::new());
        let store = Store::open(engine, &[TABLES], &runtime).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let blobs: Arc<dyn BlobStore> =
            Arc::new(FileBlobs::open(folder.path().join("media"), &runtime).unwrap());
        let media = Media::open(&store, Arc::clone(&blobs), &runtime, options);
        Self {
            media,
            store,
            blobs,
            clock,
            runtime,
            _folder: folder,
        }
    }

    /// The same database, configured differently.
    fn reopened(&self, options: MediaOptions) -> Media {
        Media::open(&self.store, Arc::clone(&self.blobs), &self.runtime, options)
    }

    async fn upload(&self, content: &[u8], content_type: &str) -> Result<MediaId, UploadError> {
        upload(&self.media, content, content_type).await
    }

    async fn open(&self, id: &MediaId) -> Result<Download, DownloadError> {
        open(&self.media, id, Access::Authenticated).await
    }

    async fn blob_count(&self) -> usize {
        self.blobs.list(None, 1_000).await.unwrap().len()
    }
}

async fn upload(media: &Media, content: &[u8], content_type: &str) -> Result<MediaId, UploadError> {
    let declared = Declared {
        content_type: Some(content_type.to_owned()),
        file_name: Some("name.txt".to_owned()),
        length: None,
    };
    let uri = media.upload(&alice(), &declared, &mut &*content).await?;
    let (server_name, id) = uri.parts().unwrap();
    assert_eq!(server_name, server());
    Ok(MediaId::parse(id).unwrap())
}

async fn open(media: &Media, id: &MediaId, access: Access) -> Result<Download, DownloadError> {
    media
        .open_file(&server(), id, access, Duration::ZERO, None)
        .await
}

async fn content(mut download: Download) -> Vec<u8> {
    let mut content = Vec::new();
    download.content.read_to_end(&mut content).await.unwrap();
    assert_eq!(content.len() as u64, download.length);
    content
}

#[tokio::test]
async fn what_was_uploaded_comes_back() {
    let world = World::new(options()).await;
    let long: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
    for bytes in [&b""[..], b"hello", &long] {
        let id = world.upload(bytes, "text/plain").await.unwrap();
        let download = world.open(&id).await.unwrap();
        assert_eq!(download.content_type, "text/plain");
        assert_eq!(download.content_disposition, "inline; filename=name.txt");
        assert_eq!(content(download).await, bytes);
        let row = world
            .store
            .get(&MEDIA, &world.media.key(&id))
            .await
            .unwrap()
            .unwrap();
        let MediaState::Stored(file) = row.state else {
            panic!("not stored")
        };
        assert_eq!(file.sha256, <[u8; 32]>::from(Sha256::digest(bytes)));
    }
    let usage = world.media.usage(&alice()).await.unwrap();
    assert_eq!(
        usage,
        Usage {
            files: 3,
            bytes: 300_005,
            pending: 0
        }
    );
    assert_eq!(world.media.usage(&bob()).await.unwrap(), Usage::default());
    assert_eq!(
        world
            .media
            .uploads_of(&alice(), None, 2)
            .await
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn a_name_in_the_path_replaces_that_of_the_upload() {
    let world = World::new(options()).await;
    let id = world.upload(b"<script>", "text/html").await.unwrap();
    let access = Access::Authenticated;
    let named = world
        .media
        .open_file(&server(), &id, access, Duration::ZERO, Some("../x.html"))
        .await;
    assert_eq!(
        named.unwrap().content_disposition,
        "attachment; filename=x.html"
    );
}

#[tokio::test]
async fn unknown_and_foreign_media_are_not_found() {
    let world = World::new(options()).await;
    let id = world.upload(b"x", "text/plain").await.unwrap();
    let elsewhere = ServerName::parse("elsewhere.example").unwrap();
    let access = Access::Authenticated;
    let foreign = world
        .media
        .open_file(&elsewhere, &id, access, Duration::ZERO, None)
        .await;
    assert!(matches!(foreign, Err(DownloadError::NotFound)));
    let unknown = world.open(&MediaId::parse("unknown").unwrap()).await;
    assert!(matches!(unknown, Err(DownloadError::NotFound)));
}

/// Content without an announced length and without an end.
struct Endless;

impl tokio::io::AsyncRead for Endless {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        buffer.initialize_unfilled().fill(7);
        buffer.set_filled(buffer.capacity());
        std::task::Poll::Ready(Ok(()))
    }
}

/// Content that breaks off.
struct Broken;

impl tokio::io::AsyncRead for Broken {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()))
    }
}

#[tokio::test]
async fn uploads_have_a_limit_and_leave_nothing_when_they_fail() {
    let world = World::new(options()).await;
    let full = vec![0; 1_000_000];
    world.upload(&full, "text/plain").await.unwrap();
    let declared = Declared::default();
    let endless = world.media.upload(&alice(), &declared, &mut Endless).await;
    assert!(
        matches!(endless, Err(UploadError::TooLarge(1_000_000))),
        "{endless:?}"
    );
    let announced = Declared {
        length: Some(1_000_001),
        ..Declared::default()
    };
    let announced = world.media.upload(&alice(), &announced, &mut Broken).await;
    assert!(
        matches!(announced, Err(UploadError::TooLarge(1_000_000))),
        "before it is read"
    );
    let broken = world.media.upload(&alice(), &declared, &mut Broken).await;
    assert!(matches!(broken, Err(UploadError::Content(_))));
    assert_eq!(world.blob_count().await, 1);
    assert_eq!(world.media.usage(&alice()).await.unwrap().files, 1);
}

#[tokio::test]
async fn a_quota_holds_also_for_concurrent_uploads() {
    let world = World::new(MediaOptions {
        max_bytes_per_user: Some(2_500),
        ..options()
    })
    .await;
    let content = vec![1; 1_000];
    let uploads = (0..6).map(|_| world.upload(&content, "text/plain"));
    let outcomes = futures_util::future::join_all(uploads).await;
    let refused = outcomes
        .iter()
        .filter(|one| matches!(one, Err(UploadError::OverQuota)))
        .count();
    assert_eq!(refused, 4);
    assert_eq!(world.media.usage(&alice()).await.unwrap().bytes, 2_000);
    assert_eq!(world.blob_count().await, 2);
    // What is deleted counts no more.
    let id = outcomes.into_iter().find_map(Result::ok).unwrap();
    assert!(world.media.delete(&server(), &id).await.unwrap());
    world.upload(&content, "text/plain").await.unwrap();
}

async fn reserve(world: &World) -> MediaId {
    let reserved = world.media.reserve(&alice()).await.unwrap();
    MediaId::parse(reserved.uri.media_id().unwrap()).unwrap()
}

async fn fill(world: &World, id: &MediaId, user: &UserId) -> Result<(), UploadError> {
    world
        .media
        .upload_to(id, user, &Declared::default(), &mut &b"late"[..])
        .await
}

#[tokio::test]
async fn a_reserved_id_is_filled_once_by_its_owner() {
    let world = World::new(options()).await;
    let id = reserve(&world).await;
    assert!(matches!(
        world.open(&id).await,
        Err(DownloadError::NotYetUploaded)
    ));
    let stranger = fill(&world, &id, &bob()).await;
    assert!(matches!(stranger, Err(UploadError::NotUploader)));
    let unknown = fill(&world, &MediaId::parse("unknown").unwrap(), &alice()).await;
    assert!(matches!(unknown, Err(UploadError::NotFound)));
    let user = alice();
    let racing = (0..4).map(|_| fill(&world, &id, &user));
    let outcomes = futures_util::future::join_all(racing).await;
    assert_eq!(outcomes.iter().filter(|one| one.is_ok()).count(), 1);
    let refused = |one: &&Result<_, _>| matches!(one, Err(UploadError::AlreadyUploaded));
    assert_eq!(outcomes.iter().filter(refused).count(), 3);
    assert_eq!(content(world.open(&id).await.unwrap()).await, b"late");
    assert_eq!(world.blob_count().await, 1);
    let usage = world.media.usage(&alice()).await.unwrap();
    assert_eq!(
        usage,
        Usage {
            files: 1,
            bytes: 4,
            pending: 0
        }
    );
}

#[tokio::test]
async fn a_download_waits_for_a_reserved_content() {
    let world = World::new(options()).await;
    let id = reserve(&world).await;
    let (media, wanted) = (world.media.clone(), id.clone());
    let waiting = async move {
        let access = Access::Authenticated;
        media
            .open_file(&server(), &wanted, access, MAX_WAIT, None)
            .await
    };
    let user = alice();
    let (download, filled) = tokio::join!(waiting, fill(&world, &id, &user));
    filled.unwrap();
    assert_eq!(content(download.unwrap()).await, b"late");
}

#[tokio::test]
async fn reservations_are_bounded_and_expire() {
    let world = World::new(options()).await;
    let first = reserve(&world).await;
    for _ in 1..MAX_PENDING_UPLOADS {
        reserve(&world).await;
    }
    let more = world.media.reserve(&alice()).await;
    assert!(matches!(more, Err(UploadError::TooManyPending)));
    assert!(world.media.reserve(&bob()).await.is_ok());
    world.clock.advance(UNUSED_EXPIRES_AFTER);
    assert!(matches!(
        fill(&world, &first, &alice()).await,
        Err(UploadError::NotFound)
    ));
    assert!(matches!(
        world.open(&first).await,
        Err(DownloadError::NotFound)
    ));
    world.clock.advance(Duration::from_millis(1));
    world.media.sweep().await.unwrap();
    assert_eq!(world.media.usage(&alice()).await.unwrap().pending, 0);
    let rows = world
        .store
        .scan(&MEDIA, ScanRange::all(), Direction::Forward, 9)
        .await
        .unwrap();
    assert!(rows.is_empty());
}

#[tokio::test]
async fn old_endpoints_are_frozen() {
    let world = World::new(options()).await;
    let new = world.upload(b"new", "text/plain").await.unwrap();
    let frozen = open(&world.media, &new, Access::Legacy).await;
    assert!(matches!(frozen, Err(DownloadError::NotFound)));
    let reserved = reserve(&world).await;
    let frozen = open(&world.media, &reserved, Access::Legacy).await;
    assert!(
        matches!(frozen, Err(DownloadError::NotFound)),
        "it does not even show that it waits"
    );
    let thawed = world.reopened(MediaOptions {
        allow_legacy_unauthenticated: true,
        ..options()
    });
    let old = upload(&thawed, b"old", "text/plain").await.unwrap();
    for id in [&new, &old] {
        assert!(open(&thawed, id, Access::Legacy).await.is_ok());
    }
    // Frozen again, what came before the freeze is still served.
    assert!(open(&world.media, &old, Access::Legacy).await.is_ok());
    assert!(open(&world.media, &new, Access::Legacy).await.is_err());
}

fn picture(width: u32, height: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 50]));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

async fn thumbnail(
    world: &World,
    id: &MediaId,
    (width, height): (u32, u32),
) -> Result<Download, ThumbnailRequestError> {
    let wanted = Wanted {
        width,
        height,
        method: Method::Crop,
        animation: Animation::Still,
    };
    let access = Access::Authenticated;
    world
        .media
        .thumbnail(
            (&server(), id),
            wanted,
            "@alice:example.org",
            access,
            Duration::ZERO,
        )
        .await
}

#[tokio::test]
async fn a_thumbnail_is_made_once_and_goes_with_its_original() {
    let world = World::new(options()).await;
    // The declared type does not matter: the bytes are recognised.
    let id = world.upload(&picture(400, 300), "text/html").await.unwrap();
    let made = thumbnail(&world, &id, (80, 80)).await.unwrap();
    assert_eq!(made.content_type, "image/jpeg");
    assert_eq!(made.content_disposition, "inline; filename=thumbnail");
    let made = content(made).await;
    let image = image::load_from_memory(&made).unwrap();
    assert_eq!((image.width(), image.height()), (96, 96));
    assert_eq!(world.blob_count().await, 2);
    let again = thumbnail(&world, &id, (90, 90)).await.unwrap();
    assert_eq!(content(again).await, made);
    assert_eq!(world.blob_count().await, 2);
    let original = thumbnail(&world, &id, (1_000, 1_000)).await.unwrap();
    assert_eq!(original.content_type, "image/png");
    assert_eq!(content(original).await, picture(400, 300));
    assert!(world.media.delete(&server(), &id).await.unwrap());
    assert!(!world.media.delete(&server(), &id).await.unwrap());
    assert_eq!(world.blob_count().await, 0);
    let gone = thumbnail(&world, &id, (80, 80)).await;
    assert!(matches!(
        gone,
        Err(ThumbnailRequestError::Original(DownloadError::NotFound))
    ));
}

#[tokio::test]
async fn of_many_sizes_of_one_image_few_are_made() {
    let world = World::new(options()).await;
    let id = world.upload(&picture(300, 300), "image/png").await.unwrap();
    let mut made = std::collections::BTreeSet::new();
    for (width, height) in (1..=240).flat_map(|side| [(side, side), (side, 90), (90, side)]) {
        let found = thumbnail(&world, &id, (width, height)).await.unwrap();
        let image = image::load_from_memory(&content(found).await).unwrap();
        assert!(image.width() >= width && image.height() >= height);
        made.insert((image.width(), image.height()));
    }
    let rows = world
        .store
        .scan(&THUMBNAILS, ScanRange::all(), Direction::Forward, 99);
    // Each was made once: three for squares and two ways to lie for each other side.
    assert_eq!(made.len(), 7);
    assert_eq!(rows.await.unwrap().len(), made.len());
    assert_eq!(world.blob_count().await, 1 + made.len());
    assert!(world.media.delete(&server(), &id).await.unwrap());
    assert_eq!(world.blob_count().await, 0);
}

#[tokio::test]
async fn what_is_no_image_has_no_thumbnail() {
    let world = World::new(options()).await;
    let id = world.upload(b"<svg/>", "image/png").await.unwrap();
    let refused = thumbnail(&world, &id, (80, 80)).await;
    let expected = ThumbnailError::Format;
    assert!(matches!(refused, Err(ThumbnailRequestError::Thumbnail(why)) if why == expected));
}

#[tokio::test]
async fn a_blob_without_a_row_goes_with_the_second_sweep() {
    let world = World::new(options()).await;
    let kept = world.upload(b"kept", "text/plain").await.unwrap();
    let orphan = world.blobs.put_bytes(b"orphan").await.unwrap();
    world.media.sweep().await.unwrap();
    assert_eq!(
        world.blobs.length(orphan.id).await.unwrap(),
        6,
        "it may be on its way"
    );
    world.media.sweep().await.unwrap();
    assert!(world.blobs.length(orphan.id).await.is_err());
    assert_eq!(content(world.open(&kept).await.unwrap()).await, b"kept");
}

#[test]
fn rows_are_stored_as_ever() {
    let file = FileRow {
        blob: [1; 16],
        length: 300,
        sha256: [2; 32],
        content_type: "a/b".to_owned(),
        file_name: None,
        stored_at: 5,
        legacy: true,
    };
    let row = |state| MediaRow {
        uploader: "@a:b".to_owned(),
        created_at: 4,
        state,
    };
    let thumbnail = ThumbnailRow {
        blob: Some(([3; 16], 7)),
        content_type: "image/png".to_owned(),
    };
    let usage = UsageRow {
        files: 1,
        bytes: 300,
        pending: 2,
    };
    let encoded = [
        row(MediaState::Pending { expires_at: 9 }).encode(),
        row(MediaState::Stored(file)).encode(),
        thumbnail.encode(),
        usage.encode(),
        crate::tables::PendingRow("@a:b".to_owned()).encode(),
    ];
    let mut lines: Vec<String> = encoded
        .iter()
        .map(|bytes| bytes.escape_ascii().to_string())
        .collect();
    let specs = TABLES.iter();
    lines.extend(specs.map(|spec| format!("{:#04x} {}", spec.id, spec.name)));
    let key = THUMBNAILS.key_bytes(&("s", "m", 1_u32, 2_u32, 0_u8, 1_u8));
    lines.push(key.escape_ascii().to_string());
    insta::assert_snapshot!(lines.join("\n"));
    assert_eq!(BlobId([1; 16]).to_string(), "01".repeat(16));
}

async fn keep(media: &Media, id: &str, bytes: usize) -> Result<(), UploadError> {
    let there = ServerName::parse("there.example").unwrap();
    let declared = Declared {
        content_type: None,
        file_name: None,
        length: None,
    };
    let content = vec![7; bytes];
    let id = MediaId::parse(id).unwrap();
    media
        .keep_remote(&there, &id, &declared, &mut &*content)
        .await
}

async fn is_kept(media: &Media, id: &str) -> bool {
    let there = ServerName::parse("there.example").unwrap();
    let id = MediaId::parse(id).unwrap();
    media.is_here(&there, &id).await.unwrap()
}

#[tokio::test]
async fn what_was_fetched_first_of_other_servers_makes_room() {
    let world = World::new(MediaOptions {
        max_bytes_remote: 100,
        ..options()
    })
    .await;
    let own = world.upload(&[1; 500], "text/plain").await.unwrap();
    for id in ["a", "b", "c"] {
        keep(&world.media, id, 40).await.unwrap();
        keep(&world.media, id, 40).await.unwrap();
        world.clock.advance(Duration::from_secs(1));
    }
    let kept = async |ids: [&str; 4]| {
        let mut kept = Vec::new();
        for id in ids {
            kept.push(is_kept(&world.media, id).await);
        }
        kept
    };
    let ids = ["a", "b", "c", "d"];
    assert_eq!(kept(ids).await, [false, true, true, false]);
    assert_eq!(world.blob_count().await, 3, "two and our own");
    let too_large = keep(&world.media, "d", 101).await;
    assert!(matches!(too_large, Err(UploadError::TooLarge(100))));
    // What is deleted counts no more.
    let there = ServerName::parse("there.example").unwrap();
    let c = MediaId::parse("c").unwrap();
    assert!(world.media.delete(&there, &c).await.unwrap());
    keep(&world.media, "d", 60).await.unwrap();
    assert_eq!(kept(ids).await, [false, true, false, true]);
    // Less is allowed at the next start: the sweep makes room.
    let smaller = world.reopened(MediaOptions {
        max_bytes_remote: 70,
        ..options()
    });
    smaller.sweep().await.unwrap();
    assert_eq!(kept(ids).await, [false, false, false, true]);
    world.open(&own).await.unwrap();
    assert_eq!(world.blob_count().await, 2);
}
