//! Pages for browsers: the welcome page, logging in for applications that cannot, and the stages of
//! user-interactive authentication for applications that do not know them.
//!
//! Nothing of a request is ever written into a page. Scripts are part of the page and named by
//! their hash in its policy; nothing else runs, and no page stands in another's frame.
//!
//! Specification: client-server API, "Login Fallback", "Fallback" of user-interactive
//! authentication.

use axum::{
    extract::{Path, Query, Request, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ruma::OwnedServerName;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{ApiError, BodyBudget, Counted, Routes};
use crate::{
    app::{
        authentication::{AuthenticationError, Authenticator, PageOutcome},
        interactive::Stage,
        invitation::Invitations,
        limits::{LimitClass, LimitKey},
    },
    config::RegistrationMode,
};

const WELCOME: &str = include_str!("pages/welcome.html");
const STAGE: &str = include_str!("pages/stage.html");
const DONE: &str = include_str!("pages/done.html");
const DONE_SCRIPT: &str = include_str!("pages/done.js");
const LOGIN: &str = include_str!("pages/login.html");
const LOGIN_SCRIPT: &str = include_str!("pages/login.js");

/// Bytes of what a form sends: a password of the greatest length, each byte escaped.
const MAX_FORM: usize = 4 * 1024;

pub(super) fn routes() -> Routes {
    let reading = Counted::As(LimitClass::Other);
    let mut routes = Routes::new().raw("/", reading, get(welcome)).raw(
        "/_matrix/static/client/login/",
        reading,
        get(login),
    );
    for path in [
        "/_matrix/client/v3/auth/{stage}/fallback/web",
        "/_matrix/client/r0/auth/{stage}/fallback/web",
    ] {
        routes = routes.raw(path, reading, get(stage)).raw(
            path,
            Counted::As(LimitClass::Login),
            post(attempt),
        );
    }
    routes
}

/// A page, with a policy under which only `script` runs.
fn page(status: StatusCode, html: String, script: Option<&str>) -> Response {
    let mut policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; \
                      frame-ancestors 'none'; base-uri 'none'"
        .to_owned();
    if let Some(script) = script {
        let hash = STANDARD.encode(Sha256::digest(script));
        policy.push_str("; connect-src 'self'; script-src 'sha256-");
        policy.push_str(&hash);
        policy.push('\'');
    }
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, Html(html)).into_response()
}

async fn welcome(
    State(server_name): State<OwnedServerName>,
    State(invitations): State<Invitations>,
) -> Response {
    // A server name holds no character that HTML would take for its own.
    let html = WELCOME
        .replace("{server_name}", server_name.as_str())
        .replace("{registration}", how_to_register(invitations.mode()));
    page(StatusCode::OK, html, None)
}

/// The same before and after the first account: strangers are not told whether there is one.
fn how_to_register(mode: RegistrationMode) -> &'static str {
    match mode {
        RegistrationMode::Token => {
            "To create an account, enter a registration token. The first account becomes the \
             administrator; its token is the one in the server's configuration, or else the one \
             that the server shows when it starts."
        }
        RegistrationMode::Open => {
            "Everybody may create an account. None of them becomes the administrator: whoever runs \
             the server makes one with <code>homeserver admin promote</code> while it is stopped."
        }
        RegistrationMode::Closed => {
            "Nobody can create an account from here: whoever runs the server makes them, with \
             <code>homeserver admin create-user</code> while it is stopped."
        }
    }
}

async fn login() -> Response {
    let html = LOGIN.replace("{script}", LOGIN_SCRIPT);
    page(StatusCode::OK, html, Some(LOGIN_SCRIPT))
}

#[derive(Debug, Deserialize)]
struct SessionQuery {
    session: String,
}

type AskedSession = Result<Query<SessionQuery>, QueryRejection>;

async fn stage(
    State(authenticator): State<Authenticator>,
    Path(name): Path<String>,
    query: AskedSession,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let offered = authenticator.interactive.offered(&query.session, &name);
    Ok(match offered {
        Some((stage, _)) => form(stage, StatusCode::OK, ""),
        None => no_session(),
    })
}

/// The one field of every form.
#[derive(Default, Deserialize)]
struct Entered {
    #[serde(default)]
    entered: String,
}

async fn attempt(
    State(authenticator): State<Authenticator>,
    State(bodies): State<BodyBudget>,
    client: LimitKey,
    Path(name): Path<String>,
    query: AskedSession,
    request: Request,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let body = bodies
        .read_at_most(request.into_body(), client, MAX_FORM)
        .await?;
    let entered = entered(&body.bytes)?;
    let Some((stage, _)) = authenticator.interactive.offered(&query.session, &name) else {
        return Ok(no_session());
    };
    let attempted = authenticator.on_page(&query.session, &name, entered).await;
    Ok(match attempted {
        Ok(Some(PageOutcome::Done)) => {
            let html = DONE.replace("{script}", DONE_SCRIPT);
            page(StatusCode::OK, html, Some(DONE_SCRIPT))
        }
        Ok(Some(PageOutcome::Wrong)) => form(
            stage,
            StatusCode::UNAUTHORIZED,
            "That is not right. Try again.",
        ),
        Ok(None) => no_session(),
        Err(AuthenticationError::Limit(_)) => form(
            stage,
            StatusCode::TOO_MANY_REQUESTS,
            "Too many attempts. Try again later.",
        ),
        Err(error) => return Err(error.into()),
    })
}

/// What the form sent.
fn entered(body: &[u8]) -> Result<String, ApiError> {
    let unreadable = || ApiError::bad_json("The form cannot be read");
    let body = std::str::from_utf8(body).map_err(|_| unreadable())?;
    let uri = format!("/?{body}").parse().map_err(|_| unreadable())?;
    let form = Query::<Entered>::try_from_uri(&uri).map_err(|_| unreadable())?;
    Ok(form.0.entered)
}

fn form(stage: Stage, status: StatusCode, problem: &str) -> Response {
    let (purpose, field) = match stage {
        Stage::Password => (
            "Enter the password of your account to confirm what your application is about to do.",
            "<label>Password <input name=\"entered\" type=\"password\" \
             autocomplete=\"current-password\" required></label>",
        ),
        Stage::RegistrationToken => (
            "Enter the registration token that you were given for this server.",
            "<label>Token <input name=\"entered\" autocomplete=\"off\" required></label>",
        ),
        Stage::Dummy => ("Confirm what your application is about to do.", ""),
    };
    let problem = if problem.is_empty() {
        String::new()
    } else {
        format!("<p class=\"problem\">{problem}</p>")
    };
    let html = STAGE
        .replace("{purpose}", purpose)
        .replace("{problem}", &problem)
        .replace("{field}", field);
    page(status, html, None)
}

fn no_session() -> Response {
    let html = STAGE
        .replace(
            "{purpose}",
            "This page was opened too late, or by a wrong address. Go back to your application and \
             begin again.",
        )
        .replace("{problem}", "");
    // Without a form: there is nothing to continue.
    let start = html.find("<form").unwrap_or(html.len());
    let html = format!("{}</body>\n</html>\n", &html[..start]);
    page(StatusCode::NOT_FOUND, html, None)
}
