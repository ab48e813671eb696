//! The two roles of prefill/decode disaggregation.
//!
//! A request comes to both workers of a pair, with the address of the prefill worker's bootstrap
//! server and a room. The decode worker's leg joins the room there; the prefill worker's leg waits
//! for it, computes the prompt and sends the KV cache; the decode worker's leg generates the text.

pub(crate) mod bootstrap_server;
pub(crate) mod client_watch;
pub(crate) mod decode_leg;
pub(crate) mod leg_failure;
pub(crate) mod leg_job;
pub(crate) mod legs;
pub(crate) mod link;
pub(crate) mod prefill_leg;
pub(crate) mod protocol;
pub(crate) mod rooms;
pub(crate) mod state;
pub(crate) mod target;
