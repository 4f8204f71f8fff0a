//! Everything under `/rooms`, and what finds rooms. One file per area.

mod aliases;
mod create;
mod history;
mod membership;
mod public;
mod relations;
mod report;
mod send;
mod space;
mod state;

pub(super) use self::{
    history::{count, json, token},
    public::PublicRoomsAnswer,
};
use super::Routes;

pub(super) fn routes() -> Routes {
    Routes::new()
        .merge(create::routes())
        .merge(membership::routes())
        .merge(send::routes())
        .merge(state::routes())
        .merge(history::routes())
        .merge(relations::routes())
        .merge(aliases::routes())
        .merge(public::routes())
        .merge(report::routes())
        .merge(space::routes())
}

#[cfg(test)]
mod tests;
