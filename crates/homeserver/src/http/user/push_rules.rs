//! Push rules.
//!
//! Specification: client-server API, "Push Rules: API".

use axum::extract::State;
use ruma::{
    api::client::push::{
        delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled,
        get_pushrules_all, get_pushrules_global_scope, set_pushrule, set_pushrule_actions,
        set_pushrule_enabled,
    },
    push::{RuleKind, Ruleset},
};

use crate::{
    app::{
        push_rules::{PushRules, rule},
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(all)
        // Clients in use leave the last slash out.
        .ruma_also(
            &[
                "/_matrix/client/v3/pushrules",
                "/_matrix/client/r0/pushrules",
            ],
            all,
        )
        .ruma(global)
        .ruma_also(
            &[
                "/_matrix/client/v3/pushrules/global",
                "/_matrix/client/r0/pushrules/global",
            ],
            global,
        )
        .ruma(one)
        .ruma(set)
        .ruma(remove)
        .ruma(enabled)
        .ruma(set_enabled)
        .ruma(actions)
        .ruma(set_actions)
}

async fn rules_of(rules: &PushRules, session: &Session) -> Result<Ruleset, ApiError> {
    Ok(rules.of(session.user_number, &session.user).await?)
}

async fn all(
    State(rules): State<PushRules>,
    session: Session,
    Ruma(_): Ruma<get_pushrules_all::v3::Request>,
) -> Result<Ruma<get_pushrules_all::v3::Response>, ApiError> {
    let rules = rules_of(&rules, &session).await?;
    Ok(Ruma(get_pushrules_all::v3::Response::new(rules)))
}

async fn global(
    State(rules): State<PushRules>,
    session: Session,
    Ruma(_): Ruma<get_pushrules_global_scope::v3::Request>,
) -> Result<Ruma<get_pushrules_global_scope::v3::Response>, ApiError> {
    let rules = rules_of(&rules, &session).await?;
    Ok(Ruma(get_pushrules_global_scope::v3::Response::new(rules)))
}

async fn one(
    State(rules): State<PushRules>,
    session: Session,
    Ruma(request): Ruma<get_pushrule::v3::Request>,
) -> Result<Ruma<get_pushrule::v3::Response>, ApiError> {
    let rules = rules_of(&rules, &session).await?;
    let kind = known(request.kind)?;
    let found = rule(&rules, kind, &request.rule_id)?.to_owned();
    Ok(Ruma(get_pushrule::v3::Response::new(found.into())))
}

async fn set(
    State(rules): State<PushRules>,
    session: Session,
    Ruma(request): Ruma<set_pushrule::v3::Request>,
) -> Result<Ruma<set_pushrule::v3::Response>, ApiError> {
    let (after, before) = (request.after.as_deref(), request.before.as_deref());
    let owner = (session.user_number, &*session.user);
    rules.insert(owner, request.rule, after, before).await?;
    Ok(Ruma(set_pushrule::v3::Response::new()))
}

async fn remove(
    State(rules): State<PushRules>,
    session: Session,
    Ruma(request): Ruma<delete_pushrule::v3::Request>,
) -> Result<Ruma<delete_pushrule::v3::Response>, ApiError> {
    let kind = known(request.kind)?;
    let owner = (session.user_number, &*session.user);
    rules.remove(owner, kind, &request.rule_id).await?;
    Ok(Ruma(delete_pushrule::v3::Response::new()))
}

async fn enabled(
    State(rules): State<PushRules>,
    session: Session,
    Ruma(request): Ruma<get_pushrule_enabled::v3::Request>,
) -> Result<Ruma<get_pushrule_enabled::v3::Response>, ApiError> {
    let rules = rules_of(&rules, &session).await?;
    let found = rule(&rules, known(request.kind)?, &request.rule_id)?;
    Ok(Ruma(get_pushrule_enabled::v3::Response::new(
        found.enabled(),
    )))
}

async fn set_enabled(
    State(rules): State<PushRules>,
    session: Session,
    Ruma(request): Ruma<set_pushrule_enabled::v3::Request>,
) -> Result<Ruma<set_pushrule_enabled::v3::Response>, ApiError> {
    let kind = known(request.kind)?;
    let owner = (session.user_number, &*session.user);
    rules
        .set_enabled(owner, kind, &request.rule_id, request.enabled)
        .await?;
    Ok(Ruma(set_pushrule_enabled::v3::Response::new()))
}

async fn actions(
    State(rules): State<PushRules>,
    session: Session,
    Ruma(request): Ruma<get_pushrule_actions::v3::Request>,
) -> Result<Ruma<get_pushrule_actions::v3::Response>, ApiError> {
    let rules = rules_of(&rules, &session).await?;
    let found = rule(&rules, known(request.kind)?, &request.rule_id)?;
    let actions = found.actions().to_vec();
    Ok(Ruma(get_pushrule_actions::v3::Response::new(actions)))
}

async fn set_actions(
    State(rules): State<PushRules>,
    session: Session,
    Ruma(request): Ruma<set_pushrule_actions::v3::Request>,
) -> Result<Ruma<set_pushrule_actions::v3::Response>, ApiError> {
    let kind = known(request.kind)?;
    let owner = (session.user_number, &*session.user);
    rules
        .set_actions(owner, kind, &request.rule_id, request.actions)
        .await?;
    Ok(Ruma(set_pushrule_actions::v3::Response::new()))
}

/// A kind of rule that the specification has.
fn known(kind: RuleKind) -> Result<RuleKind, ApiError> {
    match kind {
        RuleKind::Override
        | RuleKind::Underride
        | RuleKind::Sender
        | RuleKind::Room
        | RuleKind::Content => Ok(kind),
        other => Err(ApiError::invalid_param(format!(
            "There is no kind of push rule called {}",
            other.as_str()
        ))),
    }
}
