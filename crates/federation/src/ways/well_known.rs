//! To whom a name delegates, by its `/.well-known/matrix/server`, and for how long that holds.
//!
//! Specification: server-server API, "Resolving server names", step 3.

use std::{fmt, sync::Arc, time::Duration};

use homeserver_outbound::{Answer, Exchange, Limits, Outbound, OutboundError, Url};
use homeserver_runtime::{Clock, Runtime, Tasks};
use http::{HeaderMap, StatusCode, header};
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;
use tokio::sync::Mutex;

/// Names of which it is remembered what they answered.
const NAMES: usize = 10_000;

/// What a question may cost. Calls with ten seconds in all are left some to go on with: where
/// nothing says so, a server is reached without a delegation.
const LIMITS: Limits = Limits {
    body: 50 * 1024,
    deadline: Duration::from_secs(5),
    redirects: 5,
    https_only: true,
};

/// How long an answer holds that does not say.
const USUAL: Duration = Duration::from_hours(24);

/// How long an answer holds at most; so long it is also used while there is no newer one.
const LONGEST: Duration = Duration::from_hours(48);

/// How long an answer holds at least.
const SHORTEST: Duration = Duration::from_mins(5);

/// When a name that delegates nowhere is asked again; each further time after twice as long.
const FIRST_PAUSE: Duration = Duration::from_mins(1);

/// The longest pause of these.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// Asks, and remembers.
pub(super) struct WellKnown {
    asker: Asker,
    tasks: Tasks,
    /// By host in lower case. Whoever holds the lock asks; others of the same name wait for it.
    known: Cache<String, Arc<Mutex<Known>>>,
}

/// Asks.
#[derive(Clone)]
struct Asker {
    outbound: Outbound,
    port: u16,
    clock: Arc<dyn Clock>,
}

impl WellKnown {
    pub(super) fn new(outbound: Outbound, port: u16, runtime: &Runtime) -> Self {
        let clock = Arc::clone(&runtime.clock);
        Self {
            asker: Asker {
                outbound,
                port,
                clock,
            },
            tasks: runtime.tasks.clone(),
            known: Cache::new(NAMES),
        }
    }

    /// To whom `host` delegates; `None` if to nobody, as far as can be found out.
    pub(super) async fn delegated(&self, host: &str) -> Option<OwnedServerName> {
        let host = host.to_ascii_lowercase();
        let Ok(known) = self
            .known
            .get_or_insert_with(&host, || Ok::<_, std::convert::Infallible>(Arc::default()));
        let mut known = known.lock_owned().await;
        let asker = self.asker.clone();
        if asker.clock.monotonic() < known.ask_at {
            return known.delegated(asker.clock.monotonic());
        }
        // Whoever has no time for the answer leaves it to the next.
        let asked = self.tasks.see_through(async move {
            let told = asker.ask(&host).await;
            let now = asker.clock.monotonic();
            known.note(told, now);
            known.delegated(now)
        });
        asked.await
    }
}

impl Asker {
    async fn ask(&self, host: &str) -> Told {
        let url = format!("https://{host}:{}/.well-known/matrix/server", self.port);
        let Ok(url) = url.parse::<Url>() else {
            return Told::Nobody;
        };
        let answer = self.outbound.exchange(Exchange::fetch(url, LIMITS)).await;
        let told = match &answer {
            Ok(answer) => read(answer, self.clock.unix_millis()),
            Err(OutboundError::Deadline(_) | OutboundError::Failed(_)) => Told::Nothing,
            Err(_) => Told::Nobody,
        };
        tracing::debug!(host, ?told, error = ?answer.err(), "asked for a delegation");
        told
    }
}

impl fmt::Debug for WellKnown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("WellKnown");
        debug.field("names", &self.known.len());
        debug.finish_non_exhaustive()
    }
}

/// What a name answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    /// It delegates to this one, and that holds for so long.
    Server(OwnedServerName, Duration),
    /// It delegates to nobody: it said so, or nothing that makes sense.
    Nobody,
    /// It did not answer, or not now.
    Nothing,
}

/// What is known of a name. Times are those of the monotonic clock.
#[derive(Debug, Default)]
struct Known {
    ask_at: Duration,
    /// The last good answer, and until when it may be used.
    good: Option<(OwnedServerName, Duration)>,
    /// How often in a row there was none.
    failures: u32,
}

impl Known {
    fn note(&mut self, told: Told, now: Duration) {
        if let Told::Server(server, lifetime) = told {
            *self = Self {
                ask_at: now + lifetime,
                good: Some((server, now + LONGEST)),
                failures: 0,
            };
            return;
        }
        if told == Told::Nobody {
            self.good = None;
        }
        let doubled = 2_u32.saturating_pow(self.failures);
        self.ask_at = now + FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
    }

    fn delegated(&self, now: Duration) -> Option<OwnedServerName> {
        let good = self.good.as_ref().filter(|(_, until)| now < *until);
        good.map(|(server, _)| server.clone())
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "m.server")]
    server: String,
}

fn read(answer: &Answer, unix_millis: u64) -> Told {
    let later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
    if answer.status.is_server_error() || later.contains(&answer.status) {
        return Told::Nothing;
    }
    let document = Some(&answer.body).filter(|_| answer.status == StatusCode::OK);
    let document = document.and_then(|body| serde_json::from_slice::<Document>(body).ok());
    let server = document.and_then(|document| ServerName::parse(document.server).ok());
    match server {
        Some(server) => Told::Server(server, lifetime(&answer.headers, unix_millis)),
        None => Told::Nobody,
    }
}

/// For how long an answer with these headers holds: `Cache-Control`, else `Expires`, else as usual.
fn lifetime(headers: &HeaderMap, unix_millis: u64) -> Duration {
    let lines = headers.get_all(header::CACHE_CONTROL).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    let directives = lines.flat_map(|line| line.split(','));
    let mut max_age = None;
    for directive in directives {
        let directive = directive.trim().to_ascii_lowercase();
        if ["no-store", "no-cache"].contains(&directive.as_str()) {
            return SHORTEST;
        }
        if let Some(seconds) = directive.strip_prefix("max-age=") {
            max_age = seconds.trim_matches('"').parse().ok();
        }
    }
    let expires = || {
        let date = headers.get(header::EXPIRES)?.to_str().ok()?;
        // A date that is none has passed.
        let date = httpdate::parse_http_date(date).unwrap_or(std::time::UNIX_EPOCH);
        let now = std::time::UNIX_EPOCH + Duration::from_millis(unix_millis);
        Some(date.duration_since(now).unwrap_or_default())
    };
    let told = max_age.map(Duration::from_secs).or_else(expires);
    told.unwrap_or(USUAL).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn an_answer_holds_as_long_as_its_headers_say_within_bounds() {
        let check = |headers: &[(&'static str, &'static str)], wanted: Duration| {
            let headers = headers.iter().map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            });
            // 2024-01-01 00:00:00.
            let held = lifetime(&headers.clone().collect(), 1_704_067_200_000);
            assert_eq!(held, wanted, "{:?}", headers.collect::<Vec<_>>());
        };
        let control = "cache-control";
        check(&[], 24 * HOUR);
        check(&[(control, "public, max-age=7200")], 2 * HOUR);
        check(&[(control, "Max-Age=\"7200\"")], 2 * HOUR);
        check(&[(control, "max-age=1")], 5 * MINUTE);
        check(&[(control, "max-age=999999999999")], 48 * HOUR);
        check(&[(control, "max-age=-1")], 24 * HOUR);
        check(&[(control, "max-age=7200, no-store")], 5 * MINUTE);
        check(&[(control, "no-cache")], 5 * MINUTE);
        let expires = ("expires", "Mon, 01 Jan 2024 03:00:00 GMT");
        check(&[expires], 3 * HOUR);
        check(&[expires, (control, "max-age=7200")], 2 * HOUR);
        check(&[expires, (control, "public")], 3 * HOUR);
        check(&[("expires", "Mon, 01 Jan 2018 03:00:00 GMT")], 5 * MINUTE);
        check(&[("expires", "0")], 5 * MINUTE);
    }

    #[test]
    fn what_is_no_good_answer_is_none() {
        let check = |status: u16, body: &'static str, wanted: Told| {
            let answer = Answer {
                status: StatusCode::from_u16(status).unwrap(),
                headers: HeaderMap::new(),
                body: body.into(),
                url: "https://a.example/".parse().unwrap(),
            };
            assert_eq!(read(&answer, 0), wanted, "{status} {body}");
        };
        let server = |name: &str| Told::Server(ServerName::parse(name).unwrap(), USUAL);
        check(
            200,
            r#"{"m.server":"b.example:443","x":1}"#,
            server("b.example:443"),
        );
        check(200, r#"{"m.server":"[::1]"}"#, server("[::1]"));
        for nonsense in [
            "",
            "[]",
            "{}",
            "b.example",
            r#"{"m.server":1}"#,
            r#"{"m.server":null}"#,
            r#"{"m.server":""}"#,
            r#"{"m.server":"b.example:99999"}"#,
            r#"{"m.server":"https://b.example"}"#,
            r#"{"m.server":"b.example/path"}"#,
            r#"{"m.server":"b.example"#,
        ] {
            check(200, nonsense, Told::Nobody);
        }
        let good = r#"{"m.server":"b.example"}"#;
        for status in [201, 204, 302, 400, 403, 404] {
            check(status, good, Told::Nobody);
        }
        for status in [408, 429, 500, 502, 503] {
            check(status, good, Told::Nothing);
        }
    }

    #[test]
    fn a_name_that_does_not_answer_is_asked_more_and_more_seldom() {
        let mut known = Known::default();
        let mut now = Duration::from_secs(7);
        let pauses: Vec<_> = (0..9)
            .map(|_| {
                known.note(Told::Nothing, now);
                let pause = known.ask_at.saturating_sub(now);
                now = known.ask_at;
                pause.as_secs() / 60
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(known.delegated(now), None);
    }

    #[test]
    fn a_good_answer_outlives_silence_but_not_a_no() {
        let server = ServerName::parse("b.example").unwrap();
        let good = || Told::Server(server.clone(), HOUR);
        let mut known = Known::default();
        known.note(good(), MINUTE);
        assert_eq!(known.ask_at, HOUR + MINUTE);
        known.note(Told::Nothing, 2 * HOUR);
        assert_eq!(known.ask_at, 2 * HOUR + MINUTE);
        assert_eq!(known.delegated(47 * HOUR), Some(server.clone()));
        assert_eq!(known.delegated(49 * HOUR), None);
        known.note(good(), 50 * HOUR);
        assert_eq!(known.failures, 0);
        known.note(Told::Nobody, 51 * HOUR);
        assert_eq!(known.delegated(51 * HOUR), None);
    }
}
