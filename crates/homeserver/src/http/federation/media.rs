//! Media of this server, for other servers.
//!
//! Specification: server-server API, "Content Repository".

use std::io::Cursor;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use homeserver_media::{Access, Download, MediaId};
use homeserver_runtime::Runtime;
use http::header;
use ruma::{
    OwnedServerName,
    api::federation::authenticated_media::{get_content, get_content_thumbnail},
};
use tokio::io::AsyncReadExt as _;

use super::Signed;
use crate::http::{
    ApiError, Components, Routes,
    media::{outgoing, wanted},
};

/// Characters of a boundary: nobody guesses one, so no content holds it.
const BOUNDARY: usize = 40;

pub(super) fn routes() -> Routes {
    Routes::new().ruma(download).ruma(thumbnail)
}

fn parsed(id: &str) -> Result<MediaId, ApiError> {
    MediaId::parse(id).map_err(|_| ApiError::not_found("No such media"))
}

async fn download(
    State(components): State<Components>,
    Signed { request, .. }: Signed<get_content::v1::Request>,
) -> Result<Response, ApiError> {
    let (media, id) = (&components.media, parsed(&request.media_id)?);
    let own = &components.server_name;
    let wait = request.timeout_ms;
    let found = media.open_file(own, &id, Access::Authenticated, wait, None);
    Ok(in_parts(found.await?, &components))
}

async fn thumbnail(
    State(components): State<Components>,
    Signed { origin, request }: Signed<get_content_thumbnail::v1::Request>,
) -> Result<Response, ApiError> {
    let (media, id) = (&components.media, parsed(&request.media_id)?);
    let own: &OwnedServerName = &components.server_name;
    let size = (request.width, request.height);
    let wish = wanted(size, request.method.as_ref(), request.animated)?;
    let (wait, access) = (request.timeout_ms, Access::Authenticated);
    let found = media.thumbnail((own, &id), wish, origin.as_str(), access, wait);
    Ok(in_parts(found.await?, &components))
}

/// A part that says nothing yet, and the content.
fn in_parts(found: Download, components: &Components) -> Response {
    let runtime: &Runtime = &components.runtime;
    let boundary = runtime.entropy.alphanumeric(BOUNDARY);
    let head = format!(
        "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n\
         Content-Type: {}\r\nContent-Disposition: {}\r\n\r\n",
        found.content_type, found.content_disposition,
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let length = found.length + (head.len() + tail.len()) as u64;
    let headers = [
        (
            header::CONTENT_TYPE,
            format!("multipart/mixed; boundary={boundary}"),
        ),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    let content = Cursor::new(head)
        .chain(found.content)
        .chain(Cursor::new(tail));
    let patience = components.http_config.stall_timeout;
    let body = outgoing(content, patience, &runtime.tasks);
    (headers, body).into_response()
}
