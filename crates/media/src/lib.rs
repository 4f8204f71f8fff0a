//! Media: uploads, downloads and thumbnails. Untrusted bytes are handled here only.

mod id;
pub mod serving;
pub mod thumbnail;
pub use id::{BadMediaId, MAX_MEDIA_ID, MediaId};
