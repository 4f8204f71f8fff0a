//! Keeps answers for `cargo xtask schema`, a JSON line each, where `HOMESERVER_RECORD` names a
//! folder.

use std::{fs::OpenOptions, io::Write, path::PathBuf};

use serde_json::{Value, json};

/// Adds one answer to this process's file. Answers that are not JSON are not kept.
pub(crate) fn keep(method: &str, path: &str, status: u16, body: Option<&Value>) {
    let (Some(folder), Some(body)) = (std::env::var_os("HOMESERVER_RECORD"), body) else {
        return;
    };
    let file = PathBuf::from(folder).join(format!("answers-{}.jsonl", std::process::id()));
    let answer = json!({ "method": method, "path": path, "status": status, "body": body });
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
