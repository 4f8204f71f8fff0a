//! What handlers may ask for with `State<…>`. Each handler names only the parts it uses; nothing
//! but the router assembly sees the whole.

use axum::extract::FromRef;
use homeserver_runtime::Runtime;

use super::TrustedProxies;
use crate::app::{limits::RateLimits, session::Sessions};

/// Declares [`Components`] and lets axum hand out each of its fields by type.
macro_rules! components {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// The parts that handlers are given. Cheap to clone.
        #[derive(Clone, Debug)]
        pub(crate) struct Components {
            $($(#[$doc])* pub(crate) $name: $type,)*
        }

        $(impl FromRef<Components> for $type {
            fn from_ref(components: &Components) -> Self {
                components.$name.clone()
            }
        })*
    };
}

components! {
    /// Clock, randomness, tasks, pools.
    runtime: Runtime,
    /// Whose `X-Forwarded-For` is believed.
    proxies: TrustedProxies,
    /// Token buckets.
    limits: RateLimits,
    /// Access tokens.
    sessions: Sessions,
}
