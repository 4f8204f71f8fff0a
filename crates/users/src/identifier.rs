//! What may become part of a key: identifiers that clients choose.

/// Bytes of an identifier that a client chooses.
pub const MAX_IDENTIFIER: usize = 255;

/// The identifier is empty, longer than 255 bytes, or holds control characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid identifier: empty, too long, or with control characters")]
pub struct BadIdentifier;

/// Refuses what no client has a reason to send and what would not fit into a key.
pub(crate) fn check_identifier(text: &str) -> Result<(), BadIdentifier> {
    let length_fits = (1..=MAX_IDENTIFIER).contains(&text.len());
    if length_fits && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(BadIdentifier)
    }
}
