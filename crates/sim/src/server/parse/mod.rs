//! Reading request bodies: the few fields a simulator needs, borrowed; the rest is skipped.

mod prompts;
mod sampling;
mod text;

pub(crate) use prompts::Prompts;
pub(crate) use sampling::{OneOrMany, Routing, Sampling};
pub(crate) use text::Text;
