//! Living rooms: loads what a decision needs, asks the event rules, appends.
