use super::*;

const NAME: &str = "nothing";

/// Numbers in brackets, with a fault planted four levels deep.
fn deep(input: &[u8]) -> bool {
    let open = input.iter().take_while(|byte| **byte == b'[').count();
    assert!(open < 4 || input.contains(&b'7'), "the planted fault");
    open > 0 && input.ends_with(b"]")
}

#[test]
fn a_planted_fault_is_found_and_made_small() {
    let target = || Target::new(NAME).seeds(["[1,7]"]);
    let found = target().hunt(20_000, 1, deep).unwrap_err();
    assert_eq!(found.input, b"[[[[");
    assert_eq!(found.message, "the planted fault");
    let again = target().hunt(20_000, 1, deep).unwrap_err();
    assert_eq!(found.input, again.input, "a seed repeats");
}

#[test]
fn what_is_accepted_is_mutated_further() {
    // Each step is accepted only on top of the one before it.
    let steps = |input: &[u8]| {
        let known = b"[[[[[[".starts_with(input);
        assert!(input.len() < 6 || !known, "got there");
        known
    };
    let found = Target::new(NAME).seeds(["["]).hunt(20_000, 1, steps);
    assert_eq!(found.unwrap_err().message, "got there");
}

#[test]
fn mutations_bear_any_input() {
    let nothing: [&[u8]; 5] = [b"", b"\"", b"[", b"{\"a\":", b"\\"];
    let tally = Target::new(NAME).seeds(nothing).hunt(20_000, 3, |_| true);
    assert_eq!(tally.unwrap().accepted, 20_000);
}

#[test]
#[should_panic(expected = "hardly tested")]
fn a_target_that_refuses_everything_is_a_mistake() {
    Target::new(NAME).seeds(["x"]).run(|_| false);
}

#[test]
fn lines_of_snapshots_are_rows() {
    let snapshot = "---\nsource: x\n---\nnames \\10a\\00 = \\01b\nempty @a =\n0x10 names";
    let seeds = rows::of_snapshot(snapshot);
    assert_eq!(seeds, [b"\x03\x10a\x00\x01b".to_vec(), b"\x02@a".to_vec()]);
    let expected: (&[u8], &[u8]) = (b"\x10a\0", b"\x01b");
    assert_eq!(rows::key_and_row(&seeds[0]), Some(expected));
}
