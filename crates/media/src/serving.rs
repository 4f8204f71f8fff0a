//! How untrusted bytes are handed to browsers: the headers that keep them from being run.
//!
//! Spec: Client-Server API, "Content repository", "Serving inline content".

/// `Content-Security-Policy` of every media answer, as the specification recommends it.
pub const CONTENT_SECURITY_POLICY: &str = "sandbox; default-src 'none'; script-src 'none'; \
     plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';";

/// `Cross-Origin-Resource-Policy` of every media answer.
pub const CROSS_ORIGIN_RESOURCE_POLICY: &str = "cross-origin";

/// `X-Content-Type-Options` of every media answer.
pub const CONTENT_TYPE_OPTIONS: &str = "nosniff";

/// `Cache-Control` of every media answer: contents never change, and belong to who asked.
pub const CACHE_CONTROL: &str = "private, max-age=31536000, immutable";

/// The content type of what came without one, or with one that is not well-formed.
pub const UNKNOWN_CONTENT_TYPE: &str = "application/octet-stream";

/// Bytes of a content type that are kept.
const MAX_CONTENT_TYPE: usize = 255;

/// Characters of a file name that are kept.
const MAX_FILE_NAME: usize = 255;

/// Types that browsers may show in place: none of them runs scripts. The list of the
/// specification.
const INLINE: [&str; 26] = [
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// A content type as it is stored and served: printable ASCII of the form `type/subtype`, with
/// its parameters; anything else becomes [`UNKNOWN_CONTENT_TYPE`].
pub fn clean_content_type(declared: Option<&str>) -> String {
    let declared = declared.unwrap_or_default().trim();
    let printable = declared.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let essence = essence(declared);
    let token = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
        !part.is_empty() && part.bytes().all(allowed)
    };
    let well_formed = essence
        .split_once('/')
        .is_some_and(|(kind, subtype)| token(kind) && token(subtype));
    if printable && well_formed && declared.len() <= MAX_CONTENT_TYPE {
        declared.to_owned()
    } else {
        UNKNOWN_CONTENT_TYPE.to_owned()
    }
}

/// The `Content-Disposition` of an answer: `inline` only for types that cannot do harm, however
/// they are spelled, and the file name if there is one.
pub fn content_disposition(content_type: &str, file_name: Option<&str>) -> String {
    let essence = essence(content_type);
    let kind = if INLINE.contains(&essence.as_str()) {
        "inline"
    } else {
        "attachment"
    };
    let name = file_name
        .map(clean_file_name)
        .filter(|name| !name.is_empty());
    match name {
        None => kind.to_owned(),
        Some(name) if name.bytes().all(is_token) => format!("{kind}; filename={name}"),
        Some(name) if name.is_ascii() => {
            let escaped = name.replace('\\', "\\\\").replace('"', "\\\"");
            format!("{kind}; filename=\"{escaped}\"")
        }
        Some(name) => format!("{kind}; filename*=utf-8''{}", percent_encoded(&name)),
    }
}

/// `type/subtype` in lower case, without parameters.
fn essence(content_type: &str) -> String {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

/// A file name without directories and control characters. Stored as uploaded, cleaned when
/// served.
fn clean_file_name(name: &str) -> String {
    let base = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let visible = base
        .chars()
        .filter(|character| !character.is_control() && !is_bidi(*character));
    visible.take(MAX_FILE_NAME).collect()
}

/// Characters that turn the direction of writing around and make `exe.txt` of `txt.exe`.
fn is_bidi(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Characters that need no quotes in a header (RFC 9110, token).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 8187: everything but plain letters, digits and a few marks as `%XX`.
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_types_are_shown_in_place() {
        let dangerous = [
            "text/html",
            "TEXT/HTML; x=",
            " image/SVG+xml",
            "image/svg+xml",
            "application/xhtml+xml",
            "text/xml",
            "application/pdf",
            "text/html;image/png",
            "",
            "image/png/x",
        ];
        for content_type in dangerous {
            assert_eq!(
                content_disposition(content_type, None),
                "attachment",
                "{content_type}"
            );
        }
        for content_type in [
            "image/png",
            "IMAGE/PNG",
            "text/plain; charset=utf-8",
            "video/mp4 ",
        ] {
            assert_eq!(
                content_disposition(content_type, None),
                "inline",
                "{content_type}"
            );
        }
    }

    #[test]
    fn file_names_are_cleaned_and_encoded() {
        let of = |name| content_disposition("image/png", Some(name));
        assert_eq!(of("a.png"), "inline; filename=a.png");
        assert_eq!(of("../../etc/pass wd"), "inline; filename=\"pass wd\"");
        assert_eq!(of("C:\\x\\y.png"), "inline; filename=y.png");
        assert_eq!(of("a\"b\r\nX: y"), "inline; filename=\"a\\\"bX: y\"");
        assert_eq!(of("ä b.png"), "inline; filename*=utf-8''%C3%A4%20b.png");
        assert_eq!(of("x\u{202e}txt.exe"), "inline; filename=xtxt.exe");
        assert_eq!(of("/"), "inline");
    }

    #[test]
    fn content_types_are_well_formed_or_unknown() {
        let clean = |declared| clean_content_type(Some(declared));
        assert_eq!(
            clean("text/plain; charset=utf-8"),
            "text/plain; charset=utf-8"
        );
        for bad in [
            "",
            "png",
            "image/",
            "/png",
            "a/b\r\nX: y",
            "te xt/plain",
            "text/pl\u{e4}in",
        ] {
            assert_eq!(clean(bad), UNKNOWN_CONTENT_TYPE, "{bad:?}");
        }
        assert_eq!(clean_content_type(None), UNKNOWN_CONTENT_TYPE);
        assert_eq!(
            clean(&format!("a/{}", "b".repeat(300))),
            UNKNOWN_CONTENT_TYPE
        );
    }
}
