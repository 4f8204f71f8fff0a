//! End-to-end encryption keys: uploads, queries, claims, cross-signing.
//!
//! Specification: client-server API, "End-to-End Encryption".

use std::{collections::BTreeMap, time::Duration};

use axum::extract::State;
use homeserver_federation::{
    CallError, RemoteUsers,
    users::{Claims, FoundKeys},
};
use homeserver_users::{
    CrossSigningError, CrossSigningUpload, KeyUpload, Proved, SignatureFailure, Users,
};
use ruma::{
    OneTimeKeyAlgorithm, ServerName, UInt, UserId,
    api::client::keys::{
        claim_keys, get_key_changes, get_keys, upload_keys, upload_signatures, upload_signing_keys,
    },
    serde::Raw,
};
use serde_json::json;

use crate::{
    app::{authentication::Authenticator, session::Session},
    http::{ApiError, Interactive, Routes, Ruma, login::OWN_PASSWORD},
    sync::{SyncEngine, token::SyncToken},
};

/// Users in one query or claim.
const MAX_USERS: usize = 10_000;

/// How long other servers are waited for by a client that does not say.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long they are waited for at most.
const MAX_PATIENCE: Duration = Duration::from_mins(1);

/// Bytes of keys in the answer to a query. Users whose keys come after it are left out, and this
/// server is among the failures: the client asks again, for fewer.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(upload)
        .ruma(query)
        .ruma(claim)
        .ruma(changes)
        .ruma(signatures)
        .ruma(cross_signing)
}

async fn upload(
    State(users): State<Users>,
    session: Session,
    Ruma(request): Ruma<upload_keys::v3::Request>,
) -> Result<Ruma<upload_keys::v3::Response>, ApiError> {
    let upload = KeyUpload {
        device_keys: request.device_keys.map(Raw::into_json),
        one_time_keys: by_name(request.one_time_keys),
        fallback_keys: by_name(request.fallback_keys),
    };
    let owner = (session.user_number, &*session.user);
    let counts = users.keys.upload(owner, &session.device, &upload).await?;
    let counts = counts.into_iter().map(|(algorithm, count)| {
        let count = UInt::try_from(count).unwrap_or(UInt::MAX);
        (OneTimeKeyAlgorithm::from(algorithm), count)
    });
    Ok(Ruma(upload_keys::v3::Response::new(counts.collect())))
}

fn by_name<K: ToString, T>(
    keys: BTreeMap<K, Raw<T>>,
) -> BTreeMap<String, Box<serde_json::value::RawValue>> {
    let keys = keys.into_iter();
    keys.map(|(name, key)| (name.to_string(), key.into_json()))
        .collect()
}

async fn query(
    State(users): State<Users>,
    State(remote_users): State<RemoteUsers>,
    session: Session,
    Ruma(request): Ruma<get_keys::v3::Request>,
) -> Result<Ruma<get_keys::v3::Response>, ApiError> {
    check_count(request.device_keys.len())?;
    let reader = (session.user_number, &*session.user);
    let mut response = get_keys::v3::Response::new();
    let mut bytes = 0;
    let asked = request.device_keys.into_iter();
    let (remote, local): (BTreeMap<_, _>, BTreeMap<_, _>) =
        asked.partition(|(user, _)| is_remote(&session, user));
    for (user, devices) in local {
        if bytes > MAX_ANSWER {
            too_much(&mut response.failures, &user);
            continue;
        }
        let Some(number) = users.known_number(&user).await? else {
            continue;
        };
        let keys = users.keys.of_user(number, &devices, reader.0).await?;
        bytes += keys.values().map(|key| key.get().len()).sum::<usize>();
        let keys = keys.into_iter();
        let keys = keys.map(|(device, keys)| (device, Raw::from_json(keys)));
        response.device_keys.insert(user.clone(), keys.collect());
        let found = users.cross_signing.keys((number, &user), reader).await?;
        if let Some(key) = found.master {
            response
                .master_keys
                .insert(user.clone(), Raw::from_json(key));
        }
        if let Some(key) = found.self_signing {
            let key = Raw::from_json(key);
            response.self_signing_keys.insert(user.clone(), key);
        }
        if let Some(key) = found.user_signing {
            response.user_signing_keys.insert(user, Raw::from_json(key));
        }
    }
    if !remote.is_empty() {
        let patience = patience(request.timeout);
        let found = remote_users.query_keys(reader, &remote, patience).await?;
        add_remote(&mut response, found, bytes);
    }
    Ok(Ruma(response))
}

/// How long a client waits for other servers.
fn patience(timeout: Option<Duration>) -> Duration {
    timeout.unwrap_or(PATIENCE).min(MAX_PATIENCE)
}

/// Adds what was found of users of other servers to an answer that has so many bytes.
fn add_remote(response: &mut get_keys::v3::Response, found: FoundKeys, mut bytes: usize) {
    for (server, error) in found.failures {
        failed(&mut response.failures, &server, &error);
    }
    for (user, devices) in found.devices {
        if bytes > MAX_ANSWER {
            too_much(&mut response.failures, &user);
            continue;
        }
        bytes += devices.values().map(|key| key.get().len()).sum::<usize>();
        let devices = devices.into_iter();
        let devices = devices.map(|(device, keys)| (device, Raw::from_json(keys)));
        response.device_keys.insert(user, devices.collect());
    }
    for (user, keys) in found.cross_signing {
        if let Some(key) = keys.master {
            let key = Raw::from_json(key);
            response.master_keys.insert(user.clone(), key);
        }
        if let Some(key) = keys.self_signing {
            response.self_signing_keys.insert(user, Raw::from_json(key));
        }
    }
}

async fn claim(
    State(users): State<Users>,
    State(remote_users): State<RemoteUsers>,
    session: Session,
    Ruma(request): Ruma<claim_keys::v3::Request>,
) -> Result<Ruma<claim_keys::v3::Response>, ApiError> {
    check_count(request.one_time_keys.len())?;
    let mut response = claim_keys::v3::Response::new(BTreeMap::new());
    let mut remote = Claims::new();
    for (user, devices) in request.one_time_keys {
        if is_remote(&session, &user) {
            let devices = devices.into_iter();
            let devices = devices.map(|(device, algorithm)| (device, algorithm.to_string()));
            remote.insert(user, devices.collect());
            continue;
        }
        let Some(number) = users.known_number(&user).await? else {
            continue;
        };
        let mut claimed = BTreeMap::new();
        for (device, algorithm) in devices {
            let key = users
                .keys
                .claim(number, &device, algorithm.as_str())
                .await?;
            let Some(key) = key else { continue };
            let Ok(name) = key.name.as_str().try_into() else {
                continue;
            };
            claimed.insert(device, BTreeMap::from([(name, Raw::from_json(key.key))]));
        }
        if !claimed.is_empty() {
            response.one_time_keys.insert(user, claimed);
        }
    }
    if !remote.is_empty() {
        let patience = patience(request.timeout);
        let claimed = remote_users.claim_keys(remote, patience).await;
        for (server, error) in claimed.failures {
            failed(&mut response.failures, &server, &error);
        }
        for (user, devices) in claimed.keys {
            let devices = devices.into_iter().filter_map(|(device, (name, key))| {
                let name = name.as_str().try_into().ok()?;
                Some((device, BTreeMap::from([(name, Raw::from_json(key))])))
            });
            response.one_time_keys.insert(user, devices.collect());
        }
    }
    Ok(Ruma(response))
}

async fn changes(
    State(sync): State<SyncEngine>,
    session: Session,
    Ruma(request): Ruma<get_key_changes::v3::Request>,
) -> Result<Ruma<get_key_changes::v3::Response>, ApiError> {
    let parse = |name: &str, text: &str| {
        let token = text.parse::<SyncToken>();
        token.map_err(|_| ApiError::invalid_param(format!("`{name}` is not a token of /sync")))
    };
    let from = parse("from", &request.from)?;
    let to = parse("to", &request.to)?;
    let changes = sync.device_list_changes(&session, from, to).await?;
    Ok(Ruma(get_key_changes::v3::Response::new(
        changes.changed,
        changes.left,
    )))
}

async fn signatures(
    State(users): State<Users>,
    session: Session,
    Ruma(request): Ruma<upload_signatures::v3::Request>,
) -> Result<axum::Json<serde_json::Value>, ApiError> {
    let signed = request.signed_keys.into_iter().map(|(user, keys)| {
        let keys = keys.iter().map(|(id, key)| (id.to_owned(), key.to_owned()));
        (user, keys.collect())
    });
    let signer = (session.user_number, &*session.user);
    let signed = signed.collect();
    let failures = users.cross_signing.add_signatures(signer, &signed).await?;
    // Not ruma's type: its failures cannot be made outside of it.
    let mut answer = serde_json::Map::new();
    for (user, keys) in failures {
        let keys = keys.into_iter().map(|(id, failure)| {
            let errcode = match failure {
                SignatureFailure::NotFound => "M_NOT_FOUND",
                SignatureFailure::InvalidSignature => "M_INVALID_SIGNATURE",
                _ => "M_INVALID_PARAM",
            };
            (
                id,
                json!({ "errcode": errcode, "error": failure.to_string() }),
            )
        });
        let keys: serde_json::Map<_, _> = keys.collect();
        answer.insert(user.to_string(), keys.into());
    }
    Ok(axum::Json(json!({ "failures": answer })))
}

fn is_remote(session: &Session, user: &UserId) -> bool {
    user.server_name() != session.user.server_name()
}

/// Why another server did not answer, as clients are told it.
fn failed(
    failures: &mut BTreeMap<String, serde_json::Value>,
    server: &ServerName,
    error: &CallError,
) {
    let errcode = match error {
        CallError::Refused { errcode, .. } if errcode.starts_with("M_") => errcode,
        CallError::NotAdmitted(_) => "M_FORBIDDEN",
        _ => "M_UNKNOWN",
    };
    let told = json!({ "errcode": errcode, "error": error.to_string() });
    failures.insert(server.to_string(), told);
}

fn too_much(failures: &mut BTreeMap<String, serde_json::Value>, user: &UserId) {
    let error = json!({ "errcode": "M_TOO_LARGE", "error": "Ask for fewer users at once" });
    failures.insert(user.server_name().to_string(), error);
}

fn check_count(users: usize) -> Result<(), ApiError> {
    if users > MAX_USERS {
        return Err(ApiError::invalid_param(format!(
            "At most {MAX_USERS} users at once"
        )));
    }
    Ok(())
}

/// No authentication is asked for a first upload, for the same keys again, and for nothing at all:
/// clients probe with an empty body.
async fn cross_signing(
    State(users): State<Users>,
    State(authenticator): State<Authenticator>,
    session: Session,
    interactive: Interactive<upload_signing_keys::v3::Request>,
) -> Result<Ruma<upload_signing_keys::v3::Response>, ApiError> {
    let operation = interactive.operation(Some(&session));
    let request = interactive.request;
    let upload = CrossSigningUpload {
        master: request.master_key.map(Raw::into_json),
        self_signing: request.self_signing_key.map(Raw::into_json),
        user_signing: request.user_signing_key.map(Raw::into_json),
    };
    let is_probe =
        upload.master.is_none() && upload.self_signing.is_none() && upload.user_signing.is_none();
    if is_probe {
        return Ok(Ruma(upload_signing_keys::v3::Response::new()));
    }
    let owner = (session.user_number, &*session.user);
    let keys = &users.cross_signing;
    match keys.upload(owner, &upload, Proved::No).await {
        Err(CrossSigningError::NeedsAuthentication) => {
            let proof = interactive.proof.as_ref();
            authenticator
                .require(&operation, OWN_PASSWORD, proof)
                .await?;
            keys.upload(owner, &upload, Proved::Yes).await?;
        }
        uploaded => uploaded?,
    }
    Ok(Ruma(upload_signing_keys::v3::Response::new()))
}
