//! A handler that panics: its client gets an answer instead of a closed connection, and everybody
//! else on that connection keeps theirs.

use std::{any::Any, panic::AssertUnwindSafe};

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;

use super::ApiError;

/// A handler panicked, with what it said.
#[derive(Debug, thiserror::Error)]
#[error("a handler panicked: {0}")]
struct Panicked(String);

/// Answers 500 for a handler that panics, and logs it. What the handler held is dropped, and no
/// lock is poisoned by that: a command that was under way goes on or is taken back as if the
/// client had hung up.
pub(super) async fn answer(request: Request, next: Next) -> Response {
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind();
    handled.await.unwrap_or_else(|panic| {
        ApiError::internal(&Panicked(said(&*panic).to_owned())).into_response()
    })
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, middleware, routing::get};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn panicking() -> &'static str {
        tokio::task::yield_now().await;
        panic!("secret {}", 7)
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_that_tells_nothing() {
        let router: Router = Router::new()
            .route("/panics", get(panicking))
            .route("/works", get(async || "fine"))
            .layer(middleware::from_fn(answer));
        for (path, status, body) in [
            (
                "/panics",
                500,
                r#"{"errcode":"M_UNKNOWN","error":"Internal server error"}"#,
            ),
            ("/works", 200, "fine"),
            (
                "/panics",
                500,
                r#"{"errcode":"M_UNKNOWN","error":"Internal server error"}"#,
            ),
        ] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), status, "{path}");
            let bytes = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(bytes, body, "{path}");
        }
    }

    #[test]
    fn a_panic_is_logged_with_what_it_says() {
        for (panic, expected) in [
            (Box::new("text") as Box<dyn Any + Send>, "text"),
            (Box::new("more".to_owned()), "more"),
            (Box::new(7), "without a message"),
        ] {
            assert_eq!(said(&*panic), expected);
        }
    }
}
