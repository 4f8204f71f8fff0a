//! One HTTP/1.1 connection, driven by whoever waits for its answer: no task of its own, so that
//! nothing of it outlives the request or the pool.

use std::{
    error::Error as _,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::TransportError;

/// Bytes read ahead, and so the longest head of an answer.
const READ_BUFFER: usize = 64 * 1024;

type Io = TokioIo<TlsStream<TcpStream>>;
type Driver = Pin<Box<Connection<Io, Full<Bytes>>>>;

/// A connection that carries one exchange at a time.
pub(crate) struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once it ended.
    driver: Option<Driver>,
}

/// Why there is no head of an answer.
pub(crate) enum NoAnswer {
    /// The connection ended before anything of the request was written; here it is again.
    Unsent(Box<Request<Full<Bytes>>>, TransportError),
    /// It may have arrived.
    Failed(TransportError),
}

impl Line {
    pub(crate) async fn open(stream: TlsStream<TcpStream>) -> Result<Self, TransportError> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(READ_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failure(&error))?;
        let driver = Some(Box::pin(connection));
        Ok(Self { sender, driver })
    }

    /// Sends a request, and waits for the head of its answer.
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let answer = self.sender.try_send_request(request);
        drive(&mut self.driver, answer).await.map_err(|mut error| {
            let unsent = error.take_message();
            let error = failure(error.error());
            match unsent {
                Some(request) => NoAnswer::Unsent(Box::new(request), error),
                None => NoAnswer::Failed(error),
            }
        })
    }

    /// The next piece of the answer's body; `None` at its end.
    pub(crate) async fn chunk(
        &mut self,
        body: &mut Incoming,
    ) -> Result<Option<Bytes>, TransportError> {
        loop {
            let Some(frame) = drive(&mut self.driver, body.frame()).await else {
                return Ok(None);
            };
            // Trailers say nothing to us; there is at most one frame of them.
            if let Ok(chunk) = frame.map_err(|error| failure(&error))?.into_data() {
                return Ok(Some(chunk));
            }
        }
    }

    /// Whether it can carry another exchange, as far as is known here.
    pub(crate) async fn is_free(&mut self) -> bool {
        // The first turn takes in what arrived, also the end; the second settles in being idle.
        for _ in 0..2 {
            let turn = poll_fn(|_| Poll::Ready(()));
            drive(&mut self.driver, turn).await;
            if self.driver.is_none() || self.sender.is_ready() {
                break;
            }
        }
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// Awaits `work`, which needs the connection to move.
async fn drive<T>(driver: &mut Option<Driver>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Some(connection) = driver
            && connection.as_mut().poll(context).is_ready()
        {
            // What it ended with is told to `work`, also by dropping it.
            *driver = None;
        }
        work.as_mut().poll(context)
    })
    .await
}

fn failure(error: &hyper::Error) -> TransportError {
    let cause = error.source().map(|cause| format!(": {cause}"));
    let text = format!("{error}{}", cause.unwrap_or_default());
    if error.is_parse() || error.is_parse_too_large() {
        TransportError::Broken(text)
    } else {
        TransportError::Unreachable(text)
    }
}
