//! The binary's commands, as an operator types them.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

fn homeserver(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_homeserver"))
        .args(arguments)
        .current_dir(folder)
        .env("RUST_LOG", "error")
        .output()
        .unwrap()
}

fn printed(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    text
}

fn refused(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn generated_configuration_is_the_documented_one_and_good() {
    let folder = tempfile::tempdir().unwrap();
    let text = printed(&homeserver(folder.path(), &["generate-config"]));
    assert_eq!(text, include_str!("../../../conduit.toml"));
    std::fs::write(folder.path().join("conduit.toml"), text).unwrap();
    printed(&homeserver(folder.path(), &["config", "check"]));
    std::fs::write(
        folder.path().join("bad.toml"),
        "[storage]\nengin = \"sled\"",
    )
    .unwrap();
    let error = refused(&homeserver(
        folder.path(),
        &["--config", "bad.toml", "config", "check"],
    ));
    assert!(error.contains("did you mean `storage.engine`?"), "{error}");
    let error = refused(&homeserver(folder.path(), &["--config", "none.toml"]));
    assert!(error.contains("none.toml"), "{error}");
}

#[test]
fn accounts_survive_a_conversion_between_engines() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| homeserver(folder.path(), arguments);
    let create = [
        "admin",
        "create-user",
        "alice",
        "--password",
        "one",
        "--admin",
    ];
    printed(&run(&create));
    let folder_of_data = std::fs::metadata(folder.path().join("data")).unwrap();
    assert_eq!(folder_of_data.permissions().mode() & 0o777, 0o700);
    assert!(refused(&run(&create)).contains("taken"));
    printed(&run(&["admin", "create-user", "bob", "--password", "two"]));
    printed(&run(&[
        "admin",
        "reset-password",
        "@bob:localhost",
        "--password",
        "three",
    ]));
    printed(&run(&["admin", "deactivate", "bob"]));
    assert!(refused(&run(&["admin", "promote", "nobody"])).contains("no account"));
    let list = "@alice:localhost\tadministrator\n@bob:localhost\tdeactivated\n";
    assert_eq!(printed(&run(&["admin", "list-users"])), list);

    let name = refused(&homeserver_as(
        folder.path(),
        "elsewhere.example",
        &["admin", "list-users"],
    ));
    assert!(name.contains("was made for localhost"), "{name}");
    printed(&run(&["storage", "check"]));
    printed(&run(&["storage", "recover"]));
    printed(&run(&["storage", "convert", "--to", "sled"]));
    std::fs::write(
        folder.path().join("conduit.toml"),
        "storage.engine = \"sled\"",
    )
    .unwrap();
    assert_eq!(printed(&run(&["admin", "list-users"])), list);
    printed(&run(&["storage", "check"]));
}

fn homeserver_as(folder: &Path, name: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_homeserver"))
        .args(arguments)
        .current_dir(folder)
        .env("HOMESERVER__SERVER_NAME", name)
        .output()
        .unwrap()
}
