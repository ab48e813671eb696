//! Several answers to a prompt from pairs of workers, which give one: as many requests, and their
//! answers joined again.

mod carry;
mod join;
mod split;
mod stream;

pub(super) use carry::carry;
pub(super) use stream::SampleStream;
