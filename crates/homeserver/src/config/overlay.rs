//! Variables of the environment laid over the file: `HOMESERVER__STORAGE__ENGINE=sled`,
//! `HOMESERVER__LISTENERS__0__ADDRESS=[::]:8008`, `HOMESERVER__LISTENERS__0__SERVES__1=admin`.

use toml::{Table, Value};

use super::{
    ConfigError,
    keys::{self, Kind},
};

/// What every variable begins with.
pub const ENVIRONMENT_PREFIX: &str = "HOMESERVER__";

/// Sets what the variables name. Variables without the prefix are passed over. Sorted by name, so
/// that list entries are added in order of their index.
pub(super) fn apply<N, V>(
    table: &mut Table,
    environment: impl IntoIterator<Item = (N, V)>,
) -> Result<(), ConfigError>
where
    N: AsRef<str>,
    V: AsRef<str>,
{
    let mut pairs: Vec<(Vec<Step>, N, V)> = Vec::new();
    for (name, value) in environment {
        if let Some(path) = name.as_ref().strip_prefix(ENVIRONMENT_PREFIX) {
            pairs.push((path.split("__").map(Step::parse).collect(), name, value));
        }
    }
    pairs.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    for (path, name, value) in &pairs {
        let refuse = |problem: String| ConfigError::Environment {
            variable: name.as_ref().to_owned(),
            problem,
        };
        let value = read(path, value.as_ref()).map_err(|error| match error {
            Refusal::Unknown(key) => refuse(keys::unknown(key).to_string()),
            Refusal::Value(problem) => refuse(problem),
        })?;
        set(table, path, value).map_err(refuse)?;
    }
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Index(usize),
    Key(String),
}

impl Step {
    fn parse(text: &str) -> Self {
        match text.parse() {
            Ok(index) => Self::Index(index),
            Err(_) => Self::Key(text.to_ascii_lowercase()),
        }
    }
}

enum Refusal {
    Unknown(String),
    Value(String),
}

/// Reads the text of a variable as the kind of value that its key takes.
fn read(path: &[Step], text: &str) -> Result<Value, Refusal> {
    let mut name = String::new();
    for step in path {
        match step {
            Step::Index(_) => name.push_str("[]"),
            Step::Key(key) if name.is_empty() => name.push_str(key),
            Step::Key(key) => {
                name.push('.');
                name.push_str(key);
            }
        }
    }
    // An entry of a list of texts is a text.
    if name.strip_suffix("[]").and_then(keys::kind) == Some(Kind::Texts) {
        return Ok(Value::String(text.to_owned()));
    }
    let Some(kind) = keys::kind(&name) else {
        return Err(Refusal::Unknown(name));
    };
    let problem = |expected: &str| Refusal::Value(format!("{text:?} is not {expected}"));
    match kind {
        Kind::Text => Ok(Value::String(text.to_owned())),
        Kind::Integer => text
            .parse()
            .map(Value::Integer)
            .map_err(|_| problem("a whole number")),
        Kind::Number => text
            .parse()
            .map(Value::Float)
            .map_err(|_| problem("a number")),
        Kind::Bool => text
            .parse()
            .map(Value::Boolean)
            .map_err(|_| problem("true or false")),
        Kind::Texts => {
            let parsed: Result<Table, _> = format!("list = {text}").parse();
            let list = parsed.ok().and_then(|mut table| table.remove("list"));
            list.filter(Value::is_array)
                .ok_or_else(|| problem("a list such as [\"a\", \"b\"]"))
        }
    }
}

/// Puts `value` at `path`, making tables and list entries on the way.
fn set(table: &mut Table, path: &[Step], value: Value) -> Result<(), String> {
    let Some((Step::Key(first), rest)) = path.split_first() else {
        return Err("a name must begin with a key".to_owned());
    };
    let mut place = table
        .entry(first.clone())
        .or_insert_with(|| empty_before(rest));
    for (at, step) in rest.iter().enumerate() {
        let empty = || empty_before(&rest[at + 1..]);
        place = match (step, place) {
            (Step::Key(key), Value::Table(table)) => table.entry(key.clone()).or_insert_with(empty),
            (Step::Index(index), Value::Array(list)) => {
                if *index > list.len() {
                    let length = list.len();
                    return Err(format!(
                        "the list has {length} entries, {index} leaves a hole"
                    ));
                }
                if *index == list.len() {
                    list.push(empty());
                }
                &mut list[*index]
            }
            _ => return Err("the file has another kind of value there".to_owned()),
        };
    }
    *place = value;
    Ok(())
}

/// What stands at a place before the next step is taken.
fn empty_before(rest: &[Step]) -> Value {
    match rest.first() {
        Some(Step::Index(_)) => Value::Array(Vec::new()),
        _ => Value::Table(Table::new()),
    }
}
