//! Which credentials open what, and what is recorded of it.

mod audit;
mod client_keys;
mod issuer;
mod matrix;
mod support;
mod tokens;
