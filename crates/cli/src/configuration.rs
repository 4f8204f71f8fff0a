//! Finding and reading the configuration: the file, and the environment over it.

use std::{io, path::Path};

use homeserver::config::{Config, ENVIRONMENT_PREFIX};

use crate::report::Failed;

/// The file that is read if none is named and it is there.
const DEFAULT_FILE: &str = "conduit.toml";

/// The configuration of this run.
pub(crate) fn load(named: Option<&Path>) -> Result<Config, Failed> {
    let file = named.unwrap_or(Path::new(DEFAULT_FILE));
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            let what = format!("cannot read {}", file.display());
            return Err(Failed::new(what, &error));
        }
    };
    let environment = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let value = value.into_string().ok()?;
        name.starts_with(ENVIRONMENT_PREFIX)
            .then_some((name, value))
    });
    Config::parse(&text, environment)
        .map_err(|error| Failed::new(format!("{} is not valid", file.display()), &error))
}
