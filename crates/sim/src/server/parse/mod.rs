//! Parsing of request bodies. Fields that the simulator needs are borrowed; others are skipped.

mod body;
mod bootstrap;
mod conditions;
mod multipart;
mod prompts;
mod sampling;
mod text;

pub(crate) use body::from_json;
pub(crate) use bootstrap::{BootstrapFields, RoomNumber};
pub(crate) use conditions::Conditions;
pub(crate) use multipart::parts;
pub(crate) use prompts::Prompts;
pub(crate) use sampling::{OneOrMany, Routing, Sampling};
pub(crate) use text::Text;
