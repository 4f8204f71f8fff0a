//! What a Matrix event is and which events are allowed. Pure and synchronous.

pub mod push;
pub mod visibility;
