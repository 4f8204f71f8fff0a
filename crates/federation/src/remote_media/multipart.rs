//! A body of two parts (RFC 2046, "Multipart"), read as it comes: nothing but the heads of the parts
//! and a piece of the content is held.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::bad;
use crate::{Body, CallError, Reply, TransportError};

/// Bytes of everything before the content at most.
const MAX_HEAD: usize = 32 * 1024;

/// Characters of a boundary at most (RFC 2046).
const MAX_BOUNDARY: usize = 70;

/// The two parts.
pub(super) struct Multipart {
    body: Body,
    held: BytesMut,
    /// What stands between parts: line end, two dashes, the boundary.
    between: Vec<u8>,
    ended: bool,
}

impl Multipart {
    pub(super) fn new(reply: Reply) -> Result<Self, CallError> {
        let kind = reply.headers.get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let boundary = boundary(kind).ok_or_else(|| bad("no multipart/mixed with a boundary"))?;
        Ok(Self {
            body: reply.body,
            // The first boundary may stand at the very beginning.
            held: BytesMut::from("\r\n"),
            between: format!("\r\n--{boundary}").into_bytes(),
            ended: false,
        })
    }

    /// Passes over the first part, and gives the head of the second.
    pub(super) async fn second_head(&mut self) -> Result<HeaderMap, CallError> {
        for _ in 0..2 {
            let between = self.between.clone();
            self.pass(&between).await?;
            // Blanks may follow the boundary.
            self.pass(b"\r\n").await?;
        }
        // An empty head ends where it begins.
        let mut head = BytesMut::from("\r\n");
        head.extend_from_slice(&self.held);
        self.held = head;
        let end = self.find(b"\r\n\r\n").await?;
        let head = self.held.split_to(end);
        self.held.advance(4);
        headers(&head)
    }

    /// The next piece of the second part; `None` at its end.
    pub(super) async fn content(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            if self.ended {
                return Ok(None);
            }
            if let Some(end) = position(&self.held, &self.between) {
                self.ended = true;
                let last = self.held.split_to(end).freeze();
                return Ok(Some(last).filter(|last| !last.is_empty()));
            }
            // What may be the beginning of the end stays.
            let sure = self.held.len().saturating_sub(self.between.len());
            if sure > 0 {
                return Ok(Some(self.held.split_to(sure).freeze()));
            }
            let Some(chunk) = self.body.chunk().await? else {
                let what = "the content broke off".to_owned();
                return Err(TransportError::Broken(what));
            };
            self.held.extend_from_slice(&chunk);
        }
    }

    /// Passes over everything up to the end of `mark`.
    async fn pass(&mut self, mark: &[u8]) -> Result<(), CallError> {
        let at = self.find(mark).await?;
        self.held.advance(at + mark.len());
        Ok(())
    }

    /// Where `mark` begins.
    async fn find(&mut self, mark: &[u8]) -> Result<usize, CallError> {
        loop {
            if let Some(at) = position(&self.held, mark) {
                return Ok(at);
            }
            if self.held.len() > MAX_HEAD {
                return Err(bad("the head of a medium is too long"));
            }
            match self.body.chunk().await? {
                Some(chunk) => self.held.extend_from_slice(&chunk),
                None => return Err(bad("the head of a medium broke off")),
            }
        }
    }
}

fn position(text: &[u8], mark: &[u8]) -> Option<usize> {
    text.windows(mark.len()).position(|window| window == mark)
}

/// The boundary that a content type names.
fn boundary(kind: &str) -> Option<String> {
    let (kind, parameters) = kind.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/mixed") {
        return None;
    }
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let fits = (1..=MAX_BOUNDARY).contains(&value.len());
        (name.trim().eq_ignore_ascii_case("boundary") && fits).then(|| value.to_owned())
    })
}

/// The lines of a head. What cannot be read is passed over.
fn headers(head: &[u8]) -> Result<HeaderMap, CallError> {
    let head = std::str::from_utf8(head).map_err(|_| bad("the head of a medium is no text"))?;
    let mut headers = HeaderMap::new();
    for line in head.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let name = HeaderName::from_bytes(name.trim().as_bytes());
        let value = HeaderValue::from_bytes(value.trim().as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.insert(name, value);
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, stream};
    use http::StatusCode;

    use super::*;

    fn reply(kind: &str, text: &str, piece: usize) -> Reply {
        let pieces: Vec<_> = text
            .as_bytes()
            .chunks(piece)
            .map(Bytes::copy_from_slice)
            .collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
        Reply {
            status: StatusCode::OK,
            headers,
            body: Body::new(stream::iter(pieces.into_iter().map(Ok)), 1_000_000),
        }
    }

    /// Head and content, read in pieces of this size.
    fn read(text: &str, piece: usize) -> Result<(HeaderMap, String), String> {
        let reading = async {
            let kind = "multipart/mixed; boundary=\"b-1\"";
            let mut parts = Multipart::new(reply(kind, text, piece)).map_err(|e| e.to_string())?;
            let head = parts.second_head().await.map_err(|e| e.to_string())?;
            let mut content = Vec::new();
            while let Some(piece) = parts.content().await.map_err(|e| e.to_string())? {
                content.extend_from_slice(&piece);
            }
            Ok((head, String::from_utf8(content).unwrap()))
        };
        reading.now_or_never().unwrap()
    }

    #[test]
    fn the_second_part_is_the_content_however_it_comes() {
        let text = "--b-1\r\nContent-Type: application/json\r\n\r\n{}\r\n--b-1\r\n\
                    Content-Type: text/plain\r\n\r\nsome --b-1 \r\n-- text\r\n--b-1--\r\n";
        for piece in 1..text.len() {
            let (head, content) = read(text, piece).unwrap();
            assert_eq!(content, "some --b-1 \r\n-- text", "{piece}");
            assert_eq!(head[header::CONTENT_TYPE], "text/plain");
        }
        let bare = "\r\n--b-1\r\n\r\n{}\r\n--b-1\r\n\r\n\r\n--b-1--";
        for piece in 1..bare.len() {
            assert_eq!(read(bare, piece).unwrap().1, "", "{piece}");
        }
    }

    #[test]
    fn what_breaks_off_is_an_error() {
        let text = "--b-1\r\n\r\n{}\r\n--b-1\r\nA: b\r\n\r\ncontent\r\n--b-1";
        for end in 0..text.len() {
            assert!(read(&text[..end], 5).is_err(), "{end}");
        }
        let long = "a".repeat(MAX_HEAD * 2);
        assert!(read(&format!("--b-1\r\nA: {long}"), 1000).is_err());
        for kind in [
            "text/plain",
            "multipart/mixed",
            "multipart/mixed; boundary=",
        ] {
            assert!(Multipart::new(reply(kind, "", 1)).is_err(), "{kind}");
        }
    }
}
