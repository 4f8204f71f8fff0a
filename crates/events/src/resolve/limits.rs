//! The bounds of a resolution.

/// States that can be resolved at once.
pub const MAX_STATES: usize = 1_024;
/// Events of which the links are loaded, by default.
pub const MAX_LINKS: usize = 200_000;
/// Events that are loaded whole, by default.
pub const MAX_EVENTS: usize = 20_000;
/// Bytes of JSON of the events that are loaded whole, by default.
pub const MAX_EVENT_BYTES: usize = 64 * 1024 * 1024;
/// Steps of work: links followed, events sorted, checks made; by default.
pub const MAX_STEPS: u64 = 5_000_000;
/// Unconflicted events asked for at once, highest first; a long walk asks for more each time.
pub const UNCONFLICTED_CHUNK: usize = 256;

/// What a resolution may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// See [`MAX_LINKS`].
    pub links: usize,
    /// See [`MAX_EVENTS`].
    pub events: usize,
    /// See [`MAX_EVENT_BYTES`].
    pub event_bytes: usize,
    /// See [`MAX_STEPS`].
    pub steps: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links: MAX_LINKS,
            events: MAX_EVENTS,
            event_bytes: MAX_EVENT_BYTES,
            steps: MAX_STEPS,
        }
    }
}

/// The bound that stopped a resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// More than [`MAX_STATES`] states.
    States,
    /// [`Limits::links`].
    Links,
    /// [`Limits::events`].
    Events,
    /// [`Limits::event_bytes`].
    EventBytes,
    /// [`Limits::steps`].
    Steps,
}

/// Why a phase stopped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Something was noted as needed.
    Need,
    /// A bound was reached.
    Over(Limit),
}

/// What is left of the limits.
#[derive(Debug)]
pub(super) struct Budget {
    left: Limits,
    /// Kept for links that were asked for by name.
    reserved_links: usize,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            left: limits,
            reserved_links: limits.links / 2,
        }
    }

    /// Whether links may come along: only what is asked for may use up the limit.
    pub(super) fn has_spare_links(&self) -> bool {
        self.left.links > self.reserved_links
    }

    pub(super) fn spend_steps(&mut self, steps: usize) -> Result<(), Stop> {
        let left = self.left.steps.checked_sub(steps as u64);
        self.left.steps = left.ok_or(Stop::Over(Limit::Steps))?;
        Ok(())
    }

    pub(super) fn spend_link(&mut self) -> Result<(), Stop> {
        self.left.links = self
            .left
            .links
            .checked_sub(1)
            .ok_or(Stop::Over(Limit::Links))?;
        Ok(())
    }

    pub(super) fn spend_event(&mut self, bytes: usize) -> Result<(), Stop> {
        self.left.events = self
            .left
            .events
            .checked_sub(1)
            .ok_or(Stop::Over(Limit::Events))?;
        let left = self.left.event_bytes.checked_sub(bytes);
        self.left.event_bytes = left.ok_or(Stop::Over(Limit::EventBytes))?;
        Ok(())
    }
}
