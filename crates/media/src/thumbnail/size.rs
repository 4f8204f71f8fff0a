//! The arithmetic of thumbnail sizes.

/// How an image is fitted to a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Keep the aspect ratio; no side becomes smaller than wanted.
    Scale,
    /// Cut the middle out, with the aspect ratio wanted.
    Crop,
}

/// The longest side of a thumbnail that can be asked for; more is not asked for by any client.
pub const MAX_THUMBNAIL_SIDE: u32 = 1_600;

/// Pixels of a thumbnail. One that keeps the aspect ratio of a very long image would have more; of
/// such an image the original is served.
pub const MAX_THUMBNAIL_PIXELS: u64 = 4 * 1024 * 1024;

/// What is made to keep the aspect ratio.
const SCALES: [(u32, u32); 6] = [
    (320, 240),
    (640, 480),
    (800, 600),
    (1_200, 900),
    (MAX_THUMBNAIL_SIDE, 1_200),
    (MAX_THUMBNAIL_SIDE, MAX_THUMBNAIL_SIDE),
];

/// Sides of what is cut out.
const CROPS: [u32; 6] = [32, 96, 240, 480, 800, MAX_THUMBNAIL_SIDE];

/// How many sizes there are. A fixed number, so that all can be kept of each image and none is made
/// twice.
pub(crate) const SIZES: usize = SCALES.len() + CROPS.len() * CROPS.len();

/// The size to make for a size asked for: the smallest that suffices, else the largest.
pub(super) fn standard(width: u32, height: u32, method: Method) -> (u32, u32) {
    let largest = (MAX_THUMBNAIL_SIDE, MAX_THUMBNAIL_SIDE);
    match method {
        Method::Scale => {
            let suffices = |size: &&(u32, u32)| size.0 >= width && size.1 >= height;
            SCALES.iter().find(suffices).copied().unwrap_or(largest)
        }
        Method::Crop => {
            let side = |wanted: u32| {
                let suffices = |side: &u32| *side >= wanted;
                CROPS.into_iter().find(suffices).unwrap_or(largest.0)
            };
            (side(width), side(height))
        }
    }
}

/// What to do with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing: it is no larger than wanted in one direction, or would be hardly smaller. Images
    /// are never blown up.
    Original,
    /// Take the middle `part` and shrink it to the size `made`.
    Shrink { part: (u32, u32), made: (u32, u32) },
}

/// How to get from an image of size `from` to a thumbnail of size `wanted`.
pub(super) fn plan(from: (u32, u32), wanted: (u32, u32), method: Method) -> Plan {
    if from.0 <= wanted.0 || from.1 <= wanted.1 {
        return Plan::Original;
    }
    match method {
        Method::Scale => {
            let made = cover(from, wanted);
            if u64::from(made.0) * u64::from(made.1) > MAX_THUMBNAIL_PIXELS {
                return Plan::Original;
            }
            Plan::Shrink { part: from, made }
        }
        Method::Crop => Plan::Shrink {
            part: within(from, wanted),
            made: wanted,
        },
    }
}

/// The smallest size with the aspect ratio of `from` that covers `wanted`.
fn cover(from: (u32, u32), wanted: (u32, u32)) -> (u32, u32) {
    let [from_width, from_height] = [u64::from(from.0), u64::from(from.1)];
    let [width, height] = [u64::from(wanted.0), u64::from(wanted.1)];
    if width * from_height >= height * from_width {
        let height = (width * from_height).div_ceil(from_width);
        (wanted.0, fit(height, from.1))
    } else {
        let width = (height * from_width).div_ceil(from_height);
        (fit(width, from.0), wanted.1)
    }
}

/// The largest size with the aspect ratio of `wanted` that lies within `from`, which is larger.
fn within(from: (u32, u32), wanted: (u32, u32)) -> (u32, u32) {
    let [from_width, from_height] = [u64::from(from.0), u64::from(from.1)];
    let [width, height] = [u64::from(wanted.0), u64::from(wanted.1)];
    if from_width * height >= from_height * width {
        (fit(from_height * width / height, from.0), from.1)
    } else {
        (from.0, fit(from_width * height / width, from.1))
    }
}

/// Sides are at most [`super::MAX_SIDE`], and no result is larger than the image.
fn fit(value: u64, limit: u32) -> u32 {
    u32::try_from(value).unwrap_or(limit).min(limit)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::thumbnail::MAX_SIDE;

    #[test]
    fn standard_sizes() {
        let of = |width, height, method| standard(width, height, method);
        assert_eq!(of(1, 1, Method::Scale), (320, 240));
        assert_eq!(of(320, 241, Method::Scale), (640, 480));
        assert_eq!(of(801, 1, Method::Scale), (1_200, 900));
        assert_eq!(of(30, 30, Method::Crop), (32, 32));
        assert_eq!(of(33, 33, Method::Crop), (96, 96));
        assert_eq!(of(30, 100, Method::Crop), (32, 240));
        assert_eq!(of(0, u32::MAX, Method::Crop), (32, MAX_THUMBNAIL_SIDE));
    }

    #[test]
    fn sizes_are_few() {
        for (method, few) in [(Method::Scale, 6), (Method::Crop, 36)] {
            let sides = || (0..2_000).step_by(7).chain([u32::MAX]);
            let asked = sides().flat_map(|width| sides().map(move |height| (width, height)));
            let made: BTreeSet<_> = asked
                .map(|(width, height)| standard(width, height, method))
                .collect();
            assert_eq!(made.len(), few);
        }
        assert_eq!(SIZES, 42);
    }

    proptest! {
        #[test]
        fn what_is_made_is_bounded_and_suffices(
            from in (1..=MAX_SIDE, 1..=MAX_SIDE),
            asked in (1_u32..=2 * MAX_THUMBNAIL_SIDE, 1_u32..=2 * MAX_THUMBNAIL_SIDE),
        ) {
            for method in [Method::Scale, Method::Crop] {
                let wanted = standard(asked.0, asked.1, method);
                let Plan::Shrink { part, made } = plan(from, wanted, method) else {
                    continue;
                };
                prop_assert!(u64::from(made.0) * u64::from(made.1) <= MAX_THUMBNAIL_PIXELS);
                prop_assert!(made.0 >= wanted.0 && made.1 >= wanted.1);
                prop_assert!(made.0 <= part.0 && made.1 <= part.1);
                prop_assert!(part.0 <= from.0 && part.1 <= from.1);
                prop_assert!(made.0 == wanted.0 || made.1 == wanted.1);
                match method {
                    Method::Scale => prop_assert_eq!(part, from),
                    Method::Crop => prop_assert_eq!(made, wanted),
                }
            }
        }
    }
}
