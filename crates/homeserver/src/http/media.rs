//! Uploads, downloads, thumbnails. Contents are streamed both ways and never held whole.
//!
//! Specification: client-server API, "Content Repository".

use std::{io, time::Duration};

use axum::{
    body::Body,
    extract::{
        Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{post, put},
};
use futures_util::TryStreamExt;
use homeserver_media::{
    Access, Declared, Download, DownloadError, Failure, Media, MediaId, ThumbnailRequestError,
    UploadError, serving,
    thumbnail::{Animation, Method, ThumbnailError, Wanted},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, ServerName, UInt,
    api::{
        client::{
            authenticated_media::{
                get_content, get_content_as_filename, get_content_thumbnail, get_media_config,
            },
            media::{self, create_content, create_content_async, create_mxc_uri},
        },
        error::ErrorKind,
    },
    media::Method as WantedMethod,
};
use serde::Deserialize;
use tokio_util::io::{ReaderStream, StreamReader};

use super::{ApiError, Components, Counted, Routes, Ruma, limits};
use crate::app::session::Session;

/// How long an upload may take to arrive.
const UPLOAD_PATIENCE: Duration = Duration::from_mins(10);

const DEFAULT_WAIT: Duration = Duration::from_secs(20);

pub(super) fn routes() -> Routes {
    let mut routes = Routes::new()
        .ruma(config)
        .ruma(old_config)
        .ruma(reserve)
        .ruma(download)
        .ruma(download_as)
        .ruma(thumbnail)
        .ruma(old_download)
        .ruma(old_download_as)
        .ruma(old_thumbnail);
    for path in ["/_matrix/media/v3/upload", "/_matrix/media/r0/upload"] {
        routes = routes.raw(path, Counted::Within, post(upload));
    }
    for path in [
        "/_matrix/media/v3/upload/{server}/{media}",
        "/_matrix/media/unstable/fi.mau.msc2246/upload/{server}/{media}",
    ] {
        routes = routes.raw(path, Counted::Within, put(upload_to));
    }
    routes
}

fn largest(media: &Media) -> UInt {
    UInt::try_from(media.options().max_upload_size).unwrap_or(UInt::MAX)
}

async fn config(
    State(media): State<Media>,
    _session: Session,
    Ruma(_): Ruma<get_media_config::v1::Request>,
) -> Result<Ruma<get_media_config::v1::Response>, ApiError> {
    Ok(Ruma(get_media_config::v1::Response::new(largest(&media))))
}

#[expect(deprecated, reason = "clients in use still ask here")]
async fn old_config(
    State(media): State<Media>,
    _session: Session,
    Ruma(_): Ruma<media::get_media_config::v3::Request>,
) -> Result<Ruma<media::get_media_config::v3::Response>, ApiError> {
    let largest = largest(&media);
    Ok(Ruma(media::get_media_config::v3::Response::new(largest)))
}

/// What the address of an upload says.
#[derive(Debug, Deserialize)]
struct UploadQuery {
    filename: Option<String>,
}

async fn upload(
    State(components): State<Components>,
    session: Session,
    query: Result<Query<UploadQuery>, QueryRejection>,
    request: Request,
) -> Result<Ruma<create_content::v3::Response>, ApiError> {
    let Query(query) = query?;
    let (declared, body) = arrive::<create_content::v3::Request>(&components, query, request)?;
    let media = &components.media;
    let mut content = reader(body);
    let stored = media.upload(&session.user, &declared, &mut content);
    let uri = in_time(stored).await?;
    Ok(Ruma(create_content::v3::Response::new(uri)))
}

async fn upload_to(
    State(components): State<Components>,
    session: Session,
    path: Result<Path<(String, String)>, PathRejection>,
    query: Result<Query<UploadQuery>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let (Path((server, id)), Query(query)) = (path?, query?);
    let (declared, body) =
        arrive::<create_content_async::v3::Request>(&components, query, request)?;
    let media = &components.media;
    if server != media.options().server_name.as_str() {
        return Err(ApiError::not_found("This server has no such media"));
    }
    let id = parsed(&id)?;
    let mut content = reader(body);
    in_time(media.upload_to(&id, &session.user, &declared, &mut content)).await?;
    Ok(axum::Json(serde_json::json!({})).into_response())
}

/// Checks the rate limit and takes what the head of the request says.
fn arrive<T: ruma::api::Metadata>(
    components: &Components,
    query: UploadQuery,
    request: Request,
) -> Result<(Declared, Body), ApiError> {
    let (parts, body) = request.into_parts();
    limits::check::<T>(&parts, components)?;
    let text = |name| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let declared = Declared {
        content_type: text(header::CONTENT_TYPE).map(str::to_owned),
        file_name: query.filename,
        length: text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
    };
    Ok((declared, body))
}

fn reader(body: Body) -> impl tokio::io::AsyncRead + Send + Unpin {
    StreamReader::new(Box::pin(body.into_data_stream().map_err(io::Error::other)))
}

async fn in_time<T>(upload: impl Future<Output = Result<T, UploadError>>) -> Result<T, ApiError> {
    match tokio::time::timeout(UPLOAD_PATIENCE, upload).await {
        Ok(stored) => Ok(stored?),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            ErrorKind::Unknown,
            "The upload took too long",
        )),
    }
}

async fn reserve(
    State(media): State<Media>,
    session: Session,
    Ruma(_): Ruma<create_mxc_uri::v1::Request>,
) -> Result<Ruma<create_mxc_uri::v1::Response>, ApiError> {
    let reserved = media.reserve(&session.user).await?;
    let mut response = create_mxc_uri::v1::Response::new(reserved.uri);
    let expires = UInt::try_from(reserved.expires_at).ok();
    response.unused_expires_at = expires.map(MilliSecondsSinceUnixEpoch);
    Ok(Ruma(response))
}

/// Which content, for whom.
struct Wish<'a> {
    server: &'a ServerName,
    id: &'a str,
    access: Access,
    wait: Duration,
}

async fn content(
    media: &Media,
    wish: Wish<'_>,
    file_name: Option<&str>,
) -> Result<Response, ApiError> {
    let id = known(&wish)?;
    let found = media
        .open_file(wish.server, &id, wish.access, wish.wait, file_name)
        .await?;
    Ok(served(found))
}

async fn download(
    State(media): State<Media>,
    _session: Session,
    Ruma(request): Ruma<get_content::v1::Request>,
) -> Result<Response, ApiError> {
    let wish = Wish {
        server: &request.server_name,
        id: &request.media_id,
        access: Access::Authenticated,
        wait: request.timeout_ms,
    };
    content(&media, wish, None).await
}

async fn download_as(
    State(media): State<Media>,
    _session: Session,
    Ruma(request): Ruma<get_content_as_filename::v1::Request>,
) -> Result<Response, ApiError> {
    let wish = Wish {
        server: &request.server_name,
        id: &request.media_id,
        access: Access::Authenticated,
        wait: request.timeout_ms,
    };
    content(&media, wish, Some(&request.filename)).await
}

#[expect(deprecated, reason = "served by configuration")]
async fn old_download(
    State(media): State<Media>,
    Ruma(request): Ruma<media::get_content::v3::Request>,
) -> Result<Response, ApiError> {
    let wish = Wish {
        server: &request.server_name,
        id: &request.media_id,
        access: Access::Legacy,
        wait: request.timeout_ms,
    };
    content(&media, wish, None).await
}

#[expect(deprecated, reason = "served by configuration")]
async fn old_download_as(
    State(media): State<Media>,
    Ruma(request): Ruma<media::get_content_as_filename::v3::Request>,
) -> Result<Response, ApiError> {
    let wish = Wish {
        server: &request.server_name,
        id: &request.media_id,
        access: Access::Legacy,
        wait: DEFAULT_WAIT,
    };
    content(&media, wish, Some(&request.filename)).await
}

async fn thumbnail(
    State(media): State<Media>,
    _session: Session,
    Ruma(request): Ruma<get_content_thumbnail::v1::Request>,
) -> Result<Response, ApiError> {
    let size = (request.width, request.height);
    let wanted = wanted(size, request.method.as_ref(), request.animated)?;
    let wish = Wish {
        server: &request.server_name,
        id: &request.media_id,
        access: Access::Authenticated,
        wait: request.timeout_ms,
    };
    smaller(&media, wish, wanted).await
}

#[expect(deprecated, reason = "served by configuration")]
async fn old_thumbnail(
    State(media): State<Media>,
    Ruma(request): Ruma<media::get_content_thumbnail::v3::Request>,
) -> Result<Response, ApiError> {
    let size = (request.width, request.height);
    let wanted = wanted(size, request.method.as_ref(), request.animated)?;
    let wish = Wish {
        server: &request.server_name,
        id: &request.media_id,
        access: Access::Legacy,
        wait: request.timeout_ms,
    };
    smaller(&media, wish, wanted).await
}

async fn smaller(media: &Media, wish: Wish<'_>, wanted: Wanted) -> Result<Response, ApiError> {
    let id = known(&wish)?;
    let found = media
        .thumbnail(wish.server, &id, wanted, wish.access, wish.wait)
        .await?;
    Ok(served(found))
}

fn wanted(
    (width, height): (UInt, UInt),
    method: Option<&WantedMethod>,
    animated: Option<bool>,
) -> Result<Wanted, ApiError> {
    let side = |side: UInt| {
        let side = u32::try_from(u64::from(side)).ok().filter(|side| *side > 0);
        side.ok_or_else(|| ApiError::invalid_param("Width and height must be at least 1"))
    };
    Ok(Wanted {
        width: side(width)?,
        height: side(height)?,
        method: match method {
            Some(WantedMethod::Crop) => Method::Crop,
            _ => Method::Scale,
        },
        animation: match animated {
            Some(true) => Animation::Moving,
            _ => Animation::Still,
        },
    })
}

/// An id that cannot be is one that is not there.
fn known(wish: &Wish<'_>) -> Result<MediaId, ApiError> {
    MediaId::parse(wish.id).map_err(|_| ApiError::not_found("No such media"))
}

fn parsed(id: &str) -> Result<MediaId, ApiError> {
    MediaId::parse(id).map_err(|error| ApiError::invalid_param(error.to_string()))
}

/// A content with the headers that keep browsers from running it.
fn served(found: Download) -> Response {
    let headers = [
        (header::CONTENT_TYPE, found.content_type),
        (header::CONTENT_DISPOSITION, found.content_disposition),
        (header::CONTENT_LENGTH, found.length.to_string()),
    ];
    let fixed = [
        (
            header::CONTENT_SECURITY_POLICY,
            serving::CONTENT_SECURITY_POLICY,
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            serving::CONTENT_TYPE_OPTIONS,
        ),
        (header::CACHE_CONTROL, serving::CACHE_CONTROL),
        (
            header::HeaderName::from_static("cross-origin-resource-policy"),
            serving::CROSS_ORIGIN_RESOURCE_POLICY,
        ),
    ];
    let body = Body::from_stream(ReaderStream::new(found.content));
    (headers, fixed, body).into_response()
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid_param(rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid_param(rejection.body_text())
    }
}

impl From<Failure> for ApiError {
    fn from(error: Failure) -> Self {
        match error {
            Failure::Commit(error) => error.into(),
            other => Self::internal(&other),
        }
    }
}

impl From<UploadError> for ApiError {
    fn from(error: UploadError) -> Self {
        let message = error.to_string();
        match error {
            UploadError::TooLarge(_) => Self::too_large(message),
            UploadError::OverQuota | UploadError::NotUploader => Self::forbidden(message),
            UploadError::TooManyPending => Self::limit_exceeded(Duration::from_mins(1)),
            UploadError::NotFound => Self::not_found(message),
            UploadError::AlreadyUploaded => {
                let kind = ErrorKind::CannotOverwriteMedia;
                Self::new(StatusCode::CONFLICT, kind, message)
            }
            UploadError::Content(_) => Self::not_json("The body ended early"),
            UploadError::Failure(error) => error.into(),
        }
    }
}

impl From<DownloadError> for ApiError {
    fn from(error: DownloadError) -> Self {
        let message = error.to_string();
        match error {
            DownloadError::NotFound => Self::not_found(message),
            DownloadError::NotYetUploaded => {
                let kind = ErrorKind::NotYetUploaded;
                Self::new(StatusCode::GATEWAY_TIMEOUT, kind, message)
            }
            DownloadError::Failure(error) => error.into(),
        }
    }
}

impl From<ThumbnailRequestError> for ApiError {
    fn from(error: ThumbnailRequestError) -> Self {
        match error {
            ThumbnailRequestError::Original(error) => error.into(),
            ThumbnailRequestError::Thumbnail(ThumbnailError::TooLarge) => {
                Self::too_large("The image is too large for a thumbnail")
            }
            ThumbnailRequestError::Thumbnail(error) => Self::new(
                StatusCode::BAD_REQUEST,
                ErrorKind::Unknown,
                format!("No thumbnail can be made of this: {error}"),
            ),
        }
    }
}
