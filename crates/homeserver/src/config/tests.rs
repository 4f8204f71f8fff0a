use std::collections::BTreeSet;

use super::{keys::KEYS, *};

const NOTHING: [(&str, &str); 0] = [];

#[test]
fn the_documented_file_says_the_defaults() {
    assert_eq!(
        Config::parse(DOCUMENTED, NOTHING).unwrap(),
        Config::default()
    );
    assert_eq!(Config::parse("", NOTHING).unwrap(), Config::default());
}

/// Every line `#key = value` of the documented file is an example that must parse as well.
#[test]
fn the_documented_examples_parse_and_every_key_is_documented() {
    let uncommented: Vec<&str> = DOCUMENTED
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(example) if !example.starts_with(' ') && example.contains('=') => example,
            _ => line,
        })
        .collect();
    let text = uncommented.join("\n");
    let table: toml::Table = text.parse().unwrap();
    Config::parse(&text, NOTHING).unwrap();

    let mut documented = BTreeSet::new();
    collect("", &table, &mut documented);
    let known: BTreeSet<String> = KEYS.iter().map(|(key, _)| (*key).to_owned()).collect();
    assert_eq!(documented, known);
}

fn collect(prefix: &str, table: &toml::Table, names: &mut BTreeSet<String>) {
    for (key, value) in table {
        let name = format!("{prefix}{key}");
        match value {
            toml::Value::Table(inner) => collect(&format!("{name}."), inner, names),
            toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
                for item in items.iter().filter_map(toml::Value::as_table) {
                    collect(&format!("{name}[]."), item, names);
                }
            }
            _ => {
                names.insert(name);
            }
        }
    }
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    let cases = [
        ("server_nmae = \"a\"", "server_nmae", "server_name"),
        (
            "[storage]\nengin = \"sled\"",
            "storage.engin",
            "storage.engine",
        ),
        (
            "[[listeners]]\naddres = \"\"",
            "listeners[].addres",
            "listeners[].address",
        ),
        (
            "[regstration]\nmode = \"open\"",
            "regstration",
            "registration",
        ),
        (
            "shared_secret = \"x\"",
            "shared_secret",
            "registration.shared_secret",
        ),
        (
            "[rate_limits.messages]\nburst = 1",
            "rate_limits.messages",
            "rate_limits.message.burst",
        ),
    ];
    for (text, unknown, nearest) in cases {
        let error = Config::parse(text, NOTHING).unwrap_err();
        let ConfigError::UnknownKey {
            key,
            nearest: found,
        } = &error
        else {
            panic!("{text}: {error}");
        };
        assert_eq!(
            (key.as_str(), found.as_deref()),
            (unknown, Some(nearest)),
            "{error}"
        );
    }
    let error = Config::parse("zzzzqqq = 1", NOTHING).unwrap_err();
    assert_eq!(error.to_string(), "unknown key `zzzzqqq`");
}

#[test]
fn the_environment_wins() {
    let text = "[[listeners]]\naddress = \"127.0.0.1:1\"\n[storage]\nengine = \"sled\"";
    let environment = [
        ("PATH", "/bin"),
        ("HOMESERVER__SERVER_NAME", "example.org"),
        ("HOMESERVER__STORAGE__ENGINE", "memory"),
        ("HOMESERVER__LISTENERS__0__ADDRESS", "127.0.0.1:2"),
        ("HOMESERVER__LISTENERS__0__SERVES__1", "admin"),
        ("HOMESERVER__LISTENERS__0__SERVES__0", "client"),
        ("HOMESERVER__LISTENERS__1__ADDRESS", "[::1]:3"),
        ("HOMESERVER__LISTENERS__1__SERVES", "[\"admin\"]"),
        ("HOMESERVER__REGISTRATION__TOKEN", "12345"),
        ("HOMESERVER__RATE_LIMITS__ENABLED", "false"),
        ("HOMESERVER__RATE_LIMITS__LOGIN__PER_SECOND", "2"),
        ("HOMESERVER__DNS__SERVERS__0", "127.0.0.53"),
    ];
    let config = Config::parse(text, environment).unwrap();
    assert_eq!(config.server_name, "example.org");
    assert_eq!(config.storage.engine, EngineKind::Memory);
    assert_eq!(config.listeners[0].address, "127.0.0.1:2".parse().unwrap());
    assert_eq!(
        config.listeners[0].serves,
        [Surface::Client, Surface::Admin]
    );
    assert_eq!(config.listeners[1].address, "[::1]:3".parse().unwrap());
    assert_eq!(config.listeners[1].serves, [Surface::Admin]);
    assert_eq!(config.registration.token.as_deref(), Some("12345"));
    assert!(!config.rate_limits.enabled);
    assert_eq!(
        config.rate_limits.login,
        Rate {
            per_second: 2.0,
            burst: 10
        }
    );
    assert_eq!(config.dns.servers, ["127.0.0.53:53".parse().unwrap()]);
}

#[test]
fn values_that_cannot_be_are_refused() {
    let cases = [
        ("server_name = \"not a name\"", "server_name"),
        (
            "[[listeners]]\naddress = \"localhost\"",
            "listeners[].address",
        ),
        ("[storage]\nengine = \"rocksdb\"", "fjall"),
        ("[rooms]\ndefault_version = \"13\"", "rooms.default_version"),
        ("[registration]\ntoken = \"\"", "registration.token"),
        (
            "[registration]\nshared_secret = \"fifteen letters\"",
            "registration.shared_secret",
        ),
        (
            "[rate_limits]\nlogin = { per_second = 0.0 }",
            "rate_limits.login.per_second",
        ),
        (
            "[federation]\nrequest_timeout = 0",
            "federation.request_timeout",
        ),
        (
            "[federation]\nretry_min = 60\nretry_max = 59",
            "federation.retry_max",
        ),
        (
            "[federation]\nallowed_private_ranges = [\"here\"]",
            "federation.allowed_private_ranges",
        ),
        (
            "[http]\ntrusted_proxies = [\"here\"]",
            "http.trusted_proxies",
        ),
    ];
    for (text, named) in cases {
        let error = Config::parse(text, NOTHING).unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
}

#[test]
fn variables_that_do_not_fit_are_refused() {
    let cases = [
        ("HOMESERVER__STORAGE__ENGIN", "sled", "storage.engine"),
        ("HOMESERVER__HTTP__MAX_CONNECTIONS", "many", "whole number"),
        ("HOMESERVER__LISTENERS__2__ADDRESS", "127.0.0.1:1", "hole"),
        ("HOMESERVER__SERVER_NAME__0", "a", "unknown key"),
    ];
    for (name, value, named) in cases {
        let error = Config::parse("", [(name, value)]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(named), "{error}");
    }
}

#[test]
fn what_is_wrong_is_said_without_the_secret() {
    let texts = [
        ("[registration]\nshared_secret = hunter2\n", "line 2"),
        ("[registration]\nshared_secret = \"hunter2\n", "line 2"),
        (
            "[registration]\ntoken = [\"hunter2\"]\n",
            "registration.token",
        ),
        (
            "[http]\nmax_connections = [\"hunter2\"]\n",
            "invalid type: sequence, expected",
        ),
        (
            "[sessions]\nallow_token_in_query = 1.5\n",
            "invalid type: floating point, expected",
        ),
        (
            "[http]\nmax_connections = -1\n",
            "invalid value: integer, expected",
        ),
        ("registration = \"hunter2\"\n", "registration"),
        (
            "[http]\nmax_connections = \"hunter2\"\n",
            "invalid type: string, expected",
        ),
        (
            "[registration]\nshared_secret = \"hunter2\"\n",
            "16 characters",
        ),
    ];
    for (text, named) in texts {
        let error = Config::parse(text, NOTHING).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains(named), "{shown}");
    }
}
