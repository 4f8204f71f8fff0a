//! Keeps answers for the checks that follow the tests (`cargo xtask test`, `cargo xtask schema`): a
//! JSON line each, where `HOMESERVER_RECORD` names a folder.

use std::{fs::OpenOptions, io::Write, path::PathBuf};

use serde_json::{Value, json};

use crate::table::{self, Dialect};

/// Adds one answer to this process's file, with the current path of what was asked, whatever name it
/// was asked by. An answer that is not JSON is kept without its body.
pub(crate) fn keep(method: &str, path: &str, status: u16, body: Option<&Value>) {
    let Some(folder) = std::env::var_os("HOMESERVER_RECORD") else {
        return;
    };
    let file = PathBuf::from(folder).join(format!("answers-{}.jsonl", std::process::id()));
    let mut answer = json!({ "method": method, "path": path, "status": status });
    if let Some(current) = table::in_dialect(Dialect::Current, method, path) {
        answer["current"] = current.into();
    }
    if let Some(body) = body {
        answer["body"] = body.clone();
    }
    // One write a line: tests of one process run on several threads.
    let line = format!("{answer}\n");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .expect("the folder of HOMESERVER_RECORD must be there");
    file.write_all(line.as_bytes())
        .expect("an answer must be kept");
}
