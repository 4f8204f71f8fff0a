//! The binary's commands, as an operator types them.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
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

#[test]
fn nothing_is_made_where_something_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let error = refused(&homeserver(folder.path(), &["admin", "list-users"]));
    assert!(error.contains("no fjall database in data"), "{error}");
    for command in ["check", "recover"] {
        let error = refused(&homeserver(folder.path(), &["storage", command]));
        assert!(error.contains("there is no database"), "{error}");
    }
    assert!(!folder.path().join("data").exists());
}

#[test]
fn registration_tokens_are_made_listed_and_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut all = vec!["admin"];
        all.extend(arguments);
        homeserver(folder.path(), &all)
    };
    let create = |options: &[&str]| {
        let mut all = vec!["create-registration-token"];
        all.extend(options);
        run(&all)
    };
    let generated = printed(&create(&["--uses", "2"]));
    assert_eq!(generated.trim().len(), 24);
    assert_eq!(printed(&create(&["--token", "a.b~c_d-e"])), "a.b~c_d-e\n");
    assert!(refused(&create(&["--token", "a.b~c_d-e"])).contains("such a token already"));
    assert!(refused(&create(&["--token", "a b"])).contains("letters"));
    assert_eq!(create(&["--uses", "0"]).status.code(), Some(2));
    let list = printed(&run(&["list-registration-tokens"]));
    let expected = format!("{}\tused 0 of 2", generated.trim());
    assert!(list.lines().any(|line| line == expected), "{list}");
    printed(&run(&["revoke-registration-token", "a.b~c_d-e"]));
    let again = refused(&run(&["revoke-registration-token", "a.b~c_d-e"]));
    assert!(again.contains("no registration token a.b~c_d-e"), "{again}");
    assert_eq!(
        printed(&run(&["list-registration-tokens"])),
        format!("{expected}\n")
    );
}

#[test]
fn an_account_is_shown_and_a_password_read_from_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let mut create = Command::new(env!("CARGO_BIN_EXE_homeserver"))
        .args(["admin", "create-user", "alice"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = create.stdin.take().unwrap();
    input.write_all(b"secret\n").unwrap();
    drop(input);
    let made = printed(&create.wait_with_output().unwrap());
    assert_eq!(made, "Made @alice:localhost\n");
    let shown = printed(&homeserver(folder.path(), &["admin", "show-user", "alice"]));
    assert!(
        shown.starts_with("@alice:localhost\npassword\tset\ncreated\t2"),
        "{shown}"
    );
    assert!(shown.contains("uploaded\t0 bytes"), "{shown}");
    printed(&homeserver(folder.path(), &["admin", "logout", "alice"]));
}

#[test]
fn a_signing_key_is_replaced_while_the_server_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| homeserver(folder.path(), arguments);
    let rotate = ["admin", "rotate-signing-key"];
    assert!(refused(&run(&rotate)).contains("no fjall database in data"));
    printed(&run(&[
        "admin",
        "create-user",
        "alice",
        "--password",
        "one",
    ]));
    let file = |name: &str| std::fs::read_to_string(folder.path().join("data").join(name));
    let before = file("signing.key").unwrap();
    let told = printed(&run(&rotate));
    let after = file("signing.key").unwrap();
    assert_ne!(before, after);
    let version = |text: &str| text.split(' ').nth(1).unwrap().to_owned();
    assert!(
        told.contains(&format!("ed25519:{}", version(&after))),
        "{told}"
    );
    let old = file("signing.key.old").unwrap();
    assert_eq!(version(&old), version(&before));
    let secret = before.trim().split(' ').nth(2).unwrap();
    assert!(!old.contains(secret), "only the public half is kept");
    let mode = folder
        .path()
        .join("data/signing.key.old")
        .metadata()
        .unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}
