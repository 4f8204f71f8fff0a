//! Imports between our crates run downwards only.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

/// Who may import whom. A new edge is a change of the design: it comes in a commit of its own, with
/// the reason.
const ALLOWED: &[(&str, &[&str])] = &[
    ("homeserver-fuzz", &[]),
    ("homeserver-runtime", &[]),
    ("homeserver-events", &[]),
    ("homeserver-storage", &["homeserver-runtime"]),
    ("homeserver-outbound", &["homeserver-runtime"]),
    (
        "homeserver-rooms",
        &[
            "homeserver-runtime",
            "homeserver-events",
            "homeserver-storage",
        ],
    ),
    (
        "homeserver-users",
        &[
            "homeserver-runtime",
            "homeserver-events",
            "homeserver-storage",
        ],
    ),
    (
        "homeserver-media",
        &[
            "homeserver-runtime",
            "homeserver-storage",
            "homeserver-outbound",
        ],
    ),
    (
        "homeserver-federation",
        &[
            "homeserver-runtime",
            "homeserver-events",
            "homeserver-storage",
            "homeserver-outbound",
            "homeserver-rooms",
            "homeserver-users",
        ],
    ),
    (
        "homeserver",
        &[
            "homeserver-runtime",
            "homeserver-events",
            "homeserver-storage",
            "homeserver-outbound",
            "homeserver-rooms",
            "homeserver-users",
            "homeserver-media",
            "homeserver-federation",
        ],
    ),
    ("homeserver-cli", &["homeserver"]),
    ("homeserver-bench", &["homeserver", "homeserver-events"]),
    ("homeserver-tests", &["homeserver"]),
    ("xtask", &[]),
];

/// Crates whose programs speak HTTP to a server by themselves: the guard, and what is no server.
const CLIENTS: [&str; 3] = [
    "homeserver-outbound",
    "homeserver-bench",
    "homeserver-tests",
];

#[test]
fn only_the_guard_speaks_to_others() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let is_client =
            |dependency: &Value| dependency["name"] == "reqwest" && dependency["kind"] != "dev";
        let dependencies = package["dependencies"].as_array().unwrap();
        let speaks = dependencies.iter().any(is_client);
        assert_eq!(speaks, CLIENTS.contains(&name), "{name} and reqwest");
    }
}

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn imports_run_downwards() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 5, "the workspace was not read");
    let ours: BTreeSet<&str> = packages
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();

    for package in packages {
        let name = package["name"].as_str().unwrap();
        let allowed = ALLOWED.iter().find(|(known, _)| *known == name);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{name} has no place in the design"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let target = dependency["name"].as_str().unwrap();
            // Tests of a crate may use what they like.
            if ours.contains(target) && dependency["kind"] != "dev" {
                assert!(allowed.contains(&target), "{name} must not import {target}");
            }
        }
    }
}
