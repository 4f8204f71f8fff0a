//! Uploads, downloads and thumbnails; untrusted bytes are handled here only.
