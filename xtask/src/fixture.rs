//! `cargo xtask fixture`: keeps a small database of each engine in the formats of this version, which
//! later versions must read (the test `released` of `crates/homeserver`).

use std::process::Command;

use crate::command::{self, Error, cargo};

const ENGINES: [&str; 2] = ["fjall", "sled"];

/// Writes the databases of this version anew.
pub(crate) fn run() -> Result<(), Error> {
    let kept = command::root()
        .join("tests/data/released")
        .join(env!("CARGO_PKG_VERSION"));
    command::make_folder(&kept)?;
    for engine in ENGINES {
        let folder = command::target_folder().join("fixture").join(engine);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|source| Error::File {
                path: folder.clone(),
                source,
            })?;
        }
        command::make_folder(&folder)?;
        let mut write = cargo(&["run", "--locked", "-p", "homeserver"]);
        write.args(["--example", "fixture", "--", engine]);
        command::run(write.arg(&folder))?;
        let mut pack = Command::new("tar");
        pack.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
        pack.arg("-czf").arg(kept.join(format!("{engine}.tar.gz")));
        command::run(pack.arg("-C").arg(&folder).arg("."))?;
    }
    Ok(())
}
