//! Every flaw of other homeservers (`tests/data/advisories.tsv`) has a test here, or a reason why it
//! has none (`tests/data/advisory_tests.tsv`).

use std::{collections::BTreeMap, path::Path};

const ADVISORIES: &str = include_str!("../data/advisories.tsv");
const TESTS: &str = include_str!("../data/advisory_tests.tsv");

/// What an entry without a test begins with.
const REASONS: [&str; 2] = ["not built: ", "no test: "];

/// First column and second, without the heading.
fn rows(table: &'static str) -> BTreeMap<&'static str, &'static str> {
    let lines = table.lines().skip(1);
    let rows = lines.filter_map(|line| {
        let mut fields = line.split('\t');
        Some((fields.next()?, fields.next()?))
    });
    rows.collect()
}

/// What is wrong with an entry, if anything.
fn fault(entry: &str) -> Option<String> {
    if let Some(reason) = REASONS.iter().find_map(|begin| entry.strip_prefix(begin)) {
        return reason.trim().is_empty().then(|| "no reason".to_owned());
    }
    let mut tests = entry.split(' ').peekable();
    if tests.peek().is_none_or(|first| first.is_empty()) {
        return Some("neither test nor reason".to_owned());
    }
    tests.find_map(|test| {
        let Some((path, name)) = test.split_once("::") else {
            return Some(format!("{test} is not path::name"));
        };
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        let text = std::fs::read_to_string(file).unwrap_or_default();
        (!has_test(&text, name)).then(|| format!("{path} has no test {name}"))
    })
}

/// Whether a source file has a test of this name: a function under an attribute that makes it one.
fn has_test(text: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    text.match_indices(&function).any(|(at, _)| {
        let lines_before = text[..at].rsplit_once('\n').map_or("", |(lines, _)| lines);
        let before = lines_before.lines().rev();
        // Up to the end of what stands before it: a blank line, a brace.
        let mut own = before.take_while(|line| {
            let line = line.trim();
            !(line.is_empty() || line.ends_with(['{', '}']))
        });
        own.any(|line| {
            let line = line.trim();
            line == "#[test]" || line.starts_with("#[tokio::test")
        })
    })
}

#[test]
fn only_tests_count() {
    let text = "#[test]\nfn one() {\n    helper();\n}\nfn helper() {}\n\n\
        proptest! {\n    /// Words.\n    #[test]\n    fn two(a: u8) {}\n}\n\
        #[tokio::test(flavor = \"multi_thread\")]\n#[expect(\n    x\n)]\nasync fn three() {}\n";
    for (name, is_test) in [
        ("one", true),
        ("two", true),
        ("three", true),
        ("helper", false),
        ("e", false),
    ] {
        assert_eq!(has_test(text, name), is_test, "{name}");
    }
}

#[test]
fn every_advisory_has_a_test_or_a_reason() {
    let (advisories, tests) = (rows(ADVISORIES), rows(TESTS));
    assert!(advisories.len() > 100, "the table was not read");
    assert!(advisories.keys().eq(tests.keys()), "the rows are others");
    let faults = tests.iter().filter_map(|(number, entry)| {
        let fault = fault(entry)?;
        Some(format!("{number}: {fault}"))
    });
    let faults: Vec<_> = faults.collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
