//! Secrets that stand for somebody: access, refresh, login and `OpenID` tokens. Only their hashes
//! are stored, so that whoever reads the database cannot log in.

use homeserver_runtime::Entropy;
use homeserver_storage::{Table, TableSpec, row};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Letters of a token; about 5.95 bits each.
const LENGTH: usize = 43;

/// A hash under which a token is stored.
pub(crate) type TokenHash = [u8; 32];

/// What a token is for; it begins with a prefix that tells, also to those who scan for leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// Comes with each request.
    Access,
    /// Buys a new access token.
    Refresh,
    /// Logs in once.
    Login,
    /// Shows to somebody else who its owner is.
    OpenId,
}

/// A new secret. It can be compared with nothing: a token is known by its hash alone.
pub(crate) fn generate(kind: TokenKind, entropy: &dyn Entropy) -> String {
    let prefix = match kind {
        TokenKind::Access => "hsa_",
        TokenKind::Refresh => "hsr_",
        TokenKind::Login => "hsl_",
        TokenKind::OpenId => "hso_",
    };
    format!("{prefix}{}", entropy.alphanumeric(LENGTH))
}

/// The hash under which `token` is stored. Tokens hold more than 250 random bits, so a fast hash
/// without salt is enough.
pub(crate) fn hash(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

/// Row of [`ACCESS_TOKENS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AccessRow {
    /// Number of the user.
    pub(crate) user: u64,
    /// Id of the device.
    pub(crate) device: String,
    /// The account's generation of logins that it belongs to; it ends with that.
    pub(crate) generation: u64,
    /// Milliseconds since the Unix epoch from which it is refused; `None` never.
    pub(crate) expires_at: Option<u64>,
    /// The pair it replaces, which ends with the first use of this one.
    pub(crate) replaces: Option<Pair>,
}
row!(AccessRow, 1);

/// Row of [`REFRESH_TOKENS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefreshRow {
    /// Number of the user.
    pub(crate) user: u64,
    /// Id of the device.
    pub(crate) device: String,
    /// The account's generation of logins that it belongs to; it ends with that.
    pub(crate) generation: u64,
    /// The access token that came with it.
    pub(crate) access: TokenHash,
    /// The pair this one replaces, which ends with the first use of this one.
    pub(crate) replaces: Option<Pair>,
    /// The pair that was given for this one and has not been used yet.
    pub(crate) replaced_by: Option<Pair>,
}
row!(RefreshRow, 1);

/// Hashes of a refresh token and of the access token that came with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// The access token.
    pub(crate) access: TokenHash,
    /// The refresh token.
    pub(crate) refresh: TokenHash,
}

/// Row of [`LOGIN_TOKENS`] and [`OPENID_TOKENS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BriefRow {
    /// Number of the user.
    pub(crate) user: u64,
    /// The account's generation of logins that it was made in; it ends with that.
    pub(crate) generation: u64,
    /// Milliseconds since the Unix epoch from which it is refused.
    pub(crate) expires_at: u64,
}
row!(BriefRow, 1);

/// Which of a device's tokens a row of [`DEVICE_TOKENS`] names.
pub(crate) const ACCESS: u8 = 1;
/// See [`ACCESS`].
pub(crate) const REFRESH: u8 = 2;

/// (hash of the access token) → whose it is
pub(crate) const ACCESS_TOKENS: Table<TokenHash, AccessRow> = Table::new(0x80, "access tokens");
/// (hash of the refresh token) → whose it is
pub(crate) const REFRESH_TOKENS: Table<TokenHash, RefreshRow> = Table::new(0x81, "refresh tokens");
/// (user number, device id, access or refresh, hash) → (): what ends with the device
pub(crate) const DEVICE_TOKENS: Table<(u64, String, u8, TokenHash), ()> =
    Table::new(0x82, "tokens of devices");
/// (hash of the login token) → whose it is
pub(crate) const LOGIN_TOKENS: Table<TokenHash, BriefRow> = Table::new(0x83, "login tokens");
/// (hash of the `OpenID` token) → whose it is
pub(crate) const OPENID_TOKENS: Table<TokenHash, BriefRow> = Table::new(0x84, "OpenID tokens");

/// (user number) → (): all logins ended, but not all of their devices are deleted yet
pub(crate) const ENDINGS: Table<u64, ()> = Table::new(0x87, "endings of logins");

/// The tables above.
pub(crate) const TABLES: [TableSpec; 6] = [
    ENDINGS.spec(),
    ACCESS_TOKENS.spec(),
    REFRESH_TOKENS.spec(),
    DEVICE_TOKENS.spec(),
    LOGIN_TOKENS.spec(),
    OPENID_TOKENS.spec(),
];
