use proptest::prelude::*;

use super::*;

type Example = (u64, String, i64, bool);

proptest! {
    #[test]
    fn bytes_sort_as_tuples_do(
        a: (u64, String, i64, bool), b: (u64, String, i64, bool), same in 0_u8..3,
    ) {
        // Equal leading parts are what makes later parts decide.
        let b: Example = match same {
            0 => b,
            1 => (a.0, b.1, b.2, b.3),
            _ => (a.0, a.1.clone(), b.2, b.3),
        };
        prop_assert_eq!(key_bytes(&a).cmp(&key_bytes(&b)), a.cmp(&b));
    }

    #[test]
    fn a_key_reads_back(a: (u64, String, i64, bool), bytes: Vec<u8>, array: [u8; 5]) {
        let key = (a, Bytes::from(bytes), array);
        let read: (Example, Bytes, [u8; 5]) = read_key(&key_bytes(&key)).unwrap();
        prop_assert_eq!(read, key);
    }

    #[test]
    fn strings_with_zeros_sort(
        a in proptest::collection::vec(0_u8..3, 0..6),
        b in proptest::collection::vec(0_u8..3, 0..6),
    ) {
        let (left, right) = (Bytes::from(a.clone()), Bytes::from(b.clone()));
        prop_assert_eq!(
            key_bytes(&(left, 9_u8)).cmp(&key_bytes(&(right, 1_u8))),
            (a, 9).cmp(&(b, 1))
        );
    }

    #[test]
    fn no_bytes_panic_the_reader(bytes: Vec<u8>) {
        let _ = read_key::<(u16, String, Bytes, bool, Reverse64)>(&bytes);
    }
}

#[test]
fn the_layout_is_fixed() {
    assert_eq!(
        key_bytes(&(1_u64, "a\0b")),
        b"\0\0\0\0\0\0\0\x01a\0\xffb\0\x01"
    );
    assert_eq!(
        key_bytes(&-1_i64),
        [0x7f, 255, 255, 255, 255, 255, 255, 255]
    );
    assert_eq!(
        key_bytes(&Reverse64(1)),
        [255, 255, 255, 255, 255, 255, 255, 254]
    );
    assert_eq!(key_bytes(&(true, 258_u16, [7_u8; 2])), [1, 1, 2, 7, 7]);
    assert_eq!(
        key_bytes(&(At::Known(5), 6_u8)),
        [0, 0, 0, 0, 0, 0, 0, 5, 6]
    );
}

#[test]
fn a_leading_part_is_a_prefix() {
    assert!(key_bytes(&(1_u64, "ab", 3_u8)).starts_with(&key_bytes(&(1_u64, "ab"))));
    assert!(!key_bytes(&(1_u64, "ab")).starts_with(&key_bytes(&(1_u64, "a"))));
}
