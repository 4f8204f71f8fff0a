//! The token of `/sync`: where a device stands in everything it is told.
//!
//! A token names the database's *epoch*. One of another epoch, or of a position that this database
//! has not reached or where its journal has been trimmed, is as good as none: the reader starts anew. It is also bound to the device that
//! it was given to, because showing it acknowledges that device's to-device messages.

use std::{fmt, str::FromStr};

use homeserver_storage::Position;
use homeserver_users::StreamToken;

/// Where a device stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SyncToken {
    /// The database's epoch when the token was given.
    pub(crate) epoch: u64,
    /// Everything in the journal up to here was told.
    pub(crate) position: Position,
    /// To-device messages up to here were told; at most `position`.
    pub(crate) to_device: Position,
    /// The number of the device that the token was given to.
    pub(crate) device: u64,
    /// Typing changes up to here were told.
    pub(crate) typing: StreamToken,
    /// Presence changes up to here were told.
    pub(crate) presence: StreamToken,
}

/// The text is not a sync token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token of /sync")]
pub(crate) struct NotASyncToken;

/// Numbers in a token.
const NUMBERS: usize = 8;

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            epoch,
            position,
            to_device,
            device,
            typing,
            presence,
        } = self;
        write!(
            f,
            "s{epoch:x}_{position}_{to_device}_{device}_{:x}_{}_{:x}_{}",
            typing.boot, typing.counter, presence.boot, presence.counter
        )
    }
}

impl FromStr for SyncToken {
    type Err = NotASyncToken;

    fn from_str(text: &str) -> Result<Self, NotASyncToken> {
        let text = text.strip_prefix('s').ok_or(NotASyncToken)?;
        let mut numbers = [0; NUMBERS];
        let mut parts = text.split('_');
        for (index, number) in numbers.iter_mut().enumerate() {
            let radix = if matches!(index, 0 | 4 | 6) { 16 } else { 10 };
            let part = parts.next().ok_or(NotASyncToken)?;
            *number = u64::from_str_radix(part, radix).map_err(|_| NotASyncToken)?;
        }
        if parts.next().is_some() {
            return Err(NotASyncToken);
        }
        let [
            epoch,
            position,
            to_device,
            device,
            typing_boot,
            typing,
            presence_boot,
            presence,
        ] = numbers;
        Ok(Self {
            epoch,
            position,
            to_device,
            device,
            typing: StreamToken {
                boot: typing_boot,
                counter: typing,
            },
            presence: StreamToken {
                boot: presence_boot,
                counter: presence,
            },
        })
    }
}

impl SyncToken {
    /// Whether a reader may continue from here, in a database of this epoch whose journal is whole
    /// from `trimmed` to `durable`.
    pub(crate) fn continues(&self, epoch: u64, trimmed: Position, durable: Position) -> bool {
        let reached = self.position <= durable && self.to_device <= durable;
        self.epoch == epoch && self.position >= trimmed && reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(numbers: [u64; NUMBERS]) {
            let [epoch, position, to_device, device, boot, counter, ..] = numbers;
            let typing = StreamToken { boot, counter };
            let presence = StreamToken { boot: numbers[6], counter: numbers[7] };
            let token = SyncToken { epoch, position, to_device, device, typing, presence };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn any_text_is_answered(text in ".*") {
            if let Ok(token) = text.parse::<SyncToken>() {
                prop_assert_eq!(token.to_string().parse(), Ok(token));
            }
        }
    }

    #[test]
    fn broken_tokens_are_refused() {
        for text in [
            "",
            "s",
            "s1_2_3_4_5_6_7",
            "s1_2_3_4_5_6_7_8_9",
            "1_2_3_4_5_6_7_8",
            "s1_2_3_4_5_6_7_x",
        ] {
            assert_eq!(text.parse::<SyncToken>(), Err(NotASyncToken), "{text}");
        }
    }

    #[test]
    fn another_epoch_or_a_position_out_of_reach_starts_anew() {
        let token = SyncToken {
            epoch: 7,
            position: 10,
            to_device: 10,
            ..SyncToken::default()
        };
        assert!(token.continues(7, 0, 10));
        assert!(token.continues(7, 10, 12));
        assert!(!token.continues(8, 0, 10));
        assert!(!token.continues(7, 0, 9));
        assert!(!token.continues(7, 11, 12));
    }
}
