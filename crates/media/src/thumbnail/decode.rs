//! Decoding with limits: the dimensions are known before a pixel is.

use std::io::Cursor;

use image::{
    AnimationDecoder, DynamicImage, ImageDecoder, ImageError, Limits,
    codecs::{gif::GifDecoder, jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder},
    metadata::Orientation,
};

use super::ThumbnailError;

/// Pixels of an image that is decoded.
pub const MAX_PIXELS: u64 = 32 * 1024 * 1024;

/// The longest side of an image that is decoded.
pub const MAX_SIDE: u32 = 20_000;

/// Bytes that decoding may take.
pub const MAX_DECODED_BYTES: u64 = 128 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Png,
    Jpeg,
    Gif,
    WebP,
}

/// An image of a known format, not decoded yet.
pub(super) struct Source<'a> {
    bytes: &'a [u8],
    format: Format,
}

impl<'a> Source<'a> {
    /// Recognises the format by the first bytes; nothing but these four is ever decoded.
    pub(super) fn recognise(bytes: &'a [u8]) -> Result<Self, ThumbnailError> {
        let is_webp = bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP");
        let format = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Format::Png
        } else if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
            Format::Jpeg
        } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
            Format::Gif
        } else if is_webp {
            Format::WebP
        } else {
            return Err(ThumbnailError::Format);
        };
        Ok(Self { bytes, format })
    }

    pub(super) fn content_type(&self) -> &'static str {
        match self.format {
            Format::Png => "image/png",
            Format::Jpeg => "image/jpeg",
            Format::Gif => "image/gif",
            Format::WebP => "image/webp",
        }
    }

    /// Whether it has more than one frame.
    pub(super) fn is_animated(&self) -> Result<bool, ThumbnailError> {
        // The budget first: telling whether a GIF moves decodes a frame or two.
        self.decoder()?;
        let reader = Cursor::new(self.bytes);
        match self.format {
            Format::Jpeg => Ok(false),
            Format::Png => PngDecoder::with_limits(reader, limits())
                .and_then(|png| png.is_apng())
                .map_err(failed),
            Format::WebP => Ok(WebPDecoder::new(reader).map_err(failed)?.has_animation()),
            Format::Gif => {
                let mut gif = GifDecoder::new(reader).map_err(failed)?;
                gif.set_limits(limits()).map_err(failed)?;
                Ok(gif.into_frames().take(2).flatten().count() == 2)
            }
        }
    }

    /// Width and height, and how it is to be turned.
    pub(super) fn lies(&self) -> Result<Lies, ThumbnailError> {
        let mut decoder = self.decoder()?;
        Ok(Lies {
            size: decoder.dimensions(),
            orientation: decoder.orientation().map_err(failed)?,
        })
    }

    /// A decoder that has read the header, within the limits.
    fn decoder(&self) -> Result<Box<dyn ImageDecoder + 'a>, ThumbnailError> {
        let reader = Cursor::new(self.bytes);
        let mut decoder: Box<dyn ImageDecoder + 'a> = match self.format {
            Format::Png => Box::new(PngDecoder::with_limits(reader, limits()).map_err(failed)?),
            Format::Jpeg => Box::new(JpegDecoder::new(reader).map_err(failed)?),
            Format::Gif => Box::new(GifDecoder::new(reader).map_err(failed)?),
            Format::WebP => Box::new(WebPDecoder::new(reader).map_err(failed)?),
        };
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > MAX_PIXELS
            || width.max(height) > MAX_SIDE
            || decoder.total_bytes() > MAX_DECODED_BYTES
        {
            return Err(ThumbnailError::TooLarge);
        }
        decoder.set_limits(limits()).map_err(failed)?;
        Ok(decoder)
    }
}

/// How the pixels of an image lie.
pub(super) struct Lies {
    /// Width and height as stored.
    pub(super) size: (u32, u32),
    /// What makes it upright.
    pub(super) orientation: Orientation,
}

impl Lies {
    /// A size that is wanted upright, as it lies.
    pub(super) fn turned(&self, (width, height): (u32, u32)) -> (u32, u32) {
        if is_on_its_side(self.orientation) {
            (height, width)
        } else {
            (width, height)
        }
    }
}

/// The first frame, as it lies.
pub(super) fn decode(source: &Source<'_>) -> Result<DynamicImage, ThumbnailError> {
    DynamicImage::from_decoder(source.decoder()?).map_err(failed)
}

fn is_on_its_side(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    limits
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "used as a function of map_err"
)]
fn failed(error: ImageError) -> ThumbnailError {
    match error {
        ImageError::Limits(_) => ThumbnailError::TooLarge,
        ImageError::Unsupported(_) => ThumbnailError::Format,
        _ => ThumbnailError::Damaged,
    }
}
