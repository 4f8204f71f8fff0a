//! What the memory streams (typing, presence) have in common: tokens and wake-ups.

/// A place in a memory stream: which start of the process, and how many changes since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamToken {
    /// Drawn at random when the stream was made; another one means that nothing is known of what
    /// the holder was told.
    pub boot: u64,
    /// Counts changes.
    pub counter: u64,
}

/// How a reader's token relates to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes<T> {
    /// What changed since the token.
    Since(T),
    /// The token says nothing here (another start of the process, or too old): this is the whole
    /// set, and whatever is not in it is over.
    Whole(T),
}

impl<T> Changes<T> {
    /// What is told either way.
    pub fn into_inner(self) -> T {
        match self {
            Self::Since(changes) | Self::Whole(changes) => changes,
        }
    }
}
