//! Requests to an [`Endpoint`]: name, certificate and `Host` as the caller says, the answer's body
//! as it arrives.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderValue, Request, Response,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HOST, USER_AGENT},
};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use crate::{
    Body, Endpoint, Reply, StreamLimits, TransportError,
    connect::Connector,
    line::NoAnswer,
    pool::{Key, Pool, Pooled},
};

/// Sends requests to endpoints, on connections of its own.
pub(crate) struct Lines {
    pub(crate) connector: Connector,
    pub(crate) pool: Pool,
    user_agent: Option<HeaderValue>,
}

impl Lines {
    pub(crate) fn new(connector: Connector, user_agent: Option<HeaderValue>) -> Self {
        Self {
            connector,
            pool: Pool::default(),
            user_agent,
        }
    }

    pub(crate) async fn send(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        request: Request<Bytes>,
        limits: StreamLimits,
    ) -> Result<Reply, TransportError> {
        let until = Instant::now() + limits.deadline;
        let request = self.dressed(endpoint, request);
        let exchange = timeout_at(until, self.exchange(endpoint, request));
        let (pooled, answer) = exchange.await.map_err(|_| TransportError::Deadline)??;
        let (head, body) = answer.into_parts();
        let announced = head.headers.get(CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limits.body as u64) {
            return Err(TransportError::TooLarge(limits.body));
        }
        let encoding = head.headers.get(CONTENT_ENCODING);
        if let Some(encoding) = encoding.filter(|encoding| *encoding != "identity") {
            return Err(TransportError::Broken(format!("encoded as {encoding:?}")));
        }
        let arriving = Arriving {
            pooled,
            body,
            until,
            limits,
            home: (Arc::clone(self), Key::of(endpoint)),
        };
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body: Body::new(stream::try_unfold(arriving, Arriving::next), limits.body),
        })
    }

    /// The request with the headers that are ours to set.
    fn dressed(&self, endpoint: &Endpoint, request: Request<Bytes>) -> Request<Full<Bytes>> {
        let mut request = request.map(Full::new);
        let headers = request.headers_mut();
        headers.insert(HOST, endpoint.host.clone());
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(agent) = &self.user_agent {
            headers.insert(USER_AGENT, agent.clone());
        }
        request
    }

    /// Sends on an idle connection, else on a new one. A request that an idle connection did not
    /// take because it had just ended goes on; one that may have arrived is not sent again.
    async fn exchange(
        &self,
        endpoint: &Endpoint,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Pooled, Response<Incoming>), TransportError> {
        let key = Key::of(endpoint);
        while let Some(mut pooled) = self.pool.take(&key) {
            if !pooled.line.is_free().await {
                continue;
            }
            match pooled.line.send(request).await {
                Ok(answer) => return Ok((pooled, answer)),
                Err(NoAnswer::Unsent(again, _)) => request = *again,
                Err(NoAnswer::Failed(error)) => return Err(error),
            }
        }
        let mut pooled = Pooled::new(self.connector.connect(endpoint).await?);
        match pooled.line.send(request).await {
            Ok(answer) => Ok((pooled, answer)),
            Err(NoAnswer::Unsent(_, error) | NoAnswer::Failed(error)) => Err(error),
        }
    }
}

/// A body on its way.
struct Arriving {
    pooled: Pooled,
    body: Incoming,
    until: Instant,
    limits: StreamLimits,
    /// Where the connection goes when the body has ended.
    home: (Arc<Lines>, Key),
}

impl Arriving {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, TransportError> {
        let stalled = Instant::now() + self.limits.stall;
        let wait = stalled.min(self.until);
        let chunk = timeout_at(wait, self.pooled.line.chunk(&mut self.body));
        let late = |_| {
            if wait < self.until {
                TransportError::Stalled
            } else {
                TransportError::Deadline
            }
        };
        if let Some(chunk) = chunk.await.map_err(late)?? {
            return Ok(Some((chunk, self)));
        }
        if self.pooled.line.is_free().await {
            let (lines, key) = self.home;
            lines.pool.put(key, self.pooled);
        }
        Ok(None)
    }
}
