//! Media of other servers: asked of the server that an `mxc:` URI names, and read as they come.
//!
//! An answer has two parts, of which the first says nothing yet; the second is the content, or says
//! where it lies. Servers that do not know the endpoint are asked by the one before it. How much a
//! content may be, how long all of it may take and how long it may stand still is bounded by the
//! call: nobody holds it by sending a byte now and then.
//!
//! Specification: server-server API, "Content Repository".

mod multipart;

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderMap, StatusCode, header};
use ruma::ServerName;

use self::multipart::Multipart;
use crate::{Body, Call, CallError, Limits, Path, Peers, Reply};

/// How long a content may take from the question to its last byte.
const DEADLINE: Duration = Duration::from_mins(5);

/// How long it may stand still.
const STALL: Duration = Duration::from_secs(20);

/// How long the other server may wait for a content that is announced and not uploaded yet, which
/// is less than it may stand still.
const PATIENCE: Duration = Duration::from_secs(15);

/// Bytes of an answer that are no content.
const AROUND: usize = 64 * 1024;

/// A content on its way.
pub struct RemoteContent {
    /// Its type, as the other server says.
    pub content_type: Option<String>,
    /// Its name, as the other server says.
    pub file_name: Option<String>,
    chunks: Chunks,
}

impl std::fmt::Debug for RemoteContent {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("RemoteContent")
            .field("content_type", &self.content_type)
            .finish_non_exhaustive()
    }
}

enum Chunks {
    /// All of the body.
    Plain(Body),
    /// Its second part.
    Part(Box<Multipart>),
}

impl RemoteContent {
    /// The content in pieces. One that breaks off ends with an error.
    pub fn pieces(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self.chunks, |mut chunks| async move {
            let piece = match &mut chunks {
                Chunks::Plain(body) => body.chunk().await,
                Chunks::Part(part) => part.content().await,
            };
            let piece = piece.map_err(io::Error::other)?;
            Ok(piece.map(|piece| (piece, chunks)))
        })
    }

    fn plain(reply: Reply) -> Self {
        let (content_type, file_name) = described(&reply.headers);
        Self {
            content_type,
            file_name,
            chunks: Chunks::Plain(reply.body),
        }
    }
}

impl Peers {
    /// Asks `server` for one of its media, of at most `largest` bytes.
    ///
    /// # Errors
    /// When it does not answer with a content.
    pub async fn medium(
        &self,
        server: &ServerName,
        id: &str,
        largest: u64,
    ) -> Result<RemoteContent, CallError> {
        let largest = usize::try_from(largest).unwrap_or(usize::MAX - AROUND);
        let limits = Limits {
            body: largest.saturating_add(AROUND),
            deadline: DEADLINE,
            stall: STALL,
        };
        let timeout = PATIENCE.as_millis().to_string();
        let path = Path::v1("media/download").segment(id);
        let call = Call::get(path.query("timeout_ms", &timeout)).limits(limits);
        let reply = match self.stream(server, call.urgent()).await {
            Err(error) if is_unrecognized(&error) => {
                let path = Path::of("/_matrix/media/v3/download")
                    .segment(server)
                    .segment(id)
                    .query("allow_remote", "false")
                    .query("timeout_ms", &timeout);
                let call = Call::get(path).limits(limits).urgent();
                let reply = self.stream(server, call).await?;
                return Ok(RemoteContent::plain(reply));
            }
            other => other?,
        };
        let mut parts = Multipart::new(reply)?;
        let head = parts.second_head().await?;
        if let Some(location) = head.get(header::LOCATION) {
            let location = location.to_str();
            let location = location.map_err(|error| bad(&error.to_string()))?;
            let reply = self.elsewhere(location, limits).await?;
            return Ok(RemoteContent::plain(reply));
        }
        let (content_type, file_name) = described(&head);
        Ok(RemoteContent {
            content_type,
            file_name,
            chunks: Chunks::Part(Box::new(parts)),
        })
    }
}

fn is_unrecognized(error: &CallError) -> bool {
    matches!(error, CallError::Refused { status, errcode, .. }
        if *status == StatusCode::NOT_FOUND && (errcode == "M_UNRECOGNIZED" || errcode.is_empty()))
}

fn bad(what: &str) -> CallError {
    CallError::BadAnswer(what.to_owned())
}

/// Type and name of a content.
fn described(head: &HeaderMap) -> (Option<String>, Option<String>) {
    let text = |name| head.get(name).and_then(|value| value.to_str().ok());
    let kind = text(header::CONTENT_TYPE).map(str::to_owned);
    let name = text(header::CONTENT_DISPOSITION).and_then(file_name);
    (kind, name)
}

/// `filename` of a `Content-Disposition`; the encoded form counts before the plain one.
fn file_name(disposition: &str) -> Option<String> {
    let mut plain = None;
    for parameter in disposition.split(';').skip(1) {
        let Some((name, value)) = parameter.split_once('=') else {
            continue;
        };
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "filename*" => {
                let encoded = value.rsplit('\'').next().unwrap_or_default();
                let decoded = percent_encoding::percent_decode_str(encoded).decode_utf8();
                if let Ok(decoded) = decoded {
                    return Some(decoded.into_owned());
                }
            }
            "filename" => plain = Some(value.to_owned()),
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_read() {
        for (disposition, name) in [
            ("inline", None),
            ("attachment; filename=a.png", Some("a.png")),
            ("attachment; filename=\"a b.png\"", Some("a b.png")),
            (
                "inline; filename=x; filename*=utf-8''%C3%A4.png",
                Some("ä.png"),
            ),
            ("inline; filename*=utf-8''%FF; filename=x", Some("x")),
            ("inline; filename", None),
        ] {
            assert_eq!(file_name(disposition).as_deref(), name, "{disposition}");
        }
    }
}
