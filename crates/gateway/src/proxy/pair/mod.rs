//! One request at a prefill worker and a decode worker: two legs that end together.

mod aborts;
mod coupling;
mod form;
mod ignored_headers;
mod merge;
mod merging;
mod metadata;
mod pair_workers;
mod prefill;
mod rooms;
mod send;
mod values;

pub(super) use aborts::Aborts;
pub(crate) use coupling::{Coupled, Coupling};
pub(super) use rooms::Rooms;
pub(super) use send::{PairInFlight, send};
