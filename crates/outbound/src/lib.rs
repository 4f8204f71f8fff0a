//! The one guarded HTTP client and DNS resolver.
