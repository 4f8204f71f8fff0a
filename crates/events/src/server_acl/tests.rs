use std::fmt::Write;

use ruma::ServerName;
use serde_json::json;

use super::*;

fn allows(content: &serde_json::Value, server: &str) -> bool {
    let server = ServerName::parse(server).unwrap();
    ServerAcl::from_content(&content.to_string()).allows(&server)
}

#[test]
fn a_room_without_an_acl_is_open() {
    for name in ["a.example", "1.2.3.4", "[::1]:80"] {
        assert!(ServerAcl::open().allows(&ServerName::parse(name).unwrap()));
    }
}

#[test]
fn lists_are_asked_in_the_order_of_the_specification() {
    let acl = json!({ "allow": ["*"], "deny": ["evil.example", "*.evil.example", "e?il.org"] });
    for (name, may) in [
        ("good.example", true),
        ("evil.example", false),
        ("sub.evil.example", false),
        ("notevil.example", true),
        ("evil.org", false),
        ("eviil.org", true),
        ("1.2.3.4", true),
        ("[2001:db8::1]", true),
    ] {
        assert_eq!(allows(&acl, name), may, "{name}");
    }
    let only = json!({ "allow": ["good.example", "*.friends.example"] });
    assert!(allows(&only, "good.example"));
    assert!(allows(&only, "my.friends.example"));
    assert!(!allows(&only, "friends.example"));
    assert!(!allows(&only, "other.example"));
}

#[test]
fn the_spelling_of_a_name_and_its_port_do_not_count() {
    let acl =
        json!({ "allow": ["*"], "deny": ["Evil.Example", "*.BAD.example", "[2001:DB8:0::1]"] });
    for name in [
        "evil.example",
        "EVIL.example",
        "evil.example:8448",
        "evil.example.",
        "evil.example.:1234",
        "x.bad.Example:1",
        "[2001:db8::1]:8448",
        "[2001:db8:0:0::0001]",
    ] {
        assert!(!allows(&acl, name), "{name}");
    }
    // Ports are not part of a pattern: one with a port matches nobody.
    assert!(allows(
        &json!({ "allow": ["*"], "deny": ["a.example:1"] }),
        "a.example:1"
    ));
}

#[test]
fn ip_literals_can_be_kept_out() {
    let acl = json!({ "allow": ["*"], "allow_ip_literals": false });
    for name in ["1.2.3.4", "1.2.3.4:8448", "[::1]", "[2001:db8::1]:8448"] {
        assert!(!allows(&acl, name), "{name}");
    }
    for name in ["a.example", "1.2.3.4.example", "1.2.3"] {
        assert!(allows(&acl, name), "{name}");
    }
    // Naming one in `allow` does not help it.
    let named = json!({ "allow": ["1.2.3.4"], "allow_ip_literals": false });
    assert!(!allows(&named, "1.2.3.4"));
}

#[test]
fn contents_of_wrong_types_are_read_leniently() {
    for (content, may) in [
        (json!({}), false),
        (json!({ "allow": null }), false),
        (json!({ "allow": "*" }), false),
        (json!({ "allow": { "*": true } }), false),
        (json!({ "allow": [1, null, ["*"], {}] }), false),
        (json!({ "allow": [1, "*", null] }), true),
        (json!({ "allow": ["*"], "deny": "1.2.3.4" }), true),
        (json!({ "allow": ["*"], "deny": ["1.2.3.4", 7] }), false),
        (
            json!({ "allow": ["*"], "allow_ip_literals": "false" }),
            true,
        ),
        (json!({ "allow": ["*"], "allow_ip_literals": 0 }), true),
        (json!({ "allow": ["*"], "allow_ip_literals": null }), true),
    ] {
        assert_eq!(allows(&content, "1.2.3.4"), may, "{content}");
    }
    for text in ["", "[]", "null", "{\"allow\":[\"*\"]", "\u{0}"] {
        let acl = ServerAcl::from_content(text);
        assert!(
            !acl.allows(&ServerName::parse("a.example").unwrap()),
            "{text:?}"
        );
    }
}

#[test]
fn runs_of_stars_are_one_star() {
    let stars = "*".repeat(2000);
    assert!(!allows(
        &json!({ "allow": ["*"], "deny": [format!("{stars}.example")] }),
        "a.example"
    ));
    assert!(allows(
        &json!({ "allow": [format!("a{stars}")] }),
        "a.example"
    ));
}

#[test]
fn the_largest_acl_is_asked_in_a_bounded_number_of_steps() {
    // As many patterns as an event holds, each of which fits but for its end.
    let mut deny = Vec::new();
    while deny.len() < 4000 {
        let mut pattern = String::from("*a");
        write!(pattern, "{}*b", deny.len()).unwrap();
        deny.push(pattern);
    }
    let acl = ServerAcl::from_content(&json!({ "allow": ["*"], "deny": deny }).to_string());
    let long = format!("{}.example", "a.".repeat(110));
    let server = ServerName::parse(long).unwrap();
    for _ in 0..5 {
        assert!(acl.allows(&server));
    }
}
