//! The client: one request, one answer, within limits.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use ipnet::IpNet;
use reqwest::Url;
use rustls_pki_types::CertificateDer;

use crate::{
    AddressPolicy, Denied, Endpoint, LookupError, Reply, SrvTarget, StreamLimits, TransportError,
    connect::Connector, resolver::GuardedResolver, send::Lines, tls,
};

/// Time to connect, TLS included.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle connections kept for one host.
const IDLE_PER_HOST: usize = 4;

/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// How the client is set up, from the configuration.
#[derive(Clone, Debug, Default)]
pub struct OutboundOptions {
    /// Private ranges that may be reached after all (`federation.allowed_private_ranges`).
    pub allowed_private_ranges: Vec<IpNet>,
    /// DNS servers to ask; empty asks the operating system.
    pub dns_servers: Vec<SocketAddr>,
    /// Certificate authorities trusted besides the system's.
    pub extra_ca_certificates: Vec<CertificateDer<'static>>,
    /// The `User-Agent` sent with each request; none if empty.
    pub user_agent: String,
}

/// The client could not be made from its options.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The resolver refused its configuration.
    #[error("the DNS resolver could not be set up")]
    Dns(#[source] Box<dyn Error + Send + Sync>),
    /// An extra certificate authority is not a certificate.
    #[error("an extra CA certificate cannot be used")]
    Certificate(#[source] rustls::Error),
    /// The TLS library refused its configuration.
    #[error("TLS could not be set up")]
    Tls(#[source] rustls::Error),
    /// The HTTP library refused its configuration.
    #[error("the HTTP client could not be set up")]
    Http(#[source] Box<dyn Error + Send + Sync>),
    /// The user agent holds characters that no header may hold.
    #[error("the user agent is not a valid header value")]
    UserAgent,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The address, or all addresses of the name, are in a denied range. Nothing was connected.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Neither `https:` nor an allowed `http:` URL, or one without a host.
    #[error("{0} cannot be fetched: not an allowed scheme, or no host")]
    Url(Url),
    /// More redirects than the caller allows, or one that leads nowhere.
    #[error("redirected to where it may not be followed")]
    Redirect,
    /// The body is longer than the caller's limit, in bytes.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The deadline passed.
    #[error("no complete answer within {0:?}")]
    Deadline(Duration),
    /// The name has no address, nothing listens there, TLS failed, or the connection broke.
    #[error("the request failed")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

/// What one exchange may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the answer's body.
    pub body: usize,
    /// Time for everything together.
    pub deadline: Duration,
    /// Redirects to follow; 0 hands a redirect back as the answer.
    pub redirects: u8,
    /// Whether plain `http:` is refused, also as the target of a redirect.
    pub https_only: bool,
}

/// A request to make.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The method. Only `GET` and `HEAD` follow redirects.
    pub method: Method,
    /// Where to.
    pub url: Url,
    /// Headers besides those the client sets itself.
    pub headers: HeaderMap,
    /// The body; empty for none.
    pub body: Bytes,
    /// What it may cost.
    pub limits: Limits,
}

impl Exchange {
    /// A plain `GET`.
    #[must_use]
    pub fn fetch(url: Url, limits: Limits) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            limits,
        }
    }
}

/// A whole answer, of any status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status as received.
    pub status: StatusCode,
    /// The headers as received.
    pub headers: HeaderMap,
    /// The body, no longer than [`Limits::body`].
    pub body: Bytes,
    /// Who answered: the last URL of the redirects.
    pub url: Url,
}

/// The guarded client. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Outbound {
    client: reqwest::Client,
    pub(crate) lines: Arc<Lines>,
    policy: AddressPolicy,
}

impl fmt::Debug for Outbound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Outbound")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Outbound {
    /// A client set up by `options`. Reads the system's certificates from disk.
    pub fn new(options: &OutboundOptions) -> Result<Self, SetupError> {
        let policy = AddressPolicy::public_and(options.allowed_private_ranges.iter().copied());
        let resolver = GuardedResolver::new(&options.dns_servers, policy.clone())?;
        let trust = tls::client_config(&options.extra_ca_certificates)?;
        let agent = HeaderValue::from_str(&options.user_agent);
        let agent = agent.map_err(|_| SetupError::UserAgent)?;
        let agent = Some(agent).filter(|agent| !agent.is_empty());
        let connector = Connector::new(resolver.clone(), policy.clone(), trust.clone());
        let lines = Arc::new(Lines::new(connector, agent.clone()));
        let headers = agent.map(|agent| (header::USER_AGENT, agent));
        #[expect(clippy::disallowed_methods, reason = "this is the guarded client")]
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(trust)
            .dns_resolver(Arc::new(resolver))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .default_headers(headers.into_iter().collect())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build()
            .map_err(|error| SetupError::Http(Box::new(error)))?;
        Ok(Self {
            client,
            lines,
            policy,
        })
    }

    /// The rule by which addresses are judged, for callers that resolve names themselves.
    pub fn policy(&self) -> &AddressPolicy {
        &self.policy
    }

    /// Makes one request and reads the whole answer, whatever its status.
    pub async fn exchange(&self, exchange: Exchange) -> Result<Answer, OutboundError> {
        let deadline = exchange.limits.deadline;
        tokio::time::timeout(deadline, self.follow(exchange))
            .await
            .unwrap_or(Err(OutboundError::Deadline(deadline)))
    }

    /// The SRV records of a name, by priority. None is an answer, too.
    pub async fn srv(&self, name: &str) -> Result<Vec<SrvTarget>, LookupError> {
        self.lines.connector.resolver().srv(name).await
    }

    /// Makes one request to `endpoint` over TLS and HTTP/1.1, and gives the head of the answer, of
    /// any status; its body comes as it arrives. Of the request's URI only path and query are sent,
    /// byte for byte. Redirects are not followed.
    pub async fn send(
        &self,
        endpoint: &Endpoint,
        request: http::Request<Bytes>,
        limits: StreamLimits,
    ) -> Result<Reply, TransportError> {
        self.lines.send(endpoint, request, limits).await
    }

    async fn follow(&self, mut exchange: Exchange) -> Result<Answer, OutboundError> {
        let limits = exchange.limits;
        let follows = [Method::GET, Method::HEAD].contains(&exchange.method);
        let mut left = limits.redirects;
        loop {
            let response = self.once(&exchange).await?;
            let redirected = redirect_target(&exchange.url, &response);
            if limits.redirects == 0 || !follows || matches!(redirected, Redirected::No) {
                return read(exchange.url, response, limits.body).await;
            }
            left = left.checked_sub(1).ok_or(OutboundError::Redirect)?;
            let Redirected::To(target) = redirected else {
                return Err(OutboundError::Redirect);
            };
            if target.origin() != exchange.url.origin() {
                // Credentials were meant for the first host only.
                exchange.headers.remove(header::AUTHORIZATION);
                exchange.headers.remove(header::COOKIE);
            }
            exchange.url = target;
        }
    }

    async fn once(&self, exchange: &Exchange) -> Result<reqwest::Response, OutboundError> {
        self.check_url(&exchange.url, exchange.limits)?;
        let mut request = self
            .client
            .request(exchange.method.clone(), exchange.url.clone())
            .headers(exchange.headers.clone());
        if !exchange.body.is_empty() {
            request = request.body(exchange.body.clone());
        }
        request.send().await.map_err(classify)
    }

    /// The scheme, and the host where it is an address: those never reach the resolver.
    fn check_url(&self, url: &Url, limits: Limits) -> Result<(), OutboundError> {
        let scheme_allowed = match url.scheme() {
            "https" => true,
            "http" => !limits.https_only,
            _ => false,
        };
        let host = match url.host_str() {
            Some(host) if scheme_allowed => host,
            _ => return Err(OutboundError::Url(url.clone())),
        };
        // `Url` has already turned octal, hexadecimal and short forms into plain addresses.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            self.policy.check(address)?;
        }
        Ok(())
    }
}

/// Whether and where an answer redirects.
enum Redirected {
    No,
    Nowhere,
    To(Url),
}

fn redirect_target(from: &Url, response: &reqwest::Response) -> Redirected {
    let redirects = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    if !redirects.contains(&response.status()) {
        return Redirected::No;
    }
    let location = response.headers().get(header::LOCATION);
    let target = location.and_then(|value| from.join(value.to_str().ok()?).ok());
    target.map_or(Redirected::Nowhere, Redirected::To)
}

/// Reads the body up to `limit` bytes; one more is an error, announced or not.
async fn read(
    url: Url,
    mut response: reqwest::Response,
    limit: usize,
) -> Result<Answer, OutboundError> {
    let announced = response.content_length().unwrap_or(0);
    if announced > limit as u64 {
        return Err(OutboundError::TooLarge(limit));
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(classify)? {
        if body.len() + chunk.len() > limit {
            return Err(OutboundError::TooLarge(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer {
        status: response.status(),
        headers: std::mem::take(response.headers_mut()),
        body: body.freeze(),
        url,
    })
}

/// Finds our own refusal inside the HTTP library's error.
fn classify(error: reqwest::Error) -> OutboundError {
    let mut source: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(denied) = cause.downcast_ref::<Denied>() {
            return OutboundError::Denied(*denied);
        }
        source = cause.source();
    }
    OutboundError::Failed(Box::new(error))
}
