//! Uploaded bytes and what is said about them, mutated.

use std::io::Cursor;

use homeserver_fuzz::{Target, read_row, rows::stored};
use homeserver_storage::{BlobId, Row as _};
use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};

use crate::{
    MediaId,
    serving::{clean_content_type, content_disposition},
    tables::{
        BLOBS_IN_USE, FileRow, MEDIA, MediaRow, MediaState, PENDING, PendingRow, THUMBNAILS,
        ThumbnailRow, UPLOADS, USAGE, UsageRow,
    },
    thumbnail::{Animation, MAX_THUMBNAIL_PIXELS, Method, Thumbnail, Wanted, make},
};

/// Small images of every format; a mutated one may claim to be large.
fn images() -> Vec<Vec<u8>> {
    let image = RgbaImage::from_fn(24, 16, |x, y| Rgba([x as u8 * 9, y as u8 * 9, 90, 255]));
    let image = DynamicImage::ImageRgba8(image);
    let formats = [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Gif,
        ImageFormat::WebP,
    ];
    let encode = |format| {
        let mut bytes = Cursor::new(Vec::new());
        let rgb = DynamicImage::ImageRgb8(image.to_rgb8());
        rgb.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    formats.into_iter().map(encode).collect()
}

#[test]
fn thumbnails() {
    let words = [
        "IHDR",
        "IDAT",
        "IEND",
        "tRNS",
        "acTL",
        "\u{0}\u{0}\u{0}\u{1}",
        "GIF89a",
        "VP8X",
        "Exif",
    ];
    Target::new("thumbnails")
        .seeds(images())
        .words(&words)
        .run(|input| {
            // The last byte says what is wanted, so that a mutation may change it.
            let last = input.last().copied().unwrap_or_default();
            let wanted = Wanted {
                width: 1 + u32::from(last & 15),
                height: 8,
                method: [Method::Scale, Method::Crop][usize::from(last >> 4 & 1)],
                animation: [Animation::Still, Animation::Moving][usize::from(last >> 5 & 1)],
            };
            match make(input, wanted) {
                Ok(Thumbnail::Made { bytes, .. }) => {
                    let made = image::load_from_memory(&bytes).expect("a whole image");
                    assert!(made.width() >= 1 && made.height() >= 1);
                    // Of a long image one side may be longer than can be asked for.
                    let pixels = u64::from(made.width()) * u64::from(made.height());
                    assert!(pixels <= MAX_THUMBNAIL_PIXELS);
                    true
                }
                Ok(Thumbnail::Original { content_type }) => {
                    assert!(content_type.starts_with("image/"));
                    true
                }
                Err(_) => false,
            }
        });
}

/// What becomes a header is one: printable, in one line, and harmless types only are shown inline.
#[test]
fn headers_of_downloads() {
    let seeds = [
        "text/plain; charset=utf-8\nletter.txt",
        "TEXT/HTML\n../../a \"b\"",
        "image/png\n\u{e4} \u{202e}gpj.exe",
        "image/svg+xml\n",
    ];
    let words = [
        "text/html",
        "image/png",
        "; charset=",
        "filename=",
        "\"",
        "\r\n",
        "\u{2066}",
    ];
    Target::new("headers_of_downloads")
        .seeds(seeds)
        .words(&words)
        .run(|input| {
            let text = String::from_utf8_lossy(input);
            let (declared, name) = text.split_once('\n').unwrap_or((&text, ""));
            let content_type = clean_content_type(Some(declared));
            let disposition = content_disposition(&content_type, Some(name));
            for header in [&content_type, &disposition] {
                assert!(
                    header.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
                    "{header:?}"
                );
            }
            assert_eq!(clean_content_type(Some(&content_type)), content_type);
            let risky = ["html", "svg", "xml", "pdf", "javascript"];
            let essence = content_type.split(';').next().unwrap_or_default();
            if risky
                .iter()
                .any(|kind| essence.to_ascii_lowercase().contains(kind))
            {
                assert!(disposition.starts_with("attachment"), "{disposition}");
            }
            // Quotes are closed, and nothing follows them.
            if let Some(quoted) = disposition.split_once("filename=\"") {
                let inside = quoted.1.strip_suffix('"').expect("a closing quote");
                let bare = inside.replace("\\\\", "").replace("\\\"", "");
                assert!(!bare.contains(['"', '\\']), "{disposition}");
            }
            let id = MediaId::parse(name);
            assert!(id.is_err() || !name.contains(['/', '.', '\\', '\0', '%']));
            content_type == declared.trim()
        });
}

#[test]
fn media_rows() {
    let file = FileRow {
        blob: [1; 16],
        length: 300,
        sha256: [2; 32],
        content_type: "a/b".to_owned(),
        file_name: Some("c".to_owned()),
        stored_at: 5,
        legacy: true,
    };
    let row = |state| MediaRow {
        uploader: "@a:b".to_owned(),
        created_at: 4,
        state,
    };
    let made = ThumbnailRow {
        blob: Some(([3; 16], 7)),
        content_type: "image/png".to_owned(),
    };
    let medium = MEDIA.key_bytes(&("s", "m"));
    let seeds = [
        stored(
            &medium,
            &row(MediaState::Pending { expires_at: 9 }).encode(),
        ),
        stored(&medium, &row(MediaState::Stored(file)).encode()),
        stored(
            &PENDING.key_bytes(&(9_u64, "m")),
            &PendingRow("@a:b".to_owned()).encode(),
        ),
        stored(&USAGE.key_bytes(&"@a:b"), &UsageRow::default().encode()),
        stored(
            &THUMBNAILS.key_bytes(&("s", "m", 1_u32, 2_u32, 0_u8, 1_u8)),
            &made.encode(),
        ),
        stored(&UPLOADS.key_bytes(&("@a:b", 4_u64, "m")), b""),
        stored(&BLOBS_IN_USE.key_bytes(&BlobId([1; 16])), b""),
    ];
    Target::new("media_rows").seeds(seeds).run(|input| {
        read_row!(
            input,
            [MEDIA, PENDING, USAGE, THUMBNAILS, UPLOADS, BLOBS_IN_USE]
        )
    });
}
