//! The numbers that stand for users and devices in keys and journal topics.

use std::fmt;

/// Stands for a user id, local or not. Given on first mention and never changed; carries no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserNumber(pub u64);

/// Stands for one life of a device: the position of the commit that created it. A device that is
/// deleted and created anew under the same id has another number, so nothing that was stored for
/// the first reaches the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber(pub u64);

impl fmt::Display for UserNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
