//! Users whom an account ignores: what they send is not shown, except state.
//!
//! Specification: client-server API, "Ignoring users".

use std::collections::HashSet;

use homeserver_users::{AccountData, Accounts, Failure, Scope};
use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Account data that lists ignored users.
pub(crate) const IGNORED_USER_LIST: &str = "m.ignored_user_list";

/// The users whom somebody ignores.
#[derive(Clone, Debug, Default)]
pub(crate) struct IgnoredUsers {
    users: HashSet<OwnedUserId>,
}

impl IgnoredUsers {
    /// Whom `user` ignores now. Users of other servers, whose list is not here, ignore nobody.
    pub(crate) async fn of(
        user: &UserId,
        accounts: &Accounts,
        account_data: &AccountData,
    ) -> Result<Self, Failure> {
        let Some(account) = accounts.by_id(user).await? else {
            return Ok(Self::default());
        };
        let list = account_data
            .one(account.number, Scope::Global, IGNORED_USER_LIST)
            .await?;
        Ok(list.map_or_else(Self::default, |list| Self::read(&list.content)))
    }

    /// The same list without `user`: nobody can ignore themselves, their own devices would disagree.
    #[must_use]
    pub(crate) fn others_than(mut self, user: &UserId) -> Self {
        self.users.remove(user);
        self
    }

    /// Reads the content of the account data; nobody is ignored by a list that is not understood,
    /// and an entry that is no user id counts for nothing.
    pub(crate) fn read(content: &RawValue) -> Self {
        #[derive(Deserialize)]
        struct List {
            ignored_users: serde_json::Map<String, serde_json::Value>,
        }
        let list = serde_json::from_str::<List>(content.get());
        let names = list.map(|list| list.ignored_users).unwrap_or_default();
        let users = names
            .into_iter()
            .map(|(name, _)| name)
            .filter_map(|name| UserId::parse(name).ok());
        Self {
            users: users.collect(),
        }
    }

    /// Whom exactly, in order.
    pub(crate) fn sorted(&self) -> Vec<&UserId> {
        let mut users: Vec<_> = self.users.iter().map(|user| &**user).collect();
        users.sort_unstable();
        users
    }

    /// Whether nobody is ignored.
    pub(crate) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Whether an event of this sender is not shown.
    pub(crate) fn hides(&self, sender: &UserId, is_state: bool) -> bool {
        !is_state && self.users.contains(sender)
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::{json, value::to_raw_value};

    use super::*;

    #[test]
    fn messages_of_listed_users_are_hidden_and_their_state_is_not() {
        let bob = user_id!("@bob:example.org");
        let cases = [
            (json!({"ignored_users": {"@bob:example.org": {}}}), true),
            (
                json!({"ignored_users": {"@bob:example.org": {}, "rubbish": 1}}),
                true,
            ),
            (json!({"ignored_users": {"@carol:example.org": {}}}), false),
            (json!({"ignored_users": ["@bob:example.org"]}), false),
            (json!({}), false),
        ];
        for (content, hidden) in cases {
            let ignored = IgnoredUsers::read(&to_raw_value(&content).unwrap());
            assert_eq!(ignored.hides(bob, false), hidden, "{content}");
            assert!(!ignored.hides(bob, true), "{content}");
        }
    }
}
