//! What the wire tests must have shown, judged by the answers that they recorded: every row of the
//! endpoints table that is built answered 2xx, every error in `tests/data/errors.tsv` was produced,
//! and nothing else was.
//!
//! `errors.tsv` has a line for each error that the specification names for an endpoint, or that is
//! this server's own; one that cannot be produced says why. It does not list what follows from the
//! endpoints table: missing and unknown access tokens, rate limits, and other methods.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::Value;

use crate::table::{self, Row};

const ERRORS: &str = include_str!("../data/errors.tsv");

/// Stands in the table for an error without a code: a question of user-interactive authentication.
const NO_CODE: &str = "-";

/// An error: method, current path, status, code.
type Known = (String, String, u16, String);

/// What the tests produced.
#[derive(Debug, Default)]
pub struct Produced {
    /// Rows that said yes, as method and path.
    successes: BTreeSet<(String, &'static str)>,
    /// Errors of each row, with an example of the request.
    errors: BTreeMap<(String, &'static str, u16, String), String>,
}

impl Produced {
    /// Notes one answer.
    pub fn note(&mut self, method: &str, path: &str, status: u16, code: Option<&str>) {
        let Some(row) = table::find(method, path) else {
            return;
        };
        let method = method.to_owned();
        if status < 400 {
            self.successes.insert((method, row.path));
        } else {
            let code = code.unwrap_or(NO_CODE).to_owned();
            let key = (method, row.path, status, code);
            self.errors.entry(key).or_insert_with(|| path.to_owned());
        }
    }

    /// Reads every recording in a folder.
    ///
    /// # Errors
    /// When a file cannot be read or holds something else.
    pub fn read(folder: &Path) -> std::io::Result<Self> {
        let mut produced = Self::default();
        for file in std::fs::read_dir(folder)? {
            for line in std::fs::read_to_string(file?.path())?.lines() {
                let answer: Value = serde_json::from_str(line)?;
                let text = |field: &str| answer[field].as_str().unwrap_or_default();
                let status = answer["status"].as_u64().and_then(|it| it.try_into().ok());
                let code = answer["body"]["errcode"].as_str();
                produced.note(text("method"), text("path"), status.unwrap_or(0), code);
            }
        }
        Ok(produced)
    }

    /// Everything that is missing or should not be there; nothing if all is well.
    pub fn faults(&self) -> Vec<String> {
        let table = Errors::read();
        let built = || table::rows().iter().filter(|row| row.built);
        let mut faults = table.stale();
        faults.extend(built().filter_map(|row| self.never_succeeded(row)));
        faults.extend(built().flat_map(|row| self.never_refused(row)));
        faults.extend(self.never_produced(&table));
        faults.extend(self.unexpected(&table));
        faults
    }

    fn never_succeeded(&self, row: &Row) -> Option<String> {
        let key = (row.method.to_string(), row.path);
        let missing = !self.successes.contains(&key);
        missing.then(|| format!("never answered 2xx: {} {}", row.method, row.path))
    }

    /// The errors that follow from the endpoints table.
    fn never_refused(&self, row: &Row) -> Vec<String> {
        let mut expected = Vec::new();
        if row.needs_token {
            expected.push((401, "M_MISSING_TOKEN"));
        }
        if row.reads_token {
            expected.push((401, "M_UNKNOWN_TOKEN"));
        }
        if row.rate_limited && row.path == row.current {
            expected.push((429, "M_LIMIT_EXCEEDED"));
        }
        let is_missing = |(status, code): &(u16, &str)| {
            let key = (
                row.method.to_string(),
                row.path,
                *status,
                (*code).to_owned(),
            );
            !self.errors.contains_key(&key)
        };
        let missing = expected.into_iter().filter(is_missing);
        missing
            .map(|(status, code)| {
                format!(
                    "never produced: {} {} {status} {code}",
                    row.method, row.path
                )
            })
            .collect()
    }

    fn never_produced(&self, table: &Errors) -> Vec<String> {
        let produced: BTreeSet<Known> = self.known().map(|(known, _)| known).collect();
        let mut faults = Vec::new();
        for (known, why_not) in &table.0 {
            let (method, path, status, code) = known;
            let error = format!("{method} {path} {status} {code}");
            match (produced.contains(known), why_not.is_empty()) {
                (false, true) => faults.push(format!("never produced: {error}")),
                (true, false) => faults.push(format!("produced, though {why_not}: {error}")),
                _ => (),
            }
        }
        faults
    }

    fn unexpected(&self, table: &Errors) -> Vec<String> {
        let unexpected = self.known().filter(|(known, _)| {
            let (method, path, status, code) = known;
            let follows = match (status, code.as_str()) {
                (401, "M_MISSING_TOKEN" | "M_UNKNOWN_TOKEN") => table::rows().iter().any(|row| {
                    row.method == method.as_str() && row.current == path && row.reads_token
                }),
                (429, "M_LIMIT_EXCEEDED") => true,
                _ => false,
            };
            !follows && !table.0.contains_key(known)
        });
        unexpected
            .map(|((method, path, status, code), example)| {
                format!("not in errors.tsv: {method} {path} {status} {code}, as at {example}")
            })
            .collect()
    }

    /// Errors by the current path of their endpoint.
    fn known(&self) -> impl Iterator<Item = (Known, &str)> {
        self.errors.iter().filter_map(|(error, example)| {
            let (method, path, status, code) = error;
            let row = table::rows()
                .iter()
                .find(|row| row.method == method.as_str() && row.path == *path)?;
            let known = (
                method.clone(),
                row.current.to_owned(),
                *status,
                code.clone(),
            );
            row.built.then_some((known, example.as_str()))
        })
    }
}

/// The rows of the current paths for which `errors.tsv` lists an error that can be produced.
pub fn rows_with(status: u16, code: &str) -> Vec<&'static Row> {
    let table = Errors::read();
    let is_listed = |row: &&Row| {
        let error = (
            row.method.to_string(),
            row.path.to_owned(),
            status,
            code.to_owned(),
        );
        table
            .0
            .get(&error)
            .is_some_and(|why_not| why_not.is_empty())
    };
    table::rows().iter().filter(is_listed).collect()
}

/// The errors table: each error, and why it cannot be produced, where it cannot.
struct Errors(BTreeMap<Known, &'static str>);

impl Errors {
    fn read() -> Self {
        let lines = ERRORS.lines().skip(1).map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [method, path, status, code, _named_by, why_not] = fields[..] else {
                panic!("errors.tsv: not six columns: {line}");
            };
            let status = status.parse().expect("errors.tsv: a status is a number");
            let known = (method.to_owned(), path.to_owned(), status, code.to_owned());
            (known, why_not)
        });
        Self(lines.collect())
    }

    /// Lines about endpoints that are not there.
    fn stale(&self) -> Vec<String> {
        let stale = self.0.keys().filter(|(method, path, ..)| {
            !table::rows()
                .iter()
                .any(|row| row.method == method.as_str() && row.current == path && row.built)
        });
        stale
            .map(|(method, path, status, code)| {
                format!("errors.tsv: no such endpoint is built: {method} {path} {status} {code}")
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

    fn count(produced: &Produced, fault: &str) -> usize {
        let faults = produced.faults();
        faults.iter().filter(|it| it.starts_with(fault)).count()
    }

    #[test]
    fn nothing_recorded_is_nothing_shown() {
        let nothing = Produced::default();
        let built = table::rows().iter().filter(|row| row.built).count();
        assert_eq!(count(&nothing, "never answered 2xx"), built);
        assert!(count(&nothing, "never produced") > built);
    }

    #[test]
    fn each_path_counts_for_itself() {
        let never = |produced: &Produced| count(produced, "never answered 2xx: GET ");
        let mut produced = Produced::default();
        let before = never(&produced);
        produced.note("GET", WHOAMI, 200, None);
        assert_eq!(never(&produced), before - 1);
        produced.note("GET", "/_matrix/client/r0/account/whoami", 200, None);
        assert_eq!(never(&produced), before - 2);
    }

    #[test]
    fn an_error_that_the_table_does_not_have_is_a_fault() {
        let mut produced = Produced::default();
        produced.note("GET", WHOAMI, 401, Some("M_UNKNOWN_TOKEN"));
        assert_eq!(count(&produced, "not in errors.tsv"), 0);
        produced.note("GET", WHOAMI, 418, Some("M_TEAPOT"));
        produced.note("GET", WHOAMI, 500, Some("M_UNKNOWN"));
        assert_eq!(count(&produced, "not in errors.tsv"), 2);
    }
}
