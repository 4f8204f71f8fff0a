//! Thumbnails of images made here, and of bytes that no decoder should see.

use std::io::Cursor;

use image::{
    Delay, Frame, ImageFormat, Rgba, RgbaImage,
    codecs::gif::{GifEncoder, Repeat},
};

use super::*;

fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let image = RgbaImage::from_fn(width, height, |x, y| {
        Rgba([(x % 256) as u8, (y % 256) as u8, 90, 255])
    });
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgba8(image)
        .into_rgb8()
        .write_to(&mut bytes, format)
        .unwrap();
    bytes.into_inner()
}

fn wanted(width: u32, height: u32, method: Method) -> Wanted {
    Wanted {
        width,
        height,
        method,
        animation: Animation::Still,
    }
}

fn size_of(thumbnail: &Thumbnail) -> (u32, u32) {
    let Thumbnail::Made { bytes, .. } = thumbnail else {
        panic!("not made: {thumbnail:?}")
    };
    let image = image::load_from_memory(bytes).unwrap();
    (image.width(), image.height())
}

fn gif(frames: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    encoder.set_repeat(Repeat::Infinite).unwrap();
    for shade in 0..frames {
        let image = RgbaImage::from_pixel(200, 100, Rgba([shade as u8, 0, 0, 255]));
        let delay = Delay::from_numer_denom_ms(100, 1);
        encoder
            .encode_frame(Frame::from_parts(image, 0, 0, delay))
            .unwrap();
    }
    drop(encoder);
    bytes
}

#[test]
fn every_format_is_scaled_and_cropped() {
    for format in [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Gif,
        ImageFormat::WebP,
    ] {
        let original = picture(500, 250, format);
        let scaled = make(&original, wanted(320, 240, Method::Scale)).unwrap();
        assert_eq!(size_of(&scaled), (480, 240), "{format:?}");
        let cropped = make(&original, wanted(96, 96, Method::Crop)).unwrap();
        assert_eq!(size_of(&cropped), (96, 96), "{format:?}");
    }
}

#[test]
fn small_images_are_served_as_they_are() {
    let original = picture(100, 50, ImageFormat::Png);
    let thumbnail = make(&original, wanted(320, 240, Method::Scale)).unwrap();
    assert!(matches!(
        thumbnail,
        Thumbnail::Original {
            content_type: "image/png"
        }
    ));
}

#[test]
fn a_long_image_is_served_as_it_is() {
    let long = picture(20_000, 1_601, ImageFormat::Png);
    let original = |made| matches!(made, Thumbnail::Original { .. });
    assert!(original(
        make(&long, wanted(1_600, 1_600, Method::Scale)).unwrap()
    ));
    let cut = make(&long, wanted(1_600, 1_600, Method::Crop)).unwrap();
    assert_eq!(size_of(&cut), (1_600, 1_600));
}

#[test]
fn of_deep_colours_eight_bits_are_left() {
    let image = image::ImageBuffer::from_pixel(400, 400, Rgba([u16::MAX, 0, 0, u16::MAX / 2]));
    let mut bytes = Cursor::new(Vec::new());
    let image = DynamicImage::ImageRgba16(image);
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    let made = make(&bytes.into_inner(), wanted(96, 96, Method::Crop)).unwrap();
    let Thumbnail::Made { bytes, .. } = made else {
        panic!("not made")
    };
    let image = image::load_from_memory(&bytes).unwrap();
    assert_eq!(image.color(), image::ColorType::Rgba8);
}

#[test]
fn transparency_is_kept() {
    let mut bytes = Cursor::new(Vec::new());
    let image = RgbaImage::from_pixel(400, 400, Rgba([255, 0, 0, 100]));
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    match make(&bytes.into_inner(), wanted(96, 96, Method::Crop)).unwrap() {
        Thumbnail::Made { content_type, .. } => assert_eq!(content_type, "image/png"),
        other @ Thumbnail::Original { .. } => panic!("{other:?}"),
    }
}

#[test]
fn animation_is_kept_on_demand() {
    let moving = Wanted {
        animation: Animation::Moving,
        ..wanted(96, 96, Method::Crop)
    };
    let kept = make(&gif(3), moving).unwrap();
    assert!(matches!(
        kept,
        Thumbnail::Original {
            content_type: "image/gif"
        }
    ));
    assert_eq!(size_of(&make(&gif(1), moving).unwrap()), (96, 96));
    assert_eq!(
        size_of(&make(&gif(3), wanted(96, 96, Method::Crop)).unwrap()),
        (96, 96)
    );
}

/// A PNG header that claims a size, with nothing behind it.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.extend([8, 2, 0, 0, 0]);
    let crc = crc32(&bytes[12..]);
    bytes.extend(crc.to_be_bytes());
    // The start of the pixels, so that the header is complete.
    bytes.extend(b"\0\0\0\x01IDAT");
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    for (width, height) in [(50_000, 50_000), (20_001, 1), (6_000, 6_000)] {
        let refused = make(&png_header(width, height), wanted(96, 96, Method::Crop));
        assert_eq!(
            refused.unwrap_err(),
            ThumbnailError::TooLarge,
            "{width}×{height}"
        );
    }
    // The same header with a size that fits is only damaged: it was the size that was refused.
    let fits = make(&png_header(5_000, 5_000), wanted(96, 96, Method::Crop));
    assert_eq!(fits.unwrap_err(), ThumbnailError::Damaged);
}

#[test]
fn nothing_else_is_decoded() {
    let others: [&[u8]; 9] = [
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"%PDF-1.7",
        b"II*\0\x08\0\0\0",
        b"8BPS\0\x01",
        b"\0\0\x01\0\x01\0",
        b"\0\0\0\x18ftypheic",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x1aE\xdf\xa3",
        b"",
    ];
    for bytes in others {
        let refused = make(bytes, wanted(96, 96, Method::Crop));
        assert_eq!(refused.unwrap_err(), ThumbnailError::Format);
    }
}

#[test]
fn damage_is_an_error() {
    for format in [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Gif,
        ImageFormat::WebP,
    ] {
        let original = picture(300, 300, format);
        for length in [12, 20, 40, original.len() / 2] {
            // A cut JPEG may decode to half a picture; what counts is that nothing panics.
            let _ = make(&original[..length], wanted(96, 96, Method::Crop));
        }
        let mut broken = original.clone();
        for byte in &mut broken[20..60] {
            *byte = !*byte;
        }
        assert!(
            make(&broken, wanted(96, 96, Method::Crop)).is_err(),
            "{format:?}"
        );
    }
}
