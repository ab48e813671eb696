//! Which credentials open what, and what is recorded of it.

mod audit;
mod client_keys;
mod fair_order;
mod granted_models;
mod issuer;
mod issuer_tls;
mod matrix;
mod named_in_log;
mod support;
mod token_limits;
mod tokens;
