//! Long conversations: nothing is lost, nothing is out of order, whoever was away.
