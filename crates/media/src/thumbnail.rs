//! Thumbnails: smaller versions of images, made from untrusted bytes.
//!
//! This module is pure: bytes in, bytes out, no store and no clock. It decodes only PNG, JPEG,
//! GIF and WebP, recognised by their first bytes whatever they are called; it looks at the
//! dimensions before decoding and refuses what would not fit the budget; it runs on the CPU pool.
//!
//! Spec: Client-Server API, "Thumbnails".

mod decode;
mod size;

pub use decode::{MAX_DECODED_BYTES, MAX_PIXELS, MAX_SIDE};
pub(crate) use size::SIZES;
pub use size::{MAX_THUMBNAIL_PIXELS, MAX_THUMBNAIL_SIDE, Method};

use bytes::Bytes;
use image::{DynamicImage, codecs::jpeg::JpegEncoder, imageops};

use decode::{Source, decode};
use size::{Plan, plan};

/// Quality of JPEG thumbnails, of 100.
const JPEG_QUALITY: u8 = 82;

/// Bytes of an animated image that is handed out whole where an animated thumbnail is wanted.
pub const MAX_ANIMATED_ORIGINAL: usize = 8 * 1024 * 1024;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// Width in pixels, at least 1.
    pub width: u32,
    /// Height in pixels, at least 1.
    pub height: u32,
    /// Keep the aspect ratio, or cut to the one wanted.
    pub method: Method,
    /// Whether an animated image should stay animated.
    pub animation: Animation,
}

/// Whether an animated image should stay animated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Animation {
    /// Show the first frame.
    Still,
    /// Keep it moving if that is possible: the original is handed out.
    Moving,
}

impl Wanted {
    /// The size that is actually made: the smallest standard size that suffices. Equal results
    /// share one stored thumbnail.
    #[must_use]
    pub fn normalised(self) -> Self {
        let (width, height) = size::standard(self.width, self.height, self.method);
        Self {
            width,
            height,
            ..self
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum Thumbnail {
    /// A new, smaller image.
    Made {
        /// The encoded image.
        bytes: Bytes,
        /// `image/png` or `image/jpeg`.
        content_type: &'static str,
    },
    /// The image is as small as the thumbnail would be, or so long that it would hardly be smaller,
    /// or is to stay animated: serve it itself, with this content type, whatever was declared at
    /// its upload.
    Original {
        /// What its bytes are.
        content_type: &'static str,
    },
}

/// There is no thumbnail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThumbnailError {
    /// Not an image, or of a format that is not decoded here.
    #[error("not an image of a known format")]
    Format,
    /// More pixels, or more memory to decode, than allowed.
    #[error("the image is too large")]
    TooLarge,
    /// Of a known format but broken.
    #[error("the image is damaged")]
    Damaged,
}

/// Makes a thumbnail. Takes up to a second of a core, and beside the original [`MAX_DECODED_BYTES`]
/// of memory and a few times [`MAX_THUMBNAIL_PIXELS`].
pub fn make(original: &[u8], wanted: Wanted) -> Result<Thumbnail, ThumbnailError> {
    let source = Source::recognise(original)?;
    let moving = wanted.animation == Animation::Moving;
    if moving && original.len() <= MAX_ANIMATED_ORIGINAL && source.is_animated()? {
        return Ok(Thumbnail::Original {
            content_type: source.content_type(),
        });
    }
    let lies = source.lies()?;
    // Made smaller as it lies and turned then, so that only the small one is ever there twice.
    let wanted_size = lies.turned((wanted.width, wanted.height));
    let Plan::Shrink { part, made } = plan(lies.size, wanted_size, wanted.method) else {
        return Ok(Thumbnail::Original {
            content_type: source.content_type(),
        });
    };
    let image = decode(&source)?;
    let left = (image.width() - part.0) / 2;
    let top = (image.height() - part.1) / 2;
    let part = imageops::crop_imm(&image, left, top, part.0, part.1);
    let small = imageops::thumbnail(&*part, made.0, made.1);
    drop(image);
    let mut small = DynamicImage::ImageRgba8(small);
    small.apply_orientation(lies.orientation);
    encode(small)
}

/// JPEG where nothing is transparent, else PNG.
fn encode(image: DynamicImage) -> Result<Thumbnail, ThumbnailError> {
    let rgba = image.into_rgba8();
    let mut bytes = Vec::new();
    let opaque = rgba.pixels().all(|pixel| pixel.0[3] == u8::MAX);
    let (encoded, content_type) = if opaque {
        let rgb = DynamicImage::ImageRgba8(rgba).into_rgb8();
        let encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
        (rgb.write_with_encoder(encoder), "image/jpeg")
    } else {
        let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
        (rgba.write_with_encoder(encoder), "image/png")
    };
    encoded.map_err(|_| ThumbnailError::Damaged)?;
    Ok(Thumbnail::Made {
        bytes: bytes.into(),
        content_type,
    })
}

#[cfg(test)]
mod tests;
