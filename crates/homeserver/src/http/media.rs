//! Uploads, downloads, thumbnails. Contents are streamed both ways and never held whole.
//!
//! Specification: client-server API, "Content Repository".

mod download;
mod stream;

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
use homeserver_federation::CallError;
use homeserver_media::{
    Declared, DownloadError, Failure, Media, MediaId, ThumbnailRequestError, UploadError,
    thumbnail::ThumbnailError,
};
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::{
        client::{
            authenticated_media::get_media_config,
            media::{self, create_content, create_content_async, create_mxc_uri},
        },
        error::ErrorKind,
    },
};
use serde::Deserialize;

pub(super) use self::{download::wanted, stream::outgoing};
use super::{ApiError, Components, Counted, Routes, Ruma, error::bad_gateway, limits};
use crate::app::{remote_media::RemoteMediaError, session::Session};

/// How long an upload may take to arrive, if something of it arrives all the time.
const UPLOAD_PATIENCE: Duration = Duration::from_hours(1);

pub(super) fn routes() -> Routes {
    let mut routes = Routes::new()
        .ruma(config)
        .ruma(old_config)
        .ruma(reserve)
        .merge(download::routes());
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

/// When to ask again if too many thumbnails are waited for.
const CROWDED_PAUSE: Duration = Duration::from_secs(2);

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
    let mut content = stream::incoming(body, components.http_config.stall_timeout);
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
    let mut content = stream::incoming(body, components.http_config.stall_timeout);
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

async fn in_time<T>(upload: impl Future<Output = Result<T, UploadError>>) -> Result<T, ApiError> {
    match tokio::time::timeout(UPLOAD_PATIENCE, upload).await {
        Ok(stored) => Ok(stored?),
        Err(_) => Err(too_slow()),
    }
}

fn too_slow() -> ApiError {
    let message = "The upload took too long";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, ErrorKind::Unknown, message)
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

fn parsed(id: &str) -> Result<MediaId, ApiError> {
    MediaId::parse(id).map_err(|error| ApiError::invalid_param(error.to_string()))
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
            Failure::Read(error) => error.into(),
            Failure::Busy => Self::unavailable(error.to_string()),
            Failure::Blob(_) | Failure::Pool(_) => Self::internal(&error),
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
            UploadError::Content(error) if error.kind() == io::ErrorKind::TimedOut => too_slow(),
            UploadError::Content(_) => Self::not_json("The body ended early"),
            UploadError::Failure(error) => error.into(),
        }
    }
}

impl From<RemoteMediaError> for ApiError {
    fn from(error: RemoteMediaError) -> Self {
        let message = error.to_string();
        match error {
            RemoteMediaError::Call(CallError::Refused { errcode, .. })
                if errcode == "M_NOT_YET_UPLOADED" =>
            {
                let kind = ErrorKind::NotYetUploaded;
                Self::new(StatusCode::GATEWAY_TIMEOUT, kind, message)
            }
            // What cannot be had is not there, whatever the reason, says the older endpoint.
            RemoteMediaError::Call(error) => {
                tracing::debug!(%error, "a medium of another server is not to be had");
                Self::not_found("The content is not to be had from its server")
            }
            RemoteMediaError::Kept(UploadError::TooLarge(_)) => {
                Self::new(StatusCode::BAD_GATEWAY, ErrorKind::TooLarge, message)
            }
            RemoteMediaError::Kept(UploadError::Failure(error))
            | RemoteMediaError::Failure(error) => error.into(),
            RemoteMediaError::Kept(UploadError::OverQuota) | RemoteMediaError::Crowded => {
                Self::limit_exceeded(CROWDED_PAUSE)
            }
            RemoteMediaError::Kept(_) => bad_gateway("The content broke off"),
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
            ThumbnailRequestError::Crowded => Self::limit_exceeded(CROWDED_PAUSE),
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
