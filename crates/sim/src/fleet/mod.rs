//! A fleet in virtual time: a trace replayed through the gateway's own routing code.
//!
//! In the plain model every worker is one prefill server beside a batch of sequences that decode. The
//! prefill server takes requests in order of arrival and computes the tokens that its LRU prefix
//! cache does not hold. In the shared model every worker is an [`Engine`](crate::engine::Engine) of
//! that model. The policy is the gateway's own, and has a gateway's knowledge: the worker of each request
//! and its first byte. Time is a number, so hours of traffic take a fraction of a second, and equal
//! seeds give equal results.
//!
//! Workers may be dead, slow, gray, fast-failing or flapping for a while. Requests are then routed by
//! the gateway's own rules about failing workers, or by an oracle.
//!
//! A fleet of pairs has prefill and decode workers. A policy of each role chooses at a request's
//! arrival, as in the gateway. The prompt is computed at the one worker, and after a time for the
//! transfer of its KV cache the request decodes at the other.
//!
//! Several gateways may be in front of the fleet. Each request comes to one of them at random, and each
//! gateway knows what it did itself, and what the others say.
//!
//! The model omits the network, retries of rejected requests, slow start, tokenizers (the policy sees a block
//! of the trace as 64 bytes), and reuse of generated tokens.

mod candidate_policy;
mod faults;
#[cfg(test)]
mod gateway_tests;
mod gateways;
mod guards;
mod options;
mod oracle_policy;
mod pairs;
mod replies;
mod report;
mod run;
mod service;
mod shared_worker;
mod simulate;
mod split_worker;
mod step;
#[cfg(test)]
mod tests;
mod threshold_policy;
mod trace;
mod worker;

pub use candidate_policy::{CandidatePolicy, PairPolicies, UnknownPolicy};
pub use faults::{FaultKind, Knowledge, WorkerFault};
pub use options::{Change, ChangeKind, FleetOptions, Share};
pub use report::Report;
pub use simulate::{simulate, simulate_pairs};
pub use trace::{LineError, Trace, TraceError};
