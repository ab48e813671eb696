//! A fleet in virtual time: a trace replayed through the gateway's own routing code.
//!
//! Every worker is one prefill server that takes requests in order of arrival and recomputes
//! what its LRU prefix cache does not hold, next to a batch of sequences that decode. The
//! policy is the one the gateway runs, and it knows what a gateway knows: which requests it
//! sent where, and which of them have shown their first byte. Time is a number, so hours of
//! traffic take a fraction of a second, and equal seeds give equal results.
//!
//! What is left out: the network, retries of rejected requests, tokenizers (a block of the
//! trace is 64 bytes to the policy), and reuse of generated tokens.

mod contender;
mod options;
mod reference;
mod report;
mod run;
#[cfg(test)]
mod tests;
mod trace;
mod worker;

pub use contender::{Contender, UnknownPolicy};
pub use options::{Change, ChangeKind, FleetOptions};
pub use report::Report;
pub use run::simulate;
pub use trace::{LineError, Trace, TraceError};
