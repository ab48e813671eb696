//! The fields of a request's body that routing reads.

mod billing_header;
#[expect(clippy::module_inception, reason = "the type that the module is about")]
mod body_fields;
mod json;
mod json_parts;
mod layout;
mod media;
mod open_body;
#[cfg(test)]
mod tests;

pub(super) use body_fields::{BodyFields, LARGE};
pub(super) use json_parts::{elements, member, splice};
pub(super) use open_body::{OpenBody, Opening, count};
