//! Registering endpoints: method and paths from ruma, parameters named by their index.

use std::borrow::Cow;

use axum::{
    Router,
    handler::Handler,
    middleware,
    routing::{MethodFilter, MethodRouter, on},
};
use http::Method;
use ruma::api::{IncomingRequest, Metadata, path_builder::PathBuilder};

use super::{ApiError, Components, Interactive, Ruma, Unparsed, limits};
use crate::app::limits::LimitClass;

/// A set of endpoints, to be merged into the router.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    router: Router<Components>,
    /// Handlers whose requests are counted before they are called.
    counted: Vec<(String, LimitClass, MethodRouter<Components>)>,
}

/// Where requests to a handler of its own are counted against the rate limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    /// By the handler, which knows the account: [`Unparsed`] does it, or `limits::check`.
    Within,
    /// Before the handler, by address.
    As(LimitClass),
}

impl Routes {
    /// No endpoints.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Serves a ruma request type on all paths that ruma knows for it.
    pub(crate) fn ruma<H, T>(self, handler: H) -> Self
    where
        H: Handler<T, Components>,
        T: RumaArguments,
    {
        let paths: Vec<_> = T::Request::PATH_BUILDER.all_paths().collect();
        self.ruma_also(&paths, handler)
    }

    /// Serves a ruma request type on paths that ruma does not know. A path may lack parameters at
    /// its end: they are empty strings then.
    #[expect(clippy::needless_pass_by_value, reason = "as axum takes handlers")]
    pub(crate) fn ruma_also<H, T>(mut self, paths: &[&str], handler: H) -> Self
    where
        H: Handler<T, Components>,
        T: RumaArguments,
    {
        let filter = method_filter(&T::Request::METHOD);
        for path in paths {
            self.router = self
                .router
                .route(&by_index(path), on(filter, handler.clone()));
        }
        self
    }

    /// Serves a handler of its own on one path. Parameters are named by their index, whatever
    /// they are called here: the first is `p0`.
    pub(crate) fn raw(
        mut self,
        path: &str,
        counted: Counted,
        methods: MethodRouter<Components>,
    ) -> Self {
        let path = by_index(path);
        match counted {
            Counted::Within => self.router = self.router.route(&path, methods),
            Counted::As(class) => self.counted.push((path, class, methods)),
        }
        self
    }

    /// Adds the endpoints of `other`.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.counted.extend(other.counted);
        self
    }

    /// Puts something around every handler that counts its requests itself.
    pub(crate) fn around(
        self,
        around: impl FnOnce(Router<Components>) -> Router<Components>,
    ) -> Self {
        Self {
            router: around(self.router),
            ..self
        }
    }

    pub(super) fn into_router(self, components: &Components) -> Router<Components> {
        let mut router = self.router;
        for (path, class, methods) in self.counted {
            let state = (components.clone(), class);
            let count = middleware::from_fn_with_state(state, limits::count);
            router = router.route(&path, methods.layer(count));
        }
        router
    }
}

/// An argument that holds a whole request: [`Ruma`], or what became of it, [`Interactive`] or
/// [`Unparsed`].
pub(crate) trait RumaArgument: 'static {
    /// The request type.
    type Request: IncomingRequest;
}

impl<R: IncomingRequest + 'static> RumaArgument for Ruma<R> {
    type Request = R;
}

impl<R: IncomingRequest + 'static> RumaArgument for Interactive<R> {
    type Request = R;
}

impl<R: IncomingRequest + 'static> RumaArgument for Unparsed<R> {
    type Request = R;
}

/// For handlers that have something to say before what is wrong with the request.
impl<R: IncomingRequest + 'static> RumaArgument for Result<Ruma<R>, ApiError> {
    type Request = R;
}

/// The argument lists of handlers that end in a [`RumaArgument`]: what lets [`Routes::ruma`] find
/// the request type.
pub(crate) trait RumaArguments: 'static {
    /// The request type of the last argument.
    type Request: IncomingRequest;
}

macro_rules! ruma_arguments {
    ($($argument:ident)*) => {
        impl<M, $($argument,)* L> RumaArguments for (M, $($argument,)* L,)
        where
            M: 'static,
            L: RumaArgument,
            $($argument: 'static,)*
        {
            type Request = L::Request;
        }
    };
}

ruma_arguments!();
ruma_arguments!(A);
ruma_arguments!(A B);
ruma_arguments!(A B C);
ruma_arguments!(A B C D);
ruma_arguments!(A B C D E);
ruma_arguments!(A B C D E F);
ruma_arguments!(A B C D E F G);

fn method_filter(method: &Method) -> MethodFilter {
    // axum lets GET answer HEAD too.
    match *method {
        Method::POST => MethodFilter::POST,
        Method::PUT => MethodFilter::PUT,
        Method::DELETE => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    }
}

/// Names every `{parameter}` of a path by its index, so that endpoints which call the same place
/// by different names share a route. A wildcard `{*rest}` stays one.
fn by_index(path: &str) -> String {
    let mut index = 0;
    let segments = path.split('/').map(|segment| {
        let Some(name) = segment.strip_prefix('{') else {
            return Cow::Borrowed(segment);
        };
        let star = if name.starts_with('*') { "*" } else { "" };
        index += 1;
        Cow::Owned(format!("{{{star}p{}}}", index - 1))
    });
    segments.collect::<Vec<_>>().join("/")
}
