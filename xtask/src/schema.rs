//! `cargo xtask schema --spec DIR`: answers that the wire tests recorded, against the OpenAPI and
//! JSON schemas of a specification checkout.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::{Error, make_folder, root, run as run_command, target_folder},
    peers,
};

/// Where the wire tests leave one file for each answer: method, path, status, body.
pub(crate) fn recorded_folder() -> PathBuf {
    target_folder().join("recorded-answers")
}

/// Starts a new recording.
pub(crate) fn forget_recorded() -> Result<(), Error> {
    let folder = recorded_folder();
    if folder.is_dir() {
        std::fs::remove_dir_all(&folder).map_err(|source| Error::File {
            path: folder.clone(),
            source,
        })?;
    }
    make_folder(&folder)
}

/// Checks what the last run of the tests recorded.
pub(crate) fn run(spec: &Path) -> Result<(), Error> {
    if !spec.join("data/api/client-server").is_dir() {
        let message = format!("{} holds no data/api/client-server", spec.display());
        return Err(Error::Missing(message));
    }
    let python = peers::prepare()?.python;
    let mut check = Command::new(python);
    check
        .arg(root().join("tests/schema/check.py"))
        .arg(spec)
        .arg(recorded_folder());
    run_command(&mut check)
}
