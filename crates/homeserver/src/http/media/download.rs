//! Downloads and thumbnails, over the authenticated endpoints and the old ones that ask for no
//! token.

use std::time::Duration;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use homeserver_media::{
    Access, Download, MediaId, serving,
    thumbnail::{Animation, Method, Wanted},
};
use ruma::{
    ServerName, UInt,
    api::{
        IncomingRequest,
        client::{
            authenticated_media::{get_content, get_content_as_filename, get_content_thumbnail},
            media as old,
        },
    },
    media::Method as WantedMethod,
};

use super::stream;
use crate::{
    app::{limits::LimitKey, session::Session},
    http::{ApiError, Components, Routes, Ruma},
};

/// How long a download waits for a reserved content unless the request says otherwise.
const DEFAULT_WAIT: Duration = Duration::from_secs(20);

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(file::<get_content::v1::Request>)
        .ruma(file::<get_content_as_filename::v1::Request>)
        .ruma(file::<get_content_thumbnail::v1::Request>)
        .merge(old_routes())
}

#[expect(deprecated, reason = "served by configuration")]
fn old_routes() -> Routes {
    Routes::new()
        .ruma(file::<old::get_content::v3::Request>)
        .ruma(file::<old::get_content_as_filename::v3::Request>)
        .ruma(file::<old::get_content_thumbnail::v3::Request>)
}

/// What a request asks for.
struct Wish<'a> {
    server: &'a ServerName,
    id: &'a str,
    wait: Duration,
    /// Whether the server of the content may be asked for it.
    may_fetch: bool,
    form: Form<'a>,
}

/// In which form a content is wanted.
enum Form<'a> {
    /// As it is, under another name if one is given.
    Original(Option<&'a str>),
    /// Smaller.
    Thumbnail {
        size: (UInt, UInt),
        method: Option<&'a WantedMethod>,
        animated: Option<bool>,
    },
}

/// A request for a content, on whichever endpoint.
trait FileRequest: IncomingRequest + Send + 'static {
    const ACCESS: Access;

    fn wish(&self) -> Wish<'_>;
}

/// The requests of both generations have the same fields.
macro_rules! file_requests {
    ($($request:ty: $access:ident, |$this:ident| $wait:expr, $may_fetch:expr, $form:expr;)*) => {
        $(impl FileRequest for $request {
            const ACCESS: Access = Access::$access;

            fn wish(&self) -> Wish<'_> {
                let $this = self;
                Wish {
                    server: &$this.server_name,
                    id: &$this.media_id,
                    wait: $wait,
                    may_fetch: $may_fetch,
                    form: $form,
                }
            }
        })*
    };
}

macro_rules! thumbnail {
    ($request:ident) => {
        Form::Thumbnail {
            size: ($request.width, $request.height),
            method: $request.method.as_ref(),
            animated: $request.animated,
        }
    };
}

file_requests! {
    get_content::v1::Request: Authenticated,
        |it| it.timeout_ms, true, Form::Original(None);
    get_content_as_filename::v1::Request: Authenticated,
        |it| it.timeout_ms, true, Form::Original(Some(&it.filename));
    get_content_thumbnail::v1::Request: Authenticated,
        |it| it.timeout_ms, true, thumbnail!(it);
}

mod old_requests {
    #![expect(deprecated, reason = "served by configuration")]

    use super::{Access, DEFAULT_WAIT, FileRequest, Form, Wish, old};

    file_requests! {
        old::get_content::v3::Request: Legacy,
            |it| it.timeout_ms, it.allow_remote, Form::Original(None);
        old::get_content_as_filename::v3::Request: Legacy,
            |it| DEFAULT_WAIT, it.allow_remote, Form::Original(Some(&it.filename));
        old::get_content_thumbnail::v3::Request: Legacy,
            |it| it.timeout_ms, it.allow_remote, thumbnail!(it);
    }
}

async fn file<R: FileRequest>(
    State(components): State<Components>,
    session: Option<Session>,
    client: LimitKey,
    request: Result<Ruma<R>, ApiError>,
) -> Result<Response, ApiError> {
    if R::ACCESS == Access::Authenticated && session.is_none() {
        return Err(ApiError::missing_token());
    }
    let Ruma(request) = request?;
    let Wish {
        server,
        id,
        wait,
        may_fetch,
        form,
    } = request.wish();
    // An id that cannot be is one that is not there.
    let id = MediaId::parse(id).map_err(|_| ApiError::not_found("No such media"))?;
    let media = &components.media;
    // Strangers have nothing fetched where the old endpoints are frozen.
    let open = media.options().allow_legacy_unauthenticated;
    if may_fetch && (open || R::ACCESS == Access::Authenticated) {
        components.remote_media.fetch(server, &id, &client).await?;
    }
    let found = match form {
        Form::Original(name) => media.open_file(server, &id, R::ACCESS, wait, name).await?,
        Form::Thumbnail {
            size,
            method,
            animated,
        } => {
            let wanted = wanted(size, method, animated)?;
            media
                .thumbnail((server, &id), wanted, &asker(client), R::ACCESS, wait)
                .await?
        }
    };
    Ok(served(found, &components))
}

/// Who waits for their turn with a thumbnail. No user id looks like an address.
fn asker(client: LimitKey) -> String {
    match client {
        LimitKey::User(user) => user.into(),
        LimitKey::Address(address) => address.to_string(),
        _ => String::new(),
    }
}

pub(in crate::http) fn wanted(
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

/// A content with the headers that keep browsers from running it.
fn served(found: Download, components: &Components) -> Response {
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
    let patience = components.http_config.stall_timeout;
    let body = stream::outgoing(found.content, patience, &components.runtime.tasks);
    (headers, fixed, body).into_response()
}
