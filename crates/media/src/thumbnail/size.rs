//! The arithmetic of thumbnail sizes.

/// How an image is fitted to a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Keep the aspect ratio; no side becomes smaller than wanted.
    Scale,
    /// Cut the middle out, with the aspect ratio wanted.
    Crop,
}

/// The longest side of a thumbnail; more is not asked for by any client.
pub const MAX_THUMBNAIL_SIDE: u32 = 1_600;

const STANDARD_SCALE: [(u32, u32); 3] = [(320, 240), (640, 480), (800, 600)];
const STANDARD_CROP: [(u32, u32); 2] = [(32, 32), (96, 96)];

/// The size to make for a size asked for: the smallest standard one that suffices (for a crop,
/// of the same aspect ratio), else the one asked for, within bounds.
pub(super) fn standard(width: u32, height: u32, method: Method) -> (u32, u32) {
    let sizes: &[(u32, u32)] = match method {
        Method::Scale => &STANDARD_SCALE,
        Method::Crop if width == height => &STANDARD_CROP,
        Method::Crop => &[],
    };
    let suffices = |size: &&(u32, u32)| size.0 >= width && size.1 >= height;
    let exact = (
        width.clamp(1, MAX_THUMBNAIL_SIDE),
        height.clamp(1, MAX_THUMBNAIL_SIDE),
    );
    sizes.iter().find(suffices).copied().unwrap_or(exact)
}

/// What to do with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing: it is no larger than wanted in one direction. Images are never blown up.
    Original,
    /// Shrink it to this size.
    Scale { width: u32, height: u32 },
    /// Shrink it to `scaled`, then cut `wanted` out of the middle.
    Crop {
        scaled: (u32, u32),
        wanted: (u32, u32),
    },
}

/// How to get from an image of size `from` to a thumbnail of size `wanted`.
pub(super) fn plan(from: (u32, u32), wanted: (u32, u32), method: Method) -> Plan {
    if from.0 <= wanted.0 || from.1 <= wanted.1 {
        return Plan::Original;
    }
    let scaled = cover(from, wanted);
    match method {
        Method::Scale => Plan::Scale {
            width: scaled.0,
            height: scaled.1,
        },
        Method::Crop => Plan::Crop { scaled, wanted },
    }
}

/// The smallest size with the aspect ratio of `from` that covers `wanted`.
fn cover(from: (u32, u32), wanted: (u32, u32)) -> (u32, u32) {
    let [from_width, from_height] = [u64::from(from.0), u64::from(from.1)];
    let [width, height] = [u64::from(wanted.0), u64::from(wanted.1)];
    // Sides are at most `MAX_SIDE`, and the result is at most `from`: it fits into u32.
    let fit = |value: u64, limit: u32| u32::try_from(value).unwrap_or(limit).min(limit);
    if width * from_height >= height * from_width {
        (
            wanted.0,
            fit((width * from_height).div_ceil(from_width), from.1),
        )
    } else {
        (
            fit((height * from_width).div_ceil(from_height), from.0),
            wanted.1,
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn standard_sizes() {
        let of = |width, height, method| standard(width, height, method);
        assert_eq!(of(1, 1, Method::Scale), (320, 240));
        assert_eq!(of(320, 241, Method::Scale), (640, 480));
        assert_eq!(of(801, 1, Method::Scale), (801, 1));
        assert_eq!(of(30, 30, Method::Crop), (32, 32));
        assert_eq!(of(33, 33, Method::Crop), (96, 96));
        assert_eq!(of(30, 20, Method::Crop), (30, 20));
        assert_eq!(of(0, u32::MAX, Method::Crop), (1, MAX_THUMBNAIL_SIDE));
    }

    proptest! {
        #[test]
        fn never_larger_than_the_image_nor_smaller_than_wanted(
            from in (1_u32..=20_000, 1_u32..=20_000),
            wanted in (1_u32..=MAX_THUMBNAIL_SIDE, 1_u32..=MAX_THUMBNAIL_SIDE),
        ) {
            match plan(from, wanted, Method::Crop) {
                Plan::Original => prop_assert!(from.0 <= wanted.0 || from.1 <= wanted.1),
                Plan::Scale { .. } => prop_assert!(false, "a crop was asked for"),
                Plan::Crop { scaled, wanted: cut } => {
                    prop_assert_eq!(cut, wanted);
                    prop_assert!(scaled.0 >= wanted.0 && scaled.1 >= wanted.1);
                    prop_assert!(scaled.0 <= from.0 && scaled.1 <= from.1);
                    prop_assert!(scaled.0 == wanted.0 || scaled.1 == wanted.1);
                    let same = plan(from, wanted, Method::Scale);
                    prop_assert_eq!(same, Plan::Scale { width: scaled.0, height: scaled.1 });
                }
            }
        }
    }
}
